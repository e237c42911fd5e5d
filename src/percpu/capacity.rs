//! How large each stack may be: grown by misses, paid for by idle stacks, bounded per region.
//!
//! A stack starts with no capacity and gets its class's first when it is first used; one whose blocks are runs of their
//! own, when one is asked for soon after one was freed, for blocks kept of many such sizes lie between others like rocks,
//! and their zones could have used the room. (Where every block is looked at when it is freed and handed out, it is kept
//! in any case.) It doubles when it runs empty after it ran full (the program goes to and fro by more than it holds), and
//! while it cannot take two batches. All capacities of a region together stay within its budget of bytes; a stack that needs
//! more takes it from stacks that have not moved since the hand of a clock last came by, which lose all they have. One stack
//! in [`TICK`] visits to the slow path is looked at in any case, so idle ones shrink on their own while their CPU is in use.
//!
//! What moves in one go is half of a stack, up to [`BATCH`](crate::size_class::BATCH) blocks; of one that has grown to four
//! times that and more, a quarter, up to [`BATCH_MAX`](crate::size_class::BATCH_MAX). Whoever allocates ten thousand blocks and
//! frees them, over and over, then takes the lock of their class a quarter as often, and what two CPUs get from it by turns
//! lies in other lines, mostly in other slabs.
//!
//! A CPU on which much more is freed than allocated has its stacks swept: what they hold goes home, a class at every flush, unless
//! nolock allocation found nothing of it of late; and so does what is flushed, unless another CPU wants it. It is not in the
//! processor's caches any more, so it need not be used first; and blocks that never go home come in an order that is ever
//! more random: a program that parsed a document, changed it and dropped it, sixty times, took a tenth longer for it, since what
//! it went through lay all over the place. (The kernel empties its lists of pages when a CPU frees on and on: `free_high` in
//! `mm/page_alloc.c`.)
//!
//! The rule for capacities is TCMalloc's (`docs/design.md`, "Per-CPU Mode"), with activity seen by the stack's top as well
//! as by its misses.

use core::sync::atomic::Ordering;

use super::cpus::{node_here, shard_here};
use super::hidden::are_hidden;
use super::region::{Book, Event, FLOOR, Lacking, Outflow, Region, Stack};
use crate::size_class::{CLASS, CLASSES, block_size};
use crate::slab;
use crate::slab::transfer::{BatchBox, Bundle};
use crate::sys;

/// Visits to the slow path per stack looked at.
const TICK: usize = 64;
/// Stacks that the hand goes on by for one that wants more than there is: few, so that one which is in use has been used when
/// it comes by again. (Where sizes to 16 or 32 KiB are replaced at random, and the budget has not enough for all, going once
/// around took a fifth to a quarter longer.)
const LOOKS: usize = 2;

/// Net outflow from which on it is high: what has been freed no longer fits into a CPU's own caches.
pub(super) const HIGH: usize = 4 << 20;
/// And with so much more of it the stacks are swept again.
const AGAIN: usize = 4 << 20;

/// Visits to the slow path, of stacks of runs that have no capacity, within which a block that is asked for after one was
/// freed comes soon.
const SOON: u16 = 8;
/// So many times in a row it comes so soon not by chance.
const OFTEN: u8 = 6;

impl Book {
    /// Whether blocks of a class, whose blocks are runs and whose stack has no capacity, come and go in quick succession.
    fn comes_again(&mut self, class: usize, event: Event) -> bool {
        self.turn = self.turn.wrapping_add(1);
        let stack = &mut self.stacks[class];
        if event == Event::Full {
            stack.freed_at = self.turn;
            return false;
        }
        let soon = stack.last == Event::Full && self.turn.wrapping_sub(stack.freed_at) <= SOON;
        stack.soon = if soon { stack.soon.saturating_add(1) } else { 0 };
        stack.soon >= OFTEN
    }

    /// Bytes that the budget has too little for `class` to have `capacity`.
    fn short_by(&self, class: usize, capacity: usize) -> usize {
        let others = self.charged - self.stacks[class].capacity as usize * block_size(class);
        (others + capacity * block_size(class)).saturating_sub(self.budget)
    }

