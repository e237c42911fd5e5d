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
//! | memory | `populate`, `release`, `advise_huge` |
//! | processors | `possible_cpus`, `node_of_cpu`, `nodes`, `current_cpu` |
//! | ordering | `register_membarrier`, `fence_cpu` |
//! | waiting | `futex_wait`, `futex_wake` |
//! | watching | `read_file`, `Trigger` |
//! | rseq | `glibc_rseq`, `register_rseq` |
//! | C interface | `set_errno`, `is_single_threaded` |
//! | process | `page_size`, `environment`, `spawn`, `with_signals_blocked`, `at_fork`, `stay_loaded`, `on_thread_exit`, `die` |

#[cfg(all(feature = "capi", not(any(pcpalloc_twin, miri))))]
mod c_library;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod cpus;
#[cfg(not(any(pcpalloc_twin, miri)))]
pub mod failures;
#[cfg(not(any(pcpalloc_twin, miri)))]
mod linux;
#[cfg(all(feature = "capi", not(any(pcpalloc_twin, miri))))]
pub(crate) use c_library::*;
#[cfg(not(any(pcpalloc_twin, miri)))]
pub(crate) use {cpus::*, linux::*};

#[cfg(any(pcpalloc_twin, miri))]
mod twin;
#[cfg(any(pcpalloc_twin, miri))]
pub(crate) use twin::*;

mod message;
pub(crate) use message::Message;

use core::ptr::NonNull;

/// The signature that precedes every abort handler; glibc registers its threads with this value, which
/// fixes it for everybody in the process. (uapi `rseq.h`, glibc `sys/rseq.h`.)
#[cfg(target_arch = "x86_64")]
pub(crate) const RSEQ_SIGNATURE: u32 = 0x5305_3053;
#[cfg(target_arch = "aarch64")]
pub(crate) const RSEQ_SIGNATURE: u32 = 0xd428_bc00;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) const RSEQ_SIGNATURE: u32 = 0;

/// `n` rounded up to a multiple of `unit`, a power of two; `None` on overflow.
pub(crate) const fn round_up(n: usize, unit: usize) -> Option<usize> {
    debug_assert!(unit.is_power_of_two());
    match n.checked_add(unit - 1) {
        Some(m) => Some(m & !(unit - 1)),
        None => None,
    }
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

/// The address of `ptr` as the caller's allocator sees it.
#[inline(always)]
pub(crate) fn addr<T>(ptr: NonNull<T>) -> usize {
    ptr.as_ptr() as usize
}
