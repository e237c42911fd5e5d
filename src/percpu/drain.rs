//! Taking the contents of stacks away: one CPU's from any thread, this thread's own, or all.

use core::sync::atomic::{AtomicBool, Ordering};

use super::region::Region;
use super::slow::region_of;
use super::{Mode, cpus, mode, rseq, slow, thread};
use crate::size_class::{CLASSES, block_size};
use crate::slab::transfer::{self, Bundle};
use crate::zone::{COUNTERS, MARKS, release};

/// Whether threads on other CPUs can be fenced. Relaxed: set before initialisation is announced.
static FENCE: AtomicBool = AtomicBool::new(false);

pub(super) fn init(fence: bool) {
    FENCE.store(fence, Ordering::Relaxed);
}

pub(super) fn fence_available() -> bool {
    FENCE.load(Ordering::Relaxed)
}

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
    let _book = region.book.lock();
    if !stop(cpu, region) {
        return CpuDrain::Unreachable;
    }
    region.counters.drains.fetch_add(1, Ordering::Relaxed);
    let taken = Bundle::new();
    // SAFETY: the CPU is stopped and the lock held.
    let bytes = (0..CLASSES).map(|class| unsafe { region.take_all(class, &taken) } * block_size(class)).sum();
    rseq::start(cpu, region);
    drop(taken);
    CpuDrain::Drained(bytes)
}

/// Stops a CPU, from wherever it can be done. The caller holds the lock of its region.
pub(super) fn stop(cpu: usize, region: &Region) -> bool {
    if FENCE.load(Ordering::Relaxed) { rseq::stop(cpu, region) } else { rseq::stop_here(cpu) }
}

/// Stops the reserves of a CPU, which nothing else stops. The caller holds the lock of its region.
pub(super) fn stop_reserves(cpu: usize, region: &Region) -> bool {
    if FENCE.load(Ordering::Relaxed) { rseq::stop_reserves(cpu, region) } else { rseq::stop_reserves_here(cpu) }
}

/// Empties the calling thread's own stacks, in per-thread mode; returns the bytes.
pub(crate) fn drain_thread() -> usize {
    if mode() == Mode::PerThread { thread::drain() } else { 0 }
}

/// Brings together what lies in stacks and batches, since it may make whole runs; and where a limit keeps the
/// heap from growing, gives back what is free elsewhere.
pub(crate) fn reclaim() {
    COUNTERS.stalls.fetch_add(1, Ordering::Relaxed);
    drain_all();
    transfer::drain();
    MARKS.expedite();
    if MARKS.is_limited() {
        release(usize::MAX);
    }
}

/// Empties the stacks of CPUs on which nothing has changed since this was last called; returns the bytes.
pub(crate) fn drain_idle() -> usize {
    if mode() == Mode::PerThread {
        return 0;
    }
    let mut bytes = 0;
    for (cpu, region) in cpu_regions() {
        let fingerprint = region.fingerprint();
        // Relaxed: only the worker looks.
        if region.seen.swap(fingerprint, Ordering::Relaxed) == fingerprint
            && region.cached_now_ordinary() > 0
            && let CpuDrain::Drained(drained) = drain_cpu(cpu)
        {
            bytes += drained;
            region.seen.store(region.fingerprint(), Ordering::Relaxed);
        }
    }
    bytes
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

/// The regions of all CPUs.
pub(crate) fn cpu_regions() -> impl Iterator<Item = (usize, &'static Region)> {
    (0..cpus()).filter_map(|cpu| Some((cpu, region_of(cpu)?)))
}

/// The regions of all CPUs and threads.
pub(crate) fn regions() -> impl Iterator<Item = &'static Region> {
    (0..cpus()).filter_map(region_of).chain(thread::regions())
}

impl Region {
    /// Blocks in all ordinary stacks, and how many there is room for.
    pub(crate) fn blocks(&self) -> (usize, usize) {
        let book = self.book.lock();
        let count = (0..CLASSES).map(|class| self.count(&book.stacks[class], class)).sum();
        (count, book.stacks.iter().map(|stack| stack.capacity as usize).sum())
    }

    /// Bytes in the stacks that a drain would empty.
    fn cached_now_ordinary(&self) -> usize {
        let book = self.book.lock();
        (0..CLASSES).map(|class| self.count(&book.stacks[class], class) * block_size(class)).sum()
    }

    /// Bytes in the stacks of a region that others use meanwhile.
    fn cached_now(&self) -> usize {
        let book = self.book.lock();
        let blocks = |class| self.count(&book.stacks[class], class) + self.reserve_count(&book.reserves[class], class);
        (0..CLASSES).map(|class| blocks(class) * block_size(class)).sum()
    }
}

/// Takes (or gives back) every lock of this layer, so that a child finds none held by a thread it lacks.
///
/// A drain holds a book while its CPU is stopped, so having all books means that all CPUs run. The two locks under
/// which regions are made come first and go last, so that the books given back are the books that were taken.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire {
        slow::creation_lock().acquire();
        thread::fork_lock(true);
        regions().for_each(|region| region.book.acquire());
    } else {
        regions().for_each(|region| region.book.release());
        thread::fork_lock(false);
        slow::creation_lock().release();
    }
}
