//! Random steps against an oracle that knows which addresses are in use.
//!
//! Red if a block is handed out twice: in `Slab::take` (`src/slab/bitmap.rs`), leave the bits of the blocks taken
//! set; in the section `pop_batch` (`src/percpu/x86_64.rs`), leave the commit out; in `Buddy::take`
//! (`src/zone/buddy.rs`), put back the half that is kept as well.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::sync::Mutex;

use common::model::{Holder, Oracle};
use common::{Block, HEAP, Random, cpus, on_cpu, scaled};
use pcpalloc::{Drain, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

#[test]
fn one_thread() {
    for seed in 0..4 {
        let oracle = Oracle::default();
        let mut holder = Holder::new(&oracle, seed);
        (0..scaled(8_000)).for_each(|_| holder.step());
        drop(holder);
        assert!(oracle.is_empty());
    }
}

/// Threads that also give blocks to one another, through a store that all share.
fn share(oracle: &Oracle, store: &Mutex<Vec<Block>>, seed: u64, steps: usize) {
    let mut holder = Holder::new(oracle, seed);
    let mut random = Random::new(!seed);
    for _ in 0..steps {
        holder.step();
        match random.below(10) {
            0 => store.lock().unwrap().extend(holder.part_with()),
            1 => {
                let block = store.lock().unwrap().pop();
                block.into_iter().for_each(|block| holder.take_over(block));
            }
            _ => {}
        }
    }
    // What is left in the store goes with whoever comes last.
    let rest = std::mem::take(&mut *store.lock().unwrap());
    rest.into_iter().for_each(|block| holder.take_over(block));
}

#[test]
fn eight_threads() {
    let (oracle, store) = (Oracle::default(), Mutex::default());
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (oracle, store) = (&oracle, &store);
            scope.spawn(move || share(oracle, store, seed, scaled(3_000)));
        }
    });
    assert!(oracle.is_empty());
}

/// Threads kept to one CPU each, several on every CPU, and one that empties the CPUs' stacks under them.
#[test]
fn threads_that_stay_on_their_cpus_while_stacks_are_drained() {
    let (oracle, store) = (Oracle::default(), Mutex::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = cpus()
            .into_iter()
            .cycle()
            .take(6)
            .enumerate()
            .map(|(seed, cpu)| {
                let (oracle, store) = (&oracle, &store);
                scope.spawn(move || on_cpu(cpu, || share(oracle, store, 100 + seed as u64, scaled(2_000))))
            })
            .collect();
        while !workers.iter().all(|worker| worker.is_finished()) {
            HEAP.drain(Drain::All);
            std::thread::yield_now();
        }
    });
    assert!(oracle.is_empty());
}
