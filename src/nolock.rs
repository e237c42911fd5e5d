//! Allocation that takes what is there or nothing, and a free that always succeeds.
//!
//! Neither takes a lock, makes a system call, waits or allocates, so both may be used in a signal handler,
//! inside another allocator call that the handler interrupted, or under any lock. They are the kernel's
//! `alloc_pages_nolock` made stricter: a miss is `None` at once, whatever the slab layer might have.
//!
//! A freed block goes back on this CPU's stack; if that is full it is linked through its own first word into a
//! list that the next visit to any slow path, drain or trim takes whole. The list only grows by a
//! compare-and-swap and only shrinks by a swap, so it needs no count against a number that went and came back.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::size_class::{CLASSES, class_of};
use crate::slab::{free_bulk, tag_at, tag_of};
use crate::{Config, heap, large, percpu, sys};

/// In a list's words: where the number of the class starts. Addresses of user space end before.
const CLASS_SHIFT: u32 = 48;
const ADDRESS_MASK: usize = (1 << CLASS_SHIFT) - 1;

/// Freed blocks of the classes: the address on top and its class; each block's first word holds the rest.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
/// Freed blocks that no class serves.
static LARGE: AtomicPtr<Large> = AtomicPtr::new(null_mut());
/// Blocks on both lists. Relaxed throughout: a statistic.
static DEFERRED: AtomicUsize = AtomicUsize::new(0);

/// What is noted in a large block while it is on the list.
struct Large {
    next: *mut Large,
    size: usize,
    align: usize,
}

/// Blocks on the deferred lists.
pub(crate) fn deferred() -> usize {
    DEFERRED.load(Ordering::Relaxed)
}

pub(crate) fn alloc(layout: Layout) -> Option<NonNull<u8>> {
    NonNull::new(percpu::pop_nolock(class_of(layout.size(), layout.align())?))
}

/// # Safety
/// As for `GlobalAlloc::dealloc`.
pub(crate) unsafe fn free(block: NonNull<u8>, layout: Layout) {
    let Some(class) = class_of(layout.size(), layout.align()) else {
        // SAFETY: the caller's obligation; a block that no class serves is larger than the note, or fills a
        // page for its alignment.
        return unsafe { defer_large(block, layout) };
    };
    // SAFETY: the caller's obligation.
    if unsafe { percpu::push_nolock(class, block.as_ptr()) } {
        return;
    }
    DEFERRED.fetch_add(1, Ordering::Relaxed);
    // Relaxed: the value is stored in the block, not followed.
    let mut rest = BLOCKS.load(Ordering::Relaxed);
    loop {
        // SAFETY: the block is ours, at least 8 bytes and aligned to 8: every class is a multiple of 8.
        unsafe { block.cast::<usize>().write(rest) };
        let new = sys::addr(block) | class << CLASS_SHIFT;
        // Release, paired with the acquire in `settle`: the word in the block is seen.
        match BLOCKS.compare_exchange_weak(rest, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => rest = now,
        }
    }
}

/// # Safety
/// As for [`free`], and the block has room for the note.
unsafe fn defer_large(block: NonNull<u8>, layout: Layout) {
    DEFERRED.fetch_add(1, Ordering::Relaxed);
    let note = block.cast::<Large>();
    let mut next = LARGE.load(Ordering::Relaxed);
    loop {
        // SAFETY: the caller's obligation.
        unsafe { note.write(Large { next, size: layout.size(), align: layout.align() }) };
        // Release, paired with the acquire in `settle`.
        match LARGE.compare_exchange_weak(next, note.as_ptr(), Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => next = now,
        }
    }
}

/// Gives deferred blocks back, if there are any; every slow path starts with it.
#[inline]
pub(crate) fn settle() {
    // Relaxed: a hint.
    if DEFERRED.load(Ordering::Relaxed) != 0 {
        settle_all();
    }
}

#[cold]
fn settle_all() {
    // Acquire, paired with the releases above.
    let mut word = BLOCKS.swap(0, Ordering::Acquire);
    while word != 0 {
        let (address, class) = (word & ADDRESS_MASK, word >> CLASS_SHIFT);
        let block = address as *mut usize;
        // The list runs through free memory: believe it only as far as the pages bear it out.
        let tag = NonNull::new(block.cast()).and_then(tag_at).map(|(_, _, tag)| tag);
        if class >= CLASSES || tag != Some(tag_of(class)) {
            sys::die("memory was written to after it was freed", address);
        }
        // SAFETY: a block of the heap, by its page's tag; only this thread has it since the swap.
        word = unsafe { *block };
        free_bulk(class, &[address]);
        DEFERRED.fetch_sub(1, Ordering::Relaxed);
    }
    let mut note = LARGE.swap(null_mut(), Ordering::Acquire);
    while let Some(block) = NonNull::new(note) {
        // SAFETY: `defer_large` wrote the note, and the block is ours since the swap.
        unsafe {
            let Large { next, size, align } = block.read();
            large::free(block.cast(), size, align);
            note = next;
        }
        DEFERRED.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn charge(layout: Layout, per_cpu: usize) -> Result<(), percpu::ChargeError> {
    heap::ensure_up(&Config::new());
    match class_of(layout.size(), layout.align()) {
        Some(class) => percpu::charge(class, per_cpu),
        None => Err(percpu::ChargeError::OutOfMemory),
    }
}
