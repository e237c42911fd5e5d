//! Every section of this program interrupted before every one of its instructions.
//!
//! The sections are found where the program says they are, their instructions by decoding them. Each is interrupted
//! by a breakpoint, whose signal handler does nothing, or something to the same stacks; then the section must have
//! had no effect, and the stacks must look as if only the handler had been there. What an operation does, interrupted
//! or not, is what its plain-Rust twin does.

#![cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(loom, pcpalloc_twin))))]

mod common;
mod rseq_common;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::{Random, cpus, move_thread, scaled, thread_number};
use pcpalloc::debug::trial::{self, Found, Stack, Stacks, Stop};
use rseq_common::arch::{BEHIND_BREAKPOINT, Unit};
use rseq_common::trap::{Interrupted, interrupt};
use rseq_common::{Section, sections};

/// The class whose stacks the trials use, and the room in each of their arrays.
const CLASS: usize = 3;
const ROOM: usize = 16;
const STACKS: [Stack; 3] = [Stack::Class(CLASS), Stack::Reserve(CLASS), Stack::Deferred];

/// An operation on the stacks of the CPU one runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Pop,
    PopReserve,
    PopAboveFloor,
    Push,
    PushObserved,
    PushDeferred,
    /// Of this many words.
    PopBatch(usize),
    PushBatch(usize),
    PushReserve(usize),
    StopHere,
    StopReservesHere,
}

const OPS: [Op; 15] = [
    Op::Pop,
    Op::PopReserve,
    Op::PopAboveFloor,
    Op::Push,
    Op::PushObserved,
    Op::PushDeferred,
    Op::PopBatch(1),
    Op::PopBatch(3),
    Op::PopBatch(ROOM),
    Op::PushBatch(1),
    Op::PushBatch(5),
    Op::PushReserve(1),
    Op::PushReserve(4),
    Op::StopHere,
    Op::StopReservesHere,
];

/// What it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Found(Found),
    Word(usize),
    Done(bool),
    Taken(Vec<usize>),
    Put(usize),
}

impl Op {
    /// What one sees of it if it has been aborted.
    fn miss(self) -> Outcome {
        match self {
            Op::Pop | Op::PopReserve => Outcome::Word(0),
            Op::PopAboveFloor => Outcome::Found(Found::Aborted),
            Op::Push | Op::PushObserved | Op::PushDeferred | Op::StopHere | Op::StopReservesHere => {
                Outcome::Done(false)
            }
            Op::PopBatch(_) => Outcome::Taken(Vec::new()),
            Op::PushBatch(_) | Op::PushReserve(_) => Outcome::Put(0),
        }
    }
}

/// Words to push that are nowhere yet.
fn words(n: usize, from: usize) -> Vec<usize> {
    (from..from + n).collect()
}

/// How the stacks of a CPU stand at the start of a trial, by [`STACKS`].
#[derive(Clone, Copy, Debug)]
struct Shape {
    len: [usize; 3],
    capacity: [usize; 3],
    /// Room that a push to the class's stack sees, which is none while frees are diverted.
    shown: usize,
    floor: usize,
}

impl Shape {
    fn random(random: &mut Random) -> Shape {
        let capacity = [(); 3].map(|()| random.below(ROOM + 1));
        // As it is while a stack shrinks, there may be more in it than it has capacity for.
        let len = capacity.map(|c| if random.below(8) == 0 { random.below(ROOM + 1) } else { random.below(c + 1) });
        let shown = if random.below(2) == 0 { capacity[0] } else { random.below(capacity[0] + 1) };
        Shape { len, capacity, shown, floor: random.below(ROOM + 1) }
    }

    const HALF: Shape = Shape { len: [8; 3], capacity: [ROOM; 3], shown: ROOM, floor: 2 };
    const EMPTY: Shape = Shape { len: [0; 3], capacity: [ROOM; 3], shown: ROOM, floor: 0 };
    const FULL: Shape = Shape { len: [ROOM; 3], capacity: [ROOM; 3], shown: ROOM, floor: ROOM };
    const SHORT: Shape = Shape { len: [2; 3], capacity: [4; 3], shown: 4, floor: 2 };
    const DIVERTED: Shape = Shape { len: [2; 3], capacity: [4; 3], shown: 0, floor: 2 };
    const ALL: [Shape; 5] = [Shape::HALF, Shape::EMPTY, Shape::FULL, Shape::SHORT, Shape::DIVERTED];
}

