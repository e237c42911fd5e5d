//! The rows: small loops over an allocator that is called directly, so that what is inlined into a user's loop is
//! inlined here.
//!
//! All times are per object: one allocation and one free, with the first eight bytes written in between and
//! read back.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;

/// Objects in a batch of mixed sizes.
const BATCH: usize = 400;
/// Objects alive while others are replaced.
const LIVE: usize = 100_000;
/// Objects in a parcel that goes to another thread, and parcels under way.
const PARCEL: usize = 256;
const PARCELS: usize = 4;

/// A block that holds a tag in its first eight bytes.
struct Tagged {
    block: NonNull<u64>,
    size: usize,
}

// SAFETY: a `Tagged` is the only handle on its block, which is plain memory.
unsafe impl Send for Tagged {}

impl Tagged {
    /// `size` is at least 8.
    #[inline(always)]
    fn new<A: GlobalAlloc>(heap: &A, size: usize, tag: u64) -> Self {
        assert!(size >= 8);
        let layout = Layout::from_size_align(size, 8).expect("a size that can be allocated");
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { heap.alloc(layout) }).expect("out of memory").cast();
        // SAFETY: the block is ours, has at least eight bytes and is aligned for them.
        unsafe { block.write(tag) };
        // As far as the compiler knows, what is in the block is read and changed here.
        black_box(block.as_ptr());
        Tagged { block, size }
    }

    /// Frees the block and returns its tag.
    ///
    /// # Safety
    /// `heap` is the one that [`Tagged::new`] was given.
    #[inline(always)]
    unsafe fn free<A: GlobalAlloc>(self, heap: &A) -> u64 {
        // SAFETY: `new` made a layout of the same size and alignment, allocated the block with it from this heap,
        // by the caller's obligation, and wrote the tag; `self` is the only handle on the block and ends here.
        unsafe {
            let tag = self.block.read();
            heap.dealloc(self.block.as_ptr().cast(), Layout::from_size_align_unchecked(self.size, 8));
            tag
        }
    }
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 8 to 511 bytes; every doubling is as likely as the next.
    fn size(&mut self) -> usize {
        let doubling = 8 << (self.next() % 6);
        doubling + self.next() as usize % doubling
    }
}

/// The time that `objects` take if `counted` took `time`.
fn scaled(time: Duration, objects: u64, counted: u64) -> Duration {
    time.mul_f64(objects as f64 / counted as f64)
}

/// Allocates and frees one object after the other.
#[inline(always)]
fn pairs<A: GlobalAlloc>(heap: &A, size: impl Fn() -> usize, objects: u64) -> Duration {
    let mut sum = 0u64;
    let start = Instant::now();
    for tag in 0..objects {
        let object = Tagged::new(heap, size(), tag);
        // SAFETY: it was made from this heap just now.
        sum = sum.wrapping_add(unsafe { object.free(heap) });
    }
    let time = start.elapsed();
    let expected = u128::from(objects) * u128::from(objects.saturating_sub(1)) / 2;
    assert_eq!(sum, expected as u64, "an object has changed");
    time
}

/// Allocates one object of each size, then frees them in the same order.
fn batches<A: GlobalAlloc>(heap: &A, sizes: &[usize], held: &mut Vec<Tagged>, objects: u64) -> Duration {
    let rounds = objects.div_ceil(sizes.len() as u64);
    let (mut tag, mut wrong) = (0, 0);
    let start = Instant::now();
    for _ in 0..rounds {
        let first = tag;
        for size in sizes {
            held.push(Tagged::new(heap, *size, tag));
            tag += 1;
        }
        for (expected, object) in (first..).zip(held.drain(..)) {
            // SAFETY: it was made from this heap just now.
            wrong |= unsafe { object.free(heap) } ^ expected;
        }
    }
    let time = start.elapsed();
    assert_eq!(wrong, 0, "an object has changed");
    scaled(time, objects, rounds * sizes.len() as u64)
}

/// Objects of mixed sizes, of which random ones are replaced by others of random sizes.
struct Churn<'a, A: GlobalAlloc> {
    heap: &'a A,
    live: Vec<Option<Tagged>>,
    sizes: Vec<usize>,
    random: Random,
}

impl<'a, A: GlobalAlloc> Churn<'a, A> {
    fn new(heap: &'a A) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let sizes: Vec<usize> = (0..4096).map(|_| random.size()).collect();
        let live = (0..LIVE).map(|i| Some(Tagged::new(heap, sizes[i % sizes.len()], i as u64))).collect();
        Churn { heap, live, sizes, random }
    }

