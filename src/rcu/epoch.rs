//! The arithmetic of sections and grace periods, on atomics that a model can check (`model.rs`).
//!
//! What a reader's barrier and a waiter's barrier are made of is the caller's affair (`reader.rs`); here is what
//! is stored and compared, and in which order.

use core::ptr::null_mut;

use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Bits of a state that count nesting.
const NEST_BITS: u32 = 16;
const NEST_MASK: u64 = (1 << NEST_BITS) - 1;

/// What a thread announces: `(grace period << 16) + depth`; depth 0 means that it does not read. Written by its
/// thread alone, whose it is until it is given up and not read in any more, and by signal handlers on it, which leave it
/// as they found it.
///
/// Every store is a release, paired with the acquire in [`State::is_past`]: whatever the thread read in sections
/// that the value says are over, it has read before. (On x86-64 a release costs nothing.)
#[derive(Debug)]
pub(crate) struct State(AtomicU64);

impl State {
    pub(crate) fn new() -> State {
        State(AtomicU64::new(0))
    }

    /// Enters a section; `barrier` keeps the section's reads behind the announcement. False if sections nest
    /// deeper than can be counted: nothing was entered.
    #[inline(always)]
    #[must_use]
    pub(crate) fn enter(&self, periods: &Periods, barrier: impl FnOnce()) -> bool {
        // Relaxed: the thread's own.
        let state = self.0.load(Ordering::Relaxed);
        if state & NEST_MASK == 0 {
            self.0.store((periods.started() << NEST_BITS) + 1, Ordering::Release);
            barrier();
        } else {
            if state & NEST_MASK == NEST_MASK {
                return false;
            }
            self.0.store(state + 1, Ordering::Release);
        }
        true
    }

    /// Leaves a section.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        let state = self.0.load(Ordering::Relaxed);
        let left = if state & NEST_MASK == 1 { 0 } else { state - 1 };
        self.0.store(left, Ordering::Release);
    }

    /// Whether the thread is inside a section.
    pub(crate) fn reads(&self) -> bool {
        // Acquire, paired with the release in `leave`: what another thread has read here it has read before whatever this
        // one announces, should it take the slot over.
        self.0.load(Ordering::Acquire) & NEST_MASK != 0
    }

    /// Whether the thread is not inside a section that began before grace period `number`.
    pub(crate) fn is_past(&self, number: u64) -> bool {
        let state = self.0.load(Ordering::Acquire);
        state & NEST_MASK == 0 || state >> NEST_BITS >= number
    }

    /// The thread does not read any more.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Grace periods are numbered from 2 and follow one another; who calls [`Periods::begin`] and [`Periods::end`]
/// sees to it that they alternate.
#[derive(Debug)]
pub(crate) struct Periods {
    started: AtomicU64,
    completed: AtomicU64,
}

impl Periods {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Periods {
        Periods { started: AtomicU64::new(1), completed: AtomicU64::new(1) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Periods {
        Periods { started: AtomicU64::new(1), completed: AtomicU64::new(1) }
    }

    /// The number of the latest grace period that began.
    #[inline(always)]
    fn started(&self) -> u64 {
        // Acquire, paired with the release in `begin`: a reader that comes in under number n sees what was
        // unlinked before n began.
        self.started.load(Ordering::Acquire)
    }

    /// The number of the latest grace period that ended.
    pub(crate) fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// The grace period to wait for so that everybody who may see what the caller has unlinked is gone.
    pub(crate) fn snap(&self) -> u64 {
        // A read-modify-write that changes nothing: the one in `begin` of the number returned continues its
        // release sequence, so what the caller unlinked comes before that grace period. A load would order the
        // caller before `begin` in time and yet promise nothing to a reader that comes in under its number.
        self.started.fetch_add(0, Ordering::AcqRel) + 1
    }

    pub(crate) fn is_done(&self, number: u64) -> bool {
        // Acquire, paired with the release in `end`: readers were done before.
        self.completed.load(Ordering::Acquire) >= number
    }

    /// Begins a grace period; `barrier` is the waiter's side of the readers'. Returns its number.
    pub(crate) fn begin(&self, barrier: impl FnOnce()) -> u64 {
        // Acquire, paired with the release in `snap`, and release, paired with the acquire in `started`.
        let number = self.started.fetch_add(1, Ordering::AcqRel) + 1;
        barrier();
        number
    }

    /// The number of the grace period under way, for whoever began it or took over.
    pub(crate) fn current(&self) -> u64 {
        // Acquire: as in `begin`, whose place this takes.
        self.started.load(Ordering::Acquire)
    }

    /// Ends it. All readers have been seen past it.
    pub(crate) fn end(&self, number: u64) {
        // Release, paired with the acquire in `is_done`.
        self.completed.store(number, Ordering::Release);
    }
}

/// Where a thread announces its sections. Slots are never freed while their domain lives; a thread that ends
/// leaves its slot to another.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Slot {
    pub(crate) state: State,
    taken: AtomicBool,
    /// Whose it is. Relaxed: for reports, and to tell threads apart that had a number one after the other (`by_thread.rs`).
    pub(crate) thread: AtomicU32,
    /// What no other slot of the domain has: counted from 0.
    pub(crate) number: u32,
    next: AtomicPtr<Slot>,
}

impl Slot {
    /// The thread begins no section here any more: another may have the slot, as soon as it is not read in.
    pub(crate) fn give_up(&self) {
        // Release, paired with the acquire in `Slots::take`.
        self.taken.store(false, Ordering::Release);
    }
}

/// The slots of a domain.
pub(crate) struct Slots {
    first: AtomicPtr<Slot>,
    /// How many there are. Relaxed: each number is drawn once.
    made: AtomicU32,
}

impl Slots {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Slots {
        Slots { first: AtomicPtr::new(null_mut()), made: AtomicU32::new(0) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Slots {
        Slots { first: AtomicPtr::new(null_mut()), made: AtomicU32::new(0) }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        // Acquire, paired with the release in `take`. SAFETY: slots live as long as their domain.
        let first = unsafe { self.first.load(Ordering::Acquire).as_ref() };
        // SAFETY: as above; a link is written before its slot is published.
        core::iter::successors(first, |slot| unsafe { slot.next.load(Ordering::Relaxed).as_ref() })
    }

    /// A slot for a thread: one that another thread left, or a new one.
    pub(crate) fn take(&self, thread: u32) -> &Slot {
        let left = self.iter().find(|slot| {
            // Acquire, paired with the release in `give_up`: whatever section its last owner began is seen.
            let taken = slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
            let reads = taken && slot.state.reads();
            if reads {
                // A guard is left that is dropped later, if ever.
                slot.give_up();
            }
            taken && !reads
        });
        if let Some(slot) = left {
            slot.thread.store(thread, Ordering::Relaxed);
            return slot;
        }
        let slot = Box::into_raw(Box::new(Slot {
            state: State::new(),
            taken: AtomicBool::new(true),
            thread: AtomicU32::new(thread),
            number: self.made.fetch_add(1, Ordering::Relaxed),
            next: AtomicPtr::new(null_mut()),
        }));
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
}

impl Drop for Slots {
    fn drop(&mut self) {
        // Relaxed: nobody else has the slots any more.
        let mut slot = self.first.load(Ordering::Relaxed);
        while !slot.is_null() {
            // SAFETY: made by `take`; a domain is dropped when nobody reads in it any more.
            let boxed = unsafe { Box::from_raw(slot) };
            slot = boxed.next.load(Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, loom))]
#[path = "model.rs"]
mod model;