/// What is in the stacks of a region: words, and room behind them.
type Contents = [(Vec<usize>, isize); 3];

/// Stacks that a trial can set up, operated on by sections or by the twins.
struct World {
    stacks: Stacks,
    arrays: [&'static mut [usize; ROOM + 1]; 3],
}

impl World {
    fn new(stacks: Stacks) -> World {
        World { stacks, arrays: [(); 3].map(|()| Box::leak(Box::new([0; ROOM + 1]))) }
    }

    /// The same words in any world: they follow from the shape.
    fn set(&mut self, shape: &Shape) {
        for (n, array) in self.arrays.iter_mut().enumerate() {
            array.fill(0xdead);
            array[0] = 0;
            (0..shape.len[n]).for_each(|i| array[i + 1] = 1000 * (n + 1) + i);
            // SAFETY: trials run one at a time, on one thread; the array has a 0 in front and room for the rest.
            unsafe {
                let base = array.as_mut_ptr().add(1);
                self.stacks.install(STACKS[n], base, shape.len[n], shape.capacity[n]);
                if n == 0 {
                    self.stacks.show_limit(CLASS, base, shape.shown);
                    self.stacks.set_floor(CLASS, base, shape.floor);
                }
            }
        }
        self.stacks.start();
    }

    fn contents(&self) -> Contents {
        std::array::from_fn(|n| {
            let (top, limit) = self.stacks.ends(STACKS[n]);
            let base = self.arrays[n].as_ptr() as usize + 8;
            let (len, room) = ((top as usize).wrapping_sub(base) / 8, (limit as isize - top as isize) / 8);
            assert!(len <= ROOM, "the top is in the array");
            (self.arrays[n][1..=len].to_vec(), room)
        })
    }

    /// What the twins make of an operation.
    fn twin(&self, op: Op, fresh: usize) -> Outcome {
        let [class, reserve, deferred] = STACKS;
        // SAFETY: these stacks are found by no section, or nobody is in one: trials run one at a time.
        unsafe {
            match op {
                Op::Pop => Outcome::Word(self.stacks.pop(class)),
                Op::PopReserve => Outcome::Word(self.stacks.pop(reserve)),
                Op::PopAboveFloor => Outcome::Found(self.stacks.pop_above_floor(CLASS)),
                Op::Push => {
                    let (top, shown) = self.stacks.ends(class);
                    Outcome::Done(top < shown && self.stacks.push(class, fresh))
                }
                Op::PushObserved => Outcome::Done(self.stacks.push(class, fresh)),
                Op::PushDeferred => Outcome::Done(self.stacks.push(deferred, fresh)),
                Op::PopBatch(n) => {
                    let mut out = vec![0; n];
                    let taken = self.stacks.pop_batch(class, &mut out);
                    Outcome::Taken(out[..taken].to_vec())
                }
                Op::PushBatch(n) => Outcome::Put(self.stacks.push_batch(class, &words(n, fresh))),
                Op::PushReserve(n) => Outcome::Put(self.stacks.push_batch(reserve, &words(n, fresh))),
                Op::StopHere | Op::StopReservesHere => Outcome::Done(true),
            }
        }
    }
}

/// Runs the section of an operation.
fn section(op: Op, fresh: usize, cpu: usize) -> Outcome {
    match op {
        Op::Pop => Outcome::Word(trial::pop(CLASS)),
        Op::PopReserve => Outcome::Word(trial::pop_reserve(CLASS)),
        Op::PopAboveFloor => Outcome::Found(trial::pop_above_floor(CLASS)),
        Op::Push => Outcome::Done(trial::push(CLASS, fresh)),
        Op::PushObserved => Outcome::Done(trial::push_observed(CLASS, fresh)),
        Op::PushDeferred => Outcome::Done(trial::push_deferred(fresh)),
        Op::PopBatch(n) => {
            let mut out = [0; ROOM];
            let taken = trial::pop_batch(CLASS, &mut out[..n]);
            Outcome::Taken(out[..taken].to_vec())
        }
        Op::PushBatch(n) => Outcome::Put(trial::push_batch(CLASS, &words(n, fresh))),
        Op::PushReserve(n) => Outcome::Put(trial::push_reserve(CLASS, &words(n, fresh))),
        Op::StopHere => Outcome::Done(trial::stop_here(cpu)),
        Op::StopReservesHere => Outcome::Done(trial::stop_reserves_here(cpu)),
    }
}

/// What the handler does in the middle of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// The same operation, with words of its own.
    Same,
    /// A nolock allocation.
    Nolock,
    /// Empties the CPU's stacks, as a drain does.
    Drain,
    /// Goes on on another CPU, and does the same operation there.
    Elsewhere,
}

