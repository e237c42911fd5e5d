//! The one heap of the process: brought up once, carried across `fork`.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::slab::{central, holes, transfer};
use crate::zone::{META, mapping_cache, nodes};
use crate::{Config, checked, control, observe, percpu, size_class, sys};

const DOWN: u32 = 0;
const COMING: u32 = 1;
const UP: u32 = 2;
/// Up with the default settings, which the first caller who has others replaces: C asks for memory before any static
/// of the program can say what it wants.
const UP_BY_DEFAULT: u32 = 3;

static STATE: AtomicU32 = AtomicU32::new(DOWN);

/// The thread that brings the heap up, while one does.
static BRINGER: AtomicU32 = AtomicU32::new(0);

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
    STATE.load(Ordering::Acquire) >= UP
}

#[cold]
#[inline(never)]
fn bring_up(config: &Config) {
    // Relaxed: what was set is seen by the loads below.
    match STATE.compare_exchange(DOWN, COMING, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {}
        Err(UP_BY_DEFAULT) => return replace_default(config),
        Err(_) => {
            // Relaxed: a thread that brings the heap up has stored its own number itself. It comes here if the C
            // library allocates on its way (`dlsym` does for a name that it does not find), and is served without
            // stacks.
            if BRINGER.load(Ordering::Relaxed) != sys::thread_id() {
                // Acquire: as in `ensure_up`.
                while STATE.load(Ordering::Acquire) == COMING {
                    crate::sync::spin_hint();
                }
            }
            return;
        }
    }
    BRINGER.store(sys::thread_id(), Ordering::Relaxed);
    let own = config;
    let config = config.with_environment();
    // Before anything can be allocated: the C library may do so in what follows.
    checked::init(config.hardening());
    percpu::init(config.rseq, config.membarrier);
    checked::sample(config.guarded());
    transfer::init(percpu::cpus());
    config.apply();
    BRINGER.store(0, Ordering::Relaxed);
    let state = if cfg!(feature = "capi") && *own == Config::new() { UP_BY_DEFAULT } else { UP };
    STATE.store(state, Ordering::Release);
    // After the heap is up: the C library may allocate here.
    sys::at_fork(before_fork, after_fork, after_fork_in_child);
    sys::stay_loaded();
    #[cfg(feature = "profile")]
    crate::profile::start_if_wanted();
    control::arm_exit_report();
}

/// Puts settings in force that come after the heap, unless they are the same or others came first.
fn replace_default(config: &Config) {
    // Relaxed: settings stand for themselves.
    if *config != Config::new()
        && STATE.compare_exchange(UP_BY_DEFAULT, UP, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        let config = config.with_environment();
        config.apply();
        if !checked::is_as(config.hardening(), config.guarded()) {
            sys::report(
                b"pcpalloc: memory was handed out before its protections were chosen: use PCPALLOC_CONF for them\n",
            );
        }
        #[cfg(feature = "profile")]
        crate::profile::start_if_wanted();
        control::arm_exit_report();
    }
}

/// Every lock of the heap in the order in which they nest, so that the child finds nothing half done.
fn fork_locks(acquire: bool) {
    let centrals =
        || nodes().iter().enumerate().flat_map(|(n, _)| (0..size_class::CLASSES).map(move |c| central(n, c)));
    if acquire {
        #[cfg(feature = "profile")]
        crate::profile::fork_lock(true);
        observe::fork_lock(true);
        checked::fork_lock(true);
        #[cfg(feature = "profile")]
        crate::profile::fork_lock_book(true);
        percpu::fork_lock(true);
        holes::fork_lock(true);
        centrals().for_each(|central| central.fork_lock(true));
        nodes().iter().for_each(|node| node.fork_lock(true));
        mapping_cache::fork_lock(true);
        META.fork_lock(true);
    } else {
        META.fork_lock(false);
        mapping_cache::fork_lock(false);
        nodes().iter().for_each(|node| node.fork_lock(false));
        centrals().for_each(|central| central.fork_lock(false));
        holes::fork_lock(false);
        percpu::fork_lock(false);
        #[cfg(feature = "profile")]
        crate::profile::fork_lock_book(false);
        observe::fork_lock(false);
        checked::fork_lock(false);
        #[cfg(feature = "profile")]
        crate::profile::fork_lock(false);
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
    observe::after_fork();
    checked::after_fork();
    control::after_fork();
}
