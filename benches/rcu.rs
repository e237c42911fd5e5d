//! Readers and deferred frees beside crossbeam-epoch, seize and haphazard: `cargo bench --bench rcu`.
//!
//! All of them allocate from this crate, so that what differs is the reclamation. Each row is what one thread pays;
//! rows of several threads count the operations of all of them against the time of the whole.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Barrier, LazyLock};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_epoch as epoch;
use pcpalloc::{PcpAlloc, rcu};
use seize::Guard;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// 64 bytes, plain memory.
type Value = [u64; 8];
const LAYOUT: Layout = Layout::new::<Value>();

static COLLECTOR: LazyLock<seize::Collector> = LazyLock::new(seize::Collector::new);

/// A scheme, for rows of several threads.
trait Scheme: Sync {
    const NAME: &'static str;
    fn new() -> Self;
    /// Looks at the current value in a section.
    fn read(&self) -> u64;
    /// Replaces the value, and defers the free of what was there.
    fn replace(&self, value: Value);
}

struct Rcu(AtomicPtr<Value>);

fn boxed(value: Value) -> *mut Value {
    Box::into_raw(Box::new(value))
}

impl Scheme for Rcu {
    const NAME: &'static str = "pcpalloc";

    fn new() -> Self {
        Rcu(AtomicPtr::new(boxed([0; 8])))
    }

    fn read(&self) -> u64 {
        let _guard = rcu::read_lock();
        // SAFETY: found inside the section.
        unsafe { (*self.0.load(Ordering::Acquire))[0] }
    }

    fn replace(&self, value: Value) {
        let old = self.0.swap(boxed(value), Ordering::AcqRel);
        // SAFETY: from a box of this layout, unlinked just now.
        unsafe { rcu::free(NonNull::new_unchecked(old.cast()), LAYOUT) };
    }
}

struct Epoch(epoch::Atomic<Value>);

impl Scheme for Epoch {
    const NAME: &'static str = "crossbeam-epoch";

    fn new() -> Self {
        Epoch(epoch::Atomic::new([0; 8]))
    }

    fn read(&self) -> u64 {
        let guard = epoch::pin();
        // SAFETY: never null, and protected by the guard.
        unsafe { self.0.load(Ordering::Acquire, &guard).deref()[0] }
    }

    fn replace(&self, value: Value) {
        let guard = epoch::pin();
        let old = self.0.swap(epoch::Owned::new(value), Ordering::AcqRel, &guard);
        // SAFETY: unlinked just now.
        unsafe { guard.defer_destroy(old) };
    }
}

struct Seize(AtomicPtr<Value>, seize::Collector);

impl Scheme for Seize {
    const NAME: &'static str = "seize";

    fn new() -> Self {
        Seize(AtomicPtr::new(boxed([0; 8])), seize::Collector::new())
    }

    fn read(&self) -> u64 {
        let guard = self.1.enter();
        // SAFETY: protected by the guard.
        unsafe { (*guard.protect(&self.0, Ordering::Acquire))[0] }
    }

    fn replace(&self, value: Value) {
        let guard = self.1.enter();
        let old = guard.swap(&self.0, boxed(value), Ordering::AcqRel);
        // SAFETY: from a box, unlinked just now.
        unsafe { guard.defer_retire(old, seize::reclaim::boxed) };
    }
}

struct Hazard(haphazard::AtomicPtr<Value>);

impl Scheme for Hazard {
    const NAME: &'static str = "haphazard";

    fn new() -> Self {
        Hazard(haphazard::AtomicPtr::from(Box::new([0; 8])))
    }

    fn read(&self) -> u64 {
        std::thread_local!(static HAZARD: std::cell::RefCell<haphazard::HazardPointer<'static>> =
            std::cell::RefCell::new(haphazard::HazardPointer::new()));
        HAZARD.with_borrow_mut(|hazard| {
            let value = self.0.safe_load(hazard).expect("never null")[0];
            hazard.reset_protection();
            value
        })
    }