    fn replace(&mut self, objects: u64) -> Duration {
        let mut wrong = 0;
        let start = Instant::now();
        for _ in 0..objects {
            let random = self.random.next();
            let slot = random as u32 as usize % self.live.len();
            let size = self.sizes[(random >> 40) as usize % self.sizes.len()];
            let object = Tagged::new(self.heap, size, slot as u64);
            if let Some(old) = self.live[slot].replace(object) {
                // SAFETY: everything in `live` was made from this heap.
                wrong |= unsafe { old.free(self.heap) } ^ slot as u64;
            }
        }
        let time = start.elapsed();
        assert_eq!(wrong, 0, "an object has changed");
        time
    }
}

impl<A: GlobalAlloc> Drop for Churn<'_, A> {
    fn drop(&mut self) {
        let mut wrong = 0;
        for (slot, object) in self.live.drain(..).enumerate() {
            if let Some(object) = object {
                // SAFETY: everything in `live` was made from this heap.
                wrong |= unsafe { object.free(self.heap) } ^ slot as u64;
            }
        }
        assert_eq!(wrong, 0, "an object has changed");
    }
}

/// One thread that allocates, in parcels, for another that frees.
struct Stream {
    full: SyncSender<Vec<Tagged>>,
    empty: Receiver<Vec<Tagged>>,
    tag: u64,
}

impl Stream {
    /// Allocates the objects and waits until the last of them is freed.
    fn send<A: GlobalAlloc>(&mut self, heap: &A, sizes: &[usize], objects: u64) -> Duration {
        let rounds = objects.div_ceil(PARCEL as u64);
        let start = Instant::now();
        for _ in 0..rounds {
            let mut parcel = self.empty.recv().expect("the other thread runs");
            for size in sizes.iter().cycle().take(PARCEL) {
                parcel.push(Tagged::new(heap, *size, self.tag));
                self.tag += 1;
            }
            self.full.send(parcel).expect("the other thread runs");
        }
        let empty: Vec<_> = (0..PARCELS).map(|_| self.empty.recv().expect("the other thread runs")).collect();
        let time = start.elapsed();
        self.circulate(empty);
        scaled(time, objects, rounds * PARCEL as u64)
    }

    /// Has the other thread send these back.
    fn circulate(&self, parcels: Vec<Vec<Tagged>>) {
        parcels.into_iter().for_each(|parcel| self.full.send(parcel).expect("the other thread runs"));
    }
}

/// Frees what it is sent and sends the empty parcel back, until there is nobody left to send.
fn receive<A: GlobalAlloc>(heap: &A, full: Receiver<Vec<Tagged>>, empty: SyncSender<Vec<Tagged>>) {
    let mut expected = 0;
    for mut parcel in full {
        for object in parcel.drain(..) {
            // SAFETY: `Stream::send` made it from the same heap.
            assert_eq!(unsafe { object.free(heap) }, expected, "an object has changed");
            expected += 1;
        }
        if empty.send(parcel).is_err() {
            return;
        }
    }
}

/// All rows of one allocator.
pub fn rows<A: GlobalAlloc + Sync>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, heap: &A) {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let sizes: Vec<usize> = (0..BATCH).map(|_| random.size()).collect();
    group.bench_function(format!("pair of u64/{name}"), |b| {
        b.iter_custom(|objects| pairs(heap, size_of::<u64>, objects));
    });
    group.bench_function(format!("pair of opaque 64/{name}"), |b| {
        b.iter_custom(|objects| pairs(heap, || black_box(64), objects));
    });
    group.bench_function(format!("batch of {BATCH}/{name}"), |b| {
        let mut held = Vec::with_capacity(BATCH);
        b.iter_custom(|objects| batches(heap, &sizes, &mut held, objects));
    });
    group.bench_function(format!("churn among {LIVE}/{name}"), |b| {
        let mut churn = Churn::new(heap);
        b.iter_custom(|objects| churn.replace(objects));
    });
    group.bench_function(format!("to another thread/{name}"), |b| {
        thread::scope(|scope| {
            let (full, to_free) = sync_channel(PARCELS);
            let (freed, empty) = sync_channel(PARCELS);
            scope.spawn(move || receive(heap, to_free, freed));
            let mut stream = Stream { full, empty, tag: 0 };
            stream.circulate((0..PARCELS).map(|_| Vec::with_capacity(PARCEL)).collect());
            b.iter_custom(|objects| stream.send(heap, &sizes, objects));
        });
    });
}
