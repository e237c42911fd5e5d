//! Blocks that wait for nolock allocation alone: reserves, charged beforehand and kept.
//!
//! A reserve is one more stack for a class on a CPU, found through a table of its own, so that it is there while
//! the CPU's other stacks are stopped. Ordinary allocation, drains and trims leave it alone.

use core::sync::atomic::Ordering;

use super::region::{RESERVE, Region, Reserve};
use crate::size_class::{BATCH, CLASSES, block_size};
use crate::slab::shard::node_of;
use crate::slab::{self, counts_on};
use crate::zone::{MARKS, META, free_resident, resident};

/// Why a reserve could not be charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChargeError {
    OutOfMemory,
    Unreachable,
}

/// Sets how many blocks of `class` a region's reserve holds, and fills it from `shard`. `stop`, which may refuse, keeps
/// everybody from the reserve until `start`.
pub(super) fn set_charge(
    region: &Region,
    class: usize,
    blocks: usize,
    shard: usize,
    stop: impl FnOnce() -> bool,
    start: impl FnOnce(),
) -> Result<(), ChargeError> {
    let mut book = region.book.lock();
    // Blocks that were taken and not made up for so far are had anew, too.
    let reserve = &book.reserves[class];
    if reserve.charge == blocks && region.reserve_lacks(reserve, class) == 0 {
        return Ok(());
    }
    // Another array, already full, takes the one's place in one step; what that held goes back.
    let (base, room) = match book.reserves[class].other {
        (base, room) if !base.is_null() && room >= blocks => (base, room),
        // Arrays stay, so none is made for blocks that the limit cannot have room for.
        _ if !fits(class, blocks, node_of(shard)) => return Err(ChargeError::OutOfMemory),
        _ => new_array(blocks).ok_or(ChargeError::OutOfMemory)?,
    };
    book.reserves[class].other = (base, room);
    // SAFETY: the array has room for `blocks` words behind its sentinel, and no stack uses it.
    let fresh = unsafe { core::slice::from_raw_parts_mut(base, blocks) };
    let mut filled = 0;
    while filled < blocks {
        match slab::alloc_bulk(shard, class, &mut fresh[filled..]) {
            0 => {
                slab::free_bulk(class, &mut fresh[..filled]);
                return Err(ChargeError::OutOfMemory);
            }
            got => filled += got,
        }
    }
    if !stop() {
        slab::free_bulk(class, fresh);
        return Err(ChargeError::Unreachable);
    }
    let mut old = [0; BATCH];
    loop {
        // SAFETY: the region is stopped, or this thread's own and marked busy.
        match unsafe { region.pop_batch(RESERVE + class, &mut old) } {
            0 => break,
            n => slab::free_bulk(class, &mut old[..n]),
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
    let mut blocks = [0; BATCH];
    for class in 0..CLASSES {
        if book.reserves[class].charge == 0 {
            continue;
        }
        loop {
            // SAFETY: the caller's obligation.
            match unsafe { region.pop_batch(RESERVE + class, &mut blocks) } {
                0 => break,
                n => slab::free_bulk(class, &mut blocks[..n]),
            }
        }
        let reserve = &mut book.reserves[class];
        reserve.charge = 0;
        region.headers[RESERVE + class].limit.store(reserve.base, Ordering::Relaxed);
    }
}

/// Whether the limit may have room for so many blocks and their array: in what is not resident, and in what is and is free.
fn fits(class: usize, blocks: usize, node: usize) -> bool {
    let limit = MARKS.limit.load(Ordering::Relaxed);
    let free = free_resident() + counts_on(node, class).free * block_size(class);
    let bytes = blocks.saturating_mul(block_size(class) + size_of::<usize>());
    limit == usize::MAX || bytes <= limit.saturating_sub(resident().saturating_sub(free))
}

/// An array for at least `blocks` entries: its first entry and its room. It is never given back, so larger ones
/// are made by doublings.
fn new_array(blocks: usize) -> Option<(*mut usize, usize)> {
    let words = blocks.checked_add(1)?.checked_next_power_of_two()?.max(16);
    // META's memory reads as zero, as the sentinel must.
    let array = META.alloc(words.checked_mul(size_of::<usize>())?, align_of::<usize>())?;
    Some((array.cast::<usize>().as_ptr().wrapping_add(1), words - 1))
}
