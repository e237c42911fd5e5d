//! What is in use at exit, and since a mark: nothing too much, nothing forgotten.
#![cfg(not(any(miri, pcpalloc_twin)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::child::{Child, Outcome, body};
use common::kernel::Kernel;
use common::{HEAP, KIB, MIB, cpus, on_cpu, on_threads};
use pcpalloc::{Leaks, PcpAlloc, rcu};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// A value that has to be dropped, so that deferring it is a call.
struct Droppable([u64; 5]);

impl Drop for Droppable {
    fn drop(&mut self) {
        assert!(self.0.iter().all(|&n| n == self.0[0]));
    }
}

/// A block that nobody gives back.
fn forget(size: usize) {
    // SAFETY: the size is not zero.
    assert!(!unsafe { GLOBAL.alloc(Layout::from_size_align(size, 8).expect("a layout")) }.is_null());
}

/// What a report says of a class, or `None` if it does not name it.
fn blocks(leaks: &Leaks, size: usize) -> Option<usize> {
    leaks.lines().find(|line| line.size == Some(size)).and_then(|line| line.blocks)
}

/// Blocks on the stacks of CPUs, freed by other threads, in a charge, deferred (some of them with destructors): none of it
/// is in use. What was forgotten is, each in its class.
fn found_and_nothing_else() {
    GLOBAL.charge_nolock(Layout::new::<[u64; 96]>(), 32).expect("memory");
    GLOBAL.leak_mark();
    // The heap's own pages of pointers are among what a first deferral brings.
    on_threads((0..4).map(|n| {
        move || {
            let mut held: Vec<Vec<u8>> = (0..500).map(|k| vec![n; 1 + k * 7]).collect();
            held.retain(|vector| vector.len() % 3 > 0);
            (0..3000u64).for_each(|k| rcu::retire(Box::new([k; 12])));
            (0..100u64).for_each(|k| rcu::retire(Box::new(vec![k; 40])));
            // SAFETY: a block of the heap that nobody else knows of.
            unsafe {
                let layout = Layout::new::<[u64; 700]>();
                rcu::free(NonNull::new(GLOBAL.alloc(layout)).expect("memory"), layout);
            }
        }
    }));
    (0..7).for_each(|_| forget(1000));
    (0..3).for_each(|_| forget(40 * KIB));
    forget(2 * MIB);
    forget(9 * MIB);
    let leaks = GLOBAL.leaks();
    assert_eq!((blocks(&leaks, KIB), blocks(&leaks, 40 * KIB)), (Some(7), Some(3)), "{leaks}");
    let sizes: Vec<_> = leaks.lines().filter(|line| line.size.is_none()).map(|line| line.bytes).collect();
    assert_eq!(sizes, [2 * MIB, 9 * MIB], "{leaks}");
    assert_eq!(leaks.deferred_bytes(), 0, "{leaks}");
    // What else there is: whatever the standard library and the reclaimer's thread keep.
    let known = 7 * KIB + 3 * 40 * KIB + 11 * MIB;
    assert!(leaks.bytes() - known < 8 * KIB, "{leaks}");
    for (class, retired) in [(96, 12_000), (320, 400), (5632, 4)] {
        assert!(blocks(&leaks, class).unwrap_or(0) < retired / 4, "{class}: {leaks}");
    }
}

/// Red if the report does not have deferred frees done, does not empty the stacks, or takes a charge for blocks in use.
#[test]
fn what_was_forgotten_is_found_and_nothing_else() {
    const TEST: &str = "what_was_forgotten_is_found_and_nothing_else";
    body(TEST, |_| found_and_nothing_else());
    Child::new(TEST, "").run().succeeded();
    Child::new(TEST, "").kernel(Kernel::WithoutRseq(libc::ENOSYS)).run().succeeded();
}

