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
//! - **Fast**: allocating and freeing a small block is one restartable sequence each, 18 and 16 instructions
//!   inlined into the caller: no lock, no atomic operation, no system call.
//! - **Lean**: free blocks are cached per CPU, not per thread. Five hundred idle threads cost what two cost,
//!   and threads leave nothing behind to tear down.
//! - **Honest**: [`PcpAlloc::stats`] says where every byte is; [`PcpAlloc::drain`] empties any CPU's cache from
//!   any thread, and [`PcpAlloc::trim`] gives back what is free.
//! - **Hard to corrupt**: bookkeeping is out of band, so a use after free or an overflow cannot derail the allocator
//!   (the one list that runs through free blocks, of nolock frees that found no room, is checked); a double free,
//!   a pointer that is not ours and a size that cannot be the block's end the process with one line that says so, when they
//!   reach a slab, and at once where the heap is [checked](Hardening::CHECKED).
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
//! belong to threads instead; [`Stats::mode`] says which, and [`Stats::mode_reason`] why. Where a sandbox ends a
//! process for asking, [`Config::rseq`] and [`Config::membarrier`] keep the heap from it.
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
//! # Guides
//!
//! [`guide`] has chapters on [getting started](guide::getting_started), [tuning](guide::tuning),
//! [allocation without locks](guide::nolock), [RCU](guide::rcu), [metrics](guide::metrics),
//! [profiling](guide::profiling), [hardening](guide::hardening), and on moving from
//! [jemalloc](guide::moving_from_jemalloc) and [mimalloc](guide::moving_from_mimalloc), and
//! [walks through the source](guide::internals).
//!
//! # Limits
//!
//! - Linux only. Restartable sequences on x86-64 and aarch64; per-thread stacks on other architectures.
//! - The ordinary entry points are not async-signal-safe, like those of every `malloc`.
//! - A child made by `vfork` must not allocate if its parent has other threads, of which the worker is one: it shares its
//!   parent's thread, whose CPU the kernel does not track in the child. (`std::process::Command` does not allocate there.)
//! - A double free whose two halves both still lie in a CPU's stack is not noticed until it is too late.

// What C's entrances alone need lies idle over the twin, which has none.
#![cfg_attr(all(feature = "capi", any(pcpalloc_twin, miri)), allow(dead_code))]
// Longer than 600 lines: three in four document the public surface.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(feature = "nightly", feature(allocator_api))]

#[cfg(not(target_os = "linux"))]
compile_error!("pcpalloc runs on Linux only");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("pcpalloc needs 64-bit pointers");

#[cfg(not(loom))]
mod alloc;
#[cfg(all(any(feature = "allocator-api2", feature = "nightly"), not(loom)))]
mod allocator;
#[cfg(all(feature = "capi", not(any(loom, pcpalloc_twin, miri))))]
mod capi;
#[cfg(not(loom))]
mod checked;
#[cfg(not(loom))]
mod control;
#[cfg(all(feature = "debug", not(loom)))]
#[doc(hidden)]
pub mod debug;
// Under loom this and the four like it are there for their models alone.
#[cfg(loom)]
#[allow(dead_code)]
#[path = "rcu/epoch.rs"]
mod epoch;
#[cfg(any(doc, doctest))]
pub mod guide;
#[cfg(not(loom))]
mod hardening;
#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
mod large;
#[cfg(not(loom))]
mod latency;
#[cfg_attr(loom, allow(dead_code))]
mod list;
#[cfg(loom)]
#[allow(dead_code)]
#[path = "zone/listener.rs"]
mod listener;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
pub mod mempool;
#[cfg(not(loom))]
mod node;
#[cfg(not(loom))]
mod nolock;
// Whether anybody can look depends on features; that the slow paths ask does not.
#[cfg(not(loom))]
#[cfg_attr(not(all(feature = "debug", feature = "profile")), allow(dead_code))]
mod observe;
#[cfg(not(loom))]
mod percpu;
#[cfg(all(feature = "profile", not(loom)))]
pub mod profile;
#[cfg(not(loom))]
mod prometheus;
#[cfg(not(loom))]
mod random;
#[cfg(not(loom))]
pub mod rcu;
#[cfg(not(loom))]
mod size_class;
#[cfg(not(loom))]
mod slab;
#[cfg(all(loom, test))]
#[path = "percpu/model.rs"]
mod stopping;
#[cfg_attr(loom, allow(dead_code))]
mod sync;
#[cfg(not(loom))]
mod sys;
#[cfg(not(loom))]
pub mod tag;
#[cfg_attr(loom, allow(dead_code))]
mod tagged_stack;
#[cfg(not(loom))]
mod zone;

