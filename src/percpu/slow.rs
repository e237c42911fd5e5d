//! What happens when a stack is empty, full, or not to be had.
//!
//! ```text
//! alloc_slow                              free_slow
//!   try the stack again (an abort is a miss)
//!   let the stack grow if it should
//!   a batch from another CPU (transfer),    half a stack and the block into a batch,
//!   or blocks from slabs                    to another CPU (transfer), or to slabs
//!   one is returned, the others pushed
//! ```

use core::sync::atomic::Ordering;

use super::cpus::node_of;
use super::region::Event;
use super::stacks::{Stacks, with_stacks};
use super::{drain, nolock, observed};
use crate::latency::{self, SlowPath};
use crate::size_class::{BATCH_MAX, CLASS};
use crate::slab::{self, transfer};
use crate::sys;
use crate::zone::nodes_from;

/// A block of `class`, after [`super::pop`] had none; null when the system gives no more memory. And whether it is due
/// to be sampled.
#[cold]
#[inline(never)]
pub(crate) fn alloc_slow(class: usize) -> (*mut u8, bool) {
    let alloc_one = || (alloc_one(node_of(sys::current_cpu()), class), observed::is_class_due(None, class));
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

fn alloc_one(node: usize, class: usize) -> usize {
    let mut block = [0];
    // Another node's memory is better than none.
    nodes_from(node).any(|node| slab::alloc_bulk(node, class, &mut block) > 0);
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
    let wanted = region.missed(class, Event::Empty, stacks).max(1);
    region.counters.refills.fetch_add(1, Ordering::Relaxed);
    let _timer = latency::start(SlowPath::Refill);
    let node = stacks.node();
    if let Some(mut batch) = transfer::pop(node, class)
        && let Some((&mut block, others)) = batch.blocks().split_last_mut()
    {
        // SAFETY: blocks in transfer are nobody's.
        let put = unsafe { stacks.push_batch(class, others) };
        slab::free_bulk(class, &others[put..]);
        return (block, is_due());
    }
    let mut blocks = [0; BATCH_MAX];
    let got = slab::alloc_bulk(node, class, &mut blocks[..wanted]);
    if got == 0 {
        return (0, false);
    }
    // The lowest address is handed out now and the next ones on top of the stack.
    blocks[..got].reverse();
    let (others, block) = (&blocks[..got - 1], blocks[got - 1]);
    // SAFETY: fresh from the slab.
    let put = unsafe { stacks.push_batch(class, others) };
    slab::free_bulk(class, &others[put..]);
    (block, is_due())
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
        None => slab::free_bulk(class, &[block as usize]),
    });
}

/// # Safety
/// As for [`free_slow`].
unsafe fn flush(stacks: &Stacks, class: usize, block: usize) {
    // SAFETY: the caller's obligation.
    let push = || unsafe { stacks.push_batch(class, &[block]) == 1 };
    if push() {
        return;
    }
    let region = stacks.region();
    if region.wanting.load(Ordering::Relaxed) {
        nolock::satisfy(stacks);
    }
    let surplus = region.missed(class, Event::Full, stacks);
    if push() {
        return;
    }
    region.counters.flushes.fetch_add(1, Ordering::Relaxed);
    let _timer = latency::start(SlowPath::Flush);
    if surplus == 0 {
        return slab::free_bulk(class, &[block]);
    }
    let Some(mut batch) = transfer::BatchBox::new() else {
        return slab::free_bulk(class, &[block]);
    };
    let mut len = stacks.pop_batch(class, &mut batch.room()[..surplus.min(BATCH_MAX - 1)]);
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
    if let Err(mut batch) = transfer::push(stacks.node(), class, batch) {
        slab::free_bulk(class, batch.blocks());
    }
}
