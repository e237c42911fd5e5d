//! How something comes to wait in a domain.
//!
//! ```text
//! free          → this CPU's page of pointers (or the domain's, under a lock)
//!   page full   → sealed with a cookie, on the queue                          [enqueue]
//! free_nolock   → the same page, or the chain through the object itself
//! call          → the chain, or this CPU's page while many wait on the chain
//! ```

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;

use super::BlockSource;
use super::core::Core;
use super::entry::{ADDRESS_MASK, ENTRY_MAX, call_entry, class_of_entry, entry};
use super::gather::Gather;
use super::grace::pause;
use super::head::RcuHead;
use super::page::PointerPage;
use super::work::{Collect, Progress, disposes};
use crate::percpu::{self, Array};

/// Pointers that one CPU may have pending before grace periods are expedited.
const EXPEDITE_POINTERS: usize = 10_000;

/// Objects on the chain from which on calls go into pages.
const CHAIN_BUSY: usize = 64;

impl Core {
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
            let Some(fresh) = self.new_page(source, reads) else { return false };
            // SAFETY: a page from the pool, ours.
            let array = unsafe { PointerPage::array(fresh.as_ptr()) };
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
                    Some(page) => {
                        if page.push(word) {
                            return true;
                        }
                        current.0 = null_mut();
                        // On the queue before the lock is released: whoever collects finds it here or there.
                        Some(self.enqueue(NonNull::from(page)))
                    }
                    None => None,
                }
            };
            if let Some(full) = full {
                self.after_enqueue(full, source, reads);
            }
            let Some(fresh) = self.new_page(source, reads) else { return false };
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
    fn new_page(&self, source: &dyn BlockSource, reads: bool) -> Option<NonNull<PointerPage>> {
        if let Some(page) = self.pool.get(source) {
            return Some(page);
        }
        self.counters.fallbacks.fetch_add(1, Ordering::Relaxed);
        if !reads && !self.is_disposing() {
            self.poll(source, Collect::Aged);
            if let Some(page) = self.pool.get(source) {
                return Some(page);
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
        let mut gather = Gather::new();
        gather.add(class_of_entry(word), word & ADDRESS_MASK);
        gather.free();
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
                self.counters.freed.fetch_add(1, Ordering::Relaxed);
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
        PointerPage::of_array(array).map(|page| self.enqueue(page))
    }

    /// A page is full or old: it waits for the grace period after now. Allocates nothing and takes no lock.
    pub(super) fn enqueue(&self, mut page: NonNull<PointerPage>) -> Enqueued {
        // SAFETY: the caller gives the page over.
        let sealed = unsafe { page.as_mut() };
        if sealed.len == 0 {
            return Enqueued::Empty(page);
        }
        sealed.cookie = self.periods.snap();
        // Counted before it can be taken away.
        self.pointers.fetch_add(sealed.len, Ordering::Relaxed);
        self.bytes.fetch_add(sealed.bytes, Ordering::Relaxed);
        // SAFETY: ours until it is on the queue.
        self.queue.push(page.as_ptr(), |next| unsafe { (*page.as_ptr()).next = next });
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

    /// At the high mark a caller that may wait, waits, and helps. One that is in the middle of a call, of whatever domain, may not.
    fn hold_back(&self, source: &dyn BlockSource, reads: bool) {
        let too_much = || self.pending_bytes() >= self.high.load(Ordering::Relaxed);
        if reads || disposes() || !too_much() {
            return;
        }
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        let mut turn = 0;
        // With a high mark of 0 there is no getting below it, only getting rid of everything.
        while too_much() && self.pending_bytes() > 0 {
            self.hurry.store(true, Ordering::Relaxed);
            if !matches!(self.poll(source, Collect::Aged), Progress::Freed(_)) {
                pause(turn, true);
                turn += 1;
            }
        }
    }
}

/// What became of a page that was to be sealed.
#[must_use]
pub(super) enum Enqueued {
    Queued,
    /// There was nothing in it.
    Empty(NonNull<PointerPage>),
}
