//! Every system call that can fail made to fail, one after the other and at random: null or a fallback, everything
//! accounted for afterwards, nothing lost, and all well again.
//!
//! Each trial has a heap of its own, in a process made by `fork` before there was one. The program's own allocator is
//! the system's, so a null goes to whoever asked.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::block::layout;
use common::child::{self, Child, in_a_fork, say};
use common::kernel::{Kernel, SECTIONS, libc_has_registered};
use common::{Block, HEAP, KIB, MIB, on_threads, scaled};
use pcpalloc::debug::failures::{self, Call};
use pcpalloc::debug::{Level, check};
use pcpalloc::rcu::{self, RcuHead};
use pcpalloc::{Drain, Mode};

/// Objects with destructors that wait for a grace period, and those that it is over for.
static RETIRED: AtomicUsize = AtomicUsize::new(0);
static DROPPED: AtomicUsize = AtomicUsize::new(0);

fn alloc(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: no size here is 0.
    NonNull::new(unsafe { HEAP.alloc(layout(size, 8)) })
}

unsafe fn dropped(head: NonNull<RcuHead>) {
    DROPPED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: `defer` made it of this layout, and this is the end of it.
    unsafe { HEAP.dealloc(head.as_ptr().cast(), layout(64, 8)) }
}

/// Defers frees of all kinds, of what is to be had.
fn defer(count: usize) {
    if let Some(block) = alloc(300 * KIB) {
        // SAFETY: a block of this layout that nobody else knows.
        unsafe { rcu::free(block, layout(300 * KIB, 8)) };
    }
    for _ in 0..count {
        for size in [64, 3000] {
            if let Some(block) = alloc(size) {
                // SAFETY: a block of this layout that nobody else knows.
                unsafe { rcu::free(block, layout(size, 8)) };
            }
        }
        for (calls, size) in [(false, 3000), (true, 64)] {
            let Some(block) = alloc(size) else { continue };
            let head = block.cast::<RcuHead>();
            // SAFETY: a block that nobody else knows, large enough for the head.
            unsafe {
                head.write(RcuHead::new());
                if calls {
                    RETIRED.fetch_add(1, Ordering::Relaxed);
                    rcu::call(head, dropped);
                } else {
                    rcu::free_nolock(head, block, layout(size, 8));
                }
            }
        }
    }
}

/// A little of everything that makes system calls; how many requests were refused.
fn everything() -> usize {
    let mut refused = 0;
    let mut live = Vec::new();
    let sizes = [8, 100, 1000, 9000, 40 * KIB, 200 * KIB, 700 * KIB, 4200 * KIB];
    for (n, size) in sizes.into_iter().enumerate() {
        let align = if n % 2 == 0 { 64 * KIB } else { 8 };
        let make = if n % 3 == 0 { Block::zeroed } else { Block::new };
        match make(size, align, n as u64) {
            Some(block) => live.push(block),
            None => refused += 1,
        }
    }
    for block in &mut live {
        let size = block.size();
        for size in [size * 3 / 2, size / 2 + 1, 4300 * KIB, 20] {
            // From one mapping to a larger one, but not from everything to one.
            if size < 4 * MIB || block.size() > 2 * MIB {
                refused += !block.resize(size) as usize;
            }
        }
    }
    live.extend((0..200).filter_map(|n| Block::new(500, 8, n)));
    live.iter().for_each(Block::check);
    _ = HEAP.charge_nolock(layout(100, 8), 20);
    if let Some(block) = HEAP.try_alloc_nolock(layout(100, 8)) {
        // SAFETY: ours.
        unsafe { HEAP.free_nolock(block, layout(100, 8)) };
    }
    // More pages of pointers than are spare.
    defer(800);
    HEAP.drain(Drain::All);
    drop(live);
    HEAP.trim();
    on_threads([|| drop((0..300).filter_map(|n| Block::new(1 + n * 7, 8, n as u64)).collect::<Vec<_>>())]);
    _ = HEAP.charge_nolock(layout(100, 8), 0);
    HEAP.trim();
    refused
}

