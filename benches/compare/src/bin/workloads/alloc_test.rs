//! A table whose slots are filled and emptied, some much more often than others, and blocks written whole (after
//! Hare's and Ivanov's `alloc-test`).

use std::thread;

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "alloc_test_1t",
        what: "a table of 65,536 slots, most turns at few of them: a block of 8 to 8,192 bytes, the smaller the more \
               often, is allocated and written, or freed; 10 million turns",
        run: |scale, watch| alloc_test(1, scale, watch),
    },
    Row {
        name: "alloc_test_4t",
        what: "as alloc_test_1t, on 4 threads, each with a table of 16,384",
        run: |scale, watch| alloc_test(4, scale, watch),
    },
];

const SLOTS: usize = 65_536;
const TOTAL: usize = 10_000_000;

fn alloc_test(threads: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    let turns = scale.of(TOTAL) / threads;
    watch.begin();
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..threads).map(|number| scope.spawn(move || churn(number as u64, SLOTS / threads, turns))).collect();
        threads.into_iter().fold(0u64, |sum, thread| sum.wrapping_add(thread.join().expect("a thread")))
    })
}

fn churn(number: u64, slots: usize, turns: usize) -> u64 {
    let mut random = Random::new(number + 1);
    let mut table: Vec<Option<(Object, u64)>> = (0..slots).map(|_| None).collect();
    let mut sum = 0u64;
    for _ in 0..turns {
        let (bits, pick) = (random.next(), random.next());
        // The product of two even distributions: half of all turns go to a fifth of the slots.
        let (a, b) = ((pick & 0xffff) as usize, (pick >> 16 & 0xffff) as usize);
        let slot = &mut table[(((a * b) >> 16) * slots) >> 16];
        match slot.take() {
            Some((object, tag)) => {
                assert_eq!(object.difference(tag), 0, "a block has changed");
                sum = sum.wrapping_add(tag);
            }
            None => {
                // Every doubling is half as likely as the one before.
                let doubling = 8 << (bits >> 32).trailing_zeros().min(9);
                let mut object = Object::new(doubling + (bits >> 8) as usize % doubling, bits);
                object.fill();
                *slot = Some((object, bits));
            }
        }
    }
    table.into_iter().flatten().fold(sum, |sum, (_, tag)| sum.wrapping_add(tag))
}
