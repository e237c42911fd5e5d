//! `Allocator`, for collections that take their memory from a handle: allocator-api2's trait on stable compilers, the
//! standard library's on nightly ones. One implementation, of which a macro makes both.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use crate::PcpAlloc;
use crate::alloc::{resize_large, usable_size};
use crate::large;
use crate::rcu::Heap;
use crate::size_class::class_of;
use crate::tag::Tag;

/// What leads to the heap, and may want to know what comes of it.
trait Handle {
    fn heap(&self) -> &PcpAlloc;

    /// A block of so many bytes has been allocated.
    #[inline(always)]
    fn allocated(&self, _bytes: usize) {}

    /// One has been freed.
    #[inline(always)]
    fn freed(&self, _bytes: usize) {}

    /// One of `old` bytes has `new` now.
    #[inline(always)]
    fn resized(&self, _old: usize, _new: usize) {}
}

impl Handle for PcpAlloc {
    #[inline(always)]
    fn heap(&self) -> &PcpAlloc {
        self
    }
}

/// The heap with whatever settings it is up.
static HEAP: PcpAlloc = PcpAlloc::new();

impl Handle for Heap {
    #[inline(always)]
    fn heap(&self) -> &PcpAlloc {
        &HEAP
    }
}

impl Handle for Tag {
    #[inline(always)]
    fn heap(&self) -> &PcpAlloc {
        &HEAP
    }

    #[inline(always)]
    fn allocated(&self, bytes: usize) {
        Tag::allocated(self, bytes);
    }

    #[inline(always)]
    fn freed(&self, bytes: usize) {
        Tag::freed(self, bytes);
    }

    #[inline(always)]
    fn resized(&self, old: usize, new: usize) {
        Tag::resized(self, old, new);
    }
}

/// A block and its length, which is all that is usable: nothing of a block is out of bounds to its owner here.
type Block = NonNull<[u8]>;

/// A block without memory, for a size of 0.
fn empty(layout: Layout) -> Block {
    // SAFETY: an alignment is not zero.
    let dangling = unsafe { NonNull::new_unchecked(core::ptr::without_provenance_mut(layout.align())) };
    NonNull::slice_from_raw_parts(dangling, 0)
}

#[inline]
fn allocate(handle: &impl Handle, layout: Layout) -> Option<Block> {
    if layout.size() == 0 {
        return Some(empty(layout));
    }
    // SAFETY: the size is not zero.
    let block = NonNull::new(unsafe { handle.heap().alloc(layout) })?;
    let usable = usable_size(layout);
    handle.allocated(usable);
    Some(NonNull::slice_from_raw_parts(block, usable))
}

#[inline]
fn allocate_zeroed(handle: &impl Handle, layout: Layout) -> Option<Block> {
    if layout.size() == 0 {
        return Some(empty(layout));
    }
    // What is handed out is the whole block, so that is what is zeroed. The same kind of block has this size.
    let whole = with_size(layout, usable_size(layout))?;
    // SAFETY: the size is not zero.
    let block = NonNull::new(unsafe { handle.heap().alloc_zeroed(whole) })?;
    handle.allocated(whole.size());
    Some(NonNull::slice_from_raw_parts(block, whole.size()))
}

fn with_size(layout: Layout, size: usize) -> Option<Layout> {
    Layout::from_size_align(size, layout.align()).ok()
}

/// # Safety
/// `block` was handed out here for a layout that `layout` fits, and is not used any more.
#[inline]
unsafe fn deallocate(handle: &impl Handle, block: NonNull<u8>, layout: Layout) {
    if layout.size() != 0 {
        handle.freed(usable_size(layout));
        // SAFETY: the caller's obligation. Every size from the one asked for to the usable one names the same block.
        unsafe { handle.heap().dealloc(block.as_ptr(), layout) }
    }
}

/// Makes a block larger or smaller: in place, or by moving page tables, where that can be done.
///
/// # Safety
/// As for [`deallocate`], unless this fails: then the block is as it was.
#[inline]
unsafe fn resize(handle: &impl Handle, block: NonNull<u8>, old: Layout, new: Layout) -> Option<Block> {
    // SAFETY: the caller's obligation; a size of 0 has no block, neither before nor after.
    unsafe {
        if old.size() == 0 {
            return allocate(handle, new);
        }
        if new.size() == 0 {
            deallocate(handle, block, old);
            return Some(empty(new));
        }
        if stays(old, new) {
            return Some(NonNull::slice_from_raw_parts(block, usable_size(new)));
        }
        if old.align() == new.align() {
            let block = NonNull::new(handle.heap().realloc(block.as_ptr(), old, new.size()))?;
            let usable = usable_size(new);
            handle.resized(usable_size(old), usable);
            return Some(NonNull::slice_from_raw_parts(block, usable));
        }
        let moved = allocate(handle, new)?;
        copy(handle, block, old, moved, old.size().min(new.size()));
        Some(moved)
    }
}

