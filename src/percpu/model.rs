//! Stopping a CPU under loom: sections of several threads on one CPU, and whoever stops it, takes its blocks and
//! starts it again.
//!
//! What is modelled is the protocol of `x86_64.rs`, `table.rs`, `drain.rs`, `capacity.rs` and `regions.rs`, written out again
//! instruction by instruction: the sections themselves are machine code. The kernel's part is a lock, under which every instruction
//! of the CPU's threads is executed and which says who is inside a section, or was last:
//! - All instructions on one CPU are in one order, a switch between threads being a full barrier; so are the holders
//!   of the lock.
//! - A thread that enters a section has been switched to, so whoever was inside has been preempted, and finds so at
//!   its next instruction, its commit included: it aborts. (It may do so while the other is inside. It has been
//!   migrated then.)
//! - The fence on a CPU (`sys::fence_cpu`) comes between two of its instructions, is a full barrier there and for its
//!   caller, and aborts whoever is inside. The caller takes the lock for it.
//!
//! Everything else that the caller does, it does without the lock, as from another CPU. Words are relaxed atomics,
//! except that the sections' loads of the entry acquire: they are ordered before what depends on them, for which loom
//! has no name. Loom checks through the blocks' contents that whoever gets a block comes after its last owner.

use core::sync::atomic::AtomicUsize as Count;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// What is wrong with a model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    Nothing,
    /// The CPU is stopped without a fence.
    NoFence,
    /// The entry is loaded before the section starts.
    EntryBeforeSection,
    /// The CPU is started when its blocks are known and its stack is not yet empty.
    EarlyStart,
    /// What starts the CPU is not a release.
    RelaxedStart,
    /// Whoever stops the CPU it runs on does so outside a section, having looked that it runs there.
    StopOutsideSection,
    /// A new CPU can be found, and stopped, before it is started for the first time.
    FoundBeforeStart,
}

/// Who is inside a section.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Nobody,
    Thread(usize),
    /// Nobody, since the fence.
    Fenced,
}

/// The section came to nothing.
struct Missed;

/// What happened in all executions of a model together. Not loom's: it orders nothing.
#[derive(Default)]
struct Seen {
    committed: Count,
    preempted: Count,
    fenced: Count,
    stopped: Count,
    /// Stops that found some blocks, but not those that were there to begin with.
    mixed: Count,
    /// Whoever looked for the CPU's region and did not find it, or found it.
    unknown: Count,
    found: Count,
}

fn count(event: &Count) {
    event.fetch_add(1, Ordering::Relaxed);
}

/// The entry of a stopped CPU, and of one that runs.
const STOPPED: usize = 0;
const RUNNING: usize = 1;

/// Where the entries of the two arrays start, each behind its sentinel.
const SMALL: usize = 1;
const LARGE: usize = 5;
const BLOCKS: usize = 3;

struct World {
    flaw: Flaw,
    seen: std::sync::Arc<Seen>,
    /// The lock that stands for the CPU.
    inside: Mutex<Inside>,
    /// Whoever stops the CPU holds it until the CPU is started again.
    book: Mutex<()>,
    /// Whether the CPU's region can be found, so that somebody may take the book.
    known: AtomicUsize,
    entry: AtomicUsize,
    top: AtomicUsize,
    limit: AtomicUsize,
    words: Vec<AtomicUsize>,
    contents: Vec<UnsafeCell<()>>,
}

// SAFETY: the cells are what the model is about: loom reports an access that races with another.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

#[derive(Clone, Copy)]
enum Step {
    Pop,
    Push,
}

use Step::{Pop, Push};

impl World {
    /// A CPU with blocks 1 to `blocks` on its stack, which has room for `capacity`.
    fn new(flaw: Flaw, seen: &std::sync::Arc<Seen>, blocks: usize, capacity: usize) -> Arc<World> {
        let word = |at| if (SMALL..SMALL + blocks).contains(&at) { at - SMALL + 1 } else { 0 };
        Arc::new(World {
            flaw,
            seen: seen.clone(),
            inside: Mutex::new(Inside::Nobody),
            book: Mutex::new(()),
            known: AtomicUsize::new(1),
            entry: AtomicUsize::new(RUNNING),
            top: AtomicUsize::new(SMALL + blocks),
            limit: AtomicUsize::new(SMALL + capacity),
            words: (0..LARGE + BLOCKS).map(|at| AtomicUsize::new(word(at))).collect(),
            contents: (0..=BLOCKS).map(|_| UnsafeCell::new(())).collect(),
        })
    }

