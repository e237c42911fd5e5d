//! Working off what waits in a domain.
//!
//! ```text
//! poll          → takes the queue, the chain and pages that have aged         [collect]
//!                 waits for their cookie, without blocking
//!                 frees in bulk, recycles the pages                           [dispose]
//! ```
//!
//! One batch is being worked on at a time, under the lock `work`; what is deferred meanwhile makes the next.

use core::alloc::Layout;
use core::cell::Cell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{Ordering, fence};
use core::task::Waker;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::core::Core;
use super::defer::Enqueued;
use super::gather::Gather;
use super::head::{Chain, Queued, RcuHead};
use super::page::PointerPage;
use super::reader::thread_id;
use super::{BlockSource, Heap, RcuReport};
use crate::percpu::{self, Array};

/// How old a part-filled page may get, and how often one looks.
pub(super) const AGE: Duration = Duration::from_millis(20);
/// Looks without a find until one stops looking: a second.
const QUIET_LOOKS: u32 = 50;

std::thread_local! {
    /// How many batches this thread disposes of: of several domains, one inside a call of another.
    static DISPOSES: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread disposes of a batch, of whatever domain: it runs a call. Were it to wait until another domain has less,
/// and that one's thread likewise for this, neither would go on.
pub(super) fn disposes() -> bool {
    DISPOSES.get() > 0
}

/// The batch that waits for its grace period.
pub(super) struct Work {
    pages: *mut PointerPage,
    chain: *mut RcuHead,
    cookie: u64,
    collected: Option<Instant>,
    quiet: u32,
    gather: Gather,
}
// SAFETY: what is in the batch is nobody else's.
unsafe impl Send for Work {}

impl Work {
    pub(super) const fn new() -> Work {
        Work { pages: null_mut(), chain: null_mut(), cookie: 0, collected: None, quiet: 0, gather: Gather::new() }
    }

    fn is_empty(&self) -> bool {
        self.pages.is_null() && self.chain.is_null()
    }
}

/// What a look at the work came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing waits, and nothing can come without announcing itself.
    Idle,
    /// Pages are out that may fill.
    Watching,
    /// A batch waits for readers.
    Waiting,
    /// This many objects were freed or called.
    Freed(usize),
}

/// How thoroughly to collect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Collect {
    /// Sealed pages, the chain, and part-filled pages if they have aged.
    Aged,
    /// Everything.
    All,
}

impl Core {
    /// Takes one step, without waiting: collects a batch, advances its grace period, or disposes of it.
    pub(super) fn poll(&self, source: &dyn BlockSource, collect: Collect) -> Progress {
        if self.is_disposing() {
            return Progress::Waiting;
        }
        let Some(mut work) = self.work.try_lock() else { return Progress::Waiting };
        if work.is_empty() {
            let watching = self.collect(&mut work, source, collect);
            if work.is_empty() {
                return if watching { Progress::Watching } else { Progress::Idle };
            }
        }
        if !self.periods.is_done(work.cookie) {
            self.periods.advance();
            if !self.periods.is_done(work.cookie) {
                return Progress::Waiting;
            }
        }
        let done = self.dispose(&mut work, source);
        // Wakers are the program's, and may defer, drain and wait.
        drop(work);
        self.wake_done();
        Progress::Freed(done.freed)
    }

    /// As [`Core::poll`], and helps those along who await; how many objects it freed.
    pub(super) fn poll_once(&self, source: &dyn BlockSource) -> usize {
        let progress = self.poll(source, Collect::Aged);
        self.drive();
        match progress {
            Progress::Freed(n) => n,
            _ => 0,
        }
    }

    /// Frees everything that was deferred before the call. Returns what it did.
    pub(super) fn drain(&self, source: &dyn BlockSource) -> RcuReport {
        let mut report = RcuReport::default();
        let mut work = self.work.lock();
        // The batch that is waiting already, then everything else.
        for _ in 0..2 {
            if work.is_empty() {
                self.collect(&mut work, source, Collect::All);
            }
            if !work.is_empty() {
                self.periods.wait(work.cookie, true);
                let done = self.dispose(&mut work, source);
                report.freed += done.freed;
                report.freed_bytes += done.freed_bytes;
            }
        }
        // As in `poll`.
        drop(work);
        self.wake_done();
        report
    }

