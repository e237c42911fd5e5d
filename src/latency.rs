//! How long slow paths take, on request: a histogram for each, in powers of two of a nanosecond.
//!
//! Off, a slow path asks one flag; the fast paths know nothing of this. On, it reads the clock twice and adds to two
//! counters that all CPUs share.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use crate::sys;

/// Something that takes long at times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlowPath {
    /// A stack was empty: blocks from another CPU, from slabs, or from new pages.
    Refill,
    /// A stack was full: blocks to another CPU, or to their slabs.
    Flush,
    /// A zone was made larger, or a new one reserved.
    Grow,
    /// A CPU's stacks were emptied.
    Drain,
    /// `madvise`: memory given to free pages, or given back to the system.
    Advise,
    /// Somebody waited for a grace period of [`rcu`](crate::rcu).
    GracePeriod,
}

impl SlowPath {
    /// All of them.
    pub const ALL: [SlowPath; 6] =
        [SlowPath::Refill, SlowPath::Flush, SlowPath::Grow, SlowPath::Drain, SlowPath::Advise, SlowPath::GracePeriod];

    /// Its name, as in the reports.
    pub const fn name(self) -> &'static str {
        match self {
            SlowPath::Refill => "refill",
            SlowPath::Flush => "flush",
            SlowPath::Grow => "grow",
            SlowPath::Drain => "drain",
            SlowPath::Advise => "advise",
            SlowPath::GracePeriod => "grace_period",
        }
    }
}

/// The last bucket holds whatever took longer: nine minutes and more.
const BUCKETS: usize = 40;

/// Relaxed throughout: statistics.
struct Cells {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

static CELLS: [Cells; SlowPath::ALL.len()] =
    [const { Cells { counts: [const { AtomicU64::new(0) }; BUCKETS], nanos: AtomicU64::new(0) } }; SlowPath::ALL.len()];

/// Relaxed: what is measured around a change may be lost.
static ON: AtomicBool = AtomicBool::new(false);

pub(crate) fn set(on: bool) {
    ON.store(on, Ordering::Relaxed);
}

#[inline]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Measures until it is dropped.
pub(crate) struct Timer {
    path: SlowPath,
    /// Nanoseconds of the clock; 0 if nothing is measured.
    began: u64,
}

/// Begins to measure, if that is asked for.
#[inline]
pub(crate) fn start(path: SlowPath) -> Timer {
    Timer { path, began: if is_on() { sys::monotonic_nanos() } else { 0 } }
}

impl Drop for Timer {
    #[inline]
    fn drop(&mut self) {
        if self.began != 0 {
            record(self.path, sys::monotonic_nanos().saturating_sub(self.began));
        }
    }
}

/// Adds one that took so long.
#[cold]
pub(crate) fn record(path: SlowPath, nanos: u64) {
    let cells = &CELLS[path as usize];
    cells.counts[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
    cells.nanos.fetch_add(nanos, Ordering::Relaxed);
}

/// Bucket n holds what took 2^n nanoseconds or less and is in none before: a bound belongs to its bucket, as Prometheus
/// has it.
fn bucket(nanos: u64) -> usize {
    ((u64::BITS - nanos.saturating_sub(1).leading_zeros()) as usize).min(BUCKETS - 1)
}

/// How long one slow path took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    total: Duration,
}

impl Histogram {
    /// How often it was taken while that was measured.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What all of them took together.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// A share of `q` (0 to 1, or the nearer of them) took this or less; within a factor of two. Zero if there were none.
    pub fn quantile(&self, q: f64) -> Duration {
        let wanted = ((self.count() as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let reached = self.cumulative().find(|&(_, count)| count >= wanted);
        reached.map_or(Duration::ZERO, |(bound, _)| bound)
    }

    /// Upper bounds, ascending, and how many took so long or less; the last is a bound only in name, for whatever took
    /// longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.counts.iter().enumerate().scan(0, |seen, (n, count)| {
            *seen += count;
            Some((Duration::from_nanos(1 << n), *seen))
        })
    }
}

