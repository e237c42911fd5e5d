//! Numbers under tags: every thread adds to its own.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use super::{TAGS, TagStats, UNTAGGED_NAME};
use crate::Config;
use crate::sys::ThreadExit;
use crate::zone::META;

/// What one thread has counted.
#[repr(align(64))]
struct Counts {
    tags: [Count; TAGS],
    next: AtomicPtr<Counts>,
    /// A thread has it for its own.
    taken: AtomicBool,
}

/// What was allocated and what was freed, each by itself, so that neither has to wait for what the other stored last. A
/// block that is resized counts for the difference.
struct Count {
    allocated: Sum,
    freed: Sum,
}

/// Relaxed throughout: statistics, which wrap around.
struct Sum {
    bytes: AtomicUsize,
    blocks: AtomicUsize,
}

impl Sum {
    const fn new() -> Sum {
        Sum { bytes: AtomicUsize::new(0), blocks: AtomicUsize::new(0) }
    }

    /// Adds where no other thread does.
    #[inline(always)]
    fn add(&self, bytes: usize, blocks: usize) {
        self.bytes.store(self.bytes.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
        self.blocks.store(self.blocks.load(Ordering::Relaxed).wrapping_add(blocks), Ordering::Relaxed);
    }

    /// Adds where others do, too.
    fn add_shared(&self, bytes: usize, blocks: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.blocks.fetch_add(blocks, Ordering::Relaxed);
    }
}

impl Count {
    fn side(&self, side: Side) -> &Sum {
        match side {
            Side::Allocated => &self.allocated,
            Side::Freed => &self.freed,
        }
    }
}

/// Which of the two a number is added to.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Allocated,
    Freed,
}

impl Counts {
    const fn new() -> Counts {
        Counts {
            tags: [const { Count { allocated: Sum::new(), freed: Sum::new() } }; TAGS],
            next: AtomicPtr::new(null_mut()),
            taken: AtomicBool::new(false),
        }
    }
}

/// What threads count that have nothing of their own: they are ending, or there was no memory.
static SHARED: Counts = Counts::new();
/// Every thread's, linked by `next`; they live for ever, and so does what ended threads have counted.
static ALL: AtomicPtr<Counts> = AtomicPtr::new(null_mut());
static EXIT: ThreadExit = ThreadExit::new();
static EXIT_CLAIMED: AtomicBool = AtomicBool::new(false);

std::thread_local! {
    /// This thread's. Constant and without a destructor, like the one below: touching them allocates nothing, and they
    /// are there for as long as the thread runs.
    static OWN: Cell<*const Counts> = const { Cell::new(null()) };
    /// No own counts, or none any more.
    static WITHOUT: Cell<bool> = const { Cell::new(false) };
}

/// So many bytes and blocks more were allocated under a tag, or freed.
#[inline(always)]
pub(super) fn count(tag: u8, side: Side, bytes: usize, blocks: usize) {
    // SAFETY: counts live for ever, and these are this thread's.
    match unsafe { OWN.get().as_ref() } {
        Some(own) => own.tags[tag as usize % TAGS].side(side).add(bytes, blocks),
        None => count_slow(tag, side, bytes, blocks),
    }
}

#[cold]
#[inline(never)]
fn count_slow(tag: u8, side: Side, bytes: usize, blocks: usize) {
    if !WITHOUT.get() && attach() {
        return count(tag, side, bytes, blocks);
    }
    SHARED.tags[tag as usize % TAGS].side(side).add_shared(bytes, blocks);
}

/// A block under a tag has become larger or smaller.
#[inline(always)]
pub(super) fn count_resized(tag: u8, old: usize, new: usize) {
    if new >= old {
        count(tag, Side::Allocated, new - old, 0);
    } else {
        count(tag, Side::Freed, old - new, 0);
    }
}

