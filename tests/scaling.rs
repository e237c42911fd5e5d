//! What a CPU more costs, and what threads have in common: `docs/scaling.md`.

#![cfg(not(any(loom, pcpalloc_twin, miri)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::{Barrier, Mutex};

use common::child::{self, Child};
use common::{Block, HEAP, cpus, on_cpu, on_threads, scaled};
use pcpalloc::debug::{CPU_BYTES, STACKS_BYTES, shared};
use pcpalloc::{Drain, Mode, PcpAlloc, rcu};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// The page's table of costs has the numbers of the source.
///
/// Red if one of them changes: say 8 MiB for `CPU_BUDGET` (`src/percpu/regions.rs`).
#[test]
fn the_page_says_what_a_cpu_costs() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scaling.md")).expect("the page");
    let said = |what: &str| -> usize {
        let row = page.lines().find(|line| line.starts_with(&format!("| {what}"))).expect(what);
        let number = row.split('|').nth(2).expect("a second column").trim().replace(' ', "");
        number.parse().unwrap_or_else(|_| panic!("{what}: {number}"))
    };
    assert_eq!(said("headers"), CPU_BYTES.headers);
    assert_eq!(said("small arrays"), CPU_BYTES.small_arrays);
    assert_eq!(said("large arrays"), CPU_BYTES.large_arrays);
    assert_eq!(said("blocks on stacks"), CPU_BYTES.stacked_blocks);
    assert_eq!(said("blocks in transfer"), CPU_BYTES.transferred_blocks);
    assert_eq!(CPU_BYTES.headers + CPU_BYTES.small_arrays + CPU_BYTES.large_arrays, STACKS_BYTES);
}