/// The system gives again: everything deferred comes to its end, nothing is lost, and requests are served.
fn recover(mode: Option<Mode>) {
    failures::fail(0, 0, 0);
    rcu::barrier();
    let reports = rcu::stats();
    assert_eq!(reports.pending_pointers, 0, "deferred frees complete: {reports:?}");
    assert_eq!(DROPPED.load(Ordering::Relaxed), RETIRED.load(Ordering::Relaxed), "calls are made");
    assert_eq!(everything(), 0, "there is memory again");
    // Threads have stacks again, whatever became of their first attempt.
    drop((0..20).map(|n| Block::new(48, 8, n).expect("there is memory")).collect::<Vec<_>>());
    assert!(HEAP.stats().percpu_cached >= 20 * 48, "what was freed is cached:\n{}", HEAP.stats());
    rcu::barrier();
    HEAP.charge_nolock(layout(100, 8), 0).expect("nothing is charged");
    HEAP.drain(Drain::All);
    drop(Block::new(40, 8, 1));
    HEAP.drain(Drain::All);
    check(Level::Blocks).expect("everything adds up");
    let stats = HEAP.stats();
    // Pages of pointers that are kept for the next deferral, and their like.
    assert!(stats.in_use < 600 * KIB, "nothing is lost:\n{stats}\n{}\n{:?}", HEAP.slabinfo(), rcu::stats());
    assert_eq!((stats.mappings, stats.nolock_deferred), (0, 0));
    assert!(mode.is_none_or(|mode| stats.mode == mode));
}

/// Runs `f` in a new process and fails if that does.
fn trial(what: impl std::fmt::Display, f: impl FnOnce() + std::panic::UnwindSafe) {
    assert_eq!(in_a_fork(f), 0, "{what}: how the process ended, as waitpid says");
}

/// How many calls of a kind `everything` makes.
fn calls_of(call: Call) -> usize {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    trial("counting", move || {
        failures::fail(call as u32, usize::MAX, 0);
        everything();
        let count = failures::counts().0;
        std::io::Write::write_all(&mut { writer }, &count.to_ne_bytes()).expect("somebody reads");
    });
    let mut count = [0; 8];
    std::io::Read::read_exact(&mut { reader }, &mut count).expect("a number");
    usize::from_ne_bytes(count)
}

const KERNELS: [Kernel; 2] = [Kernel::Whole, Kernel::WithoutRseq(libc::ENOSYS)];
const MEMORY: u32 = Call::Map as u32 | Call::Commit as u32 | Call::Remap as u32;

fn name_of(kernel: Kernel) -> &'static str {
    if matches!(kernel, Kernel::Whole) { "Whole" } else { "WithoutRseq" }
}

fn mode_of(kernel: &str) -> Mode {
    match kernel {
        "Whole" if SECTIONS && libc_has_registered() => Mode::LibcRseq,
        "Whole" if SECTIONS => Mode::OwnRseq,
        _ => Mode::PerThread,
    }
}

/// Red if a refusal is forgotten: in `Zone::commit_more` (`src/zone/reservation.rs`), go on when `commit` is false;
/// in `mapping::alloc` (`src/zone/mapping.rs`), count before mapping; in `attach` (`src/percpu/thread.rs`), leave
/// `WITHOUT` set when there is no memory for a region.
#[test]
fn each_call_fails_once_and_from_there_on() {
    const NAME: &str = "each_call_fails_once_and_from_there_on";
    child::body(NAME, |argument| {
        let (kernel, call) = argument.split_once('/').expect("two parts");
        let (mode, call) = (mode_of(kernel), Call::ALL[call.parse::<usize>().expect("a number")]);
        let calls = calls_of(call);
        // Each, but of many alike some.
        let step = if calls > 8 { (calls / scaled(4)).max(1) } else { 1 };
        let mut trials = 0;
        for nth in (0..calls).step_by(step) {
            for failing in [1, usize::MAX] {
                // A grace period without its barrier waits until the system gives one.
                if call == Call::ProcessFence && failing > 1 {
                    continue;
                }
                trial(format_args!("{call:?} number {nth} of {calls}, {failing} times"), || {
                    failures::fail(call as u32, nth, failing);
                    everything();
                    recover(Some(mode));
                });
                trials += 1;
            }
        }
        say("calls", calls);
        say("trials", trials);
    });
    let total = AtomicUsize::new(0);
    let next = AtomicUsize::new(0);
    on_threads((0..4).map(|_| {
        || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(call) = Call::ALL.get(number / 2) else { return };
                let kernel = KERNELS[number % 2];
                let argument = format!("{}/{}", name_of(kernel), number / 2);
                let outcome = Child::new(NAME, &argument).kernel(kernel).run().succeeded();
                println!(
                    "{call:?}, {}: {} calls, {} trials",
                    name_of(kernel),
                    outcome.value("calls"),
                    outcome.value("trials")
                );
                total.fetch_add(outcome.number("trials"), Ordering::Relaxed);
            }
        }
    }));
    assert!(total.load(Ordering::Relaxed) > 60, "{total:?} trials");
}

