//! A program that goes through phases for as long as it likes holds what it needs and no more.
//!
//! ```text
//! in every cycle:   grow      data sets of 2 MiB, built by threads that come and go, four at a time
//!                   renew     half of them freed, by other threads; as many built of objects of other sizes
//!                   shrink    two thirds freed
//!                   replace   the rest gives way to new ones
//! from renewal on, after each phase: rest until the worker has seen to it, then RSS over live bytes
//! ```

mod common;

use std::sync::Mutex;
use std::time::Duration;

use common::memory::resident;
use common::{HEAP, MIB, Random, on_threads, scaled};
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

/// Runs `f` for each of `items` four at a time, on threads that come and go: each handles four.
fn with_threads<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync) {
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let parcels: Vec<Vec<T>> = (0..4).map(|_| items.by_ref().take(4).collect()).collect();
        on_threads(parcels.into_iter().map(|parcel| || parcel.into_iter().for_each(&f)));
    }
}

/// Longer than the worker takes to give back what is not used.
const REST: Duration = Duration::from_millis(2600);

/// One quiet point: bytes live and bytes resident.
struct Point {
    phase: &'static str,
    live: usize,
    resident: usize,
}

impl Point {
    fn ratio(&self) -> f64 {
        self.resident as f64 / self.live as f64
    }
}

/// The phases of one cycle on what is live; a quiet point after each.
fn cycle(number: usize, live: &mut Vec<DataSet>, points: &mut Vec<Point>) {
    let build = |from: usize, count: usize| {
        let built = Mutex::new(Vec::new());
        with_threads((from..from + count).collect(), |n| {
            // The sizes change from parcel to parcel, so that what is freed served others than what comes next.
            let sizes = [Sizes::Small, Sizes::Medium, Sizes::Large][n / 16 % 3];
            let set = DataSet::new(sizes, (number << 32 | n) as u64);
            built.lock().unwrap().push(set);
        });
        built.into_inner().unwrap()
    };
    let free = |sets: Vec<DataSet>| with_threads(sets, |set: DataSet| set.check());
    let mut quiet = |phase, live: &[DataSet]| {
        std::thread::sleep(REST);
        points.push(Point { phase, live: live.iter().map(|set| set.bytes).sum(), resident: resident() });
    };
    live.extend(build(0, 96));
    free(live.drain(48..).collect());
    live.extend(build(1000, 48));
    quiet("renewed", live);
    free(live.drain(40..).collect());
    quiet("shrunk", live);
    free(live.drain(..16).collect());
    live.extend(build(2000, 32));
    free(live.drain(..16).collect());
    quiet("replaced", live);
}

/// Positive control: have `give_back_unused` in `src/control/worker.rs` return at once, and after shrinking 1.7 times
/// what is live stays resident.
#[test]
fn phase_after_phase_memory_follows_what_is_live() {
    let (mut live, mut points) = (Vec::new(), Vec::new());
    let cycles = scaled(2).max(2);
    (0..cycles).for_each(|number| cycle(number, &mut live, &mut points));
    for Point { phase, live, resident } in &points {
        println!("{phase:8} live {:4} MiB, resident {:4} MiB", live / MIB, resident / MIB);
    }
    for point in &points {
        assert!(point.ratio() < 1.25, "{}: {:.2} times what is live; {}", point.phase, point.ratio(), HEAP.stats());
    }
    let (first, last) = (&points[2], &points[points.len() - 1]);
    let drift = last.ratio() - first.ratio();
    // What is live is another set of objects each time, which moves it by half of this.
    assert!(drift < 0.1, "the last cycle ends at {:.2}, the first at {:.2}", last.ratio(), first.ratio());
}
