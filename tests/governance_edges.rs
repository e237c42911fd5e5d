//! What the controls do where little choice is left: a reserve that is all there is, threads that ask at the same moment,
//! a system that refuses, a child of `fork`, a user who is not the program's own.

#![cfg(not(any(loom, pcpalloc_twin, miri)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::child::{self, Child, in_a_fork, say};
use common::memory::{anonymous, resident_below};
use common::{HEAP, KIB, MIB};
use pcpalloc::debug::failures::{self, Call};
use pcpalloc::debug::{Level, check};
use pcpalloc::{PcpAlloc, Watermarks};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A block that has been written to; null if there is none.
fn take(size: usize) -> *mut u8 {
    // SAFETY: no size is 0; the block is as long as this.
    unsafe {
        let block = HEAP.alloc(layout(size));
        if !block.is_null() {
            block.write_bytes(1, size);
        }
        block
    }
}

/// # Safety
/// The block is from [`take`], with this size, and freed once.
unsafe fn give(block: *mut u8, size: usize) {
    // SAFETY: the caller's obligation.
    unsafe { HEAP.dealloc(block, layout(size)) }
}

/// Waits until something is so, a minute at most; whether it is.
fn becomes(condition: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// How often threads of the heap's own have slept so far.
fn sleeps() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted").map(|task| task.unwrap().path());
    let own = tasks.filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "pcpalloc\n"));
    own.map(|path| {
        let status = std::fs::read_to_string(path.join("status")).expect("the thread is there");
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).expect("the kernel says so");
        line.split_whitespace().last().unwrap().parse::<u64>().expect("a number")
    })
    .sum()
}

/// Whether the worker is there and sleeps: awake, it looks three times at least in a second.
fn falls_asleep() -> bool {
    // What it takes to ask is freed, too, and then idle: the worker is awake for four seconds after it.
    std::thread::sleep(Duration::from_secs(6));
    let before = sleeps();
    std::thread::sleep(Duration::from_secs(1));
    before > 0 && sleeps() == before
}

/// Memory below `min` is handed out last, but it is handed out: also runs that are kept as they were freed.
///
/// Hangs if those are not looked at then: in `first_block` (`src/zone/buddy/search.rs`), unpark only if `warm_first`.
#[test]
fn a_reserve_is_used_when_nothing_else_is_left() {
    const NAME: &str = "a_reserve_is_used_when_nothing_else_is_left";
    child::body(NAME, |size| {
        // SAFETY: alarm is a system call without preconditions.
        unsafe { libc::alarm(60) };
        let size: usize = size.parse().unwrap();
        let blocks: Vec<*mut u8> = (0..4).map(|_| take(MIB)).collect();
        // SAFETY: each is from `take`.
        blocks.into_iter().for_each(|block| unsafe { give(block, MIB) });
        for _ in 0..100 * MIB / size {
            assert!(!take(size).is_null(), "there is memory");
        }
        check(Level::Blocks).expect("everything adds up");
    });
    for (size, min) in [(512 * KIB, "min:64m"), (1000, "min:16m")] {
        Child::new(NAME, &size.to_string()).settings(min).run().succeeded();
    }
}

/// Threads that ask for large blocks at the same moment, each of which the limit would admit by itself, do not get more than
/// it admits together.
///
/// Red if blocks are counted once they are there: in `grow` (`src/zone/mapping.rs`), ask `admits(bytes, size)` first and add
/// to `MAPPED` last.
#[test]
fn threads_do_not_pass_by_the_limit_side_by_side() {
    const NAME: &str = "threads_do_not_pass_by_the_limit_side_by_side";
    child::body(NAME, |_| {
        const THREADS: usize = 8;
        const SIZE: usize = 512 * MIB;
        HEAP.set_limit(Some(HEAP.stats().resident + 700 * MIB)).unwrap();
        let mut most = 0;
        for round in 0..1000 {
            let (barrier, got) = (Barrier::new(THREADS), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        barrier.wait();
                        // SAFETY: the size is not 0, and what was allocated is freed once.
                        unsafe {
                            let block = HEAP.alloc(layout(SIZE));
                            got.fetch_add(!block.is_null() as usize, Ordering::Relaxed);
                            barrier.wait();
                            if !block.is_null() {
                                HEAP.dealloc(block, layout(SIZE));
                            }
                        }
                    });
                }
            });
            let got = got.into_inner();
            assert!(got <= 1, "round {round}: {got} blocks of 512 MiB under a limit of 700");
            most = most.max(got);
        }
        assert_eq!(most, 1, "one is admitted");
        check(Level::Blocks).expect("everything adds up");
    });
    Child::new(NAME, "").run().succeeded();
}

