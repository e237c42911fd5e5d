//! Sandboxes and kernels that refuse what the heap would like to ask for, by the name of the trouble.
//!
//! On each host the same work is done, by a child process whose system calls go through seccomp filters from its first
//! instruction on: `hosts_common::work`. Afterwards the heap must say in which mode it ran, and why.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;
mod hosts_common;

use common::child::{self, Child};
use common::kernel::{self, Refusal, SECTIONS};
use common::{Block, HEAP, MIB};
use hosts_common::{Expected, LIBC_WITHOUT, on_host, row, work};
use libc::{EACCES, EINVAL, ENOMEM, ENOSYS, EPERM};
use pcpalloc::{ModeReason, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Red if a refusal is taken for something else: in `choice` (`src/percpu/choice.rs`), say `Refused(ENOSYS)` whatever
/// the error; or if the refused area is used all the same: say `OwnRseq` there.
#[test]
fn rseq_refused() {
    const NAME: &str = "rseq_refused";
    child::body(NAME, |_| work());
    // glibc, whose call is refused as well, gives up on rseq for the process.
    for (host, errno) in [("rseq ENOSYS", ENOSYS), ("rseq EPERM", EPERM), ("rseq EACCES", EACCES)] {
        let child = Child::new(NAME, "").refuse([Refusal::rseq(errno)]);
        on_host(NAME, host, child, Expected::per_thread(ModeReason::Refused(errno)));
    }
}

/// With the C library's consent or without, nobody asks where asking is the end. The first child is the control: it asks.
///
/// Red if the settings come too late, or are not looked at: in `choice` (`src/percpu/choice.rs`), leave out the
/// comparison with `Rseq::Libc`, or that with `Rseq::Off`.
#[test]
fn rseq_kills_who_asks() {
    const NAME: &str = "rseq_kills_who_asks";
    child::body(NAME, |_| work());
    let killing =
        || Child::new(NAME, "").environment(LIBC_WITHOUT.0, LIBC_WITHOUT.1).refuse([Refusal::rseq(0).killing()]);
    if SECTIONS {
        let outcome = killing().run();
        assert_eq!(outcome.signal(), Some(libc::SIGSYS), "the filter ends who asks: {outcome:#?}");
        row("rseq kills who asks, PCPALLOC_CONF unset", "", NAME, "killed by the filter, as expected", "control");
    }
    for settings in ["rseq:libc", "rseq:off"] {
        let host = format!("rseq kills who asks, PCPALLOC_CONF={settings}");
        on_host(NAME, &host, killing().settings(settings), Expected::per_thread(ModeReason::Settings));
    }
}

/// What the C library has registered is used without asking, and is left alone if so told.
#[test]
fn rseq_as_the_settings_say() {
    const NAME: &str = "rseq_as_the_settings_say";
    child::body(NAME, |_| work());
    let with = |settings| Child::new(NAME, "").settings(settings);
    if kernel::libc_has_registered() {
        on_host(NAME, "PCPALLOC_CONF=rseq:libc", with("rseq:libc"), Expected::as_it_is());
    }
    on_host(NAME, "PCPALLOC_CONF=rseq:off", with("rseq:off"), Expected::per_thread(ModeReason::Settings));
    let without = Child::new(NAME, "").environment(LIBC_WITHOUT.0, LIBC_WITHOUT.1);
    on_host(NAME, "GLIBC_TUNABLES=glibc.pthread.rseq=0", without, Expected::own());
    on_host(NAME, "as it is", Child::new(NAME, ""), Expected::as_it_is());
}

const QUERY: u32 = 0;
const REGISTER_PROCESS: u32 = 1 << 4;
const REGISTER_CPU: u32 = 1 << 8;

/// Each command of `membarrier` that can fail before anything depends on it. (The fences themselves: `fallbacks` and
/// `out_of_memory`.)
///
/// Red if a registration that failed is taken for one: in `sys::register_membarrier` or `register_process_fence`
/// (`src/sys/linux.rs`), do not look at what the registration returned: a drain does not reach CPUs that it should, or
/// a grace period never ends.
#[test]
fn membarrier_refused() {
    const NAME: &str = "membarrier_refused";
    child::body(NAME, |_| work());
    let whole = Expected::as_it_is();
    for errno in [ENOSYS, EPERM, EINVAL] {
        let all = Child::new(NAME, "").refuse([Refusal::membarrier(errno)]);
        on_host(NAME, &format!("membarrier, errno {errno}"), all, whole.without_fence());
    }
    for (what, command, expected) in [
        ("MEMBARRIER_CMD_QUERY EPERM", QUERY, whole.without_fence()),
        ("MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED EPERM", REGISTER_PROCESS, whole),
        ("MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ EPERM", REGISTER_CPU, whole.without_fence()),
    ] {
        let child = Child::new(NAME, "").refuse([Refusal::membarrier(EPERM).when(0, command)]);
        on_host(NAME, what, child, expected);
    }
}

/// Red if the settings are not looked at: in `fence::init` (`src/percpu/fence.rs`), register whatever they say; or in
/// `reader::init` (`src/rcu/reader.rs`).
#[test]
fn membarrier_kills_who_asks() {
    const NAME: &str = "membarrier_kills_who_asks";
    child::body(NAME, |_| work());
    let killing = || Child::new(NAME, "").refuse([Refusal::membarrier(0).killing()]);
    let outcome = killing().run();
    assert_eq!(outcome.signal(), Some(libc::SIGSYS), "the filter ends who asks: {outcome:#?}");
    let host = "membarrier kills who asks, PCPALLOC_CONF=membarrier:off";
    on_host(NAME, host, killing().settings("membarrier:off"), Expected::as_it_is().without_fence());
}

/// Pages between blocks in use go back all the same, one call each.
///
/// Red if the setting is not looked at: in `Config::apply` (`src/control/config.rs`), leave out `release_one_by_one`.
#[test]
fn process_madvise_kills_who_asks() {
    const NAME: &str = "process_madvise_kills_who_asks";
    child::body(NAME, |_| {
        work();
        // 4 MiB of which one block in ten pages stays.
        let mut blocks: Vec<_> = (0..4 * MIB / 64).map(|n| Block::new(64, 8, n as u64)).collect();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 640 == 1
        });
        let report = HEAP.trim();
        assert!(report.released > 2 * MIB, "{report:?}");
        assert!(blocks.iter().all(Option::is_some), "there is memory");
    });
    let killing = || Child::new(NAME, "").refuse([Refusal::of(libc::SYS_process_madvise, 0).killing()]);
    let outcome = killing().run();
    assert_eq!(outcome.signal(), Some(libc::SIGSYS), "the filter ends who asks: {outcome:#?}");
    let control = "process_madvise kills who asks, PCPALLOC_CONF unset";
    row(control, "", NAME, "killed by the filter, as expected", "control");
    let host = "process_madvise kills who asks, PCPALLOC_CONF=process_madvise:off";
    on_host(NAME, host, killing().settings("process_madvise:off"), Expected::as_it_is());
}