const MEANWHILE: [Meanwhile; 5] =
    [Meanwhile::Nothing, Meanwhile::Same, Meanwhile::Nolock, Meanwhile::Drain, Meanwhile::Elsewhere];

/// The worlds of two CPUs, and of their twins.
struct Trials {
    cpus: Vec<usize>,
    worlds: Vec<World>,
    twins: Vec<World>,
}

fn go_to(cpu: usize) {
    move_thread(thread_number(), cpu);
    while trial::cpu() != Some(cpu) {
        std::thread::yield_now();
    }
}

impl Trials {
    fn new() -> Trials {
        assert!(trial::bring_up(), "this machine has rseq");
        let cpus: Vec<usize> = cpus().into_iter().take(2).collect();
        go_to(cpus[0]);
        let worlds = cpus.iter().map(|&cpu| World::new(Stacks::of_cpu(cpu).expect("memory"))).collect();
        let twins = cpus.iter().map(|_| World::new(Stacks::apart().expect("memory"))).collect();
        Trials { cpus, worlds, twins }
    }

    fn set(&mut self, shape: &Shape) {
        self.worlds.iter_mut().chain(&mut self.twins).for_each(|world| world.set(shape));
    }

    fn contents(&self) -> (Vec<Contents>, Vec<Contents>) {
        (self.worlds.iter().map(World::contents).collect(), self.twins.iter().map(World::contents).collect())
    }

    /// Whether a CPU's stacks and its reserves can be found.
    fn running(&self) -> Vec<(bool, bool)> {
        self.cpus.iter().map(|&cpu| trial::is_running(cpu)).collect()
    }

    /// One operation, interrupted at `at` if it comes there; what was wrong.
    fn interrupted(&mut self, op: Op, shape: &Shape, at: usize, meanwhile: Meanwhile, seen: &mut Seen) -> Vec<String> {
        self.set(shape);
        let here = self.cpus[0];
        let there = self.cpus.get(1).copied();
        let (worlds, twins) = (&self.worlds, &self.twins);
        let mut stopped = vec![(true, true); self.cpus.len()];
        let mut inner = None;
        let mut handler = || {
            let both = |number: usize, op: Op| {
                let expected = twins[number].twin(op, 7_000);
                (section(op, 7_000, self.cpus[number]), expected)
            };
            inner = match meanwhile {
                Meanwhile::Nothing => None,
                Meanwhile::Same => Some(both(0, op)),
                Meanwhile::Nolock => Some(both(0, Op::PopAboveFloor)),
                Meanwhile::Drain => {
                    let empty = |world: &World| {
                        let mut out = [0; 3 * ROOM];
                        // SAFETY: the stacks are stopped, or the twins' own.
                        STACKS.iter().map(|&stack| unsafe { world.stacks.pop_batch(stack, &mut out) }).sum::<usize>()
                    };
                    let drained = worlds[0].stacks.stopped(Stop::Fence, || empty(&worlds[0])).expect("a fence");
                    Some((Outcome::Put(drained), Outcome::Put(empty(&twins[0]))))
                }
                Meanwhile::Elsewhere => there.map(|cpu| {
                    go_to(cpu);
                    both(1, op)
                }),
            };
            let number = if meanwhile == Meanwhile::Elsewhere { 1 } else { 0 };
            if matches!(meanwhile, Meanwhile::Same | Meanwhile::Elsewhere) && number < stopped.len() {
                match op {
                    Op::StopHere => stopped[number].0 = false,
                    Op::StopReservesHere => stopped[number].1 = false,
                    _ => {}
                }
            }
        };
        let (outcome, interruption) = interrupt(at, &mut handler, || section(op, 5_000, here));
        let running = self.running();
        if meanwhile == Meanwhile::Elsewhere {
            go_to(here);
        }
        let mut wrong = Vec::new();
        if interruption == Interrupted::Not {
            return wrong;
        }
        seen.arrivals += 1;
        if let Some((found, expected)) = inner
            && found != expected
        {
            wrong.push(format!("the handler found {found:?}, not {expected:?}"));
        }
        if let Interrupted::GoesOn = interruption {
            seen.unnoticed += 1;
        } else {
            seen.aborts += 1;
        }
        if outcome != op.miss() {
            wrong.push(format!("it came to {outcome:?} although it was interrupted"));
        }
        let (found, expected) = self.contents();
        if found != expected {
            wrong.push(format!("the stacks hold {found:?}, not {expected:?}"));
        }
        if running != stopped {
            wrong.push(format!("CPUs run: {running:?}, not {stopped:?}"));
        }
        wrong.iter_mut().for_each(|w| *w = format!("{op:?} {meanwhile:?} {shape:?} at {at:#x}: {w}"));
        wrong
    }

