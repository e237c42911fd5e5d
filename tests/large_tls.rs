//! A program with more thread-local storage than the worker's stack is large: it lies on every thread's stack.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::cell::Cell;
use std::time::{Duration, Instant};

use common::{HEAP, MIB};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const LEN: usize = 200 << 10;

thread_local! {
    static LARGE: Cell<[u8; LEN]> = const { Cell::new([7; LEN]) };
}

/// Red if the worker gets a stack that is too small, or none: in `sys::spawn` (`src/sys/linux.rs`), do not add
/// `least_stack`.
#[test]
fn the_worker_starts_all_the_same() {
    assert!(LARGE.get().iter().all(|&byte| byte == 7));
    let burst: Vec<Vec<u8>> = (0..100_000).map(|n| vec![n as u8; 1000]).collect();
    drop(burst);
    let (began, mut kept) = (Instant::now(), Vec::new());
    while HEAP.stats().free_resident > 4 * MIB {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody gives memory back: {}", HEAP.stats());
        std::thread::sleep(Duration::from_millis(50));
        // Where the worker is started by who allocates, somebody does.
        kept.push(vec![0u8; 3000]);
    }
}
