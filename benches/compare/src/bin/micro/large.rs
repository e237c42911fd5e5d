//! Large objects, and one that grows.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::Row;

pub const ROWS: &[Row] = &[
    Row {
        name: "medium_40k",
        operation: "40 KB allocated, a byte in every 4 KiB written, freed",
        operations: 500_000,
        run: |n| pairs(40_000, n),
    },
    Row {
        name: "large_1m",
        operation: "1 MB allocated, a byte in every 4 KiB written, freed",
        operations: 10_000,
        run: |n| pairs(1_000_000, n),
    },
    Row {
        name: "vec_grow",
        operation: "a push onto a Vec<u64> that grows from nothing to 16 Mi elements and is freed",
        operations: 16 << 20,
        run: |n| {
            let start = Instant::now();
            let mut numbers: Vec<u64> = Vec::new();
            for number in 0..n {
                numbers.push(black_box(number));
            }
            let grown = start.elapsed();
            assert!(numbers.iter().copied().eq(0..n), "an element has changed");
            let start = Instant::now();
            drop(numbers);
            (n, grown + start.elapsed())
        },
    },
];

/// Allocates, touches and frees so many blocks, one after the other.
fn pairs(size: usize, n: u64) -> (u64, Duration) {
    let mut wrong = 0;
    let start = Instant::now();
    for tag in 0..n {
        let tag = tag as u8;
        let mut block: Vec<u8> = Vec::with_capacity(black_box(size));
        block.push(tag);
        for page in block.spare_capacity_mut().chunks_mut(4096) {
            page[0].write(tag);
        }
        black_box(block.as_mut_ptr());
        wrong |= block[0] ^ tag;
    }
    let time = start.elapsed();
    assert_eq!(wrong, 0, "a block has changed");
    (n, time)
}
