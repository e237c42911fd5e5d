//! Tables of blocks that are filled and emptied in several orders (after MicroQuill's `sh6bench` and `sh8bench`).

use std::sync::Mutex;
use std::thread;

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "sh6bench",
        what: "4 threads: blocks of 1,000 bytes down to 8, the smaller the more of each, into a table of 10,000; whenever \
               that is full, a part of it stays for another while and the rest is freed, once from the first and once \
               from the last; 12 million blocks",
        run: |scale, watch| fill(watch, |number| sh6(number, scale)),
    },
    Row {
        name: "sh8bench",
        what: "4 threads: blocks of random sizes of 8 to 500 bytes into a table of 4,000 in random places, whose blocks \
               are freed for it, every other block by another thread; 8 million blocks",
        run: sh8,
    },
];

const THREADS: usize = 4;

type Block = (Object, u64);

fn free((object, tag): Block) -> u64 {
    assert_eq!(object.difference(tag), 0, "a block has changed");
    tag
}

/// Four threads that do the same; the sum of what they say.
fn fill(watch: &mut Watch, work: impl Fn(u64) -> u64 + Sync) -> u64 {
    watch.begin();
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS as u64).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().fold(0u64, |sum, thread| sum.wrapping_add(thread.join().expect("a thread")))
    })
}

fn sh6(number: u64, scale: &Scale) -> u64 {
    const TABLE: usize = 10_000;
    const STAY: usize = TABLE / 5;
    let total = scale.of(12_000_000) / THREADS;
    let mut table: Vec<Option<Block>> = (0..TABLE).map(|_| None).collect();
    let (mut sum, mut done, mut at, mut stay, mut turn) = (0u64, 0, 0, 0, 0);
    while done < total {
        for size in (8..=1000usize).rev().step_by(8) {
            // Twice as many of half the size.
            for _ in 0..4096 / size {
                while table[at].is_some() {
                    at += 1;
                    if at == TABLE {
                        // Full: all but a window of it goes, the window being another each time.
                        stay = (stay + STAY) % TABLE;
                        let goes = |at: &usize| !(stay..stay + STAY).contains(at);
                        let mut go = |at: usize| sum = table[at].take().map_or(0, free).wrapping_add(sum);
                        if turn % 2 == 0 {
                            (0..TABLE).filter(goes).for_each(&mut go);
                        } else {
                            (0..TABLE).rev().filter(goes).for_each(&mut go);
                        }
                        turn += 1;
                        at = 0;
                    }
                }
                let tag = number << 56 | done as u64;
                table[at] = Some((Object::new(size, tag), tag));
                at = (at + 1).min(TABLE - 1);
                done += 1;
            }
        }
    }
    table.into_iter().flatten().fold(sum, |sum, block| sum.wrapping_add(free(block)))
}

fn sh8(scale: &Scale, watch: &mut Watch) -> u64 {
    const TABLE: usize = 4000;
    const PARCEL: usize = 200;
    let parcels: [Mutex<Vec<Vec<Block>>>; THREADS] = Default::default();
    let take = |number: usize| std::mem::take(&mut *parcels[number].lock().expect("no thread has panicked"));
    let free_all =
        |parcels: Vec<Vec<Block>>| parcels.into_iter().flatten().fold(0u64, |sum, b| sum.wrapping_add(free(b)));
    let sum = fill(watch, |number| {
        let mut random = Random::new(number + 1);
        let mut table: Vec<Option<Block>> = (0..TABLE).map(|_| None).collect();
        let (mut sum, mut parcel) = (0u64, Vec::with_capacity(PARCEL));
        for n in 0..scale.of(8_000_000) / THREADS {
            let bits = random.next();
            let block = (Object::new(8 + (bits >> 32) as usize % 493, bits), bits);
            match table[bits as u32 as usize % TABLE].replace(block) {
                Some(block) if n % 2 == 0 => sum = sum.wrapping_add(free(block)),
                Some(block) => parcel.push(block),
                None => {}
            }
            if parcel.len() == PARCEL {
                let to = (number as usize + 1 + n / 1000 % (THREADS - 1)) % THREADS;
                let full = std::mem::replace(&mut parcel, Vec::with_capacity(PARCEL));
                parcels[to].lock().expect("no thread has panicked").push(full);
                sum = sum.wrapping_add(free_all(take(number as usize)));
            }
        }
        let rest = table.into_iter().flatten().chain(parcel);
        rest.fold(sum, |sum, block| sum.wrapping_add(free(block)))
    });
    (0..THREADS).fold(sum, |sum, number| sum.wrapping_add(free_all(take(number))))
}