/// Whether a block for one layout is one for the other: blocks of a class are as aligned as their class allows.
#[inline]
fn stays(old: Layout, new: Layout) -> bool {
    match (class_of(old.size(), old.align()), class_of(new.size(), new.align())) {
        (Some(old), Some(new)) => old == new,
        _ => false,
    }
}

/// # Safety
/// `from` is a block for `old`, which is given back; both have `len` bytes.
unsafe fn copy(handle: &impl Handle, from: NonNull<u8>, old: Layout, to: Block, len: usize) {
    // SAFETY: the caller's obligation; two blocks do not overlap.
    unsafe {
        core::ptr::copy_nonoverlapping(from.as_ptr(), to.cast().as_ptr(), len);
        deallocate(handle, from, old);
    }
}

/// As [`resize`], and what lies behind `old.size()` bytes reads as zero. `new` is not smaller.
///
/// # Safety
/// As for [`resize`].
unsafe fn grow_zeroed(handle: &impl Handle, block: NonNull<u8>, old: Layout, new: Layout) -> Option<Block> {
    // SAFETY: the caller's obligation; what is zeroed lies within the block.
    unsafe {
        if old.size() == 0 {
            return allocate_zeroed(handle, new);
        }
        let usable = usable_size(new);
        let resized = || {
            let block = if stays(old, new) {
                block
            } else if old.align() == new.align() {
                resize_large(block, old, new, true)?
            } else {
                return None;
            };
            // What a mapping has grown by reads as zero.
            let end = if large::is_mapping(old.size(), old.align()) { usable_size(old) } else { usable };
            block.add(old.size()).write_bytes(0, end - old.size());
            handle.resized(usable_size(old), usable);
            Some(NonNull::slice_from_raw_parts(block, usable))
        };
        if let Some(grown) = resized() {
            return Some(grown);
        }
        // Where there is no room for a second block there may be for what this one lacks: as in `alloc::realloc_slow`.
        let Some(moved) = allocate_zeroed(handle, new) else { return resized() };
        copy(handle, block, old, moved, old.size());
        Some(moved)
    }
}

/// Implements a trait for a handle.
macro_rules! implement {
    ($allocator:path, $error:path, $handle:ty) => {
        // SAFETY: blocks are disjoint, as large and as aligned as asked, and the heap, which outlives every handle on
        // it, leaves them where they are until they are given back. All handles are of one heap, so a block may be given
        // back to any.
        unsafe impl $allocator for $handle {
            #[inline]
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $error> {
                allocate(self, layout).ok_or($error)
            }

            #[inline]
            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, $error> {
                allocate_zeroed(self, layout).ok_or($error)
            }

            #[inline]
            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                // SAFETY: the caller's obligation.
                unsafe { deallocate(self, block, layout) }
            }

            #[inline]
            unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's obligation.
                unsafe { resize(self, block, old, new) }.ok_or($error)
            }

            #[inline]
            unsafe fn grow_zeroed(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's obligation.
                unsafe { grow_zeroed(self, block, old, new) }.ok_or($error)
            }

            #[inline]
            unsafe fn shrink(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, $error> {
                // SAFETY: the caller's obligation.
                unsafe { resize(self, block, old, new) }.ok_or($error)
            }
        }
    };
}

#[cfg(feature = "allocator-api2")]
mod stable {
    use super::*;
    use allocator_api2::alloc::{AllocError, Allocator};

    implement!(Allocator, AllocError, PcpAlloc);
    implement!(Allocator, AllocError, Heap);
    implement!(Allocator, AllocError, Tag);
}

#[cfg(feature = "nightly")]
mod nightly {
    use super::*;
    use core::alloc::{AllocError, Allocator};

    implement!(Allocator, AllocError, PcpAlloc);
    implement!(Allocator, AllocError, Heap);
    implement!(Allocator, AllocError, Tag);
}
