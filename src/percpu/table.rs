//! Where the sections find the stacks of a CPU, and how these are taken away from them and given back.
//!
//! `TABLE[cpu]` is the distance from `STOPPED` to the CPU's region, so 0, which is what the table starts as
//! and what a stopped CPU has, leads to headers that are empty and full at once. One addition thus answers
//! at no cost whether the heap is initialised, the thread registered and the CPU running. The table has
//! entries -1 and -2 for threads without rseq, and its entry is loaded inside the section: a value from
//! before `start` would survive a preemption and a fence, and be stale after them.
//!
//! The ordering of what other CPUs do, for architectures that order less than x86-64 does:
//!
//! - *A section finds the region as whoever started its CPU left it.* [`start`] stores the entry with release. The
//!   section loads it plainly, and every further load and store of the section has an address that was computed from
//!   it, or from what was loaded from such an address: table entry, header, `top`, the block below it. Loads that
//!   depend on each other so are not reordered on any architecture that this crate has sections for.
//! - *Sections of one CPU see each other's stores*, whichever threads they belong to: a processor sees its own stores in
//!   order. What a thread stored before it came to this CPU it finds there, and others after it: the kernel's change
//!   of tasks has a full barrier on either side (Linux `Documentation/scheduler/membarrier.rst`,
//!   `smp_mb__after_spinlock` in `__schedule`).
//! - *Whoever stops a CPU finds what its sections left.* After [`stop`] that is the fence, a full barrier on that CPU
//!   and on this, in that order: stores that came before it there are visible to loads that come after it here. After
//!   `stop_here` it is the processor's own order, or the change of tasks if the thread moves on.
//! - *What a block contains* goes the same ways as the stack that it is on: the last use of a block comes before the push
//!   in program order, and the first use after the pop.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::hidden::are_hidden;
use super::region::{HEADERS, Region};
use super::stopped::{STOPPED, StoppedHeader};
use crate::sys;

/// Entries before that of CPU 0.
const UNREGISTERED: usize = 2;

/// Distance from `STOPPED` to each CPU's region; 0 while it has none or is stopped. In cache lines of its own, and those that
/// processors fetch along with them, since every section reads it.
#[repr(align(128))]
pub(super) struct Table([AtomicUsize; sys::MAX_CPUS + UNREGISTERED]);
pub(super) static TABLE: Table = Table([const { AtomicUsize::new(0) }; sys::MAX_CPUS + UNREGISTERED]);
/// What the slow path uses in place of `TABLE` in a heap whose stacks are hidden, where no CPU has an entry in that.
static HIDDEN: Table = Table([const { AtomicUsize::new(0) }; sys::MAX_CPUS + UNREGISTERED]);
/// The same for the reserves of each CPU, which a charge stops and nothing else: a drain, or whoever is preempted
/// in the middle of one, does not keep nolock allocation from them.
pub(super) static RESERVES: Table = Table([const { AtomicUsize::new(0) }; sys::MAX_CPUS + UNREGISTERED]);

impl Table {
    /// Entry 0.
    #[inline(always)]
    pub(super) fn entries(&self) -> *const AtomicUsize {
        &self.0[UNREGISTERED]
    }
}

#[inline(always)]
pub(super) fn stopped(class: usize) -> *const StoppedHeader {
    debug_assert!(class < HEADERS);
    // SAFETY: indices of stacks are smaller than HEADERS.
    unsafe { STOPPED.headers.get_unchecked(class) }
}

/// Stops `cpu` from anywhere; false if its threads cannot be fenced, and it is running as before.
///
/// The caller holds the lock of the CPU's region, and starts the CPU again.
pub(super) fn stop(cpu: usize, region: &Region) -> bool {
    stop_in(table(), cpu, region)
}

/// As [`stop`], for the reserves of the CPU alone.
pub(super) fn stop_reserves(cpu: usize, region: &Region) -> bool {
    stop_in(&RESERVES, cpu, region)
}

fn stop_in(table: &Table, cpu: usize, region: &Region) -> bool {
    // Relaxed: the fence orders it before everything that its return promises.
    table.0[UNREGISTERED + cpu].store(0, Ordering::Relaxed);
    if sys::fence_cpu(cpu) {
        return true;
    }
    start_in(table, cpu, region);
    false
}

/// Lets the threads of `cpu` use its region, for the first time or again.
pub(super) fn start(cpu: usize, region: &Region) {
    start_in(table(), cpu, region);
}

/// As [`start`], for the reserves of the CPU alone.
pub(super) fn start_reserves(cpu: usize, region: &Region) {
    start_in(&RESERVES, cpu, region);
}

fn start_in(table: &Table, cpu: usize, region: &Region) {
    let distance = (region as *const Region as usize).wrapping_sub(&raw const STOPPED as usize);
    // Release, paired with the loads of the entry in the sections, which depend on it: whoever finds the
    // region finds it as the caller left it.
    table.0[UNREGISTERED + cpu].store(distance, Ordering::Release);
}

/// Stops `cpu` without seeing to those who are inside a section there: for a test of what the fence is for.
#[cfg(feature = "debug")]
pub(super) fn stop_without_fence(cpu: usize) {
    TABLE.0[UNREGISTERED + cpu].store(0, Ordering::Relaxed);
}

/// Whether the CPU's stacks can be found, and its reserves.
#[cfg(feature = "debug")]
pub(super) fn is_running(cpu: usize) -> (bool, bool) {
    let running = |table: &Table| table.0[UNREGISTERED + cpu].load(Ordering::Relaxed) != 0;
    (running(&TABLE), running(&RESERVES))
}

/// Where the slow path finds the CPUs' stacks.
#[inline(always)]
pub(super) fn table() -> &'static Table {
    if are_hidden() { &HIDDEN } else { &TABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red without the alignment.
    #[test]
    fn a_table_shares_no_line_with_anything() {
        for table in [&TABLE, &HIDDEN, &RESERVES] {
            assert!((&raw const *table as usize).is_multiple_of(128) && size_of_val(table).is_multiple_of(128));
        }
    }
}
