//! What the kernel says of this process's memory.

/// Bytes resident, exactly: `smaps_rollup` counts pages, where `statm` adds up per-CPU counters that may lag.
pub fn resident() -> usize {
    field("Rss:")
}

/// Bytes of anonymous memory.
pub fn anonymous() -> usize {
    field("Anonymous:")
}

fn field(name: &str) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").expect("/proc is mounted");
    let line = smaps.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says so");
    line.split_whitespace().next().and_then(|kib| kib.parse::<usize>().ok()).expect("a number") << 10
}

/// Page faults of all threads so far that took no reading from disk.
pub fn page_faults() -> usize {
    // SAFETY: all-zero bytes are a valid rusage, and the call fills it in.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage.ru_minflt as usize
    }
}

/// A row of the heap's `vmstat`.
pub fn vmstat(name: &str) -> usize {
    let text = super::HEAP.vmstat().to_string();
    let row = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    row.unwrap_or_else(|| panic!("no {name} in vmstat")).parse().expect("a number")
}
