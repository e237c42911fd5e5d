//! The bell that calls the worker, which gives memory back: who rings it, who sleeps by it, and what is done where nobody
//! comes.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use super::marks::{MARKS, free_resident};
use super::release;
use crate::sys;

/// Free memory of a zone that is worth calling for.
const WORTHWHILE: usize = 1 << 20;

/// A futex word, and whether anybody waits on it.
pub(crate) struct Bell {
    rings: AtomicU32,
    /// The worker: [`NOBODY`], [`AWAKE`], [`ASLEEP`] or [`NEVER`].
    listener: AtomicU32,
    /// Somebody is to come who has not been started. Relaxed: a hint.
    due: AtomicBool,
    /// Starts the worker.
    starter: AtomicPtr<()>,
}

pub(crate) static BELL: Bell = Bell {
    rings: AtomicU32::new(0),
    listener: AtomicU32::new(NOBODY),
    due: AtomicBool::new(false),
    starter: AtomicPtr::new(core::ptr::null_mut()),
};

/// Whether the worker is started from the allocating side alone, and not at all in a program of one thread.
///
/// Where C's `free` is ours it is called under locks of the C library that `pthread_create` takes. A program of one
/// thread stays one: there the C library locks less, `unshare` works, and a child made by `vfork` has the heap to
/// itself.
const STARTS_LATER: bool = cfg!(feature = "capi");

/// There is no worker; the next call starts one.
const NOBODY: u32 = 0;
const AWAKE: u32 = 1;
const ASLEEP: u32 = 2;
/// There is no worker, and will be none.
const NEVER: u32 = 3;

impl Bell {
    /// Memory became free in a zone, or in the slabs of a class, that now has this much: calls the worker, unless it is up.
    #[inline]
    pub(crate) fn freed(&self, free: usize) {
        // Relaxed: a hint. A call that is missed comes with the next free.
        let listener = self.listener.load(Ordering::Relaxed);
        if free >= WORTHWHILE && listener != AWAKE {
            self.ring(listener);
        }
    }

    #[cold]
    fn ring(&self, listener: u32) {
        match listener {
            NOBODY if STARTS_LATER => {
                self.due.store(true, Ordering::Relaxed);
                self.release_excess();
            }
            NOBODY => {
                let starter = self.starter.load(Ordering::Acquire);
                let mine = self.listener.compare_exchange(NOBODY, AWAKE, Ordering::Relaxed, Ordering::Relaxed);
                if mine.is_ok() && !starter.is_null() {
                    // SAFETY: `set_starter` stored a function of this type. Acquire, paired with its release.
                    let starter: fn() = unsafe { core::mem::transmute(starter) };
                    starter();
                }
            }
            ASLEEP => {
                // Sequentially consistent, as in `sleep`: either it sees the ring or we see that it sleeps.
                self.rings.fetch_add(1, Ordering::SeqCst);
                sys::futex_wake(&self.rings);
            }
            // Nobody will come.
            _ => self.release_excess(),
        }
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
        if STARTS_LATER && self.listener.load(Ordering::Relaxed) == NOBODY {
            self.due.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a worker is to be started.
    #[cfg(feature = "capi")]
    #[inline]
    pub(crate) fn worker_is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed)
    }

    /// Says that the worker is being started by the caller; false if somebody else was first.
    #[cfg(feature = "capi")]
    pub(crate) fn claim_worker(&self) -> bool {
        self.due.swap(false, Ordering::Relaxed)
            && self.listener.compare_exchange(NOBODY, AWAKE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Calls the worker whatever there is.
    pub(crate) fn call(&self) {
        let listener = self.listener.load(Ordering::Relaxed);
        if listener == NOBODY || listener == ASLEEP {
            self.ring(listener);
        }
    }

    /// Says how to start the worker; called once, at initialisation.
    pub(crate) fn set_starter(&self, starter: fn()) {
        self.starter.store(starter as *mut (), Ordering::Release);
    }

    /// Says that there is no worker, and will be none if `never`; else the next call starts one.
    pub(crate) fn set_absent(&self, never: bool) {
        self.due.store(false, Ordering::Relaxed);
        self.listener.store(if never { NEVER } else { NOBODY }, Ordering::Relaxed);
    }

    /// The worker sleeps until it is called.
    pub(crate) fn sleep(&self) {
        let rings = self.rings.load(Ordering::SeqCst);
        self.listener.store(ASLEEP, Ordering::SeqCst);
        sys::futex_wait(&self.rings, rings);
        self.listener.store(AWAKE, Ordering::SeqCst);
    }
}
