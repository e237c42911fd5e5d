//! The C interface: `malloc` and its family, served by the heap of the process.
//!
//! ```text
//! malloc:  class of the size, pop                        // the same section as Rust's
//! free:    tag of the address's page -> class, push
//! ```
//!
//! A block is freed without its size. Every page of a zone has a tag, a byte in a table at the zone's start, which
//! says the class of the blocks there: whether there is a zone is a bit, the zone a mask and the tag a shift away.
//! What has no class is a run, whose descriptor has its length, or a mapping, whose header says so.
//!
//! - Behaviour follows C23, POSIX and where they leave a choice glibc: `malloc(0)` is a block, `realloc(p, 0)` frees
//!   and returns null, `memalign` rounds an alignment up to a power of two, more than `PTRDIFF_MAX` bytes are
//!   `ENOMEM`, `free` keeps `errno`. Blocks for more than 8 bytes are aligned to 16, smaller ones to 8.
//! - A pointer that is not to a block of the heap is told from one that is. In memory of the heap, or nowhere, it is
//!   a mistake that ends the process. Anything else may be a block of another heap: the first such pointer is
//!   reported, and all are left alone.
//! - `mallopt` and `malloc_info` stay the C library's, and are about a heap that nobody uses.
//! - C++'s operators are not exported: those of the C++ library call `malloc` and `free`, run the new-handler and
//!   throw `std::bad_alloc`, which Rust cannot. Nor would it be safe to: a program that replaces `operator new` and
//!   the plain `operator delete` counts on the sized one to call the latter.
//! - What the exported functions do not do themselves has the ABI of C, too: nothing unwinds out of it, so there are
//!   neither frames nor landing pads in the short functions, which end in a jump.
//! - Nothing here allocates, and nothing below calls what does, with two exceptions: `dlsym`, while the heap is
//!   brought up (`heap.rs`), and `pthread_create` for the worker, which only the allocating side calls
//!   (`control/worker.rs`).

mod exports;
mod report;

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, copy_nonoverlapping, null_mut};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::large::{Found, find, free_found, resize_found};
use crate::size_class::{SLAB_MAX, class_of_c};
use crate::sys::{self, ENOMEM};
use crate::zone::Zone;
use crate::{PcpAlloc, alloc, nolock, observe, percpu, slab};

/// C's handle on the heap.
static HEAP: PcpAlloc = PcpAlloc::new();

/// What is aligned for any type of C.
const ALIGN: usize = 16;

/// The layout of a request of C; `None` if it is beyond `PTRDIFF_MAX`.
fn layout_of(size: usize, align: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), align).ok()
}

/// The answer when there is no memory.
#[cold]
fn refused() -> *mut u8 {
    sys::set_errno(ENOMEM);
    null_mut()
}

#[inline(always)]
fn allocate(size: usize) -> *mut u8 {
    match class_of_c(size) {
        Some(class) => {
            let block = percpu::pop(class);
            if block.is_null() { allocate_slow(class) } else { block }
        }
        None => allocate_aligned(size, ALIGN, false),
    }
}

/// A block that another is to be copied to.
fn allocate_copied(size: usize) -> *mut u8 {
    match (class_of_c(size), layout_of(size, ALIGN)) {
        (None, Some(layout)) => {
            // SAFETY: the layout's size is not zero.
            let block = unsafe { alloc::alloc_copied(&HEAP, layout) };
            if block.is_null() { refused() } else { block }
        }
        _ => allocate(size),
    }
}

#[cold]
#[inline(never)]
extern "C" fn allocate_slow(class: usize) -> *mut u8 {
    let block = alloc::alloc_class_slow(&HEAP, class);
    if block.is_null() { refused() } else { block }
}

/// A block aligned to a power of two, with contents that are zero if `zeroed`.
#[inline(never)]
extern "C" fn allocate_aligned(size: usize, align: usize, zeroed: bool) -> *mut u8 {
    let Some(layout) = layout_of(size, align) else { return refused() };
    // SAFETY: the layout's size is not zero.
    let block = unsafe { if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } };
    if block.is_null() { refused() } else { block }
}

