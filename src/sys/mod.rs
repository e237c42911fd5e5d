//! The operating system: every system call the allocator makes, behind one small contract.
//!
//! Two implementations have the same surface: [`linux`] makes the calls, [`twin`] makes none and takes
//! its memory from `std`'s `System` (for sanitizers, Miri and wherever the layers above are to be tested
//! without a kernel; chosen by `--cfg pcpalloc_twin` or by Miri).
//!
//! Common to all functions: addresses and lengths are multiples of [`page_size`] unless said otherwise;
//! lengths are not zero; failure is a value (`None`, `false`, an errno), never a panic; nothing
//! allocates from the allocator above; `errno` is the same before and after.
//!
//! | group | functions |
//! | --- | --- |
//! | address space | `reserve` (no memory behind it), `commit` (readable, writable, reads as zero), `map` (both at once), `unmap`, `remap` |
//! | time | `monotonic_nanos` (never 0) |
//! | memory | `populate`, `provide`, `release`, `release_all`, `releases_at_once`, `release_one_by_one`, `advise_huge`, `guard`, `unguard`, `forbid`, `permit` |
//! | randomness | `random_key` |
//! | processors | `possible_cpus`, `each_cpu_of_node`, `each_node`, `node_distances`, `node_has_memory`, `prefer_node`, `current_cpu`, `current_cpu_and_node` |
//! | ordering | `register_membarrier`, `fence_cpu` |
//! | waiting | `futex_wait`, `futex_wake` |
//! | bad accesses | `on_fault`, `stack_trace`, `FileRoom`, `Turn` |
//! | memory tools | `tools` |
//! | watching | `read_file`, `Trigger` |
//! | rseq | `libc_rseq`, `register_rseq`, `unregister_rseq`, `rseq_aborts` |
//! | C interface | `set_errno`, `is_single_threaded` |
//! | process | `page_size`, `environment`, `spawn`, `with_signals_blocked`, `at_exit`, `at_fork`, `stay_loaded`, `on_thread_exit`, `die` |

#[cfg(all(feature = "capi", not(any(pcpalloc_twin, miri))))]
mod c_library;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod cpus;
#[cfg(not(any(pcpalloc_twin, miri)))]
pub mod failures;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod fault;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod linux;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod protect;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod release;
// Who has no sections registers no thread for them.
#[cfg(not(any(pcpalloc_twin, miri)))]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
mod rseq;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod symbols;
#[cfg(all(feature = "capi", not(any(pcpalloc_twin, miri))))]
pub(crate) use c_library::*;
#[cfg(not(any(pcpalloc_twin, miri)))]
use symbols::optional;
#[cfg(not(any(pcpalloc_twin, miri)))]
pub(crate) use {cpus::*, fault::*, linux::*, protect::*, release::*, rseq::*};

#[cfg(any(pcpalloc_twin, miri))]
mod twin;
#[cfg(any(pcpalloc_twin, miri))]
pub(crate) use twin::*;

mod message;
mod ranges;
pub(crate) mod tools;
pub(crate) use message::Message;
pub(crate) use ranges::Ranges;

use core::ptr::NonNull;

/// The signature that precedes every abort handler; glibc registers its threads with this value, which
/// fixes it for everybody in the process. (uapi `rseq.h`, glibc `sys/rseq.h`.) On aarch64 it is an instruction, a
/// breakpoint, and those are little-endian always.
#[cfg_attr(any(pcpalloc_twin, miri), allow(dead_code))]
pub(crate) const RSEQ_SIGNATURE: u32 = if cfg!(target_arch = "x86_64") {
    0x5305_3053
} else if cfg!(target_arch = "aarch64") {
    u32::from_le(0xd428_bc00)
} else {
    0
};

/// `n` rounded up to a multiple of `unit`, a power of two; `None` on overflow.
pub(crate) const fn round_up(n: usize, unit: usize) -> Option<usize> {
    debug_assert!(unit.is_power_of_two());
    match n.checked_add(unit - 1) {
        Some(m) => Some(m & !(unit - 1)),
        None => None,
    }
}

/// Gives memory to the next `N` bytes of the caller's stack, so that what runs there needs none when there is none left.
#[inline(never)]
pub(crate) fn warm_stack<const N: usize>() {
    core::hint::black_box([0u8; N]);
}

/// Ends the process with one line on standard error: what went wrong and the address it concerns.
///
/// For corruption and misuse that has been found out; running on would spread it. Nothing is allocated.
#[cold]
#[inline(never)]
pub(crate) fn die(what: &str, address: usize) -> ! {
    let mut line = Message::new();
    line.text("pcpalloc: ").text(what).text(" (address ").hex(address).text(")\n");
    abort_with(line.as_bytes())
}

/// Writes to standard error, piece by piece; what cannot be written is lost.
pub(crate) struct Stderr;

impl core::fmt::Write for Stderr {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        report(text.as_bytes());
        Ok(())
    }
}

/// The address of `ptr` as the caller's allocator sees it.
#[inline(always)]
pub(crate) fn addr<T>(ptr: NonNull<T>) -> usize {
    ptr.as_ptr() as usize
}
