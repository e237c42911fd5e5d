//! A program that sets the low mark pays for its memory ahead: no page faults in its hot path.

mod common;

use std::time::{Duration, Instant};

use common::memory::page_faults;
use common::{HEAP, MIB, child};
use pcpalloc::{PcpAlloc, Watermarks};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const MARKS: Watermarks = Watermarks { min: 0, low: 150 * MIB, high: 200 * MIB };

/// Grows by 100 MB in objects of so many bytes; returns page faults meanwhile.
fn grow(size: usize) -> usize {
    let mut objects: Vec<Vec<u8>> = Vec::with_capacity(100_000_000 / size + 1);
    // The list's own pages are not the hot loop's.
    objects.resize_with(objects.capacity(), Vec::new);
    objects.clear();
    let before = page_faults();
    for n in 0..100_000_000 / size {
        objects.push(vec![n as u8; size]);
    }
    let faults = page_faults() - before;
    assert!(objects.iter().enumerate().all(|(n, object)| object[size - 1] == n as u8));
    faults
}

fn populated() {
    let began = Instant::now();
    while HEAP.stats().free_resident < MARKS.low {
        assert!(began.elapsed() < Duration::from_secs(60), "populated in time: {}", HEAP.stats());
        std::thread::sleep(Duration::from_millis(50));
    }
    // Two more looks of the worker's, which sees to blocks that are warm in part.
    std::thread::sleep(Duration::from_millis(600));
}

/// Pages of 4 KiB would make 24,400 faults. What is left is the allocator's own: some dozen.
///
/// Positive controls: have `populate_free` in `src/zone/node.rs` leave out `populate_descriptors`, and objects of
/// 100 bytes fault 400 times; have `balance` in `src/control/worker.rs` leave out `populate_free`, and all do, 20,000
/// times and more.
#[test]
fn growing_by_100_mb_above_the_low_mark_takes_no_page_faults() {
    const NAME: &str = "growing_by_100_mb_above_the_low_mark_takes_no_page_faults";
    child::body(NAME, |size| {
        HEAP.set_watermarks(MARKS).unwrap();
        // Warm-up: whatever happens once, and a look at how it goes without the mark.
        drop(vec![vec![0u8; size.parse().unwrap()]; 1000]);
        populated();
        child::say("faults", grow(size.parse().unwrap()));
    });
    for size in [100, 1500, 40_000, 1_000_000] {
        let outcome = child::Child::new(NAME, &size.to_string()).run().succeeded();
        let faults = outcome.number("faults");
        println!("{size} bytes: {faults} page faults");
        assert!(faults < 150, "{size} bytes: {faults} page faults");
    }
}
