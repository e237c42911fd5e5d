//! The area through which the kernel tells a thread which CPU it runs on, and learns of its sections.

use core::ffi::c_void;
use core::ptr::NonNull;

use super::{RSEQ_SIGNATURE, ThreadExit, keep_errno, optional};

pub(crate) const ENOSYS: i32 = libc::ENOSYS;
pub(crate) const EINVAL: i32 = libc::EINVAL;
pub(crate) const ENOMEM: i32 = libc::ENOMEM;
pub(crate) const ESRCH: i32 = libc::ESRCH;

/// What the C library did about rseq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LibcRseq {
    /// It knows nothing of it.
    Absent,
    /// It could have registered threads, and has not: `GLIBC_TUNABLES=glibc.pthread.rseq=0`, or the kernel refused.
    Declined,
    /// It registers every thread before anything of ours runs there; the area lies at this offset from the thread
    /// pointer.
    At(isize),
}

/// What the C library did. glibc has been registering since 2.35.
pub(crate) fn libc_rseq() -> LibcRseq {
    let size = NonNull::new(optional!("__rseq_size")).map(NonNull::cast::<u32>);
    let offset = NonNull::new(optional!("__rseq_offset")).map(NonNull::cast::<isize>);
    let (Some(size), Some(offset)) = (size, offset) else { return LibcRseq::Absent };
    // SAFETY: glibc defines them as `const unsigned int` and `const ptrdiff_t`.
    unsafe { if size.read() == 0 { LibcRseq::Declined } else { LibcRseq::At(offset.read()) } }
}

/// Whether the C library gives the memory of a thread's area back while the thread still runs.
///
/// A detached thread of musl's unmaps its own stack, where its thread-local storage lies, and then ends. The kernel
/// ends the process if it has something to write to the area in between. glibc leaves that to others, who wait for
/// the thread's end.
const UNMAPPED_BEFORE_THE_END: bool = !cfg!(target_env = "gnu");

static EXIT: ThreadExit = ThreadExit::new();

/// The original size of an area, which every kernel takes: with it Linux 6.19 and later keep to what older ones did
/// (Documentation/userspace-api/rseq.rst).
const SIZE: u32 = 32;

fn call(area: NonNull<u8>, flags: u32) -> Result<(), i32> {
    keep_errno(|| {
        // SAFETY: the kernel checks the address; what it then writes there, and when, is the caller's affair.
        let result = unsafe { libc::syscall(libc::SYS_rseq, area.as_ptr(), SIZE, flags, RSEQ_SIGNATURE) };
        // SAFETY: errno is valid in every thread.
        if result == 0 { Ok(()) } else { Err(unsafe { *libc::__errno_location() }) }
    })
}

/// Registers `area` as this thread's rseq area; or the error, of which [`ENOMEM`] may pass. Called for the first time while
/// the heap comes up.
///
/// `at_exit` is called with it when the thread ends, where its memory goes before the thread has ended.
///
/// # Safety
/// The area is 32 bytes, aligned to 32, this thread's own, and stays valid until the thread has ended, or until
/// `at_exit` has been called, which unregisters it.
pub(crate) unsafe fn register_rseq(area: NonNull<u8>, at_exit: unsafe extern "C" fn(*mut c_void)) -> Result<(), i32> {
    match call(area, 0) {
        // EBUSY: this very area is registered already.
        Ok(()) | Err(libc::EBUSY) => {}
        Err(errno) => return Err(errno),
    }
    if UNMAPPED_BEFORE_THE_END {
        let armed = (EXIT.is_possible() || EXIT.create(at_exit)) && EXIT.arm(area.as_ptr().cast());
        if !armed {
            // SAFETY: registered above.
            unsafe { unregister_rseq(area) };
            return Err(ENOMEM);
        }
    }
    Ok(())
}

/// Takes this thread's area away from the kernel.
///
/// # Safety
/// The area is this thread's.
pub(crate) unsafe fn unregister_rseq(area: NonNull<u8>) {
    const UNREGISTER: u32 = 1;
    // Refused only if it was not registered.
    let _ = call(area, UNREGISTER);
}
