//! Processes made by `fork` while other threads are in the middle of things.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::child::{self, Child, in_a_fork};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, MIB, Random, on_threads, scaled};
use pcpalloc::{Drain, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Calls `f` on a thread that the standard library knows nothing of: its own may take locks when they start, which
/// nobody gives back if they were held elsewhere when the process was made.
fn on_plain_thread(f: fn(u64), argument: u64) {
    extern "C" fn enter(job: *mut c_void) -> *mut c_void {
        // SAFETY: the pointer comes from the box below, for this thread alone.
        let (f, argument) = *unsafe { Box::from_raw(job.cast::<(fn(u64), u64)>()) };
        f(argument);
        null_mut()
    }
    let job = Box::into_raw(Box::new((f, argument)));
    // SAFETY: `enter` takes what it is passed, and `thread` is valid for the write and then a thread to wait for.
    unsafe {
        let mut thread: libc::pthread_t = std::mem::zeroed();
        assert_eq!(libc::pthread_create(&mut thread, null(), enter, job.cast()), 0);
        assert_eq!(libc::pthread_join(thread, null_mut()), 0);
    }
}

/// Takes blocks of every layer, compares and frees them.
fn exercise(seed: u64) {
    let mut random = Random::new(seed);
    let mut blocks: Vec<Block> = Vec::new();
    for round in 0..120 {
        let most = [300 * KIB, 40 * KIB, 2 * KIB, 2 * KIB][round % 4] >> random.below(8);
        // Now and then a mapping.
        let size = if round == 0 && seed.is_multiple_of(8) { 4 * MIB + 1 } else { 1 + random.below(most) };
        blocks.push(Block::new(size, 8, seed).expect("there is memory"));
        if blocks.len() > 40 {
            let index = random.below(blocks.len());
            blocks.swap_remove(index);
        }
    }
}

/// What a forked process does: frees what it inherited, and uses every part of the heap as if nothing had happened.
fn live_on(inherited: Vec<Block>, seed: u64, may_fork: bool) {
    drop(inherited);
    exercise(seed);
    let reached = HEAP.drain(Drain::All);
    assert_eq!(reached.unreachable_cpus, 0, "the fence is inherited");
    let before = HEAP.stats();
    on_plain_thread(exercise, seed + 1);
    on_plain_thread(|_| assert_eq!(HEAP.trim().unreachable_cpus, 0), 0);
    let after = HEAP.stats();
    assert!(after.in_use < before.in_use + 64 * KIB, "{before}\n{after}");
    if may_fork {
        let blocks = vec![Block::new(1000, 8, seed).expect("there is memory")];
        assert_eq!(in_a_fork(move || live_on(blocks, seed + 2, false)), 0, "a process forked by a forked one");
    }
}

/// Other threads take and free, drain, trim, and come and go; two threads fork.
///
/// Red if a process is made while a lock is held by a thread that it lacks: in `heap::fork_locks` (`src/heap.rs`),
/// leave out `percpu`, the centrals or the nodes, or do not call `sys::at_fork`.
#[test]
fn two_hundred_forks_under_load() {
    const NAME: &str = "two_hundred_forks_under_load";
    child::body(NAME, |forks| {
        let forks_each = scaled(forks.parse::<usize>().unwrap() / 2) as u64;
        let done = &AtomicBool::new(false);
        let forever = |f: &dyn Fn(u64)| (0..).take_while(|_| !done.load(Ordering::Relaxed)).for_each(f);
        let before = HEAP.stats().in_use;
        std::thread::scope(|scope| {
            let load: [fn(u64); 5] = [
                exercise,
                |round| exercise(1000 + round),
                |_| {
                    HEAP.drain(Drain::All);
                    HEAP.stats();
                },
                |_| {
                    HEAP.trim();
                    std::thread::sleep(Duration::from_millis(1));
                },
                |round| on_threads([|| exercise(round)]),
            ];
            let load = load.map(|f| scope.spawn(move || forever(&f)));
            let forkers: Vec<_> = (0..2u64)
                .map(|forker| {
                    scope.spawn(move || {
                        for round in 0..forks_each {
                            let inherited: Vec<_> =
                                (0..20).map(|n| Block::new(1 + 333 * n, 8, round).expect("there is memory")).collect();
                            let status = in_a_fork(move || live_on(inherited, round, round % 10 == forker));
                            assert_eq!(status, 0, "process {round}: how it ended, as waitpid says");
                        }
                    })
                })
                .collect();
            let results: Vec<_> = forkers.into_iter().map(|forker| forker.join()).collect();
            done.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
            load.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let after = HEAP.stats();
        assert!(after.in_use < before + 64 * KIB, "nothing is lost: {before} before,\n{after}");
    });
    for (kernel, forks) in Kernel::MODES.into_iter().zip(["200", "60", "100"]) {
        Child::new(NAME, forks).kernel(kernel).run().succeeded();
    }
}

/// What a forked process does to its heap is its own affair.
///
/// Red if parent and child share pages of it: in `map_at` (`src/sys/linux.rs`), map `MAP_SHARED`.
#[test]
fn parent_and_child_are_apart() {
    const NAME: &str = "parent_and_child_are_apart";
    child::body(NAME, |_| {
        let mine: Vec<Block> = (1..200).map(|n| Block::new(n * n, 8, n as u64).expect("there is memory")).collect();
        let before = HEAP.stats();
        let status = in_a_fork(|| {
            // Takes what the parent has free, and writes to it.
            exercise(1);
            let more: Vec<Block> = (1..400).map(|n| Block::new(n * n, 8, 7).expect("there is memory")).collect();
            drop(more);
            HEAP.trim();
        });
        assert_eq!(status, 0);
        let after = HEAP.stats();
        assert!(after.in_use.abs_diff(before.in_use) < 16 * KIB, "{before}\n{after}");
        assert_eq!(after.mappings, before.mappings);
        mine.iter().for_each(Block::check);
        exercise(2);
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// A process is made while another thread takes memory for the heap's own tables, most of the time in the middle of
/// the system call for it.
///
/// Red if the lock of that memory is left out of `heap::fork_locks` (`src/heap.rs`): the child waits for it for ever.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn forks_while_tables_are_made() {
    use pcpalloc::debug::trial::Stacks;
    const NAME: &str = "forks_while_tables_are_made";
    child::body(NAME, |_| {
        let done = &AtomicBool::new(false);
        drop(Block::new(1, 1, 0));
        std::thread::scope(|scope| {
            let taker = scope.spawn(move || {
                (0..20_000)
                    .take_while(|_| !done.load(Ordering::Relaxed))
                    .for_each(|_| assert!(Stacks::apart().is_some()));
            });
            for round in 0..scaled(20) {
                let status = in_a_fork(|| {
                    assert!(Stacks::apart().is_some());
                    exercise(round as u64);
                });
                assert_eq!(status, 0, "process {round}: how it ended, as waitpid says");
            }
            done.store(true, Ordering::Relaxed);
            taker.join().unwrap();
        });
    });
    Child::new(NAME, "").run().succeeded();
}
