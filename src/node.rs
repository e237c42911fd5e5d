//! Allocation from a given memory node, past the stacks.

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use crate::size_class::{block_size, class_of};
use crate::sys::tools;
use crate::zone::{nodes, nodes_from};
use crate::{PcpAlloc, checked, control, heap, large, nolock, percpu, slab, sys};

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
    checked::insist(ask).ok_or(NodeError::OutOfMemory)
}

/// Not sampled, since whoever samples may serve another block, which is on no node: a free finds none noted.
fn alloc_from(node: usize, layout: Layout) -> Option<NonNull<u8>> {
    let (size, align) = (layout.size(), layout.align());
    let Some(class) = class_of(size, align) else {
        let block = large::alloc_on(node, size, align)?;
        tools::allocated(block.as_ptr(), large::usable_size(size, align), false);
        return Some(block);
    };
    let mut block = [0];
    slab::alloc_bulk(percpu::shard_here(node, class), class, &mut block);
    let block = NonNull::new(block[0] as *mut u8)?;
    checked::hand_out(class, block);
    tools::allocated(block.as_ptr(), block_size(class), false);
    Some(block)
}