/// The programs in the README, as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

#[cfg(not(loom))]
use core::{alloc::Layout, ptr::NonNull};

#[cfg(not(loom))]
pub use {
    control::{
        BuddyInfo, Config, ConfigError, Drain, DrainReport, LeakedBlocks, Leaks, SlabInfo, Stats, TrimReport, VmStat,
        Watermarks, ZoneInfo,
    },
    hardening::Hardening,
    latency::{Histogram, Latencies, SlowPath},
    node::NodeError,
    percpu::{Mode, ModeReason, Rseq},
    slab::shard::Shards,
    zone::HugePages,
};

/// The allocator: a handle on the one heap of the process.
///
/// Set it with `#[global_allocator]`. Any number of values may exist; they all speak of the same heap, so a
/// library can make one of its own to read [`PcpAlloc::stats`]. What is not part of `GlobalAlloc` also works where
/// another allocator is the global one.
///
/// ```
/// use std::alloc::{GlobalAlloc, Layout};
///
/// let heap = pcpalloc::PcpAlloc::new();
/// let layout = Layout::new::<[u64; 4]>();
/// // SAFETY: the layout's size is not zero; the block is freed once, with the layout it was allocated with.
/// unsafe {
///     let block = heap.alloc(layout);
///     assert!(!block.is_null());
///     assert_eq!(pcpalloc::PcpAlloc::new().stats().in_use, heap.stats().in_use);
///     heap.dealloc(block, layout);
/// }
/// ```
///
/// # In collections
///
/// With feature `allocator-api2` (stable) or `nightly` it is an `Allocator`, and so are `&PcpAlloc` and
/// [`rcu::Heap`], which takes no room in the collection. Blocks come with all of their length; a collection that asks for
/// more of the same class, or for a larger run whose neighbour is free, grows where it is, and a large one moves by its
/// page tables.
///
/// ```
/// # #[cfg(feature = "allocator-api2")] {
/// use allocator_api2::vec::Vec;
/// use pcpalloc::rcu::Heap;
///
/// let mut squares = Vec::new_in(Heap);
/// squares.extend((0..1000u64).map(|n| n * n));
/// assert_eq!(squares[31], 961);
/// # }
/// ```
#[doc(alias = "malloc")]
#[doc(alias = "kmalloc")]
#[doc(alias = "Jemalloc")]
#[doc(alias = "MiMalloc")]
#[derive(Clone, Copy, Debug, Default)]
#[cfg(not(loom))]
pub struct PcpAlloc {
    config: Config,
}

/// A charge could not be made ([`PcpAlloc::charge_nolock`], [`mempool::Pool::new`]): `Display` says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg(not(loom))]
pub struct AllocError(percpu::ChargeError);

#[cfg(not(loom))]
impl core::fmt::Display for AllocError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self.0 {
            percpu::ChargeError::OutOfMemory => "no memory for the blocks, or no size class for the layout",
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

    /// A handle on the heap that brings it up with these settings, if it makes the heap's first allocation: so it is
    /// for the static. Settings of a handle that comes later are without effect.
    ///
    /// ```
    /// use pcpalloc::{Config, PcpAlloc};
    ///
    /// static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().limit(1 << 30));
    /// assert_eq!(GLOBAL.limit(), Some(1 << 30));
    /// ```
    pub const fn with_config(config: Config) -> Self {
        PcpAlloc { config }
    }

