//! What has been asked of the system, for reports.

use core::sync::atomic::AtomicUsize;

/// What has happened, in numbers. Relaxed throughout: statistics.
pub(crate) struct Counters {
    /// Times a zone was made larger.
    pub(crate) growths: AtomicUsize,
    /// Bytes given memory ahead of use.
    pub(crate) populated: AtomicUsize,
    /// Bytes given back to the system.
    pub(crate) released: AtomicUsize,
    /// Of these, bytes above a bound that were taken again soon.
    pub(crate) refaulted: AtomicUsize,
    /// Times a block was given, or grew into, a mapping that was kept.
    pub(crate) reused: AtomicUsize,
    /// Times everything cached was brought together because nothing was left.
    pub(crate) stalls: AtomicUsize,
    /// Times the worker did so and gave back what was free because memory was short.
    pub(crate) reliefs: AtomicUsize,
}

pub(crate) static COUNTERS: Counters = Counters {
    growths: AtomicUsize::new(0),
    populated: AtomicUsize::new(0),
    released: AtomicUsize::new(0),
    refaulted: AtomicUsize::new(0),
    reused: AtomicUsize::new(0),
    stalls: AtomicUsize::new(0),
    reliefs: AtomicUsize::new(0),
};
