//! What a domain is made of, and how something comes to wait in it.
//!
//! ```text
//! free          → this CPU's page of pointers (or the domain's, under a lock)
//!   page full   → sealed with a cookie, on the queue                          [seal]
//! free_nolock   → the same page, or the chain through the object itself
//! call          → the chain, or this CPU's page while many wait on the chain
//! ```
//!
//! How it is worked off is in `work.rs`.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};
use core::task::Waker;

use super::block::{Block, ENTRY_MAX, Pool, call_entry, entry, free_entry};
use super::grace::GracePeriods;
use super::head::{Chain, RcuHead};
use super::reader::thread_id;
use super::work::{Collect, Progress, Work};
use super::{Backlog, BlockSource};
use crate::list::List;
use crate::lock::Lock;
use crate::percpu::{self, Array};
use crate::sys;

/// Pointers that one CPU may have pending before grace periods are expedited.
const EXPEDITE_POINTERS: usize = 10_000;

/// Objects on the chain from which on calls go into pages.
const CHAIN_BUSY: usize = 64;

const BACKLOG: Backlog = Backlog { low: 4 << 20, high: 32 << 20 };

pub(super) struct Core {
    pub(super) periods: GracePeriods,
    /// Whether this domain has the CPUs' deferred stacks to itself.
    percpu: bool,
    /// Sealed pages.
    pub(super) queue: List<Block>,
    /// The page that fills where there are no per-CPU stacks.
    pub(super) current: Lock<CurrentBlock>,
    pub(super) chain: Chain,
    pub(super) work: Lock<Work>,
    /// Id of the thread that disposes of a batch right now, for calls that must not be made from there.
    pub(super) disposing: AtomicU32,
    pub(super) pool: Pool,
    /// Bytes and pointers of sealed pages that are not freed yet. Relaxed: bounds kept to within a page per
    /// thread.
    pub(super) bytes: AtomicUsize,
    pub(super) pointers: AtomicUsize,
    low: AtomicUsize,
    high: AtomicUsize,
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

pub(super) struct CurrentBlock(pub(super) *mut Block);
// SAFETY: the page is used under the lock only.
unsafe impl Send for CurrentBlock {}

impl Core {
    pub(super) const fn new(percpu: bool) -> Core {
        Core {
            periods: GracePeriods::new(),
            percpu,
            queue: List::new(),
            current: Lock::new(CurrentBlock(null_mut())),
            chain: Chain::new(),
            work: Lock::new(Work::new()),
            disposing: AtomicU32::new(0),
            pool: Pool::new(),
            bytes: AtomicUsize::new(0),
            pointers: AtomicUsize::new(0),
            low: AtomicUsize::new(BACKLOG.low),
            high: AtomicUsize::new(BACKLOG.high),
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

    pub(super) fn uses_percpu(&self) -> bool {
        self.percpu && percpu::deferred_available()
    }

    pub(super) fn backlog(&self) -> Backlog {
        Backlog { low: self.low.load(Ordering::Relaxed), high: self.high.load(Ordering::Relaxed) }
    }

    pub(super) fn set_backlog(&self, backlog: Backlog) {
        self.low.store(backlog.low, Ordering::Relaxed);
        self.high.store(backlog.high, Ordering::Relaxed);
    }

    /// Bytes that wait in sealed pages and on the chain.
    pub(super) fn pending_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed) + self.chain.bytes.load(Ordering::Relaxed)
    }

    /// Pointers that wait, in pages sealed or not and on the chain.
    pub(super) fn pending_pointers(&self) -> usize {
        // SAFETY: the page is used under the lock only, which is held.
        let mut filling = unsafe { self.current.lock().0.as_ref() }.map_or(0, |block| block.len);
        if self.uses_percpu() {
            filling += (0..percpu::cpus()).filter_map(percpu::deferred_count).sum::<usize>();
        }
        self.pointers.load(Ordering::Relaxed) + self.chain.len.load(Ordering::Relaxed) + filling
    }

    // --- deferring -----------------------------------------------------------------------------------------

    /// Defers the free of a block, the one-argument way: this may lock, allocate, and wait.
    ///
    /// # Safety
    /// As for [`super::free`].
    #[cold]
    pub(super) unsafe fn free_slow(&self, block: NonNull<u8>, layout: Layout, source: &dyn BlockSource, reads: bool) {
        let Some(word) = entry(block, layout) else {
            // SAFETY: the caller's obligation.
            return unsafe { self.free_large(block, layout, source, reads) };
        };
        if self.push_percpu(word, source, reads) {
            return;
        }
        if self.push_current(word, source, reads) {
            self.arm();
        } else {
            self.free_without_page(word, reads);
        }
    }