    /// The marks in force over free resident memory, in bytes. `high` is never 0 here: where it was set to that, it is
    /// what follows from the heap's size now.
    #[doc(alias = "min_free_kbytes")]
    pub fn watermarks(&self) -> Watermarks {
        heap::ensure_up(&self.config);
        control::watermarks()
    }

    /// Sets the marks over free resident memory; the worker acts on them within a fraction of a second.
    ///
    /// ```
    /// use pcpalloc::{PcpAlloc, Watermarks};
    ///
    /// let heap = PcpAlloc::new();
    /// heap.set_watermarks(Watermarks { min: 0, low: 0, high: 16 << 20 })?;
    /// assert_eq!(heap.watermarks().high, 16 << 20);
    /// # Ok::<(), pcpalloc::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If they contradict each other; those in force stay.
    #[doc(alias = "dirty_decay_ms")]
    #[doc(alias = "muzzy_decay_ms")]
    #[doc(alias = "mi_option_purge_delay")]
    #[doc(alias = "M_TRIM_THRESHOLD")]
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
    /// Costs a [`PcpAlloc::stats`], and a [`PcpAlloc::trim`] if more is resident than the new limit.
    ///
    /// ```
    /// let heap = pcpalloc::PcpAlloc::new();
    /// heap.set_limit(Some(256 << 20))?;
    /// assert_eq!(heap.limit(), Some(256 << 20));
    /// heap.set_limit(None)?;
    /// # Ok::<(), pcpalloc::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// If less is asked for than is in use now, the heap's own bookkeeping ([`Stats::metadata`]) included; the limit in
    /// force stays.
    #[doc(alias = "memory_limit")]
    #[doc(alias = "memory.max")]
    pub fn set_limit(&self, bytes: Option<usize>) -> Result<(), ConfigError> {
        heap::ensure_up(&self.config);
        control::set_limit(bytes)
    }

    /// Where the heap's memory is, and how often its slow paths ran.
    ///
    /// Takes every lock of the allocator once, one after the other, and asks the kernel which pages of the
    /// allocator's tables are resident: some hundred microseconds. Allocates nothing.
    ///
    /// ```
    /// let stats = pcpalloc::PcpAlloc::new().stats();
    /// assert_eq!(stats.resident, stats.in_use + stats.percpu_cached + stats.free_resident + stats.metadata);
    /// println!("{stats}");
    /// ```
    #[doc(alias = "mallctl")]
    #[doc(alias = "malloc_stats")]
    #[doc(alias = "malloc_stats_print")]
    #[doc(alias = "mallinfo2")]
    #[doc(alias = "mi_stats_print")]
    #[doc(alias = "mi_process_info")]
    pub fn stats(&self) -> Stats {
        control::stats()
    }

    /// The zones with their marks, and every CPU's stacks, as `/proc/zoneinfo` prints them.
    ///
    /// This and the three that follow are views: what they print is read while it is being printed, and nothing is
    /// allocated for it.
    ///
    /// ```
    /// let heap = pcpalloc::PcpAlloc::new();
    /// print!("{}{}{}{}", heap.zoneinfo(), heap.buddyinfo(), heap.slabinfo(), heap.vmstat());
    /// ```
    #[doc(alias = "malloc_info")]
    #[doc(alias = "mi_arenas_print")]
    pub fn zoneinfo(&self) -> ZoneInfo {
        ZoneInfo
    }

    /// Free blocks of pages by order, as `/proc/buddyinfo` prints them.
    pub fn buddyinfo(&self) -> BuddyInfo {
        BuddyInfo
    }

    /// Slabs by size class, as `/proc/slabinfo` prints them.
    #[doc(alias = "stats.arenas.i.bins")]
    pub fn slabinfo(&self) -> SlabInfo {
        SlabInfo
    }

    /// Counters, as `/proc/vmstat` prints them.
    pub fn vmstat(&self) -> VmStat {
        VmStat
    }

    /// Whether to measure how long slow paths take from now on ([`Config::latency`] from the start).
    ///
    /// On, a slow path reads the clock twice and adds to two counters that all CPUs share: some 60 ns. Off, it asks a
    /// flag. The fast paths know nothing of it either way.
    pub fn set_latency(&self, measure: bool) {
        heap::ensure_up(&self.config);
        latency::set(measure);
    }

