//! When a CPU looks at its frees of blocks that share lines, and for how long: what `homing.rs` goes by.

use core::sync::atomic::{AtomicBool, AtomicU32};

/// Visits to the slow path from one look at the clock to the next.
const VISITS: u8 = 2;
/// Nanoseconds that so many visits take on a quiet CPU, at least.
const QUIET: u64 = 250_000;
/// Frees that are looked at before anything is concluded from them.
pub(super) const WINDOW: u32 = 2048;
/// So many foreign ones in a window are not worth looking for.
const FEW: u32 = WINDOW / 32;
/// The shortest pause, in nanoseconds.
const SHORTEST: u64 = 2_000_000;
/// The longest.
const LONGEST: u64 = 1_000_000_000;
/// How many times as long as the look before it a pause is, at least: of one that found what there was.
const AFTER_SUCCESS: u64 = 16;
/// And of one in vain.
const AFTER_FAILURE: u64 = 64;

/// What a CPU sees that looks at its frees. All zero is a valid value.
///
/// Relaxed throughout, and no read-modify-writes: a free that two threads count as one makes a window longer by one.
#[derive(Default)]
pub(super) struct Look {
    pub(super) is_on: AtomicBool,
    /// Frees looked at in this window.
    pub(super) seen: AtomicU32,
    /// Those of blocks from other shards.
    pub(super) foreign: AtomicU32,
}

/// When to look. All zero is a valid value.
#[derive(Default)]
pub(super) struct Pace {
    visits: u8,
    /// Foreign blocks in the window before; in the first one of a look, more than there can be.
    before: u32,
    /// When the clock was last read. All times are in nanoseconds.
    read_at: u64,
    /// When the look began.
    began: u64,
    /// How long the last pause was.
    pause: u64,
    /// When the pause is over.
    due: u64,
}

impl Pace {
    /// Notes a visit to the slow path; whether it is time to look.
    pub(super) fn begins(&mut self, now: impl FnOnce() -> u64) -> bool {
        self.visits = (self.visits + 1) % VISITS;
        if self.visits != 0 {
            return false;
        }
        let now = now();
        let quiet = self.read_at != 0 && now - self.read_at >= QUIET;
        self.read_at = now;
        if quiet && now >= self.due {
            (self.before, self.began) = (u32::MAX, now);
            return true;
        }
        false
    }

    /// Notes that `foreign` blocks have been seen in a window; whether to look at another one.
    pub(super) fn goes_on(&mut self, foreign: u32, now: impl FnOnce() -> u64) -> bool {
        let is_first = self.before == u32::MAX;
        let are_fewer = foreign < self.before - self.before / 16;
        self.before = foreign;
        if foreign >= FEW && are_fewer {
            return true;
        }
        let now = now();
        let took = now - self.began;
        let pause = if are_fewer && !is_first {
            (self.pause / 2).max(AFTER_SUCCESS * took)
        } else {
            (2 * self.pause).max(AFTER_FAILURE * took)
        };
        self.pause = pause.clamp(SHORTEST, LONGEST);
        self.due = now + self.pause;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that comes to the slow path [`VISITS`] times in so long, again and again; how many times until it looks.
    fn rounds(pace: &mut Pace, clock: &mut u64, nanos: u64) -> Option<usize> {
        (1..10_000).find(|_| {
            *clock += nanos;
            (0..VISITS).any(|_| pace.begins(|| *clock))
        })
    }

    /// Red if `begins` does not ask whether the CPU is quiet, or whether the pause is over.
    #[test]
    fn who_is_quiet_looks() {
        let (mut pace, mut clock) = (Pace::default(), 1 << 40);
        pace.read_at = clock;
        assert_eq!(rounds(&mut pace, &mut clock, QUIET - 1), None);
        assert_eq!(rounds(&mut pace, &mut clock, QUIET), Some(1));
        assert!(!pace.goes_on(0, || clock));
        assert_eq!(rounds(&mut pace, &mut clock, QUIET), Some((SHORTEST / QUIET) as usize));
    }

    /// What moved home once is soon all at home; what flows is not looked at for ever, and ever more seldom.
    ///
    /// Red if `goes_on` does not compare with the window before, or the pause stays as it is.
    #[test]
    fn what_becomes_no_less_is_left_alone() {
        let (mut pace, mut clock) = (Pace::default(), 1 << 40);
        let mut pauses = Vec::new();
        let flow = [WINDOW, WINDOW - 10];
        for _ in 0..12 {
            assert!(rounds(&mut pace, &mut clock, QUIET).is_some());
            assert_eq!(flow.map(|foreign| pace.goes_on(foreign, || clock)), [true, false]);
            pauses.push(pace.due - clock);
        }
        assert_eq!((pauses[0], pauses[1]), (SHORTEST, 2 * SHORTEST));
        assert_eq!(pauses[11], LONGEST);
        let moved = [1200, 600, 300, 150, 75, 30];
        assert!(rounds(&mut pace, &mut clock, QUIET).is_some());
        assert_eq!(moved.map(|foreign| pace.goes_on(foreign, || clock)), [true, true, true, true, true, false]);
        assert_eq!(pace.due - clock, LONGEST / 2);
        // Nothing to be found at all is no reason to look again soon.
        assert!(rounds(&mut pace, &mut clock, QUIET).is_some());
        assert!(!pace.goes_on(0, || clock));
        assert_eq!(pace.due - clock, LONGEST);
    }

    /// Red if the pause does not go by how long the look took.
    #[test]
    fn looks_take_a_small_part_of_the_time() {
        for (foreign, times) in [([1000, 10], AFTER_SUCCESS), ([1000, 1000], AFTER_FAILURE)] {
            let (mut pace, mut clock) = (Pace { read_at: 1, ..Pace::default() }, 1 << 40);
            assert!(rounds(&mut pace, &mut clock, QUIET).is_some());
            clock += SHORTEST;
            assert_eq!(foreign.map(|foreign| pace.goes_on(foreign, || clock)), [true, false]);
            assert_eq!(pace.due - clock, times * SHORTEST);
        }
    }
}
