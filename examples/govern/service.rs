//! A program like a service: it holds a little, bursts, and rests. What it says on standard output, a line each, is
//! `live BYTES` and `event TEXT`, for whoever watches it from outside.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

/// What the program does to its allocator on the way, if that can be told anything.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Free memory of 64 to 96 MiB is to be at hand.
    Marks,
    /// No longer.
    NoMarks,
    Drain,
    Trim,
}

/// Bytes in objects that are alive.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// An object, counted while it lives.
struct Object(Box<[u8]>);

impl Object {
    fn new(size: usize) -> Object {
        LIVE.fetch_add(size, Ordering::Relaxed);
        Object(vec![1; size].into_boxed_slice())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        LIVE.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

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

fn say(line: std::fmt::Arguments) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: then there is nobody to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Does nothing but say how much is live, until so many seconds after the start: phases begin by the clock, so that runs
/// can be compared.
fn rest_until(start: Instant, seconds: f64) {
    let end = start + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        say(format_args!("live {}", LIVE.load(Ordering::Relaxed)));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Connections come in on threads of their own: each makes objects of 16 to `most` bytes until it has its share of
/// `bytes`, with scratch memory on the way. Two and a half seconds after the start they go, in the order in which they
/// came.
fn burst(start: Instant, from: f64, threads: usize, bytes: usize, most: usize) {
    const SLICES: usize = 20;
    let (full, over) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
    let held: Vec<Mutex<Vec<Object>>> = (0..threads).map(|_| Mutex::new(Vec::new())).collect();
    std::thread::scope(|scope| {
        for (n, mine) in held.iter().enumerate() {
            let (full, over, held) = (&full, &over, &held);
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9 + n as u64);
                for slice in 1..=SLICES {
                    let mut mine = mine.lock().unwrap();
                    let mut had: usize = mine.iter().map(|object| object.0.len()).sum();
                    let mut scratch = Vec::new();
                    while had < bytes / threads / SLICES * slice {
                        let object = Object::new(16 + random.below(most));
                        if random.below(3) == 0 {
                            scratch.push(object);
                        } else {
                            had += object.0.len();
                            mine.push(object);
                        }
                    }
                    drop(mine);
                    std::thread::sleep(Duration::from_millis(25));
                }
                full.wait();
                over.wait();
                // Another's: connections end where they end.
                let mut objects = std::mem::take(&mut *held[(n + 1) % held.len()].lock().unwrap());
                for _ in 0..SLICES {
                    objects.drain(..objects.len().min(objects.len() / SLICES + 1000));
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        rest_until(start, from + 1.5);
        full.wait();
        rest_until(start, from + 2.5);
        over.wait();
    });
}

/// The program. `control` does what its allocator can do, and says whether it can.
pub fn run(control: impl Fn(Control) -> bool) {
    const MIB: usize = 1 << 20;
    let tell = |what: Control, text: &str| {
        if control(what) {
            say(format_args!("event {text}"));
        }
    };
    // What stays for good: a cache, loaded at the start.
    let mut random = Random(1);
    let mut cache = Vec::new();
    while LIVE.load(Ordering::Relaxed) < 32 * MIB {
        cache.push(Object::new(16 + random.below(2000)));
    }
    let start = Instant::now();
    rest_until(start, 1.5);
    burst(start, 1.5, 8, 256 * MIB, 500);
    rest_until(start, 8.0);
    burst(start, 8.0, 8, 256 * MIB, 300_000);
    rest_until(start, 15.0);
    tell(Control::Marks, "marks: 64 to 96 MiB free");
    rest_until(start, 17.0);
    burst(start, 17.0, 8, 192 * MIB, 5000);
    rest_until(start, 23.0);
    tell(Control::NoMarks, "marks off");
    rest_until(start, 26.0);
    burst(start, 26.0, 16, 192 * MIB, 1000);
    rest_until(start, 28.9);
    tell(Control::Drain, "drain(All)");
    tell(Control::Trim, "trim()");
    rest_until(start, 32.0);
    assert!(cache.iter().all(|object| object.0[0] == 1));
    drop(cache);
}
