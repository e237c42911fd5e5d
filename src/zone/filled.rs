//! Whether a program fills the large blocks that it takes, as far as those tell that it has freed.
//!
//! ```text
//! a block of 256 KiB or more is handed out that has no memory:
//!     two in a row were filled, and it has 2 MiB, and at most twice as much as the rest of the heap:
//!                     its units get huge pages, while these are quick
//!     otherwise:      it gets small pages, when it is written to, and is fresh
//! a fresh block is freed:
//!                     it was filled if its last 2 MiB are resident
//! ```
//!
//! A table of 100 MiB takes 25,000 page faults to be filled, and a TLB is too small for it as long as it is used: huge pages
//! spare both. But a block that is written to here and there would have 2 MiB for each place, and nobody says beforehand what a
//! block is for. What a program does with one it does with the next more often than not: hash tables that grow are the best
//! example. Every eighth block gets small pages whatever those before it were, so that a change is seen.
//!
//! Two kinds of blocks are left alone and tell nothing: those that must read as zero, since much of such a block may never be
//! touched, and those that a longer or shorter block is copied to: what a vector has grown by is filled in part (and its units,
//! where it grows by moving page tables, are `populate_growth`'s).

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use super::huge::{self, UNIT};
use crate::sys;

/// Bytes of a block that tells what the program does with large ones.
const TELLING: usize = 256 << 10;

/// So many blocks in a row were not filled by chance.
const OFTEN: u32 = 2;

/// One block in so many gets small pages, to see whether it is filled.
const LOOK_AGAIN: u32 = 8;

/// What the program has done with its large blocks. Relaxed throughout: hints.
struct Habit {
    /// Blocks in a row that were filled, up to [`OFTEN`].
    filled: AtomicU32,
    /// Blocks of a unit and more that came when it had been so.
    asked: AtomicU32,
}

static HABIT: Habit = Habit::new();

impl Habit {
    const fn new() -> Habit {
        Habit { filled: AtomicU32::new(0), asked: AtomicU32::new(0) }
    }

    /// A block was freed.
    fn note(&self, filled: bool) {
        let in_a_row = if filled { (self.filled.load(Ordering::Relaxed) + 1).min(OFTEN) } else { 0 };
        self.filled.store(in_a_row, Ordering::Relaxed);
    }

    /// Whether the next block will be filled, for all that is known.
    fn expects_filled(&self) -> bool {
        self.filled.load(Ordering::Relaxed) >= OFTEN
            && self.asked.fetch_add(1, Ordering::Relaxed) % LOOK_AGAIN != LOOK_AGAIN - 1
    }
}

/// What a new block is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Whatever the caller writes there.
    Any,
    /// Zeroes.
    Zeroed,
    /// What a block held that it takes the place of, and perhaps more in time.
    Copied,
}

/// What a block has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// Nothing, and [`freed`] is to be told of it, unless its length changes.
    pub fresh: bool,
    /// What is written to first gets huge pages.
    pub huge: bool,
}

/// A block without memory is handed out, whose contents nobody cares for.
///
/// # Safety
/// The range is committed and belongs to the caller; if it is of a mapping, all of it.
pub(crate) unsafe fn handed_out(start: NonNull<u8>, len: usize) -> Given {
    if len < TELLING || !huge::is_auto() {
        return Given { fresh: false, huge: false };
    }
    if len >= UNIT && HABIT.expects_filled() && huge::may_fill(len) {
        // SAFETY: the caller's obligation.
        return Given { fresh: false, huge: unsafe { huge::populate_block(start, len) } };
    }
    Given { fresh: true, huge: false }
}

/// A fresh block is freed.
pub(crate) fn freed(start: NonNull<u8>, len: usize) {
    let looked_at = len.min(UNIT);
    let Some(end) = NonNull::new((sys::addr(start) + len - looked_at) as *mut u8) else { return };
    HABIT.note(sys::resident_bytes(end, looked_at) >= looked_at / 16 * 15);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the next so many blocks are expected to be filled.
    fn expected(habit: &Habit, blocks: usize) -> usize {
        (0..blocks).filter(|_| habit.expects_filled()).count()
    }

    /// Two blocks in a row make a habit, one that was not filled ends it, and one in eight is a look at what goes on.
    ///
    /// Controls: in `note`, keep the count where a block was not filled; in `expects_filled`, leave out either condition.
    #[test]
    fn two_filled_blocks_make_a_habit() {
        let habit = Habit::new();
        assert_eq!(expected(&habit, 80), 0);
        habit.note(true);
        assert_eq!(expected(&habit, 80), 0);
        habit.note(true);
        assert_eq!(expected(&habit, 80), 70);
        habit.note(false);
        habit.note(true);
        assert_eq!(expected(&habit, 80), 0);
        habit.note(true);
        assert_eq!(expected(&habit, 80), 70);
    }
}
