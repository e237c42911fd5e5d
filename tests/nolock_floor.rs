//! What nolock allocation may take, what is set aside for it, and where its frees go.
#![cfg(not(miri))]

mod rcu_common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;

use pcpalloc::{Drain, PcpAlloc};
use rcu_common::{alloc, alone, child, dealloc, fill, is_filled, until};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Each test has a class of its own, so that one finds nothing of another's.
fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Runs `f` on a thread that stays on one processor.
fn on_cpu<R: Send>(cpu: usize, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the set is initialised before use.
            unsafe {
                let mut set: libc::cpu_set_t = core::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
            }
            f()
        });
        thread.join().unwrap()
    })
}

/// Room for what a test takes, made beforehand: a vector that grows would allocate.
fn room() -> Vec<NonNull<u8>> {
    Vec::with_capacity(1 << 14)
}

/// Everything that nolock allocation gives.
fn take_all(blocks: &mut Vec<NonNull<u8>>, layout: Layout) -> usize {
    let before = blocks.len();
    while let Some(block) = GLOBAL.try_alloc_nolock(layout) {
        assert!(blocks.len() < blocks.capacity(), "there is no end to it");
        // SAFETY: ours.
        unsafe { fill(block, layout.size()) };
        blocks.push(block);
    }
    blocks.len() - before
}

fn give_back(blocks: &mut Vec<NonNull<u8>>, layout: Layout) {
    for block in blocks.drain(..) {
        // SAFETY: ours, filled when it was taken.
        unsafe {
            assert!(is_filled(block, layout.size()));
            GLOBAL.free_nolock(block, layout);
        }
    }
}

/// A loop of nolock allocations stops at a quarter of the stack, and says so; what is below is there for others.
///
/// Positive control: without the comparison in `pop_above_floor` nothing is left.
#[test]
fn the_floor_is_left_to_others() {
    // Alone in a process: it counts every refill there is.
    if child::role().is_none() {
        // Threads of the harness may disturb a count, but not each time.
        let run = || child::run_plain("the_floor_is_left_to_others", "counts");
        let passed = (0..2).map(|_| run()).find(|outcome| outcome.status.success());
        return child::assert_passed(&passed.unwrap_or_else(run));
    }
    let layout = layout(640);
    on_cpu(0, || {
        let (mut blocks, mut taken) = (room(), room());
        for _ in 0..10 {
            (0..500).for_each(|_| blocks.push(alloc(layout)));
            // SAFETY: ours.
            blocks.drain(..).for_each(|block| unsafe { dealloc(block, layout) });
        }
        let before = GLOBAL.stats();
        let by_handler = take_all(&mut taken, layout);
        let after = GLOBAL.stats();
        assert!(by_handler > 0);
        assert_eq!(after.nolock_hits - before.nolock_hits, by_handler);
        assert_eq!(after.nolock_refusals - before.nolock_refusals, 1, "stopped by the floor, not by an empty stack");
        assert_eq!(after.refills, before.refills);
        let mut left = 0;
        loop {
            blocks.push(alloc(layout));
            if GLOBAL.stats().refills > after.refills {
                break;
            }
            left += 1;
        }
        println!("{by_handler} blocks above the floor and {left} below");
        assert!(left * 4 >= by_handler + left, "{left} are left of {}", by_handler + left);
        // SAFETY: ours.
        blocks.drain(..).for_each(|block| unsafe { dealloc(block, layout) });
        give_back(&mut taken, layout);
    });
}

/// A charge is there after a drain, a trim, and whatever ordinary allocation does, on every CPU; the next slow path
/// of any class replaces what was taken.
///
/// Positive controls: `Region::take_all` in a drain that goes on to the reserves; `refill` and `flush` without
/// `satisfy`.
#[test]
fn a_charge_is_kept() {
    const CHARGE: usize = 48;
    let _alone = alone();
    let layout = layout(1280);
    GLOBAL.charge_nolock(layout, CHARGE).unwrap();
    let is_there = |when: &str| {
        for cpu in 0..cpus() {
            on_cpu(cpu, || {
                let mut taken = room();
                let count = take_all(&mut taken, layout);
                assert!(count >= CHARGE, "{count} blocks {when} on CPU {cpu}");
                give_back(&mut taken, layout);
            });
        }
    };
    is_there("after the charge");
    GLOBAL.drain(Drain::All);
    is_there("after a drain");
    GLOBAL.trim();
    is_there("after a trim");
    for cpu in 0..cpus() {
        on_cpu(cpu, || {
            let mut blocks = room();
            (0..10_000).for_each(|_| blocks.push(alloc(layout)));
            let mut taken = room();
            let count = take_all(&mut taken, layout);
            assert!(count >= CHARGE, "{count} blocks while 10000 are in use");
            // What was taken is kept, and others of another class go their slow ways.
            let other = self::layout(1408);
            let others: Vec<_> = (0..1000).map(|_| alloc(other)).collect();
            // SAFETY: ours.
            others.into_iter().for_each(|block| unsafe { dealloc(block, other) });
            let again = take_all(&mut taken, layout);
            assert!(again >= CHARGE, "{again} blocks after {count} were taken");
            // SAFETY: ours.
            blocks.into_iter().for_each(|block| unsafe { dealloc(block, layout) });
            give_back(&mut taken, layout);
        });
    }
    let cached = GLOBAL.stats().percpu_cached;
    GLOBAL.charge_nolock(layout, 0).unwrap();
    GLOBAL.drain(Drain::All);
    on_cpu(0, || assert!(GLOBAL.try_alloc_nolock(layout).is_none(), "given back, and drained"));
    assert!(cached - GLOBAL.stats().percpu_cached >= cpus() * CHARGE * 1280);
}

