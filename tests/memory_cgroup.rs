//! In a real control group at the limit of its memory. Needs the right to make one; without it, each test says so.
//!
//! The program's own allocator is the system's, so that what the heap does not give is not missed elsewhere.

mod common;

use std::alloc::GlobalAlloc;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::block::layout;
use common::cgroup::{LimitedGroup, join};
use common::child::{self, Child, say};
use common::{HEAP, KIB, MIB};
use pcpalloc::debug::{Level, check};
use pcpalloc::rcu;

fn alloc(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: no size here is 0.
    NonNull::new(unsafe { HEAP.alloc(layout(size, 8)) })
}

/// Every page of it gets memory.
fn fill(block: NonNull<u8>, size: usize) {
    // SAFETY: the caller's block of this size.
    unsafe { block.write_bytes(1, size) };
}

/// Memory in blocks of several sizes until there is no more, or `most` bytes of it; returns the blocks.
fn take(most: usize) -> Vec<(NonNull<u8>, usize)> {
    let mut taken = Vec::with_capacity(100_000);
    let mut bytes = 0;
    for size in [3 * MIB, 300 * KIB, 5000, 700] {
        while bytes < most
            && taken.len() < taken.capacity()
            && let Some(block) = alloc(size)
        {
            fill(block, size);
            taken.push((block, size));
            bytes += size;
        }
    }
    taken
}

fn free(blocks: Vec<(NonNull<u8>, usize)>) {
    for (block, size) in blocks {
        // SAFETY: the caller's block of this size, used no more.
        unsafe { HEAP.dealloc(block.as_ptr(), layout(size, 8)) };
    }
}

fn bytes(blocks: &[(NonNull<u8>, usize)]) -> usize {
    blocks.iter().map(|(_, size)| size).sum()
}

/// With a limit of its own below that of the group the heap answers null, and the process lives; what is freed is had
/// again, and deferred frees complete. Without, the kernel kills it: that is the control.
#[test]
fn a_limit_below_the_groups_is_met_by_null() {
    const NAME: &str = "a_limit_below_the_groups_is_met_by_null";
    const GROUP: usize = 64 * MIB;
    child::body(NAME, |path| {
        join(Path::new(path));
        for _ in 0..3 {
            let mut taken = take(2 * GROUP);
            say("taken", bytes(&taken));
            // A third of it after a grace period, at the limit.
            for (block, size) in taken.split_off(taken.len() / 3 * 2) {
                // SAFETY: ours, and used no more.
                unsafe { rcu::free(block, layout(size, 8)) };
            }
            rcu::barrier();
            let stats = rcu::stats();
            assert_eq!(stats.pending_pointers, 0, "{stats:?}");
            free(taken);
        }
        HEAP.trim();
        assert!(check(Level::Lists).is_ok());
    });
    let Some(group) = LimitedGroup::new(GROUP) else {
        println!("skipped: this test may make no control group here");
        return;
    };
    let limited = Child::new(NAME, group.path()).settings("limit:48m").run().succeeded();
    for taken in limited.stdout.lines().filter_map(|line| line.strip_prefix("taken: ")) {
        let taken: usize = taken.parse().expect("a number");
        assert!((36 * MIB..48 * MIB).contains(&taken), "{} KiB were to be had", taken / KIB);
    }
    let unlimited = Child::new(NAME, group.path()).run();
    assert_eq!(unlimited.signal(), Some(libc::SIGKILL), "{unlimited:?}");
}

/// Has every page of the program and its libraries mapped: one that is come to for the first time at the limit needs a page
/// table, which the group pays for, and with nobody killed whoever comes to it waits, the heap's own threads too.
fn map_programs() {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    for line in maps.lines().filter(|line| line.contains(" r") && line.contains('/')) {
        let (start, end) = line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
        let [start, end] = [start, end].map(|n| usize::from_str_radix(n, 16).expect("hexadecimal"));
        // SAFETY: pages of this process that can be read are read. Refusals (before Linux 5.14, the vdso) are harmless.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_POPULATE_READ) };
    }
}

/// At the group's limit, where every fault waits: deferred frees complete out of the reserve (`min`), a trim gives back
/// what they freed, and whoever waited goes on.
///
/// Without the reserve, the blocks of pointers may lie in memory that has been given back meanwhile, and wait, too.
///
/// Positive control: leave out the trim and set `worker:off`; who waits, waits for ever (the child is ended by its
/// watchdog).
#[test]
fn deferred_frees_complete_at_the_groups_limit() {
    const NAME: &str = "deferred_frees_complete_at_the_groups_limit";
    const GROUP: usize = 96 * MIB;
    const OBJECTS: usize = 12_000;
    const OBJECT: usize = 1000;
    child::body(NAME, |path| {
        let path = Path::new(path);
        // Stacks of a CPU that it has not been on have no memory yet.
        common::move_thread(0, common::cpus()[0]);
        map_programs();
        join(path);
        let control = File::open(path.join("memory.oom_control")).expect("the group is there");
        let mut text = [0; 256];
        // Whatever takes memory while others wait for it waits, too.
        let mut waits = || {
            let len = control.read_at(&mut text, 0).expect("the group is there");
            text[..len].windows(11).any(|row| row == b"under_oom 1")
        };
        let round = |objects: Vec<NonNull<u8>>| {
            for object in objects {
                // SAFETY: ours, and used no more.
                unsafe { rcu::free(object, layout(OBJECT, 8)) };
            }
            rcu::barrier();
            assert_eq!(rcu::stats().pending_pointers, 0);
        };
        let objects = |count: usize| -> Vec<NonNull<u8>> {
            let objects = (0..count).map(|_| alloc(OBJECT).expect("there is memory"));
            objects.inspect(|object| fill(*object, OBJECT)).collect()
        };
        // Three times as much first, so that code, stacks and blocks of pointers have their memory.
        round(objects(3 * OBJECTS));
        let (live, done) = (objects(OBJECTS), AtomicBool::new(false));
        assert!(!waits());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let hog = GROUP - 12 * MIB;
                // SAFETY: no size 0; memory of the system's allocator, which is a mapping as large as that.
                let memory = unsafe { std::alloc::alloc(layout(hog, 8)) };
                fill(NonNull::new(memory).expect("address space"), hog);
                done.store(true, Ordering::Relaxed);
                // SAFETY: allocated above, with this layout.
                unsafe { std::alloc::dealloc(memory, layout(hog, 8)) };
            });
            let began = Instant::now();
            while !waits() {
                assert!(began.elapsed() < Duration::from_secs(60), "the group's limit was not met");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(!done.load(Ordering::Relaxed));
            round(live);
            HEAP.trim();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        say("freed", rcu::stats().freed);
        free(take(16 * MIB));
        assert!(check(Level::Lists).is_ok());
    });
    let Some(group) = LimitedGroup::new(GROUP).filter(LimitedGroup::wait_for_memory) else {
        println!("skipped: this test may make no control group here whose tasks wait for memory (version 1)");
        return;
    };
    let outcome = Child::new(NAME, group.path()).settings("min:4m").run().succeeded();
    assert!(outcome.number("freed") >= 2 * OBJECTS, "{outcome:?}");
}
