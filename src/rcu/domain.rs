//! Domains of one's own: readers that hold up nobody else's grace periods.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use super::by_thread::ByThread;
use super::cookie::{Cookie, CoreRef, Holder};
use super::core::{Core, assert_outside};
use super::epoch::Slot;
use super::reader::{enter, own_slot, slot_here, thread_id};
use super::{Backlog, BlockSource, Heap, RcuHead, RcuReport, RcuStats};
use crate::ConfigError;

/// A domain: its sections, grace periods and deferred frees have nothing to do with any other's.
///
/// The same operations as the functions of this module, as methods. Pages of pointers come from `S`; what is
/// freed are blocks of the one heap. Frees go through a page under a lock rather than per-CPU pages.
///
/// Dropping a domain frees what waits in it, and ends its grace periods: cookies that outlive it are done.
///
/// ```
/// use pcpalloc::rcu::{Domain, Heap};
///
/// let domain = Domain::new(Heap);
/// let section = domain.read_lock();
/// domain.retire(Box::new(String::from("still being read, as far as is known")));
/// drop(section);
/// let report = domain.drain();
/// # let _ = report;
/// assert_eq!(domain.stats().pending_pointers, 0);
/// ```
#[doc(alias = "srcu_struct")]
#[doc(alias = "Collector")]
pub struct Domain<S: BlockSource + 'static = Heap> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: BlockSource> {
    core: Core,
    source: S,
    /// Each thread's slot. Belongs to the core, which is dropped with it.
    slots: ByThread,
    /// The domain was dropped; what is left is for cookies, and for the reclaimer to find out. Relaxed: ordered by
    /// the announcement that follows.
    closed: AtomicBool,
}

impl<S: BlockSource> Holder for Inner<S> {
    fn core(&self) -> &Core {
        &self.core
    }

    fn reads(&self) -> bool {
        // SAFETY: slots of the default domain live for ever.
        let own = unsafe { own_slot().as_ref() };
        own.and_then(|own| self.slots.get(own.number, thread_id())).is_some_and(|slot| slot.state.reads())
    }
}

impl<S: BlockSource> Inner<S> {
    fn slot(&self) -> &Slot {
        let (number, thread) = (slot_here().number, thread_id());
        match self.slots.get(number, thread) {
            Some(slot) => slot,
            None => self.slots.take(number, thread, &self.core.periods.slots),
        }
    }
}

impl<S: BlockSource> Drop for Inner<S> {
    fn drop(&mut self) {
        super::fork::strike_off(&self.core);
        self.core.finish(&self.source);
    }
}

impl<S: BlockSource> Drop for Domain<S> {
    fn drop(&mut self) {
        let inner = &self.inner;
        // One that is dropped by one of its own calls is finished by its reclaimer, which made the call: nobody
        // else can work on a domain without borrowing it.
        if !inner.core.is_disposing() {
            inner.core.finish(&inner.source);
        }
        inner.closed.store(true, Ordering::Relaxed);
        inner.core.announce();
    }
}

/// A read-side critical section of a [`Domain`]: ends when it is dropped.
#[doc(alias = "srcu_read_unlock")]
#[must_use = "the section ends when the guard is dropped"]
#[derive(Debug)]
pub struct DomainGuard<'a> {
    slot: &'a Slot,
    _not_send: PhantomData<*mut ()>,
}

impl Drop for DomainGuard<'_> {
    fn drop(&mut self) {
        self.slot.state.leave();
    }
}

impl<S: BlockSource> Domain<S> {
    /// A domain whose pages of pointers come from `source`: [`Heap`] unless there is a reason.
    #[doc(alias = "init_srcu_struct")]
    pub fn new(source: S) -> Self {
        super::default::default_domain();
        let (core, slots, closed) = (Core::new(false), ByThread::new(), AtomicBool::new(false));
        let inner = Arc::new(Inner { core, source, slots, closed });
        super::fork::enlist(&inner.core);
        Domain { inner }
    }

    /// Begins a section. Costs what [`read_lock`](super::read_lock) does and a look-up of the thread's slot. The first
    /// call of a thread allocates.
    ///
    /// # Panics
    /// If the thread is inside 65535 sections of the domain already.
    #[doc(alias = "srcu_read_lock")]
    pub fn read_lock(&self) -> DomainGuard<'_> {
        let slot = self.inner.slot();
        enter(slot, &self.inner.core.periods.numbers);
        DomainGuard { slot, _not_send: PhantomData }
    }

    /// As [`synchronize`](super::synchronize).
    ///
    /// # Panics
    /// If the thread is inside a section of this domain.
    #[doc(alias = "synchronize_srcu")]
    pub fn synchronize(&self) {
        assert_outside(self.inner.reads(), "Domain::synchronize");
        self.inner.core.periods.wait(self.inner.core.periods.snap(), false);
    }

    /// As [`synchronize_expedited`](super::synchronize_expedited).
    ///
    /// # Panics
    /// If the thread is inside a section of this domain.
    pub fn synchronize_expedited(&self) {
        assert_outside(self.inner.reads(), "Domain::synchronize_expedited");
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
        assert_outside(self.inner.reads(), "Domain::drain");
        self.inner.core.assert_not_disposing("Domain::drain");
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
        unsafe { self.inner.core.call_nolock(head, func) }
    }

    /// As [`retire`](super::retire).
    pub fn retire<T: Send + 'static>(&self, value: Box<T>) {
        super::linked::retire_on(&self.inner.core, value, &self.inner.source, self.inner.reads());
        self.serve();
    }

    /// As [`poll_once`](super::poll_once).
    pub fn poll_once(&self) -> usize {
        self.inner.core.poll_once(&self.inner.source)
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
        self.inner.core.set_backlog(backlog)
    }

    /// As [`set_stall_timeout`](super::set_stall_timeout).
    pub fn set_stall_timeout(&self, timeout: Duration) {
        self.inner.core.periods.set_stall_timeout(timeout);
    }

    /// As [`stats`](super::stats).
    pub fn stats(&self) -> RcuStats {
        self.inner.core.stats()
    }

    /// Starts the domain's reclaimer, unless it runs. It works until the domain is dropped.
    fn serve(&self) {
        if self.inner.core.served.load(Ordering::Relaxed) {
            return;
        }
        let inner = self.inner.clone();
        super::reclaimer::spawn(&self.inner.core, "pcp-rcu-domain", move || {
            super::reclaimer::work(&inner.core, &inner.source, || !inner.closed.load(Ordering::Relaxed));
        });
    }
}

impl<S: BlockSource> core::fmt::Debug for Domain<S> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Domain").field("stats", &self.stats()).finish()
    }
}

impl Default for Domain<Heap> {
    fn default() -> Self {
        Domain::new(Heap)
    }
}
