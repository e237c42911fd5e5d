//! Zones: address space from the kernel, handed out as runs of pages.
//!
//! A [`Zone`] is one aligned reservation on one memory node, with a [`buddy`] allocator over its pages and
//! their descriptors at its start. The zone of an address is a mask away, the descriptor a shift and an
//! add more. A [`node`] is a list of zones, and where the layers above ask for a [`Run`].
//! Requests beyond [`RUN_MAX`] are [`mapping`]s of their own. [`meta`] is memory for bookkeeping that is
//! never given back.

mod buddy;
mod marks;
mod meta;
mod node;
mod pages;
mod parked;
mod reservation;

pub(crate) mod mapping;

pub(crate) use buddy::{MAX_ORDER, Purpose};
pub(crate) use marks::{COUNTERS, MARKS, free_resident, resident};
pub(crate) use meta::META;
pub(crate) use node::{Run, nodes, note_node, pages_for, release};
#[cfg(test)]
pub(crate) use pages::Descriptor;
pub(crate) use pages::TAG_RUN;
pub use reservation::HugePages;
pub(crate) use reservation::Zone;

use crate::size_class::PAGE;

/// The largest request served from a zone; beyond it a request gets a mapping of its own.
pub(crate) const RUN_MAX: usize = PAGE << MAX_ORDER;
