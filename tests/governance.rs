//! Memory that the program governs: given back when nobody uses it, kept when somebody does, limited politely.
//!
//! Everything here looks at the whole process, so the tests run one at a time.

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::memory::{anonymous, page_faults, vmstat};
use common::{MIB, child};
use pcpalloc::{PcpAlloc, Watermarks};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// How long something may take that takes a second or two: a machine can be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody else runs, and what the test before left free has been given back.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    until("nothing is left free", || {
        GLOBAL.trim();
        // Longer than the worker takes from one look to the next.
        std::thread::sleep(Duration::from_millis(600));
        GLOBAL.stats().free_resident < 2 * MIB
    });
    guard
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}; {}", GLOBAL.stats());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that goes quiet shrinks by itself: nobody calls anything, nobody allocates.
///
/// Positive control: have `give_back_unused` in `src/control/worker.rs` return at once.
#[test]
fn a_quiet_process_shrinks() {
    let _alone = alone();
    let start = anonymous();
    let small: Vec<Box<[u8; 100]>> = (0..2_000_000).map(|n| Box::new([n as u8; 100])).collect();
    assert!(anonymous() > start + 180 * MIB);
    drop(small);
    until("200 MB of small blocks are given back", || anonymous() < start + 16 * MIB);

    let large: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 2 * MIB]).collect();
    assert!(anonymous() > start + 120 * MIB);
    drop(large);
    until("64 blocks of 2 MiB are given back", || anonymous() < start + 16 * MIB);

    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| drop((8..50_008).map(|n| vec![1u8; n % 500]).collect::<Vec<_>>()));
        }
    });
    until("what 16 threads held is given back", || anonymous() < start + 16 * MIB);
}

/// A program that allocates and frees megabytes in a loop does not pay for giving them back: what it uses again
/// within a second stays.
///
/// Positive control: have `Buddy::take_least_warm` return `free_warm`.
#[test]
fn what_is_used_again_is_not_given_back() {
    let _alone = alone();
    let work = |time: Duration| {
        let began = Instant::now();
        let mut turns = 0;
        while began.elapsed() < time {
            let block = vec![1u8; 3 * MIB];
            assert_eq!(block[turns % block.len()], 1);
            drop(block);
            turns += 1;
            // Free for most of the time, so that whoever only looks now and then finds it free.
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // Until what was free before has gone.
    work(Duration::from_millis(2500));
    let before = vmstat("pgrelease");
    work(Duration::from_secs(8));
    let released = (vmstat("pgrelease") - before) * 4096;
    // A block that somebody else took a piece of is replaced by another, and lies idle. Once in a while.
    assert!(released < 10 * MIB, "{} KiB given back", released >> 10);
}

/// What the heap says it holds is what the kernel says it holds.
///
/// Positive control: leave `zone.free_warm_bytes()` out of `src/control/stats.rs`.
#[test]
fn stats_agree_with_the_kernel() {
    const NAME: &str = "stats_agree_with_the_kernel";
    child::body(NAME, |_| {
        // Stacks, the program's own data, the C library's heap.
        let other = anonymous().saturating_sub(GLOBAL.stats().resident);
        let live: Vec<Vec<u8>> = (0..400_000).map(|n| vec![1u8; 16 + n % 900]).collect();
        let holes: Vec<Vec<u8>> = live.into_iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, v)| v).collect();
        // A zone's own pages, too: blocks of which nothing is left in slabs.
        drop((0..50).map(|n| vec![n + 1; MIB]).collect::<Vec<_>>());
        let (said, seen) = (GLOBAL.stats().resident + other, anonymous());
        let apart = said.abs_diff(seen) as f64 / seen as f64;
        assert!(apart < 0.02, "{:.1} %: stats say {} KiB, the kernel {} KiB", apart * 100.0, said >> 10, seen >> 10);
        drop(holes);
    });
    // Nobody gives anything back between the one and the other.
    child::Child::new(NAME, "").settings("worker:off,high:2g").run().succeeded();
}