/// The histograms of all slow paths, at one moment. As text, a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latencies([Histogram; SlowPath::ALL.len()]);

impl Latencies {
    pub(crate) fn now() -> Latencies {
        Latencies(SlowPath::ALL.map(|path| {
            let cells = &CELLS[path as usize];
            Histogram {
                counts: core::array::from_fn(|n| cells.counts[n].load(Ordering::Relaxed)),
                total: Duration::from_nanos(cells.nanos.load(Ordering::Relaxed)),
            }
        }))
    }

    /// That of one slow path.
    pub fn of(&self, path: SlowPath) -> &Histogram {
        &self.0[path as usize]
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<14}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "slow path", "times", "total", "p50 <=", "p99 <=", "p99.9 <="
        )?;
        for path in SlowPath::ALL {
            let histogram = self.of(path);
            write!(f, "\n{:<14}{:>12}{:>12}", path.name(), histogram.count(), Time(histogram.total()))?;
            for q in [0.5, 0.99, 0.999] {
                write!(f, "{:>12}", Time(histogram.quantile(q)))?;
            }
        }
        Ok(())
    }
}

/// A time for people, in whole units.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let (value, unit) = match nanos {
            0..10_000 => (nanos, "ns"),
            10_000..10_000_000 => (nanos / 1000, "us"),
            10_000_000..10_000_000_000 => (nanos / 1_000_000, "ms"),
            _ => (nanos / 1_000_000_000, "s"),
        };
        // Padded as a whole, without a string to hold it.
        let len = value.checked_ilog10().unwrap_or(0) as usize + 2 + unit.len();
        write!(f, "{:pad$}{value} {unit}", "", pad = f.width().unwrap_or(0).saturating_sub(len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 1023, 1024, 1025].map(bucket), [0, 0, 1, 2, 2, 10, 10, 11]);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    /// What took just as long as a bound says is counted there: a row of Prometheus with `le` means so.
    ///
    /// Red if it is counted in the next: in `bucket` (`src/latency.rs`), leave `saturating_sub(1)` out.
    #[test]
    fn a_bound_belongs_to_its_bucket() {
        for n in 0..BUCKETS - 1 {
            let mut histogram = Histogram { counts: [0; BUCKETS], total: Duration::ZERO };
            let (nanos, longer) = (1 << n, (1 << n) + 1);
            histogram.counts[bucket(nanos)] += 1;
            histogram.counts[bucket(longer)] += 1;
            let row = histogram.cumulative().find(|row| row.0 == Duration::from_nanos(nanos));
            assert_eq!(row, Some((Duration::from_nanos(nanos), 1)));
        }
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut histogram = Histogram { counts: [0; BUCKETS], total: Duration::ZERO };
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        histogram.counts[bucket(100)] = 98;
        histogram.counts[bucket(5000)] = 2;
        assert_eq!(histogram.quantile(0.5), Duration::from_nanos(128));
        assert_eq!(histogram.quantile(0.98), Duration::from_nanos(128));
        assert_eq!(histogram.quantile(0.99), Duration::from_nanos(8192));
        assert_eq!([-1.0, f64::NAN].map(|q| histogram.quantile(q)), [Duration::from_nanos(128); 2]);
        assert_eq!([1.0, 1.5, f64::INFINITY].map(|q| histogram.quantile(q)), [Duration::from_nanos(8192); 3]);
        assert_eq!(histogram.cumulative().last(), Some((Duration::from_nanos(1 << 39), 100)));
    }

    #[test]
    fn times_fit_their_column() {
        let padded = |nanos| Time(Duration::from_nanos(nanos)).to_string();
        assert_eq!([0, 9999, 10_000, 12_000_000].map(padded), ["0 ns", "9999 ns", "10 us", "12 ms"]);
        assert_eq!(format!("{:>8}|", Time(Duration::from_nanos(5))), "    5 ns|");
    }
}
