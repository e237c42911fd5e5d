//! Huge pages, and memory for large heaps a huge page's worth at a time.
//!
//! ```text
//! a run is wanted, and all that is free for it is cold:
//!     a heap below 64 MiB     leaves it to page faults
//!     a larger one            gives memory to a whole unit of 2 MiB by one call, and takes the run from that
//! ```
//!
//! What is given memory ahead of its use is free and resident, and counted so; it is at most a thirty-second part of such
//! a heap. Whether the unit is one huge page or 512 small ones is decided by what both have taken here so far: a huge page
//! is cleared in a fraction of the time of 512 faults, and spares as many entries of the TLB, but where the system has to
//! move memory about to have one, or a virtual machine has to get it from its host, it takes several times as long. (Such
//! stalls are what huge pages are turned off for.)

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::{MARKS, resident};
use crate::size_class::PAGE;
use crate::sys;

/// log2 of the pages in a unit.
pub(super) const UNIT_ORDER: u32 = 9;

/// Resident bytes of a heap that is large.
const LARGE_HEAP: usize = 64 << 20;

/// One unit in so many is of the kind that has been the slower one, to see whether it still is.
const LOOK_AGAIN: u32 = 128;

/// Whether the system is asked for huge pages.
///
/// On a virtual machine of 2 CPUs, random reads of 512 MiB took 0.8 times as long with huge pages everywhere, and filling it
/// 2.4 times, since the host had few at hand; by default filling took 0.75 times as long as without, and reads 0.9 times
/// (`cargo bench --bench settings`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum HugePages {
    /// For the growth of a heap that has 64 MiB resident already, while they come about as quickly as small ones; smaller
    /// heaps, and blocks beyond 4 MiB, are left to the system's own setting.
    #[default]
    Auto,
    /// For everything.
    Always,
    /// Nowhere, whatever the system's setting.
    Never,
}

fn setting() -> HugePages {
    // Relaxed: a setting.
    match MARKS.huge_pages.load(Ordering::Relaxed) {
        x if x == HugePages::Always as u8 => HugePages::Always,
        x if x == HugePages::Never as u8 => HugePages::Never,
        _ => HugePages::Auto,
    }
}

/// Asks for huge pages in new address space, or for none, where the setting says so.
///
/// # Safety
/// The range is committed and belongs to the caller.
pub(super) unsafe fn advise(start: NonNull<u8>, len: usize) {
    let setting = setting();
    if setting != HugePages::Auto {
        // SAFETY: the caller's obligation.
        unsafe { sys::advise_huge(start, len, setting == HugePages::Always) };
    }
}

/// Microseconds that a unit took when it was last given memory, by kind; 0 if none was. Relaxed throughout: two threads
/// that are at it at once may both be wrong for a unit.
struct Costs {
    small: AtomicU32,
    huge: AtomicU32,
    units: AtomicU32,
}

static COSTS: Costs = Costs::new();

impl Costs {
    const fn new() -> Costs {
        Costs { small: AtomicU32::new(0), huge: AtomicU32::new(0), units: AtomicU32::new(0) }
    }

    /// Whether huge pages are to be preferred, by what is known: first one of each kind, then the quicker one, with some
    /// allowance for what huge pages save later.
    fn prefers_huge(&self) -> bool {
        match (self.small.load(Ordering::Relaxed), self.huge.load(Ordering::Relaxed)) {
            (_, 0) => true,
            (0, _) => false,
            (small, huge) => huge <= small.saturating_add(small / 2),
        }
    }

    /// Whether the next unit is to be a huge page.
    fn choose(&self) -> bool {
        let unit = self.units.fetch_add(1, Ordering::Relaxed);
        self.prefers_huge() != (unit % LOOK_AGAIN == LOOK_AGAIN - 1)
    }

    /// A unit took so long. One of the preferred kind that was held up, by a preemption say, does not decide by itself.
    fn note(&self, huge: bool, nanos: u64) {
        let kind = if huge { &self.huge } else { &self.small };
        let (before, now) = (kind.load(Ordering::Relaxed), (nanos / 1000).clamp(1, u32::MAX as u64 / 2) as u32);
        let changed = match before {
            0 => now,
            _ if huge == self.prefers_huge() => (before / 4 * 3).saturating_add(now / 4).max(1),
            _ => now,
        };
        kind.store(changed, Ordering::Relaxed);
    }
}

/// Whether the system has refused to give memory by a call. Relaxed: whoever has not heard of it asks again.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether a run of so many pages, for which there is nothing but cold memory, is to come from a unit that is given memory
/// first.
pub(super) fn is_due(pages: u32) -> bool {
    pages < 1 << UNIT_ORDER
        && !REFUSED.load(Ordering::Relaxed)
        && !MARKS.is_limited()
        && sys::page_size() == PAGE
        && resident() >= LARGE_HEAP
}

/// Has `populate` give memory to a unit, of the kind that is due, and looks at the clock; false if the system refuses. The
/// range then has small pages for whatever memory it is given later, unless it is by this function.
///
/// # Safety
/// [`UNIT_ORDER`]'s pages from `start` on are committed and the caller's.
pub(super) unsafe fn populate_unit(start: NonNull<u8>, populate: impl FnOnce() -> bool) -> bool {
    let huge = setting() == HugePages::Auto && COSTS.choose();
    if huge {
        // SAFETY: the caller's obligation.
        unsafe { sys::advise_huge(start, PAGE << UNIT_ORDER, true) };
    }
    let began = sys::monotonic_nanos();
    let populated = populate();
    COSTS.note(huge, sys::monotonic_nanos() - began);
    if huge {
        // A page of the unit that is touched when all of it has been given back is one page then, as it is counted, and
        // what lies free between pages in use is not made whole again behind the heap's back.
        // SAFETY: the caller's obligation.
        unsafe { sys::advise_huge(start, PAGE << UNIT_ORDER, false) };
    }
    if !populated {
        REFUSED.store(true, Ordering::Relaxed);
    }
    populated
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs so many units, of which each kind takes so long; returns how many were huge pages.
    fn run(costs: &Costs, units: u32, small: u64, huge: u64) -> u32 {
        (0..units)
            .filter(|_| {
                let kind = costs.choose();
                costs.note(kind, if kind { huge } else { small });
                kind
            })
            .count() as u32
    }

    /// The quicker kind has all but a few looks at the other, and its place when that changes.
    ///
    /// Red if `choose` never looks again, or `note` keeps what a kind took at first.
    #[test]
    fn the_quicker_kind_is_taken() {
        let costs = Costs::new();
        let huge = run(&costs, 1280, 700_000, 200_000);
        assert!((1268..1280).contains(&huge), "{huge}");
        // The host has no more to give at once.
        let huge = run(&costs, 1280, 700_000, 4_000_000);
        assert!((10..20).contains(&huge), "{huge}");
        let huge = run(&costs, 1280, 700_000, 200_000);
        assert!(huge > 1280 - 2 * LOOK_AGAIN, "{huge}");
        assert!(costs.prefers_huge());
    }

    /// One unit that was held up changes nothing; huge pages that take a little longer are still taken.
    #[test]
    fn a_preemption_does_not_decide() {
        let costs = Costs::new();
        run(&costs, 100, 700_000, 200_000);
        costs.note(true, 3_000_000);
        assert!(costs.prefers_huge());
        let costs = Costs::new();
        assert!(run(&costs, 100, 700_000, 900_000) > 90);
        costs.note(true, u64::MAX);
        costs.note(false, 0);
        run(&costs, 1000, 1, 1);
    }
}