/// Red as above.
#[test]
fn calls_fail_at_random() {
    const NAME: &str = "calls_fail_at_random";
    child::body(NAME, |kernel| {
        let mode = mode_of(kernel);
        let all = Call::ALL.iter().fold(0, |all, call| all | *call as u32) & !(Call::ProcessFence as u32);
        for seed in 0..scaled(24) {
            trial(format_args!("seed {seed}"), || {
                failures::fail_one_in([2, 3, 10, 30][seed % 4], all, seed);
                everything();
                recover(Some(mode));
            });
        }
    });
    on_threads(KERNELS.map(|kernel| move || drop(Child::new(NAME, name_of(kernel)).kernel(kernel).run().succeeded())));
}

/// A stack grows only once there is memory for it: whoever frees would wait for that otherwise, when there is none.
///
/// Red if it grows all the same: in `grow` (`src/percpu/capacity.rs`), do not ask `provide_large`.
#[test]
fn stacks_grow_into_memory_that_is_there() {
    const NAME: &str = "stacks_grow_into_memory_that_is_there";
    child::body(NAME, |_| {
        let cpu = common::cpus()[0];
        common::move_thread(0, cpu);
        let to_and_fro = || {
            for _ in 0..20 {
                let blocks: Vec<_> = (0..5000).map(|_| alloc(64).expect("there is memory")).collect();
                // SAFETY: just allocated, and by this layout.
                blocks.into_iter().for_each(|block| unsafe { HEAP.dealloc(block.as_ptr(), layout(64, 8)) });
            }
            HEAP.drain(Drain::Cpu(cpu)).drained
        };
        failures::fail(Call::Populate as u32, 0, usize::MAX);
        let small = to_and_fro();
        assert!(failures::counts().1 > 0, "it was asked for");
        failures::fail(0, 0, 0);
        let large = to_and_fro();
        assert!(
            (1..=64 * 64).contains(&small) && large > 1000 * 64,
            "{small} bytes on small stacks, {large} on large ones"
        );
    });
    let pinned = SECTIONS.then(|| Child::new(NAME, "").settings("worker:off").run().succeeded());
    if pinned.is_none() {
        println!("skipped: stacks do not belong to CPUs here");
    }
}

/// Memory that cannot be populated ahead of use is used all the same.
///
/// Red if a refusal is taken for success: in `Zone::populate_free` (`src/zone/node.rs`), let `done` be true.
#[test]
fn populating_fails() {
    const NAME: &str = "populating_fails";
    child::body(NAME, |_| {
        drop(Block::new(100, 8, 1).expect("there is memory"));
        failures::fail(Call::Populate as u32, 0, usize::MAX);
        let marks = pcpalloc::Watermarks { min: 0, low: 8 * MIB, high: 12 * MIB };
        HEAP.set_watermarks(marks).expect("they make sense");
        let wait = |done: &dyn Fn() -> bool| {
            (0..300).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                done()
            })
        };
        assert!(wait(&|| failures::counts().1 > 1), "the worker tries");
        assert!(HEAP.stats().free_resident < 8 * MIB, "nothing has been populated:\n{}", HEAP.stats());
        drop(Block::new(MIB, 8, 2).expect("there is memory"));
        failures::fail(0, 0, 0);
        assert!(wait(&|| HEAP.stats().free_resident >= 8 * MIB), "the worker succeeds:\n{}", HEAP.stats());
        check(Level::Blocks).expect("everything adds up");
    });
    Child::new(NAME, "").run().succeeded();
}

