//! Stopping a CPU's stacks: from the CPU itself, or from elsewhere, which takes a fence.

use core::sync::atomic::{AtomicBool, Ordering};

use super::region::Region;
use super::rseq;
use crate::sys;

/// Whether the kernel may be asked for fences. Relaxed: set before initialisation is announced.
static MAY_FENCE: AtomicBool = AtomicBool::new(true);
/// Whether threads on other CPUs can be fenced. Relaxed: set before initialisation is announced.
static FENCE: AtomicBool = AtomicBool::new(false);

/// Called once, before threads come here. `membarrier`: whether the kernel may be asked for fences.
pub(super) fn init(membarrier: bool) {
    MAY_FENCE.store(membarrier, Ordering::Relaxed);
    FENCE.store(membarrier && sys::register_membarrier(), Ordering::Relaxed);
}

/// Whether membarrier can stop another CPU's threads.
pub(crate) fn fence_available() -> bool {
    FENCE.load(Ordering::Relaxed)
}

/// Whether the settings allow `membarrier`.
pub(crate) fn may_fence() -> bool {
    MAY_FENCE.load(Ordering::Relaxed)
}

/// Stops a CPU, from wherever it can be done. The caller holds the lock of its region.
pub(super) fn stop(cpu: usize, region: &Region) -> bool {
    if FENCE.load(Ordering::Relaxed) { rseq::stop(cpu, region) } else { rseq::stop_here(cpu) }
}

/// Stops the reserves of a CPU, which nothing else stops. The caller holds the lock of its region.
pub(super) fn stop_reserves(cpu: usize, region: &Region) -> bool {
    if FENCE.load(Ordering::Relaxed) { rseq::stop_reserves(cpu, region) } else { rseq::stop_reserves_here(cpu) }
}
