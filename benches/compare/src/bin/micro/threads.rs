//! Objects on several threads.

use std::sync::Barrier;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::Row;
use crate::object::{Object, Random};
use crate::small::{Churn, differences};

pub const ROWS: &[Row] = &[
    Row {
        name: "cross_thread",
        operation: "an object of 8 to 511 bytes, allocated on one thread and freed on another, in parcels of 256",
        operations: 1_000_000,
        run: cross_thread,
    },
    Row {
        name: "churn_2t",
        operation: "as churn, on two threads at once, each with its own 100,000 objects; the time that one takes",
        operations: 2_000_000,
        run: |n| {
            let together = Barrier::new(2);
            let times: Vec<Duration> = thread::scope(|scope| {
                let churn = |seed| {
                    let mut churn = Churn::new(100_000, seed);
                    together.wait();
                    let time = churn.replace(n);
                    // Neither thread frees its objects while the other is still timed.
                    together.wait();
                    churn.finish();
                    time
                };
                let threads = [1, 2].map(|seed| scope.spawn(move || churn(seed)));
                threads.map(|thread| thread.join().expect("a churning thread")).to_vec()
            });
            // The mean of the two: all operations, and the sum of what each thread took for its half.
            (2 * n, times.iter().sum())
        },
    },
    Row {
        name: "short_threads",
        operation: "a thread that starts, allocates and frees 100 objects of 8 to 511 bytes, and ends",
        operations: 2_000,
        run: |n| {
            let sizes = Random::new(0).sizes(100);
            let start = Instant::now();
            for tag in 0..n {
                let wrong = thread::scope(|scope| scope.spawn(|| briefly(&sizes, tag)).join().expect("a short thread"));
                assert_eq!(wrong, 0, "an object has changed");
            }
            (n, start.elapsed())
        },
    },
];

/// Allocates an object of each size, then checks and frees them all.
fn briefly(sizes: &[usize], tag: u64) -> u64 {
    let objects: Vec<Object> = sizes.iter().map(|size| Object::new(*size, tag)).collect();
    objects.into_iter().fold(0, |wrong, object| wrong | object.difference(tag))
}

/// Objects in a parcel, and parcels under way.
const PARCEL: u64 = 256;
const PARCELS: usize = 4;

fn cross_thread(n: u64) -> (u64, Duration) {
    let sizes = Random::new(0).sizes(4096);
    let neighbours: Vec<Object> = sizes.iter().zip(0..).map(|(size, tag)| Object::new(*size, tag)).collect();
    let (full, to_free) = sync_channel::<Vec<Object>>(PARCELS);
    let (freed, empty) = sync_channel(PARCELS);
    let parcels = n.div_ceil(PARCEL);
    thread::scope(|scope| {
        let consumer = scope.spawn(move || {
            let (mut tag, mut wrong) = (0, 0);
            for mut parcel in to_free {
                for object in parcel.drain(..) {
                    wrong |= object.difference(tag);
                    tag += 1;
                }
                // The other end goes when everything is sent.
                let _ = freed.send(parcel);
            }
            (tag, wrong)
        });
        let mut spare: Vec<_> = (0..PARCELS).map(|_| Vec::with_capacity(PARCEL as usize)).collect();
        let mut sizes = sizes.iter().cycle();
        let mut tag = 0;
        let start = Instant::now();
        for _ in 0..parcels {
            let mut parcel = spare.pop().unwrap_or_else(|| empty.recv().expect("the consumer runs"));
            for size in sizes.by_ref().take(PARCEL as usize) {
                parcel.push(Object::new(*size, tag));
                tag += 1;
            }
            full.send(parcel).expect("the consumer runs");
        }
        drop(full);
        let (received, wrong) = consumer.join().expect("the consumer");
        let time = start.elapsed();
        assert_eq!((received, wrong | differences(&neighbours)), (tag, 0), "an object has changed");
        (tag, time)
    })
}
