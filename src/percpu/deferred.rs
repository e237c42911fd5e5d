//! One more stack per CPU, of words that mean something to the layer above: its arrays come from there, are
//! filled here, and are exchanged for empty ones when full or when they have been there long enough.

use core::sync::atomic::Ordering;

use super::choice::{Mode, mode};
use super::cpus::cpus;
use super::fence::{fence_available, stop};
use super::hidden::are_hidden;
use super::region::{Array, DEFERRED, Region};
use super::regions::{create_region, region_of};
use super::rseq;
use crate::sys;

/// Pushes a word; false if this CPU's array is full, or there is none.
#[inline(always)]
pub(crate) fn push_deferred(word: usize) -> bool {
    // SAFETY: a word on this stack is not a block; what it means is the caller's affair.
    unsafe { rseq::push(DEFERRED, word) }
}

/// Whether arrays can be had back from every CPU. If not, none should be given; nor if pushes do not find them.
pub(crate) fn deferred_available() -> bool {
    mode() != Mode::PerThread && fence_available() && !are_hidden()
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

/// The words on all CPUs' stacks, as far as they have been pushed by now. What a word stands for waits at least until
/// `each` has returned, which must take no lock of this layer.
///
/// A fence per CPU that has words, where the processor orders stores less than x86-64 does.
pub(crate) fn each_deferred(mut each: impl FnMut(usize)) {
    for (cpu, region) in super::regions::cpu_regions() {
        // Arrays are exchanged under this lock, and nobody takes a word from one otherwise.
        let book = region.book.lock();
        // Acquire, for whoever exchanged the array; sections store the top plainly.
        let top = region.headers[DEFERRED].top.load(Ordering::Acquire);
        let len = (top as usize - book.deferred as usize) / size_of::<usize>();
        // A section stores the word and then the top, in an order that others see on x86-64 alone. Elsewhere the fence,
        // a full barrier on that CPU and on this, makes stores that came before it there visible here.
        if len == 0 || !(cfg!(target_arch = "x86_64") || sys::fence_cpu(cpu)) {
            continue;
        }
        // SAFETY: entries below the top were written before it was, which is seen by the above, and stay while the lock
        // is held.
        (0..len).for_each(|n| each(unsafe { book.deferred.add(n).read_volatile() }));
    }
}

/// Words on a CPU's stack, as a hint; `None` if it has no array.
pub(crate) fn deferred_count(cpu: usize) -> Option<usize> {
    let region = region_of(cpu)?;
    let book = region.book.lock();
    let header = &region.headers[DEFERRED];
    let (top, limit) = (header.top.load(Ordering::Relaxed), header.limit.load(Ordering::Relaxed));
    (book.deferred != limit).then(|| (top as usize - book.deferred as usize) / size_of::<usize>())
}
