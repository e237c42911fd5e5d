//! Large runs that were freed a moment ago.
//!
//! A program that allocates and frees a large block in a loop gets the same pages each time, without splitting and
//! merging them in between. Parked runs count as free; whoever finds no warm memory on the lists, wants to extend a
//! run, or gives memory back to the system puts them on the lists first. All have the same length, and one is parked
//! only if the last was as long: where lengths change, none is in the way of what could be merged.

use core::ops::Range;

/// Runs that are parked at most.
const MAX: usize = 4;
/// Pages that a run has at least: smaller ones are blocks of classes, which the per-CPU stacks keep.
const PAGES_MIN: u32 = 65;

pub(super) struct Parked {
    /// All of one length. Newest last; empty ones are at the end.
    runs: [Range<u32>; MAX],
    /// The length of the last run that could have been parked, and of all that are.
    last: u32,
}

impl Parked {
    pub(super) const fn new() -> Parked {
        Parked { runs: [const { 0..0 }; MAX], last: 0 }
    }

    /// Whether a run of `pages`, of which `warm` have memory behind them, could be parked.
    pub(super) fn admits(pages: u32, warm: u32) -> bool {
        pages >= PAGES_MIN && warm == pages
    }

    /// Notes the length of a run that could be parked; whether the last one was as long.
    pub(super) fn comes_again(&mut self, pages: u32) -> bool {
        core::mem::replace(&mut self.last, pages) == pages
    }

    fn len(&self) -> usize {
        self.runs.iter().take_while(|run| !run.is_empty()).count()
    }

    fn remove(&mut self, at: usize) -> Range<u32> {
        let run = core::mem::replace(&mut self.runs[at], 0..0);
        self.runs[at..].rotate_left(1);
        run
    }

    /// Parks a run, which is as long as those that are parked; the oldest makes room for it.
    pub(super) fn put(&mut self, run: Range<u32>) -> Option<Range<u32>> {
        let older = (self.len() == MAX).then(|| self.remove(0));
        let end = self.len();
        self.runs[end] = run;
        older
    }

    /// The newest run of exactly `pages`, at a multiple of `1 << align`.
    pub(super) fn take(&mut self, pages: u32, align: u32) -> Option<u32> {
        if self.last != pages {
            return None;
        }
        let fits = |run: &Range<u32>| !run.is_empty() && run.start.is_multiple_of(1 << align);
        let at = self.runs.iter().rposition(fits)?;
        Some(self.remove(at).start)
    }

    /// Any run.
    pub(super) fn pop(&mut self) -> Option<Range<u32>> {
        let last = self.len().checked_sub(1)?;
        Some(self.remove(last))
    }

    /// Bit n is set if some run has a block of order n in it.
    pub(super) fn orders(&self) -> u32 {
        // Wherever it starts, the largest aligned block in a run has at least a quarter of its pages.
        self.runs[..self.len()].iter().fold(0, |mask, run| mask | 1 << (run.end - run.start).ilog2().saturating_sub(1))
    }

    /// The run that starts at `page`.
    #[cfg(any(test, feature = "debug"))]
    pub(super) fn starting_at(&self, page: u32) -> Option<Range<u32>> {
        self.runs[..self.len()].iter().find(|run| run.start == page).cloned()
    }
}