    fn replace(&self, value: Value) {
        let old = self.0.swap(Box::new(value)).expect("never null");
        // SAFETY: from a box, unlinked just now, and retired in the domain that its readers use.
        unsafe { old.retire() };
    }
}

fn sections(c: &mut Criterion) {
    let mut group = c.benchmark_group("section");
    group.bench_function("pcpalloc", |b| b.iter(|| drop(black_box(rcu::read_lock()))));
    group.bench_function("pcpalloc domain", |b| {
        let domain = rcu::Domain::new(rcu::Heap);
        b.iter(|| drop(black_box(domain.read_lock())));
    });
    group.bench_function("crossbeam-epoch", |b| b.iter(|| drop(black_box(epoch::pin()))));
    group.bench_function("seize", |b| b.iter(|| drop(black_box(COLLECTOR.enter()))));
    fn lookup<S: Scheme>(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>) {
        let scheme = S::new();
        group.bench_function(format!("{} and a look", S::NAME), |b| b.iter(|| black_box(scheme.read())));
    }
    lookup::<Rcu>(&mut group);
    lookup::<Epoch>(&mut group);
    lookup::<Seize>(&mut group);
    lookup::<Hazard>(&mut group);
    group.finish();
}

/// Allocates 64 bytes, writes them, and has them freed later, over and over: what the thread pays that does so.
///
/// crossbeam-epoch, seize and haphazard free on that thread, in some of the calls, so their rows include the frees, but for
/// what is left at the end. pcpalloc's frees are made by its reclaimer, a thread of its own. Where that has no processor to
/// itself its time is in the rows, too; elsewhere what is in them is its use of the same memory, and the waits of a thread
/// that is ahead of it by the high mark.
fn deferred(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocate and defer the free of 64 bytes");
    group.bench_function("pcpalloc", |b| {
        b.iter(|| {
            let value = boxed([0; 8]);
            // SAFETY: from a box of this layout that nobody else knows.
            unsafe { rcu::free(NonNull::new_unchecked(black_box(value).cast()), LAYOUT) };
        });
        rcu::barrier();
    });
    group.bench_function("pcpalloc retire", |b| {
        b.iter(|| rcu::retire(black_box(Box::new([0u64; 8]))));
        rcu::barrier();
    });
    group.bench_function("pcpalloc, nothing written", |b| {
        b.iter(|| {
            // SAFETY: a block of this layout that nobody else knows.
            unsafe { rcu::free(black_box(NonNull::new_unchecked(GLOBAL.alloc(LAYOUT))), LAYOUT) };
        });
        rcu::barrier();
    });
    group.bench_function("crossbeam-epoch", |b| {
        b.iter(|| {
            let guard = epoch::pin();
            let shared = epoch::Owned::new([0u64; 8]).into_shared(&guard);
            // SAFETY: nobody else knows of it.
            unsafe { guard.defer_destroy(black_box(shared)) };
        });
    });
    group.bench_function("seize", |b| {
        b.iter(|| {
            let guard = COLLECTOR.enter();
            // SAFETY: from a box that nobody else knows of.
            unsafe { guard.defer_retire(black_box(boxed([0; 8])), seize::reclaim::boxed) };
        });
    });
    group.bench_function("haphazard", |b| {
        b.iter(|| {
            let shared = haphazard::AtomicPtr::<Value>::from(Box::new([0; 8]));
            // SAFETY: from a box that nobody else knows of, and retired once, with the pointer to it.
            unsafe { black_box(shared).retire() };
        });
    });
    group.finish();
}

/// A value with a destructor, which runs after the grace period.
struct Destroyed(Value);

impl Drop for Destroyed {
    fn drop(&mut self) {
        black_box(&mut self.0);
    }
}

