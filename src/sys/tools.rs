//! Tools that watch memory are told which is in use: Valgrind with feature `valgrind`, AddressSanitizer with `asan`.
//!
//! Without the features nothing of this is compiled in, and with them it costs a look at a flag unless a tool is there.
//! Where one is, all stacks are hidden (`percpu/hidden.rs`), so that every block is told of.

#[cfg(not(any(feature = "valgrind", feature = "asan")))]
mod told {
    pub(crate) fn look() -> bool {
        false
    }
    pub(crate) fn are_present() -> bool {
        false
    }
    pub(crate) fn allocated(_block: *mut u8, _size: usize, _zeroed: bool) {}
    pub(crate) fn freed(_block: *mut u8, _size: usize) {}
    pub(crate) fn resized(_old: *mut u8, _old_size: usize, _new: *mut u8, _new_size: usize, _zeroed: bool) {}
    pub(crate) fn close(_start: *mut u8, _len: usize) {}
    pub(crate) fn open(_start: *mut u8, _len: usize) {}
}

#[cfg(any(feature = "valgrind", feature = "asan"))]
mod told {
    use core::sync::atomic::{AtomicBool, Ordering};

    /// Relaxed: set before initialisation is announced.
    static PRESENT: AtomicBool = AtomicBool::new(false);

    /// Finds out whether there is a tool. Called once.
    pub(crate) fn look() -> bool {
        let present = super::valgrind::is_running() || super::asan::is_linked();
        PRESENT.store(present, Ordering::Relaxed);
        present
    }

    pub(crate) fn are_present() -> bool {
        PRESENT.load(Ordering::Relaxed)
    }

    /// `block` is the program's from now on; what it holds is not known, or is `zeroed`.
    pub(crate) fn allocated(block: *mut u8, size: usize, zeroed: bool) {
        if are_present() && !block.is_null() {
            super::valgrind::allocated(block, size, zeroed);
            super::asan::open(block, size);
        }
    }

    /// `block` is not the program's any more.
    pub(crate) fn freed(block: *mut u8, size: usize) {
        if are_present() {
            super::valgrind::freed(block);
            super::asan::close(block, size);
        }
    }

    /// A block has another size, and perhaps another place, with its contents. What it has grown by is not known, or is
    /// `zeroed`.
    pub(crate) fn resized(old: *mut u8, old_size: usize, new: *mut u8, new_size: usize, zeroed: bool) {
        if are_present() {
            super::valgrind::resized(old, old_size, new, new_size, zeroed);
            super::asan::close(old, old_size);
            super::asan::open(new, new_size);
        }
    }

    /// Nobody is to touch the range until it is allocated, in part or in whole.
    pub(crate) fn close(start: *mut u8, len: usize) {
        if are_present() {
            super::valgrind::close(start, len);
            super::asan::close(start, len);
        }
    }

    /// The range is the heap's own to use.
    pub(crate) fn open(start: *mut u8, len: usize) {
        if are_present() {
            super::valgrind::open(start, len);
            super::asan::open(start, len);
        }
    }
}
#[cfg_attr(not(any(feature = "valgrind", feature = "asan")), allow(unused_imports))]
pub(crate) use told::{allocated, are_present, close, freed, look, open, resized};

