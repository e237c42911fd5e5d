//! `dhat` as the program's allocator: it asks `System`, which asks C, which is this heap.

#![cfg(all(feature = "capi", not(any(loom, pcpalloc_twin))))]

use std::alloc::{GlobalAlloc, Layout};

use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: dhat::Alloc = dhat::Alloc;

/// Red if C's `malloc` is another heap: run it without the feature.
#[test]
fn what_dhat_counts_is_in_this_heap() {
    let profiler = dhat::Profiler::builder().testing().build();
    let heap = PcpAlloc::new();
    let (counted, there) = (dhat::HeapStats::get(), heap.stats());
    let mut vectors: Vec<Vec<u8>> = (1..300).map(|n| vec![n as u8; 100 * n]).collect();
    let now = dhat::HeapStats::get();
    let (more, more_there) = (now.curr_bytes - counted.curr_bytes, heap.stats().in_use - there.in_use);
    assert!(more >= 4_485_000, "{more}");
    // Besides the blocks: what they are rounded up by, and dhat's own tables.
    assert!((more..more + more / 2).contains(&more_there), "{more}, {more_there}");
    vectors.iter_mut().for_each(|vector| vector.resize(vector.len() * 3, 7));
    assert!(vectors.iter().enumerate().all(|(n, vector)| vector[0] == (n + 1) as u8 && vector[vector.len() - 1] == 7));
    // Every way that `System` has into C: aligned, zeroed, resized.
    for (size, align) in [(100, 8), (100, 64), (10_000, 4096), (100_000, 16_384), (5_000_000, 64)] {
        let layout = Layout::from_size_align(size, align).expect("a layout");
        // SAFETY: the layout's size is not zero; the block is freed as what it was resized to.
        unsafe {
            let block = GLOBAL.alloc_zeroed(layout);
            assert!(!block.is_null() && block.addr().is_multiple_of(align) && *block.add(size - 1) == 0);
            let block = GLOBAL.realloc(block, layout, 2 * size);
            assert!(!block.is_null() && block.addr().is_multiple_of(align) && *block == 0);
            GLOBAL.dealloc(block, Layout::from_size_align_unchecked(2 * size, align));
        }
    }
    drop(vectors);
    assert!(dhat::HeapStats::get().curr_bytes <= counted.curr_bytes + 1000);
    drop(profiler);
}