/// Threads that free what they have just allocated have nothing in common: once their stacks are there, they take no
/// lock and move no batch, however many they are.
///
/// Red if stacks are not used: in `missed` (`src/percpu/capacity.rs`), return 0 before anything else; and in two runs of five if
/// CPUs look at frees of blocks that lie in slabs which shards lend each other: have `is_small` in place of `shares_lines` in
/// `homing.rs`, `observed.rs` and `slow.rs` of `src/percpu`.
#[test]
fn pairs_share_nothing() {
    const NAME: &str = "pairs_share_nothing";
    const THREADS: usize = 4;
    child::body(NAME, |_| {
        let sizes = [16, 100, 500, 1000, 3000];
        let pairs = |rounds: usize| {
            for round in 0..rounds {
                drop(Block::new(sizes[round % sizes.len()], 8, round as u64).expect("there is memory"));
            }
        };
        let (cpus, barrier) = (cpus(), &Barrier::new(THREADS + 1));
        let rounds = scaled(5000);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let cpu = cpus[thread % cpus.len()];
                scope.spawn(move || {
                    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "CPU {cpu} can be had");
                    pairs(100);
                    barrier.wait();
                    barrier.wait();
                    pairs(rounds);
                    barrier.wait();
                    barrier.wait();
                });
            }
            barrier.wait();
            let before = shared();
            barrier.wait();
            barrier.wait();
            let after = shared();
            barrier.wait();
            if HEAP.stats().mode != Mode::PerThread {
                // Stacks shrink by one in 64 visits; nobody else is there to visit them.
                let locks = after.stacks.taken - before.stacks.taken + after.slabs.taken - before.slabs.taken;
                let moved = after.transfers - before.transfers + after.spares - before.spares;
                assert!(locks + moved <= 20, "{THREADS} threads, {rounds} pairs each: {before:?} {after:?}");
            }
        });
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// What a stack that has grown flushes comes back to the CPU whose blocks they are without a lock, batch after batch, though
/// that takes only a part of each.
///
/// Red if what is left of a batch goes to the slabs: in `from_batch` (`src/percpu/slow.rs`), `free_bulk` it; or if batches that
/// the shard has enough of go nowhere else: in `transfer::push`, leave out `other_shard_of`. And in the first part if stacks that have
/// grown move no more than others: in `missed` (`src/percpu/capacity.rs`).
#[test]
fn much_at_once_takes_few_locks() {
    const NAME: &str = "much_at_once_takes_few_locks";
    const SIZE: usize = 32;
    child::body(NAME, |_| {
        let cpus = cpus();
        // The lanes have room for 500 of them for each CPU that there may be.
        let count = 20_000 + 4096 * cpus.len() as u64;
        let take = |count: u64, held: &mut Vec<Block>| {
            held.extend((0..count).map(|n| Block::new(SIZE, 8, n).expect("there is memory")));
        };
        let locks = on_cpu(cpus[0], || {
            let mut held = Vec::with_capacity(count as usize);
            let mut round = || {
                take(count, &mut held);
                let before = shared().slabs.taken;
                held.clear();
                shared().slabs.taken - before
            };
            (0..12).for_each(|_| _ = round());
            round()
        });
        assert!((20..count / 125).contains(&locks), "{locks} locks for {count} frees");
        let node = |cpu: usize| {
            let entries =
                std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).into_iter().flatten().flatten();
            let mut names = entries.map(|entry| entry.file_name());
            names.find(|name| name.to_string_lossy().starts_with("node"))
        };
        // Blocks of a node's shards go back to them by batches.
        let Some(&other) = cpus[1..].iter().find(|&&cpu| node(cpu) == node(cpus[0])) else { return };
        if HEAP.stats().mode == Mode::PerThread {
            return;
        }
        // Of what is still on the lanes none is to be among the next blocks, which are to be the other CPU's own.
        HEAP.drain(Drain::All);
        let held = on_cpu(other, || {
            let mut held = Vec::with_capacity(10_000);
            take(10_000, &mut held);
            held
        });
        on_cpu(cpus[0], || {
            let mut own = Vec::with_capacity(count as usize);
            take(count, &mut own);
            own.clear();
            // Its stack is full, and so is its lane.
            drop(held);
        });
        on_cpu(other, || {
            let mut held = Vec::with_capacity(1000);
            take(60, &mut held);
            let before = shared();
            // A preempted flush is a shorter batch, so not as many as two batches had.
            take(150, &mut held);
            let after = shared();
            assert!(after.transfers >= before.transfers + 2, "{before:?} {after:?}");
            assert_eq!(after.slabs.taken, before.slabs.taken, "{before:?} {after:?}");
        });
    });
    for settings in ["worker:off", "worker:off,shards:one"] {
        Child::new(NAME, "").settings(settings).run().succeeded();
    }
}

/// What one CPU frees and another allocates is passed on in batches, however much it is, and little of it sees a slab's lock.
///
/// Red if what a CPU flushes goes home once that is much, whoever wants it: where CPUs share slabs, have `is_taker`
/// (`src/percpu/slow.rs`) return true; where they do not, leave out `push_back` in `flush`.
#[test]
fn what_others_want_is_passed_on() {
    const NAME: &str = "what_others_want_is_passed_on";
    child::body(NAME, |argument| {
        let (size, count) = argument.split_once(' ').expect("a size and a count");
        let (size, count): (usize, usize) = (size.parse().expect("a size"), count.parse().expect("a count"));
        let cpus = cpus();
        if cpus.len() < 2 || HEAP.stats().mode == Mode::PerThread {
            return;
        }
        // Ten times as much as a CPU may free before its stacks are swept.
        let warm = (40 << 20) / (count * size);
        let (parcel, barrier) = (&Mutex::new(Vec::with_capacity(count)), &Barrier::new(2));
        // Threads that stay: what the start of one allocates is freed elsewhere, too.
        let ((before, after), ()) = std::thread::scope(|scope| {
            let on =
                |cpu: usize| assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "CPU {cpu}");
            let (maker, dropper) = (cpus[0], cpus[1]);
            let maker = scope.spawn(move || {
                on(maker);
                let turn = || {
                    let blocks = (0..count).map(|n| Block::new(size, 8, n as u64).expect("there is memory"));
                    parcel.lock().expect("nobody has failed").extend(blocks);
                    barrier.wait();
                    barrier.wait();
                };
                (0..warm).for_each(|_| turn());
                let before = shared();
                (0..20).for_each(|_| turn());
                (before, shared())
            });
            let dropper = scope.spawn(move || {
                on(dropper);
                // The last of its shard to be out of blocks, where it has one of its own.
                drop(Block::new(size, 8, 0));
                for _ in 0..warm + 20 {
                    barrier.wait();
                    parcel.lock().expect("nobody has failed").clear();
                    barrier.wait();
                }
            });
            (maker.join().expect("it has not failed"), dropper.join().expect("it has not failed"))
        });
        let (locks, moved) = (after.slabs.taken - before.slabs.taken, after.transfers - before.transfers);
        assert!(moved >= 2 * count as u64 / 5, "{before:?} {after:?}");
        assert!(locks < 100, "{before:?} {after:?}");
    });
    // As many as the lanes have room for.
    for size_and_count in ["64 100", "144 300"] {
        Child::new(NAME, size_and_count).settings("worker:off").run().succeeded();
    }
}

