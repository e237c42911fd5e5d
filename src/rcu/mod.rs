//! Read-copy update: readers that pay nothing, and frees that wait for them, in bulk.
//!
//! # Overview
//!
//! Readers go through shared data inside *sections* ([`read_lock`]) and see, for as long as a section lasts,
//! everything that was reachable when it began. A writer unlinks an object first and then defers its free
//! ([`free`]) or waits ([`synchronize`]) until every section that was under way has ended: a *grace period*.
//! The design is that of the Linux kernel's RCU and of its `kvfree_rcu`.
//!
//! # A growing example
//!
//! Without any `unsafe`, for one value: [`RcuCell`]. With a type's own destructor, for whatever one has
//! unlinked: [`retire`]. By hand:
//!
//! ```
//! use pcpalloc::{PcpAlloc, rcu};
//! use std::alloc::Layout;
//! use std::ptr::NonNull;
//! use std::sync::atomic::{AtomicPtr, Ordering};
//!
//! #[global_allocator]
//! static GLOBAL: PcpAlloc = PcpAlloc::new();
//!
//! static CURRENT: AtomicPtr<[u32; 4]> = AtomicPtr::new(std::ptr::null_mut());
//!
//! fn publish(values: [u32; 4]) {
//!     let new = Box::into_raw(Box::new(values));
//!     let old = CURRENT.swap(new, Ordering::AcqRel);
//!     if let Some(old) = NonNull::new(old) {
//!         // SAFETY: from a box, unlinked, and plain memory without a destructor.
//!         unsafe { rcu::free(old.cast(), Layout::new::<[u32; 4]>()) };
//!     }
//! }
//!
//! publish([1, 2, 3, 4]);
//! let section = rcu::read_lock();
//! // SAFETY: published by `publish`, and not freed while the section lasts.
//! let seen = unsafe { &*CURRENT.load(Ordering::Acquire) };
//! publish([5, 6, 7, 8]);
//! assert_eq!(seen.iter().sum::<u32>(), 10);
//! drop(section);
//!
//! let report = rcu::drain();
//! assert_eq!(rcu::stats().pending_pointers, 0);
//! # let _ = report;
//! ```
//!
//! # How much memory may wait
//!
//! Above [`Backlog::low`] bytes grace periods are expedited; at [`Backlog::high`] a caller of [`free`] or
//! [`retire`] who may wait, waits and helps. What is not on the books yet is what part-filled pages hold: 507
//! pointers, of blocks of 4 KiB at most, per CPU. So the bytes that deferral can hold are at most
//!
//! ```text
//! high + (CPUs + T) * 507 * 4096 + L
//! ```
//!
//! where T threads defer at the same time and L is the largest block that is not served by a page. Not bound by it
//! are frees from inside a section, which cannot wait for its end, and from nolock contexts, which cannot wait.
//!
//! # Limits
//!
//! - [`synchronize`] and whatever waits inside a section of its own domain panics: it would wait for ever.
//! - Sections must not be held across an `await` that may resume elsewhere: guards are not `Send`.
//! - In the child of a `fork` only the sections of the thread that forked are left; what the parent was about
//!   to free in that moment is not freed in the child.
//! - What waits when the process ends is not freed; leak checkers want [`drain`] first.
//! - Not for data that changes as often as it is read, and not where memory must be free at once.

mod block;
mod cell;
mod cookie;
mod core;
mod domain;
mod grace;
mod head;
mod reader;
mod reclaimer;

pub use cell::RcuCell;
pub use cookie::Cookie;
pub use domain::{Domain, DomainGuard};
pub use head::RcuHead;
pub use reader::{ReadGuard, read_lock};

use ::core::alloc::Layout;
use ::core::ptr::NonNull;
use ::core::sync::atomic::Ordering;
use std::sync::Once;
use std::time::Duration;

use self::core::{Collect, Core, Progress};
use crate::{ConfigError, nolock, percpu};

static DEFAULT: Core = Core::new(true);

/// The default domain, its prerequisites in place.
fn default_domain() -> &'static Core {
    static READY: Once = Once::new();
    READY.call_once(|| {
        crate::heap::ensure_up(&crate::Config::new());
        reader::init();
        reader::init_exit();
        crate::sys::at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
    });
    &DEFAULT
}

