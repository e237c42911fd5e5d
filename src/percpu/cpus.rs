//! The machine's CPUs, the nodes that they are on, and where this thread runs.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicUsize, Ordering};

use super::rseq;
use crate::slab::shard::{self, Division, PER_NODE, Shards, shard_on};
use crate::sys;
use crate::zone::{nodes, note_distances, note_node};

/// Relaxed: set before initialisation is announced.
static CPUS: AtomicUsize = AtomicUsize::new(0);
/// The memory node of every CPU.
static NODE_OF: [AtomicU8; sys::MAX_CPUS] = [const { AtomicU8::new(0) }; sys::MAX_CPUS];

/// The group of every CPU, which has shards of its own, by division.
static GROUP_OF: [[AtomicU16; sys::MAX_CPUS]; 2] = [const { [const { AtomicU16::new(0) }; sys::MAX_CPUS] }; 2];

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
    let mut groups = Division::ALL.map(Groups::new);
    let mut note = |division: Division, cpu: usize, key: usize| groups[division as usize].add(cpu, node_of(cpu), key);
    match shards {
        // A machine of one CPU is not asked.
        Shards::Auto if possible > 1 => {
            let mut knows_caches = false;
            sys::each_cpu_of_cache(|cpu, cache| {
                note(Division::Large, cpu, cache);
                note(Division::Small, cpu, cpu);
                knows_caches = true;
            });
            if !knows_caches {
                (0..cpus()).for_each(|cpu| note(Division::Small, cpu, cpu));
            }
        }
        Shards::Auto | Shards::One => {}
        // Those that come later, whose nodes nobody knows, are in the first group of theirs.
        Shards::Cpu => {
            let mut note = |cpu, _| Division::ALL.into_iter().for_each(|division| note(division, cpu, cpu));
            if is_listed {
                sys::each_cpu_of_node(note);
            } else {
                (0..cpus()).for_each(|cpu| note(cpu, 0));
            }
        }
    }
    groups.iter().for_each(Groups::settle);
    possible
}

/// The groups of CPUs on each node by a division, numbered from 0 on as they come.
struct Groups {
    division: Division,
    /// How many there are on each node.
    count: [usize; sys::MAX_NODES],
    /// The key that came last, and its group on each node where it has one.
    key: Option<usize>,
    given: [Option<usize>; sys::MAX_NODES],
}

impl Groups {
    const fn new(division: Division) -> Groups {
        Groups { division, count: [0; sys::MAX_NODES], key: None, given: [None; sys::MAX_NODES] }
    }

    /// Adds a CPU of a node: to the one before it on the node if that has the same key. Those of a key come in succession.
    fn add(&mut self, cpu: usize, node: usize, key: usize) {
        GROUP_OF[self.division as usize][cpu].store(self.number(node, key) as u16, Ordering::Relaxed);
    }

    fn number(&mut self, node: usize, key: usize) -> usize {
        if self.key != Some(key) {
            self.key = Some(key);
            self.given = [None; sys::MAX_NODES];
        }
        let next = &mut self.count[node];
        *self.given[node].get_or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }

    /// The shard on a node of its group of that number: several have one in succession, which are next to each other in the
    /// machine, where there are more groups than a node may have shards.
    fn shard(&self, node: usize, number: usize) -> usize {
        number * PER_NODE / self.count[node].max(PER_NODE)
    }

    /// All have been added.
    fn settle(&self) {
        let most = self.count.into_iter().fold(1, usize::max);
        shard::init(self.division, most);
        if most > PER_NODE {
            for (cpu, group) in GROUP_OF[self.division as usize][..cpus()].iter().enumerate() {
                let shard = self.shard(node_of(cpu), group.load(Ordering::Relaxed) as usize);
                group.store(shard as u16, Ordering::Relaxed);
            }
        }
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

/// The shard of a CPU for blocks of a class, of those of a node, which may be another one than its own.
pub(super) fn shard_of(node: usize, cpu: usize, class: usize) -> usize {
    let group = GROUP_OF[Division::of(class) as usize].get(cpu).map_or(0, |group| group.load(Ordering::Relaxed));
    shard_on(node, group as usize)
}

/// The shard of this thread's CPU for blocks of a class, of those of a node.
pub(crate) fn shard_here(node: usize, class: usize) -> usize {
    shard_of(node, cpu_here(), class)
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

    /// Controls: number groups by `key`, or by one count for all nodes; keep `given` when another key comes; in `shard`, leave
    /// out `max`, or begin anew with every sixteenth.
    #[test]
    fn groups_are_numbered_on_their_nodes() {
        let shards = |cpus: &[(usize, usize)]| {
            let mut groups = Groups::new(Division::Large);
            let numbers: Vec<usize> = cpus.iter().map(|&(node, cache)| groups.number(node, cache)).collect();
            cpus.iter().zip(numbers).map(|(&(node, _), number)| groups.shard(node, number)).collect::<Vec<usize>>()
        };
        assert!(shards(&[]).is_empty());
        // Two sockets of one cache each, then of two.
        assert_eq!(shards(&[(0, 0), (0, 0), (1, 1), (1, 1)]), [0, 0, 0, 0]);
        assert_eq!(shards(&[(0, 0), (0, 1), (0, 1), (1, 2), (1, 3)]), [0, 1, 1, 0, 1]);
        // A cache of two nodes.
        assert_eq!(shards(&[(0, 0), (1, 0), (0, 0), (1, 1)]), [0, 0, 0, 1]);
        let many: Vec<(usize, usize)> = (0..40).map(|cpu| (0, cpu)).collect();
        assert_eq!(shards(&many[..16]), Vec::from_iter(0..16));
        assert_eq!(shards(&many)[..6], [0, 0, 0, 1, 1, 2]);
        assert_eq!(shards(&many)[38..], [15, 15]);
    }
}
