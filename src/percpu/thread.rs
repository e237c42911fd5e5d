//! Per-thread stacks, for where there is no rseq.
//!
//! A thread gets a region when it first needs one, and gives it back when it ends: its blocks to their
//! slabs, the empty region to the next thread. Only its own thread ever operates on a region, so plain loads
//! and stores do; a mark shows a signal handler that it has interrupted such an operation, and it is then
//! served without stacks.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering, compiler_fence};

use super::region::Region;
use crate::lock::Lock;
use crate::size_class::{CLASSES, block_size};
use crate::slab::transfer::Bundle;
use crate::sys::ThreadExit;

/// Bytes that the stacks of a thread may hold together.
const THREAD_BUDGET: usize = 256 << 10;

std::thread_local! {
    /// This thread's region. Constant and without a destructor, so that touching it neither allocates nor
    /// registers anything, and it is there for as long as the thread runs.
    static REGION: Cell<*const Region> = const { Cell::new(null()) };
    /// No region any more: the thread is ending, or could not be promised that its end is noticed.
    static WITHOUT: Cell<bool> = const { Cell::new(false) };
}

static EXIT: ThreadExit = ThreadExit::new();
/// Regions that wait for a thread, linked by `next`.
static SPARE: Lock<Spare> = Lock::new(Spare(null_mut()));
/// Every region ever made, linked by `sibling`, for reports.
static ALL: AtomicPtr<Region> = AtomicPtr::new(null_mut());

struct Spare(*mut Region);
// SAFETY: regions live for ever, and one on the list is nobody's.
unsafe impl Send for Spare {}

/// Called once, before threads come here.
pub(super) fn init() {
    EXIT.create(thread_exit);
}

/// The lock of the list of spare regions, for `fork`. While it is held no region joins the list of all.
pub(super) fn fork_lock(acquire: bool) {
    if acquire { SPARE.acquire() } else { SPARE.release() }
}

/// Every region ever made.
pub(super) fn regions() -> impl Iterator<Item = &'static Region> {
    // Acquire, paired with the release in `enlist`. SAFETY: regions live for ever.
    let first: Option<&'static Region> = unsafe { ALL.load(Ordering::Acquire).as_ref() };
    // SAFETY: as above; a link is written before its region is published.
    core::iter::successors(first, |region| unsafe { region.sibling.load(Ordering::Relaxed).as_ref() })
}

/// Called with the lock of `SPARE` held.
fn enlist(region: &'static Region) {
    let pointer = region as *const Region as *mut Region;
    let mut first = ALL.load(Ordering::Relaxed);
    loop {
        region.sibling.store(first, Ordering::Relaxed);
        // Release, paired with the acquire in `regions`.
        match ALL.compare_exchange_weak(first, pointer, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => first = now,
        }
    }
}

/// Runs `f` with this thread's region, if it has or gets one and is not in the middle of using it.
pub(super) fn with_region<R>(f: impl FnOnce(Option<&'static Region>) -> R) -> R {
    // SAFETY: regions live for ever.
    let region = unsafe { REGION.get().as_ref() }.or_else(attach);
    let Some(region) = region.filter(|region| !region.busy.load(Ordering::Relaxed)) else {
        return f(None);
    };
    // Relaxed, with compiler fences: the only other party is a signal handler on this thread.
    region.busy.store(true, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let result = f(Some(region));
    compiler_fence(Ordering::SeqCst);
    region.busy.store(false, Ordering::Relaxed);
    result
}

/// Runs `f` with this thread's region if it has one and is not in the middle of using it; gets it none, so
/// that nothing is allocated and no lock is taken.
pub(super) fn with_region_at_hand<R>(f: impl FnOnce(&'static Region) -> R) -> Option<R> {
    if REGION.get().is_null() { None } else { with_region(|region| region.map(f)) }
}

#[cold]
fn attach() -> Option<&'static Region> {
    if WITHOUT.get() {
        return None;
    }
    // Set while we are at it, so that whatever the C library allocates for the key comes without a region.
    WITHOUT.set(true);
    let spare = {
        let mut list = SPARE.lock();
        let first = list.0;
        if !first.is_null() {
            // SAFETY: regions live for ever; Relaxed: guarded by the lock.
            list.0 = unsafe { (*first).next.load(Ordering::Relaxed) };
        }
        first
    };
    let region = if spare.is_null() {
        let Some(region) = Region::new(THREAD_BUDGET) else {
            // Without stacks for now; the next operation asks again.
            WITHOUT.set(false);
            return None;
        };
        // Under the lock that `fork` takes before it walks the list.
        let _list = SPARE.lock();
        enlist(region);
        region
    } else {
        // SAFETY: regions live for ever.
        unsafe { &*spare }
    };
    if !EXIT.arm(region as *const Region as *mut c_void) {
        put_aside(region);
        // For want of memory: the next operation asks again. Unless the end of no thread can be noticed.
        WITHOUT.set(!EXIT.is_possible());
        return None;
    }
    REGION.set(region);
    WITHOUT.set(false);
    Some(region)
}

fn put_aside(region: &'static Region) {
    let mut list = SPARE.lock();
    region.next.store(list.0, Ordering::Relaxed);
    list.0 = region as *const Region as *mut Region;
}

/// The thread ends: other destructors may still allocate and free, without stacks.
unsafe extern "C" fn thread_exit(region: *mut c_void) {
    // SAFETY: `attach` armed it with the thread's region.
    let region: &'static Region = unsafe { &*region.cast::<Region>() };
    WITHOUT.set(true);
    REGION.set(null());
    let taken = Bundle::new();
    for class in 0..CLASSES {
        // SAFETY: the thread's own region, of which it has just taken leave.
        unsafe { region.take_all(class, region.base_of(class), &taken) };
    }
    drop(taken);
    // SAFETY: as above.
    unsafe { super::reserve::forget(region) };
    put_aside(region);
}

/// Gives this thread's blocks back; returns the bytes.
pub(super) fn drain() -> usize {
    // SAFETY: regions live for ever.
    let Some(_) = (unsafe { REGION.get().as_ref() }) else { return 0 };
    with_region(|region| {
        region.map_or(0, |region| {
            let taken = Bundle::new();
            // SAFETY: this thread's own region, marked busy.
            let take = |class| unsafe { region.take_all(class, region.base_of(class), &taken) };
            (0..CLASSES).map(|class| take(class) * block_size(class)).sum()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// Threads that get their first region while a fork is under way: none joins the list between the two walks.
    ///
    /// Red if regions are enlisted without the lock of `SPARE`, or if `fork_lock` in `regions.rs` takes that last.
    #[test]
    fn a_fork_gives_back_the_books_that_it_took() {
        crate::heap::ensure_up(&crate::Config::new());
        const THREADS: usize = 6;
        for _ in 0..60 {
            let (barrier, attached) = (Barrier::new(THREADS + 1), Barrier::new(THREADS));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        barrier.wait();
                        assert!(with_region(|region| region.is_some()));
                        // None ends, and leaves a spare region, before all have one.
                        attached.wait();
                    });
                }
                barrier.wait();
                for _ in 0..40 {
                    crate::percpu::fork_lock(true);
                    let before = regions().count();
                    for _ in 0..200 {
                        core::hint::spin_loop();
                    }
                    let taken = regions().all(|region| region.book.try_lock().is_none());
                    let after = regions().count();
                    crate::percpu::fork_lock(false);
                    assert!(taken && before == after, "{before} regions became {after}; all taken: {taken}");
                }
            });
            // The spare regions go, so that the next threads make new ones.
            SPARE.lock().0 = null_mut();
        }
    }
}
