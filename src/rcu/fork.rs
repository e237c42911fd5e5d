//! Carrying domains across `fork`: every lock is free in the child, and what remains is counted anew.

use core::sync::atomic::{AtomicU32, Ordering};

use super::core::Core;
use super::default::DEFAULT;
use super::reader::{renew_thread_id, thread_id};
use crate::lock::Lock;

/// The domains that there are beside the default one.
static DOMAINS: Lock<Vec<CorePtr>> = Lock::new(Vec::new());

#[derive(PartialEq)]
struct CorePtr(*const Core);
// SAFETY: a `Core` is shared between threads; the pointer is followed under the lock only, while it is listed.
unsafe impl Send for CorePtr {}

/// Who forks. Relaxed: written and read by that thread, under the lock of [`DOMAINS`].
static FORKER: AtomicU32 = AtomicU32::new(0);

/// Called once.
pub(super) fn init() {
    crate::sys::at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
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

extern "C" fn before_fork() {
    let domains = DOMAINS.lock();
    FORKER.store(thread_id(), Ordering::Relaxed);
    each(&domains, |core| core.fork_lock(true));
    // Released after the fork.
    core::mem::forget(domains);
}

extern "C" fn after_fork_in_parent() {
    // SAFETY: the lock is held since `before_fork`.
    let domains = unsafe { DOMAINS.value_of_held() };
    each(domains, |core| core.fork_lock(false));
    DOMAINS.release();
}

extern "C" fn after_fork_in_child() {
    let (before, now) = (FORKER.load(Ordering::Relaxed), renew_thread_id());
    // SAFETY: the lock is held since `before_fork`.
    let domains = unsafe { DOMAINS.value_of_held() };
    each(domains, |core| {
        core.fork_lock(false);
        core.after_fork(before, now);
    });
    DOMAINS.release();
}
