//! What is done on every host, and what the heap has to say of it.
#![allow(dead_code)]

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::child::{Child, Outcome, say};
use crate::common::kernel::{self, SECTIONS};
use crate::common::{Block, HEAP, cpus, on_threads, scaled, workload};
use pcpalloc::debug::{Level, check};
use pcpalloc::rcu::{self, RcuCell, RcuHead};
use pcpalloc::{Drain, Mode, ModeReason};

/// What the heap has to say of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub mode: Mode,
    pub reason: ModeReason,
    pub fence: bool,
}

impl Expected {
    pub const fn per_thread(reason: ModeReason) -> Expected {
        Expected { mode: Mode::PerThread, reason, fence: true }
    }

    /// On this machine, with nothing taken away.
    pub fn as_it_is() -> Expected {
        let (mode, reason) = match kernel::libc_has_registered() {
            _ if !SECTIONS => (Mode::PerThread, ModeReason::Architecture),
            true => (Mode::LibcRseq, ModeReason::LibcRegistered),
            false => return Expected::own(),
        };
        Expected { mode, reason, fence: true }
    }

    /// Where the C library registers nothing: child processes with [`LIBC_WITHOUT`].
    pub fn own() -> Expected {
        let (mode, reason) = match kernel::libc_knows_rseq() {
            _ if !SECTIONS => (Mode::PerThread, ModeReason::Architecture),
            true => (Mode::OwnRseq, ModeReason::LibcDeclined),
            false => (Mode::OwnRseq, ModeReason::LibcWithout),
        };
        Expected { mode, reason, fence: true }
    }

    pub fn without_fence(self) -> Expected {
        Expected { fence: false, ..self }
    }

    /// As it is where there are no sections to begin with.
    fn here(self) -> Expected {
        if SECTIONS { self } else { Expected { reason: ModeReason::Architecture, mode: Mode::PerThread, ..self } }
    }
}

/// The variable that has glibc register nothing. Other C libraries do not know it, and register nothing either.
pub const LIBC_WITHOUT: (&str, &str) = ("GLIBC_TUNABLES", "glibc.pthread.rseq=0");

/// Ordinary allocation, nolock allocation, deferred frees and drains, with contents compared; then says what the heap has
/// to say.
pub fn work() {
    work_where(true);
}

/// The same on a host where threads may run on CPUs that have no stacks, so that nothing can be promised to nolock
/// allocation.
pub fn work_where(all_cpus_have_stacks: bool) {
    workload::run();
    nolock(all_cpus_have_stacks);
    deferred();
    say_mode();
    check(Level::Blocks).expect("everything adds up");
}

/// Says what the heap has to say of the host, and whether a drain reaches all CPUs.
pub fn say_mode() {
    let report = HEAP.drain(Drain::All);
    let stats = HEAP.stats();
    say("mode", format!("{:?}", stats.mode));
    say("reason", format!("{:?}", stats.mode_reason));
    say("fence", stats.cpu_fence);
    say("unreachable", report.unreachable_cpus);
    // The same in every form that people and programs read.
    let mut prometheus = String::new();
    stats.write_prometheus(&mut prometheus).expect("strings take anything");
    let (mode, reason) = (stats.mode.name(), stats.mode_reason);
    assert!(prometheus.contains(&format!("pcpalloc_mode_info{{mode=\"{mode}\",reason=\"{reason}\"")), "{prometheus}");
    assert!(stats.to_string().contains(&format!("mode           {mode}: {reason}")), "{stats}");
    let zoneinfo = HEAP.zoneinfo().to_string();
    assert!(zoneinfo.contains(&format!("    mode: {mode} ({reason})")), "{zoneinfo}");
}

