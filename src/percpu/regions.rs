//! All regions there are: each CPU's, made when it first needs one, and the threads'.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::cpus::{self, cpus};
use super::region::Region;
use super::{observed, rseq, thread};
use crate::lock::Lock;
use crate::sys;

/// Bytes that the stacks of a CPU may hold together. With less, programs that go to and fro between thirty sizes of some
/// KiB have stacks emptied that they need again at once: a quarter of it made two workloads three to five times slower.
pub(super) const CPU_BUDGET: usize = 4 << 20;

/// Each CPU's region, once it has one.
static REGIONS: [AtomicPtr<Region>; sys::MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; sys::MAX_CPUS];
static CREATING: Lock<()> = Lock::new(());

/// The region of a CPU, if it has one.
pub(super) fn region_of(cpu: usize) -> Option<&'static Region> {
    // Acquire, paired with the release in `create_region`. SAFETY: regions live for ever.
    unsafe { REGIONS[cpu].load(Ordering::Acquire).as_ref() }
}

/// The region of the CPU this thread runs on, if it has one.
pub(super) fn region_here() -> Option<&'static Region> {
    rseq::cpu().filter(|&cpu| cpu < cpus()).and_then(region_of)
}

#[cold]
pub(super) fn create_region(cpu: usize) -> Option<&'static Region> {
    let _creating = CREATING.lock();
    if let Some(region) = region_of(cpu) {
        return Some(region);
    }
    let region = Region::new(CPU_BUDGET)?;
    cpus::note_node_here(cpu);
    observed::join(region);
    // Before anybody finds the region, who might stop it, and would be undone by this. Nothing happens there until then:
    // its stacks are empty and have no room, which is given them by whoever finds it. (Such as who observes the heap,
    // charges a reserve or forks: they wait for the lock held here.)
    rseq::start(cpu, region);
    rseq::start_reserves(cpu, region);
    // Release, paired with the acquire in `region_of`: whoever finds the region and stops its CPU does so after the start.
    REGIONS[cpu].store(region as *const Region as *mut Region, Ordering::Release);
    Some(region)
}

/// The lock under which regions are made, for `fork`.
pub(super) fn creation_lock() -> &'static Lock<()> {
    &CREATING
}

/// The regions of all CPUs.
pub(crate) fn cpu_regions() -> impl Iterator<Item = (usize, &'static Region)> {
    (0..cpus()).filter_map(|cpu| Some((cpu, region_of(cpu)?)))
}

/// The regions of all CPUs and threads.
pub(crate) fn regions() -> impl Iterator<Item = &'static Region> {
    (0..cpus()).filter_map(region_of).chain(thread::regions())
}

/// Takes (or gives back) every lock of this layer, so that a child finds none held by a thread it lacks.
///
/// A drain holds a book while its CPU is stopped, so having all books means that all CPUs run. The two locks under
/// which regions are made come first and go last, so that the books given back are the books that were taken.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire {
        CREATING.acquire();
        thread::fork_lock(true);
        regions().for_each(|region| region.book.acquire());
    } else {
        regions().for_each(|region| region.book.release());
        thread::fork_lock(false);
        CREATING.release();
    }
}