/// What was taken of a charge is replaced in full by slow paths, however much that is and of whatever size.
///
/// Red if a region that still lacks blocks wants nothing more: in `satisfy` (`src/percpu/nolock.rs`), leave out the store
/// at its end.
#[test]
fn a_charge_is_replaced_in_full() {
    let _alone = alone();
    for (size, charge) in [(64 << 10, 24), (4096, 200)] {
        let layout = layout(size);
        GLOBAL.charge_nolock(layout, charge).unwrap();
        on_cpu(0, || {
            let mut taken = room();
            assert!(take_all(&mut taken, layout) >= charge);
            // Each brings a part, and what it does may be aborted by a preemption.
            for _ in 0..10 {
                GLOBAL.drain(Drain::All);
                let other = self::layout(2304);
                // SAFETY: ours.
                unsafe { dealloc(alloc(other), other) };
            }
            let again = take_all(&mut taken, layout);
            assert!(again >= charge, "{again} of {charge} blocks of {size} bytes were replaced");
            give_back(&mut taken, layout);
        });
        GLOBAL.charge_nolock(layout, 0).unwrap();
    }
}

/// Charging anew costs no bookkeeping memory, whatever the charge was before.
#[test]
fn charges_may_change_for_ever() {
    let _alone = alone();
    let layout = layout(1792);
    let change = || [10, 0, 200, 3].iter().for_each(|&blocks| GLOBAL.charge_nolock(layout, blocks).unwrap());
    let more = on_cpu(0, || {
        (0..10).for_each(|_| change());
        let before = GLOBAL.stats().metadata;
        (0..500).for_each(|_| change());
        GLOBAL.stats().metadata.saturating_sub(before)
    });
    // A processor that is used for the first time meanwhile has stacks made; 500 arrays would be 800 KiB for each of them.
    assert!(more < 512 << 10, "{more} bytes more");
    GLOBAL.charge_nolock(layout, 0).unwrap();
}

/// Who asks for the same charge again has it in full, whatever has been taken from it.
///
/// Red if nothing is done: in `set_charge` (`src/percpu/reserve.rs`), do not ask `reserve_lacks`.
#[test]
fn the_same_charge_again_is_a_charge() {
    const CHARGE: usize = 40;
    let _alone = alone();
    let layout = layout(2304);
    on_cpu(0, || {
        let mut taken = room();
        for _ in 0..3 {
            GLOBAL.charge_nolock(layout, CHARGE).unwrap();
            let count = take_all(&mut taken, layout);
            assert!(count >= CHARGE, "{count} blocks right after the charge");
        }
        give_back(&mut taken, layout);
    });
    GLOBAL.charge_nolock(layout, 0).unwrap();
}

/// A miss has the next slow path bring blocks, more after every further miss.
///
/// What the slow path does may be aborted by a preemption; then a round finds nothing, and the next the more.
///
/// Positive control: `satisfy` that leaves the level where it is.
#[test]
fn misses_are_made_up_for() {
    let _alone = alone();
    let layout = layout(3584);
    on_cpu(0, || {
        let mut taken = room();
        let mut rounds = Vec::new();
        for _ in 0..20 {
            take_all(&mut taken, layout);
            assert!(GLOBAL.try_alloc_nolock(layout).is_none());
            // A slow path of another class.
            GLOBAL.drain(Drain::All);
            take_all(&mut taken, layout);
            let other = self::layout(2560);
            // SAFETY: ours.
            unsafe { dealloc(alloc(other), other) };
            rounds.push(take_all(&mut taken, layout));
        }
        println!("blocks found after one miss more each: {rounds:?}");
        assert!(rounds.iter().max() > rounds.first(), "more misses bring more");
        give_back(&mut taken, layout);
    });
}

