//! A program that goes through phases for as long as it likes holds what it needs and no more.
//!
//! ```text
//! in every cycle:   grow      many data sets, each built by a thread of its own, several at a time
//!                   renew     every other one replaced by one of other sizes
//!                   shrink    all but a few dropped, by other threads than built them
//!                   rest      and so on
//! after each phase: rest until the worker has seen to it, then RSS over live bytes
//! ```

mod common;

use std::time::{Duration, Instant};

use common::memory::resident;
use common::{HEAP, MIB, Random, child, on_threads, scaled};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Objects that live and die together, as a connection's, a document's or a request's do.
struct DataSet {
    objects: Vec<Box<[u8]>>,
    bytes: usize,
}

/// What sizes a data set is made of.
#[derive(Clone, Copy)]
enum Sizes {
    Small,
    Medium,
    Large,
}

const SET: usize = 2 * MIB;

impl DataSet {
    /// Objects of at least [`SET`] bytes together; a third of what is allocated meanwhile is freed again at once.
    fn new(sizes: Sizes, seed: u64) -> DataSet {
        let mut random = Random::new(seed);
        let mut set = DataSet { objects: Vec::new(), bytes: 0 };
        let mut scratch = Vec::new();
        while set.bytes < SET {
            let size = 16
                + match sizes {
                    Sizes::Small => random.below(500),
                    Sizes::Medium => random.below(16_000),
                    Sizes::Large => random.below(500_000),
                };
            let object = vec![seed as u8; size].into_boxed_slice();
            if random.below(3) == 0 {
                scratch.push(object);
                scratch.truncate(50);
                continue;
            }
            set.bytes += size;
            set.objects.push(object);
        }
        set.bytes += set.objects.capacity() * size_of::<Box<[u8]>>();
        set
    }

    fn check(&self) {
        assert!(self.objects.iter().all(|object| object[0] == self.objects[0][0]), "contents are as they were");
    }
}

/// Runs `f` for each of `items` on four threads that come and go: each has a sixteenth of the items at most.
fn with_threads<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync) {
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let parcels: Vec<Vec<T>> = (0..4).map(|_| items.by_ref().take(4).collect()).collect();
        on_threads(parcels.into_iter().map(|parcel| || parcel.into_iter().for_each(&f)));
    }
}

/// Rests until RSS stops falling, 2 to 6 s, without an allocation; then RSS.
fn rest() -> usize {
    std::thread::sleep(Duration::from_millis(2000));
    resident()
}

struct Measured {
    live: usize,
    resident: usize,
}

/// Positive controls: have `give_back_unused` in `src/control/worker.rs` return at once (the quiet points after
/// shrinking fail); keep a data set of every cycle (`mem::forget`), and the drift is seen.
#[test]
fn phase_after_phase_memory_follows_what_is_live() {
    const NAME: &str = "phase_after_phase_memory_follows_what_is_live";
    child::body(NAME, |_| {
        let began = Instant::now();
        let mut live: Vec<DataSet> = Vec::new();
        for cycle in 0..scaled(2) as u64 {
            let sizes = |n: usize| [Sizes::Small, Sizes::Medium, Sizes::Large][(n + cycle as usize) % 3];
            let built = std::sync::Mutex::new(Vec::new());
            let build = |from: usize, count: usize| {
                with_threads((from..from + count).collect(), |n| {
                    let set = DataSet::new(sizes(n), cycle << 32 | n as u64);
                    built.lock().unwrap().push(set);
                });
                std::mem::take(&mut *built.lock().unwrap())
            };
            let quiet = |phase: &str, live: &Vec<DataSet>| {
                let bytes: usize = live.iter().map(|set| set.bytes).sum();
                child::say(&format!("{cycle} {phase}"), format!("{} {}", bytes, rest()));
                eprintln!("{}\n{}", HEAP.stats(), HEAP.slabinfo());
            };
            live.extend(build(0, 96));
            quiet("grown", &live);
            let (keep, go): (Vec<_>, Vec<_>) = live.drain(..).enumerate().partition(|(n, _)| n % 2 == 0);
            with_threads(go, |(_, set)| set.check());
            live = keep.into_iter().map(|(_, set)| set).collect();
            live.extend(build(1000, 48));
            quiet("renewed", &live);
            let go = live.drain(24..).collect();
            with_threads(go, |set: DataSet| set.check());
            quiet("shrunk", &live);
        }
        eprintln!("{:?}", began.elapsed());
    });
    let outcome = child::Child::new(NAME, "").run().succeeded();
    println!("{} {}", outcome.stdout, outcome.stderr);
}
