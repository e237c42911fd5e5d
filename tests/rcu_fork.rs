//! The child of a `fork` uses RCU although the threads that were in its midst are gone.
#![cfg(not(miri))]

mod rcu_common;

use std::alloc::Layout;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, Backlog, Domain, Heap, RcuCell};
use rcu_common::{Watchdog, alloc, alone, child, scaled, until};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const LAYOUT: Layout = match Layout::from_size_align(512, 8) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};

fn free_one() {
    // SAFETY: a block that nobody else knows.
    unsafe { rcu::free(alloc(LAYOUT), LAYOUT) };
}

/// Forks and runs `child` there.
fn forked(child: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child uses the allocator, RCU and its own memory, which is what this is about, and ends by `_exit`.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork"),
            0 => {
                libc::alarm(60);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
                libc::_exit(if result.is_ok() { 0 } else { 1 });
            }
            pid => pid,
        }
    }
}

/// Says how a child ended: its status, or the signal of its alarm if it waits for ever.
fn ended(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is valid for the write.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

/// Forks, runs `child` there, and says how it ended.
fn in_fork(child: impl FnOnce()) -> i32 {
    ended(forked(child))
}

/// Everything a program does with RCU, in a child whose parent was in the middle of it.
fn use_everything(domain: &Domain<Heap>, cell: &RcuCell<String>) {
    rcu::synchronize();
    rcu::synchronize_expedited();
    // Three times the high mark: whoever counts what the parent's threads held waits for ever here.
    (0..6000).for_each(|_| free_one());
    cell.replace(String::from("of the child"));
    rcu::barrier();
    assert_eq!((rcu::stats().pending_pointers, rcu::stats().pending_bytes), (0, 0));
    // The reclaimer is another one.
    free_one();
    rcu::retire(Box::new(String::from("freed by itself")));
    until(|| rcu::stats().pending_pointers == 0);
    domain.synchronize();
    for _ in 0..2000 {
        // SAFETY: a block that nobody else knows.
        unsafe { domain.free(alloc(LAYOUT), LAYOUT) };
    }
    domain.retire(Box::new(String::from("freed by itself")));
    until(|| domain.stats().pending_pointers == 0);
    rcu_common::object::block_on(domain.start_poll());
    rcu_common::object::block_on(rcu::start_poll());
    assert_eq!(cell.read(&rcu::read_lock()), "of the child");
}

/// Forks while some threads are inside sections, others defer more than the backlog admits, and others wait.
///
/// Positive controls: `GracePeriods::after_fork` that forgets nobody, and `Core::after_fork` that does not count
/// anew, have the child wait for ever; without `fork::enlist` the child waits for the domain's readers.
#[test]
fn a_child_goes_on_without_its_parents_threads() {
    let _alone = alone();
    let _watchdog = Watchdog::new("fork");
    rcu::set_watermarks(Backlog { low: 256 << 10, high: 1 << 20 }).unwrap();
    let (domain, cell) = (Domain::new(Heap), RcuCell::new(String::from("of the parent")));
    domain.set_watermarks(Backlog { low: 64 << 10, high: 256 << 10 }).unwrap();
    let (stop, inside) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let guards = (rcu::read_lock(), domain.read_lock());
                    inside.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(3));
                    inside.fetch_sub(1, Ordering::Relaxed);
                    drop(guards);
                    std::thread::yield_now();
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (0..100).for_each(|_| free_one());
                cell.replace(String::from("of the parent"));
                // SAFETY: a block that nobody else knows.
                unsafe { domain.free(alloc(LAYOUT), LAYOUT) };
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rcu::barrier();
                domain.barrier();
                rcu_common::object::block_on(rcu::start_poll());
            }
        });
        let mut with_readers = 0;
        for _ in 0..scaled(30) {
            with_readers += (inside.load(Ordering::Relaxed) > 0) as usize;
            assert_eq!(in_fork(|| use_everything(&domain, &cell)), 0, "how the child ended");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(with_readers > 0);
    });
    rcu::barrier();
    domain.barrier();
    assert_eq!((rcu::stats().pending_pointers, domain.stats().pending_pointers), (0, 0));
}

