//! What is done when memory is short: near the heap's limit, or when the system says so (`watch.rs`).

use core::sync::atomic::{AtomicUsize, Ordering};

use super::drain::{Drain, drain};
use crate::percpu;
use crate::slab::{holes, retire, transfer};
use crate::zone::{COUNTERS, MARKS, free_resident, refault, release};

/// Less than this is not worth fencing every CPU for.
const NEGLIGIBLE: usize = 512 << 10;

/// Idle bytes of slabs that the last relief left, or fewer since: those that share their pages with blocks in use. Relaxed: the
/// worker's alone.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Has deferred frees expedited, empties every stack and gives back what is free; returns the bytes given back.
///
/// Does nothing where there is next to nothing to be had, so it may be called again and again while memory stays
/// short.
pub(super) fn relieve() -> usize {
    MARKS.expedite();
    let idle = holes::idle_bytes();
    let idle = idle - LEFT.fetch_min(idle, Ordering::Relaxed).min(idle);
    if free_resident() + percpu::cached_bytes() + transfer::bytes() + idle < NEGLIGIBLE {
        return 0;
    }
    COUNTERS.reliefs.fetch_add(1, Ordering::Relaxed);
    refault::ZONES.forget();
    refault::MAPPINGS.forget();
    drain(Drain::All);
    retire::retire_all();
    let released = release(usize::MAX) + holes::punch_all();
    LEFT.store(holes::idle_bytes(), Ordering::Relaxed);
    released
}
