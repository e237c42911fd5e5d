//! Nolock allocation: pops and pushes that take no lock and make no system call, and what the slow path does for them.
//!
//! A pop takes from the ordinary stack down to its floor, and then from the reserve (`reserve.rs`), and marks the region
//! as wanting. The next visits to the slow path on that CPU then fill the reserve up again, some batches each. Where no reserve
//! was charged, the same visit refills the ordinary stack of a class that nolock allocation found empty, by twice
//! as much after every further miss and by less again when there was none.

use core::sync::atomic::Ordering;

use super::choice::{Mode, mode};
use super::cpus::{cpus, node_of, shard_of};
use super::region::{AboveFloor, Event, RESERVE, Region};
use super::regions::{cpu_regions, create_region, region_here, region_of};
use super::reserve::{ChargeError, set_charge};
use super::stacks::Stacks;
use super::{fence, observed, rseq, thread};
use crate::size_class::{BATCH, CLASS, CLASSES};
use crate::slab;

/// Tries of a section that is aborted over and over, in a storm of signals say, before it counts as a miss.
const ATTEMPTS: usize = 64;
/// Pushes that may put nothing before a stack counts as full.
const FILL_ATTEMPTS: usize = 3;
/// Most doublings of what a miss adds.
const LEVEL_MAX: u8 = 4;

/// Takes a block without a lock, a system call or an allocation; null is a miss.
pub(crate) fn pop_nolock(class: usize) -> *mut u8 {
    let (found, region) = if mode() == Mode::PerThread {
        match thread::with_region_at_hand(|region| (pop_own(region, class), region)) {
            Some((found, region)) => (found, Some(region)),
            None => (AboveFloor::Empty, None),
        }
    } else {
        let found = pop_of_cpu(class);
        (found, region_here())
    };
    // Relaxed throughout: statistics, and marks that only ask for a look.
    if let AboveFloor::Block(block) = found {
        // By now the thread may run on a CPU that has no stacks; the one that the block is from has some.
        if let Some(region) = region.or_else(|| cpu_regions().map(|(_, region)| region).next()) {
            region.counters.nolock_hits.fetch_add(1, Ordering::Relaxed);
        }
        return block as *mut u8;
    }
    let Some(region) = region else { return core::ptr::null_mut() };
    let counter = match found {
        AboveFloor::Floor => &region.counters.nolock_refusals,
        _ => &region.counters.nolock_misses,
    };
    counter.fetch_add(1, Ordering::Relaxed);
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
    let cpu = rseq::cpu();
    let mut tries = (0..ATTEMPTS / 8).map(|_| rseq::pop_reserve(class) as usize);
    let Some(block) = tries.find(|&block| block != 0) else { return found };
    match cpu.and_then(region_of) {
        Some(region) if rseq::cpu() == cpu => region.wanting.store(true, Ordering::Relaxed),
        // The thread has come to another CPU meanwhile: nobody knows whose reserve lacks the block.
        _ => cpu_regions().for_each(|(_, region)| region.wanting.store(true, Ordering::Relaxed)),
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
        let push = || match observed::is_on().then(region_here).flatten() {
            Some(region) => observed::push_nolock(region, class, block[0]),
            None => rseq::push_batch(class, &block) == 1,
        };
        rseq::push_reserve(class, &block) == 1 || (0..4).any(|_| push())
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
        let region = region_of(cpu).or_else(|| create_region(cpu)).ok_or(ChargeError::OutOfMemory)?;
        let stop = || fence::stop_reserves(cpu, region);
        set_charge(region, class, blocks, shard_of(node_of(cpu), cpu, class), stop, || {
            rseq::start_reserves(cpu, region)
        })?;
    }
    Ok(())
}

