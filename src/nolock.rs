//! Allocation that takes what is there or nothing, and a free that always succeeds.
//!
//! Neither takes a lock, makes a system call, waits or allocates, so both may be used in a signal handler,
//! inside another allocator call that the handler interrupted, or under any lock. They are the kernel's
//! `alloc_pages_nolock` made stricter: a miss is `None` at once, whatever the slab layer might have.
//!
//! A freed block goes back on this CPU's stack; if that is full it is linked through its own first word into a
//! list ([`List`]) that the next visit to any slow path, drain or trim takes whole.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::list::List;
use crate::size_class::{CLASSES, block_size, class_of};
use crate::slab::{free_bulk, tag_at, tag_of};
use crate::{checked, large, observe, percpu, sys};

/// In a list's words: where the number of the class starts. Addresses of user space end before.
const CLASS_SHIFT: u32 = 48;
const ADDRESS_MASK: usize = (1 << CLASS_SHIFT) - 1;

/// Freed blocks of the classes, each address with its class; each block's first word holds the next.
static BLOCKS: List<usize> = List::new();
/// Freed blocks that no class serves.
static LARGE: List<Large> = List::new();
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
    let class = class_of(layout.size(), layout.align())?;
    let block = NonNull::new(percpu::pop_nolock(class))?;
    checked::hand_out(class, block);
    sys::tools::allocated(block.as_ptr(), block_size(class), false);
    Some(block)
}

/// # Safety
/// As for `GlobalAlloc::dealloc`.
pub(crate) unsafe fn free(block: NonNull<u8>, layout: Layout) {
    if observe::freed_nolock(block.as_ptr()) {
        return;
    }
    let Some(class) = class_of(layout.size(), layout.align()) else {
        // SAFETY: the caller's obligation; a block that no class serves is larger than the note, or fills a
        // page for its alignment.
        return unsafe { defer_large(block, layout) };
    };
    checked::take_back(class, block);
    sys::tools::freed(block.as_ptr(), block_size(class));
    // SAFETY: the caller's obligation.
    if unsafe { percpu::push_nolock(class, block.as_ptr()) } {
        return;
    }
    checked::disregard(block);
    sys::tools::open(block.as_ptr(), size_of::<usize>());
    DEFERRED.fetch_add(1, Ordering::Relaxed);
    let word = block.cast::<usize>().as_ptr().map_addr(|address| address | class << CLASS_SHIFT);
    // SAFETY: the block is ours, at least 8 bytes and aligned to 8: every class is a multiple of 8.
    BLOCKS.push(word, |next| unsafe { block.cast::<*mut usize>().write(next) });
}

/// # Safety
/// As for [`free`], and the block has room for the note.
unsafe fn defer_large(block: NonNull<u8>, layout: Layout) {
    DEFERRED.fetch_add(1, Ordering::Relaxed);
    let note = block.cast::<Large>();
    // SAFETY: the caller's obligation.
    LARGE.push(note.as_ptr(), |next| unsafe { note.write(Large { next, size: layout.size(), align: layout.align() }) });
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
    let mut word = BLOCKS.take();
    while !word.is_null() {
        let (block, class) = (word.map_addr(|word| word & ADDRESS_MASK), word.addr() >> CLASS_SHIFT);
        let address = block as usize;
        // The list runs through free memory: believe it only as far as the pages bear it out.
        let tag = NonNull::new(block.cast()).and_then(tag_at).map(|(_, _, tag)| tag);
        if class >= CLASSES || tag != Some(tag_of(class)) {
            sys::die("memory was written to after it was freed", address);
        }
        // SAFETY: a block of the heap, by its page's tag; only this thread has it since the swap.
        word = unsafe { *block.cast::<*mut usize>() };
        sys::tools::close(block.cast(), size_of::<usize>());
        free_bulk(class, &mut [address]);
        DEFERRED.fetch_sub(1, Ordering::Relaxed);
    }
    let mut note = LARGE.take();
    while let Some(block) = NonNull::new(note) {
        // SAFETY: `defer_large` wrote the note, and the block is ours since the swap.
        unsafe {
            let Large { next, size, align } = block.read();
            sys::tools::freed(block.cast().as_ptr(), large::usable_size(size, align));
            large::free(block.cast(), size, align);
            note = next;
        }
        DEFERRED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The heap is up.
pub(crate) fn charge(layout: Layout, per_cpu: usize) -> Result<(), percpu::ChargeError> {
    match class_of(layout.size(), layout.align()) {
        Some(class) => percpu::charge(class, per_cpu),
        None => Err(percpu::ChargeError::OutOfMemory),
    }
}
