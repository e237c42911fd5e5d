//! Allocation from a given memory node, past the stacks.

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use crate::size_class::class_of;
use crate::zone::{nodes, nodes_from};
use crate::{PcpAlloc, control, heap, large, nolock, percpu, slab, sys};

/// Why a node gave no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeError {
    /// The machine has no node of this number, or it has no memory.
    Absent,
    /// There was no memory to be had.
    OutOfMemory,
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeError::Absent => "the machine has no such memory node",
            NodeError::OutOfMemory => "no memory to be had from the node",
        })
    }
}

impl core::error::Error for NodeError {}

/// A block from `node`, or, unless it must be `only` from there, from those that are nearest.
pub(crate) fn alloc(heap: &PcpAlloc, layout: Layout, node: usize, only: bool) -> Result<NonNull<u8>, NodeError> {
    heap::ensure_up(&heap.config);
    if node >= nodes().len() || !sys::node_has_memory(node) {
        return Err(NodeError::Absent);
    }
    nolock::settle();
    control::start_worker_if_due();
    let ask = || {
        let asked = if only { 1 } else { usize::MAX };
        nodes_from(node).take(asked).find_map(|node| alloc_from(node, layout))
    };
    let block = ask().or_else(|| {
        percpu::reclaim();
        ask()
    });
    block.ok_or(NodeError::OutOfMemory)
}

fn alloc_from(node: usize, layout: Layout) -> Option<NonNull<u8>> {
    let Some(class) = class_of(layout.size(), layout.align()) else {
        return large::alloc_on(node, layout.size(), layout.align());
    };
    let mut block = [0];
    slab::alloc_bulk(node, class, &mut block);
    NonNull::new(block[0] as *mut u8)
}
