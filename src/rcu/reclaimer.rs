//! The thread that works off what was deferred: one for the default domain, one for each domain of one's own.
//!
//! It starts when something is deferred for the first time, sleeps while nothing waits, and is started anew
//! in the child of a `fork`. A program that would rather do without calls `poll_once` itself.

use core::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::core::Core;
use super::default::{DEFAULT, default_domain};
use super::work::{AGE, Collect, Progress};
use super::{BlockSource, Heap};
use crate::sys;
use crate::zone::MARKS;

/// Destructors and calls of the program run on it, so it is not as small as the work itself would allow; address
/// space until it is used.
const STACK: usize = 256 << 10;

/// Bytes of it that have memory from the start: to free takes none when none is left.
const WARM_STACK: usize = 32 << 10;

/// How long to sleep between looks at the readers.
const WAIT: Duration = Duration::from_micros(500);
/// How long to sleep after a batch, so that the next is worth a barrier: each interrupts every processor that runs one of
/// the program's threads, and what is deferred meanwhile shares it.
const PAUSE: Duration = Duration::from_micros(100);
const WAIT_IN_HURRY: Duration = Duration::from_micros(20);
/// How long to sleep while nothing waits. A deferral from a nolock context announces nothing, so not for ever.
const IDLE: Duration = Duration::from_millis(500);

/// Whether the program has asked for no thread.
static UNWANTED: AtomicBool = AtomicBool::new(false);

/// Says whether reclaimers may be started. Relaxed: a setting.
pub(super) fn allow(allowed: bool) {
    UNWANTED.store(!allowed, Ordering::Relaxed);
}

/// Starts the default domain's, unless it runs.
#[cold]
pub(super) fn start_default() {
    let core = default_domain();
    MARKS.set_expediter(|| default_domain().expedite());
    spawn(core, "pcp-rcu", || work(&DEFAULT, &Heap, || true));
}

/// Starts `body` as the reclaimer of `core`, unless it has one. Where no thread can be had, whoever defers helps.
pub(super) fn spawn(core: &Core, name: &str, body: impl FnOnce() + Send + 'static) {
    if UNWANTED.load(Ordering::Relaxed) || core.served.swap(true, Ordering::Relaxed) {
        return;
    }
    let builder = std::thread::Builder::new().name(name.into()).stack_size(STACK);
    // Signals are for the program's own threads.
    let thread = sys::with_signals_blocked(|| builder.spawn(body));
    if thread.is_err() {
        core.served.store(false, Ordering::Relaxed);
    }
}

/// Works until `goes_on` says no; a change of its mind is to be announced.
pub(super) fn work(core: &Core, source: &dyn BlockSource, goes_on: impl Fn() -> bool) {
    sys::warm_stack::<WARM_STACK>();
    loop {
        // Sequentially consistent, here and below: see `Core::announce`.
        let signal = core.signal.load(Ordering::SeqCst);
        if !goes_on() {
            break;
        }
        let progress = core.poll(source, Collect::Aged);
        let awaited = core.drive();
        let nap = match progress {
            Progress::Freed(_) if core.in_hurry() => continue,
            Progress::Freed(_) => PAUSE,
            Progress::Waiting if core.in_hurry() => WAIT_IN_HURRY,
            _ if awaited => WAIT,
            Progress::Waiting => WAIT,
            Progress::Watching => AGE,
            Progress::Idle => IDLE,
        };
        if nap <= WAIT {
            // Looks again soon enough whatever is announced: nobody needs to make a system call for it.
            std::thread::sleep(nap);
            continue;
        }
        core.sleeping.store(true, Ordering::SeqCst);
        if core.signal.load(Ordering::SeqCst) == signal {
            sys::futex_wait_for(&core.signal, signal, nap);
        }
        core.sleeping.store(false, Ordering::SeqCst);
    }
    core.served.store(false, Ordering::Relaxed);
}
