//! What each scheme holds back while a reader dawdles: `cargo bench --bench rcu_memory [seconds]`.
//!
//! One thread replaces a value of 256 bytes at full speed; another reads it, and stays in its section for a quarter
//! of a second each time. Each scheme runs in a process of its own, so that its resident memory is its own; all
//! allocate from this crate.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_epoch as epoch;
use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, RcuCell};
use seize::Guard;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

type Value = [u64; 32];

const SCHEME: &str = "PCPALLOC_BENCH_SCHEME";
const NAMES: [&str; 4] = ["pcpalloc", "crossbeam-epoch", "seize", "haphazard"];
/// How long the reader stays.
const DAWDLE: Duration = Duration::from_millis(250);
const POINTS: u32 = 8;

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Runs the two threads and prints a line.
fn run(name: &str, duration: Duration, read: impl Fn(&dyn Fn()) + Sync, replace: impl Fn(Value) + Sync) {
    let (stop, updates) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut points = Vec::new();
    let before = resident_kib();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                read(&|| {
                    let until = Instant::now() + DAWDLE;
                    while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        });
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                replace([n; 32]);
                n += 1;
            }
            updates.store(n as usize, Ordering::Relaxed);
        });
        for point in 1..=POINTS {
            std::thread::sleep((duration * point / POINTS).saturating_sub(began.elapsed()));
            points.push((resident_kib().saturating_sub(before)) >> 10);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let seconds = began.elapsed().as_secs_f64();
    let most = points.iter().max().expect("points");
    let points: String = points.iter().map(|point| format!("{point:>7}")).collect();
    let updates = updates.into_inner() as f64 / seconds / 1e6;
    println!("{name:<16}{points} {most:>9} {updates:>12.2}");
}

fn scheme(name: &str, duration: Duration) {
    match name {
        "pcpalloc" => {
            let cell = RcuCell::new([0; 32]);
            let read = |dawdle: &dyn Fn()| {
                let guard = rcu::read_lock();
                std::hint::black_box(cell.read(&guard));
                dawdle();
            };
            run(name, duration, read, |value| cell.replace(value));
            let (stats, marks) = (rcu::stats(), rcu::watermarks());
            println!("{:<16}high mark {} MiB; {} waits of the writer", "", marks.high >> 20, stats.waits);
        }
        "crossbeam-epoch" => {
            let cell = epoch::Atomic::new([0u64; 32]);
            let read = |dawdle: &dyn Fn()| {
                let guard = epoch::pin();
                std::hint::black_box(cell.load(Ordering::Acquire, &guard));
                dawdle();
            };
            run(name, duration, read, |value| {
                let guard = epoch::pin();
                let old = cell.swap(epoch::Owned::new(value), Ordering::AcqRel, &guard);
                // SAFETY: unlinked just now.
                unsafe { guard.defer_destroy(old) };
            });
        }
        "seize" => {
            let collector = seize::Collector::new();
            let cell = AtomicPtr::new(Box::into_raw(Box::new([0u64; 32])));
            let read = |dawdle: &dyn Fn()| {
                let guard = collector.enter();
                std::hint::black_box(guard.protect(&cell, Ordering::Acquire));
                dawdle();
            };
            run(name, duration, read, |value| {
                let guard = collector.enter();
                let old = guard.swap(&cell, Box::into_raw(Box::new(value)), Ordering::AcqRel);
                // SAFETY: from a box, unlinked just now.
                unsafe { guard.defer_retire(old, seize::reclaim::boxed) };
            });
        }
        _ => {
            let cell = haphazard::AtomicPtr::from(Box::new([0u64; 32]));
            let read = |dawdle: &dyn Fn()| {
                let mut hazard = haphazard::HazardPointer::new();
                std::hint::black_box(cell.safe_load(&mut hazard));
                dawdle();
            };
            run(name, duration, read, |value| {
                let old = cell.swap(Box::new(value)).expect("never null");
                // SAFETY: from a box, unlinked just now.
                unsafe { old.retire() };
            });
        }
    }
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|n| n.parse().ok()).unwrap_or(4.0);
    let test = std::env::args().any(|argument| argument == "--test");
    let duration = Duration::from_secs_f64(if test { 0.4 } else { seconds });
    if let Ok(name) = std::env::var(SCHEME) {
        return scheme(&name, duration);
    }
    println!("resident MiB above the start, over {duration:?}; a reader dawdles for {DAWDLE:?} at a time");
    let heads: String = (1..=POINTS).map(|n| format!("{:>7.2}", duration.as_secs_f64() * n as f64 / 8.0)).collect();
    println!("{:<16}{heads} {:>9} {:>12}", "seconds", "most", "M updates/s");
    for name in NAMES {
        let mut command = std::process::Command::new(std::env::current_exe().expect("a path"));
        let status = command.args(std::env::args().skip(1)).env(SCHEME, name).status();
        assert!(status.is_ok_and(|status| status.success()), "{name}");
    }
}
