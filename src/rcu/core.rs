//! What a domain is made of: grace periods, what waits for them, and the work of freeing it.
//!
//! ```text
//! free          → this CPU's page of pointers (or the domain's, under a lock)
//!   page full   → sealed with a cookie, on the queue                          [seal]
//! free_nolock   → the same page, or the chain through the object itself
//! poll          → takes the queue, the chain and pages that have aged         [collect]
//!                 waits for its cookie, without blocking
//!                 frees in bulk, recycles the pages                           [dispose]
//! ```
//!
//! One batch is being worked on at a time, under the lock `work`; what is deferred meanwhile makes the next.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use core::task::Waker;
use std::time::{Duration, Instant};

use super::BlockSource;
use super::block::{Block, Pool, Scratch, entry, free_entry};
use super::grace::{GracePeriods, pause};
use super::head::{Chain, Queued, RcuHead};
use super::{Backlog, RcuReport};
use crate::lock::Lock;
use crate::percpu::{self, Array};
use crate::sys;

/// How old a part-filled page may get, and how often one looks.
pub(super) const AGE: Duration = Duration::from_millis(20);
/// Pointers that one CPU may have pending before grace periods are expedited.
const EXPEDITE_POINTERS: usize = 10_000;

const BACKLOG: Backlog = Backlog { low: 4 << 20, high: 32 << 20 };

