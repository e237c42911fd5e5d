//! A list that anybody may add to, in any context, and that is taken as a whole.
//!
//! It only grows by a compare-and-swap and only shrinks by a swap, so it needs no count against an element that
//! went and came back: an exchange that finds the first element unchanged is right whatever happened meanwhile.

use core::ptr::null_mut;

use crate::sync::{AtomicPtr, Ordering};

/// The first element; each element holds the next, in whatever way its user links them.
#[derive(Debug)]
pub(crate) struct List<T> {
    first: AtomicPtr<T>,
}

impl<T> List<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> List<T> {
        List { first: AtomicPtr::new(null_mut()) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> List<T> {
        List { first: AtomicPtr::new(null_mut()) }
    }

    /// Puts `element` in front. `link` notes in it what comes next; it runs again whenever another was faster.
    pub(crate) fn push(&self, element: *mut T, mut link: impl FnMut(*mut T)) {
        // Relaxed: the value is noted in the element, not followed.
        let mut next = self.first.load(Ordering::Relaxed);
        loop {
            link(next);
            // Release, paired with the acquire in `take`: what was written to the element is seen. Later pushes
            // continue the release sequence, so one acquire pairs with all of them.
            match self.first.compare_exchange_weak(next, element, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }

    /// Whether there is nothing in it, as a hint.
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: a hint.
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// The first element, for whoever keeps others from taking it.
    #[cfg(not(loom))]
    pub(crate) fn first(&self) -> *mut T {
        // Acquire, paired with the release in `push`.
        self.first.load(Ordering::Acquire)
    }

    /// Takes everything; null if there is nothing.
    pub(crate) fn take(&self) -> *mut T {
        if self.is_empty() {
            return null_mut();
        }
        // Acquire, paired with the release in `push`.
        self.first.swap(null_mut(), Ordering::Acquire)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// Two freed blocks: the first word of each holds the next block.
    struct Blocks([UnsafeCell<usize>; 3]);

    // SAFETY: a block is its pusher's until it is pushed and the taker's afterwards; the model checks just that.
    unsafe impl Sync for Blocks {}
    // SAFETY: as above.
    unsafe impl Send for Blocks {}

    fn shared() -> Arc<(List<usize>, Blocks)> {
        Arc::new((List::new(), Blocks([(); 3].map(|()| UnsafeCell::new(usize::MAX)))))
    }

    /// Blocks are named by small numbers, as addresses.
    fn push(shared: &(List<usize>, Blocks), block: usize) {
        shared.0.push(block as *mut usize, |next| {
            // SAFETY: the block is the pusher's own.
            shared.1.0[block].with_mut(|word| unsafe { *word = next as usize });
        });
    }

    fn take(shared: &(List<usize>, Blocks)) -> Vec<usize> {
        let mut block = shared.0.take() as usize;
        let mut taken = Vec::new();
        while block != 0 {
            taken.push(block);
            // SAFETY: taken, so nobody else's.
            block = shared.1.0[block].with(|word| unsafe { *word });
        }
        taken
    }

    /// Two threads push while a third takes: every block comes out exactly once, with the word its pusher wrote.
    ///
    /// Positive controls: with a relaxed exchange in `push` the model reports a race on a block's word; with a store
    /// in place of the exchange a block is lost, and the taker waits for ever.
    #[test]
    fn every_block_comes_out_once() {
        loom::model(|| {
            let list = shared();
            let pushers = [1, 2].map(|block| {
                let list = list.clone();
                thread::spawn(move || push(&list, block))
            });
            let mut all = Vec::new();
            while all.len() < 2 {
                all.extend(take(&list));
                thread::yield_now();
            }
            pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
            all.extend(take(&list));
            all.sort_unstable();
            assert_eq!(all, [1, 2]);
        });
    }

    /// A block that was taken is pushed again at once, while another thread is in the middle of a push that saw it
    /// on top: nothing is lost and nothing comes twice.
    ///
    /// Positive control: a `take` that stores null in place of the swap loses what was pushed between its two steps.
    #[test]
    fn a_block_may_go_and_come_back() {
        loom::model(|| {
            let list = shared();
            push(&list, 1);
            let other = {
                let list = list.clone();
                thread::spawn(move || push(&list, 2))
            };
            let taken = take(&list);
            assert!(taken.contains(&1));
            taken.iter().for_each(|&block| push(&list, block));
            other.join().unwrap();
            let mut all = take(&list);
            all.sort_unstable();
            assert_eq!(all, [1, 2]);
        });
    }
}
