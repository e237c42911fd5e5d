//! Huge pages, and memory for large heaps a huge page's worth at a time.
//!
//! ```text
//! a run is wanted, and what is free for it is cold, or some of it:
//!     a heap below 3 MiB      leaves it to page faults
//!     one below 16 MiB        does so unless huge pages are quick, for all it knows
//!     any other               gives memory by one call to a whole unit of 2 MiB, if that is to be a huge page, else to 256 KiB of
//!                             it, or as many as the run has, and takes the run from that
//! ```
//!
//! What is given memory ahead of its use is free and resident, and counted so; it is at most two thirds of a heap of 3 MiB, an eighth of
//! one of 16, and the less the larger it is, and goes back if nobody takes it for a second. One thread of a memory node at a time has a
//! unit made, or a part; others that want one meanwhile go on by page faults. Whether it is a huge page or small ones is decided by
//! what both have taken here so far, the small ones of two runs when the heap had 2 MiB to begin with, and of one in eight where
//! they are the quicker ones and no units are made: a huge page is cleared in a fraction of the time of 512 faults, and spares as
//! many entries of the TLB, but where the system has to move memory about to have one, or a virtual machine has to get it from its
//! host, it takes several times as long. (Such stalls are what huge pages are turned off for.)
//!
//! ```text
//! a mapping has grown, in a heap of 64 MiB:
//!     the first quarter       gets memory unit by unit, of the kind that is quicker
//!     the rest                if four units in a row were quick, and the mapping has 64 MiB: huge pages, by page faults;
//!                             else small ones
//! ```
//!
//! A new block of 2 MiB and more has its units given memory likewise, before it is handed out, if it is expected to be filled
//! ([`filled`](super::filled)), and what is beyond 64 MiB of it is as the rest here.
//!
//! Nobody looks at the clock while the rest is written to, so that what it takes must be foreseeable. It is not on a virtual
//! machine that reports what is free to its host (*free page reporting*): there a huge page takes 0.2 ms if it was in use a
//! moment ago, and 5 ms if the host has taken it, after any number of quick ones. Mappings get small pages there.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::{MARKS, resident};
use crate::latency::{self, SlowPath};
use crate::size_class::PAGE;
use crate::sys;

/// log2 of the pages in a unit.
pub(super) const UNIT_ORDER: u32 = 9;

/// Bytes of a unit.
pub(super) const UNIT: usize = PAGE << UNIT_ORDER;

/// log2 of the pages that are given memory at a time where they are small ones: 256 KiB. All of a unit by one call takes no less
/// time than by eight, and the allocation that comes to it waits for a millisecond and more.
const PART_ORDER: u32 = 6;

/// Parts of a unit.
const PARTS: u32 = 1 << (UNIT_ORDER - PART_ORDER);

/// Resident bytes of a heap that takes memory by units, whatever their kind. Programs of 20 to 70 MiB (`rc_map`, `syn`,
/// `rptest_16t` in `benches/compare`) take 4 to 25 % less time from here on than from 64 MiB, for 1 to 2 % more memory at their
/// peaks.
const LARGE_HEAP: usize = 16 << 20;

/// Resident bytes of a heap that takes memory by huge pages, as long as these are quick. Programs of 10 to 35 MiB (`lru`,
/// `vec_many`, `btree`, `json`, `compiler`) take 5 % less time than with small pages, 10 % at times when a virtual machine's page
/// tables are slow to walk, for up to an eighth more memory at the peaks of those that have little more than this; by units of
/// small pages they would gain nothing. From 2 MiB on it would be another hundredth, but a unit as much as all that is there, and
/// where the system has to look for one, as much time as all before it.
const MEDIUM_HEAP: usize = 3 << 20;

/// Resident bytes of a heap that sees what small pages take.
const SAMPLED_HEAP: usize = 2 << 20;

/// Bytes of a mapping that grows, and of its heap, from which on it gets huge pages.
const LARGE_MAPPING: usize = 64 << 20;

