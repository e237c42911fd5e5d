//! What bounds the memory of all zones, as far as this layer needs to know: limit, marks, huge pages; and what
//! is resident, which they are compared with.

use core::ops::Deref;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use super::{META, mapping_cache, nodes, refault};

/// A number that many CPUs write, in a cache line of its own: nobody waits for it who only wants what lies beside it.
#[repr(align(64))]
pub(crate) struct Apart(AtomicUsize);

impl Deref for Apart {
    type Target = AtomicUsize;

    fn deref(&self) -> &AtomicUsize {
        &self.0
    }
}

/// Settings. Relaxed throughout: each stands for itself.
pub(crate) struct Marks {
    /// Most bytes that may be resident; `usize::MAX` is none.
    pub(crate) limit: AtomicUsize,
    pub(crate) min: AtomicUsize,
    pub(crate) low: AtomicUsize,
    /// Free resident bytes above which some are given back at once; 0 follows the heap's size.
    pub(crate) high: AtomicUsize,
    pub(crate) huge_pages: AtomicU8,
    /// Has deferred frees come sooner, where there are any.
    expediter: AtomicPtr<()>,
}

pub(crate) static MARKS: Marks = Marks::new();

/// Bytes of runs handed out that the holder has given back to the system. Relaxed throughout: a statistic.
pub(crate) static HOLES: Apart = Apart(AtomicUsize::new(0));

/// Bytes of runs handed out whose holder keeps them free for whoever needs them. Relaxed throughout: the bound on them is
/// kept to within a slab per thread.
pub(crate) static SPARE: Apart = Apart(AtomicUsize::new(0));

/// Bytes of the heap that are resident, cheaply: runs handed out or warm, mappings, those kept too, and tables by estimate.
pub(crate) fn resident() -> usize {
    let zones: usize = nodes().iter().flat_map(|node| node.zones()).map(|zone| zone.resident_bytes()).sum();
    let zones = zones.saturating_sub(HOLES.load(Ordering::Relaxed));
    zones + zones / 64 + mapping_cache::MAPPED.load(Ordering::Relaxed) + META.resident_estimate()
}

/// Free bytes with memory behind them, empty slabs and mappings that are kept among them.
pub(crate) fn free_resident() -> usize {
    free_in_zones() + SPARE.load(Ordering::Relaxed) + mapping_cache::bytes()
}

/// Free bytes of zones with memory behind them.
pub(crate) fn free_in_zones() -> usize {
    nodes().iter().flat_map(|node| node.zones()).map(|zone| zone.free_warm_bytes()).sum()
}

impl Marks {
    const fn new() -> Marks {
        Marks {
            limit: AtomicUsize::new(usize::MAX),
            min: AtomicUsize::new(0),
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
            huge_pages: AtomicU8::new(0),
            expediter: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != usize::MAX
    }

    /// Whether the heap may grow by `bytes`, for a block of `size`. The last bit before the limit is for small
    /// blocks, so that a program which is refused a large one can still say so.
    pub(crate) fn admits(&self, bytes: usize, size: usize) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == usize::MAX {
            return true;
        }
        let spared = if size > 64 << 10 { (limit / 64).min(1 << 20) } else { 0 };
        resident().saturating_add(bytes) <= limit - spared
    }

    /// Bytes by which the heap may grow until it is near the limit, within a sixteenth of it.
    pub(crate) fn headroom(&self) -> usize {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == usize::MAX { limit } else { (limit - limit / 16).saturating_sub(resident()) }
    }

    /// Has deferred frees come sooner. Makes one system call at most, and allocates nothing.
    pub(crate) fn expedite(&self) {
        let expediter = self.expediter.load(Ordering::Acquire);
        if !expediter.is_null() {
            // SAFETY: `set_expediter` stored a function of this type. Acquire, paired with its release.
            let expediter: fn() = unsafe { core::mem::transmute(expediter) };
            expediter();
        }
    }

    /// Says how deferred frees are expedited.
    pub(crate) fn set_expediter(&self, expediter: fn()) {
        self.expediter.store(expediter as *mut (), Ordering::Release);
    }

    /// The high mark in force: as set, or an eighth of what is resident, but 32 MiB at least, and more where that has proven
    /// too little.
    pub(crate) fn high_now(&self) -> usize {
        match self.high.load(Ordering::Relaxed) {
            0 => (resident() / 8).max(32 << 20) + refault::ZONES.raised().min(self.headroom()),
            high => high,
        }
    }

    /// Most bytes of freed mappings that are kept, when `freed` of those in use now are free: 64 MiB, or an eighth of what is
    /// resident; more where that has proven too little, up to what was in use lately. No more than a high mark that is set
    /// leaves to them, and none that would bring the heap near its limit.
    pub(crate) fn mappings_kept(&self, freed: usize) -> usize {
        let bound = match self.high.load(Ordering::Relaxed) {
            0 => {
                let bound = (resident() / 8).max(64 << 20);
                let raised = bound + refault::MAPPINGS.raised();
                raised.min(mapping_cache::below_most() + freed).max(bound)
            }
            high => high.saturating_sub(free_in_zones()),
        };
        if self.is_limited() { bound.min(self.headroom().saturating_add(mapping_cache::bytes())) } else { bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was taken again raises the mark, but not into the neighbourhood of the limit.
    ///
    /// Red if `high_now` leaves out the headroom.
    #[test]
    fn a_raised_mark_keeps_away_from_the_limit() {
        const MIB: usize = 1 << 20;
        refault::ZONES.gave(200 * MIB);
        refault::ZONES.took(200 * MIB);
        let limit = AtomicUsize::new(resident() + 64 * MIB);
        let marks = Marks { limit, ..Marks::new() };
        // Other tests take memory and free some meanwhile.
        let usual = (resident() / 8).max(32 * MIB);
        assert!(marks.high_now() <= usual + 100 * MIB, "{} MiB", marks.high_now() / MIB);
        refault::ZONES.forget();
    }
}
