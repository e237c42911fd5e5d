//! How far a long run has come, on standard error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Prints a line for every second that work takes, from whichever thread reports first in it.
pub struct Progress {
    what: &'static str,
    unit: &'static str,
    total: u64,
    start: Instant,
    done: AtomicU64,
    seconds: AtomicU64,
}

impl Progress {
    pub fn new(what: &'static str, unit: &'static str, total: u64) -> Self {
        Progress { what, unit, total, start: Instant::now(), done: AtomicU64::new(0), seconds: AtomicU64::new(0) }
    }

    pub fn add(&self, amount: u64) {
        // Relaxed, here and below: both are numbers to show, and order nothing else.
        let done = self.done.fetch_add(amount, Ordering::Relaxed) + amount;
        let now = self.start.elapsed().as_secs();
        let shown = self.seconds.load(Ordering::Relaxed);
        if now > shown && self.seconds.compare_exchange(shown, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            eprintln!("{}: {done} of {} {}, {now} s", self.what, self.total, self.unit);
        }
    }
}
