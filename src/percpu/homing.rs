//! Blocks of less than a cache line that have come to another CPU with their thread are sent home.
//!
//! A shard has slabs of such blocks to itself so that no two CPUs write to one line (`slab/shard.rs`). But when a thread
//! moves to another CPU its blocks come along, are freed there and handed out again there, while their neighbours in the line
//! are in use where they came from. Nothing ends that: a thread that replaces what it has, one block at a time, never fills
//! a stack, and what is on top of a stack is what it gets. Two threads that had changed places took longer from then on
//! (`larson_2t` in `benches/compare`).
//!
//! So a CPU looks at its frees now and then. While it does, pushes of such blocks miss, as all do where frees are diverted
//! (`observed.rs`), and the slow path puts a block that is at home here on the stack, and others back into their slabs. Not larger
//! ones: shards lend each other slabs of these, so that where a block is at home changes from one free to the next.
//!
//! ```text
//!            quiet, and the pause is over
//!    pause ────────────────────────────────▶ look at WINDOW frees, and again
//!      ▲       few are left: half the pause            │
//!      │  no fewer than before: twice the pause        │
//!      └───────────────────────────────────────────────┘
//! ```
//!
//! What threads pass on to each other is foreign, too, but had better stay where it is and go back by batches. A CPU that frees
//! what another allocates has its stacks run full all the time: it is not quiet. And of those that take from each other as much
//! as they give, foreign blocks become no fewer by sending them home. Nor do they where there are so many blocks that
//! two windows see few of them: but such do not lie in two processors' caches at once.
//!
//! A free that is looked at is a visit to the slow path, and one of a foreign block takes the lock of its slabs, whose lines are in
//! another processor's cache. So a pause is sixteen times as long as the look before it took, and four times as long as that if
//! the look was in vain, between two milliseconds and a second.

use core::sync::atomic::Ordering;

use super::choice::{Mode, mode};
use super::pace::{Look, WINDOW};
use super::region::{Book, Region};
use crate::size_class::{CLASS, CLASSES};
use crate::slab::shard::Division;
use crate::sys;

impl Region {
    /// Whether this CPU looks at its frees of blocks that share lines.
    #[inline(always)]
    pub(super) fn is_looking(&self) -> bool {
        self.look.is_on.load(Ordering::Relaxed)
    }

    /// Notes a visit to the slow path, and begins to look if it is time. The region is a CPU's or a thread's.
    pub(super) fn note_visit(&self, book: &mut Book) {
        // Threads' stacks go with them; and where such blocks are in common to all CPUs none is foreign.
        let there_are_homes = Division::Small.per_node() > 1 && mode() != Mode::PerThread;
        if there_are_homes && !self.is_looking() && book.pace.begins(sys::monotonic_nanos) {
            self.set_look(book, true);
        }
    }

    /// Notes that this CPU has freed such a block while it looks.
    pub(super) fn note_seen(&self, is_foreign: bool) {
        let Look { seen, foreign, .. } = &self.look;
        let foreign_now = foreign.load(Ordering::Relaxed) + is_foreign as u32;
        let seen_now = seen.load(Ordering::Relaxed) + 1;
        foreign.store(foreign_now, Ordering::Relaxed);
        seen.store(seen_now, Ordering::Relaxed);
        if seen_now < WINDOW {
            return;
        }
        // Somebody else is at it: the next free concludes.
        let Some(mut book) = self.book.try_lock() else { return };
        seen.store(0, Ordering::Relaxed);
        foreign.store(0, Ordering::Relaxed);
        if !book.pace.goes_on(foreign_now, sys::monotonic_nanos) {
            self.set_look(&book, false);
        }
    }

    fn set_look(&self, book: &Book, on: bool) {
        self.look.is_on.store(on, Ordering::Relaxed);
        (0..CLASSES).filter(|&class| CLASS[class].shares_lines()).for_each(|class| self.show_limit(book, class));
    }
}
