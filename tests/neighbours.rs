//! Which blocks lie side by side: few of a size do not share cache lines, thousands follow each other.

mod common;

use common::child;
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

type Object = [u64; 3];

/// How many of a hundred in a row begin in the line in which the one before begins, and how many lie right behind it.
fn percent(objects: &[Box<Object>]) -> (usize, usize) {
    let at: Vec<usize> = objects.iter().map(|object| &raw const **object as usize).collect();
    let count =
        |is: fn(usize, usize) -> bool| 100 * at.windows(2).filter(|pair| is(pair[0], pair[1])).count() / at.len();
    (count(|a, b| a / 64 == b / 64), count(|a, b| b == a + size_of::<Object>()))
}

/// Positive controls: with `MANY` 0 in `src/percpu/slow.rs` the first share lines, with `usize::MAX` the last are scattered.
#[test]
fn few_lie_apart_and_many_in_order() {
    const NAME: &str = "few_lie_apart_and_many_in_order";
    child::body(NAME, |_| {
        // What has been freed comes again as it lies.
        let _used: Vec<Box<Object>> = (0..50).map(|n| Box::new([n; 3])).collect();
        let few: Vec<Box<Object>> = (0..100).map(|n| Box::new([n; 3])).collect();
        let many: Vec<Box<Object>> = (0..10_000).map(|n| Box::new([n; 3])).collect();
        let ((few_share, _), (_, many_follow)) = (percent(&few), percent(&many[5000..]));
        println!("of few {few_share} % share a line with the one before, of many {many_follow} % lie right behind it");
        assert!(few_share < 25, "{few_share} % share a line");
        assert!(many_follow > 90, "{many_follow} % follow");
    });
    child::Child::new(NAME, "").run().succeeded();
}
