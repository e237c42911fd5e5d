//! A cache that evicts what was used least recently.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[
    Row {
        name: "lru",
        what: "a cache of 16 MiB in values of 32 bytes to 16 KiB, the smaller the more often: 1.5 million look-ups, with a \
               new value for each miss",
        run: |scale, watch| look_up(1, scale, watch),
    },
    Row {
        name: "lru_4t",
        what: "4 threads with a cache each in turn, a quarter of the size and of the look-ups, and a lock on each",
        run: |scale, watch| look_up(4, scale, watch),
    },
];

const BYTES: usize = 16 << 20;
const LOOK_UPS: usize = 1_500_000;
const KEYS: u64 = 60_000;

struct Entry {
    key: u64,
    value: Vec<u8>,
    newer: usize,
    older: usize,
}

/// Entries in a list by age, whose ends are entry 0.
struct Lru {
    entries: Vec<Entry>,
    index: HashMap<u64, usize>,
    free: Vec<usize>,
    bytes: usize,
    most: usize,
}

impl Lru {
    fn new(most: usize) -> Lru {
        let ends = Entry { key: u64::MAX, value: Vec::new(), newer: 0, older: 0 };
        Lru { entries: vec![ends], index: HashMap::new(), free: Vec::new(), bytes: 0, most }
    }

    fn unlink(&mut self, at: usize) {
        let (newer, older) = (self.entries[at].newer, self.entries[at].older);
        self.entries[newer].older = older;
        self.entries[older].newer = newer;
    }

    fn link(&mut self, at: usize) {
        let second = self.entries[0].older;
        (self.entries[at].newer, self.entries[at].older) = (0, second);
        self.entries[second].newer = at;
        self.entries[0].older = at;
    }

    /// The length of the key's value, whether it was found.
    fn look_up(&mut self, key: u64, make: impl FnOnce() -> Vec<u8>) -> (usize, bool) {
        if let Some(at) = self.index.get(&key).copied() {
            self.unlink(at);
            self.link(at);
            assert!(self.entries[at].value.iter().step_by(64).all(|byte| *byte == key as u8), "a value has changed");
            return (self.entries[at].value.len(), true);
        }
        let value = make();
        let length = value.len();
        self.bytes += length;
        let entry = Entry { key, value, newer: 0, older: 0 };
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.index.insert(key, at);
        self.link(at);
        while self.bytes > self.most {
            let oldest = self.entries[0].newer;
            self.unlink(oldest);
            self.index.remove(&self.entries[oldest].key);
            self.bytes -= std::mem::take(&mut self.entries[oldest].value).len();
            self.free.push(oldest);
        }
        (length, false)
    }
}

fn look_up(threads: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let caches: Vec<Mutex<(Lru, Random, u64)>> =
        (0..threads as u64).map(|number| Mutex::new((Lru::new(BYTES / threads), Random::new(number + 1), 0))).collect();
    // Each thread comes to each cache, in another order; what a cache is asked depends on nothing but its own past.
    const TURN: usize = 1000;
    let turns = scale.of(LOOK_UPS / TURN) / threads;
    thread::scope(|scope| {
        for number in 0..threads {
            let caches = &caches;
            scope.spawn(move || {
                for turn in 0..turns {
                    let mut cache = caches[(number + turn) % threads].lock().expect("no thread has panicked");
                    let (lru, random, sum) = &mut *cache;
                    for _ in 0..TURN {
                        let (bits, other) = (random.next(), random.next());
                        let key = (bits % KEYS) * (other % KEYS) / KEYS / threads as u64;
                        let size = 32 << (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).trailing_zeros().min(9);
                        let (length, found) = lru.look_up(key, || vec![key as u8; size]);
                        *sum = mix(*sum, length as u64 + u64::from(found));
                    }
                }
            });
        }
    });
    // How often each cache was come to is fixed, so its sum is, too.
    caches.into_iter().fold(0, |sum, cache| mix(sum, cache.into_inner().expect("no thread has panicked").2))
}
