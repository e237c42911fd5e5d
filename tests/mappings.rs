//! Blocks beyond 4 MiB, whose mappings are kept for a while when they are freed: used again without a system call,
//! bounded, and given back.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::block::{free, layout, take};
use common::child::{self, Child, in_a_fork, say};
use common::kernel::Refusal;
use common::memory::{by_advice, huge_pages, is_flagged, page_faults, peak, resident, vmstat};
use common::{Block, HEAP, KIB, MIB, PAGE, Random, scaled};
use pcpalloc::debug::{Level, assume_quick_huge_pages, check};
use pcpalloc::{PcpAlloc, Watermarks};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Nobody but the thread that frees gives anything back, and that not before 512 MiB are free.
const ALONE: &str = "worker:off,high:512m";

/// What is kept by default, at most, in a process that has less than eight times as much.
const KEPT: usize = 64 * MIB;

fn kept() -> usize {
    vmstat("nr_mapped_free") * PAGE
}

/// Takes a block, writes to every page of it and frees it.
fn use_once(size: usize) {
    let block = take(size);
    // SAFETY: the block is as long, and ours.
    (0..size).step_by(PAGE).for_each(|at| unsafe { block.add(at).write(at as u8) });
    free(block, size);
}

/// Blocks of 3 to 64 MiB, one after the other and two at a time, take no address space, no memory and give none back.
///
/// Controls: have `put` in `src/zone/mapping_cache.rs` unmap what it is given, or `take` in it not `join`: killed.
#[test]
fn a_loop_makes_no_calls_for_memory() {
    const NAME: &str = "a_loop_makes_no_calls_for_memory";
    const SIZES: [usize; 7] = [3 * MIB, 64 * MIB, 5 * MIB, 24 * MIB + 5, 4 * MIB + 1, 63 * MIB, 9 * MIB];
    child::body(NAME, |_| {
        let turn = || {
            SIZES.iter().for_each(|&size| use_once(size));
            let two = [take(9 * MIB), take(20 * MIB)];
            free(two[0], 9 * MIB);
            free(two[1], 20 * MIB);
        };
        // A mapping with room for all. (A run of 3 MiB comes from a zone, which has to be there.)
        use_once(100 * MIB);
        turn();
        let reused = vmstat("mapping_reuse");
        let (done, is_done) = std::sync::mpsc::sync_channel(1);
        // A thread of its own, which never ends: that takes calls, too.
        std::thread::spawn(move || {
            turn();
            for call in [libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise] {
                Refusal::of(call, 0).killing().install().expect("a filter");
            }
            let before = page_faults();
            (0..20).for_each(|_| turn());
            done.send(page_faults() - before).expect("the other end waits");
            loop {
                std::thread::park();
            }
        });
        say("faults", is_done.recv().expect("the thread says so"));
        say("reused", vmstat("mapping_reuse") - reused);
    });
    let outcome = Child::new(NAME, "").settings(ALONE).run().succeeded();
    assert!(outcome.number("reused") >= 20 * (SIZES.len() + 1), "{outcome:?}");
    assert!(outcome.number("faults") < 10, "{outcome:?}");
}

/// A vector that doubles grows into what the one before has left: no page is faulted in again.
///
/// Control: have `take_behind` in `src/zone/mapping_cache.rs` return 0, and there are thousands of faults.
#[test]
fn a_vec_grows_into_what_was_kept() {
    const NAME: &str = "a_vec_grows_into_what_was_kept";
    child::body(NAME, |_| {
        let grow = || {
            let before = page_faults();
            let mut numbers: Vec<u64> = Vec::new();
            (0..(48 * MIB / 8) as u64).for_each(|n| numbers.push(n));
            assert!(numbers.iter().copied().eq(0..numbers.len() as u64));
            page_faults() - before
        };
        say("first", grow());
        let moved = vmstat("mapping_reuse");
        say("second", grow());
        say("reused", vmstat("mapping_reuse") - moved);
    });
    let outcome = Child::new(NAME, "").settings(ALONE).run().succeeded();
    assert!(outcome.number("first") > 5000, "{outcome:?}");
    assert!(outcome.number("second") < 500, "{outcome:?}");
    assert!(outcome.number("reused") >= 3, "{outcome:?}");
}

