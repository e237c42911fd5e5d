//! The one heap of the process: brought up once, carried across `fork`.

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use core::time::Duration;

use crate::slab::shard::shards;
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

/// The thread that brings the heap up, while one does. Relaxed throughout, as is the next: a thread looks for its own number,
/// which it has stored itself.
static BRINGER: AtomicU32 = AtomicU32::new(0);
/// The thread that registers the handlers for `fork`, or has.
static REGISTRAR: AtomicU32 = AtomicU32::new(0);

/// The process in which that thread is at it, 0 if there was none so far, or that it is done.
static REGISTRATION: AtomicU32 = AtomicU32::new(0);
const REGISTERED: u32 = u32::MAX;

/// The thread that holds the locks of the heap, for a `fork`. Relaxed: as above.
static FORKER: AtomicU32 = AtomicU32::new(0);

/// What a layer above does around a `fork`, each with no lock of the heap held: before, in the parent and in the child. In the
/// parent it may be called without having been called before.
pub(crate) struct AroundFork {
    pub(crate) before: fn(),
    pub(crate) in_parent: fn(),
    pub(crate) in_child: fn(),
}

/// The layer above that takes part in forks.
static ABOVE: AtomicPtr<AroundFork> = AtomicPtr::new(core::ptr::null_mut());
/// Forks under way: from before they look who takes part until the process is made.
static FORKS: AtomicU32 = AtomicU32::new(0);

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
    // Acquire: as in `ensure_up`.
    let state = STATE.load(Ordering::Acquire);
    // Every slow path comes here in a program whose settings are the default: no more than a look.
    if state == UP_BY_DEFAULT {
        return replace_default(config);
    }
    let me = sys::thread_id();
    if state == DOWN {
        register_for_fork(me);
    }
    // Relaxed: what was set is seen by the loads below.
    match STATE.compare_exchange(DOWN, COMING, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {}
        Err(UP_BY_DEFAULT) => return replace_default(config),
        Err(_) => {
            // A thread that brings the heap up comes here if the C library allocates on its way (`dlsym` does for a
            // name that it does not find), and is served without stacks.
            if BRINGER.load(Ordering::Relaxed) != me {
                // Acquire: as in `ensure_up`.
                while !wait_while(|| STATE.load(Ordering::Acquire) == COMING) {}
            }
            return;
        }
    }
    BRINGER.store(me, Ordering::Relaxed);
    let own = config;
    let config = config.with_environment(false);
    // Before anything can be allocated: the C library may do so in what follows.
    checked::init(config.hardening());
    percpu::init(config.rseq, config.membarrier, config.shards);
    checked::sample(config.guarded());
    transfer::init(percpu::cpus());
    config.apply();
    BRINGER.store(0, Ordering::Relaxed);
    let state = if cfg!(feature = "capi") && *own == Config::new() { UP_BY_DEFAULT } else { UP };
    STATE.store(state, Ordering::Release);
    sys::stay_loaded();
    #[cfg(feature = "profile")]
    crate::profile::start_if_wanted();
    control::arm_exit_report();
}

/// Has every `fork` from now on wait until the heap is up, and take its locks. Before the heap starts to come up, since a
/// child without the thread that is at it would wait for ever.
///
/// The C library registers under a lock of its own, which every `fork` holds while it makes the process: one that is made
/// in the middle of this finds the heap down, and registers for itself. The C library may also allocate under that lock, and
/// the heap then comes up inside of this.
#[cold]
fn register_for_fork(me: u32) {
    let process = std::process::id();
    loop {
        // Acquire, paired with the release below: whoever lets the heap come up does so when the handlers are there.
        let found = REGISTRATION.load(Ordering::Acquire);
        if found == REGISTERED {
            return;
        }
        if found == process {
            // Not for ever: who is here may hold the lock that the other needs, in a handler of somebody else's.
            if REGISTRAR.load(Ordering::Relaxed) == me
                || !wait_while(|| REGISTRATION.load(Ordering::Acquire) == process)
            {
                return;
            }
        } else if REGISTRATION.compare_exchange(found, process, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // Relaxed: what is stored says no more than who stored it.
            REGISTRAR.store(me, Ordering::Relaxed);
            sys::at_fork(before_fork, after_fork, after_fork_in_child);
            REGISTRATION.store(REGISTERED, Ordering::Release);
        }
    }
}

