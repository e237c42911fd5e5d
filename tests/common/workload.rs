//! A little of everything, for processes in which the heap has to make do.

use std::sync::mpsc;

use super::model::{Holder, Oracle};
use super::{Block, HEAP, KIB, MIB, Random, on_threads, scaled};

/// Every layer of the heap from one thread and from several, contents checked; afterwards the heap holds about what
/// it held before.
pub fn run() {
    let before = HEAP.stats();
    sizes();
    resizes();
    hand_over();
    model();
    let after = HEAP.stats();
    assert!(after.in_use < before.in_use + 256 * KIB, "what was freed is accounted for:\n{before}\n{after}");
}

fn sizes() {
    let mut live = Vec::new();
    for align in [1, 16, 64, 4 * KIB, 64 * KIB] {
        let mut size = 1;
        while size < 6 * MIB {
            live.extend(Block::new(size, align, size as u64));
            live.extend(Block::zeroed(size + 1, align, size as u64));
            size += size / 3 + 1;
        }
    }
    assert_eq!(live.len() % 2, 0, "every request was served");
    drop(live);
}

fn resizes() {
    let steps =
        [1, 24, 65, 1000, 4097, 33 * KIB, 40 * KIB, 257 * KIB, MIB, 5 * MIB, 6 * MIB, 300 * KIB, 34 * KIB, 100, 1];
    for align in [1, 16, 8 * KIB] {
        let mut block = Block::new(8, align, 7).expect("there is memory");
        for size in steps {
            assert!(block.resize(size), "there is memory");
        }
    }
}

/// Blocks freed by other threads than those that took them, some after those have ended.
fn hand_over() {
    let (sender, receiver) = mpsc::channel::<Block>();
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut random = Random::new(n);
                for _ in 0..scaled(400) {
                    let block = Block::new(1 + random.below(20_000), random.align(), random.word());
                    sender.send(block.expect("there is memory")).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    let late: Vec<Block> = receiver.iter().step_by(2).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(late);
}

fn model() {
    let oracle = Oracle::default();
    on_threads((0..4).map(|seed| {
        let oracle = &oracle;
        move || {
            let mut holder = Holder::new(oracle, seed);
            (0..scaled(1500)).for_each(|_| holder.step());
        }
    }));
    assert!(oracle.is_empty());
}
