//! The functions that C calls, each by its standard's word.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use super::report::{Mallinfo, Mallinfo2};
use super::{ALIGN, allocate, allocate_aligned, refused, release, report, resize, usable_size};
use crate::sys::{self, EINVAL, ENOMEM};

/// A block of `size` bytes; null and `ENOMEM` if there is none. (C23 §7.24.4.6)
#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut c_void {
    allocate(size).cast()
}

/// Frees a block, or does nothing for null. `errno` is kept. (C23 §7.24.4.3)
///
/// # Safety
/// `block` is not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: the caller's obligation.
    unsafe { release(block.cast()) }
}

/// A block of `count` times `size` bytes that are zero; null and `ENOMEM` if that overflows. (C23 §7.24.4.2)
#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(bytes) => allocate_aligned(bytes, if bytes <= 8 { 8 } else { ALIGN }, true).cast(),
        None => refused().cast(),
    }
}

/// A block of `size` bytes that begins as `block` does. Null for `block` is `malloc`; a size of 0 frees and returns
/// null. (C23 §7.24.4.7, which leaves size 0 undefined; POSIX 2017)
///
/// # Safety
/// Unless null is returned for a size that is not 0, `block` is not used any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's obligation.
    unsafe { resize(block.cast(), size).cast() }
}

/// As [`realloc`] for `count` times `size` bytes; null and `ENOMEM` if that overflows, and the block is as it was.
/// (POSIX 2024)
///
/// # Safety
/// As for [`realloc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's obligation.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => refused().cast(),
    }
}

/// A block aligned to a power of two, by the layer that serves it.
fn aligned(align: usize, size: usize) -> *mut c_void {
    if align <= 8 || align <= ALIGN && size > 8 { malloc(size) } else { allocate_aligned(size, align, false).cast() }
}

/// As [`aligned`], for alignments as C and POSIX want them: null and `EINVAL` for what is no power of two.
fn aligned_strictly(align: usize, size: usize) -> *mut c_void {
    if align.is_power_of_two() {
        aligned(align, size)
    } else {
        sys::set_errno(EINVAL);
        null_mut()
    }
}

/// Stores an aligned block; returns 0, `EINVAL` for an alignment that is no power of two or no multiple of a
/// pointer's size, or `ENOMEM`. `errno` is kept, and `out` if it fails. (POSIX 2024)
///
/// # Safety
/// `out` is valid for the write.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return EINVAL;
    }
    let block = sys::keep_errno(|| aligned(align, size));
    if block.is_null() {
        return ENOMEM;
    }
    // SAFETY: the caller's obligation.
    unsafe { out.write(block) };
    0
}

/// An aligned block; null and `EINVAL` for an alignment that is no power of two. (C23 §7.24.4.1)
#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    aligned_strictly(align, size)
}

/// An aligned block; the alignment is rounded up to a power of two. (glibc)
#[unsafe(no_mangle)]
extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    aligned_strictly(align.checked_next_power_of_two().unwrap_or(0), size)
}

/// A block aligned to a page. (glibc)
#[unsafe(no_mangle)]
extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned(sys::page_size(), size)
}

/// Whole pages. (glibc)
#[unsafe(no_mangle)]
extern "C" fn pvalloc(size: usize) -> *mut c_void {
    match sys::round_up(size.max(1), sys::page_size()) {
        Some(bytes) => valloc(bytes),
        None => refused().cast(),
    }
}

/// [`free`], by an old name. (SunOS)
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's obligation.
    unsafe { free(block) }
}

/// [`free`]; the size that was asked for is compared with the block, which ends the process if it is smaller.
/// (C23 §7.24.4.4)
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn free_sized(block: *mut c_void, size: usize) {
    if !block.is_null() {
        let usable = usable_size(block.cast());
        if usable != 0 && usable < size {
            sys::die("a block was freed or resized with a size that cannot be its own", block as usize);
        }
    }
    // SAFETY: the caller's obligation.
    unsafe { free(block) }
}

/// [`free_sized`] for a block from [`aligned_alloc`]; the process ends if the block is not aligned like that.
/// (C23 §7.24.4.5)
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
unsafe extern "C" fn free_aligned_sized(block: *mut c_void, align: usize, size: usize) {
    if align.is_power_of_two() && block as usize & (align - 1) != 0 {
        sys::die("a block was freed with an alignment that cannot be its own", block as usize);
    }
    // SAFETY: the caller's obligation.
    unsafe { free_sized(block, size) }
}

/// Bytes that may be used of a block: at least as many as were asked for; 0 for null. (glibc)
#[unsafe(no_mangle)]
extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    usable_size(block.cast())
}

/// Gives free memory back to the system, all but `keep` bytes; 1 if there was some. (glibc)
#[unsafe(no_mangle)]
extern "C" fn malloc_trim(keep: usize) -> c_int {
    report::trim(keep)
}

/// Where the heap's memory is. (glibc 2.33)
#[unsafe(no_mangle)]
extern "C" fn mallinfo2() -> Mallinfo2 {
    report::mallinfo2()
}

/// As [`mallinfo2`], in numbers that end at 2 GiB. (glibc)
#[unsafe(no_mangle)]
extern "C" fn mallinfo() -> Mallinfo {
    report::mallinfo()
}

/// Writes the heap's statistics to standard error. (glibc)
#[unsafe(no_mangle)]
extern "C" fn malloc_stats() {
    report::print();
}
