//! The bell that calls the worker, which gives memory back: who rings it, who sleeps by it, and what is done where nobody
//! comes.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use super::listener::{ASLEEP, AWAKE, Listener, NEVER, NOBODY, REFUSED};
use super::marks::{MARKS, free_resident};
use super::release;
use crate::sys;

/// Free memory of a zone that is worth calling for.
const WORTHWHILE: usize = 1 << 20;

/// A futex word, and whether anybody waits on it.
pub(crate) struct Bell {
    rings: AtomicU32,
    /// The worker.
    listener: Listener,
    /// How often no thread could be had, and calls since. Relaxed: when it is tried again is a matter of taste.
    refusals: AtomicU32,
    calls: AtomicU32,
    /// Somebody is to come who has not been started. Relaxed: a hint.
    due: AtomicBool,
    /// Starts the worker.
    starter: AtomicPtr<()>,
}

pub(crate) static BELL: Bell = Bell {
    rings: AtomicU32::new(0),
    listener: Listener::new(),
    refusals: AtomicU32::new(0),
    calls: AtomicU32::new(0),
    due: AtomicBool::new(false),
    starter: AtomicPtr::new(core::ptr::null_mut()),
};

/// Whether the worker is started from the allocating side alone, and not at all in a program of one thread.
///
/// Where C's `free` is ours it is called under locks of the C library that `pthread_create` takes. A program of one
/// thread stays one: there the C library locks less, `unshare` works, and a child made by `vfork` has the heap to
/// itself.
const STARTS_LATER: bool = cfg!(feature = "capi");

/// log2 of the calls after which it is tried again; twice as many each time, up to so many times.
const PATIENCE: u32 = 6;
const PATIENCE_GROWS: u32 = 10;

impl Bell {
    /// Memory became free in a zone, or in the slabs of a class, that now has this much: calls the worker, unless it is up.
    #[inline]
    pub(crate) fn freed(&self, free: usize) {
        if free >= WORTHWHILE {
            let listener = self.listener.after_counting();
            if listener != AWAKE {
                self.ring(listener);
            }
        }
    }

    #[cold]
    fn ring(&self, listener: u32) {
        match listener {
            NOBODY if STARTS_LATER => {
                self.due.store(true, Ordering::Relaxed);
                self.release_excess();
            }
            NOBODY => self.start(),
            ASLEEP => {
                // Sequentially consistent: it may be on its way to sleep, and then sees the ring in `futex_wait`.
                self.rings.fetch_add(1, Ordering::SeqCst);
                sys::futex_wake(&self.rings);
            }
            REFUSED => {
                self.release_excess();
                let patience = 1 << (PATIENCE + self.refusals.load(Ordering::Relaxed).min(PATIENCE_GROWS));
                if self.calls.fetch_add(1, Ordering::Relaxed) >= patience {
                    self.try_again();
                }
            }
            // Nobody will come.
            _ => self.release_excess(),
        }
    }

    fn start(&self) {
        let starter = self.starter.load(Ordering::Acquire);
        if starter.is_null() {
            return;
        }
        if self.listener.change(NOBODY, AWAKE) {
            // SAFETY: `set_starter` stored a function of this type. Acquire, paired with its release.
            let starter: fn() = unsafe { core::mem::transmute(starter) };
            starter();
        }
    }

    /// The next call starts the worker, where it could not be started before.
    fn try_again(&self) {
        self.listener.change(REFUSED, NOBODY);
    }

    /// What whoever frees does where there is no worker: the least that keeps the bound.
    fn release_excess(&self) {
        let (free, high) = (free_resident(), MARKS.high_now());
        if free > high {
            release(free - high / 2);
        }
    }

    /// A zone grew: there will be something to give back.
    pub(super) fn grew(&self) {
        if STARTS_LATER && self.listener.rumoured() == NOBODY {
            self.due.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a worker is to be started.
    #[inline]
    pub(crate) fn worker_is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }

    /// Says that the worker is being started by the caller; false if somebody else was first.
    pub(crate) fn claim_worker(&self) -> bool {
        self.due.swap(false, Ordering::Relaxed) && self.listener.change(NOBODY, AWAKE)
    }

    /// Calls the worker whatever there is: if it is up, it looks once more before it sleeps.
    pub(crate) fn call(&self) {
        // Sequentially consistent, as what `after_ringing` reads, and `fall_asleep` writes: either it sees the ring or we see
        // that it sleeps.
        self.rings.fetch_add(1, Ordering::SeqCst);
        self.try_again();
        let listener = self.listener.after_ringing();
        if listener == NOBODY || listener == ASLEEP {
            self.ring(listener);
        }
    }

    /// Says how to start the worker.
    pub(crate) fn set_starter(&self, starter: fn()) {
        self.starter.store(starter as *mut (), Ordering::Release);
    }

    /// Says whether there may be a worker. One that is there sees it when it is called, and goes.
    pub(crate) fn set_wanted(&self, wanted: bool) {
        if wanted {
            self.listener.change(NEVER, NOBODY);
            return;
        }
        self.due.store(false, Ordering::Relaxed);
        self.listener.set(NEVER);
        // Sequentially consistent, as in `call`.
        self.rings.fetch_add(1, Ordering::SeqCst);
        sys::futex_wake(&self.rings);
    }

    /// Whether there is to be no worker.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.listener.rumoured() == NEVER
    }

    /// Says that no thread could be had for the worker.
    pub(crate) fn refused(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.refusals.fetch_add(1, Ordering::Relaxed);
        self.listener.change(AWAKE, REFUSED);
    }

    /// In the child of a `fork`, which has no worker; whether one is `due`, or comes with the next call.
    pub(crate) fn after_fork(&self, due: bool) {
        // There is one thread.
        if self.listener.rumoured() != NEVER {
            self.listener.set(NOBODY);
            self.due.fetch_or(due, Ordering::Relaxed);
        }
    }

    /// How often the bell has rung: asked before there is a look at what may have to be done.
    pub(crate) fn rings(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    /// The worker sleeps until it is called, unless it was since the bell had rung `seen` times, or more than `tolerated`
    /// bytes are free.
    pub(crate) fn sleep(&self, seen: u32, tolerated: usize) {
        // It may have been told to go.
        if self.listener.fall_asleep() {
            // Who frees from here on sees that the worker sleeps; what was freed before is looked at once more.
            if free_resident() <= tolerated {
                sys::futex_wait(&self.rings, seen);
            }
            self.listener.wake_up();
        }
    }
}
