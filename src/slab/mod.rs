//! Blocks of the size classes, cut from runs of pages.
//!
//! A [`Slab`] is a run cut into equal blocks, with its header and a bitmap of free blocks in the run's
//! page descriptors: nothing is ever written into a block that is not in use. A [`central`](central::Central) keeps
//! the slabs of one class in one [`shard`]; [`bulk`] moves blocks with one hold of its lock. [`transfer`] passes whole
//! batches from CPU to CPU without touching a slab or a lock. [`holes`] gives back what is free between blocks in use.
//! [`empty`] keeps slabs without any, until [`retire`] gives their runs back to the zones.

mod bitmap;
mod bulk;
mod central;
pub(crate) mod empty;
mod guard;
pub(crate) mod holes;
pub(crate) mod retire;
pub(crate) mod shard;
mod tags;
pub(crate) mod transfer;

use bitmap::Slab;
#[cfg(feature = "debug")]
pub(crate) use bulk::is_out;
pub(crate) use bulk::{account_run, alloc_bulk, alloc_bulk_counted, free_bulk, shard_of_block, take_bulk_counted};
pub(crate) use central::{central, counts_on};
#[cfg(feature = "debug")]
pub(crate) use guard::pages as guard_pages;
pub(crate) use tags::{MIDDLE, NOT_IN_USE, TWICE, class_of_tag, is_place_of, node_of, tag_at, tag_of, zone_of};
