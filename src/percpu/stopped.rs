//! Headers that are empty and full at once: what a thread finds whose CPU has no stacks.
//!
//! Before initialisation, while a CPU is stopped, where a thread has no rseq: every pop finds its stack
//! empty and every push finds it full, and both go to the slow path, without a test of their own.

use super::region::{HEADERS, NOTHING};

#[repr(C, align(16))]
pub(super) struct StoppedHeader {
    top: *const usize,
    limit: *const usize,
}

/// The headers of a region, in memory that is never written.
#[repr(C, align(64))]
pub(super) struct Stopped {
    pub(super) headers: [StoppedHeader; HEADERS],
}

// SAFETY: constants.
unsafe impl Sync for Stopped {}

pub(super) static STOPPED: Stopped = Stopped {
    headers: [const {
        let end = (&raw const NOTHING).wrapping_add(1);
        StoppedHeader { top: end, limit: end }
    }; HEADERS],
};