extern "C" fn before_fork() {
    DEFAULT.fork_lock(true);
}

extern "C" fn after_fork_in_parent() {
    DEFAULT.fork_lock(false);
}

extern "C" fn after_fork_in_child() {
    DEFAULT.fork_lock(false);
    DEFAULT.after_fork();
}

/// Where pages of pointers come from: the hook by which a deferred free gets its memory without waiting.
///
/// When it has none, a domain takes a page by the ordinary path (unless [`BlockSource::may_allocate`] forbids
/// it), and at last waits for a grace period to free a single block.
///
/// The domain writes to what it gets. An implementation must hand out memory that is valid for the layout and
/// that nobody else uses until it comes back, exactly as a global allocator must.
pub trait BlockSource: Send + Sync {
    /// Memory, if it is to be had without a lock, a system call or a wait.
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// Takes memory back.
    ///
    /// # Safety
    /// `ptr` came from [`BlockSource::try_alloc_nolock`] with this layout and is not used any more.
    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout);

    /// Whether a page may also come from the ordinary allocation path, which may lock and map memory.
    fn may_allocate(&self) -> bool {
        true
    }
}

/// The heap's own nolock path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl BlockSource for Heap {
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        nolock::alloc(layout)
    }

    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { nolock::free(ptr, layout) }
    }
}

/// How much may wait to be freed, in bytes of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Above this, grace periods are expedited.
    pub low: usize,
    /// At this, callers that may wait, wait.
    pub high: usize,
}

/// What a drain freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RcuReport {
    /// Objects freed, or calls made.
    pub freed: usize,
    /// Bytes of the blocks among them.
    pub freed_bytes: usize,
}

/// How a domain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RcuStats {
    /// Objects that wait for a grace period, or to be freed after it.
    pub pending_pointers: usize,
    /// Bytes of them, as far as they are in sealed pages or on the chain.
    pub pending_bytes: usize,
    /// Grace periods that have ended.
    pub grace_periods: u64,
    /// Waits that were expedited.
    pub expedited: u64,
    /// Times a page was not to be had from the nolock hook.
    pub fallbacks: usize,
    /// Objects chained through their own heads.
    pub chained: usize,
    /// Blocks freed so far.
    pub freed: usize,
    /// Calls made so far.
    pub called: usize,
    /// Blocks lost, because no memory was to be had inside a section.
    pub leaked: usize,
    /// Times a caller had to wait at [`Backlog::high`].
    pub waits: usize,
    /// Pages of pointers in use or spare.
    pub blocks: usize,
    /// Times a reader held a grace period up for longer than the stall timeout.
    pub stalls: u64,
    /// Half of all grace periods took no longer than this.
    pub grace_period_median: Duration,
    /// Of a hundred grace periods, 99 took no longer than this.
    pub grace_period_p99: Duration,
}

impl RcuStats {
    fn of(core: &Core) -> RcuStats {
        let (periods, counters) = (&core.periods, &core.counters);
        // Relaxed throughout: statistics.
        let buckets: Vec<u64> = periods.stats.latency.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        let quantile = |q: f64| {
            let wanted = (buckets.iter().sum::<u64>() as f64 * q).ceil() as u64;
            let mut seen = 0;
            let bucket = buckets.iter().position(|&n| {
                seen += n;
                seen >= wanted.max(1)
            });
            Duration::from_micros(bucket.map_or(0, |bucket| 1 << bucket))
        };
        RcuStats {
            pending_pointers: core.pending_pointers(),
            pending_bytes: core.pending_bytes(),
            grace_periods: periods.count(),
            expedited: periods.stats.expedited.load(Ordering::Relaxed),
            fallbacks: counters.fallbacks.load(Ordering::Relaxed),
            chained: counters.chained.load(Ordering::Relaxed),
            freed: counters.freed.load(Ordering::Relaxed),
            called: counters.called.load(Ordering::Relaxed),
            leaked: counters.leaked.load(Ordering::Relaxed),
            waits: counters.waits.load(Ordering::Relaxed),
            blocks: core.pool.blocks.load(Ordering::Relaxed),
            stalls: periods.stats.stalls.load(Ordering::Relaxed),
            grace_period_median: quantile(0.5),
            grace_period_p99: quantile(0.99),
        }
    }
}

