//! What is deferred, as far as this layer needs to know: how much it is, and how to have it done.

use core::sync::atomic::{AtomicPtr, Ordering};

/// What waits for a grace period, or to be freed after it, of the domain that has the heap's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deferred {
    pub(crate) objects: usize,
    pub(crate) bytes: usize,
    /// Pages of the heap that it is noted in.
    pub(crate) pages: usize,
}

/// Has deferred frees done if told to, as far as that does not take long, and says what is left. Null if nothing was ever
/// deferred.
static SETTLE: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Says how deferred frees are done.
pub(crate) fn set_settle(settle: fn(bool) -> Deferred) {
    // Release, paired with the acquire in `settle`.
    SETTLE.store(settle as *mut (), Ordering::Release);
}

pub(super) fn settle(act: bool) -> Deferred {
    // Acquire, paired with the release in `set_settle`.
    let settle = SETTLE.load(Ordering::Acquire);
    if settle.is_null() {
        return Deferred::default();
    }
    // SAFETY: `set_settle` stored a function of this type.
    let settle: fn(bool) -> Deferred = unsafe { core::mem::transmute(settle) };
    settle(act)
}

/// Bytes that wait for a grace period, as far as they are counted.
pub(super) fn deferred_bytes() -> usize {
    settle(false).bytes
}