/// Deferred frees of many classes come back in whole batches, not in as many as there are classes in each page of pointers.
///
/// Red if blocks go home one by one, or a few of a class at a time: in `Gather::add` (`src/rcu/gather.rs`), take 1, or an
/// eighth of `CLASS[class].batch`, for a whole batch.
#[test]
fn deferred_frees_come_back_in_whole_batches() {
    const NAME: &str = "deferred_frees_come_back_in_whole_batches";
    const COUNT: usize = 20_000;
    child::body(NAME, |_| {
        rcu::set_reclaimer(false);
        let layouts: Vec<Layout> = (1..=40).map(|n| Layout::from_size_align(16 * n, 8).expect("a layout")).collect();
        let defer = || {
            for n in 0..COUNT {
                let layout = layouts[n % layouts.len()];
                // SAFETY: the size is not 0, nobody else knows the block, and it has this layout.
                unsafe {
                    let block = NonNull::new(HEAP.alloc(layout)).expect("there is memory");
                    rcu::free(block, layout);
                }
            }
        };
        let round = || {
            // What is deferred while somebody reads comes back at once.
            let reading = Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _section = rcu::read_lock();
                    reading.wait();
                    reading.wait();
                });
                reading.wait();
                defer();
                reading.wait();
            });
            let before = shared();
            let report = rcu::drain();
            let after = shared();
            assert_eq!(report.freed, COUNT);
            after.transfers - before.transfers + after.slabs.taken - before.slabs.taken
        };
        on_cpu(cpus()[0], || {
            round();
            let moved = round();
            // 16 KiB to 32 are a batch of most of these classes. Where a batch is not wanted, its slabs' lock is taken.
            assert!((100..COUNT / 20).contains(&(moved as usize)), "{moved} batches and locks for {COUNT} blocks");
        });
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// The counts that the page's tables are of count: a drain takes the lock of each CPU's stacks, and a class that nobody
/// has used takes that of its slabs.
///
/// Red if nothing is counted: in `Counters::taken` (`src/lock.rs`), return at once.
#[test]
fn locks_are_counted() {
    const NAME: &str = "locks_are_counted";
    child::body(NAME, |_| {
        let cpus = cpus();
        for &cpu in &cpus {
            on_cpu(cpu, || drop(Block::new(100, 8, 1)));
        }
        let before = shared();
        HEAP.drain(Drain::All);
        let drained = shared();
        let at_least = if HEAP.stats().mode == Mode::PerThread { 0 } else { cpus.len() as u64 };
        assert!(drained.stacks.taken >= before.stacks.taken + at_least, "{before:?} {drained:?}");
        assert!(drained.slabs.taken > before.slabs.taken, "{before:?} {drained:?}");
        drop(Block::new(777, 8, 1));
        let used = shared();
        assert!(used.slabs.taken > drained.slabs.taken && used.zones.taken > drained.zones.taken, "{used:?}");
        on_threads([|| drop(Block::new(40_000, 8, 1))]);
        assert!(shared().zones.taken > used.zones.taken);
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}
