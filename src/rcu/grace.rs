//! Grace periods: numbered, one at a time, advanced by whoever has an interest.
//!
//! ```text
//! advance:  unless one is under way: n = started + 1; started = n; barrier on all processors
//!           if every reader's slot is past n: completed = n
//! ```
//!
//! A cookie is the number of the first grace period that begins after it was taken, `started + 1`, for one
//! that is under way may have begun before. Nobody blocks the others: a thread that waits advances, then sleeps
//! a little, and so do all. The arithmetic is in `epoch.rs`.

use core::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::epoch::{Periods, Slot, Slots};
use super::reader::{barrier_on_all, own_slot};
use crate::latency::{self, SlowPath};
use crate::lock::Lock;
use crate::sys::{self, Message};

/// When a reader that holds a grace period up is reported, unless set otherwise.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct GracePeriods {
    pub(super) numbers: Periods,
    gate: Lock<Gate>,
    pub(super) slots: Slots,
    pub(super) stats: GraceStats,
    /// Nanoseconds; see [`STALL_TIMEOUT`].
    stall_timeout: AtomicU64,
}

/// The grace period under way.
struct Gate {
    began: Option<Instant>,
    /// Whether there has been a barrier since it began. The kernel may refuse one for want of memory.
    fenced: bool,
    reported: bool,
}

/// Relaxed throughout: statistics.
pub(super) struct GraceStats {
    pub(super) expedited: AtomicU64,
    pub(super) stalls: AtomicU64,
    /// What grace periods took.
    pub(super) latency: Latencies,
    /// What those who waited for one took, without haste and expedited.
    pub(super) waited: [Latencies; 2],
}

/// How many of something took from 2^(n-1) up to 2^n microseconds.
pub(super) struct Latencies([AtomicU64; 32]);

impl Latencies {
    const fn new() -> Latencies {
        Latencies([const { AtomicU64::new(0) }; 32])
    }

