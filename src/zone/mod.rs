//! Zones: address space from the kernel, handed out as runs of pages.
//!
//! A [`Zone`] is one aligned reservation on one memory node, with a [`buddy`] allocator over its pages and
//! their descriptors at its start. The zone of an address is a mask away, the descriptor a shift and an
//! add more. A [`node`] is a list of zones, and where the layers above ask for a [`Run`].
//! Requests beyond [`RUN_MAX`] are [`mapping`]s of their own, kept for a while when they are freed. [`meta`] is memory for bookkeeping that is
//! never given back.

mod bell;
mod buddy;
mod counters;
pub(crate) mod filled;
mod huge;
mod listener;
mod marks;
mod meta;
mod node;
mod pages;
mod parked;
mod reservation;
mod shadow;

pub(crate) mod mapping;
pub(crate) mod mapping_cache;
pub(crate) mod refault;

pub(crate) use bell::BELL;
pub(crate) use buddy::{MAX_ORDER, Purpose};
pub(crate) use counters::COUNTERS;
pub use huge::HugePages;
#[cfg(feature = "debug")]
pub(crate) use huge::assume_quick;
pub(crate) use marks::{HOLES, MARKS, SPARE, free_in_zones, free_resident, resident};
pub(crate) use meta::META;
pub(crate) use node::{Run, nodes, nodes_from, note_distances, note_node, pages_for, release, release_from_zones};
#[cfg(test)]
pub(crate) use pages::Descriptor;
pub(crate) use pages::{TAG_GUARD, TAG_RUN};
pub(crate) use reservation::Zone;
pub(crate) use shadow::{FILLED, LIVE};

use crate::size_class::PAGE;

/// The largest request served from a zone; beyond it a request gets a mapping of its own.
pub(crate) const RUN_MAX: usize = PAGE << MAX_ORDER;
