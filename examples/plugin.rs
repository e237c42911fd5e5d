//! A shared library with an allocator of its own: what a plugin of another program looks like.
//!
//! Built as `libplugin.so`. Its copy of the allocator knows nothing of the one in the program that loads it, so each
//! function frees what it has allocated, and values cross the border as numbers.

use std::cell::RefCell;
use std::collections::BTreeMap;

use pcpalloc::{Drain, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

thread_local! {
    static LAST: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Collections of all kinds; the sum says that their contents were kept.
fn collect(seed: u64) -> u64 {
    let boxes: Vec<Box<u64>> = (0..1000).map(|n| Box::new(n ^ seed)).collect();
    let words: BTreeMap<String, Vec<u8>> = (0..200).map(|n| (format!("{seed} {n}"), vec![n as u8; 100 * n])).collect();
    let large = vec![1u8; (6 << 20) + seed as usize % 4096];
    let sum: u64 = boxes.iter().map(|value| **value ^ seed).sum();
    let letters: usize = words.iter().map(|(word, bytes)| word.len() + bytes.len()).sum();
    let digits: usize = (0..200).map(|n| format!("{seed} {n}").len() + 100 * n).sum();
    assert_eq!((sum, letters), (999 * 500, digits));
    assert_eq!(large.clone(), large);
    sum
}

/// Works with the heap on the calling thread; returns 499500.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_work(seed: u64) -> u64 {
    collect(seed)
}

/// The same on threads of the library's own, some of which free what others took.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_work_in_threads(threads: u64) -> u64 {
    let workers: Vec<_> = (0..threads).map(|seed| std::thread::spawn(move || vec![collect(seed); 1000])).collect();
    workers.into_iter().map(|worker| worker.join().map_or(0, |sums| sums[999])).sum::<u64>() / threads
}

/// Leaves values in the thread that are dropped when it ends.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_remember(seed: u64) {
    LAST.with_borrow_mut(|last| last.extend((0..10).map(|n| format!("{seed} {n}"))));
}

/// Bytes that the library's heap has in use; drains it first, and returns 0 if some CPU could not be reached.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_in_use() -> usize {
    let report = GLOBAL.drain(Drain::All);
    if report.unreachable_cpus > 0 { 0 } else { GLOBAL.stats().in_use.max(1) }
}

/// How the library's heap finds its stacks, as the number of a [`pcpalloc::Mode`].
#[unsafe(no_mangle)]
pub extern "C" fn plugin_mode() -> u32 {
    GLOBAL.stats().mode as u32
}