    fn add(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let bucket = (64 - micros.leading_zeros() as usize).min(self.0.len() - 1);
        self.0[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// What a share of `q` of them took at most; zero if there were none.
    pub(super) fn quantile(&self, q: f64) -> Duration {
        let counts = || self.0.iter().map(|n| n.load(Ordering::Relaxed));
        let wanted = ((counts().sum::<u64>() as f64 * q).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = counts().position(|n| {
            seen += n;
            seen >= wanted
        });
        Duration::from_micros(bucket.map_or(0, |bucket| 1 << bucket))
    }
}

impl GracePeriods {
    pub(super) const fn new() -> GracePeriods {
        GracePeriods {
            numbers: Periods::new(),
            gate: Lock::new(Gate { began: None, fenced: false, reported: false }),
            slots: Slots::new(),
            stats: GraceStats {
                expedited: AtomicU64::new(0),
                stalls: AtomicU64::new(0),
                latency: Latencies::new(),
                waited: [const { Latencies::new() }; 2],
            },
            stall_timeout: AtomicU64::new(STALL_TIMEOUT.as_nanos() as u64),
        }
    }

    /// How many grace periods have ended.
    pub(super) fn count(&self) -> u64 {
        self.numbers.completed() - 1
    }

    /// The grace period to wait for so that everybody who may see what the caller has unlinked is gone.
    pub(super) fn snap(&self) -> u64 {
        self.numbers.snap()
    }

    pub(super) fn is_done(&self, number: u64) -> bool {
        self.numbers.is_done(number)
    }

    pub(super) fn set_stall_timeout(&self, timeout: Duration) {
        self.stall_timeout.store(timeout.as_nanos().min(u64::MAX as u128) as u64, Ordering::Relaxed);
    }

    /// Begins a grace period if none is under way, and ends it if all readers are past it. Never waits.
    pub(super) fn advance(&self) {
        let Some(mut gate) = self.gate.try_lock() else { return };
        let (number, began) = match gate.began {
            Some(began) => (self.numbers.current(), began),
            None => {
                let number = self.numbers.begin(|| gate.fenced = barrier_on_all());
                gate.reported = false;
                (number, *gate.began.insert(Instant::now()))
            }
        };
        // Without its barrier a grace period proves nothing about readers: it lasts until there has been one. That it
        // comes late makes no difference to those who have seen its number, which are past it.
        if !gate.fenced {
            gate.fenced = barrier_on_all();
            if !gate.fenced {
                return;
            }
        }
        match self.slots.iter().find(|slot| !slot.state.is_past(number)) {
            None => {
                gate.began = None;
                self.stats.latency.add(began.elapsed());
                self.numbers.end(number);
            }
            Some(slot) => {
                let timeout = Duration::from_nanos(self.stall_timeout.load(Ordering::Relaxed));
                if !gate.reported && began.elapsed() > timeout {
                    gate.reported = true;
                    self.stats.stalls.fetch_add(1, Ordering::Relaxed);
                    report_stall(slot, began.elapsed());
                }
            }
        }
    }

    /// Waits until grace period `number` has ended: without sleeping at first, and for long, if `expedited`.
    pub(super) fn wait(&self, number: u64, expedited: bool) {
        if self.is_done(number) {
            return;
        }
        if expedited {
            self.stats.expedited.fetch_add(1, Ordering::Relaxed);
        }
        let began = Instant::now();
        let mut turn = 0u32;
        while !self.is_done(number) {
            self.advance();
            pause(turn, expedited);
            turn += 1;
        }
        let took = began.elapsed();
        self.stats.waited[expedited as usize].add(took);
        if latency::is_on() {
            latency::record(SlowPath::GracePeriod, took.as_nanos() as u64);
        }
    }

    /// Around a `fork`: whoever advances has finished.
    pub(super) fn fork_lock(&self, acquire: bool) {
        if acquire { self.gate.acquire() } else { self.gate.release() }
    }

    /// In the child of a `fork`: of the readers, only the thread that forked is left. It was `before` and is `now`.
    ///
    /// Slots of the default domain are for others then (`give_up`). Those of a domain of one's own stay with the number that
    /// they are found by, which another thread will have: given up, a slot would have two owners.
    pub(super) fn after_fork(&self, before: u32, now: u32, give_up: bool) {
        for slot in self.slots.iter() {
            if core::ptr::eq(slot, own_slot()) || slot.thread.load(Ordering::Relaxed) == before {
                slot.thread.store(now, Ordering::Relaxed);
            } else {
                slot.state.reset();
                if give_up {
                    slot.give_up();
                }
            }
        }
    }

    /// Ends all sections: their guards have been forgotten, and nobody can be looking any more.
    pub(super) fn forget_readers(&self) {
        self.slots.iter().for_each(|slot| slot.state.reset());
    }
}

#[cold]
fn report_stall(slot: &Slot, since: Duration) {
    let thread = slot.thread.load(Ordering::Relaxed);
    let mut line = Message::new();
    line.text("pcpalloc: rcu: a grace period is held up by thread ").decimal(thread as usize);
    line.text(" (");
    sys::name_thread(thread, &mut line);
    line.text("), which has been reading for ").decimal(since.as_millis() as usize);
    line.text(" ms\n");
    sys::report(line.as_bytes());
}

/// Lets others run: spins, yields, then sleeps, longer from turn to turn.
pub(super) fn pause(turn: u32, expedited: bool) {
    let spins = if expedited { 200 } else { 20 };
    match turn {
        t if t < spins => core::hint::spin_loop(),
        t if t < spins + 20 => std::thread::yield_now(),
        t => {
            let longest = if expedited { 100 } else { 1000 };
            std::thread::sleep(Duration::from_micros(((t - spins) as u64 * 5).min(longest)));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// What becomes of the slot of a thread that the child of a `fork` lacks: nobody reads in it, and where slots are found
    /// by number it has one owner, who finds it.
    ///
    /// Red if it is handed to another, or not: in `GracePeriods::after_fork`, give up every slot, or none; and if readers
    /// that are gone still read: do not reset.
    #[test]
    fn a_childs_slots_have_one_owner() {
        for shared in [false, true] {
            let periods = GracePeriods::new();
            let (other, forker) = (periods.slots.take(1001), periods.slots.take(1000));
            assert!(other.state.enter(&periods.numbers, || ()) && forker.state.enter(&periods.numbers, || ()));
            periods.after_fork(1000, 2000, shared);
            assert!(!other.state.reads() && forker.state.reads());
            assert_eq!(forker.thread.load(Ordering::Relaxed), 2000);
            assert_eq!(core::ptr::eq(other, periods.slots.take(2001)), shared);
            assert!(!core::ptr::eq(forker, periods.slots.take(2002)));
        }
    }
}
