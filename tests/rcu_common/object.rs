//! Objects that say whether they are alive, and the ways in which they can be freed.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use pcpalloc::rcu::{self, Cookie, Domain, DomainGuard, Heap, RcuHead, ReadGuard};

use super::{alloc, dealloc};

const ALIVE: u64 = 0x616c_6976_6500_0000;
const DEAD: u64 = 0xdead_dead_dead_dead;

/// What readers look at. `magic` belongs to `stamp`, which no other object has.
#[repr(C)]
pub struct Object {
    head: RcuHead,
    stamp: AtomicU64,
    magic: AtomicU64,
    _room: [u64; 3],
}

/// An object with a destructor, which kills it.
#[repr(transparent)]
pub struct Mortal(Object);

impl Drop for Mortal {
    fn drop(&mut self) {
        self.0.kill();
    }
}

pub const LAYOUT: Layout = Layout::new::<Object>();

static STAMPS: AtomicU64 = AtomicU64::new(1);
/// Objects that a destructor, a call, or their owner has killed.
pub static KILLED: AtomicUsize = AtomicUsize::new(0);

impl Object {
    /// An object in memory that may have been one before.
    pub fn create() -> NonNull<Object> {
        let object = alloc(LAYOUT).cast::<Object>();
        scribble(object.cast());
        let stamp = STAMPS.fetch_add(1, Ordering::Relaxed);
        let (stamp, magic) = (AtomicU64::new(stamp), AtomicU64::new(ALIVE ^ stamp));
        // SAFETY: fresh memory of this layout.
        unsafe { object.write(Object { head: RcuHead::new(), stamp, magic, _room: [0; 3] }) };
        object
    }

    /// The object's stamp; panics if it is dead.
    pub fn look(&self) -> u64 {
        let stamp = self.stamp.load(Ordering::Relaxed);
        let magic = self.magic.load(Ordering::Relaxed);
        assert_eq!(magic, ALIVE ^ stamp, "a reader sees a dead object ({magic:#x})");
        stamp
    }

    fn kill(&self) {
        self.look();
        self.magic.store(DEAD, Ordering::Relaxed);
        KILLED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Overwrites a block of this layout: whoever still looks at what was there sees it.
pub fn scribble(block: NonNull<u8>) {
    // SAFETY: the caller's block; by atomics, since a reader that should not be there may look.
    let words = unsafe { core::slice::from_raw_parts(block.cast::<AtomicU64>().as_ptr(), LAYOUT.size() / 8) };
    words.iter().for_each(|word| word.store(DEAD, Ordering::Relaxed));
}

/// The operations of a domain, the default one or another.
pub trait Rcu: Sync {
    type Guard<'a>
    where
        Self: 'a;

    fn read(&self) -> Self::Guard<'_>;
    fn synchronize(&self);
    fn synchronize_expedited(&self);
    fn start_poll(&self) -> Cookie;
    fn barrier(&self);
    fn pending(&self) -> usize;
    /// # Safety
    /// Here and below: as for the function of the module.
    unsafe fn free(&self, block: NonNull<u8>, layout: Layout);
    unsafe fn free_nolock(&self, head: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout);
    unsafe fn call(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>));
    fn retire<T: Send + 'static>(&self, value: Box<T>);
}

/// The functions of the module.
pub struct Default;

impl Rcu for Default {
    type Guard<'a> = ReadGuard;

    fn read(&self) -> ReadGuard {
        rcu::read_lock()
    }

    fn synchronize(&self) {
        rcu::synchronize();
    }

    fn synchronize_expedited(&self) {
        rcu::synchronize_expedited();
    }

    fn start_poll(&self) -> Cookie {
        rcu::start_poll()
    }

    fn barrier(&self) {
        rcu::barrier();
    }

    fn pending(&self) -> usize {
        rcu::stats().pending_pointers
    }

    unsafe fn free(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation, here and below.
        unsafe { rcu::free(block, layout) }
    }

    unsafe fn free_nolock(&self, head: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout) {
        // SAFETY: as above.
        unsafe { rcu::free_nolock(head, block, layout) }
    }

    unsafe fn call(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
        // SAFETY: as above.
        unsafe { rcu::call(head, func) }
    }

    fn retire<T: Send + 'static>(&self, value: Box<T>) {
        rcu::retire(value);
    }
}

impl Rcu for Domain<Heap> {
    type Guard<'a> = DomainGuard<'a>;

