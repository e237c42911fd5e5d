//! Large blocks get huge pages when they are handed out, if those before them were filled, and small ones otherwise.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;

use common::block::{free, layout, take};
use common::child::{self, Child, say};
use common::memory::{by_advice, huge_pages, is_flagged};
use common::{HEAP, KIB, MIB, PAGE};
use pcpalloc::PcpAlloc;
use pcpalloc::debug::assume_quick_huge_pages;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Nothing is given back but by `trim`.
const ALONE: &str = "worker:off,min:0,low:0,high:512m";

/// A run in a zone, and a mapping of its own. Each has a whole unit of 2 MiB, wherever it begins.
const SIZES: [usize; 2] = [4 * MIB, 12 * MIB];

/// Writes to every page of a block.
fn fill(block: *mut u8, size: usize) {
    // SAFETY: the block is as long, and the caller's.
    (0..size).step_by(PAGE).for_each(|at| unsafe { block.add(at).write(at as u8) });
}

/// A block that cannot have memory that was another's: what is free has none.
fn take_cold(size: usize) -> *mut u8 {
    HEAP.trim();
    take(size)
}

/// Bytes of a block that have memory, or of the mapping's page in front of it.
fn resident_of(block: *mut u8, size: usize) -> usize {
    let mut pages = vec![0; size / PAGE];
    // SAFETY: the block is as long, and aligned to a page; the kernel writes a byte for each page of it.
    let answer = unsafe { libc::mincore(block.cast(), size, pages.as_mut_ptr()) };
    assert_eq!(answer, 0);
    pages.iter().filter(|&&page| page & 1 != 0).count() * PAGE
}

/// Bytes that a new block of this size has before anybody has written to it.
fn given(size: usize) -> usize {
    let block = take_cold(size);
    let given = resident_of(block, size);
    free(block, size);
    given
}

/// Two blocks that are filled. (Shorter ones come with memory in a heap of this size, and tell nothing.)
fn fill_two() {
    for _ in 0..2 {
        let block = take_cold(3 * MIB);
        fill(block, 3 * MIB);
        free(block, 3 * MIB);
    }
}

/// After two that were filled, a block has memory for its units before it is written to; nothing is given to one before that, to
/// one that must read as zero, to one that another is copied to, and to one more than twice as large as the heap. Blocks that are
/// not filled end it. A vector that fills all it has and grows by copies does not begin it, nor do blocks whose length changes.
///
/// Controls: in `src/zone/filled.rs`, have `expects_filled` be true (`before`), or `note` never count from 0 again (`sparse`); in
/// `src/large.rs` and `src/zone/mapping.rs`, ask for zeroed blocks, or for copied ones, as for any (`zeroed`, `copied`,
/// `vector`); in `may_fill` (`src/zone/huge.rs`), leave out what the heap has (`huge`); have `tag_run` (`src/zone/buddy.rs`) or
/// `resize` (`src/zone/mapping.rs`) leave a block fresh whose length changes (`resized`).
#[test]
fn blocks_are_given_memory_if_others_were_filled() {
    const NAME: &str = "blocks_are_given_memory_if_others_were_filled";
    if !by_advice() {
        println!("skipped: this system does not give huge pages of 2 MiB to who asks, and to nobody else");
        return;
    }
    child::body(NAME, |_| {
        assume_quick_huge_pages();
        // A heap of 16 MiB, in blocks that tell nothing.
        let mut live: Vec<*mut u8> = (0..256).map(|_| take(64 * KIB)).collect();
        live.iter().for_each(|&block| fill(block, 64 * KIB));
        let each = |key: &str, f: &dyn Fn(usize) -> usize| {
            say(key, format!("{} {}", f(SIZES[0]), f(SIZES[1])));
        };
        each("before", &given);
        // A vector, at every length the longest block that it fits in.
        let mut vector = take(512 * KIB);
        let mut size = 512 * KIB;
        while size < SIZES[1] {
            fill(vector, size);
            // What lies behind a block is in use, so that it is copied.
            live.push(take(PAGE));
            // SAFETY: a block of this size, which is not used any more.
            vector = unsafe { HEAP.realloc(vector, layout(size, 8), 2 * size) };
            size *= 2;
        }
        free(vector, size);
        each("vector", &given);
        // Blocks that are filled, and then cut to where they were written to last.
        for whole in [3 * MIB, SIZES[1], SIZES[1]] {
            let block = take_cold(whole);
            fill(block, whole);
            // SAFETY: as above.
            let less = unsafe { HEAP.realloc(block, layout(whole, 8), whole - 64 * KIB) };
            free(less, whole - 64 * KIB);
        }
        each("resized", &given);
        fill_two();
        each("filled", &given);
        each("zeroed", &|size| {
            HEAP.trim();
            // SAFETY: the size is not 0.
            let block = unsafe { HEAP.alloc_zeroed(layout(size, 8)) };
            let given = resident_of(block, size);
            free(block, size);
            given
        });
        // From a block in a slab to a run, and from a run to a mapping.
        say("copied", {
            let mut given = [0, 0];
            for (given, (from, size)) in given.iter_mut().zip([(PAGE, SIZES[0]), (64 * KIB, SIZES[1])]) {
                let block = take_cold(from);
                fill(block, from);
                // SAFETY: as above.
                let longer = unsafe { HEAP.realloc(block, layout(from, 8), size) };
                *given = resident_of(longer, size);
                free(longer, size);
            }
            format!("{} {}", given[0], given[1])
        });
        say("huge", given(100 * MIB));
        // One in eight is looked at.
        for _ in 0..8 {
            given(SIZES[0]);
        }
        each("sparse", &given);
        live.drain(..256).for_each(|block| free(block, 64 * KIB));
        live.into_iter().for_each(|block| free(block, PAGE));
    });
    for settings in [ALONE.to_string(), format!("{ALONE},thp:never")] {
        let outcome = Child::new(NAME, "").settings(&settings).run().succeeded();
        println!("{settings}: {outcome:?}");
        let two = |key: &str| {
            let both: Vec<usize> = outcome.value(key).split(' ').map(|n| n.parse().expect("a number")).collect();
            [both[0], both[1]]
        };
        for key in ["before", "vector", "resized", "zeroed", "copied", "sparse"] {
            assert!(two(key).iter().all(|&given| given <= 128 * KIB), "{key}: {outcome:?}");
        }
        assert!(outcome.number("huge") == 0, "{outcome:?}");
        let least = if settings.contains("never") { 0 } else { 2 * MIB };
        assert!(two("filled").iter().zip(SIZES).all(|(&given, size)| given >= least && given <= size), "{outcome:?}");
        assert!(least > 0 || two("filled") == [0, 0], "{outcome:?}");
    }
}

