//! What a domain is made of. How something comes to wait in it is in `defer.rs`, how it is worked off in `work.rs`.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use core::task::Waker;

use super::entry::bytes_of;
use super::grace::GracePeriods;
use super::head::Chain;
use super::page::PointerPage;
use super::pool::Pool;
use super::reader::thread_id;
use super::work::Work;
use super::{Backlog, RcuStats};
use crate::list::List;
use crate::lock::Lock;
use crate::{ConfigError, percpu, sys};

pub(super) struct Core {
    pub(super) periods: GracePeriods,
    /// Whether this domain has the CPUs' deferred stacks to itself.
    percpu: bool,
    /// Sealed pages.
    pub(super) queue: List<PointerPage>,
    /// The page that fills where there are no per-CPU stacks.
    pub(super) current: Lock<CurrentPage>,
    pub(super) chain: Chain,
    pub(super) work: Lock<Work>,
    /// Id of the thread that disposes of a batch right now, for calls that must not be made from there.
    pub(super) disposing: AtomicU32,
    pub(super) pool: Pool,
    /// Bytes and pointers of sealed pages that are not freed yet. Relaxed, as bounds kept to within a page per thread, but for
    /// the pointers that are done.
    pub(super) bytes: AtomicUsize,
    pub(super) pointers: AtomicUsize,
    pub(super) low: AtomicUsize,
    pub(super) high: AtomicUsize,
    /// Somebody wants the next grace period soon. Relaxed: a hint.
    pub(super) hurry: AtomicBool,
    /// Changes when there is something to do; the reclaimer waits on it.
    pub(super) signal: AtomicU32,
    /// The reclaimer sleeps for long, so a change must be announced.
    pub(super) sleeping: AtomicBool,
    /// Whether a reclaimer runs.
    pub(super) served: AtomicBool,
    /// Something may wait in pages that have not been sealed.
    pub(super) armed: AtomicBool,
    /// Who awaits which grace period.
    pub(super) wakers: Lock<Vec<(u64, Waker)>>,
    pub(super) counters: Counters,
}

/// Relaxed throughout: statistics.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) freed: AtomicUsize,
    pub(super) called: AtomicUsize,
    pub(super) fallbacks: AtomicUsize,
    pub(super) chained: AtomicUsize,
    pub(super) leaked: AtomicUsize,
    pub(super) waits: AtomicUsize,
}

pub(super) struct CurrentPage(pub(super) *mut PointerPage);
// SAFETY: the page is used under the lock only.
unsafe impl Send for CurrentPage {}

impl Core {
    pub(super) const fn new(percpu: bool) -> Core {
        Core {
            periods: GracePeriods::new(),
            percpu,
            queue: List::new(),
            current: Lock::new(CurrentPage(null_mut())),
            chain: Chain::new(),
            work: Lock::new(Work::new()),
            disposing: AtomicU32::new(0),
            pool: Pool::new(),
            bytes: AtomicUsize::new(0),
            pointers: AtomicUsize::new(0),
            low: AtomicUsize::new(Backlog::INITIAL.low),
            high: AtomicUsize::new(Backlog::INITIAL.high),
            hurry: AtomicBool::new(false),
            signal: AtomicU32::new(0),
            sleeping: AtomicBool::new(false),
            served: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            wakers: Lock::new(Vec::new()),
            counters: Counters {
                freed: AtomicUsize::new(0),
                called: AtomicUsize::new(0),
                fallbacks: AtomicUsize::new(0),
                chained: AtomicUsize::new(0),
                leaked: AtomicUsize::new(0),
                waits: AtomicUsize::new(0),
            },
        }
    }

    /// Whether this is the default domain.
    pub(super) fn is_default(&self) -> bool {
        self.percpu
    }

    pub(super) fn uses_percpu(&self) -> bool {
        self.percpu && percpu::deferred_available()
    }

    pub(super) fn backlog(&self) -> Backlog {
        Backlog { low: self.low.load(Ordering::Relaxed), high: self.high.load(Ordering::Relaxed) }
    }

    pub(super) fn set_backlog(&self, backlog: Backlog) -> Result<(), ConfigError> {
        if backlog.low > backlog.high {
            return Err(ConfigError::new("rcu watermarks: low is above high"));
        }
        self.low.store(backlog.low, Ordering::Relaxed);
        self.high.store(backlog.high, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that wait in sealed pages and on the chain.
    pub(super) fn pending_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed) + self.chain.bytes.load(Ordering::Relaxed)
    }

