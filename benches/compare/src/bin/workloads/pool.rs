//! A pool of more threads than there are processors.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[
    Row {
        name: "pool_16t",
        what: "16 threads that take 600,000 boxed closures from one queue; each makes and sorts a small vector and sends \
               back a string",
        run: pool,
    },
    Row {
        name: "spawn",
        what: "12,000 threads, 4 at a time, that each build and drop a small map, and end",
        run: spawn,
    },
];

type Job = Box<dyn FnOnce() + Send>;

fn work(number: u64) -> String {
    let mut values: Vec<u64> = (0..number % 20 + 3).map(|n| mix(number, n)).collect();
    values.sort_unstable();
    format!("{number}: {:x}", values[1])
}

fn pool(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let (to, from) = mpsc::sync_channel::<Job>(1024);
    let from = Arc::new(Mutex::new(from));
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let from = from.clone();
            thread::spawn(move || {
                loop {
                    let job = from.lock().expect("no thread has panicked").recv();
                    match job {
                        Ok(job) => job(),
                        Err(_) => break,
                    }
                }
            })
        })
        .collect();
    let (answer, answers) = mpsc::channel::<String>();
    let collector = thread::spawn(move || {
        answers.into_iter().fold(0u64, |sum, text| sum.wrapping_add(text.bytes().fold(0, |sum, b| mix(sum, b.into()))))
    });
    for number in 0..scale.of(600_000) as u64 {
        let answer = answer.clone();
        let job: Job = Box::new(move || answer.send(work(number)).expect("answers are collected"));
        to.send(job).expect("there are threads");
    }
    drop((to, answer));
    threads.into_iter().for_each(|thread| thread.join().expect("a thread of the pool"));
    collector.join().expect("the collector")
}

fn spawn(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let sum = AtomicU64::new(0);
    for round in 0..scale.of(12_000) as u64 / 4 {
        thread::scope(|scope| {
            for lane in 0..4 {
                let sum = &sum;
                scope.spawn(move || {
                    let map: std::collections::BTreeMap<u64, String> =
                        (0..50).map(|n| (mix(round * 4 + lane, n), work(n))).collect();
                    let found = map.values().fold(0u64, |sum, text| sum.wrapping_add(text.len() as u64));
                    sum.fetch_add(found ^ map.keys().next().copied().unwrap_or(0), Relaxed);
                });
            }
        });
    }
    sum.into_inner()
}