    /// Notes that bytes move between a stack and the layer behind it.
    fn note_flow(&mut self, event: Event, bytes: usize) {
        let flow = &mut self.outflow;
        if event == Event::Full {
            flow.bytes += bytes;
            if flow.bytes >= if flow.is_high { HIGH + AGAIN } else { HIGH } {
                *flow = Outflow { bytes: HIGH, is_high: true, sweep_below: CLASSES };
            }
        } else {
            flow.bytes = flow.bytes.saturating_sub(bytes);
            if flow.bytes < HIGH / 2 {
                *flow = Outflow { bytes: flow.bytes, is_high: false, sweep_below: 0 };
            }
        }
    }

    /// The class whose stack is to be swept, if there is one: the next of those that may be.
    fn next_to_sweep(&mut self, may_be: impl Fn(usize) -> bool) -> Option<usize> {
        let class = (0..self.outflow.sweep_below).rfind(|&class| self.stacks[class].capacity > 0 && may_be(class));
        self.outflow.sweep_below = class.map_or(0, |class| class + 1);
        class
    }
}

/// What there is to do for a stack that was found empty or full.
pub(super) struct Missed {
    /// How many blocks to move in one go; 0 if the stack has no capacity.
    pub blocks: usize,
    /// More goes out of this CPU's stacks than its caches hold: what is flushed goes to the slabs.
    pub high: bool,
    /// A class whose stack is to be swept.
    pub sweep: Option<usize>,
}

/// How the stacks of a region are had for oneself while one of them moves or is emptied.
pub(super) trait Exclusive {
    /// Stops the region's CPU; false if that cannot be done now.
    fn stop(&self) -> bool;
    /// Starts it again.
    fn start(&self);
}

impl Region {
    /// Notes that the stack of `class` was found empty or full, and lets it grow if it should.
    pub(super) fn missed(&self, class: usize, event: Event, exclusive: &impl Exclusive) -> Missed {
        // SAFETY: pages of `META`'s memory, which is committed and never unmapped, of an array that is this region's; what they
        // hold stays.
        self.missed_with(class, event, exclusive, |memory| unsafe { sys::provide(memory.start, memory.len) })
    }

    /// The same with memory for large arrays from `provide`, during which the lock is free: a thread that the kernel is at work
    /// for may be put aside for others, and those would find the lock held for as long. (Of eight threads on two CPUs some took
    /// 15 ms to come back, of the 100 that they ran for; no stack had grown meanwhile, and most had no capacity yet.)
    fn missed_with(
        &self,
        class: usize,
        event: Event,
        exclusive: &impl Exclusive,
        provide: impl Fn(&Lacking) -> bool,
    ) -> Missed {
        let fixed = &CLASS[class];
        // Goes home when the lock is free again.
        let taken = Bundle::new();
        // Somebody else is at it: do without.
        let without = Missed { blocks: (fixed.batch as usize).min(8), high: false, sweep: None };
        let Some(mut book) = self.book.try_lock() else { return without };
        let stack = book.stacks[class];
        let capacity = stack.capacity as usize;
        let wanted = if capacity == 0 {
            if fixed.is_run() && !are_hidden() && !book.comes_again(class, event) { 0 } else { fixed.capacity as usize }
        } else if (event == Event::Empty && stack.last == Event::Full) || capacity < 2 * fixed.batch as usize {
            (2 * capacity).min(fixed.capacity_max as usize)
        } else {
            capacity
        };
        book.stacks[class].last = event;
        if wanted > capacity && self.afford(&mut book, class, wanted, exclusive, &taken) {
            if let Some(memory) = self.lacking(&book, class, wanted) {
                drop(book);
                let provided = provide(&memory);
                let Some(again) = self.book.try_lock() else { return without };
                book = again;
                if provided {
                    book.stacks[class].note_provided(&memory);
                }
            }
            // Others may have done the same meanwhile, or something else.
            if book.stacks[class].capacity as usize == capacity {
                self.grow(&mut book, class, wanted, exclusive);
            }
        }
        let events = self.counters.refills.load(Ordering::Relaxed) + self.counters.flushes.load(Ordering::Relaxed);
        if events.is_multiple_of(TICK) {
            self.reclaim_idle(&mut book, class, 0, exclusive, &taken);
        }
        let capacity = book.stacks[class].capacity as usize;
        let most = (capacity / 4).clamp(fixed.batch as usize, fixed.batch_max as usize);
        let blocks = if capacity == 0 { 0 } else { (capacity / 2).clamp(1, most) };
        book.note_flow(event, blocks * block_size(class));
        self.note_visit(&mut book);
        // Where nolock allocation found nothing of late there is to be something. Relaxed: a hint.
        let may_be_swept = |class: usize| self.levels[class].load(Ordering::Relaxed) == 0;
        let sweep = if event == Event::Full { book.next_to_sweep(may_be_swept) } else { None };
        Missed { blocks, high: book.outflow.is_high, sweep }
    }

