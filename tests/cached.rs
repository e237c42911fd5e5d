//! What the heap keeps for later: bounded by CPUs and not by threads, and given back on demand from anywhere.
//!
//! Where bytes are counted there is no worker, which empties the stacks of idle CPUs in its own time.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use common::child::{self, Child, say};
use common::kernel::{self, Kernel};
use common::{Block, HEAP, KIB, MIB, Random, cpus, on_cpu, scaled};
use pcpalloc::{Drain, Mode, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Takes 400 KiB in small blocks of all sizes to 1 KiB and frees them in another order.
fn use_some(seed: u64) {
    let mut random = Random::new(seed);
    let (mut blocks, mut bytes) = (Vec::with_capacity(2048), 0);
    while bytes < 400 * KIB {
        let block = Block::new(1 + random.below(KIB), 8, seed).expect("there is memory");
        bytes += block.size();
        blocks.push(block);
    }
    while !blocks.is_empty() {
        blocks.swap_remove(random.below(blocks.len()));
    }
}

/// What is cached while so many threads, which together have used the heap 512 times, have gone idle. They are spread
/// over the CPUs, so that as many threads as there are CPUs fill the stacks of all.
fn idle_threads(count: usize) {
    let rounds = 512 / count;
    let cpus = cpus();
    let (used, idle) = (Arc::new(Barrier::new(count + 1)), Arc::new(Barrier::new(count + 1)));
    let threads: Vec<_> = (0..count)
        .map(|seed| {
            let (used, idle, cpu) = (used.clone(), idle.clone(), cpus[seed % cpus.len()]);
            // The stack is the system's: small, for there are many.
            std::thread::Builder::new()
                .stack_size(256 * KIB)
                .spawn(move || {
                    common::move_thread(0, cpu);
                    (0..rounds).for_each(|round| use_some((seed * rounds + round) as u64));
                    used.wait();
                    idle.wait();
                })
                .expect("the system has threads")
        })
        .collect();
    used.wait();
    let stats = HEAP.stats();
    idle.wait();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    say("mode", format!("{:?}", stats.mode));
    say("cached", stats.percpu_cached);
    say("in use", stats.in_use);
    say("cached at the end", HEAP.stats().percpu_cached);
}

/// Red if caches grow with threads: in `choose` (`src/percpu/choice.rs`), change the answer to `Mode::PerThread`.
#[test]
fn idle_threads_cost_next_to_nothing() {
    const NAME: &str = "idle_threads_cost_next_to_nothing";
    child::body(NAME, |count| idle_threads(count.parse().unwrap()));
    // As many threads as it takes to fill the stacks of every CPU.
    let few = (64 * cpus().len()).clamp(64, 256).to_string();
    let run = |kernel, count: &str| Child::new(NAME, count).kernel(kernel).settings("worker:off").run().succeeded();
    for kernel in [Kernel::Whole, Kernel::LibcWithoutRseq] {
        let (many, fewer) = (run(kernel, "512"), run(kernel, &few));
        let (of_many, of_few) = (many.number("cached"), fewer.number("cached"));
        println!("{}: {of_many} bytes cached with 512 idle threads, {of_few} with {few}", many.value("mode"));
        if many.value("mode") == format!("{:?}", Mode::PerThread) {
            assert!(!kernel::libc_has_registered(), "stacks belong to CPUs where they can");
            continue;
        }
        let cpus = cpus().len();
        assert!(of_many < 5 * cpus * MIB, "{many:#?}");
        // Four times as many threads; four times as much would be 12 MiB and more. On a busy machine fewer of them come
        // to use the heap at once.
        assert!(of_many <= 2 * of_few + MIB, "{fewer:#?} {many:#?}");
        assert!(many.number("in use") < MIB, "what the threads have freed is not in use: {many:#?}");
    }
    // Stacks of threads are what they are; those of threads that have ended hold nothing.
    let per_thread = run(Kernel::WithoutRseq(libc::ENOSYS), "512");
    println!("{}: {} bytes cached with 512 idle threads", per_thread.value("mode"), per_thread.value("cached"));
    assert!(per_thread.number("cached at the end") < MIB, "{per_thread:#?}");
}

/// Fills the stacks of every CPU, by threads that have ended.
fn fill_all_stacks() {
    for cpu in cpus() {
        on_cpu(cpu, || use_some(cpu as u64));
    }
}

/// Red if a drain leaves anything: in `drain_cpu` (`src/percpu/drain.rs`), pass by the first class; in `drain`
/// (`src/control/drain.rs`), leave out `transfer::drain`.
#[test]
fn a_drain_of_all_leaves_nothing() {
    const NAME: &str = "a_drain_of_all_leaves_nothing";
    child::body(NAME, |_| {
        let per_thread = HEAP.stats().mode == Mode::PerThread;
        for drained_on in cpus() {
            fill_all_stacks();
            if per_thread {
                use_some(1);
            }
            let before = HEAP.stats();
            assert!(before.percpu_cached > 32 * KIB, "there is something to drain:\n{before}");
            // Without a thread of its own, which would cache what it takes at its start.
            common::move_thread(0, drained_on);
            let report = HEAP.drain(Drain::All);
            let after = HEAP.stats();
            // In per-thread mode the test harness's thread keeps what it has.
            let left = if per_thread { after.percpu_cached } else { 0 };
            assert_eq!((after.percpu_cached, report.unreachable_cpus), (left, 0), "{after}");
            assert_eq!(report.drained, before.percpu_cached - left, "{before}");
            // How much a thread's stacks hold depends on what it did before.
            assert!(report.drained > 8 * KIB, "{report:?}");
            assert_eq!(after.in_use, before.in_use, "{after}");
            assert_eq!(HEAP.drain(Drain::All).drained, 0);

            // More of a size than a stack holds: batches, which are on no CPU's stacks.
            drop((0..20_000).map(|n| Block::new(144, 8, n)).collect::<Vec<_>>());
            cpus().into_iter().for_each(|cpu| _ = HEAP.drain(Drain::Cpu(cpu)));
            HEAP.drain(Drain::Local);
            let on_their_way = HEAP.stats().percpu_cached - left;
            assert!(on_their_way > 8 * KIB, "{}", HEAP.stats());
            let report = HEAP.drain(Drain::All);
            assert_eq!((report.drained, HEAP.stats().percpu_cached), (on_their_way, left), "{}", HEAP.stats());
        }
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).settings("worker:off").run().succeeded();
    }
}

/// A CPU's stacks are emptied from a thread on another CPU, and only they are.
///
/// Red if the wrong CPU is stopped: in `drain_cpu` (`src/percpu/drain.rs`), stop the CPU that the caller runs on.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn a_drain_of_one_cpu_from_another() {
    const NAME: &str = "a_drain_of_one_cpu_from_another";
    child::body(NAME, |_| {
        let cpus = cpus();
        let cached = || HEAP.stats().percpu_cached;
        for (&target, &here) in cpus.iter().zip(cpus.iter().cycle().skip(1)) {
            common::move_thread(0, here);
            HEAP.drain(Drain::All);
            on_cpu(here, || use_some(1));
            let others = cached();
            on_cpu(target, || drop((0..24).map(|n| Block::new(900, 8, n)).collect::<Vec<_>>()));
            let before = cached();
            let report = HEAP.drain(Drain::Cpu(target));
            let after = cached();
            assert_eq!((report.drained, report.unreachable_cpus), (before - after, 0));
            assert!(report.drained >= 24 * 900, "{report:?}");
            assert!(cpus.len() == 1 || after > others / 2, "{after} of {others} left on CPU {here}");
            // CPUs that there are not have nothing.
            for no_cpu in [4096, 1 << 20, usize::MAX] {
                assert_eq!(HEAP.drain(Drain::Cpu(no_cpu)).drained, 0);
            }
            assert!(HEAP.drain(Drain::Local).drained > 0 || cpus.len() == 1);
        }
    });
    for kernel in [Kernel::Whole, Kernel::LibcWithoutRseq] {
        Child::new(NAME, "").kernel(kernel).settings("worker:off").run().succeeded();
    }
}

