//! One more stack per CPU, of words that mean something to the layer above: its arrays come from there, are
//! filled here, and are exchanged for empty ones when full or when they have been there long enough.

use core::sync::atomic::Ordering;

use super::drain::{fence_available, stop};
use super::region::{DEFERRED, Region};
use super::slow::{create_region, region_of};
use super::stopped::NOTHING;
use super::{Mode, cpus, mode, rseq};

/// An array for the stack: empty if it is given, what it holds if it is returned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array {
    pub base: *mut usize,
    /// Behind the last word in use.
    pub top: *mut usize,
    pub limit: *mut usize,
}

impl Array {
    /// No array: every push finds it full.
    pub(crate) fn none() -> Array {
        let end = (&raw const NOTHING).cast_mut().wrapping_add(1);
        Array { base: end, top: end, limit: end }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.base == self.limit
    }

    pub(crate) fn len(&self) -> usize {
        (self.top as usize - self.base as usize) / size_of::<usize>()
    }
}

/// Pushes a word; false if this CPU's array is full, or there is none.
#[inline(always)]
pub(crate) fn push_deferred(word: usize) -> bool {
    // SAFETY: a word on this stack is not a block; what it means is the caller's affair.
    unsafe { rseq::push(DEFERRED, word) }
}

/// Whether arrays can be had back from every CPU. If not, none should be given.
pub(crate) fn deferred_available() -> bool {
    mode() != Mode::PerThread && fence_available()
}

/// Puts another array on the CPU this thread runs on, and passes the one that was there to `then`; `None` if
/// that could not be done just now.
///
/// `then` runs under the lock of the CPU's region, which [`deferred_count`] takes, too: whoever looks at the CPU
/// finds a word either here or where `then` has put it. It must not allocate.
pub(crate) fn exchange_here<R>(array: Array, then: impl FnOnce(Array) -> R) -> Option<R> {
    let cpu = rseq::cpu().filter(|&cpu| cpu < cpus())?;
    let region = region_of(cpu).or_else(|| create_region(cpu))?;
    exchange(cpu, region, array, || rseq::stop_here(cpu), then)
}

/// As [`exchange_here`], for any CPU from whatever thread.
pub(crate) fn exchange_on<R>(cpu: usize, array: Array, then: impl FnOnce(Array) -> R) -> Option<R> {
    let region = region_of(cpu)?;
    exchange(cpu, region, array, || stop(cpu, region), then)
}

fn exchange<R>(
    cpu: usize,
    region: &'static Region,
    array: Array,
    stop: impl FnOnce() -> bool,
    then: impl FnOnce(Array) -> R,
) -> Option<R> {
    let mut book = region.book.lock();
    if !stop() {
        return None;
    }
    let header = &region.headers[DEFERRED];
    // Relaxed: the CPU is stopped, and the release that starts it publishes.
    let old = Array {
        base: book.deferred,
        top: header.top.load(Ordering::Relaxed),
        limit: header.limit.load(Ordering::Relaxed),
    };
    book.deferred = array.base;
    header.top.store(array.top, Ordering::Relaxed);
    header.limit.store(array.limit, Ordering::Relaxed);
    rseq::start(cpu, region);
    Some(then(old))
}

/// Words on a CPU's stack, as a hint; `None` if it has no array.
pub(crate) fn deferred_count(cpu: usize) -> Option<usize> {
    let region = region_of(cpu)?;
    let book = region.book.lock();
    let header = &region.headers[DEFERRED];
    let (top, limit) = (header.top.load(Ordering::Relaxed), header.limit.load(Ordering::Relaxed));
    (book.deferred != limit).then(|| (top as usize - book.deferred as usize) / size_of::<usize>())
}
