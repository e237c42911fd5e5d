//! Whether anybody listens to a bell, and how one falls asleep without missing the ring that it sleeps for.
//!
//! ```text
//! whoever frees               the listener
//!   count what is free          say that it sleeps
//!   fence                       fence
//!   does it sleep? ring         is much free? look again, else sleep
//! ```
//!
//! One of the two sees what the other has stored, whatever their processors keep back: that is what two fences are for
//! (Dekker's way to exclude each other, as the kernel's `waitqueue_active` has it).

use crate::sync::{AtomicU32, Ordering, fence};

/// There is no worker; the next call starts one.
pub(super) const NOBODY: u32 = 0;
pub(super) const AWAKE: u32 = 1;
pub(super) const ASLEEP: u32 = 2;
/// There is no worker, and will be none.
pub(super) const NEVER: u32 = 3;
/// There is none, because no thread could be had; some calls later it is tried again.
pub(super) const REFUSED: u32 = 4;

/// One of the above.
pub(super) struct Listener(AtomicU32);

impl Listener {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Listener(AtomicU32::new(NOBODY))
    }

    /// Who is there, for somebody who has counted something as free just now.
    #[inline]
    pub(super) fn after_counting(&self) -> u32 {
        // Paired with the fence in `fall_asleep`.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }

    /// Who is there, for somebody who has rung the bell: its number is stored sequentially consistently, as this is read.
    #[inline]
    pub(super) fn after_ringing(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Who is there, as far as the caller has heard. Relaxed: a hint.
    #[inline]
    pub(super) fn rumoured(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// From `old` to `new`, if it is `old`. Relaxed: one of several callers does it, and what they do next is in no order with
    /// it.
    #[inline]
    pub(super) fn change(&self, old: u32, new: u32) -> bool {
        self.0.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Says who is there, whoever was. Sequentially consistent: who has been told to go sees it, or the ring after it.
    pub(super) fn set(&self, state: u32) {
        self.0.store(state, Ordering::SeqCst);
    }

    /// The listener is about to sleep; false if it has been told to go. What is counted as free is to be looked at once more
    /// afterwards.
    pub(super) fn fall_asleep(&self) -> bool {
        let asleep = self.0.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        // Paired with the fence in `after_counting`.
        fence(Ordering::SeqCst);
        asleep
    }

    pub(super) fn wake_up(&self) {
        let _ = self.0.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Somebody frees while the listener falls asleep: it sees that, or is rung for.
    ///
    /// Positive control: without the fence in `after_counting`, or that in `fall_asleep`, memory is free for which nobody
    /// comes.
    #[test]
    fn none_sleeps_through_what_was_freed() {
        loom::model(|| {
            let shared = Arc::new((Listener(AtomicU32::new(AWAKE)), AtomicU32::new(0)));
            let rings = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let (listener, free) = &*shared;
                    free.store(1, Ordering::Relaxed);
                    listener.after_counting() == ASLEEP
                })
            };
            let (listener, free) = &*shared;
            let sleeps = listener.fall_asleep() && free.load(Ordering::Relaxed) == 0;
            assert!(rings.join().unwrap() || !sleeps);
        });
    }
}
