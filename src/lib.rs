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
//! - **Fast**: allocating and freeing a small block is one restartable sequence each, 20 and 16 instructions
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
//! # The C interface
//!
//! Feature `capi` exports `malloc`, `free` and their family, so that one heap serves Rust and every C library of the
//! process; `PcpAlloc` and [`System`](std::alloc::System) are then the same. A program that names this crate in no
//! other way needs `use pcpalloc as _;`. `cargo build --release --features capi --example preload` makes a library of it
//! that serves any program by `LD_PRELOAD`.
//!
//! - C23, POSIX and glibc say what the functions do. Blocks for more than 8 bytes are aligned to 16.
//! - C++'s `operator new` and `delete` are those of the C++ library, on top of `malloc` and `free`.
//! - A pointer of another heap is left alone, and the first one reported.
//! - The worker is started in programs of several threads only; in others whoever frees gives back what exceeds the high
//!   mark.
//! - Settings of a static come in force when Rust first comes to a slow path, since C asks for memory first.
//! - Dynamically linked programs with glibc; others have not been tried.
//!
//! # Limits
//!
//! - Linux only. Restartable sequences on x86-64; per-thread stacks on other architectures.
//! - The ordinary entry points are not async-signal-safe, like those of every `malloc`.
//! - A child made by `vfork` must not allocate if its parent has other threads, of which the worker is one: it shares its
//!   parent's thread, whose CPU the kernel does not track in the child. (`std::process::Command` does not allocate there.)
//! - A double free whose two halves both still lie in a CPU's stack is not noticed until it is too late.

// What only restartable sequences need lies idle where there are none.
#![cfg_attr(any(loom, pcpalloc_twin, miri, not(target_arch = "x86_64")), allow(dead_code))]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("pcpalloc runs on Linux only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("pcpalloc needs 64-bit pointers");

#[cfg(not(loom))]
mod alloc;
#[cfg(all(feature = "capi", not(any(loom, pcpalloc_twin, miri))))]
mod capi;
#[cfg(not(loom))]
mod control;
#[cfg(all(feature = "debug", not(loom)))]
#[doc(hidden)]
pub mod debug;
#[cfg(loom)]
#[path = "rcu/epoch.rs"]
mod epoch;
#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
mod large;
mod list;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
pub mod mempool;
#[cfg(not(loom))]
mod nolock;
#[cfg(not(loom))]
mod percpu;
#[cfg(not(loom))]
pub mod rcu;
#[cfg(not(loom))]
mod size_class;
#[cfg(not(loom))]
mod slab;
#[cfg(all(loom, test))]
#[path = "percpu/model.rs"]
mod stopping;
mod sync;
#[cfg(not(loom))]
mod sys;
mod tagged_stack;
#[cfg(not(loom))]
mod zone;

#[cfg(not(loom))]
use core::{alloc::Layout, ptr::NonNull};

#[cfg(not(loom))]
pub use {
    control::{
        BuddyInfo, Config, ConfigError, Drain, DrainReport, SlabInfo, Stats, TrimReport, VmStat, Watermarks, ZoneInfo,
    },
    percpu::Mode,
    zone::HugePages,
};

/// The allocator: a handle on the one heap of the process.
///
/// Set it with `#[global_allocator]`. Any number of values may exist; they all speak of the same heap, so a
/// library can make one of its own to read [`PcpAlloc::stats`].
#[derive(Debug, Default)]
#[cfg(not(loom))]
pub struct PcpAlloc {
    config: Config,
}

/// A charge could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg(not(loom))]
pub struct AllocError(percpu::ChargeError);

#[cfg(not(loom))]
impl core::fmt::Display for AllocError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self.0 {
            percpu::ChargeError::OutOfMemory => "no memory for the charge, or no size class for the layout",
            percpu::ChargeError::Unreachable => "another CPU's stacks cannot be reached: membarrier is missing",
        })
    }
}

#[cfg(not(loom))]
impl core::error::Error for AllocError {}

#[cfg(not(loom))]
impl PcpAlloc {
    /// A handle on the heap.
    ///
    /// Nothing is initialised until the first allocation.
    pub const fn new() -> Self {
        PcpAlloc { config: Config::new() }
    }

    /// A handle on the heap that brings it up with these settings, if it makes the heap's first allocation.
    pub const fn with_config(config: Config) -> Self {
        PcpAlloc { config }
    }

    /// The marks in force over free resident memory.
    pub fn watermarks(&self) -> Watermarks {
        heap::ensure_up(&self.config);
        control::watermarks()
    }

    /// Sets the marks over free resident memory; the worker acts on them within a fraction of a second.
    ///
    /// # Errors
    /// If they contradict each other.
    pub fn set_watermarks(&self, marks: Watermarks) -> Result<(), ConfigError> {
        heap::ensure_up(&self.config);
        control::set_watermarks(marks)
    }

    /// Most bytes that the heap may have resident, if there is a limit.
    pub fn limit(&self) -> Option<usize> {
        heap::ensure_up(&self.config);
        control::limit()
    }

