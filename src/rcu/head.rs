//! Objects that carry their own link: the way to defer a free, or a call, that needs no memory at all.

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::list::List;

/// Room in an object for what a deferred free or call has to note: three words.
///
/// Readers may go on reading the object meanwhile, but nobody else may touch its head. [`free_nolock`](super::free_nolock)
/// and [`call`](super::call) take one.
///
/// ```
/// use pcpalloc::rcu::RcuHead;
///
/// struct Entry { head: RcuHead, value: u64 }
///
/// let entry = Entry { head: RcuHead::new(), value: 7 };
/// assert_eq!(size_of_val(&entry), 32);
/// ```
#[doc(alias = "rcu_head")]
pub struct RcuHead {
    next: Cell<*mut RcuHead>,
    /// The block, or the function.
    what: Cell<usize>,
    /// Size, and log2 of the alignment plus 1; 0 in place of that says that `what` is a function.
    layout: Cell<usize>,
}

// SAFETY: the cells are written by the one thread that queues the head and read by the one that takes the chain;
// the chain's exchange orders the two.
unsafe impl Send for RcuHead {}
// SAFETY: as above; no safe method touches the cells, `fmt` included.
unsafe impl Sync for RcuHead {}

impl RcuHead {
    /// A head that waits for nothing.
    pub const fn new() -> Self {
        RcuHead { next: Cell::new(null_mut()), what: Cell::new(0), layout: Cell::new(0) }
    }
}

impl RcuHead {
    /// Notes a call that will free `bytes`, as far as is known.
    ///
    /// # Safety
    /// The head is valid and nobody else's.
    pub(super) unsafe fn set_call(head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>), bytes: usize) {
        // SAFETY: the caller's obligation.
        unsafe {
            head.as_ref().what.set(func as usize);
            head.as_ref().layout.set(bytes);
        }
    }

    /// The bytes noted by [`RcuHead::set_call`].
    ///
    /// # Safety
    /// The head is valid, a call was noted in it, and nobody writes to it.
    pub(super) unsafe fn call_bytes(head: NonNull<RcuHead>) -> usize {
        // SAFETY: the caller's obligation.
        unsafe { head.as_ref().layout.get() }
    }

    /// The function noted by [`RcuHead::set_call`].
    ///
    /// # Safety
    /// As for [`RcuHead::call_bytes`].
    pub(super) unsafe fn call_func(head: NonNull<RcuHead>) -> unsafe fn(NonNull<RcuHead>) {
        // SAFETY: the caller's obligation: `what` was made from such a function.
        unsafe { core::mem::transmute::<usize, unsafe fn(NonNull<RcuHead>)>(head.as_ref().what.get()) }
    }
}

/// Says nothing of what is noted: that may be written meanwhile, by whoever queues the head.
impl fmt::Debug for RcuHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RcuHead").finish_non_exhaustive()
    }
}

impl Default for RcuHead {
    fn default() -> Self {
        Self::new()
    }
}

const ALIGN_SHIFT: u32 = 56;
const SIZE_MASK: usize = (1 << ALIGN_SHIFT) - 1;
/// In `what`: the head is a note of ours. Blocks are aligned to 8 at least.
const NOTED: usize = 1;

fn packed(layout: Layout) -> usize {
    layout.size() | (layout.align().trailing_zeros() as usize + 1) << ALIGN_SHIFT
}

/// Objects that wait, linked through their heads.
pub(super) struct Chain {
    list: List<RcuHead>,
    /// Relaxed, as a hint that the chain is long, but where an object is done.
    pub(super) len: AtomicUsize,
    /// Bytes of the blocks among them. Relaxed: a statistic.
    pub(super) bytes: AtomicUsize,
}

/// One object taken from the chain.
pub(super) enum Queued {
    /// A block to free, and the note that stood for it, if its link was not in itself.
    Free(NonNull<u8>, Layout, Option<NonNull<RcuHead>>),
    /// A call to make, and the bytes that it frees as far as is known.
    Call(NonNull<RcuHead>, unsafe fn(NonNull<RcuHead>), usize),
}

