//! The most memory that this process has had resident.

/// In KiB, as the kernel counts (`VmHWM`); `None` where `/proc` is not mounted.
pub fn resident_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}
