//! Where a program's memory comes from: a sampling heap profiler that can run in production. Feature `profile`.
//!
//! A block is sampled about every 512 KiB that are allocated; its stack is walked and stands for as many blocks as would
//! on average have gone unsampled. So sums over stacks are right on average, whatever the sizes, and what is not sampled
//! costs next to nothing: allocations go on as ever, and frees make a detour of some nanoseconds.
//!
//! ```
//! use pcpalloc::profile::{self, Options, View};
//! # #[global_allocator]
//! # static GLOBAL: pcpalloc::PcpAlloc = pcpalloc::PcpAlloc::new();
//!
//! profile::start(&Options::new().interval(64 << 10))?;
//! let index: Vec<String> = (0..100_000).map(|n| format!("entry {n}")).collect();
//! let profile = profile::snapshot();
//! profile::stop();
//!
//! let live = profile.total(View::Live);
//! assert!(live.bytes > 3 << 20 && live.bytes < 9 << 20, "{live:?}");
//! let mut file = Vec::new();                          // or a File, a socket, …
//! profile.write_pprof(&mut file)?;                    // go tool pprof, pprof.me, Speedscope, …
//! profile.write_dhat(&mut file)?;                     // valgrind's dh_view.html
//! profile.write_folded(View::Peak, &mut file)?;       // inferno, flamegraph.pl
//! # drop(index);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The environment starts it, too: `PCPALLOC_CONF=profile:512k`, or [`Config::profile`](crate::Config::profile). With
//! `PCPALLOC_CONF=profile_to:heap.%p.pb.gz` ([`Config::profile_to`](crate::Config::profile_to)) the process writes its profile
//! when it exits.
//!
//! # What is seen
//!
//! Four [`View`]s: what is in use ([`View::Live`]), what waits for a grace period of [`rcu`](crate::rcu)
//! ([`View::Deferred`]), both together at the moment when they were most since the start ([`View::Peak`]), and
//! everything allocated since ([`View::Allocated`]). A resize that cannot stay in its size class frees and allocates.
//!
//! Sizes are those of blocks ([`PcpAlloc::usable_size`](crate::PcpAlloc::usable_size)): what the request took, not what it
//! asked for. Nolock allocations ([`try_alloc_nolock`](crate::PcpAlloc::try_alloc_nolock)) are not sampled, and miss a
//! little more often meanwhile; nor are blocks of a given node ([`alloc_on_node`](crate::PcpAlloc::alloc_on_node)).
//!
//! # How it can be off
//!
//! With n samples of a size s at an interval of T bytes, an estimate has a relative standard deviation of
//! sqrt((1 - p) / n), where p = 1 - exp(-s / T): 10 % for 100 samples of small blocks, 50 MiB of them at 512 KiB.
//! Blocks much larger than T are all sampled. Storage is bounded: 65536 sampled blocks in use, 32768 pairs of a stack
//! and a size, 16384 stacks; what exceeds it is counted in [`Profile::lost`].
//!
//! # Limits
//!
//! - Where the kernel cannot fence another CPU (`membarrier`, Linux 5.10), frees cannot be seen and starting is refused;
//!   with stacks per thread ([`Mode::PerThread`](crate::Mode::PerThread)) it works.
//! - [`stop`] ends the book: what is in use then is not followed any further, and the next [`start`] begins a new one.
//! - Names come from the program's symbols and debug information. Without the latter, lines and inlined functions are missing;
//!   with line tables alone, the paths of most names.

mod at_exit;
mod dhat;
mod proto;
mod record;
mod snapshot;
mod symbols;
mod unwind;

pub use snapshot::{Profile, Site, Total, View};
pub use unwind::Unwinder;

pub(crate) use record::fork_lock as fork_lock_book;

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use at_exit::ArmError;

use crate::lock::Lock;
use crate::observe::{self, Client, Rate, Role};
use crate::{Config, heap};

static PROFILER: &dyn Client = &record::Profiler;

/// The interval in force, 0 if nobody profiles.
static INTERVAL: Lock<usize> = Lock::new(0);
/// That of the book that is open or was last. Relaxed: a number to print.
static LAST: AtomicUsize = AtomicUsize::new(0);
/// What the settings asked for when the heap came up: an interval, and a path to write to at exit.
static WANTED: Lock<(usize, Option<&'static [u8]>)> = Lock::new((0, None));

/// How to profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    interval: usize,
    unwinder: Unwinder,
    depth: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options::new()
    }
}

impl Options {
    /// A sample in 512 KiB, stacks by unwind tables, 64 frames of them.
    pub const fn new() -> Options {
        Options { interval: 512 << 10, unwinder: Unwinder::Tables, depth: 64 }
    }

