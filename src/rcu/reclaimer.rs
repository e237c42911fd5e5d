//! The thread that works off what was deferred: one for the default domain, one for each domain of one's own.
//!
//! It starts when something is deferred for the first time, sleeps while nothing waits, and is started anew
//! in the child of a `fork`. A program that would rather do without calls `poll_once` itself.

use core::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::BlockSource;
use super::core::{AGE, Collect, Core, Progress};
use crate::sys;

const STACK: usize = 64 << 10;

/// How long to sleep between looks at the readers.
const WAIT: Duration = Duration::from_micros(500);
const WAIT_IN_HURRY: Duration = Duration::from_micros(20);

/// Whether the program has asked for no thread.
static UNWANTED: AtomicBool = AtomicBool::new(false);

/// Says whether reclaimers may be started. Relaxed: a setting.
pub(super) fn allow(allowed: bool) {
    UNWANTED.store(!allowed, Ordering::Relaxed);
}

/// Starts the default domain's, unless it runs.
#[cold]
pub(super) fn start_default() {
    let core = &super::default_domain();
    spawn(core, "pcp-rcu", || work(&super::DEFAULT, &super::Heap, || true));
}

/// Starts `body` as the reclaimer of `core`, unless it has one. Where no thread can be had, whoever defers helps.
pub(super) fn spawn(core: &Core, name: &str, body: impl FnOnce() + Send + 'static) {
    if UNWANTED.load(Ordering::Relaxed) || core.served.swap(true, Ordering::Relaxed) {
        return;
    }
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(body);
    if thread.is_err() {
        core.served.store(false, Ordering::Relaxed);
    }
}

/// Works until `goes_on` says no.
pub(super) fn work(core: &Core, source: &dyn BlockSource, goes_on: impl Fn() -> bool) {
    while goes_on() {
        // Sequentially consistent, here and below: see `Core::announce`.
        let signal = core.signal.load(Ordering::SeqCst);
        let nap = match core.poll(source, Collect::Aged) {
            Progress::Freed(_) => continue,
            Progress::Waiting if core.in_hurry() => Some(WAIT_IN_HURRY),
            Progress::Waiting => Some(WAIT),
            Progress::Watching => Some(AGE),
            Progress::Idle => None,
        };
        if core.is_awaited() {
            core.periods.advance();
            core.wake_done();
        }
        core.sleeping.store(true, Ordering::SeqCst);
        if core.signal.load(Ordering::SeqCst) == signal {
            // A deferral from a nolock context announces nothing, so not even idleness sleeps for ever.
            let nap = if core.is_awaited() { WAIT } else { nap.unwrap_or(Duration::from_millis(500)) };
            sys::futex_wait_for(&core.signal, signal, nap);
        }
        core.sleeping.store(false, Ordering::SeqCst);
    }
    core.served.store(false, Ordering::Relaxed);
}
