//! What bounds the memory of all zones, as far as this layer needs to know: limit, high mark, huge pages; and
//! the bell that calls whoever gives memory back.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use super::{META, mapping, nodes};
use crate::sys;

/// Free memory of a zone that is worth calling for.
const WORTHWHILE: usize = 1 << 20;

/// Settings. Relaxed throughout: each stands for itself.
pub(crate) struct Marks {
    /// Most bytes that may be resident; `usize::MAX` is none.
    pub(crate) limit: AtomicUsize,
    pub(crate) min: AtomicUsize,
    pub(crate) low: AtomicUsize,
    /// Free resident bytes above which some are given back at once; 0 follows the heap's size.
    pub(crate) high: AtomicUsize,
    pub(crate) huge_pages: AtomicU8,
    bell: Bell,
    /// Has deferred frees come sooner, where there are any.
    expediter: AtomicPtr<()>,
}

pub(crate) static MARKS: Marks = Marks {
    limit: AtomicUsize::new(usize::MAX),
    min: AtomicUsize::new(0),
    low: AtomicUsize::new(0),
    high: AtomicUsize::new(0),
    huge_pages: AtomicU8::new(0),
    bell: Bell {
        rings: AtomicU32::new(0),
        listener: AtomicU32::new(NOBODY),
        due: AtomicBool::new(false),
        starter: AtomicPtr::new(core::ptr::null_mut()),
    },
    expediter: AtomicPtr::new(core::ptr::null_mut()),
};

/// What has happened, in numbers. Relaxed throughout: statistics.
pub(crate) struct Counters {
    /// Times a zone was made larger.
    pub(crate) growths: AtomicUsize,
    /// Bytes given memory ahead of use.
    pub(crate) populated: AtomicUsize,
    /// Bytes given back to the system.
    pub(crate) released: AtomicUsize,
    /// Times everything cached was brought together because nothing was left.
    pub(crate) stalls: AtomicUsize,
    /// Times the worker did so and gave back what was free because memory was short.
    pub(crate) reliefs: AtomicUsize,
}

pub(crate) static COUNTERS: Counters = Counters {
    growths: AtomicUsize::new(0),
    populated: AtomicUsize::new(0),
    released: AtomicUsize::new(0),
    stalls: AtomicUsize::new(0),
    reliefs: AtomicUsize::new(0),
};

/// Calls the worker: a futex word, and whether anybody waits on it.
struct Bell {
    rings: AtomicU32,
    listener: AtomicU32,
    /// Somebody is to come who has not been started. Relaxed: a hint.
    due: AtomicBool,
    starter: AtomicPtr<()>,
}

/// Whether the worker is started from the allocating side alone, and not at all in a program of one thread.
///
/// Where C's `free` is ours it is called under locks of the C library that `pthread_create` takes. A program of one
/// thread stays one: there the C library locks less, `unshare` works, and a child made by `vfork` has the heap to
/// itself.
const STARTS_LATER: bool = cfg!(feature = "capi");

const NOBODY: u32 = 0;
const AWAKE: u32 = 1;
const ASLEEP: u32 = 2;
const NEVER: u32 = 3;

/// Bytes of the heap that are resident, cheaply: runs handed out or warm, mappings, and tables by estimate.
pub(crate) fn resident() -> usize {
    let zones: usize = nodes().iter().flat_map(|node| node.zones()).map(|zone| zone.resident_bytes()).sum();
    zones + zones / 64 + mapping::MAPPED.load(Ordering::Relaxed) + META.resident_estimate()
}

/// Free bytes with memory behind them.
pub(crate) fn free_resident() -> usize {
    nodes().iter().flat_map(|node| node.zones()).map(|zone| zone.free_warm_bytes()).sum()
}

