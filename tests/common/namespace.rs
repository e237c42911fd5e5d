//! A file system of a process's own: files that are not there, or say something else.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null;

/// What is seen in place of something.
pub enum Mount {
    /// An empty directory.
    Nothing(&'static CStr),
    /// This file.
    File(&'static CStr, CString),
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling process its own view of the file system, with these mounts.
///
/// Allocates nothing, so it may run between `fork` and `exec`.
pub fn enter(mounts: &[Mount]) -> io::Result<()> {
    // SAFETY: all arguments are C strings or null, as each call wants them.
    unsafe {
        if done(libc::unshare(libc::CLONE_NEWNS)).is_err() {
            done(libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUSER))?;
        }
        // What is mounted here is not to be seen elsewhere.
        done(libc::mount(null(), c"/".as_ptr(), null(), libc::MS_REC | libc::MS_PRIVATE, null()))?;
        for mount in mounts {
            done(match mount {
                Mount::Nothing(at) => libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, null()),
                Mount::File(at, file) => libc::mount(file.as_ptr(), at.as_ptr(), null(), libc::MS_BIND, null()),
            })?;
        }
    }
    Ok(())
}

/// Whether this process may do that; the error if not.
pub fn is_possible() -> io::Result<()> {
    let mut command = Command::new("/bin/true");
    // SAFETY: `enter` makes system calls only and allocates nothing.
    unsafe { command.pre_exec(|| enter(&[Mount::Nothing(c"/sys")])) };
    command.status().map(|_| ())
}
