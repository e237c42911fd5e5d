//! Small objects on one thread.
//!
//! While objects come and go, [`NEIGHBOURS`] others of the same sizes stay, as they do in a program: some
//! allocators do extra work whenever the last object of a page is freed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::Row;
use crate::object::{Object, Random};

const NEIGHBOURS: u64 = 400;

pub const ROWS: &[Row] = &[
    Row {
        name: "box_pair",
        operation: "Box::new(u64) and its drop",
        operations: 10_000_000,
        run: |n| {
            let neighbours: Vec<Box<u64>> = (0..NEIGHBOURS).map(Box::new).collect();
            let mut sum = 0u64;
            let start = Instant::now();
            for tag in 0..n {
                let mut object = Box::new(tag);
                black_box(&raw mut *object);
                sum = sum.wrapping_add(*object);
            }
            let time = start.elapsed();
            assert_eq!(sum, sum_below(n), "an object has changed");
            assert!(neighbours.into_iter().map(|object| *object).eq(0..NEIGHBOURS), "a neighbour has changed");
            (n, time)
        },
    },
    Row {
        name: "opaque64",
        operation: "64 bytes, a size that the compiler does not know, allocated and freed",
        operations: 10_000_000,
        run: |n| {
            let neighbours: Vec<Object> = (0..NEIGHBOURS).map(|tag| Object::new(64, tag)).collect();
            let mut wrong = 0;
            let start = Instant::now();
            for tag in 0..n {
                wrong |= Object::new(black_box(64), tag).difference(tag);
            }
            let time = start.elapsed();
            assert_eq!(wrong | differences(&neighbours), 0, "an object has changed");
            (n, time)
        },
    },
    Row {
        name: "batch400",
        operation: "an object of 8 to 511 bytes, one of 400 that are allocated and then freed in the same order",
        operations: 4_000_000,
        run: |n| batches(400, n),
    },
    Row {
        name: "bulk",
        operation: "an object of 8 to 511 bytes, one of 100,000 that are allocated and then freed in the same order",
        operations: 2_000_000,
        run: |n| batches(100_000, n),
    },
    Row {
        name: "free_in_order",
        operation: "the free of 64 bytes, of 20,000 blocks that are freed in the order in which they were allocated",
        operations: 2_000_000,
        run: |n| frees(n, |_| {}),
    },
    Row {
        name: "free_shuffled",
        operation: "the free of 64 bytes, of 20,000 blocks that are freed in random order",
        operations: 2_000_000,
        run: |n| {
            let mut random = Random::new(0);
            frees(n, |objects| {
                for last in (1..objects.len()).rev() {
                    objects.swap(last, (random.next() >> 32) as usize % (last + 1));
                }
            })
        },
    },
    Row {
        name: "churn",
        operation: "a random one of 100,000 live objects of 8 to 511 bytes is replaced by one of another size",
        operations: 2_000_000,
        run: |n| {
            let mut churn = Churn::new(100_000, 0);
            let time = churn.replace(n);
            churn.finish();
            (n, time)
        },
    },
];

/// Allocates `count` objects and frees them in the same order, until there have been `n`.
fn batches(count: usize, n: u64) -> (u64, Duration) {
    let sizes = Random::new(0).sizes(count);
    let neighbours: Vec<Object> =
        sizes.iter().take(NEIGHBOURS as usize).zip(0..).map(|(size, tag)| Object::new(*size, tag)).collect();
    let mut held = Vec::with_capacity(sizes.len());
    let rounds = n.div_ceil(sizes.len() as u64);
    let mut wrong = 0;
    let start = Instant::now();
    for round in 0..rounds {
        held.extend((round..).zip(&sizes).map(|(tag, size)| Object::new(*size, tag)));
        for (tag, object) in (round..).zip(held.drain(..)) {
            wrong |= object.difference(tag);
        }
    }
    let time = start.elapsed();
    assert_eq!(wrong | differences(&neighbours), 0, "an object has changed");
    (rounds * sizes.len() as u64, time)
}

/// Allocates 20,000 objects of 64 bytes and frees them as `arrange` has put them, until there have been `n`; the frees are
/// timed, and that the objects are looked at.
fn frees(n: u64, mut arrange: impl FnMut(&mut [Object])) -> (u64, Duration) {
    const COUNT: u64 = 20_000;
    let mut objects = Vec::with_capacity(COUNT as usize);
    let (rounds, mut time, mut sum) = (n.div_ceil(COUNT), Duration::ZERO, 0);
    for _ in 0..rounds {
        objects.extend((0..COUNT).map(|tag| Object::new(black_box(64), tag)));
        arrange(&mut objects);
        let start = Instant::now();
        for object in objects.drain(..) {
            sum += object.difference(0);
        }
        time += start.elapsed();
    }
    assert_eq!(sum, rounds * sum_below(COUNT), "an object has changed");
    (rounds * COUNT, time)
}

/// 0 if all objects are as they were made, tagged with their place.
pub fn differences(objects: &[Object]) -> u64 {
    objects.iter().zip(0..).fold(0, |wrong, (object, tag)| wrong | object.difference(tag))
}

/// The sum of all numbers below `n`, modulo 2^64.
fn sum_below(n: u64) -> u64 {
    (u128::from(n) * u128::from(n.saturating_sub(1)) / 2) as u64
}

/// Live objects that are replaced at random.
pub struct Churn {
    live: Vec<Object>,
    sizes: Vec<usize>,
    random: Random,
}

impl Churn {
    pub fn new(live: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sizes = random.sizes(4096);
        let live = (0..live).map(|slot| Object::new(sizes[slot % sizes.len()], slot as u64)).collect();
        Churn { live, sizes, random }
    }

    /// Replaces so many objects; returns the time it took.
    pub fn replace(&mut self, n: u64) -> Duration {
        let mut wrong = 0;
        let start = Instant::now();
        for _ in 0..n {
            let random = self.random.next();
            let slot = random as u32 as usize % self.live.len();
            let size = self.sizes[(random >> 40) as usize % self.sizes.len()];
            wrong |= self.live[slot].difference(slot as u64);
            self.live[slot] = Object::new(size, slot as u64);
        }
        let time = start.elapsed();
        assert_eq!(wrong, 0, "an object has changed");
        time
    }

    /// Checks and frees all objects.
    pub fn finish(self) {
        assert_eq!(differences(&self.live), 0, "an object has changed");
    }
}