/// Pages of a run, at most, that show what small pages take, and so many runs that do: of one by itself the thread might have been
/// put aside meanwhile.
const SAMPLE: u32 = 16;
const SAMPLES: u32 = 2;

/// Microseconds: a huge page that took no longer is quick, as long as nobody knows what small ones take; 0.8 for each of
/// those.
const SURELY_QUICK: u32 = 400;

/// Huge pages in a row that have each been quick, after which the next ones are expected to be.
const QUICK_IN_A_ROW: u32 = 4;

/// One run in so many shows what small pages take, where these are preferred and come by page faults. (What the system has at hand of
/// them comes to an end: where a virtual machine's host has taken back what is free, those after them take longer than huge pages.)
const SAMPLE_AGAIN: u32 = 8;

/// Calls that the system is spared after it has refused one.
const REFUSED_FOR: u32 = 1024;

/// One unit in so many is of the kind that has been the slower one, to see whether it still is; in parts.
const LOOK_AGAIN: u32 = 128 * PARTS;

/// Whether the system is asked for huge pages.
///
/// On a virtual machine of 2 CPUs, random reads of 512 MiB took 0.8 times as long with huge pages everywhere, and filling it
/// 2.4 times, since the host had few at hand; by default filling took 0.75 times as long as without, and reads 0.9 times
/// (`cargo bench --bench settings`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum HugePages {
    /// For the growth of a heap that has 3 MiB resident already, while they come about as quickly as small ones, and for
    /// blocks of 64 MiB and more that grow, while they take half the time. New blocks of 2 MiB and more get them where those
    /// before them were filled. Smaller heaps, and other blocks beyond 4 MiB, are left to the system's own setting.
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

/// Microseconds that a unit took when it was last given memory, by kind; 0 if none was. And what else is known of how the system
/// gives memory. Relaxed throughout: two threads that are at it at once may both be wrong for a unit.
struct Costs {
    small: AtomicU32,
    huge: AtomicU32,
    /// Parts that have been given memory, of a unit or by themselves.
    parts: AtomicU32,
    /// Runs that have shown what small pages take.
    samples: AtomicU32,
    /// Runs since then that might have.
    passed: AtomicU32,
    /// Times that the system is not asked for memory by a call: it has refused to give any.
    spared: AtomicU32,
}

static COSTS: Costs = Costs::new();

impl Costs {
    const fn new() -> Costs {
        let [small, huge, parts, samples, passed, spared] = [const { AtomicU32::new(0) }; 6];
        Costs { small, huge, parts, samples, passed, spared }
    }

    /// Whether huge pages are to be preferred, by what is known: first a huge page, one small unit when that was not surely
    /// quick, then the quicker kind, with some allowance for what huge pages save later.
    fn prefers_huge(&self) -> bool {
        match (self.small.load(Ordering::Relaxed), self.huge.load(Ordering::Relaxed)) {
            (_, 0) => true,
            (0, huge) => huge <= SURELY_QUICK,
            (small, huge) => huge <= small.saturating_add(small / 2),
        }
    }

    /// Resident bytes from which on a heap takes memory by units.
    fn least_heap(&self, setting: HugePages) -> usize {
        if setting == HugePages::Auto && self.prefers_huge() { MEDIUM_HEAP } else { LARGE_HEAP }
    }

    /// Whether the next unit is to be a huge page, after `before` parts, where it counts as `parts`. While nobody knows what one
    /// takes, which may be long, one thread tries.
    fn is_huge_due(&self, before: u32, parts: u32) -> bool {
        let place = before % LOOK_AGAIN;
        match self.huge.load(Ordering::Relaxed) {
            0 => place < parts,
            _ => self.prefers_huge() != (place + parts >= LOOK_AGAIN),
        }
    }

    /// As [`Costs::is_huge_due`], and it is given memory now.
    fn choose(&self, parts: u32) -> bool {
        self.is_huge_due(self.parts.fetch_add(parts, Ordering::Relaxed), parts)
    }

