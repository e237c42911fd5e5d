//! What happens when a stack is empty, full, or not to be had.
//!
//! ```text
//! alloc_slow                              free_slow
//!                                           a block of another shard to its slab, while such are looked for
//!   try the stack again (an abort is a miss)
//!   let the stack grow if it should
//!   a batch from another CPU (transfer),    half a stack and the block into a batch,
//!   or blocks from slabs                    to another CPU (transfer), or to slabs
//!   one is returned, the others pushed      a stack of any class to slabs, where much goes out
//! ```

use core::sync::atomic::Ordering;

use super::capacity::Missed;
use super::cpus::{node_of, shard_of};
use super::region::Event;
use super::stacks::{Stacks, with_stacks};
use super::{drain, nolock, observed};
use crate::latency::{self, SlowPath};
use crate::size_class::{BATCH, BATCH_MAX, CLASS, Class};
use crate::slab::{self, transfer};
use crate::sys;
use crate::zone::nodes_from;

/// Blocks of a class in use from which on those handed out in succession lie side by side.
const MANY: usize = 1024;

/// Batches in transfer that are sent home in one go.
const SWEPT_IN_TRANSFER: usize = 4;

/// A block of `class`, after [`super::pop`] had none; null when the system gives no more memory. And whether it is due
/// to be sampled.
#[cold]
#[inline(never)]
pub(crate) fn alloc_slow(class: usize) -> (*mut u8, bool) {
    let alloc_one = || (alloc_one(sys::current_cpu(), class), observed::is_class_due(None, class));
    let (block, due) = with_stacks(|stacks| match &stacks {
        Some(stacks) => refill(stacks, class),
        None => alloc_one(),
    });
    if block != 0 {
        return (block as *mut u8, due);
    }
    drain::reclaim();
    let (block, due) = alloc_one();
    (block as *mut u8, due)
}

fn alloc_one(cpu: usize, class: usize) -> usize {
    let mut block = [0];
    // Another node's memory is better than none.
    nodes_from(node_of(cpu)).any(|node| slab::alloc_bulk(shard_of(node, cpu, class), class, &mut block) > 0);
    block[0]
}

/// A block, 0 if there is none, and whether it is due to be sampled.
fn refill(stacks: &Stacks, class: usize) -> (usize, bool) {
    let region = stacks.region();
    let is_due = || observed::is_class_due(Some(region), class);
    // An abort is a miss: the stack may well have something. (Per-thread stacks have not been tried at all.)
    let block = stacks.pop(class);
    if block != 0 {
        // On a CPU's stack this was decided when it came there.
        return (block, matches!(stacks, Stacks::Thread(_)) && is_due());
    }
    if observed::has_marks()
        && let (block, due) = observed::pop_marked(stacks, class)
        && block != 0
    {
        return (block, due);
    }
    if region.wanting.load(Ordering::Relaxed) {
        nolock::satisfy(stacks);
    }
    let wanted = region.missed(class, Event::Empty, stacks).blocks.max(1);
    region.counters.refills.fetch_add(1, Ordering::Relaxed);
    let _timer = latency::start(SlowPath::Refill);
    transfer::note_taker(stacks.shard(class), class, sys::addr(region.into()));
    let block = match transfer::pop(stacks.shard(class), class) {
        Some(batch) => from_batch(stacks, class, wanted, batch),
        // The room is for one batch or the other: the larger takes as long to clear as ten blocks to find.
        None if wanted <= BATCH => from_slabs::<BATCH>(stacks, class, wanted),
        None => from_slabs::<BATCH_MAX>(stacks, class, wanted),
    };
    (block, block != 0 && is_due())
}

/// A block of a batch that somebody passed on; `wanted` of it at most, the others to the stack. What is left of it is passed
/// on once more.
fn from_batch(stacks: &Stacks, class: usize, wanted: usize, mut batch: transfer::BatchBox) -> usize {
    let left = batch.len().saturating_sub(wanted);
    let Some((&mut block, others)) = batch.blocks()[left..].split_last_mut() else { return 0 };
    // SAFETY: blocks in transfer are nobody's.
    let put = unsafe { stacks.push_batch(class, others) };
    slab::free_bulk(class, &mut others[put..]);
    if left > 0 {
        batch.set_len(left);
        pass_on(stacks, class, batch);
    }
    block
}

