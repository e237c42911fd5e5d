//! The rules that Linux 6.19 and later enforce, checked on whatever kernel there is (its
//! `Documentation/userspace-api/rseq.rst`): nobody but the kernel writes the ids of an rseq area, areas are registered
//! with a length and an alignment that the kernel knows, and each thread has one.
//!
//! Stores are seen by hardware watchpoints that count what user space does and not what the kernel does, registrations
//! by a filter that asks a thread of the test about every call before the kernel sees it.

#![cfg(all(target_arch = "x86_64", not(any(loom, pcpalloc_twin))))]

mod common;
mod hosts_common;

use std::alloc::Layout;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use common::child::{self, Child, say};
use common::kernel::{self, Refusal};
use common::model::{Holder, Oracle};
use common::{Block, HEAP, cpus, move_thread, on_threads, scaled, thread_number};
use hosts_common::{Expected, LIBC_WITHOUT, on_host, row, say_mode, skipped};
use pcpalloc::rcu::{self, RcuHead};
use pcpalloc::{Drain, Mode, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Counts the stores that this thread makes to eight bytes, in user space.
struct Watch(RawFd);

impl Watch {
    fn new(at: usize) -> io::Result<Watch> {
        const BREAKPOINT: u32 = 5;
        const ON_WRITE: u32 = 2;
        // Pinned, so that it is on the processor whenever the thread is; the kernel and hypervisors left out.
        const FLAGS: u64 = 1 << 2 | 1 << 5 | 1 << 6;
        // `struct perf_event_attr` as far as its second version goes (uapi `linux/perf_event.h`).
        let mut attributes = [0u64; 9];
        attributes[0] = BREAKPOINT as u64 | (size_of_val(&attributes) as u64) << 32;
        attributes[5] = FLAGS;
        attributes[6] = (ON_WRITE as u64) << 32;
        attributes[7] = at as u64;
        attributes[8] = 8;
        // SAFETY: the attributes are valid for the call, and of the length they state.
        let file = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) };
        if file < 0 { Err(io::Error::last_os_error()) } else { Ok(Watch(file as RawFd)) }
    }

    fn stores(&self) -> u64 {
        let mut count = 0u64;
        // SAFETY: the count is valid for the write.
        let read = unsafe { libc::read(self.0, (&raw mut count).cast(), 8) };
        assert_eq!(read, 8, "the watchpoint was there all the time");
        count
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: this value's own descriptor.
        unsafe { libc::close(self.0) };
    }
}

/// Every word of an area but the one that user space may write: `cpu_id_start` and `cpu_id`; `flags` and `node_id`;
/// `mm_cid` and what follows it.
fn watch_ids(area: usize) -> io::Result<[Watch; 3]> {
    Ok([Watch::new(area)?, Watch::new(area + 16)?, Watch::new(area + 24)?])
}

/// A call of `rseq` that a thread made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registration {
    thread: libc::pid_t,
    area: usize,
    len: u32,
    flags: u32,
    signature: u32,
}

static SEEN: Mutex<Vec<Registration>> = Mutex::new(Vec::new());
static LISTENER: AtomicI32 = AtomicI32::new(-1);

/// Has every call of `rseq` by threads that this one starts noted in `SEEN`, and then made.
fn watch_registrations() -> io::Result<()> {
    /// `struct seccomp_notif`.
    #[repr(C)]
    struct Notice {
        id: u64,
        thread: u32,
        flags: u32,
        number: i32,
        architecture: u32,
        instruction: u64,
        arguments: [u64; 6],
    }
    /// `struct seccomp_notif_resp`.
    #[repr(C)]
    struct Answer {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    const CONTINUE: u32 = 1;
    const NEW_LISTENER: libc::c_ulong = 1 << 3;
    // It starts before the filter is there, so that its own calls are not for it to answer.
    SEEN.lock().unwrap().reserve(4096);
    std::thread::spawn(|| {
        let listener = loop {
            match LISTENER.load(Ordering::Acquire) {
                -1 => std::thread::yield_now(),
                listener => break listener,
            }
        };
        loop {
            // SAFETY: all-zero bytes are what the kernel wants of a notice, and it fills it in; both are valid for the
            // calls.
            unsafe {
                let mut notice: Notice = std::mem::zeroed();
                if libc::ioctl(listener, RECEIVE as _, &mut notice) != 0 {
                    continue;
                }
                let [area, len, flags, signature, ..] = notice.arguments;
                SEEN.lock().unwrap().push(Registration {
                    thread: notice.thread as libc::pid_t,
                    area: area as usize,
                    len: len as u32,
                    flags: flags as u32,
                    signature: signature as u32,
                });
                let answer = Answer { id: notice.id, value: 0, error: 0, flags: CONTINUE };
                libc::ioctl(listener, SEND as _, &answer);
            }
        }
    });
    let mut filter = Refusal::rseq(0).asking().filter();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions are valid for the calls, which copy them.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, NEW_LISTENER, &raw const program)
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    LISTENER.store(listener as i32, Ordering::Release);
    Ok(())
}

