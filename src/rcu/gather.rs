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
pub(super) struct Gather([[Option<BatchBox>; WAITING]; sys::MAX_NODES]);

impl Gather {
    pub(super) const fn new() -> Gather {
        Gather([const { [const { None }; WAITING] }; sys::MAX_NODES])
    }

    /// Takes a block that no reader is left of. One that makes a batch whole goes with it to the CPUs of its node, the
    /// others wait for [`Gather::free`].
    pub(super) fn add(&mut self, class: usize, address: usize) {
        let block = address as *mut u8;
        if observe::is_on() && observe::freed(block) {
            return;
        }
        if tools::are_present() {
            tools::freed(block, block_size(class));
        }
        if checked::is_on() {
            // SAFETY: a block of the class that no reader is left of, looked at as any that is freed.
            return unsafe { checked::free(class, block) };
        }
        let node = slab::node_of(address, class);
        let filling = &mut self.0[node][class];
        let Some(mut batch) = filling.take().or_else(BatchBox::new) else {
            return slab::free_bulk(class, &[address]);
        };
        let len = batch.len() + 1;
        batch.room()[len - 1] = address;
        batch.set_len(len);
        if len < CLASS[class].batch as usize {
            *filling = Some(batch);
        } else {
            pass_on(node, class, batch);
        }
    }

    /// Frees what has not made a whole batch: as the program itself would, or if it is another node's, to that.
    pub(super) fn free(&mut self) {
        let here = percpu::node_here();
        for (node, classes) in self.0.iter_mut().enumerate() {
            for (class, filling) in classes.iter_mut().enumerate() {
                match filling.take() {
                    // SAFETY: blocks of the class that no reader is left of.
                    Some(mut batch) if node == here => unsafe { percpu::free_batch(class, batch.blocks()) },
                    Some(batch) => pass_on(node, class, batch),
                    None => {}
                }
            }
        }
    }
}

/// To the CPUs of a node, or to its slabs.
fn pass_on(node: usize, class: usize, batch: BatchBox) {
    if let Err(mut batch) = transfer::push(node, class, batch) {
        slab::free_bulk(class, batch.blocks());
    }
}
