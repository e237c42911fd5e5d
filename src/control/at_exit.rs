//! What the process says on standard error when it exits, on request: how its memory stands, and what is still in use.

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use super::leaks::Leaks;
use crate::{latency, sys};

/// Which reports are wanted, and whether the C library has been told. Relaxed: set while the heap comes up.
static LEAKS: AtomicBool = AtomicBool::new(false);
static STATS: AtomicBool = AtomicBool::new(false);
static ARMED: AtomicBool = AtomicBool::new(false);

/// Says which reports there are to be when the process exits.
pub(super) fn want(stats: bool, leaks: bool) {
    STATS.store(stats, Ordering::Relaxed);
    LEAKS.store(leaks, Ordering::Relaxed);
}

/// Has the C library call for the reports, if there are to be any. It may allocate for that.
pub(crate) fn arm_exit_report() {
    let wanted = STATS.load(Ordering::Relaxed) || LEAKS.load(Ordering::Relaxed);
    if wanted && !ARMED.swap(true, Ordering::Relaxed) && !sys::at_exit(report) {
        let _ = sys::Stderr.write_str("pcpalloc: no report at exit: the C library does not take it\n");
    }
}

extern "C" fn report() {
    // What cannot be written is lost. The stats first, since counting what is in use empties the stacks.
    if STATS.load(Ordering::Relaxed) {
        let _ = writeln!(sys::Stderr, "pcpalloc: stats at exit:\n{}", super::stats());
        if latency::is_on() {
            let _ = writeln!(sys::Stderr, "{}", latency::Latencies::now());
        }
    }
    if LEAKS.load(Ordering::Relaxed) {
        let _ = write!(sys::Stderr, "pcpalloc: at exit: {}", Leaks::now());
    }
}