/// The area that this thread has registered, if it was watched when it did.
fn own_area() -> Option<usize> {
    let seen = SEEN.lock().unwrap();
    seen.iter().rev().find(|call| call.thread == thread_number() && call.flags == 0).map(|call| call.area)
}

/// Everything a thread can do with the heap, on this thread, while it is moved from CPU to CPU.
fn everything(seed: u64, oracle: &Oracle) {
    let mut holder = Holder::new(oracle, seed);
    let (cpus, layout) = (cpus(), Layout::new::<[u64; 9]>());
    for round in 0..scaled(60) {
        move_thread(0, cpus[round % cpus.len()]);
        (0..40).for_each(|_| holder.step());
        let taken: Vec<_> = (0..10).filter_map(|_| HEAP.try_alloc_nolock(layout)).collect();
        for (number, block) in taken.into_iter().enumerate() {
            // SAFETY: ours, of this layout, large enough for the head, which lies in it.
            unsafe {
                match number % 3 {
                    0 => HEAP.free_nolock(block, layout),
                    1 => rcu::free(block, layout),
                    _ => {
                        block.cast::<RcuHead>().write(RcuHead::new());
                        rcu::free_nolock(block.cast(), block, layout);
                    }
                }
            }
        }
        drop(rcu::read_lock());
        match round % 4 {
            0 => _ = HEAP.drain(Drain::Cpu(cpus[0])),
            1 => _ = HEAP.drain(Drain::Local),
            2 => rcu::synchronize(),
            _ => _ = HEAP.trim(),
        }
    }
}

/// On hosts with the C library's area, and with our own.
fn in_both_modes(suite: &str, run: impl Fn(&str, Child, Expected)) {
    if kernel::libc_has_registered() {
        run("the C library's area", Child::new(suite, ""), Expected::as_it_is());
    }
    run("an area of our own", Child::new(suite, "").environment(LIBC_WITHOUT.0, LIBC_WITHOUT.1), Expected::own());
}

/// Red if an id is written: in the macro `enter` (`src/percpu/x86_64.rs`), add `mov dword ptr fs:[{off} + 4], eax` after a
/// load of the same word into it, before the section. The control is built in: a thread that writes one itself is
/// seen.
#[test]
fn ids_are_never_written() {
    const NAME: &str = "ids_are_never_written";
    child::body(NAME, |_| {
        watch_registrations().expect("a filter");
        let oracle = Oracle::default();
        on_threads((0..3).map(|seed| {
            let oracle = &oracle;
            move || {
                let own = HEAP.stats().mode == Mode::OwnRseq;
                let area = if own { own_area().expect("it has allocated") } else { kernel::libc_rseq_area() as usize };
                let watches = watch_ids(area).expect("watchpoints");
                everything(seed, oracle);
                let stores = watches.each_ref().map(Watch::stores);
                assert_eq!(stores, [0; 3], "ids belong to the kernel");
                // SAFETY: this thread's area; what is written is what is there, unless the kernel comes between, and it
                // then writes again when the thread is next moved.
                unsafe {
                    let cpu = (area as *mut u32).add(1);
                    cpu.write_volatile(cpu.read_volatile());
                }
                assert_eq!(watches[0].stores(), 1, "a store to an id is seen");
            }
        }));
        say_mode();
    });
    // SAFETY: an address that is this thread's.
    if let Err(why) = Watch::new(&raw const LISTENER as usize & !7) {
        return skipped(NAME, "the rules of Linux 6.19: ids", format!("no watchpoints: {why}"));
    }
    in_both_modes(NAME, |area, child, expected| {
        on_host(NAME, &format!("the rules of Linux 6.19: ids, {area}"), child, expected);
    });
}

