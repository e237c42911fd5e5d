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
//! On x86-64 each is one restartable sequence ([`rseq`]): the kernel restarts it elsewhere if the thread is
//! preempted, migrated or interrupted by a signal inside it, and nothing has happened until the single store
//! at its end. Where rseq is missing the same stacks belong to threads ([`thread`]). Both keep their stacks
//! in a [`Region`], whose plain-Rust operations are what the sequences do, step by step.
//!
//! An operation that finds its stack empty, full, or not to be had goes to [`slow`].

mod capacity;
mod deferred;
mod drain;
mod region;
mod reserve;
mod slow;
mod stopped;
mod thread;
#[cfg(all(feature = "debug", target_arch = "x86_64", not(any(pcpalloc_twin, miri))))]
pub mod trial;

#[cfg(all(target_arch = "x86_64", not(any(pcpalloc_twin, miri))))]
#[path = "x86_64.rs"]
mod rseq;
#[cfg(not(all(target_arch = "x86_64", not(any(pcpalloc_twin, miri)))))]
#[path = "absent.rs"]
mod rseq;

pub(crate) use deferred::{Array, deferred_available, deferred_count, exchange_here, exchange_on, push_deferred};
pub(crate) use drain::{
    CpuDrain, cached_bytes, cpu_regions, drain_cpu, drain_idle, drain_thread, fork_lock, reclaim, regions,
};
pub(crate) use reserve::{ChargeError, charge, pop_nolock, push_nolock};
pub(crate) use slow::{alloc_slow, free_slow};

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::sys;
use crate::zone::note_node;

/// How threads find their stacks. Chosen once, at initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Per-CPU stacks, with the rseq area that the C library has registered for every thread.
    LibcRseq,
    /// Per-CPU stacks, with an rseq area of our own, registered by each thread when it first needs it.
    OwnRseq,
    /// Per-thread stacks: the kernel or the sandbox has no rseq.
    PerThread,
}

static MODE: AtomicU8 = AtomicU8::new(Mode::PerThread as u8);
static CPUS: AtomicUsize = AtomicUsize::new(0);
/// The memory node of every CPU.
static NODE_OF: [AtomicU8; sys::MAX_CPUS] = [const { AtomicU8::new(0) }; sys::MAX_CPUS];

/// How threads find their stacks.
pub(crate) fn mode() -> Mode {
    // Relaxed: set before initialisation is announced, and never changed.
    match MODE.load(Ordering::Relaxed) {
        x if x == Mode::LibcRseq as u8 => Mode::LibcRseq,
        x if x == Mode::OwnRseq as u8 => Mode::OwnRseq,
        _ => Mode::PerThread,
    }
}

/// Possible CPUs: every id is smaller.
pub(crate) fn cpus() -> usize {
    CPUS.load(Ordering::Relaxed)
}

fn node_of(cpu: usize) -> usize {
    NODE_OF.get(cpu).map_or(0, |node| node.load(Ordering::Relaxed) as usize)
}

/// The CPU this thread runs on.
pub(crate) fn cpu_here() -> usize {
    rseq::cpu().unwrap_or_else(sys::current_cpu)
}

/// The memory node this thread runs on.
pub(crate) fn node_here() -> usize {
    node_of(cpu_here())
}

/// Chooses the mode and learns the machine. Called once, before anything else here but [`pop`] and [`push`].
pub(crate) fn init() {
    let cpus = sys::possible_cpus();
    CPUS.store(cpus, Ordering::Relaxed);
    sys::each_cpu_of_node(|cpu, node| {
        NODE_OF[cpu].store(node as u8, Ordering::Relaxed);
        note_node(node);
    });
    drain::init(sys::register_membarrier());
    thread::init();
    // Ids index a table of MAX_CPUS, which no kernel of today exceeds; one that did would get per-thread
    // stacks.
    let mode = if cpus <= sys::MAX_CPUS { rseq::init() } else { Mode::PerThread };
    MODE.store(mode as u8, Ordering::Relaxed);
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