/// A vector that grows beyond 64 MiB gets huge pages for what it has not reached yet, where these are quick, and is moved by its
/// pages nonetheless: it keeps what it holds, never needs room for two, shrinks, and goes back. A block that has its place after it, and is written to here and there, does
/// not get them.
///
/// Controls: have `free` in `src/zone/mapping.rs` leave the advice: half as much again is resident of that block; have `populate_growth` in `src/zone/huge.rs` advise against huge pages in the end: few are huge; have it
/// advise from `had` on only, so that the system has the mapping as two and does not move it: copied, with a peak of 394 MiB.
#[test]
fn what_grows_large_gets_huge_pages() {
    const NAME: &str = "what_grows_large_gets_huge_pages";
    const SIZE: usize = 256 * MIB;
    if !by_advice() {
        println!("skipped: this system does not give huge pages of 2 MiB to who asks, and to nobody else");
        return;
    }
    child::body(NAME, |_| {
        assume_quick_huge_pages();
        let mut numbers: Vec<u64> = Vec::new();
        let grow = |numbers: &mut Vec<u64>| {
            (numbers.len() as u64..(SIZE / 8) as u64).for_each(|n| numbers.push(n));
            assert!(numbers.iter().copied().eq(0..numbers.len() as u64));
        };
        grow(&mut numbers);
        say("huge", huge_pages());
        say("peak", peak());
        numbers.truncate(numbers.len() / 3);
        numbers.shrink_to_fit();
        say("shrunk", resident());
        grow(&mut numbers);
        say("peak again", peak());
        drop(numbers);
        // It begins where the vector was, which is kept, and is longer.
        let size = 2 * SIZE;
        // SAFETY: the layout is not of size 0.
        let sparse = unsafe { HEAP.alloc_zeroed(layout(size, 8)) };
        // SAFETY: the block is as long, and ours.
        (0..size).step_by(2 * MIB).for_each(|at| unsafe { sparse.add(at).write(1) });
        say("sparse", resident());
        free(sparse, size);
        HEAP.trim();
        say("rest", resident());
    });
    let outcome = Child::new(NAME, "").settings(ALONE).run().succeeded();
    assert!(outcome.number("huge") > SIZE / 4, "{outcome:?}");
    assert!(outcome.number("peak") < SIZE + SIZE / 8, "{outcome:?}");
    assert!(outcome.number("shrunk") < SIZE / 2, "{outcome:?}");
    assert!(outcome.number("peak again") < SIZE + SIZE / 8, "{outcome:?}");
    assert!(outcome.number("sparse") < SIZE / 4 * 7, "{outcome:?}");
    assert!(outcome.number("rest") < 32 * MIB, "{outcome:?}");
}

/// `thp:always` and `thp:never` are for all memory: a mapping, also when it has grown and when it is another's, and the pages
/// that a zone begins with.
///
/// Red if one of them is left to the system: in `alloc_new` (`src/zone/mapping.rs`) or in `Zone::create`
/// (`src/zone/reservation.rs`), leave `huge::advise` out.
#[test]
fn what_is_said_of_huge_pages_holds_for_all_memory() {
    const NAME: &str = "what_is_said_of_huge_pages_holds_for_all_memory";
    if !std::fs::exists("/sys/kernel/mm/transparent_hugepage").is_ok_and(|there| there) {
        println!("skipped: this system has no huge pages to ask for");
        return;
    }
    child::body(NAME, |flag| {
        // A block of each kind, and what the kernel has noted of where it lies.
        let run = take(100 * KIB);
        let mapping = take(8 * MIB);
        assert!(is_flagged(run, flag), "the first pages of a zone");
        assert!(is_flagged(mapping, flag), "a mapping");
        // SAFETY: from `take`, with this size, and not used any more.
        let grown = unsafe { HEAP.realloc(mapping, layout(8 * MIB, 8), 40 * MIB) };
        assert!(is_flagged(grown, flag), "a mapping that has grown");
        free(grown, 40 * MIB);
        let again = take(20 * MIB);
        assert!(is_flagged(again, flag), "a mapping that was kept");
        free(again, 20 * MIB);
        free(run, 100 * KIB);
    });
    Child::new(NAME, "hg").settings("thp:always").run().succeeded();
    Child::new(NAME, "nh").settings("thp:never").run().succeeded();
}

