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
//! Of blocks of less than a cache line a shard takes no batches from others, and no slabs before it has 256 KiB of its own for the
//! class: what is left of a line would be in use at two places for as long as the program runs, since stacks hand out last
//! what was freed last. (Four threads with 10,000 blocks each, `sh6bench`, took a quarter longer on two CPUs without a
//! cache in common.)

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::sys;
use crate::zone::nodes;

/// Which CPUs share slabs, and which have their own: a matter of time against memory. Chosen when the heap comes up, by
/// [`Config::shards`](crate::Config::shards).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shards {
    /// Those with a third-level cache in common share them, if the system says which these are.
    Auto,
    /// All of a memory node do: least memory.
    One,
    /// None do, up to 16 CPUs. For virtual machines whose CPUs are now here, now there, whatever the system says of their
    /// caches.
    Cpu,
}

/// Most shards of a node. Where it has more groups of CPUs, every sixteenth has the same one.
pub(crate) const PER_NODE: usize = 16;
/// All shards that there may be: those of a node have consecutive numbers.
pub(crate) const SHARDS: usize = sys::MAX_NODES * PER_NODE;

const _: () = assert!(SHARDS <= 1 << u8::BITS);

/// Shards of each node that are in use. Relaxed: set before initialisation is announced.
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// Sets how many groups of CPUs a node has, at most.
pub(crate) fn init(groups: usize) {
    COUNT.store(groups.clamp(1, PER_NODE), Ordering::Relaxed);
}

/// Shards of each node.
pub(crate) fn per_node() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// Whether there is one shard, and no other on any node.
pub(super) fn is_alone() -> bool {
    per_node() == 1 && nodes().len() == 1
}

/// The shard of a group of CPUs, of those of a node.
pub(crate) fn shard_on(node: usize, group: usize) -> usize {
    node * PER_NODE + group
}

/// The node whose memory a shard has.
pub(crate) fn node_of(shard: usize) -> usize {
    shard / PER_NODE
}

/// All shards of a node.
pub(crate) fn shards_of(node: usize) -> Range<usize> {
    first_of(node)..first_of(node) + per_node()
}

/// The shard of a node in which what is of none is counted.
pub(crate) fn first_of(node: usize) -> usize {
    shard_on(node, 0)
}

/// All shards.
pub(crate) fn shards() -> impl Iterator<Item = usize> + Clone {
    (0..nodes().len()).flat_map(shards_of)
}

/// The other shards of a shard's node, from the next one on.
pub(super) fn others(shard: usize) -> impl Iterator<Item = usize> {
    let (first, count) = (first_of(node_of(shard)), per_node());
    (1..count).map(move |n| first + (shard - first + n) % count)
}
