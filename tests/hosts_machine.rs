//! Machines with CPUs that are numbered oddly, without `/proc` or `/sys`, and threads with next to no stack, by the name
//! of the trouble.
//!
//! Files are hidden and replaced in a mount namespace, for which it takes privileges, or a system that gives them to
//! everybody in a user namespace; otherwise the test says that it is skipped.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;
mod hosts_common;

use std::alloc::Layout;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::child::{self, Child, say};
use common::kernel::Refusal;
use common::namespace::{self, Mount};
use common::{Block, HEAP, KIB, cpus, on_cpu, scaled};
use hosts_common::{Expected, LIBC_WITHOUT, on_host, say_mode, skipped, work, work_where};
use pcpalloc::rcu::{self, RcuHead};
use pcpalloc::{Drain, ModeReason, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// A host in the modes that are not this machine's.
fn in_other_modes(suite: &str, host: &str, child: impl Fn() -> Child, expected: Option<Expected>) {
    let own = child().environment(LIBC_WITHOUT.0, LIBC_WITHOUT.1);
    on_host(suite, host, own, expected.unwrap_or_else(Expected::own));
    let without = child().refuse([Refusal::rseq(libc::ENOSYS)]);
    on_host(suite, host, without, expected.unwrap_or(Expected::per_thread(ModeReason::Refused(libc::ENOSYS))));
}

/// A host in each mode; what the heap is to say of it, if not what it says of this machine in that mode.
fn in_every_mode(suite: &str, host: &str, child: impl Fn() -> Child, expected: Option<Expected>) {
    on_host(suite, host, child(), expected.unwrap_or_else(Expected::as_it_is));
    in_other_modes(suite, host, child, expected);
}

/// Without what the kernel says of itself and of the process, the heap asks by system calls.
///
/// Red if it depends on them: in `sys::possible_cpus` (`src/sys/cpus.rs`), return 0 where the file is missing (the heap
/// has no stacks then: nothing is cached).
#[test]
fn no_proc_and_no_sys() {
    const NAME: &str = "no_proc_and_no_sys";
    child::body(NAME, |_| {
        work();
        on_cpu(*cpus().last().expect("a CPU"), || (0..50).for_each(|n| drop(Block::new(64, 8, n))));
        say("cached", HEAP.stats().percpu_cached);
    });
    if let Err(why) = namespace::is_possible() {
        return skipped(NAME, "no /proc, no /sys", why);
    }
    let hosts: [(&str, &[&std::ffi::CStr]); 3] =
        [("no /proc", &[c"/proc"]), ("no /sys", &[c"/sys"]), ("no /proc, no /sys", &[c"/proc", c"/sys"])];
    for (host, hidden) in hosts {
        let child = || Child::new(NAME, "").mount(hidden.iter().map(|at| Mount::Nothing(at)));
        let outcome = on_host(NAME, host, child(), Expected::as_it_is());
        assert!(outcome.number("cached") > 4 * KIB, "CPUs have stacks: {outcome:#?}");
        if hidden.len() == 2 {
            in_other_modes(NAME, host, child, None);
        }
    }
}

/// A kernel's list of the CPUs there can be, as a file to mount in place of the real one.
fn possible(list: &str) -> Mount {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("possible-{list}"));
    std::fs::write(&path, format!("{list}\n")).expect("cargo made a directory for such");
    Mount::File(c"/sys/devices/system/cpu/possible", CString::new(path.as_os_str().as_bytes()).expect("a path"))
}

/// Work on every CPU, which leaves blocks in the stacks of those that have any.
fn work_on_every_cpu(all_have_stacks: bool) {
    for cpu in cpus() {
        on_cpu(cpu, || {
            let blocks: Vec<_> = (0..200).map(|n| Block::new(64 << (n % 4), 8, n).expect("there is memory")).collect();
            drop(blocks);
            hosts_common::deferred();
        });
    }
    say("cached", HEAP.stats().percpu_cached);
    let zoneinfo = HEAP.zoneinfo().to_string();
    say("cpus with stacks", zoneinfo.lines().filter(|line| line.trim_start().starts_with("cpu:")).count());
    let local = HEAP.drain(Drain::Local);
    say("drained here", local.drained);
    work_where(all_have_stacks);
}