    /// log2 of the pages that are to be given memory for a run of so many.
    fn order_due(&self, pages: u32) -> u32 {
        let small = pages.next_power_of_two().ilog2().clamp(PART_ORDER, UNIT_ORDER);
        let parts = if self.prefers_huge() { PARTS } else { 1 << (small - PART_ORDER) };
        if self.is_huge_due(self.parts.load(Ordering::Relaxed), parts) { UNIT_ORDER } else { small }
    }

    /// Whether a huge page that took so long took at most half of what small pages do, or surely does.
    fn is_quick(&self, nanos: u64) -> bool {
        let most = match self.small.load(Ordering::Relaxed) {
            0 => SURELY_QUICK,
            small => small / 2,
        };
        nanos / 1000 <= u64::from(most)
    }

    /// Whether the next run is to show what small pages take, before anybody knows what huge ones do.
    fn wants_sample(&self) -> bool {
        self.samples.load(Ordering::Relaxed) < SAMPLES
    }

    /// Whether the next run is to show whether small pages are still quicker, of which nobody makes units.
    fn wants_look(&self) -> bool {
        !self.prefers_huge() && self.passed.fetch_add(1, Ordering::Relaxed) % SAMPLE_AGAIN == SAMPLE_AGAIN - 1
    }

    /// So many small pages took so long. The quicker of the first runs counts; of a later one half, and no more than if it had
    /// taken four times as long as those before it: the thread may have been put aside.
    fn note_sample(&self, pages: u32, nanos: u64) {
        let unit = nanos.saturating_mul(1 << UNIT_ORDER) / u64::from(pages.max(1));
        let unit = (unit / 1000).clamp(1, u32::MAX as u64 / 2) as u32;
        let changed = match self.small.load(Ordering::Relaxed) {
            0 => unit,
            before if self.wants_sample() => unit.min(before),
            before => before / 2 + unit.min(before.saturating_mul(4)) / 2,
        };
        self.small.store(changed.max(1), Ordering::Relaxed);
        self.samples.fetch_add(1, Ordering::Relaxed);
    }

    /// The system has refused to give memory by a call: it has no such call (before Linux 5.14), or had none to give just then.
    /// Where that was to show what a huge page takes, the next unit does.
    fn note_refusal(&self) {
        self.spared.store(REFUSED_FOR, Ordering::Relaxed);
        self.parts.store(0, Ordering::Relaxed);
    }