    /// There is nothing left to sweep of a class.
    pub(super) fn swept(&self, class: usize) {
        if let Some(mut book) = self.book.try_lock()
            && book.outflow.sweep_below == class + 1
        {
            book.outflow.sweep_below = class;
        }
    }

    /// Gives the stack of `class` its first capacity, if it has none, whatever the program does.
    pub(super) fn ensure_capacity(&self, class: usize, exclusive: &impl Exclusive) {
        let taken = Bundle::new();
        if let Some(mut book) = self.book.try_lock()
            && book.stacks[class].capacity == 0
        {
            let capacity = CLASS[class].capacity as usize;
            // Once around.
            let mut turns = 0..CLASSES.div_ceil(LOOKS);
            if turns.any(|_| self.afford(&mut book, class, capacity, exclusive, &taken)) {
                self.grow(&mut book, class, capacity, exclusive);
            }
        }
    }

    /// Whether the budget has room for a class to have `capacity`, if need be for idle stacks' having none.
    fn afford(
        &self,
        book: &mut Book,
        class: usize,
        capacity: usize,
        exclusive: &impl Exclusive,
        taken: &Bundle,
    ) -> bool {
        let short = book.short_by(class, capacity);
        if short > 0 {
            self.reclaim_idle(book, class, short, exclusive, taken);
        }
        book.short_by(class, capacity) == 0
    }

    /// Lets a stack have `capacity`, if the budget has room for that and its array memory.
    fn grow(&self, book: &mut Book, class: usize, capacity: usize, exclusive: &impl Exclusive) {
        if book.short_by(class, capacity) > 0 || self.lacking(book, class, capacity).is_some() {
            return;
        }
        if capacity > CLASS[class].capacity as usize && !book.stacks[class].large {
            if !exclusive.stop() {
                return;
            }
            self.move_to_large(book, class);
            exclusive.start();
        }
        self.set_capacity(book, class, capacity);
    }

    /// Changes how far a stack may grow within its array. Safe while the stack is in use: a push sees the
    /// old limit or the new one, and both lie in the array; a top above the limit only means full.
    fn set_capacity(&self, book: &mut Book, class: usize, capacity: usize) {
        let stack = &mut book.stacks[class];
        book.charged = book.charged + capacity * block_size(class) - stack.capacity as usize * block_size(class);
        stack.capacity = capacity as u16;
        // SAFETY: the array in use has room for this many, as `grow` sees to.
        let limit = unsafe { stack.base.add(capacity) };
        let stack = *stack;
        self.set_limit(book, class, limit);
        self.set_floor(&stack, class);
    }

    /// A quarter of what a stack may hold is not for nolock allocation to take, so that one user of it does
    /// not leave the others with an empty cache.
    fn set_floor(&self, stack: &Stack, class: usize) {
        let floor = stack.base.wrapping_add(stack.capacity as usize / 4);
        // Relaxed: a sequence needs nothing but the value.
        self.headers[FLOOR + class].top.store(floor, Ordering::Relaxed);
    }