/// Whether this thread is inside a section of the default domain.
fn reads() -> bool {
    // SAFETY: slots of the default domain live for ever.
    unsafe { reader::own_slot().as_ref() }.is_some_and(|slot| slot.reads())
}

fn assert_not_reading(core: &Core, what: &str) {
    let inside = ::core::ptr::eq(core, &DEFAULT) && reads();
    assert!(!inside, "rcu::{what} inside a read-side critical section waits for ever: drop the guard first");
}

fn assert_not_disposing(core: &Core, what: &str) {
    assert!(!core.is_disposing(), "rcu::{what} inside a deferred call waits for itself");
}

/// Waits for a grace period: until every section that was under way at the call has ended.
///
/// Some tens of microseconds when nobody reads; sleeps while it waits.
///
/// # Panics
/// If the thread is inside a section.
#[doc(alias = "synchronize_rcu")]
pub fn synchronize() {
    let core = default_domain();
    assert_not_reading(core, "synchronize");
    core.periods.wait(core.periods.snap(), false);
}

/// As [`synchronize`], without sleeping at first: sooner, for more of the processor's time.
///
/// # Panics
/// If the thread is inside a section.
#[doc(alias = "synchronize_rcu_expedited")]
pub fn synchronize_expedited() {
    let core = default_domain();
    assert_not_reading(core, "synchronize_expedited");
    core.periods.wait(core.periods.snap(), true);
}

/// Waits until everything that was deferred before the call has been freed or called.
///
/// # Panics
/// If the thread is inside a section, or inside a deferred call.
#[doc(alias = "rcu_barrier")]
#[doc(alias = "kvfree_rcu_barrier")]
pub fn barrier() {
    drain_as("barrier");
}

/// Frees everything that was deferred before the call, after an expedited grace period, and says what it did.
///
/// # Panics
/// If the thread is inside a section, or inside a deferred call.
pub fn drain() -> RcuReport {
    drain_as("drain")
}

fn drain_as(what: &str) -> RcuReport {
    let core = default_domain();
    assert_not_reading(core, what);
    assert_not_disposing(core, what);
    core.drain(&Heap)
}

/// Asks for a grace period and does not wait for it.
#[doc(alias = "start_poll_synchronize_rcu")]
pub fn start_poll() -> Cookie {
    let core = default_domain();
    core.announce();
    Cookie::new(cookie::CoreRef::Default)
}

/// Frees a block of the heap after a grace period: the kernel's `kvfree_rcu(ptr)`.
///
/// A push on this CPU's page of pointers, as cheap as a free; every 507th seals the page and takes another. May
/// lock, allocate and, at [`Backlog::high`], wait, unless called inside a section.
///
/// # Safety
/// - `ptr` is a block of this heap with this `layout`, unlinked: no section that begins from now on finds it.
/// - Nobody but readers in sections that are under way uses it any more, and nobody frees it otherwise.
/// - It needs no destructor.
#[doc(alias = "kvfree_rcu")]
#[doc(alias = "kfree_rcu_mightsleep")]
#[inline]
pub unsafe fn free(ptr: NonNull<u8>, layout: Layout) {
    if let Some(word) = block::entry(ptr, layout)
        && percpu::push_deferred(word)
    {
        return;
    }
    // SAFETY: the caller's obligation.
    unsafe { default_domain().free_slow(ptr, layout, &Heap, reads()) }
}

/// As [`free`], in any context in which nolock allocation is legal: never locks, allocates, waits or fails. The
/// kernel's `kvfree_rcu(ptr, head)`.
///
/// If this CPU's page is full, the object is chained through its head. The chain is worked off by the
/// reclaimer, which looks every half second at the latest once it runs; it starts with the first ordinary call
/// of this module that defers anything.
///
/// # Safety
/// As for [`free`]; and `head` lies in the object, is used for nothing else, and is written to by nobody else.
pub unsafe fn free_nolock(head: NonNull<RcuHead>, ptr: NonNull<u8>, layout: Layout) {
    // SAFETY: the caller's obligation.
    unsafe { DEFAULT.free_nolock(head, ptr, layout) }
}