/// Turns of a wait before it sleeps, how long it does so each time, and how often: ten seconds in all, or more.
const SPINS: u32 = 100;
const NAP: Duration = Duration::from_micros(200);
const NAPS: u32 = 50_000;

/// Waits for another thread, which gets to run even if this one is more urgent; whether the wait is over.
#[cold]
pub(crate) fn wait_while(goes_on: impl Fn() -> bool) -> bool {
    // Nobody wakes who sleeps on this.
    static BED: AtomicU32 = AtomicU32::new(0);
    for turn in 0..SPINS + NAPS {
        if !goes_on() {
            return true;
        }
        if turn < SPINS { crate::sync::spin_hint() } else { sys::futex_wait_for(&BED, 0, NAP) }
    }
    false
}

/// Puts settings in force that come after the heap, unless they are the same or others came first.
fn replace_default(config: &Config) {
    // Relaxed: settings stand for themselves.
    if *config != Config::new()
        && STATE.compare_exchange(UP_BY_DEFAULT, UP, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        let config = config.with_environment(true);
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
    let of_class = |class| shards(class).map(move |shard| central(shard, class));
    let centrals = || (0..size_class::CLASSES).flat_map(of_class);
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

/// Has the layer above take part in every `fork` from now on. (Handlers that it registered itself in the middle of one would
/// not be called for that process, and be there in it.)
///
/// Those under way that have not seen it are waited for, though not for ever: a handler of somebody else's may wait for
/// something that this thread holds. The heap is up.
pub(crate) fn join_forks(above: &'static AroundFork) {
    // Sequentially consistent, both, and in `before_fork` likewise: either a fork sees who takes part, or it is seen here.
    ABOVE.store(core::ptr::from_ref(above).cast_mut(), Ordering::SeqCst);
    wait_while(|| FORKS.load(Ordering::SeqCst) != 0);
}

fn above() -> Option<&'static AroundFork> {
    // SAFETY: null, or what `join_forks` got.
    unsafe { ABOVE.load(Ordering::SeqCst).as_ref() }
}

/// Takes the locks of a heap that is up. One that is not is about to be, as this is registered by whoever brings it up then,
/// and which locks there are is not known before: so it is waited for, though not for ever, in case that thread waits for
/// something that this one holds. If it is this very thread, in a signal handler, there are no locks to be taken.
extern "C" fn before_fork() {
    // Sequentially consistent: see `join_forks`.
    FORKS.fetch_add(1, Ordering::SeqCst);
    let me = sys::thread_id();
    // Acquire: as in `ensure_up`.
    let state = || STATE.load(Ordering::Acquire);
    let is_mine = |state| if state == DOWN { &REGISTRAR } else { &BRINGER }.load(Ordering::Relaxed) == me;
    if state() < UP && (is_mine(state()) || !wait_while(|| state() < UP)) {
        return;
    }
    if let Some(above) = above() {
        (above.before)();
    }
    fork_locks(true);
    FORKER.store(me, Ordering::Relaxed);
}

extern "C" fn after_fork() {
    // Whoever joins the next may go on: the process is made.
    FORKS.fetch_sub(1, Ordering::SeqCst);
    // Whoever has not taken the locks does not give back what another thread has taken meanwhile.
    if FORKER.load(Ordering::Relaxed) == sys::thread_id() {
        FORKER.store(0, Ordering::Relaxed);
        fork_locks(false);
    }
    if let Some(above) = above() {
        (above.in_parent)();
    }
}

extern "C" fn after_fork_in_child() {
    // Relaxed: this thread is alone.
    FORKS.store(0, Ordering::Relaxed);
    if !is_up() {
        // Forked by the thread that brings the heap up, which goes on with it here; or else nobody does, and what this one
        // asks for is served without stacks.
        return BRINGER.store(sys::thread_id(), Ordering::Relaxed);
    }
    if FORKER.swap(0, Ordering::Relaxed) != 0 {
        fork_locks(false);
    }
    observe::after_fork();
    checked::after_fork();
    control::after_fork();
    if let Some(above) = above() {
        (above.in_child)();
    }
}
