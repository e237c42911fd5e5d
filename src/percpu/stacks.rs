//! The choice of stacks: those of the CPU this thread runs on, or its own.

use super::capacity::Exclusive;
use super::choice::{Mode, mode};
use super::cpus::{cpus, node_of, shard_of};
use super::region::{RESERVE, Region};
use super::regions::{create_region, region_of};
use super::{observed, rseq, thread};
use crate::sys;

/// The stacks this thread may use right now: its CPU's, or its own.
pub(super) enum Stacks {
    Cpu(usize, &'static Region),
    Thread(&'static Region),
}

impl Exclusive for Stacks {
    fn stop(&self) -> bool {
        match self {
            Stacks::Cpu(cpu, _) => rseq::stop_here(*cpu),
            Stacks::Thread(_) => true,
        }
    }

    fn start(&self) {
        if let Stacks::Cpu(cpu, region) = self {
            rseq::start(*cpu, region);
        }
    }
}

impl Stacks {
    pub(super) fn region(&self) -> &'static Region {
        match self {
            Stacks::Cpu(_, region) | Stacks::Thread(region) => region,
        }
    }

    /// The shard that blocks of a class come from.
    pub(super) fn shard(&self, class: usize) -> usize {
        let cpu = match self {
            Stacks::Cpu(cpu, _) => *cpu,
            Stacks::Thread(_) => sys::current_cpu(),
        };
        shard_of(node_of(cpu), cpu, class)
    }

    pub(super) fn pop(&self, class: usize) -> usize {
        match self {
            Stacks::Cpu(..) => rseq::pop_slow(class) as usize,
            // SAFETY: this thread's own region, marked busy.
            Stacks::Thread(region) => unsafe { region.pop(class) },
        }
    }

    pub(super) fn pop_batch(&self, class: usize, out: &mut [usize]) -> usize {
        match self {
            Stacks::Cpu(..) => {
                let taken = rseq::pop_batch(class, out);
                if taken == out.len() || !observed::has_marks() {
                    return taken;
                }
                taken + observed::pop_batch(self, class, &mut out[taken..])
            }
            // SAFETY: as in `pop`.
            Stacks::Thread(region) => unsafe { region.pop_batch(class, out) },
        }
    }

    /// # Safety
    /// All are blocks of `class` that nobody uses.
    pub(super) unsafe fn push_batch(&self, class: usize, blocks: &[usize]) -> usize {
        // SAFETY: the caller's obligation, and as in `pop`.
        unsafe {
            match self {
                Stacks::Cpu(_, region) if observed::is_on() => observed::push(region, class, blocks),
                Stacks::Cpu(..) => rseq::push_batch(class, blocks),
                Stacks::Thread(region) => region.push_batch(class, blocks),
            }
        }
    }

    /// # Safety
    /// All are blocks of `class` that nobody uses.
    pub(super) unsafe fn push_reserve(&self, class: usize, blocks: &[usize]) -> usize {
        // SAFETY: the caller's obligation, and as in `pop`.
        unsafe {
            match self {
                Stacks::Cpu(..) => rseq::push_reserve(class, blocks),
                Stacks::Thread(region) => region.push_batch(RESERVE + class, blocks),
            }
        }
    }
}

/// Runs `f` with the stacks this thread may use, or with none: no memory for them, no registration, a signal
/// handler on top of an operation on the thread's own.
pub(super) fn with_stacks<R>(f: impl FnOnce(Option<Stacks>) -> R) -> R {
    if mode() == Mode::PerThread {
        return thread::with_region(|region| f(region.map(Stacks::Thread)));
    }
    if mode() == Mode::OwnRseq && rseq::cpu().is_none() {
        let _ = rseq::register();
    }
    let cpu = rseq::cpu().filter(|&cpu| cpu < cpus());
    f(cpu.and_then(|cpu| Some(Stacks::Cpu(cpu, region_of(cpu).or_else(|| create_region(cpu))?))))
}