/// With a reserve that is there for good, the worker sleeps as without.
///
/// Red if the reserve counts as something to do: in `run` (`src/control/worker.rs`), leave `MARKS.min` out of `tolerated`.
#[test]
fn a_reserve_lets_the_worker_sleep() {
    const NAME: &str = "a_reserve_lets_the_worker_sleep";
    child::body(NAME, |_| {
        drop(vec![1u8; 3 * MIB]);
        drop((0..5000).map(|_| vec![1u8; 1000]).collect::<Vec<_>>());
        assert!(becomes(falls_asleep), "it looked {} times; {}", sleeps(), HEAP.stats());
        assert!(HEAP.stats().free_resident > 2 * MIB, "the reserve is there: {}", HEAP.stats());
    });
    Child::new(NAME, "").settings("min:8m").run().succeeded();
}

/// A low mark that is set while the worker sleeps wakes it.
///
/// Red if nobody is called: in `set_watermarks` (`src/control/watermarks.rs`), leave the call out.
#[test]
fn a_low_mark_wakes_the_worker() {
    const NAME: &str = "a_low_mark_wakes_the_worker";
    child::body(NAME, |_| {
        drop(vec![1u8; 3 * MIB]);
        assert!(becomes(falls_asleep), "it looked {} times; {}", sleeps(), HEAP.stats());
        HEAP.set_watermarks(Watermarks { min: 0, low: 8 * MIB, high: 16 * MIB }).unwrap();
        assert!(becomes(|| HEAP.stats().free_resident >= 8 * MIB), "{}", HEAP.stats());
    });
    Child::new(NAME, "").run().succeeded();
}

/// A system that has no thread to give at one moment may have one later: what is idle goes back then.
///
/// Red if the first refusal is the last word: in `ring` (`src/zone/bell.rs`), do not try again.
#[test]
fn a_worker_that_could_not_be_started_is_started_later() {
    const NAME: &str = "a_worker_that_could_not_be_started_is_started_later";
    child::body(NAME, |_| {
        failures::fail(Call::Spawn as u32, 0, 1);
        let burst = || drop((0..12_000).map(|_| vec![1u8; 2000]).collect::<Vec<_>>());
        burst();
        assert_eq!(failures::counts().1, 1, "a thread was refused");
        // Each turn frees more than a megabyte, which is a reason to call.
        (0..300).for_each(|_| drop((0..1000).map(|_| vec![1u8; 20_000]).collect::<Vec<_>>()));
        burst();
        let (_, bytes) = resident_below(12 * MIB);
        assert!(bytes < 12 * MIB, "{bytes} bytes are resident; {}", HEAP.stats());
    });
    Child::new(NAME, "").run().succeeded();
}

/// What large blocks leave when they shrink where they lie goes back, though nothing is freed besides.
///
/// Red if nobody is called for it: in `Zone::resize` (`src/zone/node.rs`), leave `BELL.freed` out.
#[test]
fn what_a_block_leaves_that_shrinks_goes_back() {
    const NAME: &str = "what_a_block_leaves_that_shrinks_goes_back";
    child::body(NAME, |_| {
        let start = anonymous();
        let blocks: Vec<*mut u8> = (0..16).map(|_| take(4 * MIB)).collect();
        assert!(anonymous() > start + 60 * MIB);
        for block in blocks {
            // SAFETY: from `take`, with this size; the old pointer is not used again.
            let shrunk = unsafe { HEAP.realloc(block, layout(4 * MIB), 40 * KIB) };
            assert_eq!(shrunk, block, "it shrinks where it lies");
        }
        assert!(becomes(|| anonymous() < start + 8 * MIB), "{}", HEAP.stats());
    });
    Child::new(NAME, "").run().succeeded();
}

