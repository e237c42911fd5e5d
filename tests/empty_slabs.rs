//! Slabs that are free as a whole wait for their class to need them again, for others to need their memory, or for the end
//! of the second. Where the worker would end the wait, it is off.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::memory::{resident, resident_below};
use common::{HEAP, KIB, MIB, child};
use pcpalloc::PcpAlloc;
use pcpalloc::debug::{Level, check, shared};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// So many bytes in blocks of `size`, written to.
fn fill(bytes: usize, size: usize) -> Vec<Box<[u8]>> {
    (0..bytes / size).map(|n| vec![n as u8; size].into_boxed_slice()).collect()
}

fn is_sound() {
    assert!(check(Level::Blocks).is_ok(), "{:?}", check(Level::Blocks).err());
}

/// What a class freed it takes again, without the zones' locks.
///
/// Positive control: have `admits` in `src/slab/empty.rs` say no, and every slab is taken from a zone in every round.
#[test]
fn a_class_takes_its_slabs_again() {
    const NAME: &str = "a_class_takes_its_slabs_again";
    child::body(NAME, |_| {
        const BYTES: usize = 8 * MIB;
        drop(fill(BYTES, 256));
        let before = shared().zones.taken;
        const ROUNDS: u64 = 20;
        (0..ROUNDS).for_each(|_| drop(fill(BYTES, 256)));
        let taken = (shared().zones.taken - before) / ROUNDS;
        // The worker looks at zones, too; without one whoever frees would.
        let slabs = (BYTES / (16 * KIB)) as u64;
        println!("the zones' locks were taken {taken} times in every round, in which {slabs} slabs came and went");
        assert!(taken < slabs / 4, "{taken} times for {slabs} slabs");
        is_sound();
    });
    child::Child::new(NAME, "").run().succeeded();
}

/// What one class freed others have before anything is touched for the first time; so do blocks that are runs.
///
/// Positive control: have `make_room` in `src/slab/retire.rs` say no, and as much again is resident in the end.
#[test]
fn other_sizes_have_the_memory_first() {
    const NAME: &str = "other_sizes_have_the_memory_first";
    child::body(NAME, |_| {
        const BYTES: usize = 12 * MIB;
        drop(fill(BYTES, 256));
        let most = resident();
        for size in [320, 48, 1000, 5000, 9000, 40 * KIB, 300 * KIB] {
            drop(fill(BYTES - BYTES / 4, size));
            let now = resident();
            println!("{} KiB after blocks of {size}, at first {} KiB", now / KIB, most / KIB);
            assert!(now < most + BYTES / 3, "{} KiB after blocks of {size}, at first {}", now / KIB, most / KIB);
        }
        is_sound();
    });
    child::Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// Nobody needs them again: they go back within seconds, from a process that does nothing and from one that is busy with
/// something else.
///
/// Positive control: leave `retire_all` and `retire_unused` out of `give_back_unused` in `src/control/worker.rs`.
#[test]
fn empty_slabs_go_back_when_nobody_needs_them() {
    const NAME: &str = "empty_slabs_go_back_when_nobody_needs_them";
    child::body(NAME, |argument| {
        drop(fill(MIB, 1000));
        HEAP.trim();
        let start = resident();
        let objects = fill(12 * MIB, 200);
        assert!(resident() > start + 8 * MIB, "they are there");
        drop(objects);
        let busy = argument == "busy";
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if busy {
                scope.spawn(|| {
                    // Relaxed: nothing hangs on it.
                    while !done.load(Ordering::Relaxed) {
                        drop(fill(64 * KIB, 1000));
                    }
                });
            }
            let (time, after) = resident_below(start + 3 * MIB);
            done.store(true, Ordering::Relaxed);
            println!("{} KiB before, {} KiB after {time:.1?}", start / KIB, after / KIB);
            assert!(after < start + 3 * MIB && time.as_secs() < 10, "{} KiB after {time:.1?}", after / KIB);
        });
        is_sound();
    });
    child::Child::new(NAME, "idle").run().succeeded();
    child::Child::new(NAME, "busy").run().succeeded();
}

/// A trim leaves none, and says how much it gave back; slabs that were kept count as free before.
///
/// Positive controls: leave `retire_all` out of `trim` in `src/control/drain.rs`; have `make_room_now` in
/// `src/slab/retire.rs` retire all of a class, and the first slab that `slabinfo`'s text takes costs all of them.
#[test]
fn a_trim_leaves_no_empty_slab() {
    const NAME: &str = "a_trim_leaves_no_empty_slab";
    child::body(NAME, |_| {
        HEAP.trim();
        drop(fill(12 * MIB, 200));
        let (free, slabs) = (HEAP.stats().free_resident, active_and_all_slabs());
        assert!(free > 8 * MIB, "{} KiB are free", free / KIB);
        assert!(slabs.0 + 100 < slabs.1, "of {} slabs {} are active", slabs.1, slabs.0);
        let report = HEAP.trim();
        assert!(report.released > 8 * MIB, "{report:?}");
        let slabs = active_and_all_slabs();
        assert_eq!(slabs.0, slabs.1, "no slab is empty");
        is_sound();
    });
    child::Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// Of all classes, from `slabinfo`.
fn active_and_all_slabs() -> (usize, usize) {
    let text = HEAP.slabinfo().to_string();
    let rows = text.lines().filter_map(|line| line.split_once("slabdata ")).filter(|(name, _)| !name.starts_with('#'));
    rows.fold((0, 0), |sum, (_, data)| {
        let mut numbers = data.split_whitespace().map(|number| number.parse::<usize>().expect("a number"));
        let mut next = || numbers.next().expect("two numbers");
        (sum.0 + next(), sum.1 + next())
    })
}
