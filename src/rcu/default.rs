//! The default domain: that of the module's functions.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::cookie::{Cookie, CoreRef};
use super::core::{Core, assert_outside};
use super::entry::entry;
#[cfg(feature = "profile")]
use super::entry::note_deferred;
use super::linked::{is_plain, retire_box};
use super::work::{Collect, Progress};
use super::{Backlog, Heap, RcuHead, RcuReport, RcuStats, fork, grace, reader, reclaimer};
use crate::control::{self, Deferred};
use crate::{ConfigError, heap, percpu};

pub(super) static DEFAULT: Core = Core::new(true);

/// The process in which a thread puts the prerequisites in place, 0 if there was none so far, or that they are.
static READY: AtomicU32 = AtomicU32::new(0);
const IN_PLACE: u32 = u32::MAX;

/// The default domain, its prerequisites in place.
pub(super) fn default_domain() -> &'static Core {
    // Acquire, paired with the release in `make_ready`: what that has set is seen.
    if READY.load(Ordering::Acquire) != IN_PLACE {
        make_ready();
    }
    &DEFAULT
}

/// Puts the prerequisites in place, or waits for the thread that does.
///
/// The child of a `fork` may lack that thread: it finds the number of another process, and does all of it itself.
#[cold]
fn make_ready() {
    heap::ensure_up(&crate::Config::new());
    let process = std::process::id();
    loop {
        // Acquire: as in `default_domain`.
        match READY.load(Ordering::Acquire) {
            IN_PLACE => return,
            // Relaxed: looked at again above.
            found if found == process => _ = heap::wait_while(|| READY.load(Ordering::Relaxed) == process),
            found => {
                // Relaxed: what is stored says no more than who is at it.
                if READY.compare_exchange(found, process, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    fork::join(|| {
                        reader::init();
                        reader::init_exit();
                        control::set_settle(settle);
                        READY.store(IN_PLACE, Ordering::Release);
                    });
                }
            }
        }
    }
}

/// With `act`, has what was deferred freed, for a tenth of a second at most; what is left then waits for a reader, or for
/// the caller itself.
fn settle(act: bool) -> Deferred {
    let began = Instant::now();
    let mut turn = 0;
    while act && DEFAULT.pending_pointers() > 0 && !reads() && began.elapsed() < Duration::from_millis(100) {
        if !matches!(DEFAULT.poll(&Heap, Collect::All), Progress::Freed(_)) {
            grace::pause(turn, true);
            turn += 1;
        }
    }
    // In this order: a page that is sealed meanwhile is left out rather than counted twice.
    let bytes = DEFAULT.pending_bytes() + DEFAULT.filling_bytes();
    Deferred { objects: DEFAULT.pending_pointers(), bytes, pages: DEFAULT.pages() }
}

/// Whether this thread is inside a section of the default domain.
pub(super) fn reads() -> bool {
    // SAFETY: slots of the default domain live for ever.
    unsafe { reader::own_slot().as_ref() }.is_some_and(|slot| slot.state.reads())
}

/// Waits for a grace period: until every section that was under way at the call has ended.
///
/// Some tens of microseconds when nobody reads; sleeps while it waits.
///
/// ```
/// use std::sync::atomic::{AtomicPtr, Ordering};
///
/// static SHARED: AtomicPtr<u32> = AtomicPtr::new(std::ptr::null_mut());
/// SHARED.store(Box::into_raw(Box::new(7)), Ordering::Release);
///
/// let unlinked = SHARED.swap(std::ptr::null_mut(), Ordering::AcqRel);
/// pcpalloc::rcu::synchronize();
/// // SAFETY: from a box, unlinked, and whoever may have seen it has left its section.
/// drop(unsafe { Box::from_raw(unlinked) });
/// ```
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
/// ```
/// pcpalloc::rcu::synchronize_expedited();
/// ```
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
/// An expedited grace period, and the frees and calls themselves, on this thread.
///
/// ```
/// use pcpalloc::rcu;
///
/// rcu::retire(Box::new([0u8; 64]));
/// rcu::barrier();
/// assert_eq!(rcu::stats().pending_pointers, 0);
/// ```
///
/// # Panics
/// If the thread is inside a section, or inside a deferred call.
#[doc(alias = "rcu_barrier")]
#[doc(alias = "kvfree_rcu_barrier")]
pub fn barrier() {
    drain_as("rcu::barrier");
}