/// Each thread registers one area, once, that is its own, of a length and an alignment that the kernel takes; and gives
/// it back before its memory goes. Where the C library has registered one, nobody else registers any.
///
/// Red if the length is another (`SIZE` in `src/sys/rseq.rs`) or the alignment (`.balign` in `src/percpu/x86_64.rs`); if a
/// thread registers more than one: in `with_stacks` (`src/percpu/stacks.rs`), do not ask whether there is a CPU, and in
/// `register` (`src/percpu/x86_64.rs`) whether it was tried. On musl, if the area is not given back: in
/// `sys::register_rseq`, do not arm `EXIT`.
#[test]
fn areas_are_registered_by_the_rules() {
    const NAME: &str = "areas_are_registered_by_the_rules";
    const THREADS: usize = 12;
    child::body(NAME, |_| {
        const SIGNATURE: u32 = 0x5305_3053;
        watch_registrations().expect("a filter");
        let oracle = Oracle::default();
        let numbers = Mutex::new(Vec::new());
        for round in 0..3 {
            on_threads((0..THREADS as u64 / 3).map(|seed| {
                let (oracle, numbers) = (&oracle, &numbers);
                move || {
                    everything(3 * seed + round, oracle);
                    numbers.lock().unwrap().push((thread_number(), own_area()));
                }
            }));
        }
        // SAFETY: getauxval has no preconditions. AT_RSEQ_FEATURE_SIZE and AT_RSEQ_ALIGN: 0 before Linux 6.3.
        let (feature_size, align) = unsafe { (libc::getauxval(27) as u32, libc::getauxval(28) as usize) };
        let seen = SEEN.lock().unwrap().clone();
        let own = HEAP.stats().mode == Mode::OwnRseq;
        for (thread, area) in numbers.into_inner().unwrap() {
            let of_thread: Vec<_> = seen.iter().filter(|call| call.thread == thread).collect();
            let registered = of_thread.iter().filter(|call| call.flags == 0).count();
            assert_eq!(registered, 1, "a thread registers once: {of_thread:?}");
            let given_back = of_thread.iter().filter(|call| call.flags == 1).count();
            let must = own && !cfg!(target_env = "gnu");
            assert_eq!(given_back, must as usize, "an area goes back where its memory goes first: {of_thread:?}");
            assert!(of_thread.iter().all(|call| Some(call.area) == area), "one and the same: {of_thread:?}");
        }
        for call in &seen {
            assert_eq!(call.signature, SIGNATURE, "{call:?}");
            assert!(call.flags <= 1, "{call:?}");
            let original = call.len == 32 && call.area.is_multiple_of(32);
            let extended = call.len >= feature_size.max(33) && call.area.is_multiple_of(align.max(32));
            assert!(original || extended, "the kernel offers {feature_size} bytes aligned to {align}: {call:?}");
        }
        say("calls", seen.len());
        say_mode();
    });
    in_both_modes(NAME, |area, child, expected| {
        let host = format!("the rules of Linux 6.19: registration, {area}");
        let outcome = on_host(NAME, &host, child, expected);
        assert!(outcome.number("calls") >= THREADS, "{outcome:#?}");
    });
}

/// Threads that nobody waits for: their storage goes when they end, or, on musl, just before.
///
/// Red on musl, by a segmentation fault that the kernel ends the process with, if the area is not given back: in
/// `sys::register_rseq` (`src/sys/rseq.rs`), do not arm `EXIT`.
#[test]
fn detached_threads_end_in_peace() {
    const NAME: &str = "detached_threads_end_in_peace";
    child::body(NAME, |_| {
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        static ENDED: AtomicUsize = AtomicUsize::new(0);
        let threads = scaled(1500);
        on_threads((0..4).map(|seed| {
            move || {
                for number in 0..threads {
                    let detached = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
                        drop(Block::new(1 + number % 3000, 8, seed));
                        ENDED.fetch_add(1, Ordering::Relaxed);
                    });
                    // Nobody has its handle: it is on its own. So are a few hundred at most.
                    drop(detached.expect("a thread"));
                    BEGUN.fetch_add(1, Ordering::Relaxed);
                    while BEGUN.load(Ordering::Relaxed) > ENDED.load(Ordering::Relaxed) + 300 {
                        std::thread::yield_now();
                    }
                }
            }
        }));
        while ENDED.load(Ordering::Relaxed) < 4 * threads {
            std::thread::yield_now();
        }
        say_mode();
    });
    in_both_modes(NAME, |area, child, expected| {
        on_host(NAME, &format!("thousands of detached threads, {area}"), child, expected);
    });
}

/// With the C library's area nobody calls `rseq` but the C library, for threads that it starts: here it starts none.
///
/// Red if anything of ours calls it: in `drain_cpu` (`src/percpu/drain.rs`), `sys::unregister_rseq` of an address that is
/// nothing's.
#[test]
fn nobody_asks_where_the_c_library_has() {
    const NAME: &str = "nobody_asks_where_the_c_library_has";
    child::body(NAME, |_| {
        Refusal::rseq(0).killing().install().expect("a filter");
        let oracle = Oracle::default();
        let mut holder = Holder::new(&oracle, 5);
        (0..scaled(2000)).for_each(|_| holder.step());
        drop(holder);
        let block = HEAP.try_alloc_nolock(Layout::new::<u64>());
        // SAFETY: ours, of this layout.
        block.into_iter().for_each(|block: NonNull<u8>| unsafe { HEAP.free_nolock(block, Layout::new::<u64>()) });
        HEAP.trim();
        say_mode();
    });
    if !kernel::libc_has_registered() {
        return skipped(NAME, "rseq kills who asks, the C library's area", "the C library registers none");
    }
    let child = Child::new(NAME, "").settings("worker:off");
    on_host(NAME, "rseq kills who asks, the C library's area", child, Expected::as_it_is());
    row(
        "Linux 6.19 or later itself",
        "",
        NAME,
        "not run",
        "no such kernel here; its rules are checked by the suites above",
    );
}