/// Valgrind's client requests: an instruction sequence without effect that its translator knows (`valgrind.h` and
/// `memcheck.h` of Valgrind 3.19).
#[cfg(all(feature = "valgrind", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod valgrind {
    use core::arch::asm;

    const RUNNING_ON_VALGRIND: usize = 0x1001;
    const MALLOCLIKE_BLOCK: usize = 0x1301;
    const FREELIKE_BLOCK: usize = 0x1302;
    const RESIZEINPLACE_BLOCK: usize = 0x130b;
    const MAKE_MEM_NOACCESS: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16;
    const MAKE_MEM_UNDEFINED: usize = MAKE_MEM_NOACCESS + 1;
    const MAKE_MEM_DEFINED: usize = MAKE_MEM_NOACCESS + 2;

    fn request(number: usize, arguments: [usize; 4]) -> usize {
        let [a, b, c, d] = arguments;
        let all = [number, a, b, c, d, 0];
        let mut result = 0usize;
        // SAFETY: outside Valgrind four rotations by 128 bits together and an exchange of a register with itself; inside,
        // it reads the six words.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!("rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
                 in("rax") all.as_ptr(), inout("rdx") result, out("rdi") _, options(nostack));
        }
        // SAFETY: as above, of registers 12 and 10.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!("ror x12, x12, #3", "ror x12, x12, #13", "ror x12, x12, #51", "ror x12, x12, #61", "orr x10, x10, x10",
                 in("x4") all.as_ptr(), inout("x3") result, out("x12") _, options(nostack));
        }
        result
    }

    pub(super) fn is_running() -> bool {
        request(RUNNING_ON_VALGRIND, [0; 4]) != 0
    }

    pub(super) fn allocated(block: *mut u8, size: usize, zeroed: bool) {
        request(MALLOCLIKE_BLOCK, [block as usize, size, 0, zeroed as usize]);
    }

    pub(super) fn freed(block: *mut u8) {
        request(FREELIKE_BLOCK, [block as usize, 0, 0, 0]);
    }

    pub(super) fn resized(old: *mut u8, old_size: usize, new: *mut u8, new_size: usize, zeroed: bool) {
        if old == new {
            request(RESIZEINPLACE_BLOCK, [old as usize, old_size, new_size, 0]);
            if zeroed && new_size > old_size {
                request(MAKE_MEM_DEFINED, [new as usize + old_size, new_size - old_size, 0, 0]);
            }
        } else {
            freed(old);
            allocated(new, new_size, true);
            request(MAKE_MEM_DEFINED, [new as usize, new_size, 0, 0]);
        }
    }

    pub(super) fn close(start: *mut u8, len: usize) {
        request(MAKE_MEM_NOACCESS, [start as usize, len, 0, 0]);
    }

    pub(super) fn open(start: *mut u8, len: usize) {
        request(MAKE_MEM_UNDEFINED, [start as usize, len, 0, 0]);
    }
}

#[cfg(all(
    any(feature = "valgrind", feature = "asan"),
    not(all(feature = "valgrind", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))
))]
mod valgrind {
    pub(super) fn is_running() -> bool {
        false
    }
    pub(super) fn allocated(_block: *mut u8, _size: usize, _zeroed: bool) {}
    pub(super) fn freed(_block: *mut u8) {}
    pub(super) fn resized(_old: *mut u8, _old_size: usize, _new: *mut u8, _new_size: usize, _zeroed: bool) {}
    pub(super) fn close(_start: *mut u8, _len: usize) {}
    pub(super) fn open(_start: *mut u8, _len: usize) {}
}

/// AddressSanitizer's interface for allocators (`sanitizer/asan_interface.h` of LLVM), if the program is linked to it.
#[cfg(all(feature = "asan", target_arch = "x86_64", not(miri)))]
mod asan {
    use core::arch::{asm, global_asm};
    use core::ffi::c_void;

    // Null where the program has no such function.
    global_asm!(".weak __asan_poison_memory_region", ".weak __asan_unpoison_memory_region");

    type Function = unsafe extern "C" fn(*const c_void, usize);

    fn poison() -> Option<Function> {
        let function: *const c_void;
        // SAFETY: reads a word of the global offset table: null, or a function of this type.
        unsafe {
            asm!("mov {}, qword ptr [rip + __asan_poison_memory_region@GOTPCREL]", out(reg) function,
                 options(nostack, preserves_flags, readonly, pure));
            core::mem::transmute::<*const c_void, Option<Function>>(function)
        }
    }

    fn unpoison() -> Option<Function> {
        let function: *const c_void;
        // SAFETY: as above.
        unsafe {
            asm!("mov {}, qword ptr [rip + __asan_unpoison_memory_region@GOTPCREL]", out(reg) function,
                 options(nostack, preserves_flags, readonly, pure));
            core::mem::transmute::<*const c_void, Option<Function>>(function)
        }
    }

    pub(super) fn is_linked() -> bool {
        poison().is_some() && unpoison().is_some()
    }

    pub(super) fn close(start: *mut u8, len: usize) {
        if let Some(poison) = poison() {
            // SAFETY: the range is mapped, and whole words of 8 bytes.
            unsafe { poison(start.cast(), len) };
        }
    }

    pub(super) fn open(start: *mut u8, len: usize) {
        if let Some(unpoison) = unpoison() {
            // SAFETY: as above.
            unsafe { unpoison(start.cast(), len) };
        }
    }
}

#[cfg(all(any(feature = "valgrind", feature = "asan"), not(all(feature = "asan", target_arch = "x86_64", not(miri)))))]
mod asan {
    pub(super) fn is_linked() -> bool {
        false
    }
    pub(super) fn close(_start: *mut u8, _len: usize) {}
    pub(super) fn open(_start: *mut u8, _len: usize) {}
}
