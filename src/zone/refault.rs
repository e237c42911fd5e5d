//! How much of what was given back for being above a bound has been taken from the system again soon after.
//!
//! ```text
//! above the bound:        what goes back is noted
//! memory is taken:        as much as was noted should have stayed: the bound is raised by it
//! once a second:          of what is noted, half is forgotten; what was kept and not used lowers the bound by as much
//! ```
//!
//! A program that frees a gigabyte in every turn of a loop, and takes it again, has most of it given back in the first turn
//! and keeps it from then on, until it goes quiet; one that does so once has it given back at once. After the kernel's
//! refaults (`mm/workingset.c`): a page that comes back soon says how much memory would have kept it.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::counters::COUNTERS;

/// Less than this is forgotten altogether.
const NEGLIGIBLE: usize = 1 << 20;

/// What has come back to one kind of free memory. Relaxed throughout: what two threads do at once may be counted once, and
/// either is a guess at what the program will do next.
pub(crate) struct Refaults {
    /// Bytes that went back for the bound, and have not been taken again.
    given: AtomicUsize,
    /// Bytes by which the bound is raised.
    raised: AtomicUsize,
}

/// Of free pages of zones.
pub(crate) static ZONES: Refaults = Refaults::new();

/// Of freed mappings.
pub(crate) static MAPPINGS: Refaults = Refaults::new();

impl Refaults {
    const fn new() -> Refaults {
        Refaults { given: AtomicUsize::new(0), raised: AtomicUsize::new(0) }
    }

    /// So many bytes have gone back because they were above the bound.
    pub(crate) fn gave(&self, bytes: usize) {
        if bytes > 0 {
            self.given.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// So many bytes were taken from the system.
    #[inline]
    pub(super) fn took(&self, bytes: usize) {
        let given = self.given.load(Ordering::Relaxed);
        if given > 0 && bytes > 0 {
            self.regret(given, given.min(bytes));
        }
    }

    /// Some of what has gone back should have stayed.
    #[cold]
    fn regret(&self, given: usize, bytes: usize) {
        self.given.store(given - bytes, Ordering::Relaxed);
        self.raised.fetch_add(bytes, Ordering::Relaxed);
        COUNTERS.refaulted.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes by which the bound is raised. (Where there is no worker to give back what nobody uses, whoever frees gives back
    /// what exceeds the mark that is not raised: nothing is noted there, of pages.)
    pub(super) fn raised(&self) -> usize {
        self.raised.load(Ordering::Relaxed)
    }

    /// A second has passed, in which so many bytes that were kept were not used; there are `most`.
    pub(crate) fn second_passed(&self, unused: usize, most: usize) {
        let given = self.given.load(Ordering::Relaxed);
        if given > 0 {
            self.given.store(if given < NEGLIGIBLE { 0 } else { given / 2 }, Ordering::Relaxed);
        }
        let raised = self.raised.load(Ordering::Relaxed);
        self.raised.store(raised.saturating_sub(unused).min(most), Ordering::Relaxed);
    }

    /// Memory is short: the bound is not raised any more.
    pub(crate) fn forget(&self) {
        self.given.store(0, Ordering::Relaxed);
        self.raised.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// What is taken again counts once, and the less the later; what was kept for it and not used does not count any more.
    ///
    /// Controls: leave `given` as it is in `regret`, or in `second_passed`; leave `unused` or `most` out of account there.
    #[test]
    fn what_comes_back_soon_counts() {
        let refaults = Refaults::new();
        refaults.took(5 * MIB);
        refaults.gave(100 * MIB);
        refaults.took(60 * MIB);
        refaults.took(60 * MIB);
        refaults.took(60 * MIB);
        assert_eq!(refaults.raised(), 100 * MIB);
        refaults.gave(64 * MIB);
        refaults.second_passed(30 * MIB, usize::MAX);
        assert_eq!(refaults.raised(), 70 * MIB);
        refaults.took(64 * MIB);
        assert_eq!(refaults.raised(), 102 * MIB);
        refaults.gave(64 * MIB);
        (0..8).for_each(|_| refaults.second_passed(0, usize::MAX));
        refaults.took(64 * MIB);
        assert_eq!(refaults.raised(), 102 * MIB);
        refaults.second_passed(0, 9 * MIB);
        assert_eq!(refaults.raised(), 9 * MIB);
        refaults.forget();
        assert_eq!(refaults.raised(), 0);
    }
}
