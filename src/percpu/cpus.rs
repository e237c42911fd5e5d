//! The machine's CPUs, the nodes that they are on, and where this thread runs.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::rseq;
use crate::slab::shard::{self, PER_NODE, Shards, shard_on};
use crate::sys;
use crate::zone::{nodes, note_distances, note_node};

/// Relaxed: set before initialisation is announced.
static CPUS: AtomicUsize = AtomicUsize::new(0);
/// The memory node of every CPU.
static NODE_OF: [AtomicU8; sys::MAX_CPUS] = [const { AtomicU8::new(0) }; sys::MAX_CPUS];

/// The group of every CPU, which has shards of its own.
static GROUP_OF: [AtomicU8; sys::MAX_CPUS] = [const { AtomicU8::new(0) }; sys::MAX_CPUS];

/// Learns the machine. Called once, before anything else here. Returns the number of possible CPUs, which may be larger
/// than that of CPUs with stacks.
pub(super) fn init(shards: Shards) -> usize {
    let possible = sys::possible_cpus();
    // More than that have no stacks, and nobody is to look for them.
    CPUS.store(possible.min(sys::MAX_CPUS), Ordering::Relaxed);
    sys::each_cpu_of_node(|cpu, node| {
        NODE_OF[cpu].store(node as u8, Ordering::Relaxed);
        note_node(node);
    });
    // A node may have memory and, so far, no CPU.
    sys::each_node(note_node);
    note_distances();
    let mut groups = 1;
    let mut note = |cpu: usize, group: usize| {
        GROUP_OF[cpu].store(group as u8, Ordering::Relaxed);
        groups = groups.max(group + 1);
    };
    match shards {
        // A machine of one CPU is not asked.
        Shards::Auto if possible > 1 => sys::each_cpu_of_cache(PER_NODE, note),
        Shards::Auto | Shards::One => {}
        Shards::Cpu => (0..cpus()).for_each(|cpu| note(cpu, cpu % PER_NODE)),
    }
    shard::init(groups);
    possible
}

/// Possible CPUs that may have stacks: every id is smaller.
pub(crate) fn cpus() -> usize {
    CPUS.load(Ordering::Relaxed)
}

/// The memory node of a CPU.
pub(super) fn node_of(cpu: usize) -> usize {
    NODE_OF.get(cpu).map_or(0, |node| node.load(Ordering::Relaxed) as usize)
}

/// The CPU this thread runs on.
pub(crate) fn cpu_here() -> usize {
    rseq::cpu().unwrap_or_else(sys::current_cpu)
}

/// The shard of a CPU, of those of a node, which may be another one than its own.
pub(super) fn shard_of(node: usize, cpu: usize) -> usize {
    let group = GROUP_OF.get(cpu).map_or(0, |group| group.load(Ordering::Relaxed));
    shard_on(node, group as usize)
}

/// The shard of this thread's CPU, of those of a node.
pub(crate) fn shard_here(node: usize) -> usize {
    shard_of(node, cpu_here())
}

/// The memory node this thread runs on.
pub(crate) fn node_here() -> usize {
    node_of(cpu_here())
}

/// Asks for the node of `cpu`, which gets its stacks, if this thread runs there: a CPU that was offline when the heap
/// came up was on no node's list.
pub(super) fn note_node_here(cpu: usize) {
    if nodes().len() > 1
        && let Some((here, node)) = sys::current_cpu_and_node()
        && here == cpu
    {
        // Relaxed: says where memory is asked for, and any node's is good.
        NODE_OF[cpu].store(node.min(nodes().len() - 1) as u8, Ordering::Relaxed);
    }
}
