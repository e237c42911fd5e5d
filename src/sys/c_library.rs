//! What the C interface needs of the C library besides memory.

use core::ffi::{c_char, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

pub(crate) fn set_errno(code: i32) {
    // SAFETY: `__errno_location` returns this thread's errno, which is valid for as long as the thread runs.
    unsafe { *libc::__errno_location() = code };
}

/// glibc's own word on it (2.32 and later). Null where there is none.
static SINGLE_THREADED: AtomicPtr<c_char> = AtomicPtr::new(null_mut());

/// Finds out how [`is_single_threaded`] is to find out. Called while the heap is brought up: the C library may
/// allocate here.
pub(crate) fn look_for_threads() {
    // Relaxed, here and below: the word is the C library's and there from the start.
    SINGLE_THREADED.store(super::optional!("__libc_single_threaded").cast(), Ordering::Relaxed);
}

/// Whether the process has never had a second thread, or the C library knows that it has none now.
pub(crate) fn is_single_threaded() -> bool {
    let word = SINGLE_THREADED.load(Ordering::Relaxed);
    // SAFETY: glibc defines it as a `char`, which only a thread writes that is the only one.
    !word.is_null() && unsafe { word.read_volatile() } != 0
}

/// Whether what the whole process means by the name `malloc` is in the library that starts at `base`.
pub(super) fn malloc_is_in(base: *mut c_void) -> bool {
    // SAFETY: the name is a C string; the default scope is always valid. `Dl_info` is valid when zero, and valid for the write.
    unsafe {
        let malloc = libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr());
        let mut found: libc::Dl_info = core::mem::zeroed();
        libc::dladdr(malloc, &mut found) != 0 && found.dli_fbase == base
    }
}