    /// Frees everything, and what that defers in turn; ends every grace period that anybody may be waiting for.
    /// For a domain that nobody reads in any more.
    pub(super) fn finish(&self, source: &dyn BlockSource) {
        self.periods.forget_readers();
        while self.drain(source).freed > 0 {}
        self.periods.wait(self.periods.snap(), true);
        self.wake_done();
        self.pool.empty(source);
    }

    /// Moves what waits into the batch. Whether part-filled pages remain that may fill.
    fn collect(&self, work: &mut Work, source: &dyn BlockSource, collect: Collect) -> bool {
        let mut watching = self.armed.load(Ordering::Relaxed);
        let aged = watching && work.collected.is_none_or(|then| then.elapsed() >= AGE);
        if aged || collect == Collect::All {
            work.collected = Some(Instant::now());
            let any = self.collect_filling(source);
            work.quiet = if any { 0 } else { work.quiet + 1 };
            if work.quiet > QUIET_LOOKS {
                self.disarm(source);
                work.quiet = 0;
                watching = false;
            } else if !any {
                self.pool.decay(source);
            }
        }
        work.pages = self.queue.take();
        work.chain = self.chain.take();
        work.cookie = 0;
        let mut page = work.pages;
        // SAFETY: the batch's own pages.
        while let Some(this) = unsafe { page.as_ref() } {
            work.cookie = work.cookie.max(this.cookie);
            page = this.next;
        }
        if !work.chain.is_null() {
            work.cookie = self.periods.snap();
        }
        watching
    }

    /// Seals part-filled pages; whether there was anything in them.
    fn collect_filling(&self, source: &dyn BlockSource) -> bool {
        let mut any = self.seal_current(source);
        if self.uses_percpu() {
            for cpu in 0..percpu::cpus() {
                if percpu::deferred_count(cpu).is_none_or(|count| count == 0) {
                    continue;
                }
                any = true;
                let fresh = self.pool.get(source);
                // SAFETY: a page from the pool, ours.
                let array = fresh.map_or(Array::none(), |fresh| unsafe { PointerPage::array(fresh.as_ptr()) });
                match percpu::exchange_on(cpu, array, |filled| self.enqueue_array(filled)) {
                    Some(outcome) => {
                        if let Some(outcome) = outcome {
                            self.after_enqueue(outcome, source, true);
                        }
                    }
                    None => {
                        if let Some(fresh) = fresh {
                            self.pool.put(fresh, source);
                        }
                    }
                }
            }
        }
        any
    }

    /// Seals the domain's own page; whether there was anything in it.
    fn seal_current(&self, source: &dyn BlockSource) -> bool {
        let outcome = {
            let mut current = self.current.lock();
            NonNull::new(core::mem::replace(&mut current.0, null_mut())).map(|filled| self.enqueue(filled))
        };
        let any = outcome.as_ref().is_some_and(|outcome| matches!(outcome, Enqueued::Queued));
        if let Some(outcome) = outcome {
            self.after_enqueue(outcome, source, true);
        }
        any
    }

    /// Nothing has come for a while: takes the pages back, so that the next free announces itself.
    fn disarm(&self, source: &dyn BlockSource) {
        self.armed.store(false, Ordering::Relaxed);
        // Partner: the fence in `arm`.
        fence(Ordering::SeqCst);
        self.seal_current(source);
        if !self.uses_percpu() {
            return;
        }
        for cpu in 0..percpu::cpus() {
            if percpu::deferred_count(cpu).is_some()
                && let Some(Some(page)) = percpu::exchange_on(cpu, Array::none(), |page| self.enqueue_array(page))
            {
                self.after_enqueue(page, source, true);
            }
        }
    }

