//! The one heap of the process: brought up once, carried across `fork`.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::slab::{central, transfer};
use crate::zone::{META, nodes};
use crate::{Config, control, percpu, size_class, sys};

const DOWN: u32 = 0;
const COMING: u32 = 1;
const UP: u32 = 2;

static STATE: AtomicU32 = AtomicU32::new(DOWN);

/// Brings the heap up unless it is; every slow path starts here.
#[inline]
pub(crate) fn ensure_up(config: &Config) {
    // Acquire, paired with the release in `bring_up`: what it set is seen.
    if STATE.load(Ordering::Acquire) != UP {
        bring_up(config);
    }
}

/// Whether anything has ever been allocated. Ordering as in [`ensure_up`].
pub(crate) fn is_up() -> bool {
    STATE.load(Ordering::Acquire) == UP
}

#[cold]
#[inline(never)]
fn bring_up(config: &Config) {
    // Acquire and release: as above; Relaxed on failure, as `ensure_up` loads again.
    if STATE.compare_exchange(DOWN, COMING, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        while STATE.load(Ordering::Acquire) == COMING {
            crate::sync::spin_hint();
        }
        return;
    }
    percpu::init();
    transfer::init(percpu::cpus());
    config.apply();
    STATE.store(UP, Ordering::Release);
    // After the heap is up: the C library may allocate here.
    sys::at_fork(before_fork, after_fork, after_fork_in_child);
    sys::stay_loaded();
}

/// Every lock of the heap in the order in which they nest, so that the child finds nothing half done.
fn fork_locks(acquire: bool) {
    let centrals =
        || nodes().iter().enumerate().flat_map(|(n, _)| (0..size_class::CLASSES).map(move |c| central(n, c)));
    if acquire {
        percpu::fork_lock(true);
        centrals().for_each(|central| central.fork_lock(true));
        nodes().iter().for_each(|node| node.fork_lock(true));
        META.fork_lock(true);
    } else {
        META.fork_lock(false);
        nodes().iter().for_each(|node| node.fork_lock(false));
        centrals().for_each(|central| central.fork_lock(false));
        percpu::fork_lock(false);
    }
}

extern "C" fn before_fork() {
    fork_locks(true);
}

extern "C" fn after_fork() {
    fork_locks(false);
}

extern "C" fn after_fork_in_child() {
    fork_locks(false);
    control::after_fork();
}