/// Threads work on, with contents compared, while others drain, trim and take stock as fast as they can.
///
/// Red if a CPU is emptied while its threads use it: in `stop_in` (`src/percpu/table.rs`), do not store 0 to the
/// table.
#[test]
fn nothing_is_lost_in_concurrent_drains() {
    const NAME: &str = "nothing_is_lost_in_concurrent_drains";
    child::body(NAME, |_| {
        let before = HEAP.stats().in_use;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4u64)
                .map(|seed| {
                    scope.spawn(move || {
                        let (mut random, mut live) = (Random::new(seed), Vec::new());
                        for _ in 0..scaled(120_000) {
                            if live.len() > 100 {
                                live.swap_remove(random.below(100));
                            }
                            // Few classes, so that their stacks are in use all the time.
                            let size = [16, 48, 48, 800, 5000][random.below(5)];
                            live.push(Block::new(size, 8, random.word()).expect("there is memory"));
                        }
                    })
                })
                .collect();
            let done = &done;
            let trimmer = scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    HEAP.trim();
                    let stats = HEAP.stats();
                    assert_eq!(
                        stats.resident,
                        stats.in_use + stats.percpu_cached + stats.free_resident + stats.metadata
                    );
                }
            });
            let drainer = scope.spawn(move || {
                let mut drains = 0;
                while !done.load(Ordering::Relaxed) {
                    HEAP.drain([Drain::All, Drain::Local, Drain::Cpu(drains % 2)][drains % 3]);
                    drains += 1;
                }
            });
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
            trimmer.join().unwrap();
            drainer.join().unwrap();
        });
        let after = HEAP.stats();
        assert!(after.in_use < before + 64 * KIB, "nothing is lost: {before} before,\n{after}");
        assert!(
            after.drains > scaled(100).min(100) || after.mode == Mode::PerThread,
            "there were drains all the time: {after}"
        );
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}
