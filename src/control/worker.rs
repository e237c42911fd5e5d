//! The thread that gives memory back when nobody uses it, and populates it before somebody does.
//!
//! ```text
//! sleep until a zone has free memory worth a look (or a mark was set), and a quarter of a second more
//! while there is something to watch, four times a second:
//!     free > high:            give back what exceeds it (taken again soon, it raises the mark: `zone/refault.rs`)
//!     once a second:          retire empty slabs that were not needed all second long; give back what was free as long
//!                             (with a low mark: down to high), also of slabs in use
//!                             empty the stacks of CPUs that did nothing all second long; if nobody did anything, give
//!                             back all
//!     free < low:             give memory to free pages, up to high
//!     near the limit, or a watcher says that memory is short:
//!                             drain, expedite deferred frees, give everything back; populate nothing
//! ```
//!
//! "Free all second long" is exact: each zone keeps the least that was free since it was last asked. A program
//! that allocates and frees in a loop brings that down in every turn, and pays for no `madvise`; one that went
//! quiet has all of it given back within two seconds.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use super::pressure;
use super::watch::Watcher;
use crate::percpu;
use crate::slab::{empty, holes, retire, transfer};
use crate::sys;
use crate::zone::{
    BELL, MARKS, RUN_MAX, free_in_zones, free_resident, mapping_cache, nodes, refault, release_from_zones, resident,
};

const TICK: Duration = Duration::from_millis(250);
const TICKS_PER_SECOND: u32 = 4;

/// Free memory below this is left alone.
const NEGLIGIBLE: usize = 512 << 10;

static RUNNING: AtomicBool = AtomicBool::new(false);

/// Whether there is something to watch. Relaxed: a setting.
static WATCHING: AtomicBool = AtomicBool::new(false);

/// Says whether there may be a worker, and whether there is something to watch from the start. Called at initialisation, and
/// once more where settings come later than the first allocation: a worker that is there then sees to them.
pub(crate) fn init(wanted: bool, watching: bool) {
    WATCHING.store(watching, Ordering::Relaxed);
    BELL.set_starter(start);
    BELL.set_wanted(wanted);
    #[cfg(feature = "capi")]
    sys::look_for_threads();
    if wanted && (has_work_from_the_start() || RUNNING.load(Ordering::Relaxed)) {
        BELL.call();
    }
}

/// Whether there is something to do for a worker before anything is freed.
fn has_work_from_the_start() -> bool {
    WATCHING.load(Ordering::Relaxed) || MARKS.low.load(Ordering::Relaxed) > 0
}

/// In the child of a `fork`, which has no worker: the next call starts one, or if there is something to do already the next
/// slow path of an allocation.
pub(crate) fn after_fork() {
    RUNNING.store(false, Ordering::Relaxed);
    sys::Trigger::after_fork();
    BELL.after_fork(has_work_from_the_start());
}

/// Has the worker look at the marks.
pub(crate) fn call() {
    BELL.call();
    start_if_due();
}

/// Starts the worker if one is due that could not be started where that was noticed. Every slow path of allocation
/// comes here, without a lock.
#[inline]
pub(crate) fn start_if_due() {
    if BELL.worker_is_due() && may_start() && BELL.claim_worker() {
        start();
    }
}

/// Where C's `free` is ours a program of one thread stays one, unless something was asked for that takes another.
fn may_start() -> bool {
    #[cfg(feature = "capi")]
    let alone = sys::is_single_threaded();
    #[cfg(not(feature = "capi"))]
    let alone = false;
    !alone || has_work_from_the_start()
}

fn start() {
    // Relaxed: one of several callers starts it.
    if RUNNING.swap(true, Ordering::Relaxed) {
        return;
    }
    if !sys::spawn(c"pcpalloc", run) {
        RUNNING.store(false, Ordering::Relaxed);
        BELL.refused();
    }
}

