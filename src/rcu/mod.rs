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
//! [`retire`] who may wait, waits and helps. A page holds up to 507 pointers, of blocks of 4 KiB at most, which
//! makes P = 507 * 4096 bytes, and waits as a whole. With T threads that defer at the same time, L the largest
//! block among those that a page does not take, and M the larger of P and L,
//!
//! ```text
//! pending_bytes  <=  high + CPUs * P + T * M
//! ```
//!
//! since each thread finds out after it has added one page or block, and part-filled pages are sealed once while
//! a batch waits, whatever waits already. Pages that fill anew meanwhile hold `(CPUs + 1) * P` at most, so no
//! more than
//!
//! ```text
//! high + (2 * CPUs + 1) * P + T * M
//! ```
//!
//! bytes are ever held back, and a page of 4 KiB for every 507 pointers. (In a [`Domain`] of one's own, which
//! fills one page at a time, put 1 for CPUs.) Not bound by it are frees from inside a section, which cannot wait
//! for its end, from deferred calls, and from nolock contexts, which cannot wait.
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
mod epoch;
mod fork;
mod grace;
mod head;
mod linked;
mod reader;
mod reclaimer;
mod source;
mod stats;
mod work;

pub use cell::RcuCell;
pub use cookie::Cookie;
pub use domain::{Domain, DomainGuard};
pub use head::RcuHead;
pub use reader::{ReadGuard, read_lock};
pub use source::{BlockSource, Heap};
pub use stats::{Backlog, RcuReport, RcuStats};

use ::core::alloc::Layout;
use ::core::ptr::NonNull;
use std::sync::Once;
use std::time::Duration;

use self::core::Core;
use self::work::{Collect, Progress};
use crate::{ConfigError, percpu};

static DEFAULT: Core = Core::new(true);

/// The default domain, its prerequisites in place.
fn default_domain() -> &'static Core {
    static READY: Once = Once::new();
    READY.call_once(|| {
        crate::heap::ensure_up(&crate::Config::new());
        reader::init();
        reader::init_exit();
        fork::init();
    });
    &DEFAULT
}

/// Whether this thread is inside a section of the default domain.
fn reads() -> bool {
    // SAFETY: slots of the default domain live for ever.
    unsafe { reader::own_slot().as_ref() }.is_some_and(|slot| slot.state.reads())
}

fn assert_outside(inside: bool, what: &str) {
    assert!(!inside, "{what} inside a read-side critical section waits for ever: drop the guard first");
}

fn assert_not_disposing(core: &Core, what: &str) {
    assert!(!core.is_disposing(), "{what} inside a deferred call waits for itself");
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
    assert_outside(reads(), "rcu::synchronize");
    core.periods.wait(core.periods.snap(), false);
}

/// As [`synchronize`], without sleeping at first: sooner, for more of the processor's time.
///
/// # Panics
/// If the thread is inside a section.
#[doc(alias = "synchronize_rcu_expedited")]
pub fn synchronize_expedited() {
    let core = default_domain();
    assert_outside(reads(), "rcu::synchronize_expedited");
    core.periods.wait(core.periods.snap(), true);
}

/// Waits until everything that was deferred before the call has been freed or called.
///
/// # Panics
/// If the thread is inside a section, or inside a deferred call.
#[doc(alias = "rcu_barrier")]
#[doc(alias = "kvfree_rcu_barrier")]
pub fn barrier() {
    drain_as("rcu::barrier");
}

/// Frees everything that was deferred before the call, after an expedited grace period, and says what it did.
///
/// # Panics
/// If the thread is inside a section, or inside a deferred call.
pub fn drain() -> RcuReport {
    drain_as("rcu::drain")
}

fn drain_as(what: &str) -> RcuReport {
    let core = default_domain();
    assert_outside(reads(), what);
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
    unsafe { DEFAULT.call_nolock(head, func) }
}

/// Drops a box after a grace period. The caller has unlinked it, and readers may go on reading it until then.
///
/// Without a destructor to run, about as cheap as [`free`]; with one, an allocation and a [`call`]. A panic in the
/// destructor is contained. What counts against the [`Backlog`] is the box, not what the value owns besides.
#[inline]
pub fn retire<T: Send + 'static>(value: Box<T>) {
    let value = NonNull::from(Box::leak(value));
    if linked::is_plain(value) {
        // SAFETY: a block of the heap that nobody else frees, unlinked as the caller says.
        unsafe { free(value.cast(), Layout::new::<T>()) }
    } else {
        // SAFETY: leaked just now.
        linked::retire_box(default_domain(), unsafe { Box::from_raw(value.as_ptr()) }, &Heap, reads());
    }
}

/// Takes one step of the reclaimer's work, without waiting, and returns how many objects it freed: for programs
/// that would rather not have a thread (see [`set_reclaimer`]).
pub fn poll_once() -> usize {
    poll_on(default_domain(), &Heap)
}

fn poll_on(core: &Core, source: &dyn BlockSource) -> usize {
    let progress = core.poll(source, Collect::Aged);
    core.drive();
    match progress {
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
