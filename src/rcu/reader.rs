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
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence, fence};

use super::grace::GracePeriods;
use crate::sys::{self, ThreadExit};

/// Bits of a slot that count nesting.
const NEST_BITS: u32 = 16;
const NEST_MASK: u64 = (1 << NEST_BITS) - 1;

/// Where a thread announces its sections. Slots are never freed while their domain lives; a thread that ends
/// leaves its slot to another.
#[repr(align(64))]
pub(super) struct Slot {
    /// `(grace period << 16) + depth`; depth 0 means that the thread does not read. Written by its thread alone.
    state: AtomicU64,
    taken: AtomicBool,
    pub(super) thread: AtomicU32,
    pub(super) next: AtomicPtr<Slot>,
}

/// Whether readers go without a fence. Relaxed: set before the first slot is handed out, and a thread gets
/// its slot before it reads.
static FENCELESS: AtomicBool = AtomicBool::new(false);

/// Registers the process for the barrier, once.
pub(super) fn init() {
    FENCELESS.store(sys::register_process_fence(), Ordering::Relaxed);
}

/// The waiter's side of the readers' missing fence.
pub(super) fn barrier_on_all() {
    // Sequentially consistent: orders the caller's own stores and loads around the barrier.
    fence(Ordering::SeqCst);
    if FENCELESS.load(Ordering::Relaxed) {
        sys::fence_process();
    }
    fence(Ordering::SeqCst);
}

impl Slot {
    fn new() -> Slot {
        Slot {
            state: AtomicU64::new(0),
            taken: AtomicBool::new(true),
            thread: AtomicU32::new(sys::thread_id()),
            next: AtomicPtr::new(null_mut()),
        }
    }

    /// Enters a section.
    #[inline(always)]
    pub(super) fn enter(&self, periods: &GracePeriods) {
        // Relaxed: the slot is this thread's own.
        let state = self.state.load(Ordering::Relaxed);
        if state & NEST_MASK == 0 {
            self.state.store((periods.started() << NEST_BITS) + 1, Ordering::Relaxed);
            if FENCELESS.load(Ordering::Relaxed) {
                // Partner: `barrier_on_all`.
                compiler_fence(Ordering::SeqCst);
            } else {
                // Partner: the fences in `barrier_on_all`.
                fence(Ordering::SeqCst);
            }
        } else {
            self.state.store(state + 1, Ordering::Relaxed);
        }
    }

    /// Leaves a section.
    #[inline(always)]
    pub(super) fn leave(&self) {
        let state = self.state.load(Ordering::Relaxed);
        let left = if state & NEST_MASK == 1 { 0 } else { state - 1 };
        // Release, paired with the acquire in `is_past`: what was read has been read before the slot says so.
        self.state.store(left, Ordering::Release);
    }

    /// Whether the thread is inside a section.
    pub(super) fn reads(&self) -> bool {
        self.state.load(Ordering::Relaxed) & NEST_MASK != 0
    }

    /// Whether the thread is not inside a section that began before grace period `number`.
    pub(super) fn is_past(&self, number: u64) -> bool {
        // Acquire, paired with the release in `leave`.
        let state = self.state.load(Ordering::Acquire);
        state & NEST_MASK == 0 || state >> NEST_BITS >= number
    }
}

/// The slots of a domain.
pub(super) struct Slots {
    first: AtomicPtr<Slot>,
}

