//! How threads find their stacks: chosen once, when the heap comes up, with the reason.

use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use super::rseq;
use crate::sys::{self, LibcRseq};

/// How threads find their stacks. Chosen once, at initialisation; [`ModeReason`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Per-CPU stacks, with the rseq area that the C library has registered for every thread.
    LibcRseq,
    /// Per-CPU stacks, with an rseq area of our own, registered by each thread when it first needs it.
    OwnRseq,
    /// Per-thread stacks: there is no rseq to be had.
    PerThread,
}

impl Mode {
    /// The mode as metrics and reports have it: `libc_rseq`, `own_rseq` or `per_thread`.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::LibcRseq => "libc_rseq",
            Mode::OwnRseq => "own_rseq",
            Mode::PerThread => "per_thread",
        }
    }
}

/// Why the heap runs in its [`Mode`]. Printed, it is a phrase such as `the kernel or a sandbox has no rseq (ENOSYS)`.
///
/// ```
/// use pcpalloc::{Mode, PcpAlloc};
///
/// #[global_allocator]
/// static GLOBAL: PcpAlloc = PcpAlloc::new();
///
/// fn main() {
///     let stats = GLOBAL.stats();
///     if stats.mode == Mode::PerThread {
///         eprintln!("no per-CPU caches: {}", stats.mode_reason);
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModeReason {
    /// Nothing has been allocated, so nothing has been chosen.
    NotUp,
    /// [`Mode::LibcRseq`]: what is there is used, and no system call made for it.
    LibcRegistered,
    /// [`Mode::OwnRseq`]: the C library registers none (musl; glibc before 2.35).
    LibcWithout,
    /// [`Mode::OwnRseq`]: the C library could have registered one, and has not
    /// (`GLIBC_TUNABLES=glibc.pthread.rseq=0`).
    LibcDeclined,
    /// [`Mode::PerThread`]: the settings forbid what there would be: [`Rseq`].
    Settings,
    /// [`Mode::PerThread`]: the heap has no restartable sequences for this processor.
    Architecture,
    /// [`Mode::PerThread`]: the machine may have CPUs with higher numbers than any kernel of today knows.
    CpuNumbers,
    /// [`Mode::PerThread`]: the kernel is of a release that does not abort restartable sequences whenever it should:
    /// Linux 6.19 and 7.0 on aarch64.
    KernelRelease,
    /// [`Mode::PerThread`]: the C library says that it has registered an area, and the kernel knows nothing of it.
    LibcUnregistered,
    /// [`Mode::PerThread`]: the kernel, or a sandbox, refused to register an area, with this error: `ENOSYS` (38) where
    /// it has no rseq, `EINVAL` (22) where somebody else in the process has an area, `EPERM` (1) where it is forbidden.
    Refused(i32),
}

impl fmt::Display for ModeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            ModeReason::NotUp => "nothing has been allocated",
            ModeReason::LibcRegistered => "the C library has registered rseq",
            ModeReason::LibcWithout => "the C library registers no rseq",
            ModeReason::LibcDeclined => "the C library was told not to register rseq",
            ModeReason::Settings => "the settings forbid to register rseq",
            ModeReason::Architecture => "no restartable sequences for this processor",
            ModeReason::CpuNumbers => "CPU numbers beyond those of any kernel known",
            ModeReason::KernelRelease => "this release of the kernel does not abort restartable sequences reliably",
            ModeReason::LibcUnregistered => "the C library's rseq area is not registered",
            ModeReason::Refused(sys::ENOSYS) => "the kernel or a sandbox has no rseq (ENOSYS)",
            ModeReason::Refused(sys::EINVAL) => "rseq is registered by somebody else (EINVAL)",
            ModeReason::Refused(errno) => return write!(f, "rseq was refused (error {errno})"),
        })
    }
}

/// Which rseq area the heap may use.
///
/// A sandbox may end a process for asking the kernel for what it does not allow, where a refusal would do. What is asked
/// for on the heap's behalf can be chosen here, or by `PCPALLOC_CONF="rseq:libc,membarrier:off"`: with feature `capi` only by
/// that, since C asks for memory before any static can say so.
///
/// ```
/// use pcpalloc::{Config, Mode, PcpAlloc, Rseq};
///
/// #[global_allocator]
/// static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().rseq(Rseq::Libc).membarrier(false));
///
/// fn main() {
///     let stats = GLOBAL.stats();
///     # if !cfg!(feature = "capi") {
///     assert!(stats.mode != Mode::OwnRseq && !stats.cpu_fence);
///     # }
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rseq {
    /// The C library's if it has registered one, else one of the heap's own.
    #[default]
    Auto,
    /// The C library's or none: the heap never makes the system call.
    Libc,
    /// None: stacks belong to threads.
    Off,
}

