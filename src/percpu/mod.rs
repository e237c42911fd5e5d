//! Per-CPU stacks of free blocks, the one thing that is hot.
//!
//! Every class has a stack on every CPU. A stack has four operations:
//!
//! | operation | does |
//! | --- | --- |
//! | [`pop`] | takes the block on top |
//! | [`push`] | puts a block on top |
//! | [`pop_batch`] | takes up to n blocks |
//! | [`push_batch`] | puts up to n blocks |
//!
//! On x86-64 and aarch64 each is one restartable sequence ([`rseq`]): the kernel restarts it elsewhere if the thread is
//! preempted, migrated or interrupted by a signal inside it, and nothing has happened until the single store
//! at its end. Where rseq is missing the same stacks belong to threads ([`thread`]). Both keep their stacks
//! in a [`Region`], whose plain-Rust operations come to what the sequences come to.
//!
//! An operation that finds its stack empty, full, or not to be had goes to [`slow`].

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri))))]
mod area;
mod capacity;
mod choice;
mod contents;
mod cpus;
mod deferred;
mod drain;
mod fence;
mod hidden;
mod homing;
mod nolock;
#[cfg_attr(not(feature = "debug"), allow(dead_code))]
pub(crate) mod observed;
mod pace;
mod region;
mod regions;
mod reserve;
mod slow;
mod stacks;
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri))))]
mod stopped;
#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri))))]
mod table;
mod thread;
#[cfg(all(feature = "debug", any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri))))]
pub mod trial;

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri))))]
#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod rseq;
#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri)))))]
#[path = "absent.rs"]
mod rseq;

use crate::slab::shard::Shards;
pub use choice::{Mode, ModeReason, Rseq};
pub(crate) use choice::{mode, mode_reason};
pub(crate) use cpus::{cpu_here, cpus, node_here, shard_here};
pub(crate) use deferred::{
    deferred_available, deferred_count, each_deferred, exchange_here, exchange_on, push_deferred,
};
pub(crate) use drain::{CpuDrain, cached_bytes, drain_cpu, drain_idle, drain_thread, reclaim};
pub(crate) use fence::{fence_available, may_fence};
pub(crate) use hidden::hide_stacks;
pub(crate) use nolock::{charge, pop_nolock, push_nolock};
pub(crate) use region::{Array, Region};
pub(crate) use regions::{cpu_regions, fork_lock, regions};
pub(crate) use reserve::ChargeError;
pub(crate) use slow::{alloc_slow, free_batch, free_slow};

/// Bytes of address space in the stacks of one CPU.
#[cfg(feature = "debug")]
pub(crate) const REGION_BYTES: usize = Region::BYTES;

/// Bytes that the machinery of one CPU may have: its headers with their book, small arrays, large arrays; and the blocks
/// that its stacks may hold.
#[cfg(feature = "debug")]
pub(crate) const CPU_BYTES: [usize; 4] = [Region::PARTS[0], Region::PARTS[1], Region::PARTS[2], regions::CPU_BUDGET];

/// Chooses the mode and learns the machine, whose CPUs have shards by `shards`. Called once, before anything else here but
/// [`pop`] and [`push`].
/// `membarrier`: whether the kernel may be asked for fences.
pub(crate) fn init(rseq: Rseq, membarrier: bool, shards: Shards) {
    let possible = cpus::init(shards);
    fence::init(membarrier);
    thread::init();
    choice::choose(rseq, possible);
}

/// Takes a block of `class` from this CPU's stack; null is a miss.
#[inline(always)]
pub(crate) fn pop(class: usize) -> *mut u8 {
    rseq::pop(class)
}

/// Puts a block of `class` on this CPU's stack; false if it has not been put there.
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[inline(always)]
pub(crate) unsafe fn push(class: usize, block: *mut u8) -> bool {
    // SAFETY: the caller's obligation.
    unsafe { rseq::push(class, block as usize) }
}
