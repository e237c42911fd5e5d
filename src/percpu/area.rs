//! The rseq area of a thread: the one that the C library has registered, or our own.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::NonNull;

use super::rseq::{cpu, own_offset, thread_pointer};
use crate::sys;

// This thread's own rseq area, for when the C library has registered none. Until it is registered its ids
// say -1, and `rseq_cs` takes what the sections write without meaning anything. `registration` is how far
// this thread got: 0 not tried, -1 done, else the error.
//
// The sections use the area at our own's offset from the thread pointer, which the linker knows, plus `delta`: 0 to
// begin with, so that they are right before the first instruction runs. (The offset itself cannot be a word that the
// linker fills in, which none does for a shared library; there it comes from the global offset table, and in a
// program it is a constant: "ELF Handling For Thread-Local Storage", initial exec.)
//
// Every section on every CPU reads `delta`. Its cache line, and the one that processors fetch along with it, are its own: beside
// a counter of the program's, each allocation would wait for whoever counts. (What is behind it has a name for the test below.)
global_asm!(
    ".pushsection .tdata.pcpalloc_rseq, \"awT\", @progbits",
    ".balign 32",
    ".hidden __pcpalloc_0_1_rseq_area",
    ".globl __pcpalloc_0_1_rseq_area",
    ".type __pcpalloc_0_1_rseq_area, @object",
    ".size __pcpalloc_0_1_rseq_area, 64",
    "__pcpalloc_0_1_rseq_area:",
    ".long 0, 0xffffffff",
    ".zero 56",
    ".popsection",
    ".pushsection .bss.pcpalloc_rseq, \"aw\", @nobits",
    ".balign 128",
    ".hidden __pcpalloc_0_1_rseq_delta",
    ".globl __pcpalloc_0_1_rseq_delta",
    ".type __pcpalloc_0_1_rseq_delta, @object",
    ".size __pcpalloc_0_1_rseq_delta, 128",
    "__pcpalloc_0_1_rseq_delta:",
    ".zero 128",
    ".hidden __pcpalloc_0_1_rseq_delta_end",
    ".globl __pcpalloc_0_1_rseq_delta_end",
    "__pcpalloc_0_1_rseq_delta_end:",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "__pcpalloc_0_1_rseq_delta"]
    static DELTA: Delta;
}

/// A word that `init` writes once, while nobody depends on which of two right values it holds.
#[repr(C, align(128))]
struct Delta(UnsafeCell<isize>);

// SAFETY: aligned words are read and written whole on both architectures; both values lead to a valid area.
unsafe impl Sync for Delta {}

/// There are sections.
pub(super) const SECTIONS: bool = true;

/// Where the own area's `registration` word lies, from the area.
const REGISTRATION: isize = 32;

/// Where the area lies that is used, from the thread pointer.
#[inline(always)]
pub(super) fn offset() -> isize {
    // SAFETY: the symbol is defined above; see the type for the race with `init`.
    unsafe { own_offset() + *DELTA.0.get() }
}

/// Has all threads use the area at this offset from the thread pointer; false if this thread's is not registered.
pub(super) fn adopt(offset: isize) -> bool {
    // SAFETY: written once, by the thread that initialises; see the type.
    unsafe { *DELTA.0.get() = offset - own_offset() };
    cpu().is_some()
}

/// This thread's own area and its `registration` word, in the mode in which `offset` leads there.
fn own_area() -> (NonNull<u8>, *mut i32) {
    let area = thread_pointer().wrapping_add_signed(offset()) as *mut u8;
    // SAFETY: the area is 64 bytes, and never at address 0. The word behind the kernel's part is ours.
    unsafe { (NonNull::new_unchecked(area), area.offset(REGISTRATION).cast::<i32>()) }
}

/// Registers this thread's own area unless that was tried before; what came of it, or the error.
pub(super) fn register() -> Result<(), i32> {
    const UNTRIED: i32 = 0;
    const DONE: i32 = -1;
    let (area, registration) = own_area();
    // SAFETY: this thread's own area: 64 bytes, aligned to 32, which go only when the thread does, and before that
    // `unregister` sees to it where that matters. No other thread knows of the word; a signal handler that comes
    // between finds it untried, and is told by the kernel that the area is registered already.
    unsafe {
        if *registration == UNTRIED {
            *registration = match sys::register_rseq(area, unregister) {
                Ok(()) => DONE,
                Err(sys::ENOMEM) => return Err(sys::ENOMEM),
                Err(errno) => errno,
            };
        }
        if *registration == DONE { Ok(()) } else { Err(*registration) }
    }
}

/// Takes this thread's area away from the kernel, for good: it ends, and its memory goes before it has ended.
///
/// Destructors that come later are served by slabs: the kernel leaves -1 for a CPU.
unsafe extern "C" fn unregister(area: *mut c_void) {
    let Some(area) = NonNull::new(area.cast::<u8>()) else { return };
    let (own, registration) = own_area();
    debug_assert_eq!(own, area);
    // SAFETY: `register` had this called with the area it registered, by the thread that did. The word as there.
    unsafe {
        *registration = sys::ESRCH;
        sys::unregister_rseq(area);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        #[link_name = "__pcpalloc_0_1_rseq_delta_end"]
        static END: Delta;
    }

    /// Red with `.balign 8` in place of 128, or with `.zero 8`: something else is in the line, before it or behind it.
    #[test]
    fn delta_shares_no_line_with_anything() {
        let (start, end) = (&raw const DELTA as usize, &raw const END as usize);
        assert!(start.is_multiple_of(128) && end - start == size_of::<Delta>(), "{start:x} to {end:x}");
    }
}