/// A heap of 16 MiB and more, or of 3 where these are huge pages, takes memory that is cold by units of 2 MiB, each by one call;
/// what it has ahead is free and counted. A smaller one takes no more than its blocks need.
///
/// Positive control: have `is_due` in `src/zone/huge.rs` return false, or leave `least_heap` out of it; or give a unit memory
/// before the run goes back, in `Node::alloc` (`src/zone/node.rs`), and every other one is left to page faults.
#[test]
fn a_large_heap_takes_memory_by_units() {
    const NAME: &str = "a_large_heap_takes_memory_by_units";
    child::body(NAME, |_| {
        // Blocks of a page and more, for which nothing is given memory ahead otherwise.
        let mut live: Vec<Vec<u8>> = Vec::with_capacity(1 << 14);
        live.resize_with(1 << 14, Vec::new);
        live.clear();
        let mut grow_to = |bytes: usize| {
            while GLOBAL.stats().in_use < bytes {
                live.extend((0..10).map(|n| vec![n; 8192]));
            }
        };
        grow_to(MIB);
        child::say("small heap", vmstat("pgpopulate") * 4096);
        grow_to(24 * MIB);
        let (before, began) = (vmstat("pgpopulate") * 4096, GLOBAL.stats());
        let other = anonymous().saturating_sub(began.resident);
        grow_to(124 * MIB);
        let stats = GLOBAL.stats();
        child::say("large heap", vmstat("pgpopulate") * 4096 - before);
        child::say("grown by", stats.in_use - began.in_use);
        child::say("ahead", stats.free_resident);
        child::say("unsaid", (stats.resident + other).abs_diff(anonymous()));
    });
    // Without the worker, which would give back what has lain there for a second of a busy machine.
    for settings in ["worker:off", "worker:off,thp:always", "worker:off,thp:never"] {
        let outcome = child::Child::new(NAME, "").settings(settings).run().succeeded();
        println!("{settings}: {outcome:?}");
        assert!(outcome.number("small heap") < MIB, "{outcome:?}");
        let (taken, grown) = (outcome.number("large heap"), outcome.number("grown by"));
        assert!(taken > grown / 10 * 8 && taken < grown + grown / 10, "{outcome:?}");
        assert!(outcome.number("ahead") <= 6 * MIB && outcome.number("unsaid") < 4 * MIB, "{outcome:?}");
    }
}

/// Counters of what is asked of the system move when it is asked, and what waits for a reader is in use and said to wait.
///
/// Positive control: leave `COUNTERS.released` alone in `Zone::release_free` (`src/zone/node.rs`); or have `settle` in
/// `src/rcu/default.rs` return the default, or leave out what is in pages that fill.
#[test]
fn counters_move_and_what_is_deferred_is_in_use() {
    let _alone = alone();
    let before = GLOBAL.stats();
    drop(vec![vec![1u8; 1000]; 100_000]);
    GLOBAL.trim();
    let after = GLOBAL.stats();
    assert!(after.released >= before.released + 50 * MIB, "{before}\n{after}");
    let section = pcpalloc::rcu::read_lock();
    (0..10_000).for_each(|n: u64| pcpalloc::rcu::retire(Box::new([n; 100])));
    let bytes = 10_000 * GLOBAL.usable_size(std::alloc::Layout::new::<[u64; 100]>());
    // A page that is sealed in the middle of a look is left out of it.
    let waiting = (0..100).map(|_| GLOBAL.stats()).find(|stats| stats.deferred == bytes);
    let waiting = waiting.unwrap_or_else(|| GLOBAL.stats());
    drop(section);
    assert_eq!(waiting.deferred, bytes, "{waiting}");
    assert!(waiting.in_use >= after.in_use + 10_000 * 800 && waiting.deferred <= waiting.in_use, "{waiting}");
    pcpalloc::rcu::barrier();
    assert_eq!(GLOBAL.stats().deferred, 0);
}

/// At the limit the answer is null; memory that is freed can be had again at once.
///
/// Positive control: have `Marks::admits` return true.
#[test]
fn a_limit_answers_null() {
    let _alone = alone();
    let room = 64 * MIB;
    for size in [1000, 100_000, 3 * MIB, 8 * MIB] {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let mut blocks = Vec::with_capacity(512 * MIB / size + 1);
        // So that what is free already is not room, too.
        GLOBAL.trim();
        GLOBAL.set_limit(Some(GLOBAL.stats().resident + room)).unwrap();
        // SAFETY: the size is not zero; blocks are written within their size and freed once.
        unsafe {
            while blocks.len() < blocks.capacity() {
                let block = GLOBAL.alloc(layout);
                if block.is_null() {
                    break;
                }
                block.write_bytes(1, size);
                blocks.push(block);
            }
            let had = blocks.len() * size;
            blocks.drain(..).for_each(|block| GLOBAL.dealloc(block, layout));
            let again = GLOBAL.alloc(layout);
            GLOBAL.set_limit(None).unwrap();
            assert!((40 * MIB..66 * MIB).contains(&had), "blocks of {size}: {} KiB", had >> 10);
            assert!(!again.is_null(), "blocks of {size}: nothing after everything was freed");
            GLOBAL.dealloc(again, layout);
        }
    }
}

