//! Blocks that wait for nolock allocation alone: reserves, charged beforehand and kept.
//!
//! A reserve is one more stack for a class on a CPU, found through a table of its own, so that it is there while
//! the CPU's other stacks are stopped. Ordinary allocation, drains and trims leave it alone;
//! nolock allocation takes from it when the ordinary stack is empty or down to its floor, and marks the region
//! as wanting. The next visit to the slow path on that CPU then fills the reserve up again. Where no reserve was
//! charged, the same visit refills the ordinary stack of a class that nolock allocation found empty, by twice
//! as much after every further miss and by less again when there was none.

use core::sync::atomic::Ordering;

use super::region::{Event, RESERVE, Region, Reserve};
use super::rseq::AboveFloor;
use super::slow::{Stacks, create_region};
use super::{Mode, cpus, mode, node_of, rseq, thread};
use crate::size_class::{BATCH_MAX, CLASS, CLASSES};
use crate::slab;
use crate::zone::META;

/// Tries of a section that is aborted over and over, in a storm of signals say, before it counts as a miss.
const ATTEMPTS: usize = 64;
/// Most doublings of what a miss adds.
const LEVEL_MAX: u8 = 4;

/// Why a reserve could not be charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChargeError {
    OutOfMemory,
    Unreachable,
}

/// Takes a block without a lock, a system call or an allocation; null is a miss.
pub(crate) fn pop_nolock(class: usize) -> *mut u8 {
    let (found, region) = if mode() == Mode::PerThread {
        match thread::with_region_at_hand(|region| (pop_own(region, class), region)) {
            Some((found, region)) => (found, Some(region)),
            None => (AboveFloor::Empty, None),
        }
    } else {
        let found = pop_of_cpu(class);
        (found, rseq::cpu().filter(|&cpu| cpu < cpus()).and_then(super::slow::region_of))
    };
    let Some(region) = region else { return core::ptr::null_mut() };
    // Relaxed throughout: statistics, and marks that only ask for a look.
    match found {
        AboveFloor::Block(block) => {
            region.counters.nolock_hits.fetch_add(1, Ordering::Relaxed);
            return block as *mut u8;
        }
        AboveFloor::Floor => region.counters.nolock_refusals.fetch_add(1, Ordering::Relaxed),
        _ => region.counters.nolock_misses.fetch_add(1, Ordering::Relaxed),
    };
    region.levels[class].fetch_or(MISSED, Ordering::Relaxed);
    region.wanting.store(true, Ordering::Relaxed);
    core::ptr::null_mut()
}

/// In a region's `levels`: nolock allocation has missed since the level was last looked at.
const MISSED: u8 = 0x80;

fn pop_of_cpu(class: usize) -> AboveFloor {
    let mut found = AboveFloor::Aborted;
    for _ in 0..ATTEMPTS {
        found = rseq::pop_above_floor(class);
        if found != AboveFloor::Aborted {
            break;
        }
    }
    if let AboveFloor::Block(_) = found {
        return found;
    }
    // Nothing above the floor. A reserve that was never charged is an empty stack.
    let mut tries = (0..ATTEMPTS / 8).map(|_| rseq::pop_reserve(class) as usize);
    let Some(block) = tries.find(|&block| block != 0) else { return found };
    if let Some(region) = rseq::cpu().filter(|&cpu| cpu < cpus()).and_then(super::slow::region_of) {
        region.wanting.store(true, Ordering::Relaxed);
    }
    AboveFloor::Block(block)
}

fn pop_own(region: &Region, class: usize) -> AboveFloor {
    // SAFETY: the calling thread's region, marked busy.
    unsafe {
        let found = region.pop_above_floor(class);
        if let AboveFloor::Block(_) = found {
            return found;
        }
        match region.pop(RESERVE + class) {
            0 => found,
            block => {
                region.wanting.store(true, Ordering::Relaxed);
                AboveFloor::Block(block)
            }
        }
    }
}

/// Puts a block where the next nolock allocation finds it, without a lock, a system call or an allocation: into
/// the reserve if that lacks one, else on the ordinary stack. False if neither has room.
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
pub(crate) unsafe fn push_nolock(class: usize, block: *mut u8) -> bool {
    let block = [block as usize];
    // SAFETY: the caller's obligation; in per-thread mode the region is this thread's own, marked busy.
    unsafe {
        if mode() == Mode::PerThread {
            return thread::with_region_at_hand(|region| {
                region.push_batch(RESERVE + class, &block) == 1 || region.push_batch(class, &block) == 1
            })
            .unwrap_or(false);
        }
        rseq::push_reserve(class, &block) == 1 || (0..4).any(|_| rseq::push_batch(class, &block) == 1)
    }
}

/// Sets how many blocks of `class` the reserve of every CPU holds (of the calling thread in per-thread mode),
/// and fills them.
pub(crate) fn charge(class: usize, blocks: usize) -> Result<(), ChargeError> {
    if mode() == Mode::PerThread {
        return thread::with_region(|region| match region {
            Some(region) => set_charge(region, class, blocks, 0, || true, || {}),
            None => Err(ChargeError::Unreachable),
        });
    }
    for cpu in 0..cpus() {
        let region = super::slow::region_of(cpu).or_else(|| create_region(cpu)).ok_or(ChargeError::OutOfMemory)?;
        let stop = || super::drain::stop_reserves(cpu, region);
        set_charge(region, class, blocks, node_of(cpu), stop, || rseq::start_reserves(cpu, region))?;
    }
    Ok(())
}