/// Frees everything that was deferred before the call, after an expedited grace period, and says what it did. (What the
/// reclaimer freed meanwhile is not in the report.)
///
/// ```
/// let report = pcpalloc::rcu::drain();
/// println!("{} objects, {} bytes", report.freed, report.freed_bytes);
/// ```
///
/// # Panics
/// If the thread is inside a section, or inside a deferred call.
pub fn drain() -> RcuReport {
    drain_as("rcu::drain")
}

fn drain_as(what: &str) -> RcuReport {
    let core = default_domain();
    assert_outside(reads(), what);
    core.assert_not_disposing(what);
    core.drain(&Heap)
}

/// Asks for a grace period and does not wait for it: begins one with a `membarrier`, unless one is under way.
///
/// ```
/// let cookie = pcpalloc::rcu::start_poll();
/// while !cookie.is_done() {
///     std::thread::yield_now();
/// }
/// ```
#[doc(alias = "get_state_synchronize_rcu")]
#[doc(alias = "start_poll_synchronize_rcu")]
pub fn start_poll() -> Cookie {
    let core = default_domain();
    core.announce();
    Cookie::new(CoreRef::Default)
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
///
/// ```
/// use pcpalloc::{PcpAlloc, rcu};
/// use std::alloc::{GlobalAlloc, Layout};
/// use std::ptr::NonNull;
///
/// let layout = Layout::new::<[u64; 8]>();
/// // SAFETY: the layout's size is not zero; the block was never reachable by anybody else.
/// unsafe {
///     let block = NonNull::new(PcpAlloc::new().alloc(layout)).expect("memory");
///     rcu::free(block, layout);
/// }
/// # rcu::barrier();
/// ```
#[doc(alias = "kvfree_rcu")]
#[doc(alias = "kfree_rcu_mightsleep")]
#[inline]
pub unsafe fn free(ptr: NonNull<u8>, layout: Layout) {
    if let Some(word) = entry(ptr, layout)
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
///
/// [`guide::rcu`](crate::guide::rcu) has a program.
#[doc(alias = "kvfree_rcu")]
#[doc(alias = "kfree_rcu")]
pub unsafe fn free_nolock(head: NonNull<RcuHead>, ptr: NonNull<u8>, layout: Layout) {
    // SAFETY: the caller's obligation.
    unsafe { DEFAULT.free_nolock(head, ptr, layout) }
}

/// Calls `func` with `head` after a grace period: from the reclaimer's thread, which starts as [`free_nolock`] says; from one
/// that drains or polls; or from any that defers something and helps, at [`Backlog::high`] or where no page is at hand.
///
/// Never locks, allocates, waits or fails. A panic in `func` is contained.
///
/// # Safety
/// - `head` stays valid, and is used for nothing else, until `func` is called with it.
/// - It is sound to call `func` with it, once, from another thread.
///
/// ```
/// use pcpalloc::rcu::{self, RcuHead};
/// use std::ptr::NonNull;
///
/// #[repr(C)]
/// struct Entry { head: RcuHead, name: String }
///
/// unsafe fn reclaim(head: NonNull<RcuHead>) {
///     // SAFETY: the head is the first field of a boxed `Entry`, and this is called once.
///     drop(unsafe { Box::from_raw(head.cast::<Entry>().as_ptr()) });
/// }
///
/// let entry = NonNull::from(Box::leak(Box::new(Entry { head: RcuHead::new(), name: "eth0".into() })));
/// // SAFETY: nobody else has the entry, and `reclaim` may run anywhere.
/// unsafe { rcu::call(entry.cast(), reclaim) };
/// rcu::barrier();
/// ```
#[doc(alias = "call_rcu")]
pub unsafe fn call(head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
    // SAFETY: the caller's obligation.
    unsafe { DEFAULT.call_nolock(head, func) }
}

/// Drops a box after a grace period. The caller has unlinked it, and readers may go on reading it until then.
///
/// Without a destructor to run, about as cheap as [`free`]; with one, an allocation and a [`call`]. A panic in the
/// destructor is contained. What counts against the [`Backlog`] is the box, not what the value owns besides. May wait
/// as [`free`] does, and then run destructors of other values, as [`call`] says: what they lock must not be held here.
///
/// Boxes may come from any global allocator. One that is in a block of this heap as its layout asks for is given back to
/// the heap, past an allocator that only counts, say, on its way to it; all others to the global allocator.
///
/// ```
/// use pcpalloc::rcu;
///
/// rcu::retire(Box::new(String::from("unlinked before")));
/// # rcu::barrier();
/// ```
#[doc(alias = "defer_destroy")]
#[doc(alias = "defer")]
#[inline]
pub fn retire<T: Send + 'static>(value: Box<T>) {
    let value = NonNull::from(Box::leak(value));
    if is_plain(value) {
        // SAFETY: a block of the heap that nobody else frees, unlinked as the caller says.
        unsafe { free(value.cast(), Layout::new::<T>()) }
    } else {
        // SAFETY: leaked just now.
        retire_box(default_domain(), unsafe { Box::from_raw(value.as_ptr()) }, &Heap, reads());
    }
}

/// Tells whoever observes the heap of what waits in pages that still fill.
#[cfg(feature = "profile")]
pub(crate) fn observe_waiting() {
    percpu::each_deferred(note_deferred);
}

/// Takes one step of the reclaimer's work, without waiting, and returns how many objects it freed: for programs
/// that would rather not have a thread (see [`set_reclaimer`]).
///
/// ```
/// use pcpalloc::rcu;
///
/// rcu::set_reclaimer(false);
/// rcu::retire(Box::new(1));
/// while rcu::poll_once() == 0 {} // as part of an event loop
/// ```
pub fn poll_once() -> usize {
    default_domain().poll_once(&Heap)
}

/// Whether threads may be started that work off what was deferred. Without, whoever defers at the high mark
/// helps, and the program calls [`poll_once`]. One that runs already goes on. Allowed unless set.
///
/// The default domain's is called `pcp-rcu`, those of other domains `pcp-rcu-domain`; they have every signal blocked.
pub fn set_reclaimer(allowed: bool) {
    reclaimer::allow(allowed);
}

/// How much may wait: 4 MiB and 32 MiB, unless set.
pub fn watermarks() -> Backlog {
    DEFAULT.backlog()
}

/// Sets how much may wait. Takes effect with the next page that is sealed.
///
/// ```
/// use pcpalloc::rcu::{self, Backlog};
///
/// rcu::set_watermarks(Backlog { low: 1 << 20, high: 8 << 20 })?;
/// assert_eq!(rcu::watermarks().high, 8 << 20);
/// assert!(rcu::set_watermarks(Backlog { low: 2, high: 1 }).is_err());
/// # Ok::<(), pcpalloc::ConfigError>(())
/// ```
///
/// # Errors
/// If `low` is above `high`.
pub fn set_watermarks(backlog: Backlog) -> Result<(), ConfigError> {
    DEFAULT.set_backlog(backlog)
}

/// After how long a reader that holds a grace period up is reported on standard error, with its thread's id
/// and name; 10 s unless set.
///
/// ```
/// pcpalloc::rcu::set_stall_timeout(std::time::Duration::from_secs(60));
/// ```
#[doc(alias = "rcu_cpu_stall_timeout")]
pub fn set_stall_timeout(timeout: Duration) {
    DEFAULT.periods.set_stall_timeout(timeout);
}

/// How the default domain stands. Takes a lock of the domain, and looks at every CPU's page.
///
/// ```
/// let stats = pcpalloc::rcu::stats();
/// println!("{} bytes wait; half of all grace periods took up to {:?}", stats.pending_bytes, stats.grace_period_median);
/// ```
pub fn stats() -> RcuStats {
    default_domain().stats()
}