/// gVisor's kernel, as far as the heap sees it: no rseq and no membarrier, advice it does not know, no policies of
/// memory, no names for mappings, `mincore` and `mremap` that do less.
///
/// Red if one of them is relied on: in `mapping::remap`'s caller, or `sys::populate` (`src/sys/linux.rs`), panic where
/// it says no.
#[test]
fn a_kernel_in_user_space() {
    const NAME: &str = "a_kernel_in_user_space";
    child::body(NAME, |_| work());
    let gvisor = [
        Refusal::rseq(ENOSYS),
        Refusal::membarrier(ENOSYS),
        Refusal::of(libc::SYS_madvise, EINVAL).when(2, libc::MADV_POPULATE_WRITE as u32),
        Refusal::of(libc::SYS_madvise, EINVAL).when(2, libc::MADV_HUGEPAGE as u32),
        Refusal::of(libc::SYS_madvise, EINVAL).when(2, libc::MADV_NOHUGEPAGE as u32),
        Refusal::of(libc::SYS_process_madvise, ENOSYS),
        Refusal::of(libc::SYS_mremap, EINVAL),
        Refusal::of(libc::SYS_mbind, ENOSYS),
        Refusal::of(libc::SYS_prctl, EINVAL).when(0, 0x5356_4d41),
        Refusal::of(libc::SYS_mincore, ENOSYS),
        Refusal::of(libc::SYS_getcpu, ENOSYS),
    ];
    let expected = Expected::per_thread(ModeReason::Refused(ENOSYS)).without_fence();
    on_host(NAME, "gVisor-like: eleven calls refused", Child::new(NAME, "").refuse(gvisor), expected);
    // The same where memory cannot be taken back from a mapping either.
    let stubborn =
        gvisor.into_iter().chain([Refusal::of(libc::SYS_madvise, EINVAL), Refusal::of(libc::SYS_mremap, ENOMEM)]);
    on_host(NAME, "gVisor-like, and no madvise at all", Child::new(NAME, "").refuse(stubborn), expected);
}