/// CPUs with gaps in their numbers, and many more than are online.
///
/// Red if CPUs are counted and not numbered: in `sys::possible_cpus` (`src/sys/cpus.rs`), add up the lengths of the ranges.
#[test]
fn cpus_are_sparse_or_offline() {
    const NAME: &str = "cpus_are_sparse_or_offline";
    child::body(NAME, |_| {
        work_on_every_cpu(true);
        let charged = HEAP.charge_nolock(Layout::new::<[u64; 8]>(), 4);
        assert!(charged.is_ok(), "CPUs that nobody ever sees can be charged");
        say("metadata", HEAP.stats().metadata);
    });
    if let Err(why) = namespace::is_possible() {
        return skipped(NAME, "sparse CPU numbers", why);
    }
    let child = |list: &str| Child::new(NAME, "").mount([possible(list)]);
    in_every_mode(NAME, "sparse CPU numbers: 0-1,5,9-11,300", || child("0-1,5,9-11,300"), None);
    for (host, list) in
        [("more possible CPUs than online: 0-63", "0-63"), ("more possible CPUs than online: 0-8191", "0-8191")]
    {
        on_host(NAME, host, child(list), Expected::as_it_is());
    }
    let last = *cpus().last().expect("a CPU");
    let host = format!("sparse CPU numbers: {last} alone");
    let outcome = on_host(NAME, &host, child(&last.to_string()), Expected::as_it_is());
    if common::kernel::SECTIONS {
        assert_eq!(outcome.number("cpus with stacks"), cpus().len(), "every CPU has stacks: {outcome:#?}");
    }
}

/// The kernel says that there is one CPU, and then runs threads on others: they are served by slabs. And it says that
/// there may be more than any table has room for.
///
/// Red if a number is taken for an index: in `with_stacks` (`src/percpu/stacks.rs`), leave out the comparison with
/// `cpus()`, and the CPU that cannot be has stacks (`cpus with stacks` is 2).
#[test]
fn a_cpu_beyond_our_table() {
    const NAME: &str = "a_cpu_beyond_our_table";
    child::body(NAME, |_| work_on_every_cpu(false));
    if let Err(why) = namespace::is_possible() {
        return skipped(NAME, "a CPU number beyond the table", why);
    }
    let beyond = Child::new(NAME, "").mount([possible("0-8192")]);
    let expected = Expected::per_thread(ModeReason::CpuNumbers);
    on_host(NAME, "a CPU number beyond any table: 0-8192", beyond, expected);
    if cpus().len() < 2 || !cpus().contains(&0) {
        return skipped(NAME, "a CPU beyond those there can be", "needs CPU 0 and another");
    }
    let host = "a CPU beyond those there can be: 0";
    let outcome = on_host(NAME, host, Child::new(NAME, "").mount([possible("0")]), Expected::as_it_is());
    if common::kernel::SECTIONS {
        assert_eq!(outcome.number("cpus with stacks"), 1, "{outcome:#?}");
    }
    in_other_modes(NAME, host, || Child::new(NAME, "").mount([possible("0")]), None);
}

/// Everything a thread does with the heap, on the least stack that the C library gives a thread.
///
/// Red if the heap puts something large on the stack: in `refill` (`src/percpu/slow.rs`), an array of 2000 blocks.
#[test]
fn tiny_stacks() {
    const NAME: &str = "tiny_stacks";
    child::body(NAME, |_| {
        for round in 0..scaled(20) as u64 {
            let tiny = move || {
                let layout = Layout::new::<[u64; 12]>();
                for class in 0..18 {
                    drop(Block::new(8 << class, 8, round));
                    let mut block = Block::zeroed(3 << class, 8, round).expect("there is memory");
                    assert!(block.resize(9 << class), "there is memory");
                }
                let taken = HEAP.try_alloc_nolock(layout);
                // SAFETY: a block of this layout, if there was one.
                taken.into_iter().for_each(|block| unsafe { HEAP.free_nolock(block, layout) });
                let block = Box::into_raw(Box::new([round; 12]));
                // SAFETY: a block of this heap, of this layout, that nobody else knows of.
                unsafe { rcu::free(std::ptr::NonNull::new_unchecked(block.cast()), layout) };
                rcu::synchronize();
                HEAP.drain(Drain::All);
                HEAP.trim();
                assert!(HEAP.stats().in_use > 0);
            };
            // The library adds what it needs itself. glibc's least is 16 KiB; musl's, 2 KiB, has no room for the standard
            // library.
            let least = libc::PTHREAD_STACK_MIN.max(16 << 10);
            let thread = std::thread::Builder::new().stack_size(least).spawn(tiny);
            thread.expect("a thread").join().expect("its end");
        }
        rcu::barrier();
        say_mode();
    });
    in_every_mode(NAME, "threads with stacks of PTHREAD_STACK_MIN", || Child::new(NAME, ""), None);
}