    /// A CPU that has no stacks yet.
    fn unborn(flaw: Flaw, seen: &std::sync::Arc<Seen>) -> Arc<World> {
        let mut world = World::new(flaw, seen, 0, 0);
        let parts = Arc::get_mut(&mut world).unwrap();
        parts.known = AtomicUsize::new(0);
        parts.entry = AtomicUsize::new(STOPPED);
        world
    }

    /// As `create_region`, under a lock that nobody else takes.
    fn create(&self) {
        if self.flaw == Flaw::FoundBeforeStart {
            self.known.store(1, Ordering::Release);
            self.start();
        } else {
            self.start();
            self.known.store(1, Ordering::Release);
        }
    }

    /// As `region_of`.
    fn is_known(&self) -> bool {
        let known = self.known.load(Ordering::Acquire) == 1;
        count(if known { &self.seen.found } else { &self.seen.unknown });
        known
    }

    /// As `set_capacity`, from any CPU.
    fn make_room(&self, capacity: usize) {
        let _book = self.book.lock().unwrap();
        self.limit.store(SMALL + capacity, Ordering::Relaxed);
    }

    /// The first instruction of a section.
    fn enter(&self, me: usize) {
        *self.inside.lock().unwrap() = Inside::Thread(me);
    }

    /// A later one.
    fn step<T>(&self, me: usize, instruction: impl FnOnce() -> T) -> Result<T, Missed> {
        let inside = self.inside.lock().unwrap();
        if *inside == Inside::Thread(me) {
            return Ok(instruction());
        }
        count(if *inside == Inside::Fenced { &self.seen.fenced } else { &self.seen.preempted });
        Err(Missed)
    }

    fn load(&self, me: usize, word: &AtomicUsize) -> Result<usize, Missed> {
        self.step(me, || word.load(Ordering::Relaxed))
    }

    /// The last.
    fn commit(&self, me: usize, word: &AtomicUsize, value: usize) -> Result<(), Missed> {
        self.step(me, || word.store(value, Ordering::Relaxed))?;
        count(&self.seen.committed);
        Ok(())
    }

    /// Enters a section and finds the CPU running.
    fn enter_running(&self, me: usize) -> Result<(), Missed> {
        let load = || self.entry.load(Ordering::Acquire);
        let entry = if self.flaw == Flaw::EntryBeforeSection {
            let cpu = self.inside.lock().unwrap();
            let entry = load();
            drop(cpu);
            self.enter(me);
            entry
        } else {
            self.enter(me);
            self.step(me, load)?
        };
        if entry == STOPPED {
            count(&self.seen.stopped);
            return Err(Missed);
        }
        Ok(())
    }

    fn pop(&self, me: usize) -> Result<usize, Missed> {
        self.enter_running(me)?;
        let top = self.load(me, &self.top)?;
        let block = self.load(me, &self.words[top - 1])?;
        if block == 0 {
            return Err(Missed);
        }
        self.commit(me, &self.top, top - 1)?;
        Ok(block)
    }

    fn push(&self, me: usize, block: usize) -> Result<(), Missed> {
        self.enter_running(me)?;
        let top = self.load(me, &self.top)?;
        if top >= self.load(me, &self.limit)? {
            return Err(Missed);
        }
        self.step(me, || self.words[top].store(block, Ordering::Relaxed))?;
        self.commit(me, &self.top, top + 1)
    }

    /// Whoever has a block writes to it.
    fn own(&self, block: usize) {
        self.contents[block].with_mut(|_| ());
    }

    /// A thread on the CPU; returns the blocks that it has in the end.
    fn run(&self, me: usize, program: &[Step], mut held: Vec<usize>) -> Vec<usize> {
        for step in program {
            match step {
                Pop => held.extend(self.pop(me).ok().inspect(|&block| self.own(block))),
                Push => {
                    if let Some(&block) = held.last() {
                        self.own(block);
                        if self.push(me, block).is_ok() {
                            held.pop();
                        }
                    }
                }
            }
        }
        held
    }

    /// Stops the CPU from elsewhere.
    fn stop(&self) {
        self.entry.store(STOPPED, Ordering::Relaxed);
        if self.flaw != Flaw::NoFence {
            *self.inside.lock().unwrap() = Inside::Fenced;
        }
    }