impl Chain {
    pub(super) const fn new() -> Chain {
        Chain { list: List::new(), len: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// # Safety
    /// The head is valid and nobody else's until it is taken; `block` is one of the heap with this layout.
    pub(super) unsafe fn push_free(&self, head: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout) {
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        crate::observe::deferred(block.as_ptr());
        // SAFETY: the caller's obligation.
        unsafe {
            head.as_ref().what.set(block.as_ptr() as usize);
            head.as_ref().layout.set(packed(layout));
            self.push(head);
        }
    }

    /// As [`Chain::push_free`], with a head that was allocated for the purpose and is to be freed along.
    ///
    /// # Safety
    /// As for [`Chain::push_free`].
    pub(super) unsafe fn push_noted(&self, note: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout) {
        debug_assert!(block.as_ptr() as usize & NOTED == 0);
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
        crate::observe::deferred(block.as_ptr());
        // SAFETY: the caller's obligation.
        unsafe {
            note.as_ref().what.set(block.as_ptr() as usize | NOTED);
            note.as_ref().layout.set(packed(layout));
            self.push(note);
        }
    }

    /// The call that was noted in the head.
    ///
    /// # Safety
    /// As for [`RcuHead::call_bytes`]; the head is nobody else's until its function is called with it.
    pub(super) unsafe fn push_call(&self, head: NonNull<RcuHead>) {
        // SAFETY: the caller's obligation.
        unsafe {
            self.bytes.fetch_add(RcuHead::call_bytes(head), Ordering::Relaxed);
            self.push(head);
        }
    }

    /// # Safety
    /// The head is valid and nobody else's.
    unsafe fn push(&self, head: NonNull<RcuHead>) {
        self.len.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligation.
        self.list.push(head.as_ptr(), |next| unsafe { head.as_ref().next.set(next) });
    }

    /// Takes the whole chain.
    pub(super) fn take(&self) -> *mut RcuHead {
        self.list.take()
    }

    /// Counts anew, with a chain that was taken: for the child of a `fork`, where whoever was in the middle of a
    /// push is gone.
    ///
    /// # Safety
    /// Nobody takes the chain meanwhile, and `taken` is one that nobody else splits.
    pub(super) unsafe fn recount(&self, taken: *mut RcuHead) {
        let (mut len, mut bytes) = (0, 0);
        for mut head in [self.list.first(), taken] {
            // SAFETY: pushed as valid heads, and nobody takes them.
            while let Some(this) = unsafe { head.as_ref() } {
                len += 1;
                bytes += this.layout.get() & SIZE_MASK;
                head = this.next.get();
            }
        }
        self.len.store(len, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The first object of a chain that was taken, which then is the rest. It counts as waiting until
    /// [`Chain::note_done`].
    pub(super) fn split_first(chain: &mut *mut RcuHead) -> Option<Queued> {
        let head = NonNull::new(*chain)?;
        // SAFETY: pushed as a valid head, and ours since the chain was taken. Read before the object goes.
        unsafe {
            *chain = head.as_ref().next.get();
            let (what, layout) = (head.as_ref().what.get(), head.as_ref().layout.get());
            let size = layout & SIZE_MASK;
            if layout >> ALIGN_SHIFT == 0 {
                return Some(Queued::Call(head, RcuHead::call_func(head), size));
            }
            let align = 1 << ((layout >> ALIGN_SHIFT) - 1);
            let layout = Layout::from_size_align_unchecked(size, align);
            let note = (what & NOTED != 0).then_some(head);
            Some(Queued::Free(NonNull::new_unchecked((what & !NOTED) as *mut u8), layout, note))
        }
    }

    /// An object with so many bytes has been freed or called.
    pub(super) fn note_done(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        // Release, paired with the acquire in `Core::pending_pointers`: who finds that nothing waits finds it done.
        self.len.fetch_sub(1, Ordering::Release);
    }
}