    /// Every boundary of a section, by every operation that comes there.
    fn every_boundary(&mut self, section: &Section, shapes: &[Shape], seen: &mut Seen) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, instruction) in (1..).zip(&section.instructions) {
            for op in OPS {
                for shape in shapes {
                    for meanwhile in MEANWHILE {
                        let arrivals = seen.arrivals;
                        // A preemption aborts what it comes upon, the handler's own operation too; not every time.
                        let mut trial = || self.interrupted(op, shape, instruction.at, meanwhile, seen);
                        let faults = (0..4).map(|_| trial()).find(Vec::is_empty);
                        let faults = faults.unwrap_or_else(trial).into_iter();
                        let len = section.instructions.len();
                        wrong.extend(faults.map(|w| format!("before instruction {number} of {len}: {w}")));
                        if seen.arrivals == arrivals {
                            // Nor does it with any other handler.
                            break;
                        }
                        seen.ops.insert(format!("{op:?}").split('(').next().unwrap().to_owned());
                        seen.boundaries.insert(instruction.at);
                    }
                }
            }
        }
        wrong
    }
}

/// What has been covered.
#[derive(Default)]
struct Seen {
    ops: BTreeSet<String>,
    boundaries: BTreeSet<usize>,
    arrivals: usize,
    aborts: usize,
    /// Arrivals that did not abort.
    unnoticed: usize,
}

/// The sections that the trials' operations run through.
fn of_trials(trials: &mut Trials) -> Vec<Section> {
    let comes_there = |trials: &mut Trials, section: &Section| {
        OPS.into_iter().any(|op| {
            trials.set(&Shape::HALF);
            let (_, interruption) = interrupt(section.armed, &mut || (), || self::section(op, 1, trials.cpus[0]));
            interruption != Interrupted::Not
        })
    };
    sections().into_iter().filter(|section| comes_there(trials, section)).collect()
}

/// Each operation has a section of its own here, and it is interrupted everywhere.
///
/// Red with any of the faults of `faults_are_seen`, made in `src/percpu/x86_64.rs` or its like.
#[test]
fn interrupted_anywhere_nothing_has_happened() {
    const NAME: &str = "interrupted_anywhere_nothing_has_happened";
    child::body(NAME, |_| {
        let mut trials = Trials::new();
        let mut seen = Seen::default();
        let mut boundaries = 0;
        let sections = of_trials(&mut trials);
        for section in &sections {
            assert_eq!(section.fault(), None, "{section:x?}");
            boundaries += section.instructions.len();
            let before = seen.boundaries.len();
            let wrong = trials.every_boundary(section, &Shape::ALL, &mut seen);
            assert!(
                wrong.is_empty(),
                "{} faults, of which the first are\n{}",
                wrong.len(),
                wrong[..wrong.len().min(10)].join("\n")
            );
            assert_eq!(seen.boundaries.len() - before, section.instructions.len(), "all are come to: {section:x?}");
        }
        assert_eq!((seen.unnoticed, seen.aborts), (0, seen.arrivals), "every interruption aborts");
        assert_eq!(seen.ops.len(), 11, "{:?}", seen.ops);
        say("sections", sections.len());
        say("boundaries", boundaries);
        say("aborts", seen.aborts);
        say("cpus", trials.cpus.len());
    });
    for kernel in [Kernel::Whole, Kernel::LibcWithoutRseq] {
        let outcome = Child::new(NAME, "").kernel(kernel).run().succeeded();
        let [sections, boundaries, aborts] = ["sections", "boundaries", "aborts"].map(|key| outcome.number(key));
        println!("{kernel:?}: {sections} sections, {boundaries} boundaries, {aborts} aborts");
        assert!(sections >= 8 && boundaries > 70 && aborts > 10 * boundaries, "{outcome:#?}");
    }
}

