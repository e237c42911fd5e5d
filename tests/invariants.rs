//! What the checks of all invariants see, and what they add up to.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use common::block::{free, layout, take};
use common::child::{self, Child, in_a_fork};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, MIB, Random, cpus, move_thread, scaled, thread_number};
use pcpalloc::Drain;
use pcpalloc::debug::{Level, check};

/// Bytes that the kernel has mapped readable and writable from multiples of a gibibyte on, where zones start, up to the
/// first that are not.
fn mapped_for_zones() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel says what is mapped");
    let ranges: BTreeMap<usize, (usize, bool)> = maps
        .lines()
        .filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let parse = |text| usize::from_str_radix(text, 16).ok();
            Some((parse(start)?, (parse(end)?, rest.starts_with("rw-p"))))
        })
        .collect();
    let zone_at = |start: usize| {
        let mut at = start;
        while let Some((end, true)) = ranges.get(&at) {
            at = *end;
        }
        // What is reserved and not usable yet follows; more than the 64 MiB of an arena of the C library's, which may
        // happen to start there, too.
        if ranges.get(&at).is_some_and(|(end, usable)| !usable && end - start > 64 * MIB) { at - start } else { 0 }
    };
    ranges.keys().filter(|start| start.is_multiple_of(1 << 30)).map(|&start| zone_at(start)).sum()
}

/// At any moment the total of all states is what the kernel has mapped.
///
/// Red if anything is counted that is not there, or is there and not counted: in `take_partial`
/// (`src/slab/bulk.rs`), leave `counts.free` as it is; in `Buddy::extend` (`src/zone/buddy.rs`), do not lower
/// `free`; in `commit_more` (`src/zone/reservation.rs`), add the range and leave `committed` as it is.
#[test]
fn everything_adds_up_to_what_is_mapped() {
    const NAME: &str = "everything_adds_up_to_what_is_mapped";
    child::body(NAME, |_| {
        let mut random = Random::new(3);
        let mut blocks: Vec<Block> = Vec::new();
        for round in 0..scaled(60) {
            for _ in 0..random.below(60) {
                blocks.extend(Block::new(random.size(), random.align(), random.word()));
            }
            if let Some(block) = blocks.last_mut() {
                assert!(block.resize(random.size()), "there is memory");
            }
            let keep = random.below(blocks.len() + 1);
            blocks.truncate(keep);
            match round % 5 {
                0 => _ = HEAP.drain(Drain::All),
                1 => _ = HEAP.trim(),
                _ => {}
            }
            let level = [Level::Counters, Level::Lists, Level::Blocks][round % 3];
            let totals = check(level).expect("everything adds up");
            assert_eq!(totals.committed - totals.mappings, mapped_for_zones(), "{totals:?}");
            assert_eq!(totals.committed, HEAP.stats().committed);
        }
        drop(blocks);
        HEAP.trim();
        let totals = check(Level::Blocks).expect("everything adds up");
        assert!(totals.slabs + totals.runs < 64 * KIB && totals.mappings == 0 && totals.free > MIB, "{totals:?}");
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// What the heap itself cannot notice: a block that is cached twice, and one that lies on the stack of another class.
#[test]
fn misuse_is_seen_that_the_heap_cannot_see() {
    const NAME: &str = "misuse_is_seen_that_the_heap_cannot_see";
    child::body(NAME, |what| {
        let small = layout(64, 8);
        // SAFETY: the size is not 0, and the block is given back; then the contract is broken on purpose, in a process
        // that takes nothing more from the heap.
        unsafe {
            let block = HEAP.alloc(small);
            HEAP.dealloc(HEAP.alloc(layout(200, 8)), layout(200, 8));
            HEAP.dealloc(block, small);
            assert_eq!(check(Level::Blocks).err(), None);
            HEAP.dealloc(block, if what == "twice" { small } else { layout(200, 8) });
        }
        assert!(check(Level::Lists).is_ok(), "the stacks themselves are in order");
        let expected = if what == "twice" {
            "no block is cached twice"
        } else {
            "a cached block is one that its slab has handed out"
        };
        assert_eq!(check(Level::Blocks).err(), Some(expected));
    });
    for what in ["twice", "elsewhere"] {
        Child::new(NAME, what).run().succeeded();
    }
}

/// Blocks of two zones go back by turns, in common batches, where the one zone has nothing left at the other's places.
///
/// Red if a batch stays with the zone of its first block: in `Finder::find` (`src/slab/bulk.rs`), assign only `committed`.
#[test]
fn batches_reach_over_zones() {
    const NAME: &str = "batches_reach_over_zones";
    const SIZE: usize = 4 * KIB;
    child::body(NAME, |_| {
        let zone_of = |block: &*mut u8| block.addr() >> 30;
        let mut blocks: Vec<*mut u8> = Vec::new();
        while blocks.iter().step_by(1000).map(zone_of).collect::<BTreeSet<_>>().len() < 2 {
            blocks.extend((0..20_000).map(|_| take(SIZE)));
        }
        blocks.extend((0..20_000).map(|_| take(SIZE)));
        blocks.sort_unstable_by_key(|block| block.addr());
        let second = blocks.partition_point(|block| zone_of(block) == zone_of(&blocks[0]));
        let (one, other) = blocks.split_at(second);
        let (first, one) = one.split_at(one.len() - 10_000);
        first.iter().for_each(|&block| free(block, SIZE));
        HEAP.trim();
        for (&one, &other) in one.iter().zip(other) {
            free(one, SIZE);
            free(other, SIZE);
        }
        other[one.len().min(other.len())..].iter().for_each(|&block| free(block, SIZE));
        one[one.len().min(other.len())..].iter().for_each(|&block| free(block, SIZE));
        HEAP.trim();
        let totals = check(Level::Blocks).expect("everything adds up");
        assert!(totals.slabs + totals.runs < 64 * KIB && totals.mappings == 0, "{totals:?}");
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// Statistics are read while another CPU gets its first stacks.
///
/// Red if a region is taken out of a sum that it is not part of yet: in `stats` (`src/control/stats.rs`), add
/// `META.bytes()` before the regions are looked at and subtract each region's length from the sum; in one of a thousand
/// rounds or so.
#[test]
fn statistics_while_stacks_are_made() {
    const NAME: &str = "statistics_while_stacks_are_made";
    child::body(NAME, |_| {
        let cpus = cpus();
        for round in 0..scaled(500) {
            let status = in_a_fork(|| {
                move_thread(thread_number(), cpus[0]);
                drop(Block::new(1, 1, 0));
                let done = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        move_thread(thread_number(), cpus[cpus.len() - 1]);
                        drop(Block::new(1, 1, 0));
                        done.store(true, Ordering::Relaxed);
                    });
                    while !done.load(Ordering::Relaxed) {
                        let stats = HEAP.stats();
                        assert!(stats.metadata < 64 * MIB, "{stats}");
                    }
                });
            });
            assert_eq!(status, 0, "process {round}: how it ended, as waitpid says");
        }
    });
    Child::new(NAME, "").run().succeeded();
}