    /// Limits the bytes that the heap may have resident: in use, cached, free and metadata.
    ///
    /// At the limit stacks are drained and free memory is given back; if that is not enough, allocation returns
    /// null, until something is freed. It never aborts and never waits. (What a null from `alloc` does to a
    /// program is the program's affair: `Box` and `Vec::push` end it, `try_reserve` does not.)
    ///
    /// # Errors
    /// If less is asked for than is in use now.
    #[doc(alias = "memory_limit")]
    pub fn set_limit(&self, bytes: Option<usize>) -> Result<(), ConfigError> {
        heap::ensure_up(&self.config);
        control::set_limit(bytes)
    }

    /// Where the heap's memory is, and how often its slow paths ran.
    ///
    /// Takes every lock of the allocator once, one after the other, and asks the kernel which pages of the
    /// allocator's tables are resident: some hundred microseconds. Allocates nothing.
    pub fn stats(&self) -> Stats {
        control::stats()
    }

    /// The zones with their marks, and every CPU's stacks, as `/proc/zoneinfo` prints them.
    pub fn zoneinfo(&self) -> ZoneInfo {
        ZoneInfo
    }

    /// Free blocks of pages by order, as `/proc/buddyinfo` prints them.
    pub fn buddyinfo(&self) -> BuddyInfo {
        BuddyInfo
    }

    /// Slabs by size class, as `/proc/slabinfo` prints them.
    pub fn slabinfo(&self) -> SlabInfo {
        SlabInfo
    }

    /// Counters, as `/proc/vmstat` prints them.
    pub fn vmstat(&self) -> VmStat {
        VmStat
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

    /// A block from this CPU's stack, or `None`: never a lock, a system call, an atomic wait or a thread-local
    /// destructor. A few nanoseconds.
    ///
    /// May be called in any context: in a signal handler that interrupted the allocator itself on this thread,
    /// with every system call forbidden, under any lock, before anything was ever allocated (`None`). `None`
    /// means that nothing was at hand, not that memory is short; the next ordinary slow path on this CPU then
    /// refills, by more after every miss. A quarter of each stack is a floor which this does not cross, so that
    /// its users cannot empty the cache for the others. [`PcpAlloc::charge_nolock`] makes a promise of it.
    ///
    /// Layouts beyond 256 KiB, or aligned beyond a page, always get `None`. The contents are arbitrary. The
    /// block is an ordinary one: free it with [`PcpAlloc::free_nolock`], or by `dealloc` where that is legal.
    ///
    /// Where stacks belong to threads, a handler that interrupts an allocator call of its own thread gets
    /// `None`.
    #[doc(alias = "alloc_pages_nolock")]
    #[doc(alias = "kmalloc_nolock")]
    pub fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        nolock::alloc(layout)
    }

    /// `1 << order` pages of 4 KiB, aligned to a page, as by [`PcpAlloc::try_alloc_nolock`]; up to order 6.
    ///
    /// The layout to free them with is 4096 shifted left by `order`, aligned to 4096.
    pub fn try_alloc_pages_nolock(&self, order: u32) -> Option<NonNull<u8>> {
        let size = size_class::PAGE.checked_shl(order)?;
        self.try_alloc_nolock(Layout::from_size_align(size, size_class::PAGE).ok()?)
    }

    /// Frees any block of this heap, wherever [`PcpAlloc::try_alloc_nolock`] is legal; always succeeds.
    ///
    /// The block goes to this CPU's reserve if that was charged and is not full, else on its stack. If there is
    /// no room, it is linked into a list (through its own memory) that the next ordinary slow path, drain or
    /// trim empties; [`Stats::nolock_deferred`] counts what waits there.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::dealloc`](core::alloc::GlobalAlloc::dealloc): `ptr` is a block of this heap that
    /// was allocated with `layout` and is not used any more.
    #[doc(alias = "free_pages_nolock")]
    #[doc(alias = "kfree_nolock")]
    pub unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { nolock::free(ptr, layout) }
    }

    /// Sets aside `per_cpu` blocks for this layout on every CPU, for nolock allocation alone.
    ///
    /// The charge is kept: drains, trims and ordinary allocation leave it, what is taken from it is replaced by
    /// the next ordinary slow path on that CPU, and [`PcpAlloc::free_nolock`] fills it first. Layouts of the
    /// same size class share a charge. Calling again changes it; 0 gives it back. Costs the memory of
    /// `per_cpu` blocks times the machine's possible CPUs; it is not for a signal handler.
    ///
    /// Where stacks belong to threads, the charge is the calling thread's.
    ///
    /// # Errors
    /// [`AllocError`] if the memory is not to be had, the layout is beyond what nolock allocation serves, or
    /// another CPU's stacks cannot be reached (no `membarrier`). CPUs charged until then stay charged.
    #[doc(alias = "mempool_create")]
    pub fn charge_nolock(&self, layout: Layout, per_cpu: usize) -> Result<(), AllocError> {
        nolock::charge(layout, per_cpu).map_err(AllocError)
    }

    /// Bytes that a block allocated with this layout really has; at least `layout.size()`.
    ///
    /// The compiler may assume that a program touches only what it asked for, so this is for statistics and
    /// for choosing sizes ([`PcpAlloc::usable_size`] of a layout costs no more than a smaller request does).
    #[doc(alias = "malloc_usable_size")]
    #[doc(alias = "good_size")]
    pub fn usable_size(&self, layout: Layout) -> usize {
        alloc::usable_size(layout)
    }
}
