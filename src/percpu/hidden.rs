//! Whether the fast path finds stacks at all.

use core::sync::atomic::{AtomicBool, Ordering};

/// Whether pops and pushes of the fast path find no stack, so that every operation comes to the slow path. Relaxed: set
/// before initialisation is announced, and never changed.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Has every operation come to the slow path from now on: CPUs have their regions in a second table, which the slow
/// path uses in place of the one that the fast path looks at. Where stacks belong to threads, it is so in any case.
pub(crate) fn hide_stacks() {
    HIDDEN.store(true, Ordering::Relaxed);
}

/// Whether every operation comes to the slow path.
#[inline]
pub(super) fn are_hidden() -> bool {
    HIDDEN.load(Ordering::Relaxed)
}