/// Of a block of more than 64 MiB no more than that has memory at once, and the rest gets huge pages when it is written to, where
/// those before were quick; shorter ones, and what has the place of one after it, are not asked for any.
///
/// Controls: in `populate_block` (`src/zone/huge.rs`), give memory to all units (`large`), leave the advice in any case (`flags`)
/// or in none (`flags`, `filled`); have `alloc` in `src/zone/mapping.rs` not note that there is advice (`flags`).
#[test]
fn a_large_block_gets_huge_pages_where_it_is_written_to() {
    const NAME: &str = "a_large_block_gets_huge_pages_where_it_is_written_to";
    const LARGE: usize = 80 * MIB;
    if !by_advice() {
        println!("skipped: this system does not give huge pages of 2 MiB to who asks, and to nobody else");
        return;
    }
    child::body(NAME, |_| {
        assume_quick_huge_pages();
        let live: Vec<*mut u8> = (0..768).map(|_| take(64 * KIB)).collect();
        live.iter().for_each(|&block| fill(block, 64 * KIB));
        fill_two();
        let shorter = take_cold(SIZES[1]);
        let large = take_cold(LARGE);
        say("large", resident_of(large, LARGE));
        let before = huge_pages();
        fill(large, LARGE);
        say("filled", huge_pages() - before);
        let flags = [is_flagged(shorter, "hg"), is_flagged(large, "hg")];
        free(large, LARGE);
        // It lies where that one was.
        let next = take(LARGE / 2);
        say("flags", format!("{flags:?} {}", is_flagged(next, "hg")));
        free(next, LARGE / 2);
        free(shorter, SIZES[1]);
        live.into_iter().for_each(|block| free(block, 64 * KIB));
    });
    let outcome = Child::new(NAME, "").settings(ALONE).run().succeeded();
    println!("{outcome:?}");
    assert!((60 * MIB..=64 * MIB).contains(&outcome.number("large")), "{outcome:?}");
    assert!(outcome.number("filled") >= 8 * MIB, "{outcome:?}");
    assert_eq!(outcome.value("flags"), "[false, true] false", "{outcome:?}");
}