    /// Pointers in the page that fills where there are no per-CPU stacks, and their bytes.
    fn in_current(&self) -> (usize, usize) {
        let current = self.current.lock();
        // SAFETY: the page is used under the lock only, which is held until this function returns.
        unsafe { current.0.as_ref() }.map_or((0, 0), |page| (page.len, page.bytes))
    }

    /// Bytes that wait in pages which still fill. It looks at every pointer of them: for statistics.
    pub(super) fn filling_bytes(&self) -> usize {
        let (_, mut filling) = self.in_current();
        if self.uses_percpu() {
            // Calls wait until this has returned, so their heads are what they were noted as.
            percpu::each_deferred(|word| filling += bytes_of(word));
        }
        filling
    }

    /// Pages of pointers in use or spare.
    pub(super) fn pages(&self) -> usize {
        self.pool.pages.load(Ordering::Relaxed)
    }

    /// Pointers that wait, in pages sealed or not and on the chain.
    pub(super) fn pending_pointers(&self) -> usize {
        let (mut filling, _) = self.in_current();
        if self.uses_percpu() {
            filling += (0..percpu::cpus()).filter_map(percpu::deferred_count).sum::<usize>();
        }
        // Acquire, paired with the releases in `Core::note_done` and `Chain::note_done`.
        self.pointers.load(Ordering::Acquire) + self.chain.len.load(Ordering::Acquire) + filling
    }

    pub(super) fn stats(&self) -> RcuStats {
        let (periods, counters) = (&self.periods, &self.counters);
        let [waited, waited_expedited] = &periods.stats.waited;
        // Relaxed throughout: statistics.
        RcuStats {
            pending_pointers: self.pending_pointers(),
            pending_bytes: self.pending_bytes() + self.filling_bytes(),
            grace_periods: periods.count(),
            expedited: periods.stats.expedited.load(Ordering::Relaxed),
            fallbacks: counters.fallbacks.load(Ordering::Relaxed),
            chained: counters.chained.load(Ordering::Relaxed),
            freed: counters.freed.load(Ordering::Relaxed),
            called: counters.called.load(Ordering::Relaxed),
            leaked: counters.leaked.load(Ordering::Relaxed),
            waits: counters.waits.load(Ordering::Relaxed),
            blocks: self.pages(),
            stalls: periods.stats.stalls.load(Ordering::Relaxed),
            grace_period_median: periods.stats.latency.quantile(0.5),
            grace_period_p99: periods.stats.latency.quantile(0.99),
            wait_median: waited.quantile(0.5),
            wait_p99: waited.quantile(0.99),
            expedited_wait_median: waited_expedited.quantile(0.5),
            expedited_wait_p99: waited_expedited.quantile(0.99),
        }
    }

    /// Pages may fill from now on, or something is in one already: somebody has to look after them.
    ///
    /// Called after the fact, with the lock of whatever page it was released: either whoever disarms looks there
    /// afterwards, or we see that it has disarmed. The fence, whose partner is in `disarm`, says the same of a
    /// CPU that has had no page before.
    pub(super) fn arm(&self) {
        fence(Ordering::SeqCst);
        if !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::Relaxed) {
            self.announce();
        }
    }

    /// Something waits. Starts the reclaimer, or wakes it if it sleeps.
    pub(super) fn announce(&self) {
        // Sequentially consistent, both, and in the reclaimer likewise: either it sees the new value and does
        // not sleep, or we see that it sleeps.
        self.signal.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            sys::futex_wake(&self.signal);
        }
        // A domain of one's own sees to its reclaimer itself.
        if self.percpu && !self.served.load(Ordering::Relaxed) {
            super::reclaimer::start_default();
        }
    }

    /// Memory is short: has the reclaimer hurry, if there is one. Starts none, since that takes memory.
    pub(super) fn expedite(&self) {
        self.hurry.store(true, Ordering::Relaxed);
        // Ordering: as in `announce`.
        self.signal.fetch_add(1, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            sys::futex_wake(&self.signal);
        }
    }

    /// Whether this thread is in the middle of disposing of a batch: it runs a callback.
    pub(super) fn is_disposing(&self) -> bool {
        let thread = self.disposing.load(Ordering::Relaxed);
        thread != 0 && thread == thread_id()
    }

    pub(super) fn assert_not_disposing(&self, what: &str) {
        assert!(!self.is_disposing(), "{what} inside a deferred call waits for itself");
    }

    /// Whether the reclaimer should not take its time.
    pub(super) fn in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }
}

pub(super) fn assert_outside(inside: bool, what: &str) {
    assert!(!inside, "{what} inside a read-side critical section waits for ever: drop the guard first");
}