/// With not a page to be had, everything that was allocated can be freed after a grace period.
///
/// Red if a page of pointers is insisted on: in `free_without_page` (`src/rcu/defer.rs`), count the block as leaked.
#[test]
fn deferred_frees_complete_without_memory() {
    const NAME: &str = "deferred_frees_complete_without_memory";
    child::body(NAME, |_| {
        let objects: Vec<_> = (0..3000).filter_map(|_| alloc(64)).collect();
        failures::fail(MEMORY, 0, usize::MAX);
        // Whatever the heap still has, in any size.
        let mut taken = Vec::with_capacity(100_000);
        for size in [MIB, 64 * KIB, 4096, 1024, 256, 64, 32, 8] {
            while let Some(block) = alloc(size) {
                taken.push((block, size));
            }
        }
        assert!(taken.len() < 100_000 && alloc(4096).is_none());
        let count = objects.len();
        for object in objects {
            // SAFETY: ours, and not used.
            unsafe { rcu::free(object, layout(64, 8)) };
        }
        rcu::barrier();
        let stats = rcu::stats();
        assert_eq!(stats.pending_pointers, 0, "{stats:?}");
        say("freed", stats.freed);
        say("count", count);
        for (block, size) in taken {
            // SAFETY: ours, and not used.
            unsafe { HEAP.dealloc(block.as_ptr(), layout(size, 8)) };
        }
        recover(None);
    });
    for kernel in KERNELS {
        let outcome = Child::new(NAME, "").kernel(kernel).run().succeeded();
        assert!(outcome.number("freed") >= outcome.number("count"), "{outcome:#?}");
    }
}

/// A grace period is not over before the kernel has given the barrier that it rests on.
///
/// Red if what the barrier returns is not looked at: in `GracePeriods::advance` (`src/rcu/grace.rs`), go on whether
/// `gate.fenced` or not.
#[test]
fn a_grace_period_waits_for_its_barrier() {
    const NAME: &str = "a_grace_period_waits_for_its_barrier";
    child::body(NAME, |_| {
        rcu::set_reclaimer(false);
        rcu::synchronize();
        failures::fail(Call::ProcessFence as u32, 0, usize::MAX);
        let cookie = rcu::start_poll();
        // SAFETY: a block that nobody else knows.
        unsafe { rcu::free(alloc(64).expect("there is memory"), layout(64, 8)) };
        for _ in 0..100 {
            std::thread::sleep(std::time::Duration::from_millis(1));
            rcu::poll_once();
        }
        assert!(failures::counts().1 > 10, "it was asked for again and again");
        assert!(!cookie.is_done());
        failures::fail(0, 0, 0);
        rcu::synchronize();
        rcu::synchronize();
        assert!(cookie.is_done());
    });
    Child::new(NAME, "").run().succeeded();
}

/// A charge that is changed to and fro takes its arrays from what it had before.
///
/// Red if arrays are made anew: in `set_charge` (`src/percpu/reserve.rs`), do not look at `other`.
#[test]
fn recharging_takes_no_more_tables() {
    const NAME: &str = "recharging_takes_no_more_tables";
    child::body(NAME, |_| {
        let charge = |blocks| HEAP.charge_nolock(layout(32, 8), blocks).expect("a charge");
        let metadata = || HEAP.stats().metadata;
        [1000, 0, 1000, 10].into_iter().for_each(charge);
        let before = metadata();
        for round in 0..2000 {
            charge([1000, 10, 700, 0][round % 4]);
        }
        assert!(metadata() < before + 16 * KIB, "{before} became {}", metadata());
        // Growing costs what the largest does, about twice.
        (1..200).for_each(|step| charge(10 * step));
        let cpus = common::cpus().len();
        assert!(metadata() < before + 200 * KIB + cpus * 100 * KIB, "{before} became {}", metadata());
        charge(0);
        check(Level::Blocks).expect("everything adds up");
    });
    for kernel in KERNELS {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}