    /// How long slow paths took while that was measured.
    ///
    /// ```
    /// use pcpalloc::{Drain, PcpAlloc, SlowPath};
    ///
    /// #[global_allocator]
    /// static GLOBAL: PcpAlloc = PcpAlloc::new();
    ///
    /// GLOBAL.set_latency(true);
    /// GLOBAL.drain(Drain::All);
    /// let latencies = GLOBAL.latencies();
    /// println!("{latencies}");
    /// # if GLOBAL.stats().mode != pcpalloc::Mode::PerThread {
    /// assert!(latencies.of(SlowPath::Drain).count() > 0);
    /// # }
    /// ```
    pub fn latencies(&self) -> Latencies {
        Latencies::now()
    }

    /// What the program has in use, by size class, and since [`PcpAlloc::leak_mark`] if that was called.
    ///
    /// Has deferred frees done first, as far as readers allow within a tenth of a second, destructors included, and
    /// empties all stacks, so that nothing free is counted. Exact when no other thread allocates or frees meanwhile.
    /// [`Config::leaks`] has this reported at exit.
    ///
    /// ```
    /// use pcpalloc::PcpAlloc;
    ///
    /// #[global_allocator]
    /// static GLOBAL: PcpAlloc = PcpAlloc::new();
    ///
    /// GLOBAL.leak_mark();
    /// let forgotten = Box::leak(Box::new([0u8; 1000]));
    /// let leaks = GLOBAL.leaks();
    /// assert!(leaks.lines().any(|line| line.size == Some(1024) && line.blocks == Some(1)));
    /// # drop(unsafe { Box::from_raw(forgotten) });
    /// ```
    #[doc(alias = "prof_leak")]
    #[doc(alias = "kmemleak")]
    pub fn leaks(&self) -> Leaks {
        Leaks::now()
    }

    /// What is in use now is not counted by [`PcpAlloc::leaks`], nor at exit: only what each class has more than now.
    ///
    /// By number, not by block: one that is freed and one that is allocated after the mark make up for each other. Costs what
    /// [`PcpAlloc::leaks`] does.
    pub fn leak_mark(&self) {
        heap::ensure_up(&self.config);
        Leaks::mark();
    }

    /// Gives cached blocks back to their slabs, where they can make whole runs of pages for other sizes.
    ///
    /// Works on any CPU from any thread: the CPU's threads are fenced off by `membarrier`, about 15 µs for a
    /// CPU that is running the program, and meanwhile do without their stacks. What cannot be reached is
    /// reported. Memory stays with the process; [`PcpAlloc::trim`] gives it back.
    ///
    /// In per-thread mode each thread can only empty its own stacks: [`Drain::Local`] and [`Drain::All`]
    /// do that, and [`Drain::Cpu`] nothing.
    ///
    /// ```
    /// use pcpalloc::{Drain, PcpAlloc};
    ///
    /// let report = PcpAlloc::new().drain(Drain::All);
    /// println!("{} bytes, {} CPUs out of reach", report.drained, report.unreachable_cpus);
    /// ```
    #[doc(alias = "drain_local_pages")]
    #[doc(alias = "thread.tcache.flush")]
    #[doc(alias = "thread.idle")]
    #[doc(alias = "drain_all_pages")]
    pub fn drain(&self, scope: Drain) -> DrainReport {
        control::drain(scope)
    }

