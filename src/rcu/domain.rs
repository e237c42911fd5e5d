//! Domains of one's own: readers that hold up nobody else's grace periods.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use thread_local::ThreadLocal;

use super::cookie::{Cookie, CoreRef, Holder};
use super::core::{Collect, Core, Progress};
use super::reader::Slot;
use super::{Backlog, BlockSource, Heap, RcuHead, RcuReport, RcuStats};
use crate::ConfigError;

/// A domain: its sections, grace periods and deferred frees have nothing to do with any other's.
///
/// The same operations as the functions of this module, as methods. Pages of pointers come from `S`; what is
/// freed are blocks of the one heap. Frees go through a page under a lock rather than per-CPU pages.
///
/// Dropping a domain frees what waits in it.
pub struct Domain<S: BlockSource + 'static = Heap> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: BlockSource> {
    core: Core,
    source: S,
    /// Each thread's slot, found without a search. Belongs to the core, which is dropped with it.
    slots: ThreadLocal<SlotRef>,
}

struct SlotRef(NonNull<Slot>);
// SAFETY: slots are made of atomics.
unsafe impl Send for SlotRef {}

impl<S: BlockSource> Holder for Inner<S> {
    fn core(&self) -> &Core {
        &self.core
    }
}

impl<S: BlockSource> Inner<S> {
    fn slot(&self) -> &Slot {
        let slot = self.slots.get_or(|| SlotRef(NonNull::from(self.core.periods.slots.take())));
        // SAFETY: slots live as long as the core.
        unsafe { slot.0.as_ref() }
    }

    fn reads(&self) -> bool {
        // SAFETY: as in `slot`.
        self.slots.get().is_some_and(|slot| unsafe { slot.0.as_ref() }.reads())
    }
}

impl<S: BlockSource> Drop for Inner<S> {
    fn drop(&mut self) {
        // No section is left: guards borrow the domain.
        self.core.drain(&self.source);
        self.core.pool.empty(&self.source);
    }
}

/// A read-side critical section of a [`Domain`].
#[must_use = "the section ends when the guard is dropped"]
#[derive(Debug)]
pub struct DomainGuard<'a> {
    slot: &'a Slot,
    _not_send: PhantomData<*mut ()>,
}

impl Drop for DomainGuard<'_> {
    fn drop(&mut self) {
        self.slot.leave();
    }
}

impl<S: BlockSource> Domain<S> {
    /// A domain whose pages of pointers come from `source`.
    pub fn new(source: S) -> Self {
        super::default_domain();
        Domain { inner: Arc::new(Inner { core: Core::new(false), source, slots: ThreadLocal::new() }) }
    }

    /// Begins a section. The first call of a thread allocates.
    pub fn read_lock(&self) -> DomainGuard<'_> {
        let slot = self.inner.slot();
        slot.enter(&self.inner.core.periods);
        DomainGuard { slot, _not_send: PhantomData }
    }

    fn assert_may_wait(&self, what: &str) {
        assert!(!self.inner.reads(), "{what} inside a read-side critical section of its own domain waits for ever");
        super::assert_not_disposing(&self.inner.core, what);
    }

    /// As [`synchronize`](super::synchronize).
    ///
    /// # Panics
    /// If the thread is inside a section of this domain.
    pub fn synchronize(&self) {
        self.assert_may_wait("Domain::synchronize");
        self.inner.core.periods.wait(self.inner.core.periods.snap(), false);
    }

    /// As [`synchronize_expedited`](super::synchronize_expedited).
    ///
    /// # Panics
    /// If the thread is inside a section of this domain.
    pub fn synchronize_expedited(&self) {
        self.assert_may_wait("Domain::synchronize_expedited");
        self.inner.core.periods.wait(self.inner.core.periods.snap(), true);
    }

    /// As [`barrier`](super::barrier).
    ///
    /// # Panics
    /// If the thread is inside a section of this domain, or inside one of its callbacks.
    pub fn barrier(&self) {
        self.drain();
    }

    /// As [`drain`](super::drain).
    ///
    /// # Panics
    /// If the thread is inside a section of this domain, or inside one of its callbacks.
    pub fn drain(&self) -> RcuReport {
        self.assert_may_wait("Domain::drain");
        self.inner.core.drain(&self.inner.source)
    }

    /// As [`start_poll`](super::start_poll).
    pub fn start_poll(&self) -> Cookie {
        self.serve();
        Cookie::new(CoreRef::Own(self.inner.clone()))
    }

    /// As [`free`](super::free).
    ///
    /// # Safety
    /// As for [`free`](super::free), with the sections of this domain.
    pub unsafe fn free(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { self.inner.core.free_slow(ptr, layout, &self.inner.source, self.inner.reads()) };
        self.serve();
    }

    /// As [`free_nolock`](super::free_nolock).
    ///
    /// # Safety
    /// As for [`free_nolock`](super::free_nolock), with the sections of this domain.
    pub unsafe fn free_nolock(&self, head: NonNull<RcuHead>, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { self.inner.core.free_nolock(head, ptr, layout) }
    }

    /// As [`call`](super::call).
    ///
    /// # Safety
    /// As for [`call`](super::call), with the sections of this domain.
    pub unsafe fn call(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
        // SAFETY: the caller's obligation.
        unsafe { self.inner.core.call(head, func) }
    }

    /// As [`retire`](super::retire).
    pub fn retire<T: Send + 'static>(&self, value: Box<T>) {
        super::retire_on(&self.inner.core, value, |ptr, layout| {
            // SAFETY: `retire_on` passes a block of the heap whose box it has taken apart.
            unsafe { self.free(ptr, layout) }
        });
        self.serve();
    }

    /// As [`poll_once`](super::poll_once).
    pub fn poll_once(&self) -> usize {
        match self.inner.core.poll(&self.inner.source, Collect::Aged) {
            Progress::Freed(n) => n,
            _ => 0,
        }
    }

    /// As [`watermarks`](super::watermarks).
    pub fn watermarks(&self) -> Backlog {
        self.inner.core.backlog()
    }

    /// As [`set_watermarks`](super::set_watermarks).
    ///
    /// # Errors
    /// If `low` is above `high`.
    pub fn set_watermarks(&self, backlog: Backlog) -> Result<(), ConfigError> {
        super::set_backlog(&self.inner.core, backlog)
    }

    /// As [`set_stall_timeout`](super::set_stall_timeout).
    pub fn set_stall_timeout(&self, timeout: Duration) {
        self.inner.core.periods.set_stall_timeout(timeout);
    }

    /// As [`stats`](super::stats).
    pub fn stats(&self) -> RcuStats {
        RcuStats::of(&self.inner.core)
    }

    /// Starts the domain's reclaimer, unless it runs. It holds the domain only while it looks.
    fn serve(&self) {
        if self.inner.core.served.load(Ordering::Relaxed) {
            return;
        }
        let domain = Arc::downgrade(&self.inner);
        super::reclaimer::spawn(&self.inner.core, "pcp-rcu-domain", move || {
            while let Some(inner) = domain.upgrade() {
                match inner.core.poll(&inner.source, Collect::Aged) {
                    Progress::Freed(_) => continue,
                    _ => {
                        if inner.core.is_awaited() {
                            inner.core.periods.advance();
                            inner.core.wake_done();
                        }
                    }
                }
                drop(inner);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

impl<S: BlockSource> core::fmt::Debug for Domain<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Domain").field("stats", &self.stats()).finish()
    }
}
