//! What must not be done says so instead of waiting for ever, and what goes wrong in one place stays there.
#![cfg(not(miri))]

mod rcu_common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, Domain, DomainGuard, Heap, RcuCell, RcuHead};
use rcu_common::{Watchdog, alloc, alone, child, until};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// The message of the panic that `f` ends in.
fn panic_of(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it should have panicked");
    payload.downcast_ref::<String>().cloned().or_else(|| payload.downcast_ref::<&str>().map(|s| s.to_string())).unwrap()
}

/// Whoever would wait for himself is told so. Positive control: without the assertions each of these waits for ever.
#[test]
fn waiting_inside_a_section_panics() {
    let _alone = alone();
    let _watchdog = Watchdog::new("waiting inside a section");
    let cookie = rcu::start_poll();
    let guard = rcu::read_lock();
    let waits: [(&str, &dyn Fn()); 5] = [
        ("rcu::synchronize", &rcu::synchronize),
        ("rcu::synchronize_expedited", &rcu::synchronize_expedited),
        ("rcu::barrier", &rcu::barrier),
        ("rcu::drain", &|| _ = rcu::drain()),
        ("Cookie::wait", &|| cookie.wait()),
    ];
    for (name, wait) in waits {
        let message = panic_of(wait);
        assert!(message.starts_with(name) && message.contains("read-side critical section"), "{message}");
    }
    drop(guard);
    waits.iter().for_each(|(_, wait)| wait());
}

#[test]
fn waiting_inside_a_section_of_a_domain_panics() {
    let _watchdog = Watchdog::new("waiting inside a section of a domain");
    let domain = Domain::new(Heap);
    let cookie = domain.start_poll();
    let guard = domain.read_lock();
    let waits: [(&str, &dyn Fn()); 5] = [
        ("Domain::synchronize", &|| domain.synchronize()),
        ("Domain::synchronize_expedited", &|| domain.synchronize_expedited()),
        ("Domain::drain", &|| domain.barrier()),
        ("Domain::drain", &|| _ = domain.drain()),
        ("Cookie::wait", &|| cookie.wait()),
    ];
    for (name, wait) in waits {
        let message = panic_of(wait);
        assert!(message.starts_with(name) && message.contains("read-side critical section"), "{message}");
    }
    // Another domain's readers are none of its business.
    let other = Domain::new(Heap);
    other.synchronize();
    rcu::synchronize();
    drop(guard);
    waits.iter().for_each(|(_, wait)| wait());
}

/// Sections nest 65535 deep and no deeper: a guard too many panics rather than end the section of the others.
///
/// Positive control: without the test in `State::enter` the last guard's section does not count, and the cell's
/// value is dropped while it is looked at.
#[test]
fn nesting_has_an_end_that_is_noticed() {
    std::thread::spawn(|| {
        let domain = Domain::new(Heap);
        let mut guards: Vec<_> = (0..65_535).map(|_| domain.read_lock()).collect();
        assert!(panic_of(|| guards.push(domain.read_lock())).contains("65535"));
        let cookie = domain.start_poll();
        guards.truncate(1);
        assert!(!cookie.is_done(), "the section goes on");
        guards.clear();
        assert!(cookie.is_done());
    })
    .join()
    .unwrap();
}

/// A call that waits for itself panics, and neither that nor a destructor's panic takes the others along.
///
/// Positive control: `dispose` without `catch_unwind` ends the reclaimer, and what follows is never freed.
#[test]
fn panics_in_calls_are_contained() {
    struct Bad(&'static AtomicUsize, fn());
    impl Drop for Bad {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            (self.1)();
            self.0.fetch_add(1000, Ordering::Relaxed);
        }
    }
    let _alone = alone();
    let _watchdog = Watchdog::new("panics");
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    let called = rcu::stats().called;
    let ways: [fn(); 4] = [|| panic!("a destructor"), || _ = rcu::drain(), rcu::barrier, || ()];
    for _ in 0..10 {
        ways.iter().for_each(|&way| rcu::retire(Box::new(Bad(&DROPS, way))));
    }
    until(|| rcu::stats().called == called + 40);
    assert_eq!(DROPS.load(Ordering::Relaxed), 40 + 10 * 1000, "all were called, and those that panic did");
    rcu::barrier();
    assert_eq!(rcu::stats().pending_pointers, 0);
}

