//! What the kernel says of this process's memory.

use std::io::Read;
use std::time::{Duration, Instant};

use super::PAGE;

/// Bytes resident, exactly: `smaps_rollup` counts pages, where `statm` adds up per-CPU counters that may lag.
pub fn resident() -> usize {
    field("Rss:")
}

/// Waits until less than so much is resident, a minute at most; how long, and what is.
pub fn resident_below(bytes: usize) -> (Duration, usize) {
    let began = Instant::now();
    loop {
        let (time, now) = (began.elapsed(), resident());
        if now < bytes || time > Duration::from_secs(60) {
            return (time, now);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes of anonymous memory.
pub fn anonymous() -> usize {
    field("Anonymous:")
}

/// Bytes in huge pages.
pub fn huge_pages() -> usize {
    field("AnonHugePages:")
}

/// The most that has been resident so far.
pub fn peak() -> usize {
    field_of("/proc/self/status", "VmHWM:")
}

fn field(name: &str) -> usize {
    field_of("/proc/self/smaps_rollup", name)
}

/// Allocates nothing, so that it can be asked at a limit.
fn field_of(path: &str, name: &str) -> usize {
    let mut buffer = [0; 4096];
    let mut len = 0;
    let mut file = std::fs::File::open(path).expect("/proc is mounted");
    while let Ok(more @ 1..) = file.read(&mut buffer[len..]) {
        len += more;
    }
    let text = std::str::from_utf8(&buffer[..len]).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says so");
    line.split_whitespace().next().and_then(|kib| kib.parse::<usize>().ok()).expect("a number") << 10
}

/// Page faults of the calling thread so far that took no reading from disk. (What the worker populates counts as its
/// page faults.)
pub fn page_faults() -> usize {
    // SAFETY: all-zero bytes are a valid rusage, and the call fills it in.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage.ru_minflt as usize
    }
}

/// A row of the heap's `vmstat`.
pub fn vmstat(name: &str) -> usize {
    let text = super::HEAP.vmstat().to_string();
    let row = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    row.unwrap_or_else(|| panic!("no {name} in vmstat")).parse().expect("a number")
}

/// Whether the system gives huge pages of 2 MiB to who asks, and to nobody else.
pub fn by_advice() -> bool {
    // SAFETY: asks for a number.
    let is_small = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize == PAGE;
    is_small
        && std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|text| text.contains("[madvise]"))
}

/// Whether the kernel has noted this of the range that a block begins in: `hg` that it is to have huge pages, `nh` that it is not.
pub fn is_flagged(block: *mut u8, flag: &str) -> bool {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let begins = |line: &str| -> Option<std::ops::Range<usize>> {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    let mut lines = maps.lines().skip_while(|line| !begins(line).is_some_and(|range| range.contains(&block.addr())));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).expect("the kernel says so");
    flags.split_whitespace().any(|one| one == flag)
}
