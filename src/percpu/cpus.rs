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
    let mut is_listed = false;
    sys::each_cpu_of_node(|cpu, node| {
        NODE_OF[cpu].store(node as u8, Ordering::Relaxed);
        note_node(node);
        is_listed = true;
    });
    // A node may have memory and, so far, no CPU.
    sys::each_node(note_node);
    note_distances();
    let mut groups = Groups::new();
    let mut note = |cpu: usize, cache: usize| {
        GROUP_OF[cpu].store(groups.number(node_of(cpu), cache) as u8, Ordering::Relaxed);
    };
    match shards {
        // A machine of one CPU is not asked.
        Shards::Auto if possible > 1 => sys::each_cpu_of_cache(note),
        Shards::Auto | Shards::One => {}
        // Those that come later, whose nodes nobody knows, are in the first group of theirs.
        Shards::Cpu if is_listed => sys::each_cpu_of_node(|cpu, _| note(cpu, cpu)),
        Shards::Cpu => (0..cpus()).for_each(|cpu| note(cpu, cpu)),
    }
    shard::init(groups.most());
    possible
}

/// The groups of CPUs on each node, numbered from 0 on as they come.
struct Groups {
    /// How many there are on each node.
    count: [usize; sys::MAX_NODES],
    /// The cache that was asked about last, and its group on each node where it has one.
    cache: Option<usize>,
    given: [Option<usize>; sys::MAX_NODES],
}

impl Groups {
    const fn new() -> Groups {
        Groups { count: [0; sys::MAX_NODES], cache: None, given: [None; sys::MAX_NODES] }
    }

    /// The group of a CPU of a node that has this cache. CPUs come one cache after the other. Where a node has more groups than
    /// it may have shards, several have the same number.
    fn number(&mut self, node: usize, cache: usize) -> usize {
        if self.cache != Some(cache) {
            self.cache = Some(cache);
            self.given = [None; sys::MAX_NODES];
        }
        let next = &mut self.count[node];
        *self.given[node].get_or_insert_with(|| {
            *next += 1;
            (*next - 1) % PER_NODE
        })
    }

    /// The most that a node has.
    fn most(&self) -> usize {
        self.count.into_iter().fold(1, usize::max)
    }
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

// The twin has one node.
#[cfg(all(test, not(any(pcpalloc_twin, miri))))]
mod tests {
    use super::*;

    /// Controls: number groups by `cache`, or by one count for all nodes; keep `given` when another cache comes.
    #[test]
    fn groups_are_numbered_on_their_nodes() {
        let numbers = |cpus: &[(usize, usize)]| {
            let mut groups = Groups::new();
            let numbers: Vec<usize> = cpus.iter().map(|&(node, cache)| groups.number(node, cache)).collect();
            (numbers, groups.most())
        };
        assert_eq!(numbers(&[]), (vec![], 1));
        // Two sockets of one cache each, then of two.
        assert_eq!(numbers(&[(0, 0), (0, 0), (1, 1), (1, 1)]), (vec![0, 0, 0, 0], 1));
        assert_eq!(numbers(&[(0, 0), (0, 1), (0, 1), (1, 2), (1, 3)]), (vec![0, 1, 1, 0, 1], 2));
        // A cache of two nodes.
        assert_eq!(numbers(&[(0, 0), (1, 0), (0, 0), (1, 1)]), (vec![0, 0, 0, 1], 2));
        let many: Vec<(usize, usize)> = (0..40).map(|cpu| (0, cpu)).collect();
        assert_eq!(numbers(&many).0[14..18], [14, 15, 0, 1]);
    }
}
