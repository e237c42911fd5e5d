//! Many blocks of one size, and a working set of threads (after glibc's `bench-malloc-simple` and `bench-malloc-thread`).

use std::thread;

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "glibc_simple",
        what: "25, 100, 400 and 1,600 blocks of 16, 128, 512, 1,024 and 4,096 bytes are allocated and freed in the same \
               order; 32 million blocks",
        run: simple,
    },
    Row {
        name: "glibc_thread_1t",
        what: "a working set of 1,024 blocks of 8 to 32,768 bytes, the smaller the more often, random ones of which are \
               replaced; 20 million times",
        run: |scale, watch| threads(1, scale, watch),
    },
    Row {
        name: "glibc_thread_8t",
        what: "as glibc_thread_1t, on 8 threads",
        run: |scale, watch| threads(8, scale, watch),
    },
];

fn simple(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut sum = 0u64;
    for size in [16, 128, 512, 1024, 4096] {
        for count in [25, 100, 400, 1600] {
            let mut blocks = Vec::with_capacity(count);
            for turn in 0..scale.of(1_600_000).div_ceil(count) as u64 {
                blocks.extend((0..count).map(|_| Object::new(size, turn)));
                for object in blocks.drain(..) {
                    sum = sum.wrapping_add(object.difference(!turn));
                }
            }
        }
    }
    sum
}

fn threads(threads: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    // Sizes by the inverse of their square, as glibc's benchmark has it.
    let mut random = Random::new(0);
    let sizes: Vec<usize> = (0..8192)
        .map(|_| {
            let share = (random.next() % 1_000_000) as f64 / 1e6;
            (1.0 / (1.0 / 8.0 - share * (1.0 / 8.0 - 1.0 / 32_768.0))) as usize
        })
        .collect();
    watch.begin();
    thread::scope(|scope| {
        let work = |number: usize| {
            let mut random = Random::new(number as u64 + 1);
            let mut blocks: Vec<(Object, u64)> = (0..1024).map(|n| (Object::new(64, n), n)).collect();
            let mut sum = 0u64;
            for _ in 0..scale.of(20_000_000) / threads {
                let bits = random.next();
                let slot = &mut blocks[bits as usize % 1024];
                assert_eq!(slot.0.difference(slot.1), 0, "a block has changed");
                sum = sum.wrapping_add(slot.1);
                *slot = (Object::new(sizes[(bits >> 32) as usize % sizes.len()], bits), bits);
            }
            sum
        };
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().fold(0u64, |sum, thread| sum.wrapping_add(thread.join().expect("a thread")))
    })
}
