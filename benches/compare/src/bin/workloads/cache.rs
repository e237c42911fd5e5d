//! Whether small blocks of several threads share cache lines (after Berger's `cache-scratch` and `cache-thrash` for
//! Hoard).

use std::hint::black_box;
use std::thread;

use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "cache_scratch",
        what: "4 threads that each free a block of 8 bytes from the main thread, then allocate one, write to it 200 \
               times and free it, 500,000 times",
        run: |scale, watch| cache(true, scale, watch),
    },
    Row {
        name: "cache_thrash",
        what: "as cache_scratch, with no block from the main thread",
        run: |scale, watch| cache(false, scale, watch),
    },
];

const THREADS: u64 = 4;

fn cache(given: bool, scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let blocks: Vec<Option<Box<u64>>> = (0..THREADS).map(|number| given.then(|| Box::new(number))).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = blocks
            .into_iter()
            .map(|block| {
                scope.spawn(move || {
                    let mut sum = block.map_or(0, |block| *black_box(block));
                    for turn in 0..scale.of(500_000) as u64 {
                        let mut block = black_box(Box::new(turn));
                        for _ in 0..200 {
                            *black_box(&mut *block) += 1;
                        }
                        sum = sum.wrapping_add(*block);
                    }
                    sum
                })
            })
            .collect();
        threads.into_iter().fold(0u64, |sum, thread| sum.wrapping_add(thread.join().expect("a thread")))
    })
}
