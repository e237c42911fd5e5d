//! Objects that change hands between threads which come and go (after mimalloc's `test-stress`).

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale};

macro_rules! row {
    ($name:literal, $threads:literal) => {
        Row {
            name: $name,
            what: concat!(
                $threads,
                " threads that allocate arrays of 1 to 32 words, a few of 100 times as many, keep a third, free two \
                 thirds, and exchange some with a table that all share; then others in their place, 3.2 million arrays \
                 in all"
            ),
            run: |scale, watch| mstress($threads, scale, watch),
        }
    };
}

pub const ROWS: &[Row] = &[
    row!("mstress_1t", 1),
    row!("mstress_2t", 2),
    row!("mstress_4t", 4),
    row!("mstress_8t", 8),
    row!("mstress_16t", 16),
];

/// An array of words that is known by a thin pointer: its length, then words that follow from it and a seed.
struct Words(NonNull<u64>);

// SAFETY: a `Words` is the only handle on its array.
unsafe impl Send for Words {}

impl Words {
    fn new(length: usize, seed: u64) -> Words {
        let mut words = vec![0; length + 2].into_boxed_slice();
        words[0] = length as u64;
        (1..).zip(&mut words[1..]).for_each(|(n, word)| *word = seed ^ n);
        // SAFETY: the pointer comes from a box.
        Words(unsafe { NonNull::new_unchecked(Box::into_raw(words).cast()) })
    }

    /// The array's seed. The process ends if the array is not what it was.
    fn finish(self) -> u64 {
        // SAFETY: this is the only handle on an array that `new` made, with its length in the first word.
        let words = unsafe {
            let length = *self.0.as_ptr() as usize;
            Box::from_raw(ptr::slice_from_raw_parts_mut(self.0.as_ptr(), length + 2))
        };
        let seed = words[1] ^ 1;
        assert!((1..).zip(&words[1..]).all(|(n, word)| *word == seed ^ n), "an array has changed");
        seed
    }
}

const TABLE: usize = 1000;
const ARRAYS: usize = 20_000;
const TOTAL: usize = 3_200_000;

type Table = [AtomicPtr<u64>];

/// Puts an array into the table in exchange for what is there.
fn exchange(table: &Table, at: usize, words: Option<Words>) -> Option<Words> {
    let pointer = words.map_or(ptr::null_mut(), |words| words.0.as_ptr());
    // Release with acquire: whoever takes the array sees what was written to it.
    NonNull::new(table[at].swap(pointer, Ordering::AcqRel)).map(Words)
}

fn mstress(threads: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let table: Vec<AtomicPtr<u64>> = (0..TABLE).map(|_| AtomicPtr::default()).collect();
    let free = |at: usize| exchange(&table, at, None).map_or(0, Words::finish);
    let mut sum = 0u64;
    for generation in 0..scale.of(TOTAL / ARRAYS).div_ceil(threads) {
        thread::scope(|scope| {
            let start = |number| {
                let (random, table) = (Random::new((generation * threads + number) as u64 + 1), &table);
                scope.spawn(move || thread(random, table))
            };
            let started: Vec<_> = (0..threads).map(start).collect();
            sum = started.into_iter().fold(sum, |sum, thread| sum.wrapping_add(thread.join().expect("a thread")));
        });
        // Half of what is in the table, as if other work were done between.
        sum = (generation % 2..TABLE).step_by(2).fold(sum, |sum, at| sum.wrapping_add(free(at)));
    }
    // Which of the threads has freed an array depends on who met whom; that it has been freed does not.
    (0..TABLE).fold(sum, |sum, at| sum.wrapping_add(free(at)))
}

/// One thread; returns the sum of the seeds of what it has freed.
fn thread(mut random: Random, table: &Table) -> u64 {
    let (mut kept, mut data, mut sum) = (Vec::new(), Vec::new(), 0u64);
    for _ in 0..ARRAYS {
        let bits = random.next();
        let mut length = 1 << (bits % 6);
        if bits >> 8 & 0x3ff == 0 {
            length *= 100;
        }
        let words = Some(Words::new(length, bits));
        if bits >> 20 & 0xff < 85 {
            kept.push(words)
        } else {
            data.push(words)
        }
        let (pick, bits) = (random.next() as usize, random.next());
        if bits & 0xff < 170
            && !data.is_empty()
            && let Some(words) = data.swap_remove(pick % data.len())
        {
            sum = sum.wrapping_add(words.finish());
        }
        if !data.is_empty() && bits >> 8 & 0xff < 64 {
            let at = pick % data.len();
            data[at] = exchange(table, (bits >> 16) as usize % TABLE, data[at].take());
        }
    }
    kept.append(&mut data);
    kept.into_iter().flatten().fold(sum, |sum, words| sum.wrapping_add(words.finish()))
}