/// Whole pages, and what is no page at all.
#[test]
fn pages_are_aligned_and_whole() {
    let _alone = alone();
    for order in 0..=6 {
        let layout = Layout::from_size_align(4096 << order, 4096).unwrap();
        GLOBAL.charge_nolock(layout, 2).unwrap();
        let block = GLOBAL.try_alloc_pages_nolock(order).expect("charged");
        assert!((block.as_ptr() as usize).is_multiple_of(4096));
        // SAFETY: ours.
        unsafe {
            fill(block, layout.size());
            assert!(is_filled(block, layout.size()));
            GLOBAL.free_nolock(block, layout);
        }
        GLOBAL.charge_nolock(layout, 0).unwrap();
    }
    for order in [7, 8, 51, 52, 63, 64, u32::MAX] {
        assert!(GLOBAL.try_alloc_pages_nolock(order).is_none());
    }
    for (size, align) in [((256 << 10) + 1, 8), (64, 8192), (1 << 40, 8), (0, 1)] {
        let layout = Layout::from_size_align(size, align).unwrap();
        assert!(GLOBAL.try_alloc_nolock(layout).is_none(), "{layout:?}");
        assert!(GLOBAL.charge_nolock(layout, 1).is_err(), "{layout:?}");
    }
    assert!(GLOBAL.try_alloc_nolock(layout(256 << 10)).is_none_or(|block| {
        // SAFETY: ours.
        unsafe { GLOBAL.free_nolock(block, layout(256 << 10)) };
        true
    }));
}

/// What finds no room waits on a list, is counted there, and is gone after a drain, or an ordinary slow path.
///
/// Positive control: `nolock::settle` that does nothing.
#[test]
fn the_overflow_is_listed_and_emptied() {
    let _alone = alone();
    let (small, huge) = (layout(2048), layout(128 << 20));
    on_cpu(0, || {
        let mut blocks = room();
        let mut once = || {
            for _ in 0..8000 {
                let block = alloc(small);
                // SAFETY: ours.
                unsafe { fill(block, small.size()) };
                blocks.push(block);
            }
            let large = [alloc(huge), alloc(huge)];
            let mappings = GLOBAL.stats().mappings;
            give_back(&mut blocks, small);
            // SAFETY: ours.
            large.into_iter().for_each(|block| unsafe { GLOBAL.free_nolock(block, huge) });
            let stats = GLOBAL.stats();
            (stats.nolock_deferred, stats.in_use, mappings)
        };
        // Tests beside this one take slow paths, too, after which nothing is listed.
        let mut overflow =
            || (0..10).map(|_| once()).find(|&(deferred, ..)| deferred > 2).expect("8000 blocks do not fit a stack");
        let (deferred, in_use, mappings) = overflow();
        GLOBAL.drain(Drain::All);
        let stats = GLOBAL.stats();
        assert_eq!((stats.nolock_deferred, stats.mappings), (0, mappings - 2));
        assert!(in_use - stats.in_use >= (deferred - 2) * small.size(), "what was listed is free");
        overflow();
        // One slow path is enough: a class that nobody has used.
        let fresh = layout(10 << 10);
        // SAFETY: ours.
        unsafe { dealloc(alloc(fresh), fresh) };
        until(|| GLOBAL.stats().nolock_deferred == 0);
    });
}

/// So it is after a slow path of large blocks alone, which come and go without a stack.
///
/// Red if one goes past the list: `nolock::settle` left out in `alloc_zeroed_run`, or in `free_large` (`src/alloc.rs`).
#[test]
fn the_overflow_is_emptied_by_large_blocks() {
    let _alone = alone();
    let (run, large) = (layout(224 << 10), layout(300 << 10));
    on_cpu(0, || {
        for zeroed in [true, false] {
            let (listed, freed) = (alloc(large), alloc(large));
            // No stack has a run.
            GLOBAL.drain(Drain::All);
            // SAFETY: ours.
            unsafe {
                GLOBAL.free_nolock(listed, large);
                if zeroed {
                    let block = GLOBAL.alloc_zeroed(run);
                    assert_eq!(GLOBAL.stats().nolock_deferred, 0, "a zeroed run");
                    GLOBAL.dealloc(block, run);
                }
                dealloc(freed, large);
                assert_eq!(GLOBAL.stats().nolock_deferred, 0, "a free");
            }
        }
    });
}

/// The list runs through the freed blocks. Whoever writes to one of them is found out, not followed.
///
/// Positive control: `settle_all` without the look at the page's tag crashes, or corrupts the heap.
#[test]
fn a_write_to_a_listed_block_is_found_out() {
    const NAME: &str = "a_write_to_a_listed_block_is_found_out";
    if child::role().is_some() {
        let layout = layout(2048);
        // On another processor the last block would find room on a stack.
        on_cpu(0, || {
            let blocks: Vec<_> = (0..8000).map(|_| alloc(layout)).collect();
            // SAFETY: ours.
            blocks.iter().for_each(|&block| unsafe { GLOBAL.free_nolock(block, layout) });
            assert!(GLOBAL.stats().nolock_deferred > 0);
            // SAFETY: it is not: the memory is mapped, but was given up. That is what is to be found out.
            unsafe { blocks[7999].cast::<u64>().write(0x0000_4141_4141_4140) };
            GLOBAL.drain(Drain::All);
        });
        return;
    }
    let output = child::run_plain(NAME, "corrupts");
    assert!(child::was_killed_by(&output, libc::SIGABRT), "{}", child::text(&output));
    assert!(child::text(&output).contains("memory was written to after it was freed"));
}
