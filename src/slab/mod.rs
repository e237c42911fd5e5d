//! Blocks of the size classes, cut from runs of pages.
//!
//! A [`Slab`] is a run cut into equal blocks, with its header and a bitmap of free blocks in the run's
//! page descriptors: nothing is ever written into a block that is not in use. [`Central`] keeps the slabs
//! of one class on one node, and moves blocks in bulk with one hold of its lock. [`transfer`] passes whole
//! batches from CPU to CPU without touching a slab or a lock.

mod bitmap;
mod central;
pub(crate) mod transfer;

use bitmap::Slab;
#[cfg(feature = "debug")]
pub(crate) use central::is_out;
pub(crate) use central::{NOT_IN_USE, account_run, alloc_bulk, central, class_of_tag, free_bulk, tag_at, tag_of};
