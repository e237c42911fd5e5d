//! A program that takes again what was given back for being too much keeps it, and gives it back when it goes quiet. And how much
//! an allocation takes from the system at a time.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::time::{Duration, Instant};

use common::block::{free, take};
use common::child::{self, Child, say};
use common::memory::{page_faults, resident, resident_below, vmstat};
use common::{HEAP, MIB, PAGE};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// What may be missing or more for other reasons than those tried here.
const SLACK: usize = 16 * MIB;

fn kept() -> usize {
    vmstat("nr_mapped_free") * PAGE
}

/// Takes `count` blocks, writes to every page of each, and frees them all.
fn turn(count: usize, size: usize) {
    let blocks: Vec<*mut u8> = (0..count).map(|_| take(size)).collect();
    for &block in &blocks {
        // SAFETY: the block is as long, and ours.
        (0..size).step_by(PAGE).for_each(|at| unsafe { block.add(at).write(at as u8) });
    }
    blocks.into_iter().for_each(|block| free(block, size));
}

/// 256 MiB in mappings, over and over: the first turn and the second take page faults, and no other does. Then all of it goes
/// back by itself.
///
/// Controls: have `Refaults::raised` in `src/zone/refault.rs` return 0, or leave `took` out of `grow` in
/// `src/zone/mapping.rs`: 49,000 faults in each turn. Leave `release_unused` out of `src/control/worker.rs`: it stays.
#[test]
fn mappings_that_are_taken_again_are_kept() {
    const NAME: &str = "mappings_that_are_taken_again_are_kept";
    child::body(NAME, |_| {
        turn(1, 5 * MIB);
        let start = resident();
        turn(4, 64 * MIB);
        assert!(kept() < 64 * MIB + SLACK, "{} MiB are kept the first time", kept() / MIB);
        turn(4, 64 * MIB);
        let before = page_faults();
        (0..4).for_each(|_| turn(4, 64 * MIB));
        say("faults", page_faults() - before);
        say("refaults", vmstat("workingset_refault") * PAGE / MIB);
        say("rest", resident_below(start + SLACK).1.saturating_sub(start));
    });
    let outcome = Child::new(NAME, "").run().succeeded();
    assert!(outcome.number("faults") < 2000, "{outcome:?}");
    assert!((150..400).contains(&outcome.number("refaults")), "{outcome:?}");
    assert!(outcome.number("rest") < SLACK, "{outcome:?}");
}

/// 192 MiB in runs of pages, for as long as the worker takes to look at them several times: what it gives back at first is
/// taken again, and then it gives nothing back until the program is done with it.
///
/// Controls: have `Refaults::raised` return 0, or leave `took` out of `Node::alloc` (`src/zone/node.rs`): half a gigabyte is
/// given back in these two seconds, and up to 1.2.
#[test]
fn pages_that_are_taken_again_are_kept() {
    const NAME: &str = "pages_that_are_taken_again_are_kept";
    child::body(NAME, |_| {
        let start = resident();
        let work = |time: Duration| {
            let began = Instant::now();
            while began.elapsed() < time {
                turn(48, 4 * MIB);
                // Free for most of the time, so that the worker finds it free.
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        work(Duration::from_secs(2));
        let before = vmstat("pgrelease");
        work(Duration::from_secs(2));
        say("released", (vmstat("pgrelease") - before) * PAGE / MIB);
        say("rest", resident_below(start + SLACK).1.saturating_sub(start));
    });
    let outcome = Child::new(NAME, "").run().succeeded();
    // Where nobody ran for two seconds it is given back, rightly: once is let pass.
    assert!(outcome.number("released") < 2 * 192, "{outcome:?}");
    assert!(outcome.number("rest") < SLACK, "{outcome:?}");
}

/// What is kept for being taken again goes when memory is short, and once there is enough it has to prove itself again.
///
/// Control: leave `forget` of `MAPPINGS` out of `relieve` (`src/control/pressure.rs`): 256 MiB are kept.
#[test]
fn what_is_kept_goes_when_memory_is_short() {
    const NAME: &str = "what_is_kept_goes_when_memory_is_short";
    child::body(NAME, |_| {
        // So much stays in use that a bound is not lowered for there being less to keep.
        let used = take(300 * MIB);
        // SAFETY: the block is as long, and ours.
        (0..300 * MIB).step_by(PAGE).for_each(|at| unsafe { used.add(at).write(1) });
        (0..3).for_each(|_| turn(4, 64 * MIB));
        assert!(kept() > 200 * MIB, "{} MiB are kept", kept() / MIB);
        // Less than a sixteenth above what is resident.
        HEAP.set_limit(Some(HEAP.stats().resident + 5 * MIB)).expect("a limit");
        let began = Instant::now();
        while kept() > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "{} MiB are kept near the limit", kept() / MIB);
            std::thread::sleep(Duration::from_millis(10));
        }
        HEAP.set_limit(None).expect("no limit");
        turn(4, 64 * MIB);
        say("kept", kept() / MIB);
        free(used, 300 * MIB);
    });
    let outcome = Child::new(NAME, "").run().succeeded();
    assert!((30..100).contains(&outcome.number("kept")), "{outcome:?}");
}