    /// Drains everything and gives all free pages back to the system.
    ///
    /// One `madvise` for every free run, and some for the pages between blocks in use; memory that is used again is faulted
    /// in again. What stays is said in the report. The worker does the same for what nobody has used for a second, so this
    /// is for who knows that a phase is over.
    ///
    /// ```
    /// let report = pcpalloc::PcpAlloc::new().trim();
    /// println!("{} bytes given back, {} free and resident", report.released, report.retained);
    /// ```
    #[doc(alias = "purge")]
    #[doc(alias = "arena.i.purge")]
    #[doc(alias = "arena.i.decay")]
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
    ///
    /// ```
    /// use std::alloc::Layout;
    ///
    /// let (heap, layout) = (pcpalloc::PcpAlloc::new(), Layout::new::<[u8; 100]>());
    /// if let Some(block) = heap.try_alloc_nolock(layout) {
    ///     // SAFETY: from the line above, with this layout, and not used any more.
    ///     unsafe { heap.free_nolock(block, layout) };
    /// }
    /// ```
    #[doc(alias = "alloc_pages_nolock")]
    #[doc(alias = "kmalloc_nolock")]
    pub fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        nolock::alloc(layout)
    }

    /// `1 << order` pages of 4 KiB, aligned to a page, as by [`PcpAlloc::try_alloc_nolock`]; up to order 6.
    ///
    /// The layout to free them with is 4096 shifted left by `order`, aligned to 4096.
    ///
    /// ```
    /// use std::alloc::Layout;
    ///
    /// let heap = pcpalloc::PcpAlloc::new();
    /// heap.charge_nolock(Layout::from_size_align(4096 << 2, 4096).unwrap(), 1)?;
    /// let pages = heap.try_alloc_pages_nolock(2).expect("charged");
    /// assert!(pages.addr().get().is_multiple_of(4096));
    /// # // SAFETY: as documented.
    /// # unsafe { heap.free_nolock(pages, Layout::from_size_align(4096 << 2, 4096).unwrap()) };
    /// # Ok::<(), pcpalloc::AllocError>(())
    /// ```
    #[doc(alias = "alloc_pages_nolock")]
    pub fn try_alloc_pages_nolock(&self, order: u32) -> Option<NonNull<u8>> {
        let size = size_class::PAGE.checked_shl(order)?;
        self.try_alloc_nolock(Layout::from_size_align(size, size_class::PAGE).ok()?)
    }

    /// Frees any block of this heap, wherever [`PcpAlloc::try_alloc_nolock`] is legal; always succeeds.
    ///
    /// The block goes to this CPU's reserve if that was charged and is not full, else on its stack. If there is
    /// no room, it is linked into a list (through its own memory) that the next ordinary slow path, drain or
    /// trim empties; [`Stats::nolock_deferred`] counts what waits there. Costs a section
    /// or two, or an atomic exchange for the list.
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
    /// the next ordinary slow paths on that CPU, up to 252 blocks each (of more than 32 KiB four), and
    /// [`PcpAlloc::free_nolock`] fills it first. Layouts of the same size class share a charge. Calling again changes it, and
    /// makes up for what was taken; 0 gives the blocks back. Costs the memory of `per_cpu` blocks times the machine's possible
    /// CPUs; it is not for a signal handler. The arrays in which they stand, 8 bytes a block, rounded up to a power of two, stay
    /// with the heap for ever ([`Stats::metadata`]), for the next charge.
    ///
    /// Where stacks belong to threads, the charge is the calling thread's.
    ///
    /// ```
    /// use std::alloc::Layout;
    ///
    /// # let config = pcpalloc::Config::new().limit(1 << 30);
    /// # let configured = pcpalloc::PcpAlloc::with_config(config);
    /// # configured.charge_nolock(Layout::new::<u64>(), 1)?; // The first call of the process brings the heap up.
    /// # assert_eq!(configured.limit(), Some(1 << 30));
    /// let (heap, layout) = (pcpalloc::PcpAlloc::new(), Layout::new::<[u64; 8]>());
    /// heap.charge_nolock(layout, 16)?;
    /// let block = heap.try_alloc_nolock(layout).expect("16 are set aside on this CPU");
    /// // SAFETY: from the line above, with this layout, and not used any more.
    /// unsafe { heap.free_nolock(block, layout) };
    /// heap.charge_nolock(layout, 0)?;
    /// # Ok::<(), pcpalloc::AllocError>(())
    /// ```
    ///
    /// # Errors
    /// [`AllocError`] if the memory is not to be had, the layout is beyond what nolock allocation serves, or
    /// another CPU's stacks cannot be reached (no `membarrier`). CPUs charged until then stay charged.
    #[doc(alias = "mempool_create")]
    pub fn charge_nolock(&self, layout: Layout, per_cpu: usize) -> Result<(), AllocError> {
        heap::ensure_up(&self.config);
        nolock::charge(layout, per_cpu).map_err(AllocError)
    }

    /// Bytes that a block allocated with this layout really has; at least `layout.size()`.
    ///
    /// The compiler may assume that a program touches only what it asked for, so this is for statistics and
    /// for choosing sizes; to use all of a block, ask for [`PcpAlloc::good_size`] to begin with. Arithmetic: nothing is
    /// looked up.
    ///
    /// ```
    /// use std::alloc::Layout;
    ///
    /// let heap = pcpalloc::PcpAlloc::new();
    /// let room = heap.usable_size(Layout::array::<u8>(100)?);
    /// assert!((100..=128).contains(&room));
    /// # Ok::<(), std::alloc::LayoutError>(())
    /// ```
    #[doc(alias = "malloc_usable_size")]
    #[doc(alias = "mi_usable_size")]
    #[doc(alias = "ksize")]
    pub fn usable_size(&self, layout: Layout) -> usize {
        alloc::usable_size(layout)
    }

    /// The largest request that takes no more memory than one of `size` bytes does, both aligned to 8 at most.
    ///
    /// For buffers that grow: the room that would be lost is room to grow into. At least `size`.
    ///
    /// ```
    /// let heap = pcpalloc::PcpAlloc::new();
    /// assert_eq!(heap.good_size(1000), 1024);
    /// assert_eq!(heap.good_size(1024), 1024);
    /// ```
    #[doc(alias = "nallocx")]
    #[doc(alias = "malloc_good_size")]
    pub fn good_size(&self, size: usize) -> usize {
        Layout::from_size_align(size.max(1), 1).map_or(size, alloc::usable_size)
    }

    /// A block from a memory node's zones, or from another node's if that node has none left.
    ///
    /// The kernel's `alloc_pages_node`. Nodes are numbered as in `/sys/devices/system/node`; where one has nothing, the
    /// nearest is asked next. The CPU's stacks, which may hold blocks of any node, are passed by: this takes a lock,
    /// and a system call at times. The block is an ordinary one, given back by `dealloc`; its contents are arbitrary. A layout
    /// of size 0 is served, too, with a page at least, and given back by the same layout.
    ///
    /// A zone asks the kernel to *prefer* its node (`MPOL_PREFERRED`), so a page that is touched for the first time
    /// while the node has no free page comes from another.
    ///
    /// ```
    /// use std::alloc::{GlobalAlloc, Layout};
    ///
    /// let heap = pcpalloc::PcpAlloc::new();
    /// let layout = Layout::new::<[u64; 1000]>();
    /// let block = heap.alloc_on_node(layout, 0)?;
    /// // SAFETY: a block of this layout, freed once.
    /// unsafe { heap.dealloc(block.as_ptr(), layout) };
    /// # Ok::<(), pcpalloc::NodeError>(())
    /// ```
    ///
    /// # Errors
    /// [`NodeError::Absent`] if the machine has no such node, or none with memory; nothing is allocated then.
    /// [`NodeError::OutOfMemory`] if the system gives no more memory, or the limit is reached.
    #[doc(alias = "alloc_pages_node")]
    #[doc(alias = "kmalloc_node")]
    pub fn alloc_on_node(&self, layout: Layout, node: usize) -> Result<NonNull<u8>, NodeError> {
        node::alloc(self, layout, node, false)
    }

    /// As [`PcpAlloc::alloc_on_node`], from no other node's zones: the kernel's `__GFP_THISNODE`.
    ///
    /// # Errors
    /// As [`PcpAlloc::alloc_on_node`], sooner.
    #[doc(alias = "__GFP_THISNODE")]
    pub fn alloc_on_node_only(&self, layout: Layout, node: usize) -> Result<NonNull<u8>, NodeError> {
        node::alloc(self, layout, node, true)
    }
}
