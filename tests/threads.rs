//! Blocks that go from thread to thread, and threads that come and go.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::sync::mpsc;

use common::child::{self, Child};
use common::{Block, HEAP, KIB, MIB, Random, cpus, move_thread, on_cpu, scaled, thread_number};
use pcpalloc::{Drain, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn block(random: &mut Random, most: usize) -> Block {
    Block::new(1 + random.below(most), random.align().min(4 * KIB), random.word()).expect("there is memory")
}

/// 64 threads that take blocks, send them to random others and free what they are sent; each block is compared when
/// it is freed.
fn pass_around(run: impl Fn(usize, &(dyn Fn() + Sync)) + Sync) {
    const THREADS: usize = 64;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Block>()).unzip();
    std::thread::scope(|scope| {
        for (number, receiver) in receivers.into_iter().enumerate() {
            let senders = senders.clone();
            let run = &run;
            scope.spawn(move || {
                let state = std::sync::Mutex::new(Some((senders, receiver)));
                run(number, &|| {
                    let (senders, receiver) = state.lock().unwrap().take().expect("runs once");
                    let mut random = Random::new(number as u64);
                    for _ in 0..scaled(1000) {
                        let size = if random.below(20) == 0 { 100 * KIB } else { 2 * KIB };
                        let block = block(&mut random, size);
                        senders[random.below(THREADS)].send(block).expect("receivers outlive senders");
                        // Keeps up with what comes in, on average.
                        receiver.try_iter().take(random.below(3)).for_each(drop);
                    }
                    // Whoever still has a sender may send; the receiver ends when nobody has.
                    drop(senders);
                    receiver.iter().for_each(drop);
                });
            });
        }
        drop(senders);
    });
}

/// Red if batches on their way between CPUs are lost or doubled: in `transfer::pop` (`src/slab/transfer.rs`), leave
/// the batch on its lane.
#[test]
fn sixty_four_threads_pass_blocks_around() {
    pass_around(|_, body| body());
}

/// Red as above.
#[test]
fn sixty_four_threads_on_fixed_cpus_pass_blocks_around() {
    let cpus = cpus();
    pass_around(|number, body| on_cpu(cpus[number % cpus.len()], body));
}

/// Threads that are moved to another CPU at any moment, between the steps of one operation as well: some that only
/// take blocks, so that stacks run empty, and some that only free them, so that stacks run full.
///
/// Red if a section goes on where it should be restarted: in the macro `leave` (`src/percpu/x86_64.rs`), give the
/// descriptor a length of 0.
#[test]
fn threads_moved_at_any_moment() {
    let cpus = cpus();
    std::thread::scope(|scope| {
        let (hello, numbers) = mpsc::channel();
        let mut workers = Vec::new();
        for pair in 0..2 {
            let (sender, receiver) = mpsc::sync_channel::<Vec<Block>>(4);
            let greet = hello.clone();
            workers.push(scope.spawn(move || {
                greet.send(thread_number()).unwrap();
                let mut random = Random::new(pair);
                for round in 0..scaled(20_000) {
                    let size = [16, 200, 1500][round % 3];
                    let blocks = (0..150).map(|_| Block::new(size, 8, random.word()).expect("there is memory"));
                    sender.send(blocks.collect()).unwrap();
                }
            }));
            let greet = hello.clone();
            workers.push(scope.spawn(move || {
                greet.send(thread_number()).unwrap();
                receiver.iter().for_each(drop);
            }));
        }
        let numbers: Vec<_> = numbers.iter().take(workers.len()).collect();
        let mut random = Random::new(1);
        while !workers.iter().all(|worker| worker.is_finished()) {
            move_thread(numbers[random.below(numbers.len())], cpus[random.below(cpus.len())]);
        }
    });
}

/// What the heap holds on behalf of the program grows with live blocks, not with threads that have been.
///
/// Red if threads leave something behind (per-thread mode): in `thread_exit` (`src/percpu/thread.rs`), do not call
/// `put_aside`.
#[test]
fn ten_thousand_short_threads() {
    const NAME: &str = "ten_thousand_short_threads";
    const THREADS: usize = 10_000;
    child::body(NAME, |_| {
        let wave = |first: usize| {
            let threads: Vec<_> = (first..first + 64)
                .map(|number| {
                    std::thread::spawn(move || {
                        let mut random = Random::new(number as u64);
                        let blocks: Vec<_> = (0..12).map(|_| block(&mut random, 3 * KIB)).collect();
                        drop(blocks);
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        };
        wave(0);
        let before = HEAP.stats();
        (0..scaled(THREADS)).step_by(64).for_each(wave);
        let after = HEAP.stats();
        assert!(after.in_use <= before.in_use + 16 * KIB, "nothing is lost:\n{before}\n{after}");
        assert!(after.percpu_cached <= 4 * MIB, "caches do not grow with threads:\n{before}\n{after}");
        // In per-thread mode a table for each of the threads there were at once, some 100 KiB.
        assert!(after.metadata <= 24 * MIB, "nor do tables:\n{before}\n{after}");
    });
    for kernel in common::kernel::Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// Red if blocks are lost with their threads: in `thread_exit` (`src/percpu/thread.rs`), forget what has been taken
/// from the stacks instead of dropping it.
#[test]
fn blocks_outlive_the_threads_that_took_them() {
    const NAME: &str = "blocks_outlive_the_threads_that_took_them";
    child::body(NAME, |_| {
        let cpus = cpus();
        for round in 0..scaled(60) {
            let take = || {
                let mut random = Random::new(round as u64);
                (0..300).map(|_| block(&mut random, 9 * KIB)).collect::<Vec<Block>>()
            };
            // On one CPU and on the other, by threads that have ended when the blocks are looked at.
            let mut blocks = on_cpu(cpus[0], take);
            blocks.extend(on_cpu(cpus[cpus.len() - 1], take));
            blocks.iter().for_each(Block::check);
            if round % 2 == 0 {
                HEAP.drain(Drain::All);
            }
            let rest = blocks.split_off(300);
            std::thread::spawn(move || drop(blocks)).join().unwrap();
            on_cpu(cpus[round % cpus.len()], move || drop(rest));
        }
        let left = HEAP.stats().in_use;
        assert!(left < 256 * KIB, "all has been given back, {left} bytes are in use");
    });
    for kernel in common::kernel::Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}
