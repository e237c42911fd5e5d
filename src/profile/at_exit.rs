//! The profile of a whole process, written to a file when it exits, on request.

use core::fmt::Write as _;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;

use super::{View, snapshot, stop};
use crate::lock::Lock;
use crate::sys;

/// Bytes of the longest path.
const PATH_MAX: usize = 512;
/// What stands for the process's number in a path.
const PROCESS: &[u8] = b"%p";

/// Where to, and which process asked: a child that was forked is not the one, unless the path has a number in it.
#[derive(Clone, Copy)]
struct Destination {
    path: [u8; PATH_MAX],
    len: usize,
    process: u32,
}

static TO: Lock<Option<Destination>> = Lock::new(None);

/// Why nothing will be written at exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArmError {
    /// The path has more than [`PATH_MAX`] bytes.
    PathTooLong,
    /// The C library does not take another function to call.
    Refused,
}

/// Has the profile written to `path` when the process exits.
///
/// The C library may allocate for it. Called as often as settings are put in force, which is once or twice.
pub(super) fn arm(path: &[u8]) -> Result<(), ArmError> {
    let mut to = Destination { path: [0; PATH_MAX], len: path.len(), process: std::process::id() };
    to.path.get_mut(..path.len()).ok_or(ArmError::PathTooLong)?.copy_from_slice(path);
    let armed_already = TO.lock().replace(to).is_some();
    if !armed_already && !sys::at_exit(write_file) {
        *TO.lock() = None;
        return Err(ArmError::Refused);
    }
    Ok(())
}

impl Destination {
    fn path(&self) -> &[u8] {
        &self.path[..self.len]
    }

    /// The path in the process `process`; `None` where that is not to write it.
    fn in_process(&self, process: u32) -> Option<Vec<u8>> {
        let Some(at) = self.path().windows(PROCESS.len()).position(|part| part == PROCESS) else {
            return (self.process == process).then(|| self.path().to_vec());
        };
        let (before, after) = (&self.path()[..at], &self.path()[at + PROCESS.len()..]);
        Some([before, process.to_string().as_bytes(), after].concat())
    }
}

/// In the format that the path's end asks for. Stops first, so that the copy and what else this allocates are not in it.
fn write(path: &[u8]) -> io::Result<()> {
    stop();
    let profile = snapshot();
    let mut file = BufWriter::new(File::create(OsStr::from_bytes(path))?);
    if path.ends_with(b".json") {
        profile.write_dhat(&mut file)?;
    } else if path.ends_with(b".folded") {
        profile.write_folded(View::Peak, &mut file)?;
    } else {
        profile.write_pprof(&mut file)?;
    }
    file.flush()
}

extern "C" fn write_file() {
    // In the child of a `fork` whoever held the lock may be gone; then there is nothing to write.
    let Some(to) = TO.try_lock().and_then(|to| *to) else { return };
    let Some(path) = to.in_process(std::process::id()) else { return };
    let shown = String::from_utf8_lossy(&path);
    let _ = match write(&path) {
        Ok(()) => writeln!(sys::Stderr, "pcpalloc: profile: written to {shown}"),
        Err(error) => writeln!(sys::Stderr, "pcpalloc: profile: not written to {shown}: {error}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(path: &[u8]) -> Destination {
        let mut to = Destination { path: [0; PATH_MAX], len: path.len(), process: 7 };
        to.path[..path.len()].copy_from_slice(path);
        to
    }

    #[test]
    fn a_child_has_a_file_of_its_own_or_none() {
        let to = destination(b"/a/heap.%p.pb.gz");
        assert_eq!(to.in_process(7).unwrap(), b"/a/heap.7.pb.gz");
        assert_eq!(to.in_process(1234).unwrap(), b"/a/heap.1234.pb.gz");
        let to = destination(b"heap.json");
        assert_eq!(to.in_process(7).unwrap(), b"heap.json");
        assert_eq!(to.in_process(8), None);
    }

    #[test]
    fn a_path_that_is_too_long_is_told_from_a_c_library_that_refuses() {
        assert_eq!(arm(&[b'a'; PATH_MAX + 1]), Err(ArmError::PathTooLong));
        // Nothing has been armed: else a second call would have no need of the C library. The twin's always refuses.
        assert!(TO.lock().is_none());
        #[cfg(pcpalloc_twin)]
        for _ in 0..2 {
            assert_eq!(arm(&[b'a'; PATH_MAX]), Err(ArmError::Refused));
        }
    }
}
