//! A mutex of one word that allocates nothing, can be held across `fork`, and parks on a futex.
//!
//! The states are those of U. Drepper, "Futexes Are Tricky" (2011), mutex 2: free, held, held with waiters.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use crate::sync::spin_hint;
use crate::sys;
use core::sync::atomic::{AtomicU32, Ordering};

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// Turns of the spin loop before a thread parks; sections under these locks last tens of nanoseconds.
const SPINS: u32 = 100;

/// A value that one thread at a time may touch.
pub(crate) struct Lock<T> {
    state: AtomicU32,
    counters: Counters,
    value: UnsafeCell<T>,
}

// SAFETY: `state` admits one thread at a time to `value`, which moves between threads by that (`Send`).
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Lock { state: AtomicU32::new(FREE), counters: Counters::new(), value: UnsafeCell::new(value) }
    }

    /// The value, for whoever has the lock to himself.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Frees the lock, whoever holds it, and runs `f` on the value: for the child of a `fork`, where a holder
    /// other than the caller is gone.
    pub(crate) fn force(&self, f: impl FnOnce(&mut T)) {
        self.state.store(FREE, Ordering::Relaxed);
        f(&mut self.lock());
    }

    /// The value of a lock that is held without a guard.
    ///
    /// # Safety
    /// The caller holds the lock, and nobody has had a reference to the value since.
    pub(crate) unsafe fn value_of_held(&self) -> &T {
        // SAFETY: the caller's obligation.
        unsafe { &*self.value.get() }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.acquire();
        Guard { lock: self }
    }

    /// The lock if nobody holds it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        // Acquire, paired with the release in `release`: what the last holder wrote is seen.
        let taken = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        match taken {
            Ok(_) => self.counters.taken(),
            Err(_) => self.counters.contended(),
        }
        taken.is_ok().then(|| Guard { lock: self })
    }

    /// Locks without a guard; [`Lock::release`] ends it. For `fork`, which locks in one function and
    /// unlocks in another.
    #[inline]
    pub(crate) fn acquire(&self) {
        // Acquire: as in `try_lock`.
        if self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.acquire_slow();
        }
        self.counters.taken();
    }

    #[cold]
    fn acquire_slow(&self) {
        self.counters.contended();
        for _ in 0..SPINS {
            spin_hint();
            // Relaxed look before the exchange, so that waiting does not take the line from the holder.
            if self.state.load(Ordering::Relaxed) == FREE
                && self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
        // Acquire: as in `try_lock`. Whoever parks marks the lock, so that its holder wakes somebody.
        while self.state.swap(CONTENDED, Ordering::Acquire) != FREE {
            self.counters.waited();
            sys::futex_wait(&self.state, CONTENDED);
        }
    }

    /// Ends what [`Lock::acquire`] began.
    #[inline]
    pub(crate) fn release(&self) {
        // Release, paired with the acquires above: the next holder sees what was written under the lock.
        if self.state.swap(FREE, Ordering::Release) == CONTENDED {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        sys::futex_wake(&self.state);
    }
}

#[cfg(feature = "debug")]
impl<T> Lock<T> {
    /// What has happened to the lock so far. Takes no lock.
    pub(crate) fn counts(&self) -> counted::LockCounts {
        self.counters.counts()
    }
}

#[cfg(feature = "debug")]
use counted::Counters;
#[cfg(not(feature = "debug"))]
use uncounted::Counters;

/// How often a lock is taken, for the tests and benchmarks that the feature `debug` is for. All bytes zero are a valid
/// value, as they are of a lock.
#[cfg(feature = "debug")]
pub(crate) mod counted {
    use core::sync::atomic::{AtomicU64, Ordering};

    /// What has happened to a lock, or to several.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct LockCounts {
        /// Times it was taken.
        pub taken: u64,
        /// Times somebody wanted it who found it held: who waited then, or went elsewhere.
        pub contended: u64,
        /// Times a thread slept in the kernel for it.
        pub waited: u64,
    }

    // Relaxed throughout: statistics.
    pub(super) struct Counters {
        taken: AtomicU64,
        contended: AtomicU64,
        waited: AtomicU64,
    }

    impl Counters {
        pub(super) const fn new() -> Counters {
            Counters { taken: AtomicU64::new(0), contended: AtomicU64::new(0), waited: AtomicU64::new(0) }
        }

        /// The lock is held, so nobody else counts here.
        pub(super) fn taken(&self) {
            self.taken.store(self.taken.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }

        pub(super) fn contended(&self) {
            self.contended.fetch_add(1, Ordering::Relaxed);
        }

        pub(super) fn waited(&self) {
            self.waited.fetch_add(1, Ordering::Relaxed);
        }

        pub(super) fn counts(&self) -> LockCounts {
            let [taken, contended, waited] =
                [&self.taken, &self.contended, &self.waited].map(|count| count.load(Ordering::Relaxed));
            LockCounts { taken, contended, waited }
        }
    }
}

#[cfg(not(feature = "debug"))]
mod uncounted {
    pub(super) struct Counters;

    impl Counters {
        pub(super) const fn new() -> Counters {
            Counters
        }

        #[inline(always)]
        pub(super) fn taken(&self) {}

        #[inline(always)]
        pub(super) fn contended(&self) {}

        #[inline(always)]
        pub(super) fn waited(&self) {}
    }
}

/// Access to the value; unlocks when dropped.
pub(crate) struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists only while its thread holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes this the guard's only reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_at_a_time() {
        let lock = Arc::new(Lock::new((0u64, 0u64)));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let lock = lock.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        let mut pair = lock.lock();
                        assert_eq!(pair.0, pair.1);
                        pair.0 += 1;
                        pair.1 += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*lock.lock(), (160_000, 160_000));
        #[cfg(feature = "debug")]
        assert_eq!(lock.counts().taken, 160_001);
    }

    #[test]
    fn a_held_lock_is_not_had_by_trying() {
        let lock = Lock::new(());
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
        assert!(lock.try_lock().is_some());
        #[cfg(feature = "debug")]
        assert_eq!(lock.counts(), counted::LockCounts { taken: 2, contended: 1, waited: 0 });
    }
}
