//! The service's own load: bursts of small objects on several threads, rests between them, and a table whose entries are
//! replaced while others read it.

use std::thread;
use std::time::{Duration, Instant};

use allocator_api2::vec::Vec as TaggedVec;
use pcpalloc::rcu;
use pcpalloc::tag::Tag;

/// Whose memory it is: the parts of the service have a tag each.
static CACHE: Tag = Tag::new("cache");
static REQUESTS: Tag = Tag::new("requests");

const MIB: usize = 1 << 20;
const THREADS: usize = 4;

/// Numbers that look random and are the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 as usize % n
    }
}

/// So many bytes under a tag.
fn bytes(len: usize, tag: &'static Tag) -> TaggedVec<u8, &'static Tag> {
    let mut bytes = TaggedVec::with_capacity_in(len, tag);
    bytes.resize(len, 1);
    bytes
}

/// Starts the load, on threads of its own; it ends with the process.
pub fn start() {
    thread::spawn(|| {
        // What stays: a cache of 24 MiB.
        let mut random = Random(1);
        let cache: Vec<_> = (0..24 << 10).map(|_| bytes(512 + random.below(1024), &CACHE)).collect();
        for round in 0.. {
            burst([160, 64, 110][round % 3] * MIB);
            thread::sleep(Duration::from_millis(4500));
        }
        drop(cache);
    });
    thread::spawn(replace_entries);
    thread::spawn(read_slowly);
}

/// Fills up over two seconds, holds on for one, and lets go over another.
fn burst(size: usize) {
    const STEPS: usize = 40;
    thread::scope(|scope| {
        for n in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random(n as u64 + 7);
                let mut held = Vec::new();
                let mut had = 0;
                for step in 1..=STEPS {
                    while had < size / THREADS / STEPS * step {
                        let object = bytes(16 + random.below(2000), &REQUESTS);
                        had += object.len();
                        held.push(object);
                    }
                    thread::sleep(Duration::from_millis(50));
                }
                thread::sleep(Duration::from_secs(1));
                let share = held.len().div_ceil(STEPS);
                while !held.is_empty() {
                    held.truncate(held.len().saturating_sub(share));
                    thread::sleep(Duration::from_millis(25));
                }
            });
        }
    });
}

/// Entries of a table come and go, four thousand a second; each is freed after a grace period.
fn replace_entries() {
    loop {
        let began = Instant::now();
        for n in 0..200u64 {
            rcu::retire(Box::new([n; 64]));
        }
        thread::sleep(Duration::from_millis(50).saturating_sub(began.elapsed()));
    }
}

/// A reader that takes its time now and then: deferred frees pile up meanwhile.
fn read_slowly() {
    loop {
        let section = rcu::read_lock();
        thread::sleep(Duration::from_millis(2500));
        drop(section);
        thread::sleep(Duration::from_millis(3500));
    }
}
