//! Shards: groups of CPUs that have slabs of their own.
//!
//! A block that one CPU frees and another one allocates brings its cache lines across, which takes as long as dozens of
//! allocations where the two share no cache. So slabs of a class are not one pool for all CPUs: each belongs to a shard, a
//! block goes back to its slab, whoever frees it, and CPUs are refilled from slabs of their own shard, under a lock of
//! their own. (Allocators with heaps of threads come to the same by other means. TCMalloc divides what lies between its caches
//! of CPUs by third-level caches, too.)
//!
//! ```text
//! CPU 0 ─ stacks ┐
//! CPU 1 ─ stacks ┴ lanes ─ slabs of shard 0 ┐
//! CPU 2 ─ stacks ┐                          ├ zones of the node
//! CPU 3 ─ stacks ┴ lanes ─ slabs of shard 1 ┘
//! ```
//!
//! What that could waste is bounded by what a shard takes from others before it asks its zones: batches that are on their way
//! to them (`transfer.rs`), then a slab that they have had no use for since somebody last came by (`central.rs`). So a shard
//! that is quiet lends what it has, and one whose blocks come and go keeps it.
//!
//! Blocks of up to two cache lines are another matter: where two CPUs write to parts of one line each of them waits for the other,
//! whether they have a cache in common or not, and processors fetch lines by pairs. So CPUs are divided in two ways
//! ([`Division`]): for such blocks each has a shard of its own.
//!
//! What is left of a line would be written to on two CPUs for as long as the program runs, since stacks hand out last what was freed
//! last. So of blocks of less than a line a shard takes no batches from others, and no slabs before it has some of its own for the
//! class (256 KiB; 64 KiB where a node has 16).

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::size_class::CLASS;
use crate::sys;
use crate::zone::nodes;

/// Which CPUs share slabs, and which have their own: a matter of time against memory. Chosen when the heap comes up, by
/// [`Config::shards`](crate::Config::shards). A memory node has 16 groups of CPUs at most: where there would be more, those
/// that come one after the other are in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shards {
    /// Those with a third-level cache in common share them, if the system says which these are; but none share those of blocks
    /// of up to two cache lines, so that few lines are written to on several CPUs.
    Auto,
    /// All of a memory node do: least memory.
    One,
    /// None do. For virtual machines whose CPUs are now here, now there, whatever the system says of their caches.
    Cpu,
}

/// Most shards of a node.
pub(crate) const PER_NODE: usize = 16;
/// All shards that there may be: those of a node have consecutive numbers.
pub(crate) const SHARDS: usize = sys::MAX_NODES * PER_NODE;

const _: () = assert!(SHARDS <= 1 << u8::BITS);

/// Two ways to divide CPUs into groups, for two kinds of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Division {
    /// For classes whose blocks are larger than two cache lines.
    Large,
    /// For all others.
    Small,
}

impl Division {
    pub(crate) const ALL: [Division; 2] = [Division::Large, Division::Small];

    /// That of a class.
    #[inline(always)]
    pub(crate) fn of(class: usize) -> Division {
        if CLASS[class].is_small() { Division::Small } else { Division::Large }
    }

    /// Shards of each node.
    pub(crate) fn per_node(self) -> usize {
        COUNTS[self as usize].load(Ordering::Relaxed)
    }
}

/// Shards of each node that are in use, by division. Relaxed: set before initialisation is announced.
static COUNTS: [AtomicUsize; 2] = [const { AtomicUsize::new(1) }; 2];

/// Sets how many groups of CPUs a node has by a division, at most.
pub(crate) fn init(division: Division, groups: usize) {
    COUNTS[division as usize].store(groups.clamp(1, PER_NODE), Ordering::Relaxed);
}

/// Shards of each node for blocks of a class.
pub(crate) fn per_node(class: usize) -> usize {
    Division::of(class).per_node()
}

/// The shard of a group of CPUs, of those of a node.
pub(crate) fn shard_on(node: usize, group: usize) -> usize {
    node * PER_NODE + group
}

/// The node whose memory a shard has.
pub(crate) fn node_of(shard: usize) -> usize {
    shard / PER_NODE
}

/// All shards of a node for blocks of a class.
pub(crate) fn shards_of(node: usize, class: usize) -> Range<usize> {
    first_of(node)..first_of(node) + per_node(class)
}

/// The shard of a node in which what is of none is counted.
pub(crate) fn first_of(node: usize) -> usize {
    shard_on(node, 0)
}

/// All shards for blocks of a class.
pub(crate) fn shards(class: usize) -> impl Iterator<Item = usize> {
    (0..nodes().len()).flat_map(move |node| shards_of(node, class))
}

/// All shards that there are for blocks of any class.
pub(super) fn shards_of_all_classes() -> impl Iterator<Item = usize> {
    let count = Division::ALL.into_iter().map(Division::per_node).fold(1, usize::max);
    (0..nodes().len()).flat_map(move |node| first_of(node)..first_of(node) + count)
}

/// The other shards for blocks of a class on a shard's node, from the next one on.
pub(super) fn others(shard: usize, class: usize) -> impl Iterator<Item = usize> {
    let (first, count) = (first_of(node_of(shard)), per_node(class));
    (1..count).map(move |n| first + (shard - first + n) % count)
}
