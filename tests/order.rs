//! The order in which blocks lie in memory does not get worse with the age of a program.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use common::block::{free, take};
use common::child::{self, Child, say};
use common::{Random, cpus, on_cpu};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Blocks of 256 bytes in a structure: 30 MiB.
const BLOCKS: usize = 120_000;

/// Builds the structure, with a block of another size for `every` of 256 bytes, counts which part of those lies right behind the
/// one before, and drops it: in order, but for those, which go in a random one.
fn in_order(size: usize, every: usize, random: &mut Random) -> f64 {
    let mut others = Vec::with_capacity(BLOCKS / every);
    let blocks: Vec<*mut u8> = (0..BLOCKS)
        .map(|n| {
            if n.is_multiple_of(every) {
                others.push(take(size));
            }
            take(256)
        })
        .collect();
    let ordered = others.windows(2).filter(|pair| pair[1] as usize == pair[0] as usize + size).count();
    let part = ordered as f64 / others.len() as f64;
    for (n, block) in blocks.into_iter().enumerate() {
        if n.is_multiple_of(every) {
            free(others.swap_remove(random.below(others.len())), size);
        }
        free(block, 256);
    }
    part
}

/// Percent in order after many rounds, on a CPU of its own; and that after one.
fn after_many(size: usize, every: usize) -> (usize, usize) {
    on_cpu(cpus()[0], || {
        let mut random = Random::new(1);
        let parts: Vec<f64> = (0..20).map(|_| in_order(size, every, &mut random)).collect();
        ((parts[15..].iter().sum::<f64>() * 20.0) as usize, (parts[0] * 100.0) as usize)
    })
}

/// A program builds a structure and drops it, over and over. A CPU's stack has room for most blocks of one size in it, 96 bytes,
/// or with what is in transfer for a fifth, of 16; still they go home in between, and come from there as they lie.
///
/// Controls, in `src/percpu`: have `next_to_sweep` (`capacity.rs`) return `None`, and 11 % of the first lie in order and 73 %
/// of the others, as with an `AGAIN` of 400 MiB. Have `sweep_class` (`slow.rs`) take a single batch off the stack, and it is
/// 35 % of the first; have it leave what is in transfer, or `flush` pass on what is flushed whatever goes out, and it is
/// 71 to 75 % of the others.
#[test]
fn what_is_built_over_and_over_lies_in_order() {
    const NAME: &str = "what_is_built_over_and_over_lies_in_order";
    child::body(NAME, |case| {
        let (size, every) = case.split_once(' ').expect("a size and how many");
        let (last, first) = after_many(size.parse().unwrap(), every.parse().unwrap());
        say("first", first);
        say("last", last);
    });
    for (case, least) in [("96 40", 60), ("16 4", 80)] {
        // The worker would empty the stacks while the machine is slow.
        let outcome = Child::new(NAME, case).settings("worker:off").run().succeeded();
        println!("{case}: {} % in order at first, {} % in the end", outcome.number("first"), outcome.number("last"));
        assert!(outcome.number("first") > 90, "{outcome:?}");
        assert!(outcome.number("last") > least, "{outcome:?}");
    }
}