/// A block from slabs, and up to `wanted` less one to the stack; 0 if there is none. `N` is at least `wanted`. What is on its way
/// to the CPUs of another shard is better than memory that the shard did not need before, unless lines would be shared with
/// what is used there.
fn from_slabs<const N: usize>(stacks: &Stacks, class: usize, wanted: usize) -> usize {
    let mut blocks = [0; N];
    let shard = stacks.shard(class);
    let (mut got, mut in_use) = slab::take_bulk_counted(shard, class, &mut blocks[..wanted]);
    if got == 0 {
        if !CLASS[class].shares_lines()
            && let Some(batch) = transfer::pop_other(shard, class)
        {
            return from_batch(stacks, class, wanted, batch);
        }
        (got, in_use) = slab::alloc_bulk_counted(shard, class, &mut blocks[..wanted]);
    }
    let blocks = &mut blocks[..got];
    if in_use < MANY {
        let mut order = [0; N];
        spread(&CLASS[class], blocks, &mut order[..got]);
        blocks.copy_from_slice(&order[..got]);
    } else {
        blocks.reverse();
    }
    let Some((&mut block, others)) = blocks.split_last_mut() else { return 0 };
    // SAFETY: fresh from the slab.
    let put = unsafe { stacks.push_batch(class, others) };
    slab::free_bulk(class, &mut others[put..]);
    block
}

/// Fills `order` from its end with blocks whose addresses ascend: as they are, so that the lowest is handed out first, or
/// where several begin in a cache line, from each of a few lines one, then the next from each.
///
/// What a thread allocates in succession it may hand to others, and a thread may move to another CPU with the block that
/// it has; then two processors would write to one line for as long as these blocks are in use, and since stacks hand out
/// last what was freed last, for longer. (E. Berger and others, "Hoard", 2000, call that passive and active false
/// sharing.)
///
/// Only while the class has few in use, as what each thread has one of is few. Thousands are used in the order in which
/// they were allocated more often than not, and had better lie in that order: a document of 80,000 strings took a tenth
/// longer to parse, change and print where they were spread (`json` in `benches/compare`).
fn spread(class: &Class, blocks: &[usize], order: &mut [usize]) {
    let (lines, in_line) = (class.spread_lines as usize, class.blocks_in_line as usize);
    let mut places = order.iter_mut().rev();
    let windows = blocks.chunks_exact(lines * in_line);
    let rest = windows.remainder();
    for window in windows {
        for first in 0..in_line {
            let column = window[first..].iter().step_by(in_line);
            column.zip(&mut places).for_each(|(&block, place)| *place = block);
        }
    }
    rest.iter().zip(places).for_each(|(&block, place)| *place = block);
}

/// Frees a block of `class`, after [`super::push`] had no room.
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[cold]
#[inline(never)]
pub(crate) unsafe fn free_slow(class: usize, block: *mut u8) {
    with_stacks(|stacks| match &stacks {
        // SAFETY: the caller's obligation.
        Some(stacks) => unsafe { flush(stacks, class, block as usize) },
        None => slab::free_bulk(class, &mut [block as usize]),
    });
}

/// Frees blocks of `class` as [`super::push`] and [`free_slow`] would one by one; but not onto a thread's own stack, which
/// nobody else could empty.
///
/// # Safety
/// All are blocks of `class` that nobody uses.
pub(crate) unsafe fn free_batch(class: usize, blocks: &mut [usize]) {
    with_stacks(|stacks| match &stacks {
        // SAFETY: the caller's obligation.
        Some(stacks @ Stacks::Cpu(..)) => unsafe {
            let put = stacks.push_batch(class, blocks);
            blocks[put..].iter().for_each(|&block| flush(stacks, class, block));
        },
        Some(Stacks::Thread(_)) | None => slab::free_bulk(class, blocks),
    });
}

