//! What the process has used.

use std::time::{Duration, Instant};

/// Time, and what the kernel has counted for all threads.
pub struct Usage {
    pub wall: Duration,
    /// User and system time.
    pub cpu: Duration,
    /// Page faults that needed no input.
    pub faults: i64,
    /// Context switches of threads that waited, and of threads that were made to.
    pub voluntary: i64,
    pub involuntary: i64,
}

/// Measures from where it is told to begin.
pub struct Watch {
    began: Instant,
    before: libc::rusage,
}

impl Watch {
    pub fn new() -> Watch {
        Watch { before: counted(), began: Instant::now() }
    }

    /// What is measured begins here.
    pub fn begin(&mut self) {
        *self = Watch::new();
    }

    pub fn stop(self) -> Usage {
        let wall = self.began.elapsed();
        let (before, now) = (self.before, counted());
        Usage {
            wall,
            cpu: duration(now.ru_utime) + duration(now.ru_stime)
                - duration(before.ru_utime)
                - duration(before.ru_stime),
            faults: now.ru_minflt - before.ru_minflt,
            voluntary: now.ru_nvcsw - before.ru_nvcsw,
            involuntary: now.ru_nivcsw - before.ru_nivcsw,
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000)
}

fn counted() -> libc::rusage {
    // SAFETY: integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `rusage` that is ours.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    assert_eq!(result, 0, "getrusage cannot fail for the process itself");
    usage
}

/// What is resident now, counted page by page.
pub fn resident_kib() -> Option<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.split_whitespace().next()?.parse().ok()
}