/// A reader that does not go away holds nothing up, and what waits for it is said to wait, to the byte: in pages of pointers
/// that are full, in those that still fill, calls among them, and on the chain.
///
/// Red if pages that still fill are not counted (`filling_bytes` in `src/rcu/core.rs`, 0), or calls in them (`bytes_of` in
/// `src/rcu/entry.rs`, 0 for a call).
#[test]
fn a_reader_does_not_hold_the_report_up() {
    const TEST: &str = "a_reader_does_not_hold_the_report_up";
    body(TEST, |_| {
        GLOBAL.leak_mark();
        let (begun, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _section = rcu::read_lock();
            begun.send(()).expect("somebody waits");
            std::thread::park();
        });
        wait.recv().expect("it begins");
        (0..2000u64).for_each(|k| rcu::retire(Box::new([k; 8])));
        let leaks = GLOBAL.leaks();
        assert_eq!(leaks.deferred_bytes(), 2000 * 64, "{leaks}");
        assert!(leaks.to_string().contains("wait for a reader"), "{leaks}");
        // In the middle of a section, too. Calls know of the box and of what notes them.
        let _section = rcu::read_lock();
        (0..300u64).for_each(|k| rcu::retire(Box::new(Droppable([k; 5]))));
        let call = size_of::<Droppable>() + size_of::<rcu::RcuHead>() + size_of::<Box<Droppable>>();
        let leaks = HEAP.leaks();
        assert_eq!(leaks.deferred_bytes(), 2000 * 64 + 300 * call, "{leaks}");
    });
    Child::new(TEST, "").run().succeeded();
    Child::new(TEST, "").kernel(Kernel::WithoutRseq(libc::ENOSYS)).run().succeeded();
}

/// When a deferred call runs, the blocks that waited with it are free.
///
/// Red if they wait for the call: in `Core::dispose` (`src/rcu/work.rs`), move the end of `free_blocks` (from
/// `work.gather.free()` on) behind the loop that makes the calls.
#[test]
fn a_call_sees_what_waited_with_it_free() {
    const TEST: &str = "a_call_sees_what_waited_with_it_free";
    static IN_USE: AtomicUsize = AtomicUsize::new(0);
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    fn in_use() -> usize {
        let stats = HEAP.stats();
        stats.in_use - stats.deferred
    }
    unsafe fn nothing(_: NonNull<rcu::RcuHead>) {}
    unsafe fn look(_: NonNull<rcu::RcuHead>) {
        IN_USE.store(in_use(), Ordering::Relaxed);
        WAITING.store(rcu::stats().pending_pointers, Ordering::Relaxed);
    }
    body(TEST, |_| {
        rcu::set_reclaimer(false);
        let free = |size| {
            let layout = Layout::from_size_align(size, 8).expect("a layout");
            // SAFETY: a block of the heap that nobody else knows of.
            unsafe { rcu::free(NonNull::new(GLOBAL.alloc(layout)).expect("memory"), layout) };
        };
        let defer = || {
            // Nothing is worked off in here.
            let _section = rcu::read_lock();
            // A page that fills; and more calls than go onto the chain.
            free(64);
            for n in 0..65 {
                let head = NonNull::from(Box::leak(Box::new(rcu::RcuHead::new())));
                // SAFETY: the head is never freed, and the functions look at the heap at most.
                unsafe { rcu::call(head, if n < 64 { nothing } else { look }) };
            }
            (0..2000).for_each(|n| free(64 * (1 + n % 64)));
        };
        on_cpu(cpus()[0], || {
            defer();
            rcu::barrier();
            defer();
            let before = rcu::stats();
            rcu::barrier();
            let after = rcu::stats();
            assert_eq!((before.pending_pointers, after.pending_pointers, after.pending_bytes), (2001 + 65, 0, 0));
            assert_eq!((after.freed - before.freed, after.called - before.called), (2001, 65));
            let (seen, now) = (IN_USE.load(Ordering::Relaxed), in_use());
            assert!(seen.abs_diff(now) < 32 * KIB, "{seen} in use in the call, {now} afterwards");
            // This call itself, and those on the chain.
            assert!(WAITING.load(Ordering::Relaxed) <= 65, "{} wait", WAITING.load(Ordering::Relaxed));
        });
    });
    Child::new(TEST, "").run().succeeded();
}