/// # Safety
/// As for [`free_slow`].
unsafe fn flush(stacks: &Stacks, class: usize, block: usize) {
    if stacks.region().is_looking() && CLASS[class].shares_lines() && is_sent_home(stacks, class, block) {
        return;
    }
    // SAFETY: the caller's obligation.
    let push = || unsafe { stacks.push_batch(class, &[block]) == 1 };
    if push() {
        return;
    }
    let region = stacks.region();
    if region.wanting.load(Ordering::Relaxed) {
        nolock::satisfy(stacks);
    }
    let Missed { blocks: surplus, high, sweep } = region.missed(class, Event::Full, stacks);
    if push() {
        return;
    }
    region.counters.flushes.fetch_add(1, Ordering::Relaxed);
    let _timer = latency::start(SlowPath::Flush);
    if surplus == 0 {
        return slab::free_bulk(class, &mut [block]);
    }
    let Some(mut batch) = transfer::BatchBox::with_room(stacks.shard(class), surplus) else {
        return slab::free_bulk(class, &mut [block]);
    };
    // There is to be room for the block, too.
    let most = surplus.min(batch.room().len() - 1);
    let mut len = stacks.pop_batch(class, &mut batch.room()[..most]);
    if !push() {
        batch.room()[len] = block;
        len += 1;
    }
    batch.set_len(len);
    if len == 0 {
        // Nothing could be taken, and then the block had room after all: others work on this CPU, too.
        return;
    }
    // A run of its own goes home at once: its zone merges it, and batches save it nothing.
    if CLASS[class].is_run() {
        return slab::free_bulk(class, batch.blocks());
    }
    if !(high && is_taker(stacks, class)) {
        pass_on(stacks, class, batch);
    } else if let Err(mut batch) = transfer::push_back(stacks.shard(class), class, batch) {
        slab::free_bulk(class, batch.blocks());
    }
    if let Some(class) = sweep {
        sweep_class(stacks, class);
    }
}

/// Frees a block while the CPU looks at such (`homing.rs`), if it is of another shard; whether it was.
fn is_sent_home(stacks: &Stacks, class: usize, block: usize) -> bool {
    let is_foreign = slab::shard_of_block(class, block) != stacks.shard(class);
    stacks.region().note_seen(is_foreign);
    if is_foreign {
        stacks.region().counters.sent_home.fetch_add(1, Ordering::Relaxed);
        slab::free_bulk(class, &mut [block]);
    }
    is_foreign
}

/// Whether no other CPU of the shard was the last to be out of blocks of the class.
fn is_taker(stacks: &Stacks, class: usize) -> bool {
    transfer::taker(stacks.shard(class), class) == sys::addr(stacks.region().into())
}

/// Sends home what is on this CPU's stack of a class and, unless others want it, some of what is on its way to the shard's.
/// All of the stack, whose lowest blocks are those that have been there for longest: a few microseconds for a full one.
fn sweep_class(stacks: &Stacks, class: usize) {
    let most = CLASS[class].batch_max as usize;
    let Some(mut batch) = transfer::BatchBox::with_room(stacks.shard(class), most) else { return };
    for _ in 0..=CLASS[class].capacity_max as usize / most {
        let len = stacks.pop_batch(class, &mut batch.room()[..most]);
        if len == 0 {
            break;
        }
        batch.set_len(len);
        slab::free_bulk(class, batch.blocks());
    }
    for _ in 0..SWEPT_IN_TRANSFER {
        let Some(mut batch) = is_taker(stacks, class).then(|| transfer::pop(stacks.shard(class), class)).flatten()
        else {
            return stacks.region().swept(class);
        };
        slab::free_bulk(class, batch.blocks());
    }
}

/// To another CPU, or to the slabs.
fn pass_on(stacks: &Stacks, class: usize, batch: transfer::BatchBox) {
    if let Err(mut batch) = transfer::push(stacks.shard(class), class, batch) {
        slab::free_bulk(class, batch.blocks());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::{CLASSES, LINE};

    /// Each block comes once, none before one that is a window of lines lower, and of small ones no two from one line
    /// come within as many allocations as there are lines.
    ///
    /// Red if `spread` goes through a window block by block.
    #[test]
    fn neighbours_in_time_are_none_in_memory() {
        for class in &CLASS[..CLASSES] {
            let (size, lines, in_line) =
                (class.size as usize, class.spread_lines as usize, class.blocks_in_line as usize);
            for count in 0..=BATCH_MAX {
                let blocks: Vec<usize> = (0..count).map(|n| 0x10_0000 + n * size).collect();
                let mut order = [0; BATCH_MAX];
                spread(class, &blocks, &mut order[..count]);
                let handed_out: Vec<usize> = order[..count].iter().rev().copied().collect();
                let mut sorted = handed_out.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, blocks);
                let window = lines * in_line;
                for (n, &block) in handed_out.iter().enumerate() {
                    assert_eq!(n / window, (block - 0x10_0000) / size / window, "windows in order, size {size}");
                }
                for column in handed_out.chunks_exact(window).flat_map(|window| window.chunks_exact(lines)) {
                    let mut touched: Vec<usize> = column.iter().map(|block| block / LINE).collect();
                    touched.dedup();
                    assert_eq!(touched.len(), lines, "lines of {column:x?}, size {size}");
                }
            }
        }
    }
}
