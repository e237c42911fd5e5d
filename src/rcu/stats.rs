//! What a domain says of itself.

use core::sync::atomic::Ordering;
use std::time::Duration;

use super::core::Core;

/// How much may wait to be freed, in bytes of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Above this, grace periods are expedited.
    pub low: usize,
    /// At this, callers that may wait, wait.
    pub high: usize,
}

/// What a drain freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RcuReport {
    /// Objects freed, or calls made.
    pub freed: usize,
    /// Bytes of the blocks among them.
    pub freed_bytes: usize,
}

/// How a domain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RcuStats {
    /// Objects that wait for a grace period, or to be freed after it.
    pub pending_pointers: usize,
    /// Bytes of them, as far as they are in sealed pages or on the chain.
    pub pending_bytes: usize,
    /// Grace periods that have ended.
    pub grace_periods: u64,
    /// Waits that were expedited.
    pub expedited: u64,
    /// Times a page was not to be had from the nolock hook.
    pub fallbacks: usize,
    /// Objects chained through their own heads.
    pub chained: usize,
    /// Blocks freed so far.
    pub freed: usize,
    /// Calls made so far.
    pub called: usize,
    /// Blocks lost, because no memory was to be had inside a section.
    pub leaked: usize,
    /// Times a caller had to wait at [`Backlog::high`].
    pub waits: usize,
    /// Pages of pointers in use or spare.
    pub blocks: usize,
    /// Times a reader held a grace period up for longer than the stall timeout.
    pub stalls: u64,
    /// Half of all grace periods took no longer than this.
    pub grace_period_median: Duration,
    /// Of a hundred grace periods, 99 took no longer than this.
    pub grace_period_p99: Duration,
    /// Half of those who waited for a grace period, by [`synchronize`](super::synchronize) or a cookie, waited no
    /// longer than this. Within a factor of two, as all of these.
    pub wait_median: Duration,
    /// 99 of a hundred waited no longer than this.
    pub wait_p99: Duration,
    /// The same of waits that were expedited.
    pub expedited_wait_median: Duration,
    /// The same of waits that were expedited.
    pub expedited_wait_p99: Duration,
}

impl RcuStats {
    pub(super) fn of(core: &Core) -> RcuStats {
        let (periods, counters) = (&core.periods, &core.counters);
        let [waited, waited_expedited] = &periods.stats.waited;
        // Relaxed throughout: statistics.
        RcuStats {
            pending_pointers: core.pending_pointers(),
            pending_bytes: core.pending_bytes(),
            grace_periods: periods.count(),
            expedited: periods.stats.expedited.load(Ordering::Relaxed),
            fallbacks: counters.fallbacks.load(Ordering::Relaxed),
            chained: counters.chained.load(Ordering::Relaxed),
            freed: counters.freed.load(Ordering::Relaxed),
            called: counters.called.load(Ordering::Relaxed),
            leaked: counters.leaked.load(Ordering::Relaxed),
            waits: counters.waits.load(Ordering::Relaxed),
            blocks: core.pool.blocks.load(Ordering::Relaxed),
            stalls: periods.stats.stalls.load(Ordering::Relaxed),
            grace_period_median: periods.stats.latency.quantile(0.5),
            grace_period_p99: periods.stats.latency.quantile(0.99),
            wait_median: waited.quantile(0.5),
            wait_p99: waited.quantile(0.99),
            expedited_wait_median: waited_expedited.quantile(0.5),
            expedited_wait_p99: waited_expedited.quantile(0.99),
        }
    }
}
