//! What the tests of nolock allocation and RCU share: children, signals, filters, contents.
#![allow(dead_code)]

pub mod child;
pub mod filter;
pub mod object;
pub mod signals;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pcpalloc::PcpAlloc;

/// `rounds` times `PCPALLOC_TEST_SCALE`, at least 1; fractions are allowed.
pub fn scaled(rounds: usize) -> usize {
    let scale = std::env::var("PCPALLOC_TEST_SCALE").ok().and_then(|n| n.parse::<f64>().ok()).unwrap_or(1.0);
    ((rounds as f64 * scale) as usize).max(1)
}

/// One test of a binary at a time, where they look at counters of the whole process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Pseudo-random numbers (G. Marsaglia, "Xorshift RNGs", 2003), the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }
}

/// A block by the ordinary path.
pub fn alloc(layout: Layout) -> NonNull<u8> {
    assert!(layout.size() > 0);
    // SAFETY: the size is not 0.
    NonNull::new(unsafe { PcpAlloc::new().alloc(layout) }).expect("memory")
}

/// Frees a block by the ordinary path.
///
/// # Safety
/// As for `GlobalAlloc::dealloc`.
pub unsafe fn dealloc(block: NonNull<u8>, layout: Layout) {
    // SAFETY: the caller's obligation.
    unsafe { PcpAlloc::new().dealloc(block.as_ptr(), layout) }
}

/// What a block is filled with: depends on where it is, so that two blocks never agree.
fn pattern(block: NonNull<u8>) -> u64 {
    (block.as_ptr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Fills a block of `size` bytes. Async-signal-safe.
///
/// # Safety
/// The block is the caller's, and as large.
pub unsafe fn fill(block: NonNull<u8>, size: usize) {
    let pattern = pattern(block).to_ne_bytes();
    for at in (0..size).step_by(8) {
        let len = (size - at).min(8);
        // SAFETY: the caller's obligation.
        unsafe { block.as_ptr().add(at).copy_from_nonoverlapping(pattern.as_ptr(), len) };
    }
}

/// Whether a block still holds what [`fill`] put there. Async-signal-safe.
///
/// # Safety
/// As for [`fill`], which has filled it.
pub unsafe fn is_filled(block: NonNull<u8>, size: usize) -> bool {
    let pattern = pattern(block).to_ne_bytes();
    // SAFETY: the caller's obligation.
    let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), size) };
    bytes.chunks(8).all(|chunk| *chunk == pattern[..chunk.len()])
}

/// Ends the process if the test has not ended after ten minutes: a wait without an end is a failure, too.
pub struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    pub fn new(what: &'static str) -> Watchdog {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        std::thread::spawn(move || {
            for _ in 0..scaled(6000).max(6000) {
                std::thread::sleep(Duration::from_millis(100));
                if seen.load(Ordering::Relaxed) {
                    return;
                }
            }
            eprintln!("{what}: waits for ever");
            std::process::abort();
        });
        Watchdog(done)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until `done` says so; without an end only if that never happens, which the caller's [`Watchdog`] notices.
pub fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