/// Nolock allocation, before and after a charge, from several threads. `served`: whether it must find something.
pub fn nolock(served: bool) {
    let sizes = [16, 96, 700, 4096];
    let take = |size: usize, seed: u64| {
        let layout = Layout::from_size_align(size, 8).expect("a layout");
        HEAP.try_alloc_nolock(layout).map(|block| (block, layout, seed as u8))
    };
    let give = |(block, layout, seed): (NonNull<u8>, Layout, u8)| {
        // SAFETY: a block of this layout, filled with the byte, and given up here.
        unsafe {
            let bytes = std::slice::from_raw_parts(block.as_ptr(), layout.size());
            assert!(bytes.iter().all(|byte| *byte == seed), "a block is its owner's alone");
            HEAP.free_nolock(block, layout);
        }
    };
    on_threads((0..3u64).map(|number| {
        move || {
            let mut hits = 0;
            for round in 0..scaled(30) as u64 {
                // What nolock allocation finds, ordinary allocation has left: above the floor, so more than a pair would.
                for size in sizes {
                    drop((0..30).map(|_| Block::new(size, 8, round).expect("there is memory")).collect::<Vec<_>>());
                }
                let taken: Vec<_> = sizes.iter().filter_map(|&size| take(size, number + round)).collect();
                hits += taken.len();
                for &(block, layout, seed) in &taken {
                    // SAFETY: ours, as long as the layout says.
                    unsafe { block.write_bytes(seed, layout.size()) };
                }
                taken.into_iter().for_each(give);
            }
            assert!(hits > 0 || !served, "there was something to be had");
        }
    }));
    let layout = Layout::from_size_align(320, 8).expect("a layout");
    match HEAP.charge_nolock(layout, 20) {
        Ok(()) => {
            let taken: Vec<_> = (0..20).map_while(|_| HEAP.try_alloc_nolock(layout)).collect();
            assert!(taken.len() == 20 || !served, "what was promised is there");
            // SAFETY: ours.
            taken.into_iter().for_each(|block| unsafe { HEAP.free_nolock(block, layout) });
            HEAP.charge_nolock(layout, 0).expect("a charge can be given back");
        }
        Err(_) => assert!(!HEAP.stats().cpu_fence || cpus().len() == 1, "nothing stands against a charge"),
    }
}

/// Deferred frees of three kinds under readers that look at what they read; all is free in the end.
pub fn deferred() {
    #[repr(C)]
    struct Linked {
        head: RcuHead,
        payload: [u64; 6],
    }
    let cell = RcuCell::new(vec![0u64; 40]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let guard = rcu::read_lock();
                    let list = cell.read(&guard);
                    assert!(list.iter().all(|value| *value == list[0]), "what is read has not been freed");
                }
            });
        }
        for round in 1..scaled(300) as u64 {
            cell.replace(vec![round; 40]);
            let block = Box::into_raw(Box::new([round; 12]));
            let linked = Box::into_raw(Box::new(Linked { head: RcuHead::new(), payload: [round; 6] }));
            // SAFETY: both are blocks of this heap with these layouts, which nobody else knows of; the head lies in its
            // object.
            unsafe {
                assert_eq!((*linked).payload, [round; 6]);
                rcu::free(NonNull::new_unchecked(block.cast()), Layout::new::<[u64; 12]>());
                let head = NonNull::new_unchecked(&raw mut (*linked).head);
                rcu::free_nolock(head, NonNull::new_unchecked(linked.cast()), Layout::new::<Linked>());
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(cell);
    rcu::drain();
    rcu::barrier();
    let stats = rcu::stats();
    assert_eq!((stats.pending_pointers, stats.leaked), (0, 0), "{stats:?}");
}

/// Runs the child on this host, and compares what the heap says there.
#[track_caller]
pub fn on_host(suite: &str, host: &str, child: Child, expected: Expected) -> Outcome {
    let outcome = child.run().succeeded();
    let expected = expected.here();
    let said = ["mode", "reason", "fence"].map(|key| outcome.value(key));
    let words = [format!("{:?}", expected.mode), format!("{:?}", expected.reason), expected.fence.to_string()];
    assert_eq!(said, words.each_ref().map(String::as_str), "{host}: {outcome:#?}");
    if expected.fence {
        assert_eq!(outcome.number("unreachable"), 0, "{host}: {outcome:#?}");
    }
    let fence = if expected.fence { "" } else { "; no fence for other CPUs" };
    row(host, expected.mode.name(), suite, "passed", &format!("{}{fence}", expected.reason));
    outcome
}

/// Says that a host could not be had here, and why.
pub fn skipped(suite: &str, host: &str, why: impl std::fmt::Display) {
    row(host, "", suite, "skipped", &why.to_string());
}

/// A row of the table that `tests/hosts.sh` makes.
pub fn row(host: &str, mode: &str, suite: &str, result: &str, note: &str) {
    println!("\nROW|{host}|{mode}|{suite}|{result}|{note}");
}
