//! Carrying domains across `fork`: every lock is free in the child, and what remains is counted anew.

use core::sync::atomic::{AtomicU32, Ordering};

use super::core::Core;
use super::default::DEFAULT;
use super::reader::{renew_thread_id, thread_id};
use crate::heap::{self, AroundFork};
use crate::lock::Lock;

/// The domains that there are beside the default one.
static DOMAINS: Lock<Vec<CorePtr>> = Lock::new(Vec::new());

#[derive(PartialEq)]
struct CorePtr(*const Core);
// SAFETY: a `Core` is shared between threads; the pointer is followed under the lock only, while it is listed.
unsafe impl Send for CorePtr {}

/// The thread that holds the locks of all domains, for a `fork`; 0 if none does. Relaxed: a thread looks for its own number,
/// which it has stored itself.
static FORKER: AtomicU32 = AtomicU32::new(0);

static AROUND: AroundFork =
    AroundFork { before: before_fork, in_parent: after_fork_in_parent, in_child: after_fork_in_child };

/// Has domains take part in every `fork` from now on, and calls `prepare` while there is none. Called before there are any.
///
/// A process may be half copied when what the kernel knows of it changes: it has copied that first, and memory last, so that
/// the child would find a registration noted that it lacks.
pub(super) fn join(prepare: impl FnOnce()) {
    heap::join_forks(&AROUND);
    let _domains = DOMAINS.lock();
    prepare();
}

/// Lists a domain, which stays where it is until it is struck off.
pub(super) fn enlist(core: &Core) {
    DOMAINS.lock().push(CorePtr(core));
}

/// Strikes a domain off the list.
pub(super) fn strike_off(core: &Core) {
    DOMAINS.lock().retain(|listed| *listed != CorePtr(core));
}

/// Runs `f` on every domain. The caller holds the lock of [`DOMAINS`] without a guard.
fn each(domains: &[CorePtr], f: impl Fn(&Core)) {
    f(&DEFAULT);
    // SAFETY: listed, so there; the lock keeps it so.
    domains.iter().for_each(|core| f(unsafe { &*core.0 }));
}

fn before_fork() {
    let domains = DOMAINS.lock();
    FORKER.store(thread_id(), Ordering::Relaxed);
    each(&domains, |core| core.fork_lock(true));
    // Released after the fork.
    core::mem::forget(domains);
}

fn after_fork_in_parent() {
    // Whoever has not taken the locks does not give back what another thread has taken meanwhile.
    if FORKER.load(Ordering::Relaxed) != thread_id() {
        return;
    }
    FORKER.store(0, Ordering::Relaxed);
    // SAFETY: the lock is held since `before_fork`.
    let domains = unsafe { DOMAINS.value_of_held() };
    each(domains, |core| core.fork_lock(false));
    DOMAINS.release();
}

fn after_fork_in_child() {
    let (before, now) = (FORKER.swap(0, Ordering::Relaxed), renew_thread_id());
    if before == 0 {
        return;
    }
    // SAFETY: the lock is held since `before_fork`.
    let domains = unsafe { DOMAINS.value_of_held() };
    each(domains, |core| {
        core.fork_lock(false);
        core.after_fork(before, now);
    });
    DOMAINS.release();
}