/// Zeroed blocks read as zero wherever they lie, and pages that the one before never touched get no memory by that.
///
/// Controls: have `alloc_kept` in `src/zone/mapping.rs` not zero; have `zero` there always write, and 100 MiB are resident.
#[test]
fn zeroed_blocks_are_zero() {
    const NAME: &str = "zeroed_blocks_are_zero";
    child::body(NAME, |_| {
        let mut random = Random::new(4);
        for round in 0..40 {
            let size = 4 * MIB + 1 + random.below(20 * MIB);
            let mut block = Block::new(size, 8, round).expect("there is memory");
            if round % 3 == 0 {
                assert!(block.resize(size + random.below(10 * MIB)), "there is memory");
            }
            drop(block);
            // Checked byte by byte when it is made, and again when it is dropped.
            let zeroed = 4 * MIB + 1 + random.below(24 * MIB);
            drop(Block::zeroed(zeroed, 8, round).expect("there is memory"));
        }
        HEAP.trim();
        // Of 100 MiB, a page in each.
        let block = take(100 * MIB);
        // SAFETY: the block is as long, and ours.
        (0..100).for_each(|n| unsafe { block.add(n * MIB).write(1) });
        free(block, 100 * MIB);
        let (before, reused) = (resident(), vmstat("mapping_reuse"));
        let layout = layout(100 * MIB, 8);
        // SAFETY: the block is as long, and ours.
        unsafe {
            let block = HEAP.alloc_zeroed(layout);
            assert_eq!(vmstat("mapping_reuse"), reused + 1);
            // What the test itself takes may come by a unit of 2 MiB.
            assert!(resident() < before + 4 * MIB, "{} KiB more", (resident() - before) / KIB);
            assert!((0..100).all(|n| block.add(n * MIB).read() == 0));
            HEAP.dealloc(block, layout);
        }
    });
    Child::new(NAME, "").settings(ALONE).run().succeeded();
}

/// However much is freed, no more is kept than is said, by bytes and by pieces, and totals agree throughout.
///
/// Controls: have `mappings_kept` in `src/zone/marks.rs` return `usize::MAX`; have `put` in `src/zone/mapping_cache.rs`
/// ignore what `cut` leaves; leave `mapping_cache::release` out of `release` in `src/zone/node.rs`.
#[test]
fn what_is_kept_is_bounded() {
    const NAME: &str = "what_is_kept_is_bounded";
    child::body(NAME, |case| {
        let sizes = |size: usize, count: usize| (0..count).map(|_| take(size)).collect::<Vec<_>>();
        let freed = |size: usize, count: usize| sizes(size, count).into_iter().for_each(|block| free(block, size));
        let mut bound = match case {
            "high" => 16 * MIB,
            _ => KEPT,
        };
        for (size, count) in [(8 * MIB, 40), (200 * MIB, 1), (4 * MIB + 1, 100), (60 * MIB, 3)] {
            freed(size, count);
            assert!(kept() <= bound, "{} KiB are kept of {count} times {size}", kept() / KIB);
            if case == "default" {
                assert!(kept() >= KEPT / 4, "{} KiB are kept of {count} times {size}", kept() / KIB);
                // What has gone back and is taken again is kept the next time, with what is in use as much as was.
                bound = bound.max(count * (size + 2 * PAGE));
            }
            check(Level::Blocks).expect("the totals agree");
        }
        // Sizes and orders at random, with resizes, so that pieces are cut and joined in all ways.
        let mut random = Random::new(9);
        let mut blocks: Vec<Block> = Vec::new();
        for seed in 0..scaled(300) as u64 {
            match random.below(3) {
                0 if blocks.len() < 12 => {
                    let size = 4 * MIB + random.below(8 * MIB);
                    let block = if seed % 2 == 0 { Block::new(size, 8, seed) } else { Block::zeroed(size, PAGE, seed) };
                    blocks.push(block.expect("there is memory"));
                }
                1 if !blocks.is_empty() => {
                    let at = random.below(blocks.len());
                    assert!(blocks[at].resize(3 * MIB + random.below(12 * MIB)), "there is memory");
                }
                _ if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
                _ => {}
            }
            assert!(kept() <= bound, "{} KiB are kept", kept() / KIB);
            if seed % 16 == 0 {
                check(Level::Lists).expect("the totals agree");
            }
        }
        drop(blocks);
        HEAP.trim();
        assert_eq!(kept(), 0, "a trim gives all of it back");
        check(Level::Blocks).expect("the totals agree");
    });
    Child::new(NAME, "default").run().succeeded();
    Child::new(NAME, "high").settings("high:16m").run().succeeded();
    Child::new(NAME, "off").settings("worker:off").run().succeeded();
}

