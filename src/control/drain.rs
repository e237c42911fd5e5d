//! Drains and trims.

use core::fmt;

use super::stats::Size;
use crate::percpu::{self, CpuDrain};
use crate::slab::{holes, retire, transfer};
use crate::zone::release;
use crate::{heap, nolock};

/// Whose cached blocks to give back ([`PcpAlloc::drain`](crate::PcpAlloc::drain)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Drain {
    /// Those of the CPU the caller runs on (of the calling thread where stacks are per thread).
    Local,
    /// Those of this CPU, from whatever CPU the caller runs on. Of a number that is no CPU's, nothing.
    Cpu(usize),
    /// Those of every CPU, and the batches on their way between CPUs.
    All,
}

/// What a drain did ([`PcpAlloc::drain`](crate::PcpAlloc::drain)). Its `Display` is one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Bytes of blocks that went back to their slabs.
    pub drained: usize,
    /// CPUs whose stacks could not be reached: the kernel or the sandbox has no
    /// `membarrier(PRIVATE_EXPEDITED_RSEQ)` (Linux 5.10), so only a CPU's own threads can empty them.
    pub unreachable_cpus: usize,
}

/// What a trim did ([`PcpAlloc::trim`](crate::PcpAlloc::trim)). Its `Display` is one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrimReport {
    /// Bytes given back to the system, without the tables that belong to them: another 64th.
    pub released: usize,
    /// Bytes of blocks that went back to their slabs first.
    pub drained: usize,
    /// As in [`DrainReport::unreachable_cpus`].
    pub unreachable_cpus: usize,
    /// Bytes that are free and resident all the same: in pages that are partly in use, or freed meanwhile.
    pub retained: usize,
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} drained, {} CPUs out of reach", Size(self.drained), self.unreachable_cpus)
    }
}

impl fmt::Display for TrimReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} given back, {} drained first, ", Size(self.released), Size(self.drained))?;
        write!(f, "{} CPUs out of reach, {} free and resident", self.unreachable_cpus, Size(self.retained))
    }
}

impl DrainReport {
    fn add(&mut self, outcome: CpuDrain) {
        match outcome {
            CpuDrain::Drained(bytes) => self.drained += bytes,
            CpuDrain::Unreachable => self.unreachable_cpus += 1,
        }
    }
}

pub(crate) fn drain(scope: Drain) -> DrainReport {
    let mut report = DrainReport::default();
    if !heap::is_up() {
        return report;
    }
    nolock::settle();
    match scope {
        Drain::Local => {
            report.add(percpu::drain_cpu(percpu::cpu_here()));
            report.drained += percpu::drain_thread();
        }
        Drain::Cpu(cpu) => report.add(percpu::drain_cpu(cpu)),
        Drain::All => {
            (0..percpu::cpus()).for_each(|cpu| report.add(percpu::drain_cpu(cpu)));
            report.drained += percpu::drain_thread() + transfer::drain();
        }
    }
    report
}

pub(crate) fn trim() -> TrimReport {
    if !heap::is_up() {
        return TrimReport::default();
    }
    let drained = drain(Drain::All);
    retire::retire_all();
    let released = release(usize::MAX) + holes::punch_all();
    TrimReport {
        released,
        drained: drained.drained,
        unreachable_cpus: drained.unreachable_cpus,
        retained: super::stats::stats().free_resident,
    }
}
