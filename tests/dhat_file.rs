//! The file that `dhat` writes of a program whose memory comes from this heap, by way of `System` and C's `malloc`
//! (feature `capi`), or that does without this heap.

#![cfg(not(any(loom, pcpalloc_twin)))]

use std::hint::black_box;

use pcpalloc::PcpAlloc;
use serde_json::Value;

#[global_allocator]
static GLOBAL: dhat::Alloc = dhat::Alloc;

#[inline(never)]
fn known_kept() -> Vec<Vec<u8>> {
    (0..500).map(|_| black_box(vec![1; 1000])).collect()
}

#[inline(never)]
fn known_passing() {
    (0..3000).for_each(|_| drop(black_box(Box::new([2u8; 200]))));
}

/// Every block is in the file, at its place, and with the feature in the heap.
///
/// Red if the program keeps one block less, or one site is not there.
#[test]
fn the_file_has_every_block() {
    let path = std::env::temp_dir().join(format!("pcpalloc-dhat-{}.json", std::process::id()));
    let heap = PcpAlloc::new();
    let profiler = dhat::Profiler::builder().file_name(&path).trim_backtraces(None).build();
    let before = heap.stats().in_use;
    let kept = known_kept();
    known_passing();
    let (counted, served) = (dhat::HeapStats::get(), heap.stats().in_use.saturating_sub(before));
    assert!(counted.curr_bytes >= 500_000);
    if cfg!(feature = "capi") {
        assert!(served >= 500 * 1000, "C's malloc is this heap: {served}");
    } else {
        assert!(served < 64 << 10, "nobody asked this heap for anything: {served}");
    }
    drop(profiler);
    drop(kept);
    let file = std::fs::read(&path).expect("dhat wrote it");
    std::fs::remove_file(&path).expect("it is ours");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    assert_eq!(file["dhatFileVersion"], 2);
    let frames = file["ftbl"].as_array().expect("frames");
    let sum = |name: &str| {
        let here = |point: &&Value| {
            let stack = point["fs"].as_array().expect("frames");
            stack
                .iter()
                .any(|n| frames[n.as_u64().expect("a number") as usize].as_str().is_some_and(|f| f.contains(name)))
        };
        let points = file["pps"].as_array().expect("points");
        let (mut total, mut end) = ((0, 0), (0, 0));
        for point in points.iter().filter(here) {
            let field = |name: &str| point[name].as_u64().expect("a number");
            total = (total.0 + field("tbk"), total.1 + field("tb"));
            end = (end.0 + field("ebk"), end.1 + field("eb"));
        }
        (total, end)
    };
    // The vector of them besides, which may be allocated by steps.
    let (total, end) = sum("known_kept");
    assert!(total.0 >= 501 && end.0 == 501 && end.1 >= 500_000 + 500 * 24, "{total:?}, {end:?}");
    assert_eq!(sum("known_passing"), ((3000, 600_000), (0, 0)));
}