/// Without a worker no more than the high mark is kept, and it stays; with hardening nothing is kept.
///
/// Controls: leave `MARKS.freed` out of `put` in `src/zone/mapping_cache.rs`: 64 MiB stay; `mapping_cache::disable` out of
/// `init` in `src/checked/mod.rs`: the freed block can be read.
#[test]
fn settings_are_kept_to() {
    const NAME: &str = "settings_are_kept_to";
    child::body(NAME, |case| {
        let block = take(60 * MIB);
        free(block, 60 * MIB);
        match case {
            "off" => assert!((8 * MIB..=32 * MIB).contains(&kept()), "{} KiB are kept", kept() / KIB),
            _ => {
                assert_eq!(kept(), 0);
                // SAFETY: none: the block is gone, and so will be the process.
                say("byte", unsafe { block.read_volatile() });
            }
        }
    });
    Child::new(NAME, "off").settings("worker:off").run().succeeded();
    for hardened in ["hardened:1", "hardened:guard"] {
        let outcome = Child::new(NAME, "hardened").settings(hardened).run();
        assert_eq!(outcome.signal(), Some(libc::SIGSEGV), "{outcome:?}");
    }
}

/// What is used again within a second stays, whoever looks how often; what is not goes back.
///
/// Controls: have `release_unused` in `src/zone/mapping_cache.rs` ask for an age of 0, and 100 MiB are given back;
/// have it return 0 at once, and in the end everything is still there.
#[test]
fn what_is_used_again_stays_and_goes_back_in_the_end() {
    const NAME: &str = "what_is_used_again_stays_and_goes_back_in_the_end";
    child::body(NAME, |_| {
        let work = |time: Duration| {
            let began = Instant::now();
            while began.elapsed() < time {
                use_once(24 * MIB);
                // Free for most of the time.
                std::thread::sleep(Duration::from_millis(30));
            }
        };
        let start = resident();
        work(Duration::from_millis(500));
        let before = vmstat("pgrelease");
        work(Duration::from_secs(5));
        say("released", (vmstat("pgrelease") - before) * PAGE);
        assert!(resident() > start + 20 * MIB, "it is kept");
        let began = Instant::now();
        while resident() > start + 4 * MIB || kept() > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "given back in the end: {}", HEAP.stats());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    // Where nobody ran for two seconds it is given back, rightly: once is let pass.
    let outcome = Child::new(NAME, "").run().succeeded();
    assert!(outcome.number("released") < 50 * MIB, "{outcome:?}");
}

/// What is kept counts as free, and is what the kernel sees, also where pages of it were never touched.
///
/// Control: leave `mapping_cache::resident_bytes` out of `src/control/stats.rs`, or count `mapping_cache::bytes`.
#[test]
fn stats_agree_with_the_kernel() {
    const NAME: &str = "stats_agree_with_the_kernel";
    child::body(NAME, |_| {
        let seen = || (HEAP.stats(), resident());
        use_once(5 * MIB);
        HEAP.trim();
        let (before, had) = seen();
        use_once(100 * MIB);
        free(take(100 * MIB + 50 * MIB), 150 * MIB);
        let (after, has) = seen();
        assert!(kept() > 140 * MIB, "{} KiB are kept", kept() / KIB);
        let (said, is) = (after.resident - before.resident, has - had);
        assert!(
            said > 90 * MIB && said.abs_diff(is) < is / 50,
            "stats say {} KiB, the kernel {} KiB",
            said >> 10,
            is >> 10
        );
        assert!(after.in_use.abs_diff(before.in_use) < MIB, "nothing is in use");
        assert!(after.free_resident - before.free_resident > 90 * MIB);
    });
    Child::new(NAME, "").settings(ALONE).run().succeeded();
}

/// Nobody is refused anything for the sake of what is kept: neither at the limit nor where address space is short.
///
/// Control: leave `mapping_cache::release` out of `reclaim` in `src/percpu/drain.rs`, and the system refuses. (The limit
/// would only if it were left out of `release` in `src/zone/node.rs`, too.)
#[test]
fn what_is_kept_is_had_before_null() {
    const NAME: &str = "what_is_kept_is_had_before_null";
    child::body(NAME, |case| {
        // What a first use of everything takes for good.
        drop((Block::new(100, 8, 1), Block::new(MIB, 8, 1)));
        if case == "limit" {
            use_once(60 * MIB);
            HEAP.set_limit(Some(HEAP.stats().resident + 10 * MIB)).expect("above what is in use");
            assert!(kept() > 50 * MIB, "{} KiB are kept", kept() / KIB);
            let blocks: Vec<Block> = (0..40).map_while(|n| Block::new(MIB, 8, n)).collect();
            assert_eq!(blocks.len(), 40, "{}", HEAP.stats());
            assert_eq!(kept(), 0);
        } else {
            use_once(60 * MIB);
            let held = kept();
            assert!(held > 50 * MIB, "{} KiB are kept", held / KIB);
            // Room for a block that is aligned beyond a page, and is mapped anew, if what is kept makes room.
            let mapped = std::fs::read_to_string("/proc/self/statm").unwrap();
            let mapped =
                mapped.split(' ').next().and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * PAGE;
            let limit = libc::rlimit { rlim_cur: (mapped + 20 * MIB) as u64, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: the limit is valid for the call.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
            let block = Block::new(50 * MIB, MIB, 3).expect("there is room without what is kept");
            assert_eq!(kept(), 0);
            drop(block);
        }
    });
    // With the worker, which might be quicker than the limit, this would show nothing.
    Child::new(NAME, "limit").settings(ALONE).run().succeeded();
    Child::new(NAME, "address space").settings(ALONE).run().succeeded();
}

/// The child of a `fork` has what was kept for itself, and finds the table's lock free whatever other threads did.
///
/// That the lock is not taken at all before a fork shows by chance only: it is held for a look through sixteen slots.
#[test]
fn a_forked_child_has_it_too() {
    let marks = Watermarks { min: 0, low: 0, high: 512 * MIB };
    HEAP.set_watermarks(marks).expect("they are in order");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    free(take(5 * MIB), 5 * MIB);
                }
            });
        }
        for n in 0..scaled(40) {
            use_once(6 * MIB);
            let status = in_a_fork(|| {
                let block = take(6 * MIB);
                // SAFETY: the blocks are as long, and ours.
                unsafe {
                    block.write(n as u8);
                    let block = HEAP.realloc(block, layout(6 * MIB, 8), 12 * MIB);
                    assert_eq!(block.read(), n as u8);
                    free(block, 12 * MIB);
                    let zeroed = HEAP.alloc_zeroed(layout(5 * MIB, 8));
                    assert!((0..5 * MIB).step_by(PAGE).all(|at| zeroed.add(at).read() == 0));
                }
            });
            if status != 0 {
                over.store(true, Ordering::Relaxed);
            }
            assert_eq!(status, 0, "the child of fork {n}");
        }
        over.store(true, Ordering::Relaxed);
    });
    HEAP.set_watermarks(Watermarks { high: 0, ..marks }).expect("they are in order");
}

