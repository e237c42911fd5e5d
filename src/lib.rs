//! A general-purpose memory allocator for Linux, built the way the kernel builds its page allocator.
//!
//! ```
//! use pcpalloc::PcpAlloc;
//!
//! #[global_allocator]
//! static GLOBAL: PcpAlloc = PcpAlloc::new();
//!
//! fn main() {
//!     let words: Vec<String> = ["four", "lines", "that", "work"].map(String::from).to_vec();
//!     println!("{} words; {}", words.len(), GLOBAL.stats());
//! }
//! ```
//!
//! # Why
//!
//! - **Fast**: allocating and freeing a small block is one restartable sequence each, 19 and 15 instructions
//!   inlined into the caller: no lock, no atomic operation, no system call, and no thread-local state.
//! - **Lean**: free blocks are cached per CPU, not per thread. Five hundred idle threads cost what two cost,
//!   and threads leave nothing behind to tear down.
//! - **Honest**: [`PcpAlloc::stats`] says where every byte is; [`PcpAlloc::drain`] empties any CPU's cache from
//!   any thread, and [`PcpAlloc::trim`] gives back what is free.
//! - **Hard to corrupt**: nothing is written into free memory, so a use after free or an overflow cannot
//!   derail the allocator; a double free that reaches a slab, a pointer that is not ours and a size that
//!   cannot be the block's end the process with one line that says so.
//!
//! # How it works
//!
//! | layer | what it does |
//! | --- | --- |
//! | `percpu` | a stack of free blocks per size class and CPU; pop and push are restartable sequences |
//! | `slab` | runs of pages cut into blocks, bitmaps out of band; batches that pass between CPUs whole |
//! | `zone` | aligned reservations, a buddy allocator over their pages |
//! | `sys` | the only system calls |
//!
//! `src/README.md` walks through them. Where rseq is missing (kernels before 4.18, some sandboxes), stacks
//! belong to threads instead; [`Stats::mode`] says which.
//!
//! # Limits
//!
//! - Linux only. Restartable sequences on x86-64; per-thread stacks on other architectures.
//! - The ordinary entry points are not async-signal-safe, like those of every `malloc`.
//! - A child made by `vfork` must not allocate: it shares its parent's thread, whose CPU the kernel does not
//!   track in the child. (`std::process::Command` does not allocate there.)
//! - A double free whose two halves both still lie in a CPU's stack is not noticed until it is too late.

#![cfg_attr(loom, allow(dead_code))]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("pcpalloc runs on Linux only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("pcpalloc needs 64-bit pointers");

#[cfg(not(loom))]
mod alloc;
#[cfg(not(loom))]
mod control;
#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
mod large;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
mod percpu;
#[cfg(not(loom))]
mod size_class;
#[cfg(not(loom))]
mod slab;
mod sync;
#[cfg(not(loom))]
mod sys;
mod tagged_stack;
#[cfg(not(loom))]
mod zone;

#[cfg(not(loom))]
pub use {
    control::{Drain, DrainReport, Stats, TrimReport},
    percpu::Mode,
};

/// The allocator: a handle on the one heap of the process.
///
/// Set it with `#[global_allocator]`. Any number of values may exist; they all speak of the same heap, so a
/// library can make one of its own to read [`PcpAlloc::stats`].
#[derive(Debug, Default)]
#[cfg(not(loom))]
pub struct PcpAlloc {
    _private: (),
}

#[cfg(not(loom))]
impl PcpAlloc {
    /// A handle on the heap.
    ///
    /// Nothing is initialised until the first allocation.
    pub const fn new() -> Self {
        PcpAlloc { _private: () }
    }

    /// Where the heap's memory is, and how often its slow paths ran.
    ///
    /// Takes every lock of the allocator once, one after the other, and asks the kernel which pages of the
    /// allocator's tables are resident: some hundred microseconds. Allocates nothing.
    pub fn stats(&self) -> Stats {
        control::stats()
    }

    /// Gives cached blocks back to their slabs, where they can make whole runs of pages for other sizes.
    ///
    /// Works on any CPU from any thread: the CPU's threads are fenced off by `membarrier`, about 15 µs for a
    /// CPU that is running the program, and meanwhile do without their stacks. What cannot be reached is
    /// reported. Memory stays with the process; [`PcpAlloc::trim`] gives it back.
    ///
    /// In per-thread mode each thread can only empty its own stacks: [`Drain::Local`] and [`Drain::All`]
    /// do that, and [`Drain::Cpu`] nothing.
    #[doc(alias = "purge")]
    #[doc(alias = "drain_all_pages")]
    pub fn drain(&self, scope: Drain) -> DrainReport {
        control::drain(scope)
    }

    /// Drains everything and gives all free pages back to the system.
    ///
    /// One `madvise` for every free run; memory that is used again is faulted in again. What stays is said in
    /// the report.
    #[doc(alias = "malloc_trim")]
    #[doc(alias = "mi_collect")]
    pub fn trim(&self) -> TrimReport {
        control::trim()
    }

    /// Bytes that a block allocated with this layout really has; at least `layout.size()`.
    ///
    /// The compiler may assume that a program touches only what it asked for, so this is for statistics and
    /// for choosing sizes ([`PcpAlloc::usable_size`] of a layout costs no more than a smaller request does).
    #[doc(alias = "malloc_usable_size")]
    #[doc(alias = "good_size")]
    pub fn usable_size(&self, layout: core::alloc::Layout) -> usize {
        alloc::usable_size(layout)
    }
}
