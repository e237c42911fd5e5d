//! System calls that fail on request: for tests of what the layers above do then.
//!
//! Without the feature `debug` nothing of this is compiled in.

/// What can fail, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Address space, with or without memory: `mmap`.
    Map = 1,
    /// Making reserved address space usable: `mprotect`.
    Commit = 2,
    /// Giving address space back: `munmap`.
    Unmap = 4,
    /// Changing a mapping's length: `mremap`.
    Remap = 8,
    /// Giving memory to pages: `madvise`.
    Populate = 16,
    /// Taking memory away from pages: `madvise`.
    Release = 32,
    /// Fencing a CPU: `membarrier`.
    Fence = 64,
    /// Starting a thread: `pthread_create`.
    Spawn = 128,
    /// Having the end of a thread announced: `pthread_setspecific`.
    ThreadExit = 256,
    /// Fencing the process: `membarrier`.
    ProcessFence = 512,
}

#[cfg(feature = "debug")]
impl Call {
    /// All of them.
    pub const ALL: [Call; 10] = [
        Call::Map,
        Call::Commit,
        Call::Unmap,
        Call::Remap,
        Call::Populate,
        Call::Release,
        Call::Fence,
        Call::Spawn,
        Call::ThreadExit,
        Call::ProcessFence,
    ];
}

#[cfg(feature = "debug")]
mod on_request {
    use super::Call;
    use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    // Relaxed throughout: a test sets them while nobody else is there, or does not mind which call it is that fails.
    static KINDS: AtomicU32 = AtomicU32::new(0);
    static PASSING: AtomicUsize = AtomicUsize::new(0);
    static FAILING: AtomicUsize = AtomicUsize::new(0);
    static ONE_IN: AtomicUsize = AtomicUsize::new(0);
    static SEED: AtomicUsize = AtomicUsize::new(0);
    static MADE: AtomicUsize = AtomicUsize::new(0);
    static FAILED: AtomicUsize = AtomicUsize::new(0);

    /// Of the calls of these kinds (their bits), lets the first `passing` through and has the next `failing` fail.
    pub fn fail(kinds: u32, passing: usize, failing: usize) {
        KINDS.store(0, Ordering::Relaxed);
        PASSING.store(passing, Ordering::Relaxed);
        FAILING.store(failing, Ordering::Relaxed);
        ONE_IN.store(0, Ordering::Relaxed);
        MADE.store(0, Ordering::Relaxed);
        FAILED.store(0, Ordering::Relaxed);
        KINDS.store(kinds, Ordering::Relaxed);
    }

    /// Has one in `n` calls of these kinds fail, at random.
    pub fn fail_one_in(n: usize, kinds: u32, seed: usize) {
        fail(kinds, 0, 0);
        SEED.store(seed, Ordering::Relaxed);
        ONE_IN.store(n, Ordering::Relaxed);
    }

    /// Calls made of the kinds last given to [`fail`], and how many of them failed.
    pub fn counts() -> (usize, usize) {
        (MADE.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed))
    }

    #[inline]
    pub(in crate::sys) fn refuses(call: Call) -> bool {
        KINDS.load(Ordering::Relaxed) & call as u32 != 0 && decide()
    }

    #[cold]
    fn decide() -> bool {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let one_in = ONE_IN.load(Ordering::Relaxed);
        let fails = if one_in > 0 {
            // A step of a linear congruential generator and its upper half (D. Knuth's MMIX).
            let step = |n: usize| n.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let before = SEED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(step(n))).unwrap_or(0);
            (before >> 33).is_multiple_of(one_in)
        } else {
            number.wrapping_sub(PASSING.load(Ordering::Relaxed)) < FAILING.load(Ordering::Relaxed)
        };
        FAILED.fetch_add(fails as usize, Ordering::Relaxed);
        fails
    }
}
#[cfg(feature = "debug")]
pub(super) use on_request::refuses;
#[cfg(feature = "debug")]
pub use on_request::{counts, fail, fail_one_in};

/// Whether a call that is about to be made is to fail instead.
#[cfg(not(feature = "debug"))]
#[inline(always)]
pub(super) fn refuses(_call: Call) -> bool {
    false
}