/// Calls may defer more, free, read and wait for readers.
#[test]
fn calls_may_do_what_threads_may() {
    struct Again(usize);
    impl Drop for Again {
        fn drop(&mut self) {
            drop(rcu::read_lock());
            rcu::synchronize();
            rcu::synchronize_expedited();
            let layout = std::alloc::Layout::new::<[u64; 8]>();
            // SAFETY: a block that nobody else knows.
            unsafe { rcu::free(alloc(layout), layout) };
            if self.0 > 0 {
                rcu::retire(Box::new(Again(self.0 - 1)));
            } else {
                DONE.store(true, Ordering::Release);
            }
        }
    }
    static DONE: AtomicBool = AtomicBool::new(false);
    let _alone = alone();
    let _watchdog = Watchdog::new("calls");
    rcu::retire(Box::new(Again(10)));
    until(|| DONE.load(Ordering::Acquire));
}

/// A domain whose guard was forgotten can be dropped, frees what waits, and ends its cookies.
///
/// Positive control: `Core::finish` that does not forget the readers waits for ever.
#[test]
fn a_domain_with_a_forgotten_guard_can_be_dropped() {
    let _watchdog = Watchdog::new("forgotten guard");
    let domain = Domain::new(Heap);
    core::mem::forget(domain.read_lock());
    let value = Arc::new(());
    domain.retire(Box::new(value.clone()));
    let cookie = domain.start_poll();
    assert!(!cookie.is_done());
    drop(domain);
    assert_eq!(Arc::strong_count(&value), 1);
    cookie.wait();
    rcu_common::object::block_on(cookie);
}

/// The last handle on a domain may be owned by something that waits in it.
#[test]
fn a_domain_may_be_dropped_by_its_own_call() {
    let _watchdog = Watchdog::new("domain dropped by a call");
    let (domain, value) = (Arc::new(Domain::new(Heap)), Arc::new(()));
    domain.retire(Box::new((domain.clone(), value.clone())));
    domain.retire(Box::new(value.clone()));
    drop(domain);
    until(|| Arc::strong_count(&value) == 1);
}

