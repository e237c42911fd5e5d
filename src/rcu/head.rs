//! Objects that carry their own link: the way to defer a free, or a call, that needs no memory at all.

use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Room in an object for what a deferred free or call has to note: three words.
///
/// Readers may go on reading the object meanwhile, but nobody else may touch its head.
#[doc(alias = "rcu_head")]
#[derive(Debug)]
pub struct RcuHead {
    next: Cell<*mut RcuHead>,
    /// The block, or the function.
    what: Cell<usize>,
    /// Size and log2 of the alignment; 0 says that `what` is a function.
    layout: Cell<usize>,
}

// SAFETY: the cells are written by the one thread that queues the head and read by the one that takes the chain;
// the chain's exchange orders the two.
unsafe impl Send for RcuHead {}
// SAFETY: as above; no safe method touches the cells.
unsafe impl Sync for RcuHead {}

impl RcuHead {
    /// A head that waits for nothing.
    pub const fn new() -> Self {
        RcuHead { next: Cell::new(null_mut()), what: Cell::new(0), layout: Cell::new(0) }
    }
}

impl Default for RcuHead {
    fn default() -> Self {
        Self::new()
    }
}

const ALIGN_SHIFT: u32 = 56;
/// In `what`: the head is a note of ours. Blocks are aligned to 8 at least.
const NOTED: usize = 1;

fn packed(layout: Layout) -> usize {
    layout.size() | (layout.align().trailing_zeros() as usize + 1) << ALIGN_SHIFT
}

/// Objects that wait, linked through their heads. It only grows by a compare-and-swap and only shrinks by a
/// swap.
pub(super) struct Chain {
    first: AtomicPtr<RcuHead>,
    /// Relaxed: a statistic.
    pub(super) len: AtomicUsize,
    /// Bytes of the blocks among them. Relaxed: a statistic.
    pub(super) bytes: AtomicUsize,
}

/// One object taken from the chain.
pub(super) enum Queued {
    /// A block to free, and the note that stood for it, if its link was not in itself.
    Free(NonNull<u8>, Layout, Option<NonNull<RcuHead>>),
    Call(NonNull<RcuHead>, unsafe fn(NonNull<RcuHead>)),
}

impl Chain {
    pub(super) const fn new() -> Chain {
        Chain { first: AtomicPtr::new(null_mut()), len: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// # Safety
    /// The head is valid and nobody else's until it is taken; `block` is one of the heap with this layout.
    pub(super) unsafe fn push_free(&self, head: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout) {
        self.bytes.fetch_add(layout.size(), Ordering::Relaxed);
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
        // SAFETY: the caller's obligation.
        unsafe {
            note.as_ref().what.set(block.as_ptr() as usize | NOTED);
            note.as_ref().layout.set(packed(layout));
            self.push(note);
        }
    }

    /// # Safety
    /// The head is valid and nobody else's until `func` is called with it.
    pub(super) unsafe fn push_call(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
        // SAFETY: the caller's obligation.
        unsafe {
            head.as_ref().what.set(func as usize);
            head.as_ref().layout.set(0);
            self.push(head);
        }
    }

    /// # Safety
    /// The head is valid and nobody else's.
    unsafe fn push(&self, head: NonNull<RcuHead>) {
        self.len.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller's obligation.
            unsafe { head.as_ref().next.set(first) };
            // Release, paired with the acquire in `take`: the head's words are seen.
            match self.first.compare_exchange_weak(first, head.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Takes the whole chain.
    pub(super) fn take(&self) -> *mut RcuHead {
        if self.is_empty() {
            return null_mut();
        }
        // Acquire, paired with the release in `push`.
        self.first.swap(null_mut(), Ordering::Acquire)
    }

    /// The first object of a chain that was taken, which then is the rest.
    pub(super) fn split_first(&self, chain: &mut *mut RcuHead) -> Option<Queued> {
        let head = NonNull::new(*chain)?;
        self.len.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: pushed as a valid head, and ours since the chain was taken. Read before the object goes.
        unsafe {
            *chain = head.as_ref().next.get();
            let (what, layout) = (head.as_ref().what.get(), head.as_ref().layout.get());
            if layout == 0 {
                // SAFETY: `push_call` stored the function.
                return Some(Queued::Call(head, core::mem::transmute::<usize, unsafe fn(NonNull<RcuHead>)>(what)));
            }
            let (size, align) = (layout & ((1 << ALIGN_SHIFT) - 1), 1 << ((layout >> ALIGN_SHIFT) - 1));
            self.bytes.fetch_sub(size, Ordering::Relaxed);
            let layout = Layout::from_size_align_unchecked(size, align);
            let note = (what & NOTED != 0).then_some(head);
            Some(Queued::Free(NonNull::new_unchecked((what & !NOTED) as *mut u8), layout, note))
        }
    }
}