    /// Frees and calls everything in the batch, whose grace period is over. Those who await it are woken by the caller,
    /// who holds the lock.
    fn dispose(&self, work: &mut Work, source: &dyn BlockSource) -> RcuReport {
        // Relaxed: only this thread asks whether it is itself.
        self.disposing.store(thread_id(), Ordering::Relaxed);
        DISPOSES.set(DISPOSES.get() + 1);
        self.hurry.store(false, Ordering::Relaxed);
        let mut report = RcuReport::default();
        self.free_blocks(work, source, &mut report);
        // Calls are the program's and may take their time: by now nothing is in our hands that somebody could miss.
        while let Some(mut first) = NonNull::new(work.pages) {
            // SAFETY: the batch's own, and nobody else refers to it.
            let page = unsafe { first.as_mut() };
            work.pages = page.next;
            page.take_calls(|head, bytes| {
                // SAFETY: a call was noted in the head before its word was made, the page is emptied once, and no reader
                // is left. The function is read before it is called, and the head not looked at afterwards.
                unsafe { call(head, RcuHead::call_func(head)) };
                self.counters.called.fetch_add(1, Ordering::Relaxed);
                self.note_done(1, bytes, &mut report);
            });
            self.pool.put(first, source);
        }
        while let Some(queued) = Chain::split_first(&mut work.chain) {
            let bytes = match queued {
                Queued::Free(block, layout, note) => {
                    // SAFETY: queued with this layout, and no reader is left; the note is ours.
                    unsafe {
                        crate::alloc::free_block(block, layout);
                        if let Some(note) = note {
                            crate::alloc::free_block(note.cast(), Layout::new::<RcuHead>());
                        }
                    }
                    self.counters.freed.fetch_add(1, Ordering::Relaxed);
                    layout.size()
                }
                Queued::Call(head, func, bytes) => {
                    // SAFETY: queued with this function, and no reader is left.
                    unsafe { call(head, func) };
                    self.counters.called.fetch_add(1, Ordering::Relaxed);
                    bytes
                }
            };
            // Afterwards: whoever finds that nothing waits may count on it.
            self.chain.note_done(bytes);
            report.freed += 1;
            report.freed_bytes += bytes;
        }
        DISPOSES.set(DISPOSES.get() - 1);
        self.disposing.store(0, Ordering::Relaxed);
        report
    }

    /// Frees the blocks in the batch's pages, gathered over all of them; of the pages those stay that have calls in them.
    fn free_blocks(&self, work: &mut Work, source: &dyn BlockSource, report: &mut RcuReport) {
        let mut pages = core::mem::replace(&mut work.pages, null_mut());
        while let Some(mut first) = NonNull::new(pages) {
            // SAFETY: the batch's own, and nobody else refers to it.
            let page = unsafe { first.as_mut() };
            pages = page.next;
            page.take_blocks(&mut work.gather);
            if page.len > 0 {
                page.next = work.pages;
                work.pages = first.as_ptr();
            } else {
                self.pool.put(first, source);
            }
            self.note_freed(&mut work.gather, report);
        }
        work.gather.free();
        self.note_freed(&mut work.gather, report);
    }

    /// Counts what has been gathered and is free; what is not yet still waits.
    fn note_freed(&self, gather: &mut Gather, report: &mut RcuReport) {
        let (len, bytes) = gather.take_freed();
        self.counters.freed.fetch_add(len, Ordering::Relaxed);
        self.note_done(len, bytes, report);
    }

