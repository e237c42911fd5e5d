//! For the crate's own tests: the sections by themselves, on stacks of words of the test's choice, beside the
//! plain-Rust operations that they are compared with.
//!
//! The heap is brought up but must not be used otherwise by the process: what lies on the stacks here are no blocks.

use core::sync::atomic::Ordering;

use super::region::{AboveFloor, DEFERRED, FLOOR, RESERVE, Region};
use super::regions::{create_region, region_of};
use super::{Mode, cpus, fence, mode, rseq};
use crate::{Config, heap};

/// A stack of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stack {
    /// The blocks of a class.
    Class(usize),
    /// The class's blocks that only nolock allocation takes.
    Reserve(usize),
    /// The words that wait for a grace period.
    Deferred,
}

impl Stack {
    fn header(self) -> usize {
        match self {
            Stack::Class(class) => class,
            Stack::Reserve(class) => RESERVE + class,
            Stack::Deferred => DEFERRED,
        }
    }
}

/// What an allocation that respects the floor found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Found {
    Word(usize),
    Empty,
    Floor,
    Aborted,
}

impl From<AboveFloor> for Found {
    fn from(found: AboveFloor) -> Found {
        match found {
            AboveFloor::Block(word) => Found::Word(word),
            AboveFloor::Empty => Found::Empty,
            AboveFloor::Floor => Found::Floor,
            AboveFloor::Aborted => Found::Aborted,
        }
    }
}

/// Number of classes.
pub const CLASSES: usize = crate::size_class::CLASSES;

/// Brings the heap up; whether its stacks belong to CPUs, and the calling thread finds them.
pub fn bring_up() -> bool {
    heap::ensure_up(&Config::new());
    mode() != Mode::PerThread && (mode() == Mode::LibcRseq || rseq::register().is_ok())
}

/// Possible CPUs.
pub fn possible_cpus() -> usize {
    cpus()
}

/// The CPU that the calling thread's rseq area names.
pub fn cpu() -> Option<usize> {
    rseq::cpu()
}

/// The stacks of a CPU, or stacks that no section finds.
#[derive(Clone, Copy)]
pub struct Stacks {
    region: &'static Region,
    cpu: Option<usize>,
}

/// How a CPU's stacks are had for oneself.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// From anywhere, by the fence: what a drain does.
    Fence,
    /// By a section, on the CPU itself.
    Here,
    /// From anywhere without a fence, which is wrong: a control.
    NoFence,
    /// By a store that follows a look at where one runs, but not in a section, which is wrong: a control. What may
    /// happen between the two is this.
    Looked(fn()),
    /// By the fence, going on when that has failed, which is wrong: a control.
    Ignored,
}

impl Stacks {
    /// Those of a CPU; made if need be.
    pub fn of_cpu(cpu: usize) -> Option<Stacks> {
        let region = region_of(cpu).or_else(|| create_region(cpu))?;
        Some(Stacks { region, cpu: Some(cpu) })
    }

    /// Stacks of their own, for the plain-Rust operations.
    pub fn apart() -> Option<Stacks> {
        Some(Stacks { region: Region::new(1 << 20)?, cpu: None })
    }

    /// Gives a stack an array to work on, with `len` words in it and room for `capacity`.
    ///
    /// # Safety
    /// Nobody operates on the stack meanwhile. `base` is valid for `capacity` words as long as it is in use, and the
    /// word before it is 0.
    pub unsafe fn install(&self, stack: Stack, base: *mut usize, len: usize, capacity: usize) {
        let header = &self.region.headers[stack.header()];
        // Relaxed: the caller has the stack to itself.
        header.top.store(base.wrapping_add(len), Ordering::Relaxed);
        header.limit.store(base.wrapping_add(capacity), Ordering::Relaxed);
        if let Stack::Class(class) = stack {
            self.region.headers[FLOOR + class].limit.store(base.wrapping_add(capacity), Ordering::Relaxed);
        }
    }

    /// Sets how many words of a class's stack [`pop_above_floor`] leaves.
    pub fn set_floor(&self, class: usize, base: *mut usize, words: usize) {
        self.region.headers[FLOOR + class].top.store(base.wrapping_add(words), Ordering::Relaxed);
    }

    /// Has [`push`] see another limit of a class's stack than the one in force, as it does while somebody observes the heap.
    pub fn show_limit(&self, class: usize, base: *mut usize, words: usize) {
        self.region.headers[class].limit.store(base.wrapping_add(words), Ordering::Relaxed);
    }

    /// Top and limit of a stack, that of a class as [`push`] sees it.
    pub fn ends(&self, stack: Stack) -> (*mut usize, *mut usize) {
        let header = &self.region.headers[stack.header()];
        (header.top.load(Ordering::Relaxed), header.limit.load(Ordering::Relaxed))
    }

