//! Memory that nobody is to touch, and numbers that nobody is to foretell.

use core::ffi::c_int;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use nix::sys::mman::{self, ProtFlags};

use super::{keep_errno, release};

const MADV_GUARD_INSTALL: c_int = 102;
const MADV_GUARD_REMOVE: c_int = 103;

/// Whether [`guard`] has ever made use of marks in the page tables. Relaxed: whoever has a guarded range learnt of it
/// by way of a lock.
static GUARD_MARKS: AtomicBool = AtomicBool::new(false);

/// Has every access to the range end in a signal: by a mark in the page tables (Linux 6.13), or by taking the rights
/// away. Whether there is no memory behind the range any more; if even that is refused, the range is as it was.
///
/// # Safety
/// The range is committed, belongs to the caller, and nothing in it is still needed.
pub(crate) unsafe fn guard(start: NonNull<u8>, len: usize) -> bool {
    keep_errno(|| {
        // SAFETY: the caller's obligation.
        if unsafe { libc::madvise(start.as_ptr().cast(), len, MADV_GUARD_INSTALL) } == 0 {
            GUARD_MARKS.store(true, Ordering::Relaxed);
            return true;
        }
        // SAFETY: as above.
        unsafe { release(start, len) && forbid(start, len) }
    })
}

/// Undoes [`guard`]; if it returns false, the range may still be guarded.
///
/// # Safety
/// The range belongs to the caller.
pub(crate) unsafe fn unguard(start: NonNull<u8>, len: usize) -> bool {
    keep_errno(|| {
        // SAFETY: the caller's obligation.
        let unmarked = unsafe { libc::madvise(start.as_ptr().cast(), len, MADV_GUARD_REMOVE) } == 0;
        // SAFETY: as above. (Where there were marks alone, this changes nothing.)
        (unmarked || !GUARD_MARKS.load(Ordering::Relaxed)) && unsafe { permit(start, len) }
    })
}

/// Takes the right to read and write the range away.
///
/// # Safety
/// The range is mapped, belongs to the caller, and nobody touches it until [`permit`].
pub(crate) unsafe fn forbid(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller's obligation.
    keep_errno(|| unsafe { mman::mprotect(start.cast(), len, ProtFlags::PROT_NONE).is_ok() })
}

/// Gives the right to read and write the range.
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn permit(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller's obligation.
    keep_errno(|| unsafe { mman::mprotect(start.cast(), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).is_ok() })
}

/// 128 bits that nobody can guess: from the kernel's generator, or what it gave the process at its start
/// (`AT_RANDOM`, getauxval(3)).
pub(crate) fn random_key() -> [u64; 2] {
    let mut key = [0u64; 2];
    let len = size_of_val(&key);
    // SAFETY: the buffer is valid for its length.
    let got = keep_errno(|| unsafe { libc::syscall(libc::SYS_getrandom, key.as_mut_ptr(), len, libc::GRND_NONBLOCK) });
    if got as usize != len {
        // SAFETY: getauxval has no preconditions; a value for AT_RANDOM is the address of 16 bytes that stay. The
        // process's number keeps a child from its parent's key.
        unsafe {
            let bytes = libc::getauxval(libc::AT_RANDOM) as *const [u64; 2];
            key = if bytes.is_null() { [0; 2] } else { bytes.read_unaligned() };
            key[0] ^= libc::getpid() as u64;
        }
    }
    key
}
