//! Readers, and writers that free in every way there is: no reader ever sees a dead object.
#![cfg(not(miri))]

mod rcu_common;

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, Domain, Heap, RcuCell};
use rcu_common::object::{Default, KILLED, LAYOUT, Rcu, Table, WAYS, dispose, free_polled, scribble};
use rcu_common::{Random, Watchdog, alloc, alone, dealloc, scaled, until};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const READERS: u64 = 3;
const WRITERS: u64 = 2;

/// Looks at objects in sections of all lengths, some inside others.
fn read<R: Rcu>(rcu: &R, table: &Table, seed: u64, stop: &AtomicBool) -> usize {
    let mut random = Random::new(seed);
    let mut sections = 0;
    while !stop.load(Ordering::Relaxed) {
        let guard = rcu.read();
        let nested = random.below(3);
        let inner: Vec<_> = (0..nested).map(|_| rcu.read()).collect();
        let object = table.get(random.below(16));
        // SAFETY: found inside the section, which lasts until the guard is dropped.
        let object = unsafe { object.as_ref() };
        let stamp = object.look();
        match random.below(64) {
            0 => std::thread::sleep(Duration::from_micros(200)),
            1..4 => std::thread::yield_now(),
            n => (0..n).for_each(|_| core::hint::spin_loop()),
        }
        // The outer section goes on when the inner ones end.
        drop(inner);
        assert_eq!(object.look(), stamp, "a reader sees another object in the place of its own");
        drop(guard);
        sections += 1;
    }
    sections
}

/// Replaces objects and frees what it has replaced.
fn write<R: Rcu>(rcu: &R, table: &Table, seed: u64, stop: &AtomicBool, ways: &[AtomicUsize; WAYS]) {
    let mut random = Random::new(seed);
    let mut polled = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // Ways that wait come less often.
        let way = if random.below(16) == 0 { random.below(WAYS) } else { random.below(5) };
        let old = table.replace(random.below(16));
        ways[way].fetch_add(1, Ordering::Relaxed);
        // SAFETY: replaced just now, by this thread.
        unsafe { dispose(rcu, old, way, &mut polled) };
        // What was freed too early is overwritten here.
        let blocks: Vec<NonNull<u8>> = (0..random.below(8)).map(|_| alloc(LAYOUT)).collect();
        blocks.iter().for_each(|&block| scribble(block));
        // SAFETY: ours.
        blocks.into_iter().for_each(|block| unsafe { dealloc(block, LAYOUT) });
    }
    until(|| {
        free_polled(&mut polled);
        polled.is_empty()
    });
}

fn torture<R: Rcu>(rcu: &R) {
    let _watchdog = Watchdog::new("torture");
    let (table, stop) = (Table::new(), AtomicBool::new(false));
    let (ways, sections) = ([const { AtomicUsize::new(0) }; WAYS], AtomicUsize::new(0));
    let killed = KILLED.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let (table, stop, ways, sections) = (&table, &stop, &ways, &sections);
        for seed in 0..READERS {
            scope.spawn(move || sections.fetch_add(read(rcu, table, seed + 1, stop), Ordering::Relaxed));
        }
        for seed in 0..WRITERS {
            scope.spawn(move || write(rcu, table, seed + 100, stop, ways));
        }
        let end = Instant::now() + Duration::from_secs(scaled(4).max(4) as u64);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            rcu.barrier();
        }
        stop.store(true, Ordering::Relaxed);
    });
    rcu.barrier();
    assert_eq!(rcu.pending(), 0, "the barrier leaves nothing pending");
    let ways = ways.map(AtomicUsize::into_inner);
    println!("{} sections; objects freed by each way: {ways:?}", sections.into_inner());
    assert!(ways.iter().all(|&count| count > 0));
    // Ways 2 and 4 to 8 kill what they free, once each; the others free it as it is.
    let expected = ways[2] + ways[4..].iter().sum::<usize>();
    assert_eq!(KILLED.load(Ordering::Relaxed) - killed, expected);
}

/// Positive control: `GracePeriods::advance` that takes no notice of the slots is red at once. Without the barrier's
/// system call this goes on for minutes, for the moment in which it matters is short; the test below finds that.
#[test]
fn no_reader_sees_a_dead_object() {
    let _alone = alone();
    torture(&Default);
}

/// As above, in a domain of one's own. Positive control: the first one above.
#[test]
fn no_reader_of_a_domain_sees_a_dead_object() {
    let _alone = alone();
    torture(&Domain::new(Heap));
}