    /// Puts a word into this CPU's page, or into a new one if that is full.
    fn push_percpu(&self, word: usize, source: &dyn BlockSource, reads: bool) -> bool {
        if !self.uses_percpu() {
            return false;
        }
        // A few turns, since others on this CPU may take the new page's room, or move us elsewhere.
        for _ in 0..8 {
            if percpu::push_deferred(word) {
                return true;
            }
            let Some(fresh) = self.new_block(source, reads) else { return false };
            // SAFETY: a block from the pool, ours.
            let array = unsafe { Block::array(fresh.as_ptr()) };
            match percpu::exchange_here(array, |full| self.enqueue_array(full)) {
                Some(None) => self.arm(),
                Some(Some(full)) => {
                    self.arm();
                    self.after_enqueue(full, source, reads);
                }
                None => self.pool.put(fresh, source),
            }
        }
        false
    }

    /// Puts a word into the domain's own page.
    fn push_current(&self, word: usize, source: &dyn BlockSource, reads: bool) -> bool {
        for _ in 0..2 {
            let full = {
                let mut current = self.current.lock();
                // SAFETY: used under the lock only.
                match unsafe { current.0.as_mut() } {
                    Some(block) => {
                        if block.push(word) {
                            return true;
                        }
                        current.0 = null_mut();
                        // On the queue before the lock is released: whoever collects finds it here or there.
                        Some(self.enqueue(NonNull::from(block)))
                    }
                    None => None,
                }
            };
            if let Some(full) = full {
                self.after_enqueue(full, source, reads);
            }
            let Some(fresh) = self.new_block(source, reads) else { return false };
            let mut current = self.current.lock();
            if current.0.is_null() {
                current.0 = fresh.as_ptr();
            } else {
                drop(current);
                self.pool.put(fresh, source);
            }
        }
        false
    }

    /// A page: recycled, by the nolock hook, by helping with the work, by the ordinary path.
    fn new_block(&self, source: &dyn BlockSource, reads: bool) -> Option<NonNull<Block>> {
        if let Some(block) = self.pool.get(source) {
            return Some(block);
        }
        self.counters.fallbacks.fetch_add(1, Ordering::Relaxed);
        if !reads && !self.is_disposing() {
            self.poll(source, Collect::Aged);
            if let Some(block) = self.pool.get(source) {
                return Some(block);
            }
        }
        if source.may_allocate() { self.pool.get_waiting() } else { None }
    }