fn set_charge(
    region: &Region,
    class: usize,
    blocks: usize,
    node: usize,
    stop: impl FnOnce() -> bool,
    start: impl FnOnce(),
) -> Result<(), ChargeError> {
    let mut book = region.book.lock();
    if book.reserves[class].charge == blocks {
        return Ok(());
    }
    // Another array, already full, takes the one's place in one step; what that held goes back.
    let (base, room) = match book.reserves[class].other {
        (base, room) if !base.is_null() && room >= blocks => (base, room),
        _ => new_array(blocks).ok_or(ChargeError::OutOfMemory)?,
    };
    book.reserves[class].other = (base, room);
    // SAFETY: the array has room for `blocks` words behind its sentinel, and no stack uses it.
    let fresh = unsafe { core::slice::from_raw_parts_mut(base, blocks) };
    let mut filled = 0;
    while filled < blocks {
        match slab::alloc_bulk(node, class, &mut fresh[filled..]) {
            0 => {
                slab::free_bulk(class, &fresh[..filled]);
                return Err(ChargeError::OutOfMemory);
            }
            got => filled += got,
        }
    }
    if !stop() {
        slab::free_bulk(class, fresh);
        return Err(ChargeError::Unreachable);
    }
    let mut old = [0; BATCH_MAX];
    loop {
        // SAFETY: the region is stopped, or this thread's own and marked busy.
        match unsafe { region.pop_batch(RESERVE + class, &mut old) } {
            0 => break,
            n => slab::free_bulk(class, &old[..n]),
        }
    }
    let header = &region.headers[RESERVE + class];
    // Relaxed: published by the release that starts the region.
    header.top.store(base.wrapping_add(blocks), Ordering::Relaxed);
    header.limit.store(base.wrapping_add(blocks), Ordering::Relaxed);
    start();
    let reserve = &mut book.reserves[class];
    *reserve = Reserve { base, charge: blocks, room, other: (reserve.base, reserve.room) };
    Ok(())
}

/// Gives up whatever was charged to a thread that ends.
///
/// # Safety
/// The region is the calling thread's, and no handler finds it any more.
pub(super) unsafe fn forget(region: &Region) {
    let mut book = region.book.lock();
    let mut blocks = [0; BATCH_MAX];
    for class in 0..CLASSES {
        if book.reserves[class].charge == 0 {
            continue;
        }
        loop {
            // SAFETY: the caller's obligation.
            match unsafe { region.pop_batch(RESERVE + class, &mut blocks) } {
                0 => break,
                n => slab::free_bulk(class, &blocks[..n]),
            }
        }
        let reserve = &mut book.reserves[class];
        reserve.charge = 0;
        region.headers[RESERVE + class].limit.store(reserve.base, Ordering::Relaxed);
    }
}

/// An array for at least `blocks` entries: its first entry and its room. It is never given back, so larger ones
/// are made by doublings.
fn new_array(blocks: usize) -> Option<(*mut usize, usize)> {
    let words = blocks.checked_add(1)?.checked_next_power_of_two()?.max(16);
    // META's memory reads as zero, as the sentinel must.
    let array = META.alloc(words.checked_mul(size_of::<usize>())?, align_of::<usize>())?;
    Some((array.cast::<usize>().as_ptr().wrapping_add(1), words - 1))
}

/// Sees to a region that is wanting. Called on the slow path, with no lock held.
#[cold]
pub(super) fn satisfy(stacks: &Stacks) {
    let region = stacks.region();
    region.wanting.store(false, Ordering::Relaxed);
    let mut lacking = [0u16; CLASSES];
    if let Some(book) = region.book.try_lock() {
        for (class, lacking) in lacking.iter_mut().enumerate() {
            *lacking = region.reserve_lacks(&book.reserves[class], class).min(u16::MAX as usize) as u16;
        }
    }
    let mut blocks = [0; BATCH_MAX];
    for (class, &lacking) in lacking.iter().enumerate() {
        // SAFETY: `fill` passes blocks of the class, fresh from the slab.
        fill(stacks, class, lacking as usize, &mut blocks, |blocks| unsafe { stacks.push_reserve(class, blocks) });
        let level = region.levels[class].load(Ordering::Relaxed);
        if level == 0 {
            continue;
        }
        if level & MISSED != 0 {
            let level = (level & !MISSED) + 1;
            region.missed(class, Event::Empty, stacks);
            // SAFETY: as above.
            fill(stacks, class, 4 << level, &mut blocks, |blocks| unsafe { stacks.push_batch(class, blocks) });
            region.levels[class].store(level.min(LEVEL_MAX), Ordering::Relaxed);
        } else {
            region.levels[class].store(level - 1, Ordering::Relaxed);
        }
    }
}

/// Puts up to `count` new blocks of a class on a stack; what it will not take goes back.
fn fill(
    stacks: &Stacks,
    class: usize,
    count: usize,
    blocks: &mut [usize; BATCH_MAX],
    push: impl Fn(&[usize]) -> usize,
) {
    let mut left = count.min(4 * CLASS[class].batch as usize);
    while left > 0 {
        let got = slab::alloc_bulk(stacks.node(), class, &mut blocks[..left.min(BATCH_MAX)]);
        let put = push(&blocks[..got]);
        slab::free_bulk(class, &blocks[put..got]);
        if put == 0 {
            return;
        }
        left -= put;
    }
}
