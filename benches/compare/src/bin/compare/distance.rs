//! How far two CPUs are from each other: what a cache line takes from one to the other and back.
//!
//! What crosses CPUs is a matter of this number, and CPUs of a virtual machine move about while it runs: now they have a
//! cache in common, now not. So it is looked at before every round.

use std::hint::spin_loop;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

/// Nanoseconds, of every look so far.
static SEEN: Mutex<Vec<f64>> = Mutex::new(Vec::new());

const TRIPS: u32 = 10_000;

/// Has the first and the last CPU that this thread may use pass a line to and fro.
pub fn look() {
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    let [first, .., last] = cpus[..] else { return };
    let turn = AtomicU32::new(0);
    // Even numbers are for the one, odd ones for the other; acquire and release pair with each other.
    let pass = |cpu, mine: u32| {
        let there = core_affinity::set_for_current(cpu);
        for trip in 0..TRIPS {
            while turn.load(Ordering::Acquire) != 2 * trip + mine {
                spin_loop();
            }
            turn.store(2 * trip + mine + 1, Ordering::Release);
        }
        there
    };
    let (nanoseconds, there) = thread::scope(|scope| {
        let other = scope.spawn(|| pass(last, 1));
        let one = scope.spawn(|| {
            let start = Instant::now();
            let there = pass(first, 0);
            (start.elapsed().as_nanos() as f64 / f64::from(TRIPS), there)
        });
        let (other, one) = (other.join().unwrap_or(false), one.join().unwrap_or((0.0, false)));
        (one.0, one.1 && other)
    });
    if there {
        SEEN.lock().expect("nobody panics with it").push(nanoseconds);
    }
}

/// What has been seen since this was last asked, in words; `None` if nothing was.
pub fn take_seen() -> Option<String> {
    let mut seen = std::mem::take(&mut *SEEN.lock().expect("nobody panics with it"));
    seen.sort_unstable_by(f64::total_cmp);
    let (least, most, median) = (seen.first()?, seen.last()?, seen[seen.len() / 2]);
    Some(format!("{median:.0} ns, {least:.0} to {most:.0} in {} looks", seen.len()))
}
