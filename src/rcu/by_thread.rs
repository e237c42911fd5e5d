//! Each thread's slot in a domain of one's own, found without a search.
//!
//! What it is found by is the number of the thread's slot in the default domain, which a thread has from its first section on
//! and can have at any time, in its destructors, too.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::epoch::{Slot, Slots};

/// Bucket n has room for 2^n threads.
const BUCKETS: usize = u32::BITS as usize;

/// Slots of one domain, whose part this is, by the threads' numbers.
///
/// An entry is used by the thread alone that has the number. Relaxed, therefore: numbers go from thread to thread by the
/// release in [`Slot::give_up`] and the acquire in [`Slots::take`].
pub(super) struct ByThread([AtomicPtr<AtomicPtr<Slot>>; BUCKETS]);

/// The bucket of a number, and its place there.
fn place(number: u32) -> (usize, usize) {
    let n = u64::from(number) + 1;
    (n.ilog2() as usize, (n - (1 << n.ilog2())) as usize)
}

impl ByThread {
    pub(super) const fn new() -> ByThread {
        ByThread([const { AtomicPtr::new(null_mut()) }; BUCKETS])
    }

    /// The slot of the thread that has this number, and this id, if it has one.
    pub(super) fn get(&self, number: u32, thread: u32) -> Option<&Slot> {
        let (bucket, index) = place(number);
        // Acquire, paired with the release in `entry`: its entries are null before they are anything else.
        let first = self.0[bucket].load(Ordering::Acquire);
        if first.is_null() {
            return None;
        }
        // SAFETY: the bucket has 2^bucket entries, the index is less, and it stays while `self` is there.
        let entry = unsafe { &*first.add(index) };
        // SAFETY: slots live as long as their domain, whose part this is.
        let slot = unsafe { entry.load(Ordering::Relaxed).as_ref() }?;
        (slot.thread.load(Ordering::Relaxed) == thread).then_some(slot)
    }

    /// As [`ByThread::get`]; a thread that has none gets one, of `slots`, which are those of the same domain.
    #[cold]
    pub(super) fn take<'a>(&'a self, number: u32, thread: u32, slots: &'a Slots) -> &'a Slot {
        let entry = self.entry(number);
        // SAFETY: as in `get`.
        match unsafe { entry.load(Ordering::Relaxed).as_ref() } {
            // Of the thread that had the number before, and does not any more.
            Some(slot) if !slot.state.reads() => {
                slot.thread.store(thread, Ordering::Relaxed);
                slot
            }
            // It has left a guard, or drops one in a destructor yet to come: the slot is its own until then.
            still => {
                let fresh = slots.take(thread);
                entry.store(core::ptr::from_ref(fresh).cast_mut(), Ordering::Relaxed);
                if let Some(slot) = still {
                    slot.give_up();
                }
                fresh
            }
        }
    }

    /// The entry of a number, whose bucket is made if there is none.
    fn entry(&self, number: u32) -> &AtomicPtr<Slot> {
        let (bucket, index) = place(number);
        // Acquire, as in `get`.
        let mut first = self.0[bucket].load(Ordering::Acquire);
        if first.is_null() {
            let made: Box<[AtomicPtr<Slot>]> = (0..1usize << bucket).map(|_| AtomicPtr::new(null_mut())).collect();
            let made = Box::into_raw(made);
            // Release, paired with the acquires of this pointer, here and in `get`.
            match self.0[bucket].compare_exchange(null_mut(), made.cast(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => first = made.cast(),
                Err(others) => {
                    // SAFETY: made above, and nobody else has seen it.
                    drop(unsafe { Box::from_raw(made) });
                    first = others;
                }
            }
        }
        // SAFETY: as in `get`.
        unsafe { &*first.add(index) }
    }
}

impl Drop for ByThread {
    fn drop(&mut self) {
        for (bucket, first) in self.0.iter_mut().enumerate() {
            let first = *first.get_mut();
            if !first.is_null() {
                // SAFETY: made by `entry`, of this length; `&mut self`, so nobody else uses it.
                drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(first, 1 << bucket)) });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Numbers have places of their own, bucket after bucket.
    ///
    /// Red if two share one: in `place`, leave the 1 out that is added.
    #[test]
    fn places_follow_one_another() {
        let mut expected = (0..12).flat_map(|bucket| (0..1usize << bucket).map(move |index| (bucket, index)));
        assert!((0..4095).all(|number| Some(place(number)) == expected.next()));
        assert_eq!(place(u32::MAX - 1), (BUCKETS - 1, (1 << 31) - 1));
    }

    /// A thread finds its slot again. One that has its number afterwards gets the same, unless that is still read in, which
    /// nobody else gets until it is not.
    ///
    /// Red if a slot is handed on that is read in: in `ByThread::take`, or `Slots::take` (`src/rcu/epoch.rs`), do not ask.
    #[test]
    fn a_slot_that_is_read_in_is_not_handed_on() {
        let (slots, periods) = (Slots::new(), super::super::epoch::Periods::new());
        let by_thread = ByThread::new();
        assert!(by_thread.get(5, 1000).is_none());
        let first = by_thread.take(5, 1000, &slots);
        assert!(core::ptr::eq(first, by_thread.get(5, 1000).unwrap()));
        assert!(by_thread.get(5, 1001).is_none() && by_thread.get(4, 1000).is_none());
        assert!(core::ptr::eq(first, by_thread.take(5, 1001, &slots)));
        assert!(first.state.enter(&periods, || ()));
        let second = by_thread.take(5, 1002, &slots);
        assert!(!core::ptr::eq(first, second) && core::ptr::eq(second, by_thread.get(5, 1002).unwrap()));
        let third = by_thread.take(6, 1003, &slots);
        assert!(!core::ptr::eq(first, third) && first.state.reads());
        first.state.leave();
        assert!(core::ptr::eq(first, by_thread.take(7, 1004, &slots)));
    }
}
