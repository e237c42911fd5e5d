//! What a domain says of itself.

use core::fmt;
use std::time::Duration;

use crate::control::Size;

/// How much may wait to be freed, in bytes of blocks ([`set_watermarks`](super::set_watermarks)). `low <= high`. The
/// [module](super) computes what is held back at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Above this, grace periods are expedited.
    pub low: usize,
    /// At this, callers that may wait, wait.
    pub high: usize,
}

impl Backlog {
    /// What a domain has unless told otherwise.
    pub(super) const INITIAL: Backlog = Backlog { low: 4 << 20, high: 32 << 20 };
}

/// What a domain has unless told otherwise.
impl Default for Backlog {
    fn default() -> Self {
        Backlog::INITIAL
    }
}

/// What a drain freed ([`drain`](super::drain)). Its `Display` is one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RcuReport {
    /// Objects freed, or calls made.
    pub freed: usize,
    /// Bytes of the blocks among them, and of what the calls were known to free.
    pub freed_bytes: usize,
}

/// How a domain stands ([`stats`](super::stats)). Counters count from its start; times are upper bounds within a factor
/// of two, in whole microseconds. Its `Display` is one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RcuStats {
    /// Objects that wait for a grace period, or to be freed after it.
    pub pending_pointers: usize,
    /// Bytes of them.
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

impl fmt::Display for RcuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} freed, {} in blocks", self.freed, Size(self.freed_bytes))
    }
}

impl fmt::Display for RcuStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RcuStats { pending_pointers, grace_periods, expedited, waits, stalls, leaked, .. } = *self;
        write!(f, "{pending_pointers} pending, {}, {} freed, ", Size(self.pending_bytes), self.freed)?;
        write!(f, "{} called, {leaked} leaked, {grace_periods} grace periods ", self.called)?;
        write!(f, "(median {:?}, 99 % {:?}), ", self.grace_period_median, self.grace_period_p99)?;
        write!(f, "{expedited} expedited, {waits} waits at the high mark, {stalls} stalls")
    }
}