extern "C" fn run() {
    // To give memory back takes none when none is left.
    sys::warm_stack::<{ 20 << 10 }>();
    let mut second = 0;
    let mut quiet = 0;
    let mut watcher = Watcher::new();
    let (mut stalled, mut short) = (false, false);
    if !has_work_from_the_start() && MARKS.headroom() > 0 {
        // Whoever has freed a megabyte just now may have more to free, and take it again.
        stalled = watcher.wait(TICK);
    }
    loop {
        let rings = BELL.rings();
        if BELL.is_unwanted() {
            RUNNING.store(false, Ordering::Relaxed);
            return;
        }
        if !watcher.is_current() {
            watcher = Watcher::new();
        }
        second = (second + 1) % TICKS_PER_SECOND;
        if second == 0 {
            short = watcher.group_is_short();
        }
        let busy = if stalled || short || MARKS.headroom() == 0 { pressure::relieve() > 0 } else { balance() };
        let busy = busy | (second == 0 && give_back_unused());
        let tolerated = NEGLIGIBLE + MARKS.min.load(Ordering::Relaxed).max(MARKS.low.load(Ordering::Relaxed));
        if busy || free_resident() > tolerated {
            quiet = 0;
        } else {
            quiet += 1;
        }
        // Two seconds with nothing to do, so that every CPU's stacks have been looked at twice.
        let idle = quiet > 2 * TICKS_PER_SECOND && MARKS.low.load(Ordering::Relaxed) == 0;
        let mut nap = TICK;
        if idle && watcher.is_watching() {
            // Nothing to do but to watch: once a second is enough.
            nap = TICK * TICKS_PER_SECOND;
            second = TICKS_PER_SECOND - 1;
        } else if idle {
            quiet = 0;
            BELL.sleep(rings, tolerated);
        }
        stalled = watcher.wait(nap);
    }
}

/// Keeps free memory between the marks; whether it did something.
///
/// Where memory is populated, it is by whole free blocks, so that none is handed out that faults after all; the high
/// mark is kept to within the largest.
fn balance() -> bool {
    let excess = mapping_cache::shrink_to(MARKS.mappings_kept(0));
    let (free, low, high) = (free_in_zones(), MARKS.low.load(Ordering::Relaxed), MARKS.high_now());
    let tolerated = if low > 0 { high.saturating_add(RUN_MAX) } else { high };
    if free + empty::bytes() > tolerated {
        retire::retire_all();
        let released = release_from_zones(free_in_zones().saturating_sub(high));
        refault::ZONES.gave(released);
        return excess + released > 0;
    }
    if low == 0 {
        return excess > 0;
    }
    // Not into the neighbourhood of the limit, where it would be given back again.
    let wanted = high.saturating_sub(free).max(RUN_MAX).min(MARKS.headroom());
    let mut populated = 0;
    for zone in nodes().iter().flat_map(|node| node.zones()) {
        let wanted = wanted.saturating_sub(populated);
        populated += if free < low { zone.populate_free(wanted) } else { zone.populate_partly_warm(wanted) };
    }
    populated > 0
}

/// Gives back what nobody has used for a second; whether it did something.
fn give_back_unused() -> bool {
    let zones = || nodes().iter().flat_map(|node| node.zones());
    let still = zones().all(|zone| zone.is_still());
    let idle = percpu::drain_idle();
    let still = still && idle.everywhere;
    if idle.bytes > 0 {
        transfer::drain();
    }
    let mut retired = if still { retire::retire_all() } else { retire::retire_unused() };
    // Between a low mark and the high one nothing moves: what is given back would be populated again.
    let keep = match MARKS.low.load(Ordering::Relaxed) {
        0 => MARKS.min.load(Ordering::Relaxed),
        _ => MARKS.high_now(),
    };
    let mut may_go = free_in_zones().saturating_sub(keep);
    let mut released = mapping_cache::release_unused();
    refault::MAPPINGS.second_passed(released, resident());
    let mut unused = 0;
    for zone in zones() {
        let surplus = zone.take_surplus();
        // What came out of the stacks and of empty slabs just now has not been used for a second, either; in which zone
        // that is matters to nobody.
        let free = zone.free_warm_bytes();
        let surplus = if still { free } else { (surplus + retired).min(free) }.min(may_go);
        if surplus >= NEGLIGIBLE / 4 {
            let gone = zone.release_free(surplus);
            may_go = may_go.saturating_sub(gone);
            retired = retired.saturating_sub(gone);
            released += gone;
            unused += gone;
        }
    }
    refault::ZONES.second_passed(unused, resident());
    let punched = holes::punch_unused(still);
    idle.bytes > 0 || released > 0 || punched > 0
}