/// Calls `func` with `head` after a grace period, from the reclaimer's thread or one that drains.
///
/// Never locks, allocates, waits or fails. A panic in `func` is contained.
///
/// # Safety
/// - `head` stays valid, and is used for nothing else, until `func` is called with it.
/// - It is sound to call `func` with it, once, from another thread.
#[doc(alias = "call_rcu")]
pub unsafe fn call(head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
    // SAFETY: the caller's obligation.
    unsafe { DEFAULT.call(head, func) }
}

/// Drops a box after a grace period. The caller has unlinked it, and readers may go on reading it until then.
///
/// Without a destructor to run, as cheap as [`free`]; with one, an allocation and a [`call`]. A panic in the
/// destructor is contained.
pub fn retire<T: Send + 'static>(value: Box<T>) {
    let core = default_domain();
    retire_on(core, value, |ptr, layout| {
        // SAFETY: `retire_on` passes a block of the heap whose box it has taken apart.
        unsafe { free(ptr, layout) }
    });
}

fn retire_on<T: Send + 'static>(core: &Core, value: Box<T>, free: impl FnOnce(NonNull<u8>, Layout)) {
    #[repr(C)]
    struct Retired<T> {
        head: RcuHead,
        value: Option<Box<T>>,
    }
    let layout = Layout::new::<T>();
    if layout.size() == 0 {
        return drop(value);
    }
    let ptr = NonNull::from(Box::leak(value)).cast::<u8>();
    // Boxes come from the global allocator, which need not be this heap.
    if !std::mem::needs_drop::<T>() && crate::slab::tag_at(ptr).is_some() {
        return free(ptr, layout);
    }
    // SAFETY: leaked above.
    let value = Some(unsafe { Box::from_raw(ptr.cast::<T>().as_ptr()) });
    let retired = Box::new(Retired { head: RcuHead::new(), value });
    let head = NonNull::from(Box::leak(retired)).cast::<RcuHead>();
    // SAFETY: the head is the first field of a leaked box that nobody else knows; `T: Send` may be dropped by
    // another thread. The box goes first, so that a destructor that panics leaks nothing.
    unsafe {
        core.call(head, |head| {
            let value = Box::from_raw(head.cast::<Retired<T>>().as_ptr()).value.take();
            drop(value);
        });
    }
    core.arm();
    core.announce();
}

/// Takes one step of the reclaimer's work, without waiting, and returns how many objects it freed: for programs
/// that would rather not have a thread (see [`set_reclaimer`]).
pub fn poll_once() -> usize {
    match default_domain().poll(&Heap, Collect::Aged) {
        Progress::Freed(n) => n,
        _ => 0,
    }
}

/// Whether threads may be started that work off what was deferred. Without, whoever defers at the high mark
/// helps, and the program calls [`poll_once`]. One that runs already goes on.
pub fn set_reclaimer(allowed: bool) {
    reclaimer::allow(allowed);
}

/// How much may wait.
pub fn watermarks() -> Backlog {
    DEFAULT.backlog()
}

/// Sets how much may wait. Takes effect with the next page that is sealed.
///
/// # Errors
/// If `low` is above `high`.
pub fn set_watermarks(backlog: Backlog) -> Result<(), ConfigError> {
    set_backlog(&DEFAULT, backlog)
}

fn set_backlog(core: &Core, backlog: Backlog) -> Result<(), ConfigError> {
    if backlog.low > backlog.high {
        return Err(ConfigError::new("rcu watermarks: low is above high"));
    }
    core.set_backlog(backlog);
    Ok(())
}

/// After how long a reader that holds a grace period up is reported on standard error, with its thread's id
/// and name; 10 s unless set.
pub fn set_stall_timeout(timeout: Duration) {
    DEFAULT.periods.set_stall_timeout(timeout);
}

/// How the default domain stands.
pub fn stats() -> RcuStats {
    RcuStats::of(default_domain())
}