/// Where the system has no room for one more mapping, what should be unmapped from the middle of one loses its memory all the
/// same.
///
/// Red if that is left as it is: in `unmap` (`src/sys/linux.rs`), leave `release` out.
#[test]
fn a_mapping_that_stays_loses_its_memory() {
    const NAME: &str = "a_mapping_that_stays_loses_its_memory";
    child::body(NAME, |_| {
        const SIZE: usize = 8 * MIB - 4096;
        let blocks: Vec<*mut u8> = (0..9).map(|_| take(SIZE)).collect();
        failures::fail(Call::Unmap as u32, 0, usize::MAX);
        let before = anonymous();
        // SAFETY: each is from `take`, and freed once.
        blocks.iter().skip(1).step_by(2).for_each(|&block| unsafe { give(block, SIZE) });
        let _ = HEAP.trim();
        let less = before.saturating_sub(anonymous());
        assert!(failures::counts().1 > 0, "the system refused");
        assert!(less >= 4 * SIZE - MIB, "{less} bytes less are resident");
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// The low mark holds in a child of `fork`, though nothing is ever freed there.
///
/// Red if the child has to free something first: in `after_fork` (`src/control/worker.rs`), call it with `false`.
#[test]
fn a_child_of_fork_has_its_low_mark() {
    const NAME: &str = "a_child_of_fork_has_its_low_mark";
    child::body(NAME, |_| {
        assert!(becomes(|| HEAP.stats().free_resident >= 8 * MIB), "the parent's is kept: {}", HEAP.stats());
        let status = in_a_fork(|| {
            // More than is free, in blocks that stay.
            (0..40_000).for_each(|_| assert!(!take(1000).is_null(), "there is memory"));
            assert!(becomes(|| HEAP.stats().free_resident >= 8 * MIB), "{}", HEAP.stats());
        });
        assert_eq!(status, 0);
    });
    Child::new(NAME, "").settings("low:8m,high:16m").run().succeeded();
}

/// A program that runs with more rights than whoever started it does not take settings from them.
///
/// Red if it does: in `environment` (`src/sys/linux.rs`), do not ask for `AT_SECURE`.
#[test]
fn the_environment_of_somebody_else_is_not_heard() {
    use std::os::unix::fs::PermissionsExt;
    const NAME: &str = "the_environment_of_somebody_else_is_not_heard";
    const NOBODY: u32 = 65534;
    child::body(NAME, |_| {
        // SAFETY: getauxval has no preconditions.
        say("secure", unsafe { libc::getauxval(libc::AT_SECURE) });
        say("limit", HEAP.limit().map_or(0, |limit| limit));
    });
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return println!("skipped: it takes root to make a program that is set-user-ID");
    }
    let directory = std::env::temp_dir().join(format!("pcpalloc-set-user-id-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory");
    let program = directory.join("program");
    std::fs::copy(std::env::current_exe().expect("the program knows its path"), &program).expect("a copy");
    let mode = |path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("it is ours");
    mode(&directory, 0o755);
    mode(&program, 0o4755);
    let settings = "limit:7g";
    let outcome = Child::of(&program, NAME, "").user(NOBODY).settings(settings).run();
    std::fs::remove_dir_all(&directory).expect("it is ours");
    let outcome = outcome.succeeded();
    if outcome.number("secure") == 0 {
        return println!("skipped: nothing in {} is set-user-ID", directory.display());
    }
    assert_eq!(outcome.number("limit"), 0, "{settings}");
    let heard = Child::new(NAME, "").settings(settings).run().succeeded();
    assert_eq!(heard.number("limit"), 7 << 30, "{settings}");
}