/// A domain is used by destructors of threads that end, those of the C library's keys, too, and a guard that is left until
/// then keeps its slot: the thread that has its number next is not taken to be inside.
///
/// Red if it is: in `ByThread::take` (`src/rcu/by_thread.rs`), take the slot that is there in any case.
#[test]
fn destructors_of_threads_may_use_a_domain() {
    const NAME: &str = "destructors_of_threads_may_use_a_domain";
    static DOMAIN: LazyLock<Domain<Heap>> = LazyLock::new(|| Domain::new(Heap));
    static KEY: AtomicUsize = AtomicUsize::new(0);
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    static MAY_END: AtomicBool = AtomicBool::new(false);
    static READS_IN_DESTRUCTORS: AtomicUsize = AtomicUsize::new(0);

    struct Bye;
    impl Drop for Bye {
        fn drop(&mut self) {
            drop(DOMAIN.read_lock());
            READS_IN_DESTRUCTORS.fetch_add(1, Ordering::Relaxed);
        }
    }
    std::thread_local!(static BYE: Bye = const { Bye });

    /// Waits in the second round: the thread has given up its slot in the default domain, and its number, in the first.
    unsafe extern "C" fn late(guard: *mut libc::c_void) {
        if ROUNDS.fetch_add(1, Ordering::Release) == 0 {
            // SAFETY: the key was created below.
            unsafe { libc::pthread_setspecific(KEY.load(Ordering::Acquire) as libc::pthread_key_t, guard) };
            return;
        }
        until(|| MAY_END.load(Ordering::Acquire));
        // SAFETY: from the box below, for the only time.
        drop(unsafe { Box::from_raw(guard.cast::<DomainGuard<'static>>()) });
        drop(DOMAIN.read_lock());
        READS_IN_DESTRUCTORS.fetch_add(1, Ordering::Relaxed);
    }

    if child::role().is_some() {
        let _watchdog = Watchdog::new("destructors");
        // First used by a destructor; and before.
        std::thread::spawn(|| BYE.with(|_| ())).join().unwrap();
        std::thread::spawn(|| BYE.with(|_| drop(DOMAIN.read_lock()))).join().unwrap();
        assert_eq!(READS_IN_DESTRUCTORS.load(Ordering::Relaxed), 2);
        let over = DOMAIN.start_poll();
        over.wait();
        let ends = std::thread::spawn(|| {
            let mut key = 0;
            // SAFETY: `key` is valid for the write, and `late` is for what the key is given.
            unsafe {
                assert_eq!(libc::pthread_key_create(&mut key, Some(late)), 0);
                KEY.store(key as usize, Ordering::Release);
                let guard = Box::into_raw(Box::new(DOMAIN.read_lock()));
                assert_eq!(libc::pthread_setspecific(key, guard.cast()), 0);
            }
        });
        until(|| ROUNDS.load(Ordering::Acquire) == 2);
        let cookie = DOMAIN.start_poll();
        for _ in 0..3 {
            let over = over.clone();
            let reader = std::thread::spawn(move || {
                drop(DOMAIN.read_lock());
                over.wait();
            });
            reader.join().expect("it is not inside a section");
            assert!(!cookie.is_done(), "a grace period ended under a reader");
        }
        MAY_END.store(true, Ordering::Release);
        ends.join().unwrap();
        DOMAIN.synchronize();
        assert!(cookie.is_done());
        assert_eq!(READS_IN_DESTRUCTORS.load(Ordering::Relaxed), 3);
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "ends"));
}

/// A value of no size is dropped after a grace period, as any other, by the default domain and by others.
///
/// Red if it is dropped at once: in `retire_box` (`src/rcu/linked.rs`), `drop(value)` and return if the size is 0.
#[test]
fn values_of_no_size_wait_for_readers() {
    struct Token;
    impl Drop for Token {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Release);
        }
    }
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    let _alone = alone();
    let _watchdog = Watchdog::new("values of no size");
    let domain = Domain::new(Heap);
    let guards = (rcu::read_lock(), domain.read_lock());
    rcu::retire(Box::new(Token));
    domain.retire(Box::new(Token));
    // Nothing to do for these.
    rcu::retire(Box::new(()));
    domain.retire(Box::new([0u64; 0]));
    rcu::poll_once();
    domain.poll_once();
    assert_eq!(DROPS.load(Ordering::Acquire), 0, "dropped under a reader");
    drop(guards);
    rcu::barrier();
    domain.barrier();
    until(|| DROPS.load(Ordering::Acquire) == 2);
}

/// What calls are known to free is reported alike, whether they waited on the chain or, when there are many, in pages.
///
/// Red if it is not: in `Core::dispose` (`src/rcu/work.rs`), leave out `report.freed_bytes += bytes` for `Queued::Call`.
#[test]
fn bytes_of_calls_are_reported() {
    const NAME: &str = "bytes_of_calls_are_reported";
    if child::role().is_some() {
        let _watchdog = Watchdog::new("bytes");
        rcu::set_reclaimer(false);
        for count in [1, 10, 1000] {
            let guard = rcu::read_lock();
            (0..count).for_each(|n| rcu::retire(Box::new((n, String::new()))));
            let pending = rcu::stats();
            drop(guard);
            let report = rcu::drain();
            let each = size_of::<(usize, String)>() + size_of::<RcuHead>() + size_of::<Box<(usize, String)>>();
            assert_eq!((pending.pending_pointers, report.freed), (count, count));
            assert_eq!(report.freed_bytes, count * each);
        }
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "reports"));
    child::assert_passed(&child::run_without_rseq(NAME, "reports"));
}