/// Sees to a region that is wanting. Called on the slow path, with no lock held.
#[cold]
pub(super) fn satisfy(stacks: &Stacks) {
    let region = stacks.region();
    region.wanting.store(false, Ordering::Relaxed);
    let mut lacking = [0u16; CLASSES];
    let mut is_seen_to = false;
    if let Some(book) = region.book.try_lock() {
        for (class, lacking) in lacking.iter_mut().enumerate() {
            *lacking = region.reserve_lacks(&book.reserves[class], class).min(u16::MAX as usize) as u16;
        }
        is_seen_to = true;
    }
    let mut blocks = [0; BATCH];
    for (class, &lacking) in lacking.iter().enumerate() {
        is_seen_to &= fill(stacks, class, lacking as usize, &mut blocks, |blocks| {
            // SAFETY: `fill` passes blocks of the class, fresh from the slab.
            unsafe { stacks.push_reserve(class, blocks) }
        });
        let level = region.levels[class].load(Ordering::Relaxed);
        if level == 0 {
            continue;
        }
        if level & MISSED != 0 {
            let level = (level & !MISSED) + 1;
            region.ensure_capacity(class, stacks);
            region.missed(class, Event::Empty, stacks);
            // SAFETY: as above.
            fill(stacks, class, 4 << level, &mut blocks, |blocks| unsafe { stacks.push_batch(class, blocks) });
            region.levels[class].store(level.min(LEVEL_MAX), Ordering::Relaxed);
        } else {
            region.levels[class].store(level - 1, Ordering::Relaxed);
        }
    }
    if !is_seen_to {
        region.wanting.store(true, Ordering::Relaxed);
    }
}

/// Puts `count` new blocks of a class on a stack, a few batches at most; what it will not take goes back. False if there is
/// more to put that another visit may: what there is no memory for is asked for again when it is missed.
fn fill(
    stacks: &Stacks,
    class: usize,
    count: usize,
    blocks: &mut [usize; BATCH],
    push: impl Fn(&[usize]) -> usize,
) -> bool {
    let most = 4 * CLASS[class].batch as usize;
    let mut left = count.min(most);
    // A push that puts nothing found the stack full, or was aborted.
    let mut refused = 0;
    while left > 0 {
        let got = slab::alloc_bulk(stacks.shard(class), class, &mut blocks[..left.min(BATCH)]);
        let put = push(&blocks[..got]);
        slab::free_bulk(class, &mut blocks[put..got]);
        refused += usize::from(put == 0);
        if got == 0 || refused == FILL_ATTEMPTS {
            return got == 0;
        }
        left -= put;
    }
    count <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reserve lacks is brought by as many visits as it takes, also if somebody else is at the book in one of them.
    ///
    /// Red if a region that still lacks blocks wants nothing more: in `satisfy`, leave out the store at its end; or if one does
    /// whose book was not to be had: there, let `is_seen_to` be true from the start.
    #[test]
    fn a_reserve_is_filled_by_as_many_visits_as_it_takes() {
        crate::heap::ensure_up(&crate::Config::new());
        // Four batches of one block each are a visit's.
        let (class, charge) = (CLASSES - 20, 10);
        let region = Region::new(1 << 20).unwrap();
        let stacks = Stacks::Thread(region);
        set_charge(region, class, charge, 0, || true, || {}).unwrap();
        let held = || region.reserve_count(&region.book.lock().reserves[class], class);
        let mut blocks = [0; 10];
        // SAFETY: the region is the test's own.
        assert_eq!(unsafe { region.pop_batch(RESERVE + class, &mut blocks) }, charge);
        slab::free_bulk(class, &mut blocks);
        region.wanting.store(true, Ordering::Relaxed);
        let book = region.book.lock();
        satisfy(&stacks);
        drop(book);
        assert!(region.wanting.load(Ordering::Relaxed), "nobody could look");
        for expected in [4, 8, 10] {
            assert!(region.wanting.load(Ordering::Relaxed), "more are lacking than {expected}");
            satisfy(&stacks);
            assert_eq!(held(), expected);
        }
        assert!(!region.wanting.load(Ordering::Relaxed));
        set_charge(region, class, 0, 0, || true, || {}).unwrap();
    }
}