impl Slots {
    pub(super) const fn new() -> Slots {
        Slots { first: AtomicPtr::new(null_mut()) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        // Acquire, paired with the release in `take`. SAFETY: slots live as long as their domain.
        let first = unsafe { self.first.load(Ordering::Acquire).as_ref() };
        // SAFETY: as above; a link is written before its slot is published.
        core::iter::successors(first, |slot| unsafe { slot.next.load(Ordering::Relaxed).as_ref() })
    }

    /// A slot for the calling thread: one that another thread left, or a new one.
    pub(super) fn take(&self) -> &Slot {
        let left = self.iter().find(|slot| {
            // Acquire, paired with the release in `give_up`.
            slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        });
        if let Some(slot) = left {
            slot.thread.store(sys::thread_id(), Ordering::Relaxed);
            return slot;
        }
        let slot = Box::into_raw(Box::new(Slot::new()));
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            // SAFETY: just made; published by the exchange below.
            unsafe { (*slot).next.store(first, Ordering::Relaxed) };
            // Release, paired with the acquire in `iter`.
            match self.first.compare_exchange_weak(first, slot, Ordering::Release, Ordering::Relaxed) {
                // SAFETY: slots live as long as their domain.
                Ok(_) => return unsafe { &*slot },
                Err(now) => first = now,
            }
        }
    }

    /// In the child of a `fork`, whose only thread has `own`: the others' threads are gone.
    pub(super) fn forget_others(&self, own: *const Slot) {
        for slot in self.iter().filter(|slot| !core::ptr::eq(*slot, own)) {
            slot.state.store(0, Ordering::Relaxed);
            slot.taken.store(false, Ordering::Release);
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let mut slot = *self.first.get_mut();
        while !slot.is_null() {
            // SAFETY: made by `take`; a domain is dropped when nobody reads in it any more.
            let boxed = unsafe { Box::from_raw(slot) };
            slot = boxed.next.load(Ordering::Relaxed);
        }
    }
}

impl Slot {
    /// The thread ends: another may have the slot.
    fn give_up(&self) {
        self.state.store(0, Ordering::Release);
        // Release, paired with the acquire in `Slots::take`.
        self.taken.store(false, Ordering::Release);
    }
}

std::thread_local! {
    /// This thread's slot in the default domain.
    static SLOT: Cell<*const Slot> = const { Cell::new(null()) };
}

static EXIT: ThreadExit = ThreadExit::new();

/// Called once, before the first slot is taken.
pub(super) fn init_exit() {
    EXIT.create(thread_exit);
}

unsafe extern "C" fn thread_exit(slot: *mut c_void) {
    SLOT.set(null());
    // SAFETY: armed with a slot of the default domain, which lives for ever.
    unsafe { (*slot.cast::<Slot>()).give_up() };
}

/// This thread's slot in the default domain, if it has one.
pub(super) fn own_slot() -> *const Slot {
    SLOT.get()
}

#[cold]
fn register() -> &'static Slot {
    let slot = super::default_domain().periods.slots.take();
    SLOT.set(slot);
    EXIT.arm(slot as *const Slot as *mut c_void);
    slot
}

/// A read-side critical section of the default domain: what was reachable when it began stays valid until it
/// is dropped.
///
/// Belongs to the thread that made it (`!Send`); sections nest.
#[must_use = "the section ends when the guard is dropped"]
#[derive(Debug)]
pub struct ReadGuard {
    slot: &'static Slot,
    _not_send: PhantomData<*mut ()>,
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Slot({:#x})", self.state.load(Ordering::Relaxed))
    }
}

/// Begins a read-side critical section of the default domain.
///
/// Two loads and a store: about a nanosecond together with its end, and neither a fence nor an atomic
/// read-modify-write (one fence where the kernel has no `membarrier`). May be used in a signal handler once the
/// thread has called it outside of one; the first call of a thread allocates.
#[doc(alias = "rcu_read_lock")]
#[inline(always)]
pub fn read_lock() -> ReadGuard {
    // SAFETY: slots of the default domain live for ever.
    let slot = match unsafe { SLOT.get().as_ref() } {
        Some(slot) => slot,
        None => register(),
    };
    slot.enter(&super::DEFAULT.periods);
    ReadGuard { slot, _not_send: PhantomData }
}

impl Drop for ReadGuard {
    #[inline(always)]
    fn drop(&mut self) {
        self.slot.leave();
    }
}