/// Threads that take, grow and free blocks at once, and check every byte, while the worker and trims empty the cache.
///
/// Control: have `take_start` in `src/zone/mapping_cache.rs` leave a piece in its place when it hands out all of it.
#[test]
fn no_two_have_the_same() {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut random = Random::new(thread);
                let mut blocks: Vec<Block> = Vec::new();
                for turn in 0..scaled(60) as u64 {
                    let size = 4 * MIB + 1 + random.below(4 * MIB);
                    match random.below(4) {
                        0 | 1 if blocks.len() < 3 => {
                            blocks.push(Block::new(size, 8, thread << 32 | turn).expect("there is memory"));
                        }
                        2 if !blocks.is_empty() => assert!(blocks[0].resize(size), "there is memory"),
                        _ => drop(blocks.pop()),
                    }
                    if thread == 0 && turn % 20 == 0 {
                        HEAP.trim();
                    }
                }
            });
        }
    });
}

/// A layout beyond what the heap has is refused as before.
#[test]
fn impossible_requests_are_refused() {
    use_once(8 * MIB);
    let layout = Layout::from_size_align(isize::MAX as usize - PAGE, 8).expect("just possible");
    // SAFETY: the size is not zero.
    assert!(unsafe { HEAP.alloc(layout) }.is_null());
}