    fn read(&self) -> DomainGuard<'_> {
        self.read_lock()
    }

    fn synchronize(&self) {
        Domain::synchronize(self);
    }

    fn synchronize_expedited(&self) {
        Domain::synchronize_expedited(self);
    }

    fn start_poll(&self) -> Cookie {
        Domain::start_poll(self)
    }

    fn barrier(&self) {
        Domain::barrier(self);
    }

    fn pending(&self) -> usize {
        self.stats().pending_pointers
    }

    unsafe fn free(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation, here and below.
        unsafe { Domain::free(self, block, layout) }
    }

    unsafe fn free_nolock(&self, head: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout) {
        // SAFETY: as above.
        unsafe { Domain::free_nolock(self, head, block, layout) }
    }

    unsafe fn call(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
        // SAFETY: as above.
        unsafe { Domain::call(self, head, func) }
    }

    fn retire<T: Send + 'static>(&self, value: Box<T>) {
        Domain::retire(self, value);
    }
}

/// How many ways [`dispose`] knows.
pub const WAYS: usize = 9;

/// Frees an object that was unlinked just now, in the way of this number.
///
/// # Safety
/// The object came from [`Object::create`] and was unlinked by the caller alone; `rcu` is what its readers use.
pub unsafe fn dispose<R: Rcu>(
    rcu: &R,
    object: NonNull<Object>,
    way: usize,
    polled: &mut Vec<(Cookie, NonNull<Object>)>,
) {
    unsafe fn called(head: NonNull<RcuHead>) {
        // SAFETY: the head is the object's first field.
        unsafe { kill_and_free(head.cast()) }
    }
    // SAFETY: the caller's obligation; objects have the layout of their boxes, which come from the same heap.
    unsafe {
        match way {
            0 => rcu.free(object.cast(), LAYOUT),
            1 => rcu.free_nolock(object.cast(), object.cast(), LAYOUT),
            2 => rcu.call(object.cast(), called),
            3 => rcu.retire(Box::from_raw(object.as_ptr())),
            4 => rcu.retire(Box::from_raw(object.cast::<Mortal>().as_ptr())),
            5 => {
                rcu.synchronize();
                kill_and_free(object);
            }
            6 => {
                rcu.synchronize_expedited();
                kill_and_free(object);
            }
            7 => {
                block_on(rcu.start_poll());
                kill_and_free(object);
            }
            _ => polled.push((rcu.start_poll(), object)),
        }
    }
    free_polled(polled);
}

/// Frees those whose grace periods are over.
pub fn free_polled(polled: &mut Vec<(Cookie, NonNull<Object>)>) {
    polled.retain(|(cookie, object)| {
        let done = cookie.is_done();
        if done {
            // SAFETY: `dispose` put it there after it was unlinked, and its readers are gone.
            unsafe { kill_and_free(*object) };
        }
        !done
    });
}

/// # Safety
/// The caller has waited for the readers, and nobody else frees it.
unsafe fn kill_and_free(object: NonNull<Object>) {
    // SAFETY: the caller's obligation.
    unsafe {
        object.as_ref().kill();
        dealloc(object.cast(), LAYOUT);
    }
}

/// Runs a future on this thread.
pub fn block_on(mut future: impl Future<Output = ()> + Unpin) {
    struct Parked(std::thread::Thread);
    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Parked(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    while std::pin::Pin::new(&mut future).poll(&mut context) == Poll::Pending {
        std::thread::park();
    }
}

/// Pointers to objects that readers follow and writers replace.
pub struct Table([AtomicPtr<Object>; 16]);

impl Table {
    pub fn new() -> Table {
        Table([(); 16].map(|()| AtomicPtr::new(Object::create().as_ptr())))
    }

    /// The object in a slot, for whoever is in a section.
    pub fn get(&self, slot: usize) -> NonNull<Object> {
        NonNull::new(self.0[slot % 16].load(Ordering::Acquire)).expect("never empty")
    }

    /// Puts a new object in a slot.
    pub fn replace(&self, slot: usize) -> NonNull<Object> {
        let new = Object::create();
        NonNull::new(self.0[slot % 16].swap(new.as_ptr(), Ordering::AcqRel)).expect("never empty")
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for slot in &self.0 {
            // SAFETY: nobody reads any more.
            unsafe { dealloc(NonNull::new(slot.load(Ordering::Relaxed)).expect("never empty").cast(), LAYOUT) };
        }
    }
}
