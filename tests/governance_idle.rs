//! Three seconds after a burst is over, without a call and without an allocation, its memory is back with the system.

mod common;

use std::collections::VecDeque;

use common::memory::{self, resident};
use common::{KIB, MIB, Random, child};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Something that takes memory and gives it back before it returns; says how much was resident in between.
type Burst = fn() -> usize;

const BURSTS: [(&str, Burst); 5] = [
    ("small objects", small_objects),
    ("a vec", growing_vec),
    ("blocks", blocks),
    ("large blocks", large_blocks),
    ("threads", threads),
];

/// 1 GiB in objects of 8 to 2,048 bytes, freed in another order than allocated.
fn small_objects() -> usize {
    let mut random = Random::new(1);
    let mut objects: Vec<Box<[u8]>> = Vec::new();
    let mut bytes = 0;
    while bytes < 1024 * MIB {
        let size = 8 + random.below(2041);
        objects.push(vec![1; size].into_boxed_slice());
        bytes += size;
    }
    let most = resident();
    let mut other: VecDeque<Box<[u8]>> = VecDeque::with_capacity(1000);
    for object in objects {
        if other.len() == 1000 {
            other.swap_remove_back(random.below(1000));
        }
        other.push_back(object);
    }
    most
}

/// A `Vec` pushed to until it has 256 MiB.
fn growing_vec() -> usize {
    let mut numbers: Vec<u64> = Vec::new();
    (0..(256 * MIB / 8) as u64).for_each(|n| numbers.push(n));
    resident()
}

fn blocks() -> usize {
    let blocks: Vec<Vec<u8>> = (0..64).map(|n| vec![n + 1; 2 * MIB]).collect();
    assert!(blocks.iter().enumerate().all(|(n, block)| block[n] == n as u8 + 1));
    resident()
}

/// Mappings, of which some are kept.
fn large_blocks() -> usize {
    let blocks: Vec<Vec<u8>> = (0..16).map(|n| vec![n + 1; 10 * MIB]).collect();
    assert!(blocks.iter().enumerate().all(|(n, block)| block[n] == n as u8 + 1));
    resident()
}

/// 16 threads that each hold 50,000 objects, all of them at once; each frees those of its neighbour, and ends.
fn threads() -> usize {
    let barrier = std::sync::Barrier::new(17);
    let slots: Vec<_> = (0..16).map(|_| std::sync::Mutex::new(Vec::new())).collect();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let (barrier, slots) = (&barrier, &slots);
            scope.spawn(move || {
                let mut random = Random::new(n as u64);
                let objects: Vec<Vec<u8>> = (0..50_000).map(|_| vec![1; 8 + random.below(500)]).collect();
                *slots[n].lock().unwrap() = objects;
                barrier.wait();
                barrier.wait();
                slots[(n + 1) % 16].lock().unwrap().drain(..).for_each(drop);
            });
        }
        barrier.wait();
        let most = resident();
        barrier.wait();
        most
    })
}

/// One process for each burst, all at a time, since they mostly wait: less than three seconds, where there is a CPU for the
/// worker; how long is printed.
///
/// Positive control: have `give_back_unused` in `src/control/worker.rs` return at once, and 46 MiB of the small objects'
/// memory stay; have `release_unused` in `src/zone/mapping_cache.rs` do so, and 64 MiB of the large blocks'.
#[test]
fn after_a_burst_its_memory_comes_back() {
    const NAME: &str = "after_a_burst_its_memory_comes_back";
    child::body(NAME, |which| {
        let (_, burst) = BURSTS.iter().find(|(name, _)| *name == which).expect("a burst of this name");
        // What a first use of everything takes for good.
        drop(vec![0u8; 100]);
        std::thread::spawn(|| drop(vec![0u8; 100])).join().unwrap();
        let start = resident();
        let most = burst();
        let (time, end) = memory::resident_below(start + 16 * MIB);
        child::say("start", start);
        child::say("milliseconds", time.as_millis() as usize);
        child::say("most", most);
        child::say("end", end);
    });
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let children: Vec<_> = BURSTS
            .iter()
            .map(|(name, _)| scope.spawn(|| (*name, child::Child::new(NAME, name).run().succeeded())))
            .collect();
        children.into_iter().map(|child| child.join().unwrap()).collect()
    });
    for (name, outcome) in outcomes {
        let (start, most, end) = (outcome.number("start"), outcome.number("most"), outcome.number("end"));
        let time = outcome.number("milliseconds");
        println!("{name}: {} KiB, at most {} KiB, after {time} ms {} KiB", start / KIB, most / KIB, end / KIB);
        assert!(most > start + 100 * MIB, "{name}: the burst was one");
        assert!(end < start + 16 * MIB, "{name}: {} KiB at the start, {} KiB in the end", start / KIB, end / KIB);
    }
}
