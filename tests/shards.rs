//! CPUs that have slabs of their own: `Config::shards`.

#![cfg(not(any(loom, pcpalloc_twin, miri)))]

mod common;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use common::child::{self, Child};
use common::{Block, HEAP, Random, cpus, on_cpu};
use pcpalloc::debug::{Level, check};
use pcpalloc::{Mode, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const SIZE: usize = 1024;
const PAGE: usize = 4096;

/// Two CPUs to have shards of their own with `shards:cpu`, if there are such.
fn two_cpus() -> Option<[usize; 2]> {
    let cpus = cpus();
    // Those that share one are next to each other.
    let (&first, &last) = (cpus.first()?, cpus.last()?);
    (first != last).then_some([first, last])
}

fn take(count: usize) -> Vec<Block> {
    take_of(SIZE, count)
}

fn take_of(size: usize, count: usize) -> Vec<Block> {
    (0..count).map(|n| Block::new(size, 8, n as u64).expect("there is memory")).collect()
}

/// One block in so many; the others are freed.
fn every(nth: usize, blocks: Vec<Block>) -> Vec<Block> {
    blocks.into_iter().enumerate().filter(|(n, _)| n % nth == 0).map(|(_, block)| block).collect()
}

/// Two CPUs that by turns take many blocks and free them get their own back, most of them; where they share slabs,
/// what they get has been the other's.
///
/// Red if a shard takes what others use: in `Central::lend` (`src/slab/central.rs`), leave out the comparison with
/// `lendable`; or if `shards:cpu` is taken for `shards:one`.
#[test]
fn a_cpu_gets_back_what_it_has_used() {
    const NAME: &str = "a_cpu_gets_back_what_it_has_used";
    const COUNT: usize = 2000;
    // Each time one has to do with what it has, it gets a slab more, until it has enough.
    const ROUNDS: usize = 400;
    child::body(NAME, |_| {
        let Some([one, other]) = two_cpus() else { return child::say("crossed", "none") };
        // Who used a page last; how many pages there were in a round, and of these, those that the other one used last.
        let (mut users, mut all, mut crossed) = (HashMap::new(), 0, 0);
        let mut kept = [const { Vec::new() }; 2];
        for round in 0..ROUNDS {
            for (cpu, kept) in [one, other].into_iter().zip(&mut kept) {
                on_cpu(cpu, || {
                    let blocks = take(COUNT);
                    let pages: HashSet<_> = blocks.iter().map(|block| block.range().start / PAGE).collect();
                    for page in pages {
                        let crosses = users.insert(page, cpu).is_some_and(|user| user != cpu);
                        if round > ROUNDS / 2 {
                            all += 1;
                            crossed += u32::from(crosses);
                        }
                    }
                    // Some stay, so that few slabs are empty: those are for whoever needs memory.
                    *kept = every(16, blocks);
                });
            }
        }
        drop(kept);
        if HEAP.stats().mode == Mode::PerThread {
            return child::say("crossed", "none");
        }
        child::say("crossed", f64::from(crossed) / f64::from(all));
    });
    let share = |settings: &str| -> Option<f64> {
        Child::new(NAME, "").settings(settings).run().succeeded().value("crossed").parse().ok()
    };
    let Some(crossed) = share("worker:off,shards:cpu") else {
        return println!("skipped: a single CPU, or no stacks of CPUs");
    };
    let without = share("worker:off,shards:one").expect("there were two CPUs");
    println!("pages that the other CPU used last: {crossed:.3} of all, {without:.3} with slabs in common");
    assert!(crossed < 0.5 && without > 0.8, "{crossed} {without}");
}

/// What a CPU has freed and does not use serves another one, though there is a block in use in every slab: hardly a slab more
/// is made.
///
/// Red if shards lend nothing: in `Slabs::borrow` (`src/slab/central.rs`), return false.
#[test]
fn a_quiet_cpu_lends() {
    const NAME: &str = "a_quiet_cpu_lends";
    // What the heap has taken ahead of its use makes new slabs before others are asked for what they do not use.
    const AHEAD: usize = 2 << 20;
    child::body(NAME, |_| {
        let Some([one, other]) = two_cpus() else { return };
        for size in [SIZE, 32, 8] {
            let count = (16 << 20) / size;
            let kept = on_cpu(one, || every(32, take_of(size, count)));
            let slabs = || check(Level::Lists).expect("the heap is whole").slabs;
            let before = slabs();
            let taken = on_cpu(other, || take_of(size, count * 3 / 4));
            let (more, bytes) = (slabs().saturating_sub(before), taken.len() * size);
            println!("{more} bytes of slabs more for {bytes} bytes");
            assert!(more < AHEAD + bytes / 32, "{more} bytes of slabs more for {bytes} bytes of {size} each");
            drop((kept, taken));
            check(Level::Lists).expect("the heap is whole");
        }
    });
    for settings in ["worker:off", "worker:off,shards:cpu"] {
        Child::new(NAME, "").settings(settings).run().succeeded();
    }
}

/// Nothing is lent of blocks of less than a cache line as long as they are few: no line has blocks in use by both, also where
/// CPUs share a cache.
///
/// Red if these share a shard: in `cpus::init` (`src/percpu/cpus.rs`), add each CPU to `Division::Small` by its cache; if batches
/// are taken that are on their way to others, in `from_slabs` (`src/percpu/slow.rs`), or slabs are borrowed at once, in
/// `alloc_bulk_counted` (`src/slab/bulk.rs`), for classes whose blocks share lines.
#[test]
fn lines_are_not_lent() {
    const NAME: &str = "lines_are_not_lent";
    child::body(NAME, |_| {
        let Some([one, other]) = two_cpus() else { return };
        let lines =
            |blocks: &[Block]| -> HashSet<usize> { blocks.iter().map(|block| block.range().start / 64).collect() };
        let kept = on_cpu(one, || every(16, take_of(16, 100_000)));
        let taken = on_cpu(other, || take_of(16, 10_000));
        let both = lines(&kept).intersection(&lines(&taken)).count();
        assert!(both == 0, "{both} lines are shared");
        drop((kept, taken));
        check(Level::Lists).expect("the heap is whole");
    });
    for settings in ["worker:off", "worker:off,shards:cpu"] {
        Child::new(NAME, "").settings(settings).run().succeeded();
    }
}

/// Two threads that have changed places share lines, each with the other's blocks, only for a while.
///
/// Red if a CPU does not look at its frees, or takes what it finds for its own: have `Region::note_visit` (`src/percpu/homing.rs`)
/// return at once, or `is_sent_home` (`src/percpu/slow.rs`) say that no block is foreign.
#[test]
fn what_has_moved_goes_home() {
    const NAME: &str = "what_has_moved_goes_home";
    const COUNT: usize = 600;
    const FEW: usize = COUNT / 40;
    const DEADLINE: Duration = Duration::from_secs(30);
    child::body(NAME, |_| {
        let Some(mut places) = two_cpus() else { return };
        if HEAP.stats().mode == Mode::PerThread {
            return;
        }
        let any_small =
            |random: &mut Random| Block::new([8, 16, 24, 32][random.below(4)], 8, 7).expect("there is memory");
        let replace = |blocks: &mut Vec<Block>, random: &mut Random| {
            for _ in 0..4 * COUNT {
                let at = random.below(COUNT);
                blocks[at] = any_small(random);
            }
        };
        let lines =
            |blocks: &[Block]| -> HashSet<usize> { blocks.iter().map(|block| block.range().start / 64).collect() };
        let mut random = Random::new(1);
        let mut sets = places.map(|cpu| on_cpu(cpu, || (0..COUNT).map(|_| any_small(&mut random)).collect::<Vec<_>>()));
        let shared = |sets: &[Vec<Block>; 2]| lines(&sets[0]).intersection(&lines(&sets[1])).count();
        assert!(shared(&sets) <= FEW);
        for _ in 0..9 {
            places.reverse();
            for (cpu, blocks) in places.into_iter().zip(&mut sets) {
                on_cpu(cpu, || replace(blocks, &mut random));
            }
        }
        let most = shared(&sets);
        assert!(most > 4 * FEW, "{most} lines are shared");
        let start = Instant::now();
        while shared(&sets) > FEW {
            assert!(start.elapsed() < DEADLINE, "{} lines are shared still, of {most}", shared(&sets));
            for (cpu, blocks) in places.into_iter().zip(&mut sets) {
                on_cpu(cpu, || {
                    replace(blocks, &mut random);
                    // Now and then some other stack is empty or full.
                    drop(take_of(2048, 200));
                    std::thread::sleep(Duration::from_millis(1));
                });
            }
        }
        let sent = HEAP.stats().sent_home;
        assert!(sent >= most - FEW, "{sent} blocks were sent home");
        println!(
            "{most} lines were shared, {} are after {:?}, {sent} blocks sent home",
            shared(&sets),
            start.elapsed()
        );
        drop(sets);
        check(Level::Lists).expect("the heap is whole");
    });
    for settings in ["worker:off", "worker:off,shards:cpu"] {
        print!("{}", Child::new(NAME, "").settings(settings).run().succeeded().stdout);
    }
}

/// Where the heap may not grow, a CPU gets blocks of those that are another's and not lent: a line that is shared is better than
/// none.
///
/// Red if `take_from_others` (`src/slab/bulk.rs`) returns 0.
#[test]
fn what_is_not_lent_is_better_than_nothing() {
    const NAME: &str = "what_is_not_lent_is_better_than_nothing";
    child::body(NAME, |_| {
        let Some([one, other]) = two_cpus() else { return };
        if HEAP.stats().mode == Mode::PerThread {
            return;
        }
        // Half of what lies in the slabs of a CPU is free, and no slab as a whole.
        let kept = on_cpu(one, || every(2, take_of(16, 10_000)));
        HEAP.drain(pcpalloc::Drain::All);
        // Room for what fills it, and nothing is left; what is free is in pieces.
        let mut rest = Vec::with_capacity(1 << 20);
        HEAP.set_limit(Some(HEAP.stats().resident + (1 << 20))).expect("more than there is");
        for size in [64 << 10, 4096] {
            rest.extend(std::iter::from_fn(|| Block::new(size, 8, 1)));
        }
        assert!(rest.len() < rest.capacity());
        let taken = on_cpu(other, || std::iter::from_fn(|| Block::new(16, 8, 2)).take(1000).count());
        assert_eq!(taken, 1000);
        drop((kept, rest));
        check(Level::Lists).expect("the heap is whole");
    });
    for settings in ["worker:off", "worker:off,shards:cpu"] {
        Child::new(NAME, "").settings(settings).run().succeeded();
    }
}

/// Blocks that go from CPU to CPU, also where memory goes back early, and a child of a fork: the heap is whole.
///
/// Red, at the latest when the child's time is up, if a block is given to a slab that has gone to another shard meanwhile: in
/// `Finder::find` (`src/slab/bulk.rs`), leave out the comparison with the slab's shard; red if one goes to another while holes are
/// made in it: in `Central::lend` (`src/slab/central.rs`), leave out `stay`.
#[test]
fn blocks_and_slabs_change_hands() {
    const NAME: &str = "blocks_and_slabs_change_hands";
    child::body(NAME, |_| {
        let cpus = cpus();
        let (to, from) = std::sync::mpsc::sync_channel::<Vec<Block>>(8);
        let from = std::sync::Mutex::new(from);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (to, from, cpu) = (to.clone(), &from, cpus[thread % cpus.len()]);
                scope.spawn(move || {
                    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "CPU {cpu} can be had");
                    let mut held: Vec<Vec<Block>> = Vec::new();
                    for round in 0..common::scaled(300) {
                        let size = [24, 64, 200, 256, 1000][(round + thread) % 5];
                        let blocks = (0..300 + 40 * (round % 11)).filter_map(|n| Block::new(size, 8, n as u64));
                        let blocks = blocks.collect();
                        match round % 3 {
                            // Another thread frees them, or this one if nobody takes them.
                            0 => drop(to.try_send(blocks)),
                            _ => held.push(blocks),
                        }
                        if let Ok(from) = from.try_lock()
                            && let Ok(blocks) = from.try_recv()
                        {
                            blocks.iter().for_each(Block::check);
                        }
                        if held.len() > 4 + round % 7 {
                            held.swap_remove(round % held.len()).iter().for_each(Block::check);
                        }
                    }
                });
            }
            // Holes are made in slabs meanwhile, which stay where they are.
            scope.spawn(|| {
                for _ in 0..common::scaled(100) {
                    HEAP.trim();
                    std::thread::yield_now();
                }
            });
        });
        drop(from);
        HEAP.drain(pcpalloc::Drain::All);
        check(Level::Lists).expect("the heap is whole");
        let ended = child::in_a_fork(|| {
            check(Level::Lists).expect("the child's heap is whole");
            assert_eq!(take(100).len(), 100);
        });
        assert_eq!(ended, 0, "how the child of the fork ended");
    });
    for settings in ["shards:cpu", "shards:cpu,high:2m", "shards:cpu,rseq:off"] {
        Child::new(NAME, "").settings(settings).run().succeeded();
    }
}