/// As [`deferred`], with a destructor to run.
fn destroyed(c: &mut Criterion) {
    let mut group = c.benchmark_group("allocate and defer the drop of 64 bytes");
    group.bench_function("pcpalloc", |b| {
        b.iter(|| rcu::retire(black_box(Box::new(Destroyed([0; 8])))));
        rcu::barrier();
    });
    group.bench_function("crossbeam-epoch", |b| {
        b.iter(|| {
            let guard = epoch::pin();
            let shared = epoch::Owned::new(Destroyed([0; 8])).into_shared(&guard);
            // SAFETY: nobody else knows of it.
            unsafe { guard.defer_destroy(black_box(shared)) };
        });
    });
    group.bench_function("seize", |b| {
        b.iter(|| {
            let guard = COLLECTOR.enter();
            let value = Box::into_raw(Box::new(Destroyed([0; 8])));
            // SAFETY: from a box that nobody else knows of.
            unsafe { guard.defer_retire(black_box(value), seize::reclaim::boxed) };
        });
    });
    group.finish();
}

/// `threads` readers and as many writers on one pointer, for as long as it takes for `reads` reads per reader.
fn mixed<S: Scheme>(threads: usize, reads: u64) -> (Duration, u64) {
    let (scheme, stop, start) = (S::new(), AtomicBool::new(false), Barrier::new(2 * threads + 1));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        scheme.replace([count; 8]);
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let readers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    (0..reads).for_each(|_| _ = black_box(scheme.read()));
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
        let elapsed = began.elapsed();
        stop.store(true, Ordering::Relaxed);
        (elapsed, writers.into_iter().map(|writer| writer.join().expect("a writer")).sum())
    })
}

fn throughput(c: &mut Criterion) {
    fn row<S: Scheme>(c: &mut Criterion, threads: usize) {
        let mut group = c.benchmark_group(format!("{threads} readers, {threads} writers"));
        group.sample_size(10).throughput(Throughput::Elements(threads as u64));
        let (mut updates, mut time) = (0, Duration::ZERO);
        group.bench_function(S::NAME, |b| {
            b.iter_custom(|reads| {
                let (elapsed, count) = mixed::<S>(threads, reads);
                (updates, time) = (updates + count, time + elapsed);
                elapsed
            });
        });
        if time > Duration::ZERO {
            println!("{:>24} {:.2} M updates/s meanwhile", S::NAME, updates as f64 / time.as_secs_f64() / 1e6);
        }
        group.finish();
    }
    for threads in [1, 2, 4, 16] {
        row::<Rcu>(c, threads);
        row::<Epoch>(c, threads);
        row::<Seize>(c, threads);
        row::<Hazard>(c, threads);
    }
    rcu::barrier();
    let stats = rcu::stats();
    println!(
        "pcpalloc: {} grace periods, median {:?}, p99 {:?}; {} fallbacks in {} frees; {} waits",
        stats.grace_periods,
        stats.grace_period_median,
        stats.grace_period_p99,
        stats.fallbacks,
        stats.freed,
        stats.waits
    );
}

/// How long a grace period takes that somebody waits for: with nobody reading, and with two threads that do nothing
/// else.
fn grace_periods(c: &mut Criterion) {
    let mut group = c.benchmark_group("grace period");
    group.sample_size(20);
    for readers in [0, 2] {
        let (stop, start) = (AtomicBool::new(false), Barrier::new(readers + 1));
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| {
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        drop(black_box(rcu::read_lock()));
                    }
                });
            }
            start.wait();
            group.bench_function(format!("synchronize, {readers} readers"), |b| b.iter(rcu::synchronize));
            group.bench_function(format!("synchronize_expedited, {readers} readers"), |b| {
                b.iter(rcu::synchronize_expedited)
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
    let stats = rcu::stats();
    println!(
        "pcpalloc: waits: median {:?}, p99 {:?}; expedited: median {:?}, p99 {:?}",
        stats.wait_median, stats.wait_p99, stats.expedited_wait_median, stats.expedited_wait_p99
    );
}

criterion_group!(benches, sections, deferred, destroyed, grace_periods, throughput);
criterion_main!(benches);