/// A head says nothing of what is noted in it, which another thread may be writing.
///
/// Red if it does: derive `Debug` for `RcuHead` (`src/rcu/head.rs`).
#[test]
fn heads_are_not_looked_into() {
    assert_eq!(format!("{:?}", RcuHead::new()), "RcuHead { .. }");
}

/// A waker is the program's, and may do what a thread may: drain, wait for everything, defer beyond the high mark.
///
/// Red if wakers are woken under the lock of the batch: in `poll` and `drain` (`src/rcu/work.rs`), wake them before
/// `drop(work)`.
#[test]
fn wakers_may_do_what_threads_may() {
    const NAME: &str = "wakers_may_do_what_threads_may";
    struct Wakes(fn(), AtomicBool);
    impl std::task::Wake for Wakes {
        fn wake(self: Arc<Self>) {
            (self.0)();
            self.1.store(true, Ordering::Release);
        }
    }
    fn defer_too_much() {
        let layout = std::alloc::Layout::from_size_align(1 << 20, 8).unwrap();
        for _ in 0..64 {
            // SAFETY: a block that nobody else knows.
            unsafe { rcu::free(alloc(layout), layout) };
        }
    }
    if child::role().is_some() {
        // SAFETY: alarm has no preconditions. Whoever waits for himself is ended by it.
        unsafe { libc::alarm(20) };
        // All is done by this thread, so that it is known who wakes.
        rcu::set_reclaimer(false);
        let helps: [fn(); 2] = [rcu::barrier, || _ = rcu::poll_once()];
        for does in [rcu::barrier, defer_too_much as fn()] {
            for help in helps {
                let wakes = Arc::new(Wakes(does, AtomicBool::new(false)));
                let waker = std::task::Waker::from(wakes.clone());
                let guard = rcu::read_lock();
                let mut cookie = rcu::start_poll();
                let polled = std::pin::Pin::new(&mut cookie).poll(&mut std::task::Context::from_waker(&waker));
                assert!(polled.is_pending());
                rcu::retire(Box::new(String::from("something to do")));
                rcu::poll_once();
                drop(guard);
                // Ends what is awaited and what the batch waits for, and wakes nobody: whoever disposes of the batch does.
                let later = rcu::start_poll();
                until(|| later.is_done());
                help();
                assert!(wakes.1.load(Ordering::Acquire));
            }
        }
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "wakes"));
}

/// A guard that is leaked is a section that goes on when its thread has ended: what it protects stays, and the grace period
/// does not end.
///
/// Red if a thread that ends ends its sections: in `thread_exit` (`src/rcu/reader.rs`), do not ask whether the slot reads, and
/// reset its state. Red if its slot goes to others: do not ask there, nor in `Slots::take` (`src/rcu/epoch.rs`).
#[test]
fn a_leaked_guard_outlives_its_thread() {
    const NAME: &str = "a_leaked_guard_outlives_its_thread";
    struct Value(u64);
    impl Drop for Value {
        fn drop(&mut self) {
            self.0 = 0xdead;
            DROPPED.store(true, Ordering::Release);
        }
    }
    static DROPPED: AtomicBool = AtomicBool::new(false);
    if child::role().is_some() {
        let _watchdog = Watchdog::new("a leaked guard");
        let cell: &'static RcuCell<Value> = Box::leak(Box::new(RcuCell::new(Value(42))));
        let over = rcu::start_poll();
        over.wait();
        let reader = std::thread::spawn(|| cell.read(Box::leak(Box::new(rcu::read_lock()))));
        let seen: &'static Value = reader.join().unwrap();
        cell.replace(Value(43));
        let cookie = rcu::start_poll();
        // Threads that come now get other slots, and end theirs.
        for _ in 0..10 {
            let over = over.clone();
            let other = std::thread::spawn(move || {
                drop(rcu::read_lock());
                over.wait();
            });
            other.join().expect("it is not inside a section");
            rcu::poll_once();
            assert!(!cookie.is_done(), "a grace period ended under a reader");
        }
        assert_eq!((seen.0, DROPPED.load(Ordering::Acquire)), (42, false));
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "leaks"));
}