    /// Stops the CPU from a thread that runs there; it may be preempted, and go elsewhere, as soon as it has.
    fn stop_here(&self, me: usize) -> Result<(), Missed> {
        self.enter(me);
        // The comparison of the CPU's number.
        self.step(me, || ())?;
        if self.flaw == Flaw::StopOutsideSection {
            self.entry.store(STOPPED, Ordering::Relaxed);
            return Ok(());
        }
        self.commit(me, &self.entry, STOPPED)
    }

    fn start(&self) {
        let ordering = if self.flaw == Flaw::RelaxedStart { Ordering::Relaxed } else { Ordering::Release };
        self.entry.store(RUNNING, ordering);
    }

    /// A stack that nobody uses: where its array starts, and its blocks.
    fn look(&self) -> (usize, Vec<usize>) {
        let top = self.top.load(Ordering::Relaxed);
        let base = if top < LARGE { SMALL } else { LARGE };
        (base, (base..top).map(|at| self.words[at].load(Ordering::Relaxed)).collect())
    }

    /// Takes everything from the stopped CPU and starts it.
    fn take_all(&self) -> Vec<usize> {
        let (base, taken) = self.look();
        if !taken.is_empty() && taken != [1, 2] {
            count(&self.seen.mixed);
        }
        if self.flaw == Flaw::EarlyStart {
            self.start();
        }
        self.top.store(base, Ordering::Relaxed);
        if self.flaw != Flaw::EarlyStart {
            self.start();
        }
        taken.iter().for_each(|&block| self.own(block));
        taken
    }

    /// Moves the stopped CPU's stack to its large array and starts the CPU.
    fn grow(&self) {
        let (_, blocks) = self.look();
        for (at, &block) in blocks.iter().enumerate() {
            self.words[LARGE + at].store(block, Ordering::Relaxed);
        }
        self.top.store(LARGE + blocks.len(), Ordering::Relaxed);
        self.limit.store(LARGE + BLOCKS, Ordering::Relaxed);
        self.start();
    }

    /// In the end every block is in one place: on the stack or held.
    fn check(&self, mut held: Vec<usize>) {
        assert_eq!(self.entry.load(Ordering::Acquire), RUNNING);
        held.extend(self.look().1);
        for block in 1..=BLOCKS {
            let places = held.iter().filter(|&&other| other == block).count();
            assert_eq!(places, 1, "block {block} is in so many places");
        }
        assert_eq!(held.len(), BLOCKS);
    }
}

/// The number of the thread that stops the CPU it runs on.
const STOPPER: usize = 2;

/// Runs two threads on a CPU that has blocks 1 and 2 on its stack, the second thread with block 3 in its hands, and
/// beside them `others`, the first of them as the main thread; they return the blocks that they took.
fn explore<const OTHERS: usize>(
    preemptions: usize,
    flaw: Flaw,
    capacity: usize,
    programs: [&'static [Step]; 2],
    others: [fn(&World) -> Vec<usize>; OTHERS],
) -> std::sync::Arc<Seen> {
    let seen = std::sync::Arc::new(Seen::default());
    let all = seen.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let world = World::new(flaw, &seen, 2, capacity);
        let mut threads = Vec::new();
        for (me, &program) in programs.iter().enumerate() {
            let world = world.clone();
            threads.push(thread::spawn(move || world.run(me, program, if me == 1 { vec![3] } else { vec![] })));
        }
        for &other in &others[1..] {
            let world = world.clone();
            threads.push(thread::spawn(move || other(&world)));
        }
        let mut held = others[0](&world);
        threads.into_iter().for_each(|thread| held.extend(thread.join().unwrap()));
        world.check(held);
    });
    all
}

/// As `drain_cpu`, where threads on other CPUs can be fenced.
fn drain(world: &World) -> Vec<usize> {
    let _book = world.book.lock().unwrap();
    world.stop();
    world.take_all()
}

/// As `drain_cpu`, where they cannot, by a thread on the CPU.
fn drain_here(world: &World) -> Vec<usize> {
    let _book = world.book.lock().unwrap();
    match world.stop_here(STOPPER) {
        Ok(()) => world.take_all(),
        Err(Missed) => Vec::new(),
    }
}

/// As `capacity.rs`, by a thread on the CPU.
fn grow_here(world: &World) -> Vec<usize> {
    let _book = world.book.lock().unwrap();
    if world.stop_here(STOPPER).is_ok() {
        world.grow();
    }
    Vec::new()
}

