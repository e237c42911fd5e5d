//! `GlobalAlloc`: which layer serves a request. Routing, no logic.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::large::Contents;
use crate::size_class::{SLAB_MAX, block_size, class_of, is_run_class};
use crate::sys::tools;
use crate::{PcpAlloc, checked, control, heap, large, nolock, observe, percpu};

/// A block of a class, after [`percpu::pop`] had none.
#[cold]
#[inline(never)]
pub(crate) fn alloc_class_slow(heap: &PcpAlloc, class: usize) -> *mut u8 {
    heap::ensure_up(&heap.config);
    nolock::settle();
    control::start_worker_if_due();
    let (mut block, mut due) = percpu::alloc_slow(class);
    if block.is_null() && checked::release_waiting() {
        (block, due) = percpu::alloc_slow(class);
    }
    let given = if due { observe::sampled(block, block_size(class)) } else { block };
    if given != block {
        // SAFETY: the block came just now, and the program gets another.
        unsafe { percpu::free_slow(class, block) };
    } else if let Some(block) = NonNull::new(block) {
        checked::hand_out(class, block);
        tools::allocated(block.as_ptr(), block_size(class), false);
    }
    given
}

/// Frees a block of a class, after [`percpu::push`] did not take it.
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[cold]
#[inline(never)]
pub(crate) unsafe fn free_class_slow(class: usize, block: *mut u8) {
    // While somebody observes the heap every free comes here, and most of them are nobody's business.
    // SAFETY: the caller's obligation.
    unsafe {
        let diverted = observe::is_on() && !observe::is_noted(block) && !checked::is_on() && !tools::are_present();
        if !(diverted && percpu::observed::push_diverted(class, block)) {
            free_class_slower(class, block);
        }
    }
}

/// # Safety
/// As for [`free_class_slow`].
#[cold]
#[inline(never)]
unsafe fn free_class_slower(class: usize, block: *mut u8) {
    nolock::settle();
    if observe::freed(block) {
        return;
    }
    tools::freed(block, block_size(class));
    // SAFETY: the caller's obligation.
    unsafe { if checked::is_on() { checked::free(class, block) } else { percpu::free_slow(class, block) } }
}

#[cold]
#[inline(never)]
fn alloc_large(heap: &PcpAlloc, layout: Layout, contents: Contents) -> *mut u8 {
    heap::ensure_up(&heap.config);
    nolock::settle();
    control::start_worker_if_due();
    let block = large::alloc(layout.size(), layout.align(), contents);
    let size = large::usable_size(layout.size(), layout.align());
    let given = if percpu::observed::is_due(size) { observe::sampled(block, size) } else { block };
    if given != block
        && let Some(block) = NonNull::new(block)
    {
        // SAFETY: the block came just now, and the program gets another.
        unsafe { large::free(block, layout.size(), layout.align()) };
    } else {
        tools::allocated(given, size, contents == Contents::Zeroed);
    }
    given
}

/// # Safety
/// As for [`GlobalAlloc::dealloc`].
#[cold]
#[inline(never)]
unsafe fn free_large(block: *mut u8, layout: Layout) {
    nolock::settle();
    if let Some(block) = NonNull::new(block)
        && !observe::freed(block.as_ptr())
    {
        tools::freed(block.as_ptr(), large::usable_size(layout.size(), layout.align()));
        // SAFETY: the caller's obligation.
        unsafe { large::free(block, layout.size(), layout.align()) }
    }
}

/// A block of a class, from this CPU's stack or from behind it.
#[inline(always)]
fn alloc_class(heap: &PcpAlloc, class: usize) -> *mut u8 {
    let block = percpu::pop(class);
    if block.is_null() { alloc_class_slow(heap, class) } else { block }
}

// SAFETY: blocks are disjoint, as large and as aligned as asked, and stay the caller's until it frees them;
// nothing here unwinds. `tests/` shows each by trial.
unsafe impl GlobalAlloc for PcpAlloc {
    #[cfg_attr(feature = "outline", inline(never))]
    #[cfg_attr(not(feature = "outline"), inline(always))]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class_of(layout.size(), layout.align()) {
            Some(class) => alloc_class(self, class),
            None => alloc_large(self, layout, Contents::Any),
        }
    }

    #[cfg_attr(feature = "outline", inline(never))]
    #[cfg_attr(not(feature = "outline"), inline(always))]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligation: the block was allocated with this layout, so it is of this class.
        unsafe {
            match class_of(layout.size(), layout.align()) {
                Some(class) => {
                    if !percpu::push(class, block) {
                        free_class_slow(class, block);
                    }
                }
                None => free_large(block, layout),
            }
        }
    }

    #[cfg_attr(feature = "outline", inline(never))]
    #[cfg_attr(not(feature = "outline"), inline)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match class_of(layout.size(), layout.align()) {
            Some(class) if !is_run_class(class) => {
                let block = alloc_class(self, class);
                if !block.is_null() {
                    // SAFETY: the block is at least this large.
                    unsafe { block.write_bytes(0, layout.size()) };
                }
                block
            }
            Some(class) => alloc_zeroed_run(self, class, layout.size()),
            None => alloc_large(self, layout, Contents::Zeroed),
        }
    }

    #[cfg_attr(feature = "outline", inline(never))]
    #[cfg_attr(not(feature = "outline"), inline)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let same_class = match (class_of(layout.size(), layout.align()), class_of(new_size, layout.align())) {
            (Some(old), Some(new)) => old == new,
            _ => false,
        };
        if same_class {
            return block;
        }
        // SAFETY: the caller's obligation.
        unsafe { realloc_slow(self, block, layout, new_size) }
    }
}