/// Nothing but the announcement and the look at the pointer between a reader and a writer in tight loops: the
/// object is dead for as long as nobody may look at it.
fn tight_loops<R: Rcu>(rcu: &R, grace_periods: usize) {
    const ALIVE: u64 = 1;
    let _watchdog = Watchdog::new("tight loops");
    let objects = [const { AtomicU64::new(ALIVE) }; 2];
    let (current, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    let guard = rcu.read();
                    let object = current.load(Ordering::Acquire);
                    // Long enough for the writer to be through with a grace period that has missed us.
                    for _ in 0..20 {
                        assert_eq!(objects[object].load(Ordering::Relaxed), ALIVE, "a reader sees a dead object");
                    }
                    drop(guard);
                }
            }
        });
        for turn in 0..grace_periods {
            let old = turn % 2;
            current.store(1 - old, Ordering::Release);
            rcu.synchronize_expedited();
            objects[old].store(0, Ordering::Relaxed);
            (0..20).for_each(|_| core::hint::spin_loop());
            objects[old].store(ALIVE, Ordering::Release);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Positive control: `barrier_on_all` without the system call. Then a grace period costs next to nothing, so there
/// are to be more of them (`PCPALLOC_TEST_SCALE=20`), and the reader saw a dead object after 2 to 8 seconds, in every
/// run of seven, optimised or not, on two processors.
#[test]
fn a_reader_in_a_tight_loop_sees_no_dead_object() {
    let _alone = alone();
    tight_loops(&Default, scaled(100_000));
}

/// What a cell holds: the sum is part of it, and its destructor makes it wrong.
struct Checked {
    parts: [AtomicU64; 4],
    sum: AtomicU64,
    text: String,
}

impl Checked {
    fn new(n: u64) -> Checked {
        let parts = [n, n * 3, n ^ 0x55, n << 2];
        Checked { parts: parts.map(AtomicU64::new), sum: AtomicU64::new(parts.iter().sum()), text: n.to_string() }
    }

    fn check(&self) -> u64 {
        let parts: u64 = self.parts.iter().map(|part| part.load(Ordering::Relaxed)).sum();
        assert_eq!(parts, self.sum.load(Ordering::Relaxed), "a value is read that was dropped");
        let n = self.parts[0].load(Ordering::Relaxed);
        assert_eq!(self.text, n.to_string());
        n
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        self.sum.store(1, Ordering::Relaxed);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

static DROPPED: AtomicUsize = AtomicUsize::new(0);

/// A cell's readers see whole values that are not dropped; `update` loses no update; every value is dropped once.
///
/// Positive controls: `RcuCell::update` that drops the old value at once is found by a reader; `update` by a swap
/// in place of the exchange has values go backwards.
#[test]
fn a_cell_is_read_while_it_is_replaced() {
    let _alone = alone();
    let _watchdog = Watchdog::new("cell");
    let dropped = DROPPED.load(Ordering::Relaxed);
    let updates = scaled(30_000) as u64;
    let cell = RcuCell::new(Checked::new(0));
    let running = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..updates {
                    cell.update(|old| Checked::new(old.check() + 1));
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while running.load(Ordering::Relaxed) > 0 {
                    let guard = rcu::read_lock();
                    let value = cell.read(&guard);
                    let n = value.check();
                    assert!(n >= last, "values go backwards");
                    last = n;
                    std::thread::yield_now();
                    assert_eq!(value.check(), n);
                }
            });
        }
    });
    assert_eq!(cell.into_inner().check(), 2 * updates);
    rcu::barrier();
    // Those that were replaced, and the last one. An update that came second made one in vain, which it dropped.
    assert!(DROPPED.load(Ordering::Relaxed) - dropped > 2 * updates as usize);
    assert_eq!(rcu::stats().pending_pointers, 0);
}

/// Keeps the calling thread on one processor.
fn stay_on(cpu: usize) {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

/// `barrier` frees what waits in a part-filled page of any CPU, to the last pointer, however young it is.
///
/// Positive control: `Core::collect` that looks at part-filled pages only when they have aged leaves all of them.
#[test]
fn a_barrier_frees_part_filled_pages_of_every_cpu() {
    let _alone = alone();
    let _watchdog = Watchdog::new("barrier");
    let layout = Layout::from_size_align(48, 8).unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    for count in 1..scaled(100) {
        rcu::barrier();
        let freed = rcu::stats().freed;
        for cpu in 0..cpus {
            std::thread::spawn(move || {
                stay_on(cpu);
                // SAFETY: a block that nobody else knows.
                (0..count).for_each(|_| unsafe { rcu::free(alloc(layout), layout) });
            })
            .join()
            .unwrap();
        }
        rcu::barrier();
        assert_eq!((rcu::stats().freed, rcu::stats().pending_pointers), (freed + cpus * count, 0));
    }
}