/// A guard that a destructor of the C library's drops, when it is called for the second time, protects until then; and the
/// section is over afterwards.
///
/// Red as the first of the test above; and if the thread does not know that it reads: in `thread_exit` (`src/rcu/reader.rs`), do
/// not ask.
#[test]
fn a_guard_may_be_dropped_by_a_late_destructor() {
    struct Held {
        guard: rcu::ReadGuard,
        cookie: rcu::Cookie,
        over: rcu::Cookie,
        rounds: usize,
    }
    static KEY: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    static EARLY: AtomicBool = AtomicBool::new(false);
    static INSIDE: AtomicBool = AtomicBool::new(false);
    unsafe extern "C" fn late(held: *mut libc::c_void) {
        // SAFETY: set by the thread below, or here, from a box that nobody else has.
        let mut held = unsafe { Box::from_raw(held.cast::<Held>()) };
        EARLY.fetch_or(held.cookie.is_done(), Ordering::Release);
        held.rounds += 1;
        SEEN.store(held.rounds, Ordering::Release);
        if held.rounds < 2 {
            let key = KEY.load(Ordering::Acquire) as libc::pthread_key_t;
            // SAFETY: the key was created below.
            unsafe { libc::pthread_setspecific(key, Box::into_raw(held).cast()) };
        } else {
            INSIDE.store(catch_unwind(AssertUnwindSafe(|| held.over.wait())).is_err(), Ordering::Release);
            drop(held.guard);
        }
    }
    let _alone = alone();
    let _watchdog = Watchdog::new("a late destructor");
    // Before the key is created, so that ours is the later one.
    drop(rcu::read_lock());
    let over = rcu::start_poll();
    over.wait();
    std::thread::spawn(|| {
        let mut key = 0;
        // SAFETY: `key` is valid for the write, and `late` is for what the key is given.
        unsafe {
            assert_eq!(libc::pthread_key_create(&mut key, Some(late)), 0);
            KEY.store(key as usize, Ordering::Release);
            let held = Box::new(Held { guard: rcu::read_lock(), cookie: rcu::start_poll(), over, rounds: 0 });
            assert_eq!(libc::pthread_setspecific(key, Box::into_raw(held).cast()), 0);
        }
    })
    .join()
    .unwrap();
    assert_eq!(SEEN.load(Ordering::Acquire), 2);
    assert!(!EARLY.load(Ordering::Acquire), "a grace period ended under a reader");
    assert!(INSIDE.load(Ordering::Acquire), "whoever waits inside a section is told so");
    rcu::synchronize();
}

/// A stalled reader is reported once, with the id and the name of its thread, and holds up no other domain.
///
/// Positive control: a stall timeout of an hour, and nothing is reported.
#[test]
fn a_stalled_reader_is_named() {
    if child::role().is_some() {
        let _watchdog = Watchdog::new("stall");
        rcu::set_stall_timeout(Duration::from_millis(30));
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let reader = std::thread::Builder::new().name("dawdler".into()).spawn(move || {
            let guard = rcu::read_lock();
            // SAFETY: gettid has no preconditions.
            tell.send(unsafe { libc::gettid() }).unwrap();
            released.recv().unwrap();
            drop(guard);
        });
        println!("thread {}", told.recv().unwrap());
        let cookie = rcu::start_poll();
        // For the reclaimer to wait for, and so to notice.
        rcu::retire(Box::new(String::from("waits")));
        until(|| rcu::stats().stalls == 1);
        assert!(!cookie.is_done());
        // Others go on.
        let domain = Domain::new(Heap);
        domain.synchronize();
        domain.retire(Box::new(String::from("freed")));
        domain.barrier();
        assert_eq!(domain.stats().pending_pointers, 0);
        // Reported once, however long it takes.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!cookie.is_done() && rcu::stats().stalls == 1);
        release.send(()).unwrap();
        reader.unwrap().join().unwrap();
        cookie.wait();
        return;
    }
    let output = child::run_plain("a_stalled_reader_is_named", "stall");
    child::assert_passed(&output);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let thread = out.split("thread ").nth(1).and_then(|rest| rest.lines().next()).expect("an id");
    let expected = format!("pcpalloc: rcu: a grace period is held up by thread {thread} (dawdler)");
    assert_eq!(err.matches(&expected).count(), 1, "{err}");
}