/// A section that starts two instructions late, or whose commit is not the last of it, is caught red-handed.
#[test]
fn faults_are_seen() {
    const NAME: &str = "faults_are_seen";
    child::body(NAME, |_| {
        let mut trials = Trials::new();
        for section in of_trials(&mut trials) {
            let descriptor = section.descriptor();
            let change = |start: usize, end: usize| {
                descriptor.start.store(start as u64, Ordering::Relaxed);
                descriptor.len.store((end - start) as u64, Ordering::Relaxed);
            };
            // So much that a breakpoint behind the commit still lies inside.
            let behind = size_of::<Unit>() + BEHIND_BREAKPOINT;
            let late = section.instructions[2].at;
            let count = section.instructions.len();
            for (name, start, end) in [
                ("late", late, section.end),
                ("long", section.start, section.end + behind),
                ("short", section.start, section.instructions[count - 1].at),
            ] {
                change(start, end);
                let mut seen = Seen::default();
                let mut faulty = section.clone();
                (faulty.start, faulty.end) = (start, end);
                match name {
                    "long" => {
                        let mut beyond = section.instructions[count - 1];
                        (beyond.at, beyond.len, beyond.stores) = (section.end, behind, false);
                        faulty.instructions.push(beyond);
                    }
                    "short" => _ = faulty.instructions.pop(),
                    _ => {}
                }
                assert!(faulty.fault().is_some(), "{name}: seen by looking at it");
                // The instructions as they were, for the commit itself is left outside by one of the faults.
                if name == "short" {
                    faulty.instructions = section.instructions.clone();
                }
                // On a busy machine a preemption may abort what was to be caught.
                let wrong = (0..10)
                    .map(|_| trials.every_boundary(&faulty, &Shape::ALL[..1], &mut seen))
                    .find(|wrong| !wrong.is_empty())
                    .unwrap_or_default();
                change(section.start, section.end);
                println!("{name}: {} of {} trials are wrong, such as {:?}", wrong.len(), seen.arrivals, wrong.first());
                assert!(!wrong.is_empty(), "{name}: seen by what it does: {section:x?}");
                if name != "long" {
                    assert!(seen.unnoticed > 0);
                }
            }
        }
    });
    let outcome = Child::new(NAME, "").run().succeeded();
    print!(
        "{}",
        outcome.stdout.lines().filter(|l| l.contains(" are wrong")).map(|l| format!("{l:.180}\n")).collect::<String>()
    );
}

/// The sections and their twins agree on random states.
///
/// Red if they differ in anything: in `pop_above_floor` (`src/percpu/region.rs`), refuse at one less than the floor. Red if
/// a batch looks at the limit that pushes see: in `push_batch` (`src/percpu/x86_64.rs`, or its like), change
/// `FLOOR * 16 + 8` to `8`.
#[test]
fn sections_and_twins_agree_on_random_states() {
    const NAME: &str = "sections_and_twins_agree_on_random_states";
    child::body(NAME, |_| {
        let mut trials = Trials::new();
        let mut random = Random::new(11);
        let (mut agreed, mut aborted) = (0, 0);
        for round in 0..scaled(60_000) {
            let op = match OPS[random.below(OPS.len())] {
                Op::PopBatch(_) => Op::PopBatch(random.below(ROOM + 1)),
                Op::PushBatch(_) => Op::PushBatch(random.below(ROOM + 1)),
                Op::PushReserve(_) => Op::PushReserve(random.below(ROOM + 1)),
                op => op,
            };
            let shape = Shape::random(&mut random);
            trials.set(&shape);
            // A few operations from each state.
            for step in 0..3 {
                let before = trials.contents();
                let expected = trials.twins[0].twin(op, 5_000 + 100 * step);
                let mut outcome = section(op, 5_000 + 100 * step, trials.cpus[0]);
                // Whoever came between, it had no effect then; not every time.
                let mut tries = 0..1000;
                while outcome == op.miss() && outcome != expected && tries.next().is_some() {
                    assert_eq!(trials.worlds[0].contents(), before.0[0]);
                    aborted += 1;
                    outcome = section(op, 5_000 + 100 * step, trials.cpus[0]);
                }
                assert_eq!(outcome, expected, "{round}: {op:?} on {shape:?}");
                trials.worlds[0].stacks.start();
                let (found, expected) = trials.contents();
                assert_eq!(found, expected, "{round}: {op:?} on {shape:?}");
                agreed += 1;
            }
        }
        say("agreed", agreed);
        say("aborted", aborted);
    });
    let outcome = Child::new(NAME, "").run().succeeded();
    println!("{} operations agree, {} were aborted and tried again", outcome.value("agreed"), outcome.value("aborted"));
}
