//! What threads have in common, in counts: `cargo bench --bench counts [thousands of operations per thread]`.
//!
//! Each workload runs on 1, 2, 4, 8 and 16 threads, on a CPU each as far as there are so many, and as much per thread. The
//! table has what happened in a million operations: slow paths, locks, exchanges on words that CPUs share, fences. A row
//! that does not grow with the threads is one whose threads do not wait for each other; times are not measured, so that the
//! table says the same on a machine that is busy, or emulated.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{NonNull, null_mut};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use pcpalloc::debug::failures::{self, Call};
use pcpalloc::debug::{LockCounts, Shared, shared};
use pcpalloc::{PcpAlloc, Stats, rcu};

#[global_allocator]
static HEAP: PcpAlloc = PcpAlloc::new();

const THREADS: [usize; 5] = [1, 2, 4, 8, 16];

/// Numbers by xorshift (G. Marsaglia, 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// 16 bytes to 1 KiB, small ones more often, as most programs have it.
    fn layout(&mut self) -> Layout {
        let most = 16 << self.below(7);
        Layout::from_size_align(most - self.below(most / 2), 8).expect("a layout")
    }
}

/// A block whose first word is its size.
#[inline(never)]
fn take(layout: Layout) -> *mut u8 {
    // SAFETY: no size is 0, and all are at least a word.
    unsafe {
        let block = HEAP.alloc(layout);
        assert!(!block.is_null());
        block.cast::<usize>().write(layout.size());
        block
    }
}

fn layout_of(block: *mut u8) -> Layout {
    // SAFETY: the block is from `take`.
    Layout::from_size_align(unsafe { block.cast::<usize>().read() }, 8).expect("a layout")
}

#[inline(never)]
fn give(block: *mut u8) {
    // SAFETY: the block is from `take`, with this layout, and given up by its only holder.
    unsafe { HEAP.dealloc(block, layout_of(block)) }
}

/// Runs on a thread: its number, how many there are, and its operations.
type Work = fn(&World, usize, usize, usize);

/// What threads share.
struct World {
    table: Vec<AtomicPtr<u8>>,
    rings: Vec<Ring>,
}

/// Blocks on their way from one thread to the next.
struct Ring {
    slots: [AtomicPtr<u8>; 256],
    closed: AtomicBool,
    /// Blocks that have arrived: checked, so that none is lost.
    arrived: AtomicUsize,
}

impl World {
    fn new() -> World {
        let ring = || Ring {
            slots: [const { AtomicPtr::new(null_mut()) }; 256],
            closed: AtomicBool::new(false),
            arrived: AtomicUsize::new(0),
        };
        World {
            table: (0..1 << 14).map(|_| AtomicPtr::new(null_mut())).collect(),
            rings: (0..THREADS[4]).map(|_| ring()).collect(),
        }
    }
}

fn pairs(_: &World, thread: usize, _: usize, operations: usize) {
    let mut random = Random(thread as u64 + 1);
    for _ in 0..operations {
        give(take(random.layout()));
    }
}

fn batches(_: &World, thread: usize, _: usize, operations: usize) {
    let mut random = Random(thread as u64 + 1);
    let mut held = Vec::with_capacity(2000);
    for _ in 0..operations / 2000 {
        held.extend((0..2000).map(|_| take(random.layout())));
        while !held.is_empty() {
            give(held.swap_remove(random.below(held.len())));
        }
    }
}

/// Slots that all threads put blocks in, and free what they find there.
fn table(world: &World, thread: usize, _: usize, operations: usize) {
    let mut random = Random(thread as u64 + 1);
    for _ in 0..operations {
        let block = take(random.layout());
        // Release and acquire pair with each other: whoever takes a block sees its size.
        let old = world.table[random.below(world.table.len())].swap(block, Ordering::AcqRel);
        if !old.is_null() {
            give(old);
        }
    }
}

/// Every thread allocates for the next one, which frees.
fn producers(world: &World, thread: usize, threads: usize, operations: usize) {
    let mut random = Random(thread as u64 + 1);
    let (to, from) = (&world.rings[thread], &world.rings[(thread + threads - 1) % threads]);
    let (mut put, mut got) = (0, 0);
    while put < operations || got < operations {
        let mut moved = false;
        while put < operations && to.slots[put % 256].load(Ordering::Relaxed).is_null() {
            // Release, paired with the acquire below. Only this thread fills the slot.
            to.slots[put % 256].store(take(random.layout()), Ordering::Release);
            put += 1;
            moved = true;
        }
        while got < operations {
            let block = from.slots[got % 256].swap(null_mut(), Ordering::Acquire);
            if block.is_null() {
                break;
            }
            give(block);
            got += 1;
            moved = true;
        }
        if !moved {
            std::thread::yield_now();
        }
    }
    from.arrived.store(got, Ordering::Relaxed);
    to.closed.store(true, Ordering::Relaxed);
}

/// Replaces what a slot holds, and frees the old block after a grace period.
fn deferred(_: &World, thread: usize, _: usize, operations: usize) {
    let mut random = Random(thread as u64 + 1);
    for n in 0..operations {
        if n % 64 == 0 {
            drop(std::hint::black_box(rcu::read_lock()));
        }
        let block = take(random.layout());
        let layout = layout_of(block);
        // SAFETY: a block of this heap with this layout, that nobody else knows of.
        unsafe { rcu::free(NonNull::new_unchecked(block), layout) };
    }
}