static MODE: AtomicU8 = AtomicU8::new(Mode::PerThread as u8);
/// The reason's number; an errno, which is not negative, for `Refused`.
static REASON: AtomicI32 = AtomicI32::new(number(ModeReason::NotUp));

/// Every reason but `Refused`.
const REASONS: [ModeReason; 9] = [
    ModeReason::NotUp,
    ModeReason::LibcRegistered,
    ModeReason::LibcWithout,
    ModeReason::LibcDeclined,
    ModeReason::Settings,
    ModeReason::Architecture,
    ModeReason::CpuNumbers,
    ModeReason::LibcUnregistered,
    ModeReason::KernelRelease,
];

const fn number(reason: ModeReason) -> i32 {
    match reason {
        ModeReason::NotUp => -1,
        ModeReason::LibcRegistered => -2,
        ModeReason::LibcWithout => -3,
        ModeReason::LibcDeclined => -4,
        ModeReason::Settings => -5,
        ModeReason::Architecture => -6,
        ModeReason::CpuNumbers => -7,
        ModeReason::LibcUnregistered => -8,
        ModeReason::KernelRelease => -9,
        ModeReason::Refused(errno) => errno,
    }
}

/// How threads find their stacks.
pub(crate) fn mode() -> Mode {
    // Relaxed: set before initialisation is announced, and never changed. A thread that has not heard of the announcement,
    // because it lives on blocks from others, may take stacks for per-thread: it then does without those of its CPU, or
    // gets some of its own, which hold blocks as well.
    match MODE.load(Ordering::Relaxed) {
        x if x == Mode::LibcRseq as u8 => Mode::LibcRseq,
        x if x == Mode::OwnRseq as u8 => Mode::OwnRseq,
        _ => Mode::PerThread,
    }
}

/// Why they find them that way. Ordering as in [`mode`].
pub(crate) fn mode_reason() -> ModeReason {
    let found = REASON.load(Ordering::Relaxed);
    REASONS.into_iter().find(|&reason| number(reason) == found).unwrap_or(ModeReason::Refused(found))
}

/// Chooses the mode of a machine with so many possible CPUs. Called once, while the heap comes up.
pub(super) fn choose(wanted: Rseq, cpus: usize) {
    let (mode, reason) = choice(wanted, cpus);
    MODE.store(mode as u8, Ordering::Relaxed);
    REASON.store(number(reason), Ordering::Relaxed);
}

fn choice(wanted: Rseq, cpus: usize) -> (Mode, ModeReason) {
    if !rseq::SECTIONS {
        return (Mode::PerThread, ModeReason::Architecture);
    }
    if wanted == Rseq::Off {
        return (Mode::PerThread, ModeReason::Settings);
    }
    // Ids index a table of MAX_CPUS.
    if cpus > sys::MAX_CPUS {
        return (Mode::PerThread, ModeReason::CpuNumbers);
    }
    if !sys::rseq_aborts() {
        return (Mode::PerThread, ModeReason::KernelRelease);
    }
    let own = match sys::libc_rseq() {
        LibcRseq::At(offset) if rseq::adopt(offset) => return (Mode::LibcRseq, ModeReason::LibcRegistered),
        LibcRseq::At(_) => return (Mode::PerThread, ModeReason::LibcUnregistered),
        LibcRseq::Declined => ModeReason::LibcDeclined,
        LibcRseq::Absent => ModeReason::LibcWithout,
    };
    if wanted == Rseq::Libc {
        return (Mode::PerThread, ModeReason::Settings);
    }
    match rseq::register() {
        // For want of memory: the kernel has registered the area, and will when the thread asks again.
        Ok(()) | Err(sys::ENOMEM) => (Mode::OwnRseq, own),
        Err(errno) => (Mode::PerThread, ModeReason::Refused(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_number_of_its_own() {
        for reason in REASONS.into_iter().chain([1, 22, 38].map(ModeReason::Refused)) {
            REASON.store(number(reason), Ordering::Relaxed);
            assert_eq!(mode_reason(), reason);
        }
    }
}