    /// Copies a stack to its large array. The region is stopped and its lock held.
    fn move_to_large(&self, book: &mut Book, class: usize) {
        let stack = &mut book.stacks[class];
        // Entries, marks among them.
        let top = self.headers[class].top.load(Ordering::Relaxed);
        let held = (top as usize - stack.base as usize) / size_of::<usize>();
        let base = self.large_base(class);
        // SAFETY: the small array holds `held` entries, which is less than the large one's room; the two do
        // not overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(stack.base, base, held);
            stack.base = base;
            stack.large = true;
            // Relaxed: published by the release that starts the region.
            self.headers[class].top.store(base.add(held), Ordering::Relaxed);
        }
        let stack = *stack;
        self.set_limit(book, class, base.wrapping_add(stack.capacity as usize));
        self.set_floor(&stack, class);
    }

    /// Lets the hand go on by a few stacks, of which idle ones lose their capacity, until `bytes` are had; by one if none are asked
    /// for.
    fn reclaim_idle(&self, book: &mut Book, sparing: usize, bytes: usize, exclusive: &impl Exclusive, taken: &Bundle) {
        let target = book.charged.saturating_sub(bytes);
        let looks = if bytes == 0 { 1 } else { LOOKS };
        for _ in 0..looks {
            let class = book.hand;
            book.hand = (class + 1) % CLASSES;
            let top = self.headers[class].top.load(Ordering::Relaxed);
            let stack = &mut book.stacks[class];
            let idle = stack.seen == top && stack.last == Event::Nothing;
            stack.seen = top;
            stack.last = Event::Nothing;
            if class == sparing || stack.capacity == 0 || !idle {
                continue;
            }
            if !exclusive.stop() {
                return;
            }
            let base = stack.base;
            self.set_capacity(book, class, 0);
            // SAFETY: the region is stopped and its lock held.
            unsafe { self.take_all(class, base, taken) };
            exclusive.start();
            if book.charged <= target {
                return;
            }
        }
    }

    /// Takes all blocks of a stack; returns how many. They go back to their slabs when the bundle is dropped,
    /// which is for when the region is running again.
    ///
    /// # Safety
    /// As for [`Region::pop`]; `base` is the first entry of the stack's array.
    pub(super) unsafe fn take_all(&self, class: usize, base: *mut usize, taken: &Bundle) -> usize {
        let mut total = 0;
        while let Some(mut batch) = BatchBox::new(shard_here(node_here(), class)) {
            // SAFETY: the caller's obligation.
            let n = unsafe {
                self.skip_marks(class, base);
                self.pop_batch(class, batch.room())
            };
            if n == 0 {
                return total;
            }
            batch.set_len(n);
            taken.add(class, batch);
            total += n;
        }
        // No memory even for a batch: one by one, then.
        loop {
            // SAFETY: the caller's obligation.
            let block = unsafe {
                self.skip_marks(class, base);
                self.pop(class)
            };
            match block {
                0 => return total,
                block => slab::free_bulk(class, &mut [block]),
            }
            total += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use proptest::prelude::*;

    /// The region belongs to the test alone.
    struct Alone;

    impl Exclusive for Alone {
        fn stop(&self) -> bool {
            true
        }
        fn start(&self) {}
    }

    fn charged(book: &Book) -> usize {
        book.stacks.iter().enumerate().map(|(class, s)| s.capacity as usize * block_size(class)).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn capacities_stay_within_budget_and_arrays(misses in prop::collection::vec((0..CLASSES, any::<bool>()), 1..400)) {
            let budget = 1 << 20;
            let region = Region::new(budget).unwrap();
            for (class, full) in misses {
                region.missed(class, if full { Event::Full } else { Event::Empty }, &Alone);
                region.counters.refills.fetch_add(1, Ordering::Relaxed);
                let book = region.book.lock();
                prop_assert_eq!(charged(&book), book.charged);
                prop_assert!(book.charged <= budget);
                for (class, stack) in book.stacks.iter().enumerate() {
                    let most = if stack.large { CLASS[class].capacity_max } else { CLASS[class].capacity };
                    prop_assert!(stack.capacity <= most);
                }
            }
        }
    }

    /// Runs of one size that come and go are kept; those of many sizes by turns are not, whatever the turns.
    ///
    /// Red if `comes_again` is true at the first time, or looks at how long ago the last free was no more.
    #[test]
    fn runs_are_kept_that_come_again_soon() {
        let capacity = |region: &Region, class: usize| region.book.lock().stacks[class].capacity;
        let runs = CLASSES - 24..CLASSES;
        let pair = |region: &Region, class: usize| {
            region.missed(class, Event::Empty, &Alone);
            region.missed(class, Event::Full, &Alone);
        };
        let region = Region::new(4 << 20).unwrap();
        (0..=OFTEN).for_each(|_| pair(region, runs.start));
        assert!(capacity(region, runs.start) > 0);
        let region = Region::new(4 << 20).unwrap();
        (0..1000).for_each(|n| pair(region, runs.start + n % runs.len()));
        assert!(runs.clone().all(|class| capacity(region, class) == 0));
        // By chance the same comes twice, but not often.
        let mut random = 7u64;
        for _ in 0..10_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            pair(region, runs.start + (random >> 33) as usize % runs.len());
        }
        let kept = runs.clone().filter(|&class| capacity(region, class) > 0).count();
        assert!(kept < runs.len() / 4, "{kept} of {}", runs.len());
        region.ensure_capacity(runs.end - 1, &Alone);
        assert_eq!(capacity(region, runs.end - 1), CLASS[runs.end - 1].capacity);
    }

    /// Once as much has gone out as counts as high, each class that has a stack is swept, the last first, and again when as much
    /// went out once more, but for one that nolock allocation wants; and none where as much comes in.
    ///
    /// Red if `note_flow` counts what comes in as nothing, if `next_to_sweep` looks at classes without a stack, if it takes every
    /// class that has one, or if `swept` does nothing.
    #[test]
    fn stacks_are_swept_where_more_goes_out() {
        let region = Region::new(4 << 20).unwrap();
        // Not a visit at which an idle stack is looked for.
        region.counters.refills.store(1, Ordering::Relaxed);
        let (class, other) = (40, 20);
        region.missed(other, Event::Empty, &Alone);
        let flushed = |bytes: usize| {
            let mut sweeps = Vec::new();
            let mut left = bytes;
            loop {
                let missed = region.missed(class, Event::Full, &Alone);
                sweeps.extend(missed.sweep.map(|swept| (swept, missed.high)));
                left = left.saturating_sub(missed.blocks * block_size(class));
                if left == 0 {
                    return sweeps;
                }
            }
        };
        assert!(flushed(HIGH / 2).is_empty());
        // Twice the same if it is not done.
        assert_eq!(flushed(HIGH / 2 + (256 << 10))[..2], [(class, true); 2]);
        region.swept(other);
        assert_eq!(flushed(1), [(class, true)]);
        region.swept(class);
        assert_eq!(flushed(1), [(other, true)]);
        region.swept(other);
        assert!(flushed(AGAIN / 2).is_empty());
        region.levels[class].store(1, Ordering::Relaxed);
        assert_eq!(flushed(AGAIN)[0], (other, true));
        assert!((0..1000).any(|_| !region.missed(class, Event::Empty, &Alone).high));
        for _ in 0..1000 {
            assert!(flushed(HIGH / 4).is_empty());
            let blocks = HIGH / 4 / block_size(class);
            let mut came = 0;
            while came < blocks {
                came += region.missed(class, Event::Empty, &Alone).blocks;
            }
        }
    }

    /// Where the budget has no room for them, runs may come and go for as long as they like.
    ///
    /// Red if `comes_again` adds to `soon` without an end.
    #[test]
    fn runs_beyond_the_budget_are_counted_and_not_kept() {
        let runs = CLASSES - 1;
        let region = Region::new(block_size(runs) / 2).unwrap();
        // Not a visit at which an idle stack is looked for.
        region.counters.refills.store(1, Ordering::Relaxed);
        for _ in 0..1000 {
            assert_eq!(region.missed(runs, Event::Empty, &Alone).blocks, 0);
            assert_eq!(region.missed(runs, Event::Full, &Alone).blocks, 0);
        }
        assert_eq!(region.book.lock().stacks[runs].soon, u8::MAX);
    }

    /// Stacks that are in use, one after the other, keep what they have, however often another one wants it; once they are not, it
    /// gets it.
    ///
    /// Red if the hand goes once around for each that wants more, or does not go on.
    #[test]
    fn stacks_in_use_are_not_idle() {
        let (others, class) = (20..40, 50);
        let first = |class: usize| CLASS[class].capacity as usize * block_size(class);
        let region = Region::new(others.clone().map(first).sum()).unwrap();
        // Not a visit at which an idle stack is looked for.
        region.counters.refills.store(1, Ordering::Relaxed);
        let miss = |class: usize| {
            region.missed(class, Event::Empty, &Alone);
        };
        others.clone().for_each(miss);
        let with_capacity = || {
            let book = region.book.lock();
            others.clone().chain([class]).filter(|&class| book.stacks[class].capacity > 0).count()
        };
        assert_eq!(with_capacity(), others.len());
        for turn in 0..1000 {
            for n in 0..4 {
                let other = others.start + (4 * turn + n) % others.len();
                let base = region.base_of(other);
                // With marks alone on it, which are nobody's blocks.
                region.headers[other].top.store(base.wrapping_add(turn / 5 % 3), Ordering::Relaxed);
            }
            miss(class);
            assert_eq!(with_capacity(), others.len(), "turn {turn}");
        }
        (0..2 * CLASSES).for_each(|_| miss(class));
        assert!(region.book.lock().stacks[class].capacity > 0);
    }

    /// Whoever has to wait for the memory of a large array has others get on with the stacks of the CPU, with the one that is to
    /// grow, too; and what they have made of it meanwhile stands.
    ///
    /// Red if `missed_with` asks for the memory with the lock held, grows what has grown meanwhile, or does so without memory.
    #[test]
    fn nobody_waits_for_the_memory_of_a_stack() {
        let capacity = |region: &Region, class: usize| region.book.lock().stacks[class].capacity;
        let (class, other) = (7, 20);
        let miss = |region: &Region, provide: &dyn Fn(&Lacking) -> bool| {
            region.missed_with(class, Event::Empty, &Alone, provide);
            capacity(region, class)
        };
        // SAFETY: pages of a region's large arrays.
        let given = |memory: &Lacking| unsafe { sys::provide(memory.start, memory.len) };
        let region = Region::new(4 << 20).unwrap();
        assert_eq!(miss(region, &|_| unreachable!("the small array has room")), CLASS[class].capacity);
        assert_eq!(miss(region, &|_| false), CLASS[class].capacity);
        let grown = miss(region, &|memory| {
            region.missed(other, Event::Empty, &Alone);
            given(memory)
        });
        assert_eq!((capacity(region, other), grown), (CLASS[other].capacity, 2 * CLASS[class].capacity));
        let region = Region::new(4 << 20).unwrap();
        miss(region, &given);
        let grown = Cell::new(0);
        let stands = miss(region, &|memory| {
            (0..2).for_each(|_| grown.set(miss(region, &given)));
            given(memory)
        });
        assert!(grown.get() > 2 * CLASS[class].capacity);
        assert_eq!(stands, grown.get());
    }

    /// And lets it move more in one go; one that runs empty over and over has one batch to move.
    ///
    /// Red if `missed` lets every stack move what a small one does.
    #[test]
    fn going_to_and_fro_grows_a_stack() {
        let region = Region::new(1 << 20).unwrap();
        let fixed = &CLASS[7];
        for _ in 0..20 {
            assert!(region.missed(7, Event::Empty, &Alone).blocks <= fixed.batch as usize);
        }
        for _ in 0..20 {
            region.missed(7, Event::Full, &Alone);
            region.missed(7, Event::Empty, &Alone);
        }
        assert_eq!(region.book.lock().stacks[7].capacity, fixed.capacity_max);
        assert_eq!(region.missed(7, Event::Empty, &Alone).blocks, fixed.batch_max as usize);
        assert!(fixed.batch_max as usize >= 4 * fixed.batch as usize);
    }
}