fn nolock(_: &World, thread: usize, _: usize, operations: usize) {
    let mut random = Random(thread as u64 + 1);
    for n in 0..operations {
        let layout = random.layout();
        if let Some(block) = HEAP.try_alloc_nolock(layout) {
            // SAFETY: the block just taken.
            unsafe { HEAP.free_nolock(block, layout) };
        }
        // Ordinary work goes on beside it.
        if n % 16 == 0 {
            give(take(layout));
        }
    }
}

struct Counts {
    shared: Shared,
    stats: Stats,
    fences: usize,
}

fn sum(counts: [LockCounts; 5]) -> LockCounts {
    counts.into_iter().fold(LockCounts::default(), |sum, one| LockCounts {
        taken: sum.taken + one.taken,
        contended: sum.contended + one.contended,
        waited: sum.waited + one.waited,
    })
}

/// Runs a workload on so many threads and prints its row.
fn measure(name: &str, work: Work, threads: usize, operations: usize) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let world = World::new();
    // Threads and the main one meet before and after; what they do to start and to end is not counted.
    let (ready, go, done, over) =
        (Barrier::new(threads + 1), Barrier::new(threads + 1), Barrier::new(threads + 1), Barrier::new(threads + 1));
    let (before, after) = std::thread::scope(|scope| {
        for thread in 0..threads {
            let (world, ready, go, done, over, cores) = (&world, &ready, &go, &done, &over, &cores);
            scope.spawn(move || {
                if !cores.is_empty() {
                    assert!(core_affinity::set_for_current(cores[thread % cores.len()]), "its CPU can be had");
                }
                // Stacks have the capacity that the workload needs, and slabs are there.
                work(world, thread, threads, operations);
                ready.wait();
                go.wait();
                work(world, thread, threads, operations);
                done.wait();
                over.wait();
            });
        }
        ready.wait();
        rcu::barrier();
        // From here on calls of these kinds are counted; none fails.
        failures::fail(Call::Fence as u32 | Call::ProcessFence as u32, 0, 0);
        // Statistics take locks themselves, so they are outermost.
        let stats = HEAP.stats();
        let before = Counts { stats, shared: shared(), fences: 0 };
        go.wait();
        done.wait();
        let shared = shared();
        let (fences, failed) = failures::counts();
        assert_eq!(failed, 0);
        let after = Counts { shared, stats: HEAP.stats(), fences };
        over.wait();
        (before, after)
    });
    if name.starts_with("producer") {
        let arrived = world.rings[..threads].iter().filter(|ring| ring.closed.load(Ordering::Relaxed));
        // Relaxed: the threads have been joined.
        assert!(arrived.map(|ring| ring.arrived.load(Ordering::Relaxed)).eq([operations].repeat(threads)));
    }
    for slot in &world.table {
        let block = slot.load(Ordering::Relaxed);
        if !block.is_null() {
            give(block);
        }
    }
    let million = threads as f64 * operations as f64 / 1e6;
    let per = |after: u64, before: u64| format!("{:.0}", (after - before) as f64 / million);
    let stat = |of: fn(&Stats) -> usize| per(of(&after.stats) as u64, of(&before.stats) as u64);
    let count = |of: fn(&Shared) -> u64| per(of(&after.shared), of(&before.shared));
    let columns = [
        stat(|stats| stats.refills),
        stat(|stats| stats.flushes),
        stat(|stats| stats.drains),
        stat(|stats| stats.nolock_misses),
        count(|shared| shared.stacks.taken),
        count(|shared| shared.slabs.taken),
        count(|shared| shared.zones.taken + shared.growth.taken + shared.tables.taken),
        count(|s| sum([s.stacks, s.slabs, s.zones, s.growth, s.tables]).contended),
        count(|s| sum([s.stacks, s.slabs, s.zones, s.growth, s.tables]).waited),
        count(|shared| shared.transfers + shared.spares),
        count(|shared| shared.retries),
        per(after.fences as u64, 0),
    ];
    println!("| {name} | {threads} | {} |", columns.join(" | "));
}

fn main() {
    let thousands: usize = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(200);
    let cpus = core_affinity::get_core_ids().unwrap_or_default().len();
    println!("Of a million operations, on {cpus} CPUs, shards on a node: {}:\n", HEAP.stats().shards);
    println!(
        "| workload | threads | refills | flushes | drains | nolock misses | stack locks | slab locks | zone locks | \
         found held | slept | exchanges | again | fences |"
    );
    println!("| --- | {} |", ["---:"; 13].join(" | "));
    let rows: [(&str, Work); 6] = [
        ("pairs", pairs),
        ("batches of 2000", batches),
        ("shared table", table),
        ("producer, consumer", producers),
        ("deferred frees", deferred),
        ("nolock", nolock),
    ];
    for (name, work) in rows {
        for threads in THREADS {
            measure(name, work, threads, thousands * 1000);
        }
    }
}