/// A CPU that one thread creates, while a second one, which runs there, finds it, makes room and pushes what it has, and
/// a third one finds it and drains it.
fn create_while_drained(flaw: Flaw) -> std::sync::Arc<Seen> {
    let seen = std::sync::Arc::new(Seen::default());
    let all = seen.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(move || {
        let world = World::unborn(flaw, &seen);
        let on_cpu = {
            let world = world.clone();
            thread::spawn(move || {
                // Before it is known, too, the section may find it running.
                let held = world.run(0, &[Push], vec![1, 2, 3]);
                if !world.is_known() {
                    return held;
                }
                world.make_room(BLOCKS);
                world.run(0, &[Push, Pop], held)
            })
        };
        let drainer = {
            let world = world.clone();
            thread::spawn(move || if world.is_known() { drain(&world) } else { Vec::new() })
        };
        world.create();
        let mut held = on_cpu.join().unwrap();
        held.extend(drainer.join().unwrap());
        world.check(held);
    });
    all
}

impl Seen {
    /// Fails if the model has not come to what it is about.
    fn require(&self, events: &[&Count]) {
        assert!(events.iter().all(|event| event.load(Ordering::Relaxed) > 0));
    }
}

fn drain_from_elsewhere(flaw: Flaw) -> std::sync::Arc<Seen> {
    explore(3, flaw, 3, [&[Pop, Push, Pop], &[Push, Pop]], [|world| [drain(world), drain(world)].concat()])
}

fn drain_from_within(flaw: Flaw) -> std::sync::Arc<Seen> {
    explore(4, flaw, 3, [&[Pop, Push], &[Push, Pop]], [drain_here])
}

/// Whoever stops a CPU has its stacks to itself, from its fence until it starts the CPU; twice in a row.
///
/// Positive controls, each a test of its own below: no fence; an entry loaded before the section starts; a start before
/// the stack is empty; a start that is not a release. Tried by hand: sections that do not heed the fence, or not a
/// preemption, have a block in two places.
#[test]
fn a_drain_takes_every_block_once() {
    let seen = drain_from_elsewhere(Flaw::Nothing);
    seen.require(&[&seen.committed, &seen.preempted, &seen.fenced, &seen.stopped, &seen.mixed]);
}

/// A thread that stops the CPU it runs on needs no fence, and may be preempted right after.
///
/// Positive control: `a_stop_outside_a_section_leaves_others_inside`.
#[test]
fn a_cpu_stopped_from_within_is_drained_without_a_fence() {
    let seen = drain_from_within(Flaw::Nothing);
    seen.require(&[&seen.committed, &seen.preempted, &seen.stopped, &seen.mixed]);
}

/// Two that stop one CPU, by the two ways: one moves its stack to another array, one drains it. Sections find the new
/// top with the new limit.
///
/// Positive control: without the book each starts the CPU under the other, and a block is in two places.
#[test]
fn a_stack_moves_while_its_cpu_is_stopped() {
    let seen = explore(3, Flaw::Nothing, 2, [&[Pop], &[Push]], [drain, grow_here]);
    seen.require(&[&seen.committed, &seen.preempted, &seen.fenced, &seen.stopped, &seen.mixed]);
}

/// A CPU gets its stacks while somebody drains every CPU there is: the start is not one that comes in the middle of a stop.
///
/// Positive control: `a_cpu_found_before_its_start_is_started_under_a_drain`.
#[test]
fn a_cpu_is_created_while_all_are_drained() {
    let seen = create_while_drained(Flaw::Nothing);
    seen.require(&[&seen.committed, &seen.fenced, &seen.stopped, &seen.mixed, &seen.unknown, &seen.found]);
}

#[test]
#[should_panic]
fn a_cpu_found_before_its_start_is_started_under_a_drain() {
    create_while_drained(Flaw::FoundBeforeStart);
}

#[test]
#[should_panic]
fn without_the_fence_a_section_goes_on() {
    drain_from_elsewhere(Flaw::NoFence);
}

#[test]
#[should_panic]
fn an_entry_from_before_the_section_is_stale() {
    drain_from_elsewhere(Flaw::EntryBeforeSection);
}

#[test]
#[should_panic]
fn a_start_before_the_stack_is_empty_loses_blocks() {
    drain_from_elsewhere(Flaw::EarlyStart);
}

#[test]
#[should_panic]
fn a_relaxed_start_does_not_show_the_stack_as_it_is() {
    drain_from_elsewhere(Flaw::RelaxedStart);
}

#[test]
#[should_panic]
fn a_stop_outside_a_section_leaves_others_inside() {
    drain_from_within(Flaw::StopOutsideSection);
}
