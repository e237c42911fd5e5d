//! Taking the contents of stacks away: one CPU's from any thread, this thread's own, or all.

use core::sync::atomic::Ordering;

use super::choice::{Mode, mode};
use super::cpus::cpus;
use super::fence::stop;
use super::region::Region;
use super::regions::{cpu_regions, region_of, regions};
use super::{rseq, thread};
use crate::latency::{self, SlowPath};
use crate::size_class::{CLASSES, block_size};
use crate::slab::transfer::{self, Bundle};
use crate::slab::{holes, retire};
use crate::zone::{COUNTERS, MARKS, mapping_cache, release};

/// What became of a CPU's stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuDrain {
    /// Emptied; this many bytes went back to their slabs.
    Drained(usize),
    /// Left as they are: there is no way to stop that CPU's threads from here.
    Unreachable,
}

/// Empties the stacks of a CPU, from whatever thread.
///
/// ```text
/// lock the region's book
/// TABLE[cpu] = 0; fence the CPU            // its threads now find every stack empty and full
/// take everything
/// TABLE[cpu] = region                      // and find their stacks again
/// ```
pub(crate) fn drain_cpu(cpu: usize) -> CpuDrain {
    if mode() == Mode::PerThread {
        return CpuDrain::Drained(0);
    }
    let Some(region) = (cpu < cpus()).then(|| region_of(cpu)).flatten() else {
        return CpuDrain::Drained(0);
    };
    let _timer = latency::start(SlowPath::Drain);
    let book = region.book.lock();
    if !stop(cpu, region) {
        return CpuDrain::Unreachable;
    }
    region.counters.drains.fetch_add(1, Ordering::Relaxed);
    let taken = Bundle::new();
    // SAFETY: the CPU is stopped and the lock held.
    let take = |class: usize| unsafe { region.take_all(class, book.stacks[class].base, &taken) };
    let bytes = (0..CLASSES).map(|class| take(class) * block_size(class)).sum();
    rseq::start(cpu, region);
    drop(taken);
    CpuDrain::Drained(bytes)
}

/// Empties the calling thread's own stacks, in per-thread mode; returns the bytes.
pub(crate) fn drain_thread() -> usize {
    if mode() == Mode::PerThread { thread::drain() } else { 0 }
}

/// Brings together what lies in stacks and batches, since it may make whole runs; and where a limit keeps the
/// heap from growing, gives back what is free elsewhere; mappings that are kept in any case, since their address space
/// may be what is short.
pub(crate) fn reclaim() {
    COUNTERS.stalls.fetch_add(1, Ordering::Relaxed);
    drain_all();
    transfer::drain();
    retire::retire_all();
    MARKS.expedite();
    mapping_cache::release(usize::MAX);
    if MARKS.is_limited() {
        release(usize::MAX);
        holes::punch_all();
    }
}

/// What [`drain_idle`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Idle {
    /// Bytes of the blocks that went back to their slabs.
    pub bytes: usize,
    /// Whether nothing has changed on any CPU.
    pub everywhere: bool,
}

/// Empties the stacks of CPUs on which nothing has changed since this was last called.
pub(crate) fn drain_idle() -> Idle {
    let mut idle = Idle { bytes: 0, everywhere: mode() != Mode::PerThread };
    for (cpu, region) in cpu_regions() {
        let fingerprint = region.fingerprint();
        // Relaxed: only the worker looks.
        if region.seen.swap(fingerprint, Ordering::Relaxed) != fingerprint {
            idle.everywhere = false;
        } else if region.cached_now_ordinary() > 0
            && let CpuDrain::Drained(drained) = drain_cpu(cpu)
        {
            idle.bytes += drained;
            region.seen.store(region.fingerprint(), Ordering::Relaxed);
        }
    }
    idle
}

/// Empties every stack that can be reached; returns the bytes.
fn drain_all() -> usize {
    let cpus = (0..cpus()).map(|cpu| match drain_cpu(cpu) {
        CpuDrain::Drained(bytes) => bytes,
        CpuDrain::Unreachable => 0,
    });
    cpus.sum::<usize>() + drain_thread()
}

/// Bytes of blocks in all stacks.
pub(crate) fn cached_bytes() -> usize {
    regions().map(Region::cached_now).sum()
}