/// With `low` set, memory is there before it is asked for: growing by 100 MB takes no page fault.
///
/// Positive control: have `balance` in `src/control/worker.rs` leave out `populate_free`.
#[test]
fn a_low_mark_spares_page_faults() {
    /// Puts the marks back, also if the test fails.
    struct Unset;
    impl Drop for Unset {
        fn drop(&mut self) {
            GLOBAL.set_watermarks(Watermarks { min: 0, low: 0, high: 0 }).unwrap();
        }
    }
    let _alone = alone();
    let _unset = Unset;
    GLOBAL.set_watermarks(Watermarks { min: 0, low: 150 * MIB, high: 200 * MIB }).unwrap();
    until("memory is populated", || GLOBAL.stats().free_resident >= 140 * MIB);
    // Two more looks of the worker's, which sees to blocks that are warm in part.
    std::thread::sleep(Duration::from_millis(600));
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(100);
    let before = page_faults();
    for n in 0..100u8 {
        blocks.push(vec![n; MIB]);
    }
    let faults = page_faults() - before;
    // 100 MB in pages of 4 KiB are 25,600.
    assert!(faults < 500, "{faults} page faults");
    assert!(blocks.iter().enumerate().all(|(n, block)| block[n] == n as u8));
}

#[test]
fn contradictions_are_refused_with_a_reason() {
    let _alone = alone();
    let marks = Watermarks { min: 0, low: 2 * MIB, high: MIB };
    assert!(GLOBAL.set_watermarks(marks).unwrap_err().to_string().contains("above high"));
    let held = vec![1u8; 10 * MIB];
    assert!(GLOBAL.set_limit(Some(MIB)).unwrap_err().to_string().contains("below what is in use"));
    assert_eq!(GLOBAL.limit(), None);
    drop(held);
}

/// The environment's settings are taken, and what cannot be understood is said, once.
#[test]
fn the_environment_is_heard() {
    const NAME: &str = "the_environment_is_heard";
    child::body(NAME, |_| {
        child::say("limit", format!("{:?}", GLOBAL.limit()));
        child::say("high", GLOBAL.watermarks().high);
    });
    let _alone = alone();
    let outcome = child::Child::new(NAME, "")
        .environment("PCPALLOC_CONF", "limit:1g,high:64m,low:lots,fast:yes")
        .run()
        .succeeded();
    assert_eq!(outcome.value("limit"), "Some(1073741824)");
    assert_eq!(outcome.value("high"), "67108864");
    let complaints: Vec<_> = outcome.stderr.lines().filter(|line| line.starts_with("pcpalloc: ")).collect();
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints[0].contains("low:lots") && complaints[1].contains("fast:yes"), "{complaints:?}");
}

/// Marks that contradict each other are both left out, and both said, in whatever order they stand.
///
/// Red if the order decides: in `override_by` (`src/control/config.rs`), leave marks that were given before out of what is
/// compared: `marks = [None; 3]` where one is noted.
#[test]
fn marks_that_contradict_are_left_out_in_either_order() {
    const NAME: &str = "marks_that_contradict_are_left_out_in_either_order";
    child::body(NAME, |_| {
        let Watermarks { min, low, high } = GLOBAL.watermarks();
        child::say("marks", format!("{} {} {}", min / MIB, low / MIB, high / MIB));
    });
    let _alone = alone();
    // Nothing set is 32 MiB.
    for (settings, marks, left_out) in [
        ("high:4m,low:8m", "0 0 32", &["high:4m", "low:8m"][..]),
        ("low:8m,high:4m", "0 0 32", &["high:4m", "low:8m"]),
        ("min:1m,low:8m,high:16m", "1 8 16", &[]),
        ("high:16m,low:8m,min:1m", "1 8 16", &[]),
        ("low:8m", "0 8 8", &[]),
    ] {
        let outcome = child::Child::new(NAME, "").settings(settings).run().succeeded();
        assert_eq!(outcome.value("marks"), marks, "{settings}");
        let said = outcome.stderr.lines().filter(|line| line.starts_with("pcpalloc: ")).count();
        assert_eq!(said, left_out.len(), "{settings}: {outcome:?}");
        for setting in left_out {
            assert!(outcome.stderr.contains(&format!("\"{setting}\" is left out: watermarks: low")), "{outcome:?}");
        }
    }
}