/// What waits took is told apart by their kind.
///
/// Positive control: without the line in `GracePeriods::wait` that adds them up, both stay at zero.
#[test]
fn waits_are_measured() {
    let _watchdog = Watchdog::new("waits");
    let domain = Domain::new(Heap);
    let waited_for = |wait: fn(&Domain<Heap>)| {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let guard = domain.read_lock();
                tell.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(30));
                drop(guard);
            });
            told.recv().unwrap();
            wait(&domain);
        });
        let stats = domain.stats();
        (stats.wait_p99, stats.expedited_wait_p99)
    };
    // The reader began to sleep before the wait began, if only just: half of it is surely waited for.
    let long = Duration::from_millis(15);
    let (wait, expedited) = waited_for(Domain::synchronize);
    assert!(wait >= long && expedited == Duration::ZERO, "{wait:?} {expedited:?}");
    let (_, expedited) = waited_for(Domain::synchronize_expedited);
    assert!(expedited >= long, "{expedited:?}");
}

/// Without a reclaimer the program does the work, and cookies are awaited all the same.
///
/// Positive control: `poll_once` without `Core::drive` leaves the awaiting thread asleep.
#[test]
fn a_program_may_do_without_a_reclaimer() {
    const NAME: &str = "a_program_may_do_without_a_reclaimer";
    if child::role().is_some() {
        let _watchdog = Watchdog::new("no reclaimer");
        rcu::set_reclaimer(false);
        let layout = std::alloc::Layout::new::<[u64; 8]>();
        // SAFETY: a block that nobody else knows.
        unsafe { rcu::free(alloc(layout), layout) };
        let cell = RcuCell::new(String::from("a"));
        cell.replace(String::from("b"));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(rcu::stats().pending_pointers, 2, "nobody was to work it off");
        let named = |name: &str| {
            std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
                let comm = task.unwrap().path().join("comm");
                std::fs::read_to_string(comm).is_ok_and(|comm| comm.trim() == name)
            })
        };
        assert!(!named("pcp-rcu"), "a thread runs that was not wanted");
        let mut freed = 0;
        until(|| {
            freed += rcu::poll_once();
            freed == 2
        });
        assert_eq!(rcu::stats().pending_pointers, 0);
        let guard = rcu::read_lock();
        let awaiting = std::thread::spawn(|| rcu_common::object::block_on(rcu::start_poll()));
        // Long enough for it to have asked, and to sleep.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!awaiting.is_finished());
        drop(guard);
        until(|| {
            rcu::poll_once();
            awaiting.is_finished()
        });
        rcu::set_reclaimer(true);
        cell.replace(String::from("c"));
        until(|| rcu::stats().pending_pointers == 0);
        assert!(named("pcp-rcu"));
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "polls"));
}

/// A process may end with frees under way, from inside a section even.
#[test]
fn a_process_may_end_with_frees_under_way() {
    const NAME: &str = "a_process_may_end_with_frees_under_way";
    if child::role().is_some() {
        let cell = RcuCell::new(vec![1, 2, 3]);
        let guard = rcu::read_lock();
        (0..1000).for_each(|n| cell.replace(vec![n]));
        println!("ends now {}", cell.read(&guard).len());
        std::process::exit(0);
    }
    let output = child::run_plain(NAME, "ends");
    assert!(output.status.success(), "{}", child::text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("ends now 1"));
}
