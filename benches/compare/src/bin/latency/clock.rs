//! A clock for times of a few nanoseconds.

use std::time::{Duration, Instant};

pub struct Clock {
    /// Ticks that a reading takes, the least of many.
    pub overhead: u64,
    ns_per_tick: f64,
}

impl Clock {
    /// Compares the counter with the system's clock for some milliseconds.
    pub fn new() -> Clock {
        let (before, began) = (ticks(), Instant::now());
        while began.elapsed() < Duration::from_millis(20) {}
        let (after, time) = (ticks(), began.elapsed());
        let mut clock = Clock { overhead: 0, ns_per_tick: time.as_nanos() as f64 / (after - before) as f64 };
        clock.overhead = (0..100_000).map(|_| clock.time(|| ()).1).min().expect("there are some");
        clock
    }

    /// What the function returns, and the ticks that it took.
    #[inline(always)]
    pub fn time<T>(&self, f: impl FnOnce() -> T) -> (T, u64) {
        let before = ticks();
        let value = f();
        let after = ticks();
        (value, (after - before).saturating_sub(self.overhead))
    }

    pub fn ns(&self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick
    }
}

/// The processor's counter. Everything before it is done, and nothing after it has begun.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ticks() -> u64 {
    use std::arch::x86_64::{_mm_lfence, _rdtsc};
    // SAFETY: instructions that every processor of this architecture has.
    unsafe {
        _mm_lfence();
        let ticks = _rdtsc();
        _mm_lfence();
        ticks
    }
}

/// Nanoseconds of the system's clock, where no counter is known.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