    /// Bytes from one sample to the next on average, 1 at least: intervals are exponentially distributed, so that no
    /// pattern of allocation is in step with them. Cost and error go with 1 / interval and with its square root.
    pub const fn interval(mut self, bytes: usize) -> Options {
        self.interval = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// How stacks are walked.
    pub const fn unwinder(mut self, unwinder: Unwinder) -> Options {
        self.unwinder = unwinder;
        self
    }

    /// Most frames of a stack, from the innermost, up to 128; those of the allocator are among them.
    pub const fn depth(mut self, frames: usize) -> Options {
        self.depth = frames;
        self
    }
}

/// Why profiling could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// Frees cannot be seen: another CPU cannot be fenced (`membarrier`, Linux 5.10, refused by kernel or sandbox).
    Unobservable,
    /// The system has no memory for the book.
    OutOfMemory,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StartError::Unobservable => "frees cannot be seen: membarrier cannot fence another CPU here",
            StartError::OutOfMemory => "no memory for the profile",
        })
    }
}

impl core::error::Error for StartError {}

/// Begins a profile, or goes on with the one that is under way by other options. From any thread, while others allocate;
/// drains every CPU, since what is cached there was decided about before. What is allocated meanwhile is left out.
///
/// # Errors
/// [`StartError`]; then nothing has changed.
#[doc(alias = "prof.active")]
#[doc(alias = "HeapProfilerStart")]
pub fn start(options: &Options) -> Result<(), StartError> {
    heap::ensure_up(&Config::new());
    let mut interval = INTERVAL.lock();
    if *interval == 0 {
        unwind::warm_up();
        if !record::make_room() {
            return Err(StartError::OutOfMemory);
        }
    }
    observe::start(Role::Profiler, &PROFILER, Rate::Bytes(options.interval)).map_err(|_| StartError::Unobservable)?;
    unwind::configure(options.unwinder, options.depth);
    if *interval == 0 {
        // Last, since what the book before says can be read for as long as there is no other. Until then it is closed, and
        // a sample is left out like the allocations before it.
        record::begin();
    }
    *interval = options.interval;
    LAST.store(options.interval, Ordering::Relaxed);
    Ok(())
}

/// Ends the profile. What has been recorded can be read until the next [`start`].
#[doc(alias = "HeapProfilerStop")]
pub fn stop() {
    if interval().is_some() {
        crate::rcu::observe_waiting();
    }
    let mut interval = INTERVAL.lock();
    if *interval != 0 {
        observe::stop(Role::Profiler);
        record::end();
        *interval = 0;
    }
}

/// Bytes from one sample to the next on average, if somebody profiles.
pub fn interval() -> Option<usize> {
    Some(*INTERVAL.lock()).filter(|&interval| interval != 0)
}

/// What has been recorded so far: a copy, some hundred microseconds under the profiler's lock. Names are found when it is
/// written.
#[doc(alias = "prof.dump")]
#[doc(alias = "HeapProfilerDump")]
pub fn snapshot() -> Profile {
    if interval().is_some() {
        crate::rcu::observe_waiting();
    }
    Profile::new(record::copy(), LAST.load(Ordering::Relaxed))
}

/// Locks or unlocks for `fork`: this before the lock of whoever observes, and the book's after it, since whoever stops
/// observing waits for callbacks.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire { INTERVAL.acquire() } else { INTERVAL.release() }
}

/// Notes what the settings ask for; `start_if_wanted` follows when the heap is up. A path to write to asks for a profile.
pub(crate) fn want(interval: usize, to: Option<&'static [u8]>) {
    let interval = if interval == 0 && to.is_some() { Options::new().interval } else { interval };
    *WANTED.lock() = (interval, to);
}

/// Starts what the settings asked for.
pub(crate) fn start_if_wanted() {
    let (interval, to) = core::mem::take(&mut *WANTED.lock());
    if interval == 0 {
        return;
    }
    let problem = match start(&Options::new().interval(interval)) {
        Err(StartError::Unobservable) => "not started: another CPU cannot be fenced",
        Err(StartError::OutOfMemory) => "not started: no memory",
        Ok(()) => match to.map(at_exit::arm) {
            Some(Err(ArmError::PathTooLong)) => "will not be written: the path is too long",
            Some(Err(ArmError::Refused)) => "will not be written: the C library calls nothing more at exit",
            Some(Ok(())) | None => return,
        },
    };
    let mut line = crate::sys::Message::new();
    line.text("pcpalloc: profile: ").text(problem).text("\n");
    crate::sys::report(line.as_bytes());
}