/// Gets this thread counts of its own. Takes no lock but that of `META`, which `fork` knows of.
fn attach() -> bool {
    // What the C library allocates on the way is counted with what is shared.
    WITHOUT.set(true);
    // Relaxed: whoever is not first finds no key until it is made, and goes on without.
    if !EXIT_CLAIMED.swap(true, Ordering::Relaxed) {
        crate::heap::ensure_up(&Config::new());
        EXIT.create(thread_exit);
    }
    let Some(own) = spare_counts().or_else(new_counts) else {
        WITHOUT.set(false);
        return false;
    };
    if !EXIT.arm(own as *const Counts as *mut c_void) {
        // Release, as in `thread_exit`. For want of memory, or of the key, which may come yet.
        own.taken.store(false, Ordering::Release);
        WITHOUT.set(false);
        return false;
    }
    OWN.set(own);
    WITHOUT.set(false);
    true
}

/// Every counts ever made.
fn all_counts() -> impl Iterator<Item = &'static Counts> {
    // Acquire, paired with the release in `new_counts`. SAFETY: counts live for ever.
    let first: Option<&'static Counts> = unsafe { ALL.load(Ordering::Acquire).as_ref() };
    // SAFETY: as above. Relaxed: a link is written before its counts are published.
    core::iter::successors(first, |counts| unsafe { counts.next.load(Ordering::Relaxed).as_ref() })
}

/// Counts of a thread that has ended.
fn spare_counts() -> Option<&'static Counts> {
    all_counts().find(|counts| {
        // Acquire, paired with the release in `thread_exit`: this thread adds to what that one stored last.
        !counts.taken.load(Ordering::Relaxed)
            && counts.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    })
}

fn new_counts() -> Option<&'static Counts> {
    let memory = META.alloc(size_of::<Counts>(), align_of::<Counts>())?.cast::<Counts>();
    // SAFETY: fresh memory, large and aligned enough, that lives for ever.
    let counts: &'static Counts = unsafe {
        memory.write(Counts::new());
        memory.as_ref()
    };
    counts.taken.store(true, Ordering::Relaxed);
    let mut first = ALL.load(Ordering::Relaxed);
    loop {
        counts.next.store(first, Ordering::Relaxed);
        // Release, paired with the acquire in `all_counts`.
        match ALL.compare_exchange_weak(first, memory.as_ptr(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return Some(counts),
            Err(now) => first = now,
        }
    }
}

/// The thread ends; what its other destructors free is counted with what is shared.
unsafe extern "C" fn thread_exit(own: *mut c_void) {
    WITHOUT.set(true);
    OWN.set(null());
    // SAFETY: `attach` armed it with the thread's counts, which live for ever.
    let own = unsafe { &*own.cast::<Counts>() };
    // Release, paired with the acquire in `spare_counts`.
    own.taken.store(false, Ordering::Release);
}

/// What is out under the tag of this number; the name is that of blocks without a tag.
pub(super) fn sum(number: u8) -> TagStats {
    let mut stats = TagStats { name: UNTAGGED_NAME, bytes: 0, blocks: 0, allocated_bytes: 0, allocated_blocks: 0 };
    let (mut freed_bytes, mut freed_blocks) = (0usize, 0usize);
    for counts in all_counts().chain(core::iter::once(&SHARED)) {
        let Count { allocated, freed } = &counts.tags[number as usize % TAGS];
        stats.allocated_bytes = stats.allocated_bytes.wrapping_add(allocated.bytes.load(Ordering::Relaxed));
        stats.allocated_blocks = stats.allocated_blocks.wrapping_add(allocated.blocks.load(Ordering::Relaxed));
        freed_bytes = freed_bytes.wrapping_add(freed.bytes.load(Ordering::Relaxed));
        freed_blocks = freed_blocks.wrapping_add(freed.blocks.load(Ordering::Relaxed));
    }
    // A free may be seen whose allocation was not.
    let difference = |allocated: usize, freed: usize| (allocated.wrapping_sub(freed) as isize).max(0) as usize;
    stats.bytes = difference(stats.allocated_bytes, freed_bytes);
    stats.blocks = difference(stats.allocated_blocks, freed_blocks);
    stats
}
