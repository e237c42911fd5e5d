//! What is known to be wrong with a release of the kernel.

use core::ffi::CStr;

use super::number;

/// Whether the kernel aborts restartable sequences whenever it should.
///
/// On aarch64, Linux 6.19 and 7.0 do not when one thread follows another on the same CPU: their rework of rseq relied on
/// an entry code that this architecture came to use later. Nothing in a process notices that but a lost block, so these
/// releases are told by their numbers. (linux-kernel, April 2026, "rseq: Regression for arm64 and TCMalloc".)
pub(crate) fn rseq_aborts() -> bool {
    if cfg!(not(target_arch = "aarch64")) {
        return true;
    }
    // SAFETY: integers and arrays of them are valid when zero; uname writes strings with an end to them.
    unsafe {
        let mut name: libc::utsname = core::mem::zeroed();
        libc::uname(&mut name) == 0 && aborts(CStr::from_ptr(name.release.as_ptr()).to_bytes())
    }
}

/// The same for aarch64 and a release by name, such as `6.12.107+deb13-arm64`. One that has no number is not trusted.
fn aborts(release: &[u8]) -> bool {
    let mut parts = release.split(|&byte| byte == b'.').map(number);
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => !((6, 19)..(7, 1)).contains(&(major, minor)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn releases_are_told_by_their_numbers() {
        let broken = ["6.19.0", "6.19.5-arm64", "6.20.1", "7.0.14-generic", "7.0-rc3", "", "linux"];
        let whole = ["4.18.0", "5.10.0-32-cloud-arm64", "6.1.0-56-arm64", "6.18.44", "7.1.0", "7.3.4+deb13", "8.0"];
        assert!(broken.iter().all(|release| !super::aborts(release.as_bytes())));
        assert!(whole.iter().all(|release| super::aborts(release.as_bytes())));
    }
}
