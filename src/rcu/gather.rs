//! Blocks whose grace period is over, gathered by node and class over all pages that are worked off together.
//!
//! A page has 507 pointers, a few of each class, and a batch of so few would cost the program as much as one of 63: two
//! exchanges to come to the lanes, two to be taken from there, and a visit to the slow path for every handful.

use super::entry::ENTRY_MAX;
use crate::size_class::{CLASS, CLASSES, block_size};
use crate::slab::transfer::{self, BatchBox};
use crate::sys::{self, tools};
use crate::{checked, observe, percpu, slab};

/// Classes whose blocks may wait in pages.
const WAITING: usize = {
    let mut class = 0;
    while class < CLASSES && CLASS[class].size as usize <= ENTRY_MAX {
        class += 1;
    }
    class
};

/// Batches that fill, by node and class: the kernel's `mmu_gather`, for blocks.
pub(super) struct Gather {
    batches: [[Option<BatchBox>; WAITING]; sys::MAX_NODES],
    /// Blocks that are free since somebody asked, and their bytes.
    freed: (usize, usize),
}

impl Gather {
    pub(super) const fn new() -> Gather {
        Gather { batches: [const { [const { None }; WAITING] }; sys::MAX_NODES], freed: (0, 0) }
    }

    /// Takes a block that no reader is left of. One that makes a batch whole goes with it to the CPUs of its node, the
    /// others wait for [`Gather::free`].
    pub(super) fn add(&mut self, class: usize, address: usize) {
        let block = address as *mut u8;
        if observe::is_on() && observe::freed(block) {
            return self.note_freed(class, 1);
        }
        if tools::are_present() {
            tools::freed(block, block_size(class));
        }
        if checked::is_on() {
            self.note_freed(class, 1);
            // SAFETY: a block of the class that no reader is left of, looked at as any that is freed.
            return unsafe { checked::free(class, block) };
        }
        let node = slab::node_of(address, class);
        let filling = &mut self.batches[node][class];
        let Some(mut batch) = filling.take().or_else(|| BatchBox::new(percpu::shard_here(node, class))) else {
            self.note_freed(class, 1);
            return slab::free_bulk(class, &mut [address]);
        };
        let len = batch.len() + 1;
        batch.room()[len - 1] = address;
        batch.set_len(len);
        if len < CLASS[class].batch as usize {
            *filling = Some(batch);
        } else {
            self.note_freed(class, len);
            pass_on(node, class, batch);
        }
    }

    fn note_freed(&mut self, class: usize, blocks: usize) {
        self.freed.0 += blocks;
        self.freed.1 += blocks * block_size(class);
    }

    /// How many of the blocks it has taken are free that were not when it was last asked, and their bytes.
    pub(super) fn take_freed(&mut self) -> (usize, usize) {
        core::mem::take(&mut self.freed)
    }

    /// Frees what has not made a whole batch: as the program itself would, or if it is another node's, to that.
    pub(super) fn free(&mut self) {
        let here = percpu::node_here();
        for node in 0..sys::MAX_NODES {
            for class in 0..WAITING {
                let Some(mut batch) = self.batches[node][class].take() else { continue };
                self.note_freed(class, batch.len());
                if node == here {
                    // SAFETY: blocks of the class that no reader is left of.
                    unsafe { percpu::free_batch(class, batch.blocks()) };
                } else {
                    pass_on(node, class, batch);
                }
            }
        }
    }
}

/// To the CPUs of a node, or to its slabs.
fn pass_on(node: usize, class: usize, batch: BatchBox) {
    if let Err(mut batch) = transfer::push(percpu::shard_here(node, class), class, batch) {
        slab::free_bulk(class, batch.blocks());
    }
}
