//! Grace periods that one can ask about, wait for, or await.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::Arc;

use super::core::{Core, assert_outside};
use super::default::{default_domain, reads};

/// What keeps a domain's core there for as long as a cookie is.
pub(super) trait Holder: Send + Sync {
    fn core(&self) -> &Core;
    /// Whether the calling thread is inside a section of the domain.
    fn reads(&self) -> bool;
}

#[derive(Clone)]
pub(super) enum CoreRef {
    Default,
    Own(Arc<dyn Holder>),
}

impl CoreRef {
    fn get(&self) -> &Core {
        match self {
            CoreRef::Default => default_domain(),
            CoreRef::Own(holder) => holder.core(),
        }
    }

    fn reads(&self) -> bool {
        match self {
            CoreRef::Default => reads(),
            CoreRef::Own(holder) => holder.reads(),
        }
    }
}

/// A grace period that begins after the cookie was made: when it [is done](Cookie::is_done), every section that
/// was under way then has ended.
///
/// May be kept, sent to other threads and asked from there. As a future it is ready when it is done; the
/// reclaimer's thread drives it, and no runtime is needed. A clone is the same grace period.
///
/// ```
/// use pcpalloc::rcu;
///
/// async fn replaced_and_unseen() {
///     // … unlink something …
///     rcu::start_poll().await;
///     // nobody sees it any more
/// }
/// # let _ = replaced_and_unseen;
/// let cookie = rcu::start_poll();
/// cookie.wait();
/// assert!(cookie.is_done());
/// ```
#[doc(alias = "rcu_gp_oldstate")]
#[derive(Clone)]
pub struct Cookie {
    core: CoreRef,
    number: u64,
}

/// Equal cookies are the same grace period of the same domain.
impl PartialEq for Cookie {
    fn eq(&self, other: &Cookie) -> bool {
        core::ptr::eq(self.core.get(), other.core.get()) && self.number == other.number
    }
}

impl Eq for Cookie {}

impl core::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cookie").field("number", &self.number).field("done", &self.is_done()).finish()
    }
}

impl Cookie {
    pub(super) fn new(core: CoreRef) -> Cookie {
        let number = core.get().periods.snap();
        // Begins the grace period if none is under way.
        core.get().periods.advance();
        Cookie { core, number }
    }

    /// Whether the grace period is over. Helps it along, and never waits.
    #[doc(alias = "poll_state_synchronize_rcu")]
    pub fn is_done(&self) -> bool {
        let periods = &self.core.get().periods;
        if !periods.is_done(self.number) {
            periods.advance();
        }
        periods.is_done(self.number)
    }

    /// Waits until it is over, as [`synchronize`](super::synchronize) does.
    ///
    /// # Panics
    /// If the calling thread is inside a section of the same domain, which it would wait for for ever.
    #[doc(alias = "cond_synchronize_rcu")]
    pub fn wait(&self) {
        assert_outside(self.core.reads(), "Cookie::wait");
        self.core.get().periods.wait(self.number, false);
    }
}

impl Future for Cookie {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.is_done() {
            return Poll::Ready(());
        }
        self.core.get().wake_when_done(self.number, context.waker());
        // It may have ended before the waker was there to be woken.
        if self.is_done() { Poll::Ready(()) } else { Poll::Pending }
    }
}