    /// Has the stacks to itself while `f` runs; `None` if that cannot be done just now.
    pub fn stopped<R>(&self, how: Stop, f: impl FnOnce() -> R) -> Option<R> {
        let cpu = self.cpu?;
        let _book = self.region.book.lock();
        let stopped = match how {
            Stop::Fence => fence::stop(cpu, self.region),
            Stop::Here => rseq::stop_here(cpu),
            Stop::Ignored => {
                fence::stop(cpu, self.region);
                true
            }
            Stop::NoFence => {
                rseq::stop_without_fence(cpu);
                true
            }
            Stop::Looked(between) => {
                let here = rseq::cpu() == Some(cpu);
                between();
                if here {
                    rseq::stop_without_fence(cpu);
                }
                here
            }
        };
        if !stopped {
            return None;
        }
        let result = f();
        rseq::start(cpu, self.region);
        Some(result)
    }

    /// Lets the CPU use its stacks again after [`stop_here`] or [`stop_reserves_here`].
    pub fn start(&self) {
        if let Some(cpu) = self.cpu {
            rseq::start(cpu, self.region);
            rseq::start_reserves(cpu, self.region);
        }
    }

    /// The plain-Rust operation.
    ///
    /// # Safety
    /// For this and those below: nobody else operates on the stacks, which have arrays.
    pub unsafe fn pop(&self, stack: Stack) -> usize {
        // SAFETY: the caller's obligation, here and below.
        unsafe { self.region.pop(stack.header()) }
    }

    /// The plain-Rust operation.
    ///
    /// # Safety
    /// As for [`Stacks::pop`].
    pub unsafe fn push(&self, stack: Stack, word: usize) -> bool {
        // SAFETY: the caller's obligation.
        unsafe { self.region.push(stack.header(), word) }
    }

    /// The plain-Rust operation.
    ///
    /// # Safety
    /// As for [`Stacks::pop`].
    pub unsafe fn pop_batch(&self, stack: Stack, out: &mut [usize]) -> usize {
        // SAFETY: the caller's obligation.
        unsafe { self.region.pop_batch(stack.header(), out) }
    }

    /// The plain-Rust operation.
    ///
    /// # Safety
    /// As for [`Stacks::pop`].
    pub unsafe fn push_batch(&self, stack: Stack, words: &[usize]) -> usize {
        // SAFETY: the caller's obligation.
        unsafe { self.region.push_batch(stack.header(), words) }
    }

    /// The plain-Rust operation.
    ///
    /// # Safety
    /// As for [`Stacks::pop`].
    pub unsafe fn pop_above_floor(&self, class: usize) -> Found {
        // SAFETY: the caller's obligation.
        unsafe { self.region.pop_above_floor(class) }.into()
    }
}

/// The section: a word from the calling thread's CPU's stack; 0 is a miss.
#[inline(never)]
pub fn pop(class: usize) -> usize {
    rseq::pop(class) as usize
}

/// The section.
#[inline(never)]
pub fn pop_reserve(class: usize) -> usize {
    rseq::pop_reserve(class) as usize
}

/// The section.
#[inline(never)]
pub fn pop_above_floor(class: usize) -> Found {
    rseq::pop_above_floor(class).into()
}

/// The section.
#[inline(never)]
pub fn push(class: usize, word: usize) -> bool {
    // SAFETY: a word of the test's, which whoever pops it knows to be none of the heap's blocks.
    unsafe { rseq::push(class, word) }
}

/// The section.
#[inline(never)]
pub fn push_observed(class: usize, word: usize) -> bool {
    // SAFETY: as in `push`.
    unsafe { rseq::push_observed(class, word) }
}

/// The section, on the stack of deferred words.
#[inline(never)]
pub fn push_deferred(word: usize) -> bool {
    super::push_deferred(word)
}

/// The section.
#[inline(never)]
pub fn pop_batch(class: usize, out: &mut [usize]) -> usize {
    rseq::pop_batch(class, out)
}

/// The section.
#[inline(never)]
pub fn push_batch(class: usize, words: &[usize]) -> usize {
    // SAFETY: as in `push`.
    unsafe { rseq::push_batch(class, words) }
}

/// The section.
#[inline(never)]
pub fn push_reserve(class: usize, words: &[usize]) -> usize {
    // SAFETY: as in `push`.
    unsafe { rseq::push_reserve(class, words) }
}

/// The section. [`Stacks::start`] ends what it does.
#[inline(never)]
pub fn stop_here(cpu: usize) -> bool {
    rseq::stop_here(cpu)
}

/// The section. [`Stacks::start`] ends what it does.
#[inline(never)]
pub fn stop_reserves_here(cpu: usize) -> bool {
    rseq::stop_reserves_here(cpu)
}

/// Whether a CPU's stacks can be found, and its reserves.
pub fn is_running(cpu: usize) -> (bool, bool) {
    rseq::is_running(cpu)
}