impl Marks {
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != usize::MAX
    }

    /// Whether the heap may grow by `bytes`, for a block of `size`. The last bit before the limit is for small
    /// blocks, so that a program which is refused a large one can still say so.
    pub(crate) fn admits(&self, bytes: usize, size: usize) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == usize::MAX {
            return true;
        }
        let spared = if size > 64 << 10 { (limit / 64).min(1 << 20) } else { 0 };
        resident().saturating_add(bytes) <= limit - spared
    }

    /// Bytes by which the heap may grow until it is near the limit, within a sixteenth of it.
    pub(crate) fn headroom(&self) -> usize {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit == usize::MAX { limit } else { (limit - limit / 16).saturating_sub(resident()) }
    }

    /// Has deferred frees come sooner. Makes one system call at most, and allocates nothing.
    pub(crate) fn expedite(&self) {
        let expediter = self.expediter.load(Ordering::Acquire);
        if !expediter.is_null() {
            // SAFETY: `set_expediter` stored a function of this type. Acquire, paired with its release.
            let expediter: fn() = unsafe { core::mem::transmute(expediter) };
            expediter();
        }
    }

    /// Says how deferred frees are expedited.
    pub(crate) fn set_expediter(&self, expediter: fn()) {
        self.expediter.store(expediter as *mut (), Ordering::Release);
    }

    /// The high mark in force: as set, or an eighth of what is resident, but 32 MiB at least.
    pub(crate) fn high_now(&self) -> usize {
        match self.high.load(Ordering::Relaxed) {
            0 => (resident() / 8).max(32 << 20),
            high => high,
        }
    }

    /// Memory became free in a zone that now has this much: calls the worker, unless it is up.
    #[inline]
    pub(super) fn freed(&self, free: usize) {
        // Relaxed: a hint. A call that is missed comes with the next free.
        let listener = self.bell.listener.load(Ordering::Relaxed);
        if free >= WORTHWHILE && listener != AWAKE {
            self.ring(listener);
        }
    }

    #[cold]
    fn ring(&self, listener: u32) {
        match listener {
            NOBODY if STARTS_LATER => {
                self.bell.due.store(true, Ordering::Relaxed);
                self.release_excess();
            }
            NOBODY => {
                let starter = self.bell.starter.load(Ordering::Acquire);
                let mine = self.bell.listener.compare_exchange(NOBODY, AWAKE, Ordering::Relaxed, Ordering::Relaxed);
                if mine.is_ok() && !starter.is_null() {
                    // SAFETY: `set_starter` stored a function of this type. Acquire, paired with its release.
                    let starter: fn() = unsafe { core::mem::transmute(starter) };
                    starter();
                }
            }
            ASLEEP => {
                // Sequentially consistent, as in `sleep`: either it sees the ring or we see that it sleeps.
                self.bell.rings.fetch_add(1, Ordering::SeqCst);
                sys::futex_wake(&self.bell.rings);
            }
            // Nobody will come.
            _ => self.release_excess(),
        }
    }

    /// What whoever frees does where there is no worker: the least that keeps the bound.
    fn release_excess(&self) {
        let (free, high) = (free_resident(), self.high_now());
        if free > high {
            super::release(free - high / 2);
        }
    }

    /// A zone grew: there will be something to give back.
    pub(super) fn grew(&self) {
        if STARTS_LATER && self.bell.listener.load(Ordering::Relaxed) == NOBODY {
            self.bell.due.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a worker is to be started.
    #[cfg(feature = "capi")]
    #[inline]
    pub(crate) fn worker_is_due(&self) -> bool {
        self.bell.due.load(Ordering::Relaxed)
    }

    /// Says that the worker is being started by the caller; false if somebody else was first.
    #[cfg(feature = "capi")]
    pub(crate) fn claim_worker(&self) -> bool {
        self.bell.due.swap(false, Ordering::Relaxed)
            && self.bell.listener.compare_exchange(NOBODY, AWAKE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Calls the worker whatever there is.
    pub(crate) fn call(&self) {
        let listener = self.bell.listener.load(Ordering::Relaxed);
        if listener == NOBODY || listener == ASLEEP {
            self.ring(listener);
        }
    }

    /// Says how to start the worker; called once, at initialisation.
    pub(crate) fn set_starter(&self, starter: fn()) {
        self.bell.starter.store(starter as *mut (), Ordering::Release);
    }

    /// Says that there is no worker, and will be none if `never`; else the next call starts one.
    pub(crate) fn set_absent(&self, never: bool) {
        self.bell.due.store(false, Ordering::Relaxed);
        self.bell.listener.store(if never { NEVER } else { NOBODY }, Ordering::Relaxed);
    }

    /// The worker sleeps until it is called.
    pub(crate) fn sleep(&self) {
        let rings = self.bell.rings.load(Ordering::SeqCst);
        self.bell.listener.store(ASLEEP, Ordering::SeqCst);
        sys::futex_wait(&self.bell.rings, rings);
        self.bell.listener.store(AWAKE, Ordering::SeqCst);
    }
}
