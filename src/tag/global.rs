//! The global allocator that knows which tag is in force.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::null_mut;

use super::counts::{Side, count, count_resized};
use super::{TAGS, UNKNOWN, UNTAGGED};
use crate::alloc::{note_longer_blocks, usable_size};
use crate::{Config, PcpAlloc, sys};

std::thread_local! {
    /// The tag in force. Constant and without a destructor, so that touching it allocates nothing.
    static CURRENT: Cell<u8> = const { Cell::new(UNKNOWN) };
}

/// Runs `f` with a tag in force on this thread.
pub(super) fn with<R>(tag: u8, f: impl FnOnce() -> R) -> R {
    struct Restore(u8);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    note_longer_blocks();
    let _restore = Restore(CURRENT.replace(tag));
    f()
}

/// A global allocator that counts what it hands out under the tag in force ([`Tag::with`](super::Tag::with)).
///
/// Each block is a byte longer, which is where its tag is kept, right behind what was asked for. That costs nothing where
/// the block's size class has a byte to spare; a request that fills its class, or a whole page, gets the next larger one:
/// 8 bytes for 64, 512 for 4096.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaggedAlloc {
    heap: PcpAlloc,
}

impl TaggedAlloc {
    /// On the heap as it is by default.
    pub const fn new() -> TaggedAlloc {
        TaggedAlloc { heap: PcpAlloc::new() }
    }

    /// On the heap with these settings.
    pub const fn with_config(config: Config) -> TaggedAlloc {
        TaggedAlloc { heap: PcpAlloc::with_config(config) }
    }

    /// The heap.
    pub const fn heap(&self) -> &PcpAlloc {
        &self.heap
    }
}

/// No tag is in force on this thread, which has not allocated before.
#[cold]
fn untagged() -> u8 {
    note_longer_blocks();
    CURRENT.set(UNTAGGED);
    UNTAGGED
}

/// The layout with room for the tag.
#[inline(always)]
fn with_room(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size() + 1, layout.align()).ok()
}

/// The tag behind a block of `size` bytes. Ends the process if there cannot be one.
///
/// # Safety
/// The block is a [`TaggedAlloc`]'s, and that long.
#[inline(always)]
unsafe fn tag_of(block: *mut u8, size: usize) -> u8 {
    // SAFETY: the caller's obligation; the byte behind the block is part of it.
    let tag = unsafe { block.add(size).read() };
    if tag as usize >= TAGS {
        sys::die(
            "a block was written to past its end, or freed by an allocator that does not know tags",
            block as usize,
        );
    }
    tag
}

impl TaggedAlloc {
    #[inline(always)]
    unsafe fn tagged(&self, layout: Layout, alloc: impl FnOnce(Layout) -> *mut u8) -> *mut u8 {
        let Some(whole) = with_room(layout) else { return null_mut() };
        let block = alloc(whole);
        if !block.is_null() {
            let tag = match CURRENT.get() {
                UNKNOWN => untagged(),
                tag => tag,
            };
            // SAFETY: the block has a byte more than was asked for.
            unsafe { block.add(layout.size()).write(tag) };
            count(tag, Side::Allocated, usable_size(whole), 1);
        }
        block
    }
}

// SAFETY: the heap's own blocks, a byte longer than the caller knows.
unsafe impl GlobalAlloc for TaggedAlloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligation; the size is not zero.
        unsafe { self.tagged(layout, |whole| self.heap.alloc(whole)) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { self.tagged(layout, |whole| self.heap.alloc_zeroed(whole)) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligation. The block was allocated with this longer layout, which therefore is one.
        unsafe {
            let whole = Layout::from_size_align_unchecked(layout.size() + 1, layout.align());
            count(tag_of(block, layout.size()), Side::Freed, usable_size(whole), 1);
            self.heap.dealloc(block, whole);
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(new_size + 1, layout.align()) else { return null_mut() };
        // SAFETY: as in `dealloc`; the new block has a byte more than was asked for.
        unsafe {
            let old = Layout::from_size_align_unchecked(layout.size() + 1, layout.align());
            let tag = tag_of(block, layout.size());
            let resized = self.heap.realloc(block, old, new.size());
            if !resized.is_null() {
                resized.add(new_size).write(tag);
                count_resized(tag, usable_size(old), usable_size(new));
            }
            resized
        }
    }
}