/// No allocation waits for more than 256 KiB of fresh memory, where it asks for no more and there are no huge pages.
///
/// Control: have `Node::alloc` (`src/zone/node.rs`) pass `UNIT_ORDER` to `populate_unit`: 2 MiB.
#[test]
fn small_pages_come_a_few_at_a_time() {
    const NAME: &str = "small_pages_come_a_few_at_a_time";
    child::body(NAME, |_| {
        let populated = || HEAP.stats().populated;
        let start = populated();
        let mut most = 0;
        let blocks: Vec<*mut u8> = (0..1000)
            .map(|_| {
                let before = populated();
                let block = take(MIB / 16);
                most = most.max(populated() - before);
                block
            })
            .collect();
        say("most", most / 1024);
        say("all", (populated() - start) / MIB);
        blocks.into_iter().for_each(|block| free(block, MIB / 16));
    });
    let outcome = Child::new(NAME, "").settings("thp:never,worker:off").run().succeeded();
    if outcome.number("all") == 0 {
        return println!("skipped: this system does not give memory by calls");
    }
    assert!(outcome.number("most") <= 256, "{outcome:?}");
}

/// What is freed all at once stays for a quarter of a second, though its first megabyte has called for a worker who gives back
/// what is above the mark: a short program that takes it again has it.
///
/// Control: have `run` in `src/control/worker.rs` not wait before its first look.
#[test]
fn a_burst_is_left_alone_at_first() {
    const NAME: &str = "a_burst_is_left_alone_at_first";
    child::body(NAME, |_| {
        let began = Instant::now();
        // Above the mark, which is 32 MiB.
        turn(12, 4 * MIB);
        std::thread::sleep(Duration::from_millis(60));
        say("released", vmstat("pgrelease"));
        say("milliseconds", began.elapsed().as_millis());
    });
    // One who is held up for longer has seen nothing.
    let seen =
        (0..20).map(|_| Child::new(NAME, "").run().succeeded()).find(|outcome| outcome.number("milliseconds") < 200);
    match seen {
        Some(outcome) => assert_eq!(outcome.number("released"), 0, "{outcome:?}"),
        None => println!("skipped: this machine is too busy"),
    }
}

/// A high mark that is set is not raised, nor the one of its own that a heap keeps without a worker.
///
/// Controls: add what is raised to marks that are set, in `high_now` or in `mappings_kept` (`src/zone/marks.rs`); have
/// `release_excess` in `src/zone/bell.rs` return at once.
#[test]
fn a_bound_that_is_set_stands() {
    const NAME: &str = "a_bound_that_is_set_stands";
    child::body(NAME, |most| {
        for _ in 0..5 {
            turn(4, 64 * MIB);
            turn(32, 4 * MIB);
        }
        let most = most.parse::<usize>().expect("MiB") * MIB;
        let free = |_| HEAP.stats().free_resident;
        // The worker has a quarter of a second to see to it.
        let least = (0..100).map(|_| std::thread::sleep(Duration::from_millis(10))).map(free).min();
        assert!(least.is_some_and(|free| free <= most + SLACK), "{} MiB are free", least.unwrap_or(0) / MIB);
    });
    Child::new(NAME, "80").settings("high:80m").run().succeeded();
    Child::new(NAME, "64").settings("worker:off").run().succeeded();
}

/// Blocks that no kept mapping serves, for their alignment, do not have ever more of them kept: what is kept and what is in
/// use are no more together than what was in use.
///
/// Control: leave `below_most` out of `mappings_kept` (`src/zone/marks.rs`): 1 GiB is kept.
#[test]
fn no_more_is_kept_than_was_in_use() {
    const NAME: &str = "no_more_is_kept_than_was_in_use";
    child::body(NAME, |_| {
        let layout = Layout::from_size_align(100 * MIB, 2 * MIB).expect("a layout");
        let most = (0..20).map(|_| {
            // SAFETY: the layout is not of size 0, and the block is freed with it.
            unsafe { HEAP.dealloc(HEAP.alloc(layout), layout) };
            kept()
        });
        say("kept", most.max().map_or(0, |kept| kept / MIB));
    });
    let outcome = Child::new(NAME, "").run().succeeded();
    assert!((90..110).contains(&outcome.number("kept")), "{outcome:?}");
}
