//! The grace period under loom: readers that register, read and leave, writers that unlink and wait.
//!
//! The barrier on all processors is modelled by a sequentially consistent fence on either side, which is what it
//! amounts to for the two parties it is between: wherever in its program a reader is interrupted, one of the
//! places the fence may take in the total order of fences stands for it.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::{Periods, Slot, Slots};

fn full_fence() {
    fence(Ordering::SeqCst);
}

fn no_fence() {}

/// A pointer to one of two objects, and the grace periods that protect them.
struct World {
    periods: Periods,
    slots: Slots,
    /// Whether a grace period is under way.
    gate: Mutex<bool>,
    current: AtomicUsize,
    objects: [UnsafeCell<u32>; 2],
}

// SAFETY: the cells are what the model is about: loom reports an access that races with another.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

const ALIVE: u32 = 7;

impl World {
    fn new() -> Arc<World> {
        Arc::new(World {
            periods: Periods::new(),
            slots: Slots::new(),
            gate: Mutex::new(false),
            current: AtomicUsize::new(0),
            objects: [UnsafeCell::new(ALIVE), UnsafeCell::new(ALIVE)],
        })
    }

    fn register(&self, thread: u32) -> &Slot {
        self.slots.take(thread)
    }

    fn read(&self, slot: &Slot, barrier: fn()) {
        assert!(slot.state.enter(&self.periods, barrier));
        let object = self.current.load(Ordering::Acquire);
        // SAFETY: loom checks that nobody writes meanwhile.
        self.objects[object].with(|value| assert_eq!(unsafe { *value }, ALIVE, "a freed object was read"));
        slot.state.leave();
    }

    /// As `GracePeriods::advance`, with a lock of loom's.
    fn advance(&self) {
        let Ok(mut under_way) = self.gate.try_lock() else { return };
        let number = if *under_way { self.periods.current() } else { self.periods.begin(full_fence) };
        *under_way = true;
        if self.slots.iter().all(|slot| slot.state.is_past(number)) {
            *under_way = false;
            self.periods.end(number);
        }
    }

    fn wait(&self, number: u64) {
        while !self.periods.is_done(number) {
            self.advance();
            thread::yield_now();
        }
    }

    /// Puts the second object in place of the first.
    fn unlink(&self) {
        self.current.store(1, Ordering::Release);
    }

    /// Frees the first object, that is, writes to it.
    fn free(&self) {
        // SAFETY: loom checks that nobody looks meanwhile.
        self.objects[0].with_mut(|value| unsafe { *value = 0 });
    }
}

/// The bound keeps the exploration in minutes; every failure below is found with two preemptions.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn one_reader(barrier: fn(), sections: usize) {
    explore(move || {
        let world = World::new();
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                let slot = world.register(1);
                (0..sections).for_each(|_| world.read(slot, barrier));
                slot.give_up();
            })
        };
        world.unlink();
        world.wait(world.periods.snap());
        world.free();
        reader.join().unwrap();
    });
}

/// A reader that registers while a writer waits never looks at what was freed.
///
/// Positive controls: `is_past` that is always true, a slot that is published by a relaxed exchange, and
/// `no_fence` (below) are each reported as a race on the object.
#[test]
fn no_free_while_a_reader_may_look() {
    one_reader(full_fence, 1);
}

/// Sections that follow one another, the later under the number of the grace period itself.
///
/// Positive control: with a relaxed store in `enter` the model reports a race between the first section's read,
/// which the second announcement then does not order, and the free.
#[test]
fn no_free_while_a_reader_goes_on_reading() {
    one_reader(full_fence, 2);
}

/// Without the barrier on the reader's processor its reads may come before its announcement.
#[test]
#[should_panic]
fn a_reader_without_the_barrier_is_found() {
    one_reader(no_fence, 1);
}

/// The writer waits on a cookie while another thread drives grace periods: one that is under way when the
/// cookie is taken is not enough, and a reader that comes in under the number of the one that is, sees what was
/// unlinked.
///
/// Positive controls: `snap` that returns the number under way lets the object go too early; `snap` by a load in
/// place of the read-modify-write leaves the reader with the old pointer under the new number.
#[test]
fn a_cookie_covers_what_was_unlinked_before_it() {
    explore(|| {
        let world = World::new();
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                let slot = world.register(1);
                world.read(slot, full_fence);
                slot.give_up();
            })
        };
        let driver = {
            let world = world.clone();
            thread::spawn(move || world.advance())
        };
        world.unlink();
        let cookie = world.periods.snap();
        world.wait(cookie);
        world.free();
        reader.join().unwrap();
        driver.join().unwrap();
    });
}

/// Who finds by polling that a cookie is done may free as well as who waited.
///
/// Positive control: with a relaxed store in `end` the model reports a race between the read and the free.
#[test]
fn a_polled_cookie_is_as_good_as_a_wait() {
    explore(|| {
        let world = World::new();
        let reader = {
            let world = world.clone();
            thread::spawn(move || {
                let slot = world.register(1);
                world.read(slot, full_fence);
                slot.give_up();
            })
        };
        world.unlink();
        let cookie = world.periods.snap();
        let driver = {
            let world = world.clone();
            thread::spawn(move || {
                world.advance();
                world.advance();
            })
        };
        if world.periods.is_done(cookie) {
            world.free();
        }
        reader.join().unwrap();
        driver.join().unwrap();
    });
}

/// A slot that one thread gave up serves another, and neither's sections are lost to the writer.
///
/// Positive control: a `take` that does not look whether the slot is taken has one thread end the other's section.
#[test]
fn a_slot_passes_from_thread_to_thread() {
    explore(|| {
        let world = World::new();
        let readers = [1, 2].map(|thread| {
            let world = world.clone();
            thread::spawn(move || {
                let slot = world.register(thread);
                world.read(slot, full_fence);
                slot.give_up();
            })
        });
        world.unlink();
        world.wait(world.periods.snap());
        world.free();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
