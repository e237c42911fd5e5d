//! A lock-free stack of small numbers.
//!
//! Pushing and popping is one compare-and-swap each (R. K. Treiber, "Systems Programming: Coping with
//! Parallelism", 1986), so nobody ever waits for a preempted holder. The head carries a count of its changes
//! beside the number on top: a compare-and-swap that slept while a number went and came back fails.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Bits of a head that hold the number on top; the number 0 is none.
pub(crate) const NUMBER_BITS: u32 = 22;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;

/// A stack of numbers, linked through words that its user provides.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Number of the top in the low bits, count of changes in the others.
    head: AtomicU64,
    /// How many there are, more or less: raised before a push and lowered after a pop.
    len: AtomicU32,
}

/// The words that numbers are linked through.
pub(crate) trait Links {
    /// The link of `number`, which stays valid whatever becomes of the number.
    fn link(&self, number: u32) -> &AtomicU32;
}

impl Stack {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Stack {
        Stack { head: AtomicU64::new(0), len: AtomicU32::new(0) }
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Stack {
        Stack { head: AtomicU64::new(0), len: AtomicU32::new(0) }
    }

    /// How many numbers are on the stack, as a hint.
    pub(crate) fn len(&self) -> u32 {
        // Relaxed: a hint.
        self.len.load(Ordering::Relaxed)
    }

    /// Pushes a number that is on no stack and not 0.
    pub(crate) fn push(&self, links: &impl Links, number: u32) {
        self.len.fetch_add(1, Ordering::Relaxed);
        // Relaxed: the value is only compared; what it names is not looked at.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange below.
            links.link(number).store((head & NUMBER_MASK) as u32, Ordering::Relaxed);
            let new = ((head >> NUMBER_BITS) + 1) << NUMBER_BITS | number as u64;
            // Release, paired with the acquires in `pop`: who pops the number sees its link and contents.
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = again(now),
            }
        }
    }

    /// Pops the number that was pushed last, if there is one.
    pub(crate) fn pop(&self, links: &impl Links) -> Option<u32> {
        // Acquire, paired with the release in `push`: the link that the top was pushed with is seen.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let number = (head & NUMBER_MASK) as u32;
            if number == 0 {
                return None;
            }
            // Relaxed: if somebody pops the number and links it anew meanwhile, the count has changed and
            // the exchange fails, so a wrong link is never used.
            let next = links.link(number).load(Ordering::Relaxed);
            let new = ((head >> NUMBER_BITS) + 1) << NUMBER_BITS | next as u64;
            // Acquire, paired with the release in `push`, for the contents. Release is not needed: a later
            // pop pairs with the push of what is then on top, whose release sequence this exchange continues.
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                    return Some(number);
                }
                Err(now) => head = again(now),
            }
        }
    }

    /// How often numbers have been pushed and popped.
    #[cfg(all(feature = "debug", not(loom)))]
    pub(crate) fn changes(&self) -> u64 {
        self.head.load(Ordering::Relaxed) >> NUMBER_BITS
    }
}

/// Exchanges of all stacks that came too late, and were tried again. Relaxed: a statistic.
#[cfg(feature = "debug")]
pub(crate) static RETRIES: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// An exchange came too late: the head to try it with again.
#[cold]
fn again(head: u64) -> u64 {
    #[cfg(feature = "debug")]
    RETRIES.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    head
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct Words([AtomicU32; 4]);

    impl Links for Words {
        fn link(&self, number: u32) -> &AtomicU32 {
            &self.0[number as usize]
        }
    }

    fn shared(numbers: &[u32]) -> Arc<(Stack, Words)> {
        let shared = Arc::new((Stack::new(), Words([(); 4].map(|()| AtomicU32::new(0)))));
        numbers.iter().for_each(|&n| shared.0.push(&shared.1, n));
        shared
    }

    fn rest(shared: &(Stack, Words)) -> Vec<u32> {
        std::iter::from_fn(|| shared.0.pop(&shared.1)).collect()
    }

    /// A thread pops while another pops two numbers and pushes a third, and then the first again: every number is there exactly
    /// once afterwards. Positive controls: leave the count out of `new` in `push`, or in `pop`, and the model finds the number
    /// that is lost.
    #[test]
    fn popping_and_pushing_back_loses_nothing() {
        loom::model(|| {
            let stack = shared(&[1, 2]);
            let other = {
                let stack = stack.clone();
                thread::spawn(move || {
                    let first = stack.0.pop(&stack.1);
                    let second = stack.0.pop(&stack.1);
                    stack.0.push(&stack.1, 3);
                    if let Some(n) = first {
                        stack.0.push(&stack.1, n);
                    }
                    second
                })
            };
            let mine = stack.0.pop(&stack.1);
            let theirs = other.join().unwrap();
            let mut all = rest(&stack);
            all.extend(mine);
            all.extend(theirs);
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3]);
        });
    }

    /// What was written before a push is seen after the pop. Positive control: make the exchange in `push`
    /// relaxed.
    #[test]
    fn contents_come_along() {
        loom::model(|| {
            let stack = shared(&[]);
            let cell = Arc::new(loom::cell::UnsafeCell::new(0));
            let pusher = {
                let (stack, cell) = (stack.clone(), cell.clone());
                thread::spawn(move || {
                    // SAFETY: nobody else touches the cell before the push.
                    cell.with_mut(|c| unsafe { *c = 7 });
                    stack.0.push(&stack.1, 1);
                })
            };
            while stack.0.pop(&stack.1).is_none() {
                thread::yield_now();
            }
            // SAFETY: the number was popped, so the writer is done.
            cell.with(|c| assert_eq!(unsafe { *c }, 7));
            pusher.join().unwrap();
        });
    }
}