    /// So much does not wait in pages any more.
    fn note_done(&self, len: usize, bytes: usize, report: &mut RcuReport) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        // Release, paired with the acquire in `pending_pointers`: who finds that nothing waits finds it done.
        self.pointers.fetch_sub(len, Ordering::Release);
        report.freed += len;
        report.freed_bytes += bytes;
    }

    // --- who awaits ----------------------------------------------------------------------------------------

    /// Has `waker` woken when grace period `number` is over.
    pub(super) fn wake_when_done(&self, number: u64, waker: &Waker) {
        let waker = waker.clone();
        let known = {
            let mut wakers = self.wakers.lock();
            let known = wakers.iter().any(|(n, w)| *n == number && w.will_wake(&waker));
            if known {
                Some(waker)
            } else {
                wakers.push((number, waker));
                None
            }
        };
        // Dropping a waker runs code that is not ours, so not under the lock.
        drop(known);
        self.announce();
    }

    /// Helps the grace periods that somebody awaits along; whether there are any left.
    pub(super) fn drive(&self) -> bool {
        if self.wakers.lock().is_empty() {
            return false;
        }
        self.periods.advance();
        self.wake_done();
        !self.wakers.lock().is_empty()
    }

    /// Wakes those whose grace period is over. What that runs is not ours, and may use the domain: no lock must be held.
    fn wake_done(&self) {
        let due: Vec<_> = {
            let mut wakers = self.wakers.lock();
            if wakers.is_empty() {
                return;
            }
            wakers.extract_if(.., |(number, _)| self.periods.is_done(*number)).collect()
        };
        due.into_iter().for_each(|(_, waker)| contained(|| waker.wake()));
    }

    // --- fork ----------------------------------------------------------------------------------------------

    pub(super) fn fork_lock(&self, acquire: bool) {
        if acquire {
            self.current.acquire();
            self.wakers.acquire();
            self.pool.fork_lock(true);
            self.periods.fork_lock(true);
        } else {
            self.periods.fork_lock(false);
            self.pool.fork_lock(false);
            self.wakers.release();
            self.current.release();
        }
    }

    /// In the child, after the locks have been released: the thread that forked was `before` and is `now`, and
    /// whoever else worked on a batch is gone, and with it the batch.
    pub(super) fn after_fork(&self, before: u32, now: u32) {
        self.periods.after_fork(before, now, self.is_default());
        self.seal_in_child();
        self.served.store(false, Ordering::Relaxed);
        self.sleeping.store(false, Ordering::Relaxed);
        if self.disposing.load(Ordering::Relaxed) == before {
            // The fork was made by a callback: this thread goes on with the batch, whose lock it holds.
            self.disposing.store(now, Ordering::Relaxed);
            return;
        }
        self.disposing.store(0, Ordering::Relaxed);
        let count = |work: &mut Work| {
            let (mut pointers, mut bytes) = (0, 0);
            for mut page in [work.pages, self.queue.first()] {
                // SAFETY: the lock is held, so nobody takes the pages.
                while let Some(this) = unsafe { page.as_ref() } {
                    (pointers, bytes) = (pointers + this.len, bytes + this.bytes);
                    page = this.next;
                }
            }
            self.pointers.store(pointers, Ordering::Relaxed);
            self.bytes.store(bytes, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { self.chain.recount(work.chain) };
        };
        if let Some(mut work) = self.work.try_lock() {
            return count(&mut work);
        }
        self.work.force(|work| {
            // Nothing of the batch is touched: whoever held it may have been anywhere in it.
            core::mem::forget(core::mem::replace(work, Work::new()));
            count(work);
        });
    }

    /// Seals what fills, whose reclaimer is gone, and leaves no page to which anything could be added unnoticed: the next
    /// deferral takes the slow path, and has a reclaimer started. It starts none itself, in the handler of a `fork`, and
    /// waits for nobody, since there is nobody else.
    fn seal_in_child(&self) {
        // Relaxed: this thread is alone.
        self.armed.store(false, Ordering::Relaxed);
        {
            let mut current = self.current.lock();
            // SAFETY: used under the lock only, which is held.
            if unsafe { current.0.as_ref() }.is_some_and(|page| page.len > 0)
                && let Some(filled) = NonNull::new(core::mem::replace(&mut current.0, null_mut()))
            {
                _ = self.enqueue(filled);
            }
        }
        if !self.uses_percpu() {
            return;
        }
        for cpu in 0..percpu::cpus() {
            if percpu::deferred_count(cpu).is_some()
                && let Some(Some(Enqueued::Empty(page))) =
                    percpu::exchange_on(cpu, Array::none(), |array| self.enqueue_array(array))
            {
                // The domain that has the CPUs' stacks has its pages from the heap.
                self.pool.put(page, &Heap);
            }
        }
    }
}

/// Makes a deferred call. One that panics must not take the thread, or the rest of the batch, along.
///
/// # Safety
/// `func` was deferred for `head`, is called for the first time, and no reader is left.
unsafe fn call(head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
    // SAFETY: the caller's obligation.
    contained(|| unsafe { func(head) });
}

/// Runs what is not ours; a panic ends here.
fn contained(call: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
        // Its destructor is not ours, either.
        core::mem::forget(payload);
    }
}