/// Bytes of signal stack that nolock allocation and nolock frees may use, beyond what the kernel puts there: what
/// `MINSIGSTKSZ` is, in a program without optimisation.
const HANDLER: usize = 2048;

static AT_WORK: AtomicBool = AtomicBool::new(false);
static HANDLED: AtomicUsize = AtomicUsize::new(0);
static HITS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    // Relaxed, here and below: for the thread that the handler runs on.
    if !AT_WORK.load(Ordering::Relaxed) {
        return;
    }
    HANDLED.fetch_add(1, Ordering::Relaxed);
    let layout = Layout::new::<[u64; 20]>();
    if let Some(block) = HEAP.try_alloc_nolock(layout) {
        HITS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: ours, of this layout.
        unsafe { HEAP.free_nolock(block, layout) };
    }
    if let Some(block) = HEAP.try_alloc_nolock(Layout::new::<RcuHead>()) {
        let head = block.cast::<RcuHead>();
        // SAFETY: ours, and large enough for the head, which lies in it.
        unsafe {
            head.write(RcuHead::new());
            rcu::free_nolock(head, block, Layout::new::<RcuHead>());
        }
    }
}

/// A handler on the least signal stack that the kernel takes, and not a page of the thread's own.
///
/// Red if nolock allocation uses more: in `pop_nolock` (`src/percpu/nolock.rs`), an array of 3000 bytes that is looked
/// at.
#[test]
fn tiny_signal_stacks() {
    const NAME: &str = "tiny_signal_stacks";
    child::body(NAME, |_| {
        // SAFETY: getauxval and sysconf have no preconditions.
        let (least, page) = unsafe { (libc::getauxval(51) as usize, libc::sysconf(libc::_SC_PAGESIZE) as usize) };
        // What the kernel says (AT_MINSIGSTKSZ) is its own part; before Linux 5.14 it says nothing.
        let len = if least == 0 { libc::MINSIGSTKSZ } else { least + HANDLER };
        let room = len.next_multiple_of(page);
        // SAFETY: new mappings; the stack lies at the end of the room behind a page that ends whoever comes there. The
        // handler makes no assumption about the thread, and the structures are valid for the calls.
        unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                page + room,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map, page, libc::PROT_NONE), 0);
            let all = map.byte_add(page).cast::<u8>();
            all.write_bytes(0xa5, room);
            let start = map.byte_add(page + room - len);
            let stack = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: len };
            assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0, "{}", std::io::Error::last_os_error());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
            let used = || room - (0..room).position(|at| all.add(at).read_volatile() != 0xa5).unwrap_or(room);
            // What the kernel puts there, and a handler that does nothing.
            libc::raise(libc::SIGUSR1);
            let before = used();
            AT_WORK.store(true, Ordering::Relaxed);
            for round in 0..scaled(2000) as u64 {
                drop((Block::new(160, 8, round), Block::new(size_of::<RcuHead>(), 8, round)));
                libc::raise(libc::SIGUSR1);
            }
            say("of", len);
            say("used by the kernel", before);
            say("used by the heap", used() - before);
            assert!(used() <= len && used() - before <= HANDLER, "{before} became {}", used());
        }
        assert_eq!(HANDLED.load(Ordering::Relaxed), scaled(2000));
        assert!(HITS.load(Ordering::Relaxed) > 0, "there was something to be had");
        rcu::barrier();
        say_mode();
    });
    in_every_mode(NAME, "a signal stack of MINSIGSTKSZ", || Child::new(NAME, ""), None);
}