pub(super) struct Core {
    pub(super) periods: GracePeriods,
    /// Whether this domain has the CPUs' deferred stacks to itself.
    percpu: bool,
    queue: Lock<Queue>,
    /// The page that fills where there are no per-CPU stacks.
    current: Lock<CurrentBlock>,
    chain: Chain,
    work: Lock<Work>,
    /// Id of the thread that disposes of a batch right now, for calls that must not be made from there.
    disposing: AtomicU32,
    pub(super) pool: Pool,
    /// Bytes and pointers of sealed pages that are not freed yet. Relaxed: bounds kept to within a page per
    /// thread.
    bytes: AtomicUsize,
    pointers: AtomicUsize,
    low: AtomicUsize,
    high: AtomicUsize,
    /// Somebody wants the next grace period soon. Relaxed: a hint.
    hurry: AtomicBool,
    /// Changes when there is something to do; the reclaimer waits on it.
    pub(super) signal: AtomicU32,
    /// The reclaimer waits, so a change must be announced.
    pub(super) sleeping: AtomicBool,
    /// Whether a reclaimer runs.
    pub(super) served: AtomicBool,
    /// Something may wait in pages that have not been sealed.
    pub(super) armed: AtomicBool,
    wakers: Lock<Vec<(u64, Waker)>>,
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

struct Queue {
    first: *mut Block,
    last: *mut Block,
}
// SAFETY: blocks on the queue are nobody else's.
unsafe impl Send for Queue {}

struct CurrentBlock(*mut Block);
// SAFETY: the page is used under the lock only.
unsafe impl Send for CurrentBlock {}

/// The batch that waits for its grace period.
struct Work {
    blocks: *mut Block,
    chain: *mut RcuHead,
    cookie: u64,
    collected: Option<Instant>,
    quiet: u32,
    scratch: Scratch,
}
// SAFETY: what is in the batch is nobody else's.
unsafe impl Send for Work {}

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
    pub(super) const fn new(percpu: bool) -> Core {
        Core {
            periods: GracePeriods::new(),
            percpu,
            queue: Lock::new(Queue { first: null_mut(), last: null_mut() }),
            current: Lock::new(CurrentBlock(null_mut())),
            chain: Chain::new(),
            work: Lock::new(Work {
                blocks: null_mut(),
                chain: null_mut(),
                cookie: 0,
                collected: None,
                quiet: 0,
                scratch: Scratch::new(),
            }),
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

    fn uses_percpu(&self) -> bool {
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
        let filling: usize = if self.uses_percpu() {
            (0..percpu::cpus()).filter_map(percpu::deferred_count).sum()
        } else {
            // SAFETY: the page is used under the lock only, which is held.
            unsafe { self.current.lock().0.as_ref() }.map_or(0, |block| block.len)
        };
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
        self.arm();
        if self.uses_percpu() {
            // A few turns, since others on this CPU may take the new page's room, or move us elsewhere.
            for _ in 0..8 {
                if percpu::push_deferred(word) {
                    return;
                }
                let Some(fresh) = self.new_block(source, reads) else { break };
                // SAFETY: a block from the pool, ours.
                match percpu::exchange_here(unsafe { Block::array(fresh.as_ptr()) }) {
                    Some(full) => {
                        if let Some(full) = Block::of_array(full) {
                            self.seal(full, source, reads);
                        }
                    }
                    None => self.pool.put(fresh, source),
                }
            }
        }
        if !self.push_current(word, source, reads) {
            self.free_without_page(word, reads);
        }
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
                        NonNull::new(core::mem::replace(&mut current.0, null_mut()))
                    }
                    None => None,
                }
            };
            if let Some(full) = full {
                self.seal(full, source, reads);
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
        self.arm();
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
        self.announce();
        self.hold_back(source, reads);
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

    /// # Safety
    /// As for [`super::call`].
    pub(super) unsafe fn call(&self, head: NonNull<RcuHead>, func: unsafe fn(NonNull<RcuHead>)) {
        // SAFETY: the caller's obligation.
        unsafe { self.chain.push_call(head, func) }
    }

    /// A page is full or old: it waits for the grace period after now.
    fn seal(&self, mut block: NonNull<Block>, source: &dyn BlockSource, reads: bool) {
        // SAFETY: the caller gives the page over.
        let (len, bytes) = unsafe {
            let block = block.as_mut();
            block.cookie = self.periods.snap();
            block.next = null_mut();
            (block.len, block.bytes)
        };
        if len == 0 {
            return self.pool.put(block, source);
        }
        let pointers = self.pointers.fetch_add(len, Ordering::Relaxed) + len;
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        {
            let mut queue = self.queue.lock();
            if queue.last.is_null() {
                queue.first = block.as_ptr();
            } else {
                // SAFETY: on the queue, under its lock.
                unsafe { (*queue.last).next = block.as_ptr() };
            }
            queue.last = block.as_ptr();
        }
        if total >= self.low.load(Ordering::Relaxed) || pointers >= EXPEDITE_POINTERS * percpu::cpus().max(1) {
            self.hurry.store(true, Ordering::Relaxed);
        }
        self.announce();
        self.hold_back(source, reads);
    }

    /// At the high mark a caller that may wait, waits, and helps.
    fn hold_back(&self, source: &dyn BlockSource, reads: bool) {
        if reads || self.is_disposing() || self.pending_bytes() < self.high.load(Ordering::Relaxed) {
            return;
        }
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        let mut turn = 0;
        while self.pending_bytes() >= self.high.load(Ordering::Relaxed) {
            self.hurry.store(true, Ordering::Relaxed);
            if !matches!(self.poll(source, Collect::Aged), Progress::Freed(_)) {
                pause(turn, true);
                turn += 1;
            }
        }
    }

    // --- working it off ------------------------------------------------------------------------------------

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
        Progress::Freed(self.dispose(&mut work, source))
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
                let bytes = self.pending_bytes();
                self.periods.wait(work.cookie, true);
                report.freed += self.dispose(&mut work, source);
                report.freed_bytes += bytes.saturating_sub(self.pending_bytes());
            }
        }
        report
    }

    /// Moves what waits into the batch. Whether part-filled pages remain that may fill.
    fn collect(&self, work: &mut Work, source: &dyn BlockSource, collect: Collect) -> bool {
        let aged = collect == Collect::All || work.collected.is_none_or(|then| then.elapsed() >= AGE);
        let mut watching = self.armed.load(Ordering::Relaxed);
        if aged && watching {
            work.collected = Some(Instant::now());
            let any = self.collect_filling(source);
            work.quiet = if any { 0 } else { work.quiet + 1 };
            if work.quiet > 50 {
                // A second of silence: take the pages back, and the next free announces itself.
                self.armed.store(false, Ordering::Relaxed);
                self.recall_pages(source);
                work.quiet = 0;
                watching = false;
            } else if !any {
                self.pool.decay(source);
            }
        }
        let mut queue = self.queue.lock();
        work.blocks = core::mem::replace(&mut queue.first, null_mut());
        queue.last = null_mut();
        drop(queue);
        work.chain = self.chain.take();
        work.cookie = 0;
        let mut block = work.blocks;
        // SAFETY: the batch's own blocks.
        while let Some(this) = unsafe { block.as_ref() } {
            work.cookie = work.cookie.max(this.cookie);
            block = this.next;
        }
        if !work.chain.is_null() {
            work.cookie = self.periods.snap();
        }
        watching
    }

    /// Seals part-filled pages; whether there was anything in them.
    fn collect_filling(&self, source: &dyn BlockSource) -> bool {
        let mut any = false;
        if self.uses_percpu() {
            for cpu in 0..percpu::cpus() {
                if percpu::deferred_count(cpu).is_none_or(|count| count == 0) {
                    continue;
                }
                any = true;
                let fresh = self.pool.get(source);
                // SAFETY: a block from the pool, ours.
                let array = fresh.map_or(Array::none(), |fresh| unsafe { Block::array(fresh.as_ptr()) });
                match percpu::exchange_on(cpu, array) {
                    Some(filled) => {
                        if let Some(filled) = Block::of_array(filled) {
                            self.seal(filled, source, true);
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
        let filled = NonNull::new(core::mem::replace(&mut self.current.lock().0, null_mut()));
        if let Some(filled) = filled {
            any = true;
            self.seal(filled, source, true);
        }
        any
    }

    /// Takes the pages from all CPUs' stacks.
    fn recall_pages(&self, source: &dyn BlockSource) {
        if !self.uses_percpu() {
            return;
        }
        for cpu in 0..percpu::cpus() {
            if percpu::deferred_count(cpu).is_some()
                && let Some(page) = percpu::exchange_on(cpu, Array::none())
                && let Some(page) = Block::of_array(page)
            {
                self.seal(page, source, true);
            }
        }
    }

    /// Frees and calls everything in the batch, whose grace period is over.
    fn dispose(&self, work: &mut Work, source: &dyn BlockSource) -> usize {
        // Relaxed: only this thread asks whether it is itself.
        self.disposing.store(sys::thread_id(), Ordering::Relaxed);
        self.hurry.store(false, Ordering::Relaxed);
        let mut freed = 0;
        while let Some(mut block) = NonNull::new(work.blocks) {
            // SAFETY: the batch's own.
            let (len, bytes) = unsafe {
                let block = block.as_mut();
                work.blocks = block.next;
                let sizes = (block.len, block.bytes);
                block.free_all(&mut work.scratch);
                sizes
            };
            self.pointers.fetch_sub(len, Ordering::Relaxed);
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            freed += len;
            self.pool.put(block, source);
        }
        self.counters.freed.fetch_add(freed, Ordering::Relaxed);
        while let Some(queued) = self.chain.split_first(&mut work.chain) {
            freed += 1;
            match queued {
                Queued::Free(block, layout, note) => {
                    // SAFETY: queued with this layout, and no reader is left; the note is ours.
                    unsafe {
                        crate::alloc::free_block(block, layout);
                        if let Some(note) = note {
                            crate::alloc::free_block(note.cast(), Layout::new::<RcuHead>());
                        }
                    }
                    self.counters.freed.fetch_add(1, Ordering::Relaxed);
                }
                Queued::Call(head, func) => {
                    // A call that panics must not take the thread, or the rest of the batch, along.
                    let call = std::panic::AssertUnwindSafe(|| {
                        // SAFETY: queued with this function, and no reader is left.
                        unsafe { func(head) }
                    });
                    let _ = std::panic::catch_unwind(call);
                    self.counters.called.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.disposing.store(0, Ordering::Relaxed);
        self.wake_done();
        freed
    }

    /// Whether this thread is in the middle of disposing of a batch: it runs a callback.
    pub(super) fn is_disposing(&self) -> bool {
        let thread = self.disposing.load(Ordering::Relaxed);
        thread != 0 && thread == sys::thread_id()
    }

    /// Whether the reclaimer should not take its time.
    pub(super) fn in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    // --- announcing ----------------------------------------------------------------------------------------

    /// From now on pages may fill: somebody has to look after them.
    pub(super) fn arm(&self) {
        if !self.armed.swap(true, Ordering::Relaxed) {
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

    /// Has `waker` woken when grace period `number` is over.
    pub(super) fn wake_when_done(&self, number: u64, waker: Waker) {
        self.wakers.lock().push((number, waker));
        self.announce();
    }

    /// Whether anybody awaits a grace period.
    pub(super) fn is_awaited(&self) -> bool {
        !self.wakers.lock().is_empty()
    }

    /// Wakes those whose grace period is over.
    pub(super) fn wake_done(&self) {
        let mut due = Vec::new();
        {
            let mut wakers = self.wakers.lock();
            let mut at = 0;
            while at < wakers.len() {
                if self.periods.is_done(wakers[at].0) {
                    due.push(wakers.swap_remove(at).1);
                } else {
                    at += 1;
                }
            }
        }
        due.into_iter().for_each(Waker::wake);
    }

    // --- fork ----------------------------------------------------------------------------------------------

    pub(super) fn fork_lock(&self, acquire: bool) {
        if acquire {
            self.queue.acquire();
            self.current.acquire();
        } else {
            self.current.release();
            self.queue.release();
        }
    }

    /// In the child: whoever worked on a batch is gone, and with it the batch.
    pub(super) fn after_fork(&self) {
        self.periods.after_fork();
        self.work.force(|work| {
            work.blocks = null_mut();
            work.chain = null_mut();
        });
        // A list that was being changed is not to be looked into.
        self.wakers.force(|wakers| core::mem::forget(core::mem::take(wakers)));
        self.pool.after_fork();
        self.disposing.store(0, Ordering::Relaxed);
        self.served.store(false, Ordering::Relaxed);
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

impl Work {
    fn is_empty(&self) -> bool {
        self.blocks.is_null() && self.chain.is_null()
    }
}