/// What waits at a `fork`, or is deferred in the child, few as it may be, is freed there: the first deferral starts a reclaimer.
///
/// Red if it goes into a page that nobody looks after: in `Core::after_fork` (`src/rcu/work.rs`), do not call
/// `seal_in_child`; or in that, leave the pages on the CPUs, or `armed` as it is.
#[test]
fn what_a_child_defers_is_freed() {
    const NAME: &str = "what_a_child_defers_is_freed";
    if child::role().is_some() {
        let _watchdog = Watchdog::new("a child's deferrals");
        // SAFETY: zeroes are an empty set, and the set is valid for the calls.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
        }
        // A page fills here, and the parent's reclaimer looks after it.
        free_one();
        until(|| rcu::stats().pending_pointers == 0);
        let freed = || {
            free_one();
            until(|| rcu::stats().pending_pointers == 0);
        };
        assert_eq!(in_fork(freed), 0, "how the child ended");
        let (begun, ended) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _section = rcu::read_lock();
                begun.wait();
                ended.wait();
            });
            begun.wait();
            (0..10).for_each(|_| free_one());
            rcu::retire(Box::new(String::from("waits on the chain")));
            let status = in_fork(|| {
                assert_eq!(rcu::stats().pending_pointers, 11);
                freed();
                assert_eq!(rcu::stats().pending_bytes, 0);
            });
            assert_eq!(status, 0, "how the child ended");
            ended.wait();
        });
        rcu::barrier();
        assert_eq!((rcu::stats().pending_pointers, rcu::stats().pending_bytes), (0, 0));
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "defers"));
    child::assert_passed(&child::run_without_rseq(NAME, "defers"));
}

/// The thread that forks keeps its own sections in the child, and may be in the middle of a call.
#[test]
fn the_thread_that_forks_keeps_what_is_its_own() {
    static STATUS: AtomicUsize = AtomicUsize::new(usize::MAX);
    struct Forks;
    impl Drop for Forks {
        fn drop(&mut self) {
            let status = in_fork(|| (0..2000).for_each(|_| free_one()));
            STATUS.store(status as usize, Ordering::Release);
        }
    }
    let _alone = alone();
    let _watchdog = Watchdog::new("fork");
    let (cell, domain) = (RcuCell::new(String::from("kept")), Domain::new(Heap));
    let (guard, other) = (rcu::read_lock(), domain.read_lock());
    let seen = cell.read(&guard);
    let status = in_fork(|| {
        let cookies = (rcu::start_poll(), domain.start_poll());
        cell.replace(String::from("another"));
        (0..100).for_each(|_| _ = rcu::poll_once());
        assert!(!cookies.0.is_done() && !cookies.1.is_done(), "the sections of the thread that forked are lost");
        assert_eq!(seen, "kept");
    });
    assert_eq!(status, 0);
    drop((guard, other));
    rcu::retire(Box::new((Forks, 0u8)));
    until(|| STATUS.load(Ordering::Acquire) != usize::MAX);
    assert_eq!(STATUS.load(Ordering::Acquire), 0);
    rcu::barrier();
}

/// A process made while another thread uses RCU for the first time can use it, and so can processes of its own.
///
/// Red if it waits for a thread that it lacks: in `default_domain` (`src/rcu/default.rs`), have a `Once` call what
/// `make_ready` does. Red if it finds readers and locks of threads that it lacks: in `join_forks` (`src/heap.rs`), do not wait;
/// or if it takes itself to be registered: in `join` (`src/rcu/fork.rs`), take no lock.
#[test]
fn forks_while_rcu_is_made_ready() {
    const NAME: &str = "forks_while_rcu_is_made_ready";
    const FORKS: usize = 40;
    if child::role().is_some() {
        let _watchdog = Watchdog::new("first use");
        fn use_rcu() {
            drop(rcu::read_lock());
            free_one();
            rcu::barrier();
        }
        let go = AtomicBool::new(false);
        let children: Vec<_> = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !go.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    use_rcu();
                });
            }
            go.store(true, Ordering::Release);
            let in_each = || {
                use_rcu();
                assert_eq!(rcu::stats().pending_pointers, 0);
                assert_eq!(in_fork(use_rcu), 0, "how the child's child ended");
            };
            (0..FORKS).map(|_| forked(in_each)).collect()
        });
        let well = children.into_iter().filter(|&child| ended(child) == 0).count();
        assert_eq!(well, FORKS, "so many children came to their end");
        use_rcu();
        assert_eq!(rcu::stats().pending_pointers, 0);
        return;
    }
    for _ in 0..3 {
        child::assert_passed(&child::run_plain(NAME, "first"));
    }
    child::assert_passed(&child::run_without_rseq(NAME, "first"));
}