/// # Safety
/// As for `free`: `block` is null, or a block that is not used any more.
#[inline(always)]
unsafe fn release(block: *mut u8) {
    match slab::class_of_tag(Zone::tag_of_page_at(block as usize)) {
        // SAFETY: the caller's obligation, and the page's tag says that its blocks are of the class.
        Some(class) => unsafe {
            if !percpu::push(class, block) {
                release_slow(class, block);
            }
        },
        // SAFETY: the caller's obligation.
        None => unsafe { release_other(block) },
    }
}

/// # Safety
/// As for [`release`]; the block is of `class`.
#[cold]
#[inline(never)]
unsafe extern "C" fn release_slow(class: usize, block: *mut u8) {
    // SAFETY: the caller's obligation.
    unsafe { alloc::free_class_slow(class, block) }
}

/// # Safety
/// As for [`release`].
#[inline(never)]
unsafe extern "C" fn release_other(block: *mut u8) {
    let Some(block) = NonNull::new(block) else { return };
    nolock::settle();
    if observe::freed(block.as_ptr()) {
        return;
    }
    let found = find(block);
    if let Found::Class(class) = found {
        // A guarded block, which lies in no zone. SAFETY: the caller's obligation.
        return unsafe { alloc::free_class_slow(class, block.as_ptr()) };
    }
    // SAFETY: the caller's obligation.
    if !unsafe { free_found(block, found) } {
        not_a_block(block, found);
    }
}

/// For a pointer that is to no block of ours: ends the process, or reports the first and returns.
#[cold]
#[inline(never)]
fn not_a_block(block: NonNull<u8>, found: Found) {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    let address = sys::addr(block);
    if found != Found::Foreign {
        sys::die(slab::NOT_IN_USE, address);
    }
    if !sys::is_readable(address) {
        sys::die("a pointer to no memory was freed or resized (a double free, most likely)", address);
    }
    // Relaxed: one of several reports.
    if !REPORTED.swap(true, Ordering::Relaxed) {
        let mut line = sys::Message::new();
        line.text("pcpalloc: a pointer that is not from this allocator was freed or resized; it is left alone, and so");
        line.text(" will be others (address ").hex(address).text(")\n");
        sys::report(line.as_bytes());
    }
}

/// What `block` is; blocks of a class are told at once.
#[inline(always)]
fn found_at(block: NonNull<u8>) -> Found {
    slab::class_of_tag(Zone::tag_of_page_at(sys::addr(block))).map_or_else(|| find(block), Found::Class)
}

/// Bytes that may be used of a block, 0 for what is none.
fn usable_size(block: *mut u8) -> usize {
    NonNull::new(block).map_or(0, |block| found_at(block).usable())
}

/// # Safety
/// As for `realloc`: `block` is null or a block; unless null is returned, only the new address is used.
#[inline]
unsafe fn resize(block: *mut u8, size: usize) -> *mut u8 {
    let Some(old) = NonNull::new(block) else { return allocate(size) };
    if size == 0 {
        // SAFETY: the caller's obligation.
        unsafe { release(block) };
        return null_mut();
    }
    let found = found_at(old);
    let usable = found.usable();
    // A little less than there is stays where it is, and what fits no smaller block does.
    if size <= usable && (size >= usable - usable / 4 || class_of_c(size).is_some_and(|c| found == Found::Class(c))) {
        return block;
    }
    // SAFETY: the caller's obligation, and the block is what was found.
    unsafe { resize_slow(old, found, size) }
}

/// # Safety
/// As for [`resize`]; `found` is what the block is.
#[inline(never)]
unsafe fn resize_slow(block: NonNull<u8>, found: Found, size: usize) -> *mut u8 {
    let usable = found.usable();
    if usable == 0 {
        not_a_block(block, found);
        return refused();
    }
    if size > isize::MAX as usize {
        return refused();
    }
    // SAFETY: the caller's obligation; both blocks are as large as what is copied, and two blocks do not overlap.
    unsafe {
        let resized = || {
            let new = (usable.min(size) > SLAB_MAX).then(|| resize_found(block, found, ALIGN, size)).flatten()?;
            alloc::told_resized((block, usable), (new, found_at(new).usable()), false);
            Some(new.as_ptr())
        };
        if let Some(new) = resized() {
            return new;
        }
        let new = allocate_copied(size);
        if new.is_null() {
            // Where there is no room for a second block there may be for what this one lacks: as in `alloc::realloc_slow`.
            return resized().unwrap_or(new);
        }
        copy_nonoverlapping(block.as_ptr(), new, usable.min(size));
        release(block.as_ptr());
        new
    }
}
