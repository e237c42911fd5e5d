//! Read-side critical sections.
//!
//! A thread announces that it reads by storing the number of the grace period it came in, and its nesting
//! depth, in a slot of its own; it needs no fence, since whoever waits for readers issues a barrier on every
//! processor on its behalf (`sys::fence_process`):
//!
//! ```text
//! read_lock:    slot = (started << 16) + 1        start of grace period n:  started = n
//!               compiler fence                                              barrier on all processors
//!               …reads…                                                     wait until each slot is 0 mod 2^16
//! read_unlock:  slot = 0 (release)                                          or was stored in n or later
//! ```
//!
//! Either the store to the slot comes before the barrier on its processor, and the waiter sees it; or the
//! reads come after the barrier, and see what was unlinked before the grace period began. Where there is no
//! such barrier, readers pay for a fence of their own. (M. Desnoyers et al., "User-Level Implementations of
//! Read-Copy Update", 2012, with a 64-bit count of grace periods in place of two phases.)

use core::cell::Cell;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::null;
use core::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

use super::default::{DEFAULT, default_domain};
use super::epoch::{Periods, Slot};
use crate::sys::{self, ThreadExit};

/// Whether readers go without a fence. Relaxed: set before the first slot is handed out, and a thread gets
/// its slot before it reads.
static FENCELESS: AtomicBool = AtomicBool::new(false);

/// Registers the process for the barrier, once, if the settings allow it.
pub(super) fn init() {
    FENCELESS.store(crate::percpu::may_fence() && sys::register_process_fence(), Ordering::Relaxed);
}

/// The waiter's side of the readers' missing fence; false if the kernel refused it.
pub(super) fn barrier_on_all() -> bool {
    // Sequentially consistent: orders the caller's own stores and loads around the barrier.
    fence(Ordering::SeqCst);
    let done = !FENCELESS.load(Ordering::Relaxed) || sys::fence_process();
    fence(Ordering::SeqCst);
    done
}

/// The readers' side.
#[inline(always)]
fn barrier_of_reader() {
    if FENCELESS.load(Ordering::Relaxed) {
        // Partner: `barrier_on_all`.
        compiler_fence(Ordering::SeqCst);
    } else {
        // Partner: the fences in `barrier_on_all`.
        fence(Ordering::SeqCst);
    }
}

/// Enters a section.
#[inline(always)]
pub(super) fn enter(slot: &Slot, periods: &Periods) {
    if !slot.state.enter(periods, barrier_of_reader) {
        nested_too_deep();
    }
}

#[cold]
fn nested_too_deep() -> ! {
    panic!("rcu: 65535 read-side critical sections inside each other: guards are being leaked");
}

std::thread_local! {
    /// This thread's slot in the default domain.
    static SLOT: Cell<*const Slot> = const { Cell::new(null()) };
    /// This thread's id; 0 until it is asked for.
    static THREAD: Cell<u32> = const { Cell::new(0) };
}

static EXIT: ThreadExit = ThreadExit::new();

/// Called once, before the first slot is taken.
pub(super) fn init_exit() {
    EXIT.create(thread_exit);
}

unsafe extern "C" fn thread_exit(slot: *mut c_void) {
    // SAFETY: armed with a slot of the default domain, which lives for ever.
    let own = unsafe { &*slot.cast::<Slot>() };
    if own.state.reads() {
        // A guard is left. Another destructor may be going to drop it: looks again in the next round, if there is one. A
        // guard that nobody drops has its section go on, in a slot that nobody else gets.
        EXIT.arm(slot);
        return;
    }
    SLOT.set(null());
    own.give_up();
}

/// This thread's id, as the kernel counts them.
#[inline]
pub(super) fn thread_id() -> u32 {
    match THREAD.get() {
        0 => renew_thread_id(),
        id => id,
    }
}

/// Asks for this thread's id anew: it is another one in the child of a `fork`.
#[cold]
pub(super) fn renew_thread_id() -> u32 {
    THREAD.set(sys::thread_id());
    THREAD.get()
}

/// This thread's slot in the default domain, if it has one.
pub(super) fn own_slot() -> *const Slot {
    SLOT.get()
}

/// This thread's slot in the default domain, which it gets if it has none.
#[inline(always)]
pub(super) fn slot_here() -> &'static Slot {
    // SAFETY: slots of the default domain live for ever.
    match unsafe { SLOT.get().as_ref() } {
        Some(slot) => slot,
        None => register(),
    }
}

#[cold]
fn register() -> &'static Slot {
    let slot = default_domain().periods.slots.take(thread_id());
    SLOT.set(slot);
    EXIT.arm(slot as *const Slot as *mut c_void);
    slot
}

/// A read-side critical section of the default domain: what was reachable when it began stays valid until it
/// is dropped.
///
/// Belongs to the thread that made it (`!Send`); sections nest.
///
/// A guard that is leaked ([`forget`](core::mem::forget), [`Box::leak`]) makes a section without an end, even when its
/// thread has ended: what it protects stays valid for good, so no grace period ends any more, nothing that is deferred is
/// freed, and whoever waits for readers waits for ever. (In the child of a `fork` only the sections of the thread that
/// forked are left, leaked or not.)
#[doc(alias = "rcu_read_unlock")]
#[must_use = "the section ends when the guard is dropped"]
#[derive(Debug)]
pub struct ReadGuard {
    slot: &'static Slot,
    _not_send: PhantomData<*mut ()>,
}

/// Begins a read-side critical section of the default domain.
///
/// Two loads and a store: about a nanosecond together with its end, and neither a fence nor an atomic
/// read-modify-write (one fence where the kernel has no `membarrier`). May be used in a signal handler once the
/// thread has called it outside of one; the first call of a thread allocates. A guard that is never dropped holds every
/// grace period up for good ([`ReadGuard`]).
///
/// ```
/// use pcpalloc::rcu::{self, RcuCell};
///
/// let cell = RcuCell::new(7);
/// let section = rcu::read_lock();
/// assert_eq!(*cell.read(&section), 7);
/// ```
///
/// # Panics
/// If the thread is inside 65535 sections already.
#[doc(alias = "rcu_read_lock")]
#[doc(alias = "pin")]
#[inline(always)]
pub fn read_lock() -> ReadGuard {
    let slot = slot_here();
    enter(slot, &DEFAULT.periods.numbers);
    ReadGuard { slot, _not_send: PhantomData }
}

impl Drop for ReadGuard {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.state.leave();
    }
}