fn at_exit(test: &str, settings: &str) -> Outcome {
    Child::new(test, "").settings(settings).run().succeeded()
}

/// The lines of the report, without what the heap says before it.
fn report(outcome: &Outcome) -> Option<&str> {
    outcome.stderr.split_once("pcpalloc: at exit: ").map(|(_, report)| report)
}

/// Once, when the process exits; and not unless asked. What was there at the mark is not in it.
///
/// Red if the mark is not taken off.
#[test]
fn a_report_comes_at_exit() {
    const TEST: &str = "a_report_comes_at_exit";
    body(TEST, |_| {
        (0..10).for_each(|_| forget(5000));
        GLOBAL.leak_mark();
        (0..23).for_each(|_| forget(5000));
        // Of a size that no thread asks for when it starts: the reclaimer's does while the report is made, and what a
        // thread has in its hands counts as in use.
        (0..1000u64).for_each(|k| rcu::retire(Box::new([k; 90])));
    });
    let told = at_exit(TEST, "leaks:on");
    let text = report(&told).expect("a report");
    assert!(text.lines().next().is_some_and(|line| line.contains("more than at the mark")), "{text}");
    assert!(text.lines().any(|line| line.ends_with("bytes in       23 of 5120")), "{text}");
    assert!(!text.contains("of 768\n") && !text.contains("wait"), "{text}");
    assert_eq!(told.stderr.matches("at exit").count(), 1);
    assert_eq!(report(&at_exit(TEST, "leaks:off")), None);
    assert_eq!(report(&at_exit(TEST, "")), None);
}

/// What the memory was at exit, before the report on leaks empties the stacks, and what slow paths took if that was measured;
/// and none of it unless asked.
///
/// Red if `src/control/at_exit.rs` does not look at `STATS`, or says what leaks first.
#[test]
fn how_the_memory_stands_is_said_at_exit() {
    const TEST: &str = "how_the_memory_stands_is_said_at_exit";
    body(TEST, |_| {
        forget(9 * MIB);
        drop(vec![vec![1u8; 100]; 1000]);
    });
    let stats = |settings| {
        let told = at_exit(TEST, settings);
        let parts = told.stderr.split_once("pcpalloc: stats at exit:\n").map(|(_, text)| text.to_string());
        assert!(told.stderr.matches("stats at exit").count() <= 1);
        parts
    };
    let text = stats("stats:on,leaks:on").expect("stats");
    let (stats_text, leaks_text) = text.split_once("pcpalloc: at exit: ").expect("the stats, then the leaks");
    let in_use = stats_text.lines().find(|line| line.trim_start().starts_with("in use")).expect("a line");
    let kib: usize = in_use.split_whitespace().nth(2).and_then(|n| n.parse().ok()).expect("a number");
    assert!((9..200).contains(&(kib >> 10)) && in_use.contains("1 blocks are mappings"), "{stats_text}");
    let cached = stats_text.lines().find(|line| line.trim_start().starts_with("cached")).expect("a line");
    assert!(!cached.contains("       0 B"), "the stacks are as they were: {stats_text}");
    assert!(leaks_text.contains("in mappings") && !stats_text.contains("p99"), "{text}");
    let text = stats("stats:on,latency:on").expect("stats");
    assert!(text.contains("p99") && !text.contains("at exit: "), "{text}");
    assert_eq!((stats("leaks:on"), stats("stats:off"), stats("")), (None, None, None));
}

/// A process without a mark reports what there is.
#[test]
fn without_a_mark_everything_counts() {
    const TEST: &str = "without_a_mark_everything_counts";
    body(TEST, |_| (0..9).for_each(|_| forget(20 * KIB)));
    let told = at_exit(TEST, "leaks:on");
    let text = report(&told).expect("a report");
    assert!(!text.contains("mark") && text.contains("9 of 20480"), "{text}");
}