    /// The last resort: wait for a grace period and free this one block. Inside a section, where one cannot
    /// wait, the block is lost, and counted.
    fn free_without_page(&self, word: usize, reads: bool) {
        if reads {
            self.counters.leaked.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.periods.wait(self.periods.snap(), true);
        free_entry(word);
        self.counters.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// Too large for a page of pointers: a note of its own, chained.
    ///
    /// # Safety
    /// As for [`super::free`].
    unsafe fn free_large(&self, block: NonNull<u8>, layout: Layout, source: &dyn BlockSource, reads: bool) {
        let note = Layout::new::<RcuHead>();
        // SAFETY: the note's size is not zero; and the caller's obligation.
        unsafe {
            let Some(note) = NonNull::new(crate::alloc::alloc_block(note).cast::<RcuHead>()) else {
                if reads {
                    self.counters.leaked.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                self.counters.fallbacks.fetch_add(1, Ordering::Relaxed);
                self.periods.wait(self.periods.snap(), true);
                return crate::alloc::free_block(block, layout);
            };
            note.write(RcuHead::new());
            self.chain.push_noted(note, block, layout);
        }
        self.after_deferral(source, reads);
    }

    /// # Safety
    /// As for [`super::free_nolock`].
    pub(super) unsafe fn free_nolock(&self, head: NonNull<RcuHead>, block: NonNull<u8>, layout: Layout) {
        if self.uses_percpu() && entry(block, layout).is_some_and(percpu::push_deferred) {
            return;
        }
        self.counters.chained.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligation.
        unsafe { self.chain.push_free(head, block, layout) }
    }

    /// Defers a call, in any context.
    ///
    /// # Safety
    /// As for [`super::call`].
    pub(super) unsafe fn call_nolock(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
        // SAFETY: the caller's obligation.
        unsafe {
            RcuHead::set_call(head, func, 0);
            let page = self.is_busy() && self.uses_percpu();
            if !(page && call_entry(head).is_some_and(percpu::push_deferred)) {
                self.chain.push_call(head);
            }
        }
    }

    /// Defers a call that will free `bytes`: this may lock, allocate, and wait.
    ///
    /// # Safety
    /// As for [`super::call`].
    pub(super) unsafe fn call(
        &self,
        head: NonNull<RcuHead>,
        func: unsafe fn(NonNull<RcuHead>),
        bytes: usize,
        source: &dyn BlockSource,
        reads: bool,
    ) {
        // SAFETY: the caller's obligation.
        unsafe {
            RcuHead::set_call(head, func, bytes);
            let page = self.is_busy() && bytes <= ENTRY_MAX;
            if page && call_entry(head).is_some_and(|word| self.push_percpu(word, source, reads)) {
                return;
            }
            self.chain.push_call(head);
        }
        self.after_deferral(source, reads);
    }

    /// Whether so many calls wait on the chain that more of them had better wait in pages: what few calls free may
    /// be large, and the chain does not wait to be full, but it is one line of cache for all CPUs.
    fn is_busy(&self) -> bool {
        self.chain.len.load(Ordering::Relaxed) >= CHAIN_BUSY
    }

    /// As [`Core::enqueue`], for the page that an array is part of.
    pub(super) fn enqueue_array(&self, array: Array) -> Option<Enqueued> {
        Block::of_array(array).map(|block| self.enqueue(block))
    }

    /// A page is full or old: it waits for the grace period after now. Allocates nothing and takes no lock.
    pub(super) fn enqueue(&self, mut block: NonNull<Block>) -> Enqueued {
        // SAFETY: the caller gives the page over.
        let page = unsafe { block.as_mut() };
        if page.len == 0 {
            return Enqueued::Empty(block);
        }
        page.cookie = self.periods.snap();
        // Counted before it can be taken away.
        self.pointers.fetch_add(page.len, Ordering::Relaxed);
        self.bytes.fetch_add(page.bytes, Ordering::Relaxed);
        // SAFETY: ours until it is on the queue.
        self.queue.push(block.as_ptr(), |next| unsafe { (*block.as_ptr()).next = next });
        Enqueued::Queued
    }

    /// The second half of sealing a page, for which no lock must be held.
    pub(super) fn after_enqueue(&self, outcome: Enqueued, source: &dyn BlockSource, reads: bool) {
        match outcome {
            Enqueued::Empty(page) => self.pool.put(page, source),
            Enqueued::Queued => self.after_deferral(source, reads),
        }
    }

    /// Something more waits: tells the reclaimer, which is to hurry if it is much, and waits if it is too much.
    pub(super) fn after_deferral(&self, source: &dyn BlockSource, reads: bool) {
        let pointers = self.pointers.load(Ordering::Relaxed) + self.chain.len.load(Ordering::Relaxed);
        if self.pending_bytes() >= self.low.load(Ordering::Relaxed)
            || pointers >= EXPEDITE_POINTERS * percpu::cpus().max(1)
        {
            self.hurry.store(true, Ordering::Relaxed);
        }
        self.announce();
        self.hold_back(source, reads);
    }

    /// At the high mark a caller that may wait, waits, and helps.
    fn hold_back(&self, source: &dyn BlockSource, reads: bool) {
        let too_much = || self.pending_bytes() >= self.high.load(Ordering::Relaxed);
        if reads || self.is_disposing() || !too_much() {
            return;
        }
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        let mut turn = 0;
        // With a high mark of 0 there is no getting below it, only getting rid of everything.
        while too_much() && self.pending_bytes() > 0 {
            self.hurry.store(true, Ordering::Relaxed);
            if !matches!(self.poll(source, Collect::Aged), Progress::Freed(_)) {
                super::grace::pause(turn, true);
                turn += 1;
            }
        }
    }

    // --- announcing ----------------------------------------------------------------------------------------

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

    /// Whether the reclaimer should not take its time.
    pub(super) fn in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }
}

/// What became of a page that was to be sealed.
#[must_use]
pub(super) enum Enqueued {
    Queued,
    /// There was nothing in it.
    Empty(NonNull<Block>),
}