/// A zeroed block of a class whose blocks are runs: one from the stack is zeroed by hand, being warm; a fresh
/// one may need nothing.
#[cold]
#[inline(never)]
fn alloc_zeroed_run(heap: &PcpAlloc, class: usize, size: usize) -> *mut u8 {
    heap::ensure_up(&heap.config);
    let block = percpu::pop(class);
    if !block.is_null() {
        // SAFETY: the block is at least this large.
        unsafe { block.write_bytes(0, size) };
        return block;
    }
    nolock::settle();
    control::start_worker_if_due();
    let (block, due) = match percpu::observed::pop_due(class) {
        Some(block) => (block, true),
        None => (large::alloc_zeroed_class(class), percpu::observed::is_run_due(class)),
    };
    let Some(found) = NonNull::new(block) else { return block };
    // Before it is zeroed: it is to be as it was left.
    checked::hand_out(class, found);
    if due {
        // SAFETY: as above.
        unsafe { block.write_bytes(0, size) };
    }
    let given = if due { observe::sampled(block, block_size(class)) } else { block };
    if given != block {
        checked::take_back(class, found);
        // SAFETY: the block came just now, and the program gets another, which the client has zeroed.
        unsafe { percpu::free_slow(class, block) };
    } else {
        tools::allocated(block, block_size(class), true);
    }
    given
}

/// A block that another is to be copied to.
///
/// # Safety
/// The layout's size is not zero.
#[inline]
pub(crate) unsafe fn alloc_copied(heap: &PcpAlloc, layout: Layout) -> *mut u8 {
    match class_of(layout.size(), layout.align()) {
        Some(class) => alloc_class(heap, class),
        None => alloc_large(heap, layout, Contents::Copied),
    }
}

/// Where the class changes: in place or by moving page tables if that can be done, else by a copy.
///
/// # Safety
/// As for [`GlobalAlloc::realloc`].
#[inline(never)]
unsafe fn realloc_slow(heap: &PcpAlloc, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    let (old_size, align) = (layout.size(), layout.align());
    // SAFETY: the caller's obligation: a block of this layout, not null, and a new size that with this
    // alignment makes a layout.
    unsafe {
        let new_layout = Layout::from_size_align_unchecked(new_size, align);
        if let Some(new) = resize_large(NonNull::new_unchecked(block), layout, new_layout, false) {
            return new.as_ptr();
        }
        let new = alloc_copied(heap, new_layout);
        if new.is_null() {
            // What was cached has gone back meanwhile, so there may be room for what the block lacks, if not for a second one.
            let resized = resize_large(NonNull::new_unchecked(block), layout, new_layout, false);
            return resized.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        }
        core::ptr::copy_nonoverlapping(block, new, old_size.min(new_size));
        heap.dealloc(block, layout);
        new
    }
}

/// Resizes a block that is no slab's where it lies, or by moving page tables, and tells of it; `None` if that cannot be done,
/// and the block is as it was. What a mapping has grown by reads as zero if `zeroed`; of runs the caller sees to that.
///
/// # Safety
/// `block` is a block of layout `old`; `new` has the same alignment; after success only the new address is used.
pub(crate) unsafe fn resize_large(block: NonNull<u8>, old: Layout, new: Layout, zeroed: bool) -> Option<NonNull<u8>> {
    if old.size().min(new.size()) <= SLAB_MAX || observe::is_elsewhere(block) {
        return None;
    }
    // SAFETY: the caller's obligation.
    let resized = unsafe { large::resize(block, old.align(), old.size(), new.size(), zeroed) }?;
    told_resized((block, usable_size(old)), (resized, usable_size(new)), zeroed);
    Some(resized)
}

/// Tells clients and memory tools that a block has been resized where it lay, or by moving page tables: its place and its
/// usable bytes, before and now. What it has grown by reads as zero if `zeroed`, or is about to.
pub(crate) fn told_resized(old: (NonNull<u8>, usize), new: (NonNull<u8>, usize), zeroed: bool) {
    observe::resized(old.0, new.0, new.1);
    tools::resized(old.0.as_ptr(), old.1, new.0.as_ptr(), new.1, zeroed);
}

/// Whether boxes may be in longer blocks than their layout says.
static LONGER: AtomicBool = AtomicBool::new(false);

/// From now on boxes may be in longer blocks than their layout says: the program's allocator adds something to each.
pub(crate) fn note_longer_blocks() {
    // Relaxed, here and below: whoever has such a box got it after this.
    if !LONGER.load(Ordering::Relaxed) {
        LONGER.store(true, Ordering::Relaxed);
    }
}

/// Whether a box in this heap is in the block that its layout says.
#[inline]
pub(crate) fn boxes_are_exact() -> bool {
    !LONGER.load(Ordering::Relaxed)
}

/// Bytes usable in a block that was allocated with `layout`.
pub(crate) fn usable_size(layout: Layout) -> usize {
    match class_of(layout.size(), layout.align()) {
        Some(class) => block_size(class),
        None => large::usable_size(layout.size(), layout.align()),
    }
}

/// A block by the ordinary path, for layers of the heap that sit above it.
///
/// # Safety
/// The layout's size is not zero.
pub(crate) unsafe fn alloc_block(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's obligation.
    unsafe { PcpAlloc::new().alloc(layout) }
}

/// Frees a block by the ordinary path.
///
/// # Safety
/// As for [`GlobalAlloc::dealloc`].
pub(crate) unsafe fn free_block(block: NonNull<u8>, layout: Layout) {
    // SAFETY: the caller's obligation.
    unsafe { PcpAlloc::new().dealloc(block.as_ptr(), layout) }
}