    /// Whether to do without such calls this time.
    fn spares(&self) -> bool {
        let left = self.spared.load(Ordering::Relaxed);
        if left > 0 {
            self.spared.store(left - 1, Ordering::Relaxed);
        }
        left > 0
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

/// Whether a run of so many pages, for which there is no warm memory, or too little, is to come from a unit that is given memory
/// first.
pub(super) fn is_due(pages: u32) -> bool {
    pages < 1 << UNIT_ORDER && may_populate(COSTS.least_heap(setting()))
}

/// Whether memory may be given by calls, in a heap of so many bytes.
fn may_populate(least_heap: usize) -> bool {
    !MARKS.is_limited() && sys::page_size() == PAGE && resident() >= least_heap && !COSTS.spares()
}

/// Whether the next run without memory is to be given it by [`sample`], before any unit is.
pub(super) fn wants_sample() -> bool {
    is_auto() && (COSTS.wants_sample() || resident() < LARGE_HEAP && COSTS.wants_look()) && may_populate(SAMPLED_HEAP)
}

/// Has `populate` give small pages to the first few of a run's, told how many, and looks at the clock.
pub(super) fn sample(pages: u32, populate: impl FnOnce(u32) -> bool) {
    let pages = pages.min(SAMPLE);
    let began = sys::monotonic_nanos();
    if populate(pages) {
        COSTS.note_sample(pages, sys::monotonic_nanos() - began);
    } else {
        COSTS.note_refusal();
    }
}

/// log2 of the pages that are to be given memory by one call for a run of so many: a unit's, or a part's, which are small ones.
pub(super) fn order_due(pages: u32) -> u32 {
    match setting() {
        HugePages::Never => pages.next_power_of_two().ilog2().clamp(PART_ORDER, UNIT_ORDER),
        // Where everybody gets huge pages, a part would be a unit.
        HugePages::Auto if !system_says(UNASKED) => COSTS.order_due(pages),
        _ => UNIT_ORDER,
    }
}

/// Has `populate` give memory to a unit, of the kind that is due, or to a part, and looks at the clock; false if the system refuses.
/// The range then has small pages for whatever memory it is given later, unless it is by this function.
///
/// # Safety
/// `1 << order` pages from `start` on, a part of a unit at least and a unit at most, are committed and the caller's.
pub(super) unsafe fn populate_unit(start: NonNull<u8>, order: u32, populate: impl FnOnce() -> bool) -> bool {
    let huge = COSTS.choose(1 << (order - PART_ORDER)) && order == UNIT_ORDER && is_auto();
    if huge {
        // SAFETY: the caller's obligation.
        unsafe { sys::advise_huge(start, UNIT, true) };
    }
    let populated = by_the_clock(&COSTS, huge, order, populate).is_some();
    if huge {
        // A page of the unit that is touched when all of it has been given back is one page then, as it is counted, and
        // what lies free between pages in use is not made whole again behind the heap's back.
        // SAFETY: the caller's obligation.
        unsafe { sys::advise_huge(start, UNIT, false) };
    }
    populated
}

/// Has `populate` give memory to a unit, or a part of so many pages, and notes what a unit takes; returns the nanoseconds, or `None`
/// if the system refuses.
fn by_the_clock(costs: &Costs, huge: bool, order: u32, populate: impl FnOnce() -> bool) -> Option<u64> {
    let began = sys::monotonic_nanos();
    if !populate() {
        costs.note_refusal();
        return None;
    }
    let took = (sys::monotonic_nanos() - began) << (UNIT_ORDER - order);
    costs.note(huge, took);
    Some(took)
}

/// Whether it is left to this module who gets huge pages.
pub(super) fn is_auto() -> bool {
    setting() == HugePages::Auto
}

/// Whether a block of so many bytes, which the heap has just now come to have, may be given huge pages, if it is going to be
/// filled: at most twice as much as all else, of pages that are quick.
pub(super) fn may_fill(len: usize) -> bool {
    is_auto() && COSTS.prefers_huge() && system_says(BY_ADVICE) && may_populate(MEDIUM_HEAP.max(len / 2 * 3))
}

/// Gives memory to the units of a new block, of which 64 MiB at most, by huge pages until one was not quick; returns whether
/// what is left of it gets huge pages when it is written to. (It does on the same terms as what a mapping has grown by.)
///
/// # Safety
/// The range is committed and belongs to the caller; if it is of a mapping, all of it.
pub(super) unsafe fn populate_block(start: NonNull<u8>, len: usize) -> bool {
    let _timer = latency::start(SlowPath::Advise);
    let first = sys::addr(start).next_multiple_of(UNIT) - sys::addr(start);
    // Advice is for all of it, as in `populate_growth`. SAFETY: the caller's obligation, here and below.
    unsafe { sys::advise_huge(start, len, true) };
    let (mut at, mut quick) = (first, 0);
    while at + UNIT <= len.min(first + LARGE_MAPPING) && COSTS.prefers_huge() {
        // SAFETY: a unit of the caller's range.
        let took = by_the_clock(&COSTS, true, UNIT_ORDER, || unsafe { sys::populate(start.add(at), UNIT) });
        quick = if took.is_some_and(|took| COSTS.is_quick(took)) { quick + 1 } else { 0 };
        if took.is_none() {
            break;
        }
        at += UNIT;
    }
    let stays = quick >= QUICK_IN_A_ROW && len >= LARGE_MAPPING && !system_says(REPORTS_FREE);
    if !stays {
        // SAFETY: as above.
        unsafe { sys::advise_huge(start, len, false) };
    }
    stays
}

/// What the system says of huge pages, by bits; 0 if it was not asked yet. Relaxed: all who ask are told the same.
static SYSTEM: AtomicU8 = AtomicU8::new(0);

const ASKED: u8 = 1;
/// Who asks for huge pages gets them, and nobody else.
const BY_ADVICE: u8 = 2;
/// Memory that is free is reported to the host of this virtual machine, which takes it away.
const REPORTS_FREE: u8 = 4;
/// Everybody gets huge pages who does not ask for small ones.
const UNASKED: u8 = 8;

fn system_says(what: u8) -> bool {
    let mut known = SYSTEM.load(Ordering::Relaxed);
    if known == 0 {
        let (mut enabled, mut order) = ([0; 64], [0; 16]);
        known = ASKED
            | for_whom(sys::read_file(c"/sys/kernel/mm/transparent_hugepage/enabled", &mut enabled))
            | reports_free(sys::read_file(c"/sys/module/page_reporting/parameters/page_reporting_order", &mut order));
        SYSTEM.store(known, Ordering::Relaxed);
    }
    known & what != 0
}

/// [`BY_ADVICE`], [`UNASKED`] or 0, by the line that has the choice in brackets.
fn for_whom(enabled: &[u8]) -> u8 {
    let chosen = |word: &[u8]| enabled.windows(word.len()).any(|part| part == word);
    if chosen(b"[madvise]") {
        BY_ADVICE
    } else if chosen(b"[always]") {
        UNASKED
    } else {
        0
    }
}

/// [`REPORTS_FREE`] or 0, by the order of the smallest blocks that are reported: a number of ten digits if nothing is.
fn reports_free(order: &[u8]) -> u8 {
    let digits = order.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if (1..=2).contains(&digits) { REPORTS_FREE } else { 0 }
}

/// Has huge pages pass for quick ones, and the system for one that takes nothing away: for tests of what follows from that.
#[cfg(feature = "debug")]
pub(crate) fn assume_quick() {
    COSTS.small.store(u32::MAX / 4, Ordering::Relaxed);
    COSTS.samples.store(SAMPLES, Ordering::Relaxed);
    SYSTEM.store(ASKED | BY_ADVICE, Ordering::Relaxed);
}

/// Gives memory to `more` bytes of a mapping that was `had` bytes long and has grown, and settles which pages the rest gets
/// when it is written to: returns whether huge ones, or `None` if it is left as it was. A refusal is harmless.
///
/// # Safety
/// The mapping is the caller's, `len` bytes long, `had + more` at least; all are multiples of a page.
pub(super) unsafe fn populate_growth(start: NonNull<u8>, len: usize, had: usize, more: usize) -> Option<bool> {
    let to_unit = (sys::addr(start) + had).wrapping_neg() % UNIT;
    let is_due = is_auto()
        && sys::page_size() == PAGE
        && to_unit + UNIT <= more
        && resident() >= LARGE_MAPPING
        && system_says(BY_ADVICE)
        && !system_says(REPORTS_FREE)
        && !COSTS.spares();
    // Advice is for the mapping as a whole: a part with advice of its own would be a mapping of its own to the system, and
    // `mremap` moves one at a time.
    let mut advised = None;
    let mut advise = |huge| {
        if advised != Some(huge) {
            advised = Some(huge);
            // SAFETY: the mapping is the caller's, as long as this; advice leaves its contents alone.
            unsafe { sys::advise_huge(start, len, huge) };
        }
    };
    let populate = |from: usize, to: usize| {
        // SAFETY: `had <= from < to <= had + more <= len`, all multiples of a page: a range of the caller's mapping.
        from == to || unsafe { sys::populate(start.add(from), to - from) }
    };
    let (mut at, end) = (had, had + more);
    if is_due {
        populate(at, at + to_unit);
        at += to_unit;
        let mut quick = 0;
        while at + UNIT <= end {
            let huge = COSTS.choose(PARTS);
            advise(huge);
            let Some(took) = by_the_clock(&COSTS, huge, UNIT_ORDER, || populate(at, at + UNIT)) else { break };
            quick = if huge && COSTS.is_quick(took) { quick + 1 } else { 0 };
            at += UNIT;
        }
        advise(quick >= QUICK_IN_A_ROW && len >= LARGE_MAPPING);
    }
    populate(at, end);
    advised
}

#[cfg(test)]
mod tests;
