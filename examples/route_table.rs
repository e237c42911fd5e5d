//! A routing table that is read all the time and updated all the time: longest prefix match on [`RcuCell`], and
//! the same on a lock, on `arc-swap` and on `crossbeam-epoch`.
//!
//! Run it with `cargo run --release --example route_table [seconds per scheme] [readers]`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_epoch as epoch;
use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, RcuCell};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// A value that is read in place and replaced as a whole.
trait Shared<T>: Send + Sync {
    const NAME: &'static str;
    fn new(value: T) -> Self;
    fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R;
    fn replace(&self, value: T);
}

impl<T: Send + Sync + 'static> Shared<T> for RcuCell<T> {
    const NAME: &'static str = "RcuCell";

    fn new(value: T) -> Self {
        RcuCell::new(value)
    }

    fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(RcuCell::read(self, &rcu::read_lock()))
    }

    fn replace(&self, value: T) {
        RcuCell::replace(self, value);
    }
}

impl<T: Send + Sync> Shared<T> for RwLock<T> {
    const NAME: &'static str = "RwLock";

    fn new(value: T) -> Self {
        RwLock::new(value)
    }

    fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&RwLock::read(self).expect("no panic"))
    }

    fn replace(&self, value: T) {
        // Dropped behind the lock.
        let old = core::mem::replace(&mut *self.write().expect("no panic"), value);
        drop(old);
    }
}

impl<T: Send + Sync + 'static> Shared<T> for ArcSwap<T> {
    const NAME: &'static str = "arc-swap";

    fn new(value: T) -> Self {
        ArcSwap::from_pointee(value)
    }

    fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.load())
    }

    fn replace(&self, value: T) {
        self.store(Arc::new(value));
    }
}

impl<T: Send + Sync + 'static> Shared<T> for epoch::Atomic<T> {
    const NAME: &'static str = "crossbeam-epoch";

    fn new(value: T) -> Self {
        epoch::Atomic::new(value)
    }

    fn read<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let guard = epoch::pin();
        // SAFETY: never null, and not dropped while the guard lasts.
        f(unsafe { self.load(Ordering::Acquire, &guard).deref() })
    }

    fn replace(&self, value: T) {
        let guard = epoch::pin();
        let old = self.swap(epoch::Owned::new(value), Ordering::AcqRel, &guard);
        // SAFETY: unlinked just now, by this thread.
        unsafe { guard.defer_destroy(old) };
    }
}

/// Where packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Route {
    prefix: u32,
    len: u8,
    hop: u32,
}

impl Route {
    fn covers(&self, address: u32) -> bool {
        (address ^ self.prefix).checked_shr(32 - self.len as u32).unwrap_or(0) == 0
    }
}

/// The routes under one /16, the longest first, and what holds for the rest of it.
#[derive(Clone, Debug)]
struct Bucket {
    routes: Vec<Route>,
    default: u32,
}

impl Bucket {
    fn lookup(&self, address: u32) -> u32 {
        self.routes.iter().find(|route| route.covers(address)).map_or(self.default, |route| route.hop)
    }

    /// The bucket with a route added, or removed if it is there.
    fn flapped(&self, route: Route) -> Bucket {
        let mut routes = Vec::with_capacity(self.routes.len() + 1);
        routes.extend(self.routes.iter().filter(|old| (old.prefix, old.len) != (route.prefix, route.len)));
        if routes.len() == self.routes.len() {
            let at = routes.partition_point(|old: &Route| old.len >= route.len);
            routes.insert(at, route);
        }
        Bucket { routes, default: self.default }
    }
}

struct Table<S> {
    buckets: Vec<S>,
}

fn random(state: &mut u64) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) as u32
}

/// Mostly /24, as in the tables of the Internet; the hop can be told from the prefix.
fn random_route(state: &mut u64) -> Route {
    let len = match random(state) % 10 {
        0 => 17 + (random(state) % 4) as u8,
        1..4 => 21 + (random(state) % 3) as u8,
        _ => 24,
    };
    let prefix = random(state) & (u32::MAX << (32 - len));
    Route { prefix, len, hop: prefix | len as u32 }
}

impl<S: Shared<Bucket>> Table<S> {
    fn new(routes: usize) -> Self {
        let mut buckets: Vec<_> = (0..1 << 16).map(|n| Bucket { routes: Vec::new(), default: n << 16 | 16 }).collect();
        let mut state = 1;
        for _ in 0..routes {
            let route = random_route(&mut state);
            let bucket = &mut buckets[(route.prefix >> 16) as usize];
            *bucket = bucket.flapped(route);
        }
        Table { buckets: buckets.into_iter().map(S::new).collect() }
    }

    fn lookup(&self, address: u32) -> u32 {
        self.buckets[(address >> 16) as usize].read(|bucket| bucket.lookup(address))
    }

    fn flap(&self, route: Route) {
        let shared = &self.buckets[(route.prefix >> 16) as usize];
        shared.replace(shared.read(|bucket| bucket.flapped(route)));
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn measure<S: Shared<Bucket>>(seconds: f64, readers: usize) {
    let table = Table::<S>::new(200_000);
    let (stop, reads, updates) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut course = Vec::new();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..readers as u64 {
            let (table, stop, reads) = (&table, &stop, &reads);
            scope.spawn(move || {
                let mut state = 77 + reader;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..1024 {
                        let address = random(&mut state);
                        let hop = table.lookup(address);
                        let len = hop & 63;
                        assert_eq!((hop ^ address) >> (32 - len), 0, "{address:#x} was sent to {hop:#x}");
                    }
                    reads.fetch_add(1024, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let mut state = 5;
            while !stop.load(Ordering::Relaxed) {
                (0..64).for_each(|_| table.flap(random_route(&mut state)));
                updates.fetch_add(64, Ordering::Relaxed);
            }
        });
        while began.elapsed().as_secs_f64() < seconds {
            std::thread::sleep(Duration::from_secs_f64(seconds / 8.0));
            course.push((rcu::stats().pending_bytes >> 10, resident_kib() >> 10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let per_second = |count: AtomicUsize| count.into_inner() as f64 / began.elapsed().as_secs_f64();
    let course =
        |f: fn(&(usize, usize)) -> usize| course.iter().map(|point| f(point).to_string()).collect::<Vec<_>>().join(" ");
    println!(
        "{:<16} {:>9.2} M reads/s {:>9.0} updates/s   RSS {} MiB{}",
        S::NAME,
        per_second(reads) / 1e6,
        per_second(updates),
        course(|point| point.1),
        if S::NAME == "RcuCell" {
            format!("\n{:<16} pending {} KiB", "", course(|point| point.0))
        } else {
            String::new()
        },
    );
    rcu::drain();
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(2.0);
    let readers = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    println!("200000 routes, {readers} readers, one updater at full speed");
    measure::<RcuCell<Bucket>>(seconds, readers);
    measure::<RwLock<Bucket>>(seconds, readers);
    measure::<ArcSwap<Bucket>>(seconds, readers);
    measure::<epoch::Atomic<Bucket>>(seconds, readers);
}
