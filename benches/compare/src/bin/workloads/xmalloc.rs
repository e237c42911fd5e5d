//! Some threads allocate, others free (after `malloc-test` by Lever and Boreham, in the form of Intel's `xmalloc-test`).

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::thread;

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "xmalloc_1_1",
        what: "a thread that allocates blocks of 8 to 2,048 bytes in batches of 120, and one that frees them; 12 million",
        run: |scale, watch| xmalloc(1, scale, watch),
    },
    Row {
        name: "xmalloc_8_8",
        what: "as xmalloc_1_1, with 8 threads that allocate and 8 that free",
        run: |scale, watch| xmalloc(8, scale, watch),
    },
];

const SIZES: [usize; 16] = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048];
const BATCH: usize = 120;
const TOTAL: usize = 12_000_000;
/// Batches that wait at most, for each thread that allocates.
const WAITING: usize = 10;

type Batch = Vec<(Object, u64)>;

#[derive(Default)]
struct Queue {
    batches: Mutex<(VecDeque<Batch>, usize)>,
    /// There are batches, or no more to come.
    filled: Condvar,
    /// There is room for more.
    emptied: Condvar,
}

impl Queue {
    fn push(&self, batch: Batch, most: usize) {
        let held = self.batches.lock().expect("no thread has panicked");
        let mut held = self.emptied.wait_while(held, |held| held.0.len() >= most).expect("no thread has panicked");
        held.0.push_back(batch);
        drop(held);
        self.filled.notify_one();
    }

    /// `None` after the last.
    fn pop(&self, producers: usize) -> Option<Batch> {
        let held = self.batches.lock().expect("no thread has panicked");
        let wait = |held: &mut (VecDeque<Batch>, usize)| held.0.is_empty() && held.1 < producers;
        let mut held = self.filled.wait_while(held, wait).expect("no thread has panicked");
        let batch = held.0.pop_front();
        drop(held);
        self.emptied.notify_one();
        batch
    }

    fn finish(&self) {
        self.batches.lock().expect("no thread has panicked").1 += 1;
        self.filled.notify_all();
    }
}

fn xmalloc(pairs: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    let queue = Queue::default();
    watch.begin();
    thread::scope(|scope| {
        for number in 0..pairs {
            let queue = &queue;
            scope.spawn(move || {
                let mut random = Random::new(number as u64 + 1);
                for _ in 0..(scale.of(TOTAL) / BATCH).div_ceil(pairs) {
                    let block = |_| {
                        let bits = random.next();
                        (Object::new(SIZES[bits as usize % SIZES.len()], bits), bits)
                    };
                    queue.push((0..BATCH).map(block).collect(), WAITING * pairs);
                }
                queue.finish();
            });
        }
        let free = || {
            let mut sum = 0u64;
            while let Some(batch) = queue.pop(pairs) {
                for (object, tag) in batch {
                    assert_eq!(object.difference(tag), 0, "a block has changed");
                    sum = sum.wrapping_add(tag);
                }
            }
            sum
        };
        let threads: Vec<_> = (0..pairs).map(|_| scope.spawn(free)).collect();
        threads.into_iter().fold(0u64, |sum, thread| sum.wrapping_add(thread.join().expect("a thread that frees")))
    })
}
