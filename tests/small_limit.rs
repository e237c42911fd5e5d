//! Small limits: one that no program could start with, and what is refused under one.
#![cfg(not(miri))]

mod common;

use std::alloc::Layout;
use std::thread;

use common::child::{Child, Outcome, body, say};
use pcpalloc::{Config, PcpAlloc};

#[global_allocator]
static HEAP: PcpAlloc = PcpAlloc::with_config(Config::new().limit(1));

const MIB: usize = 1 << 20;

/// What the heap said of a limit, a line each.
fn complaints(outcome: &Outcome) -> Vec<&str> {
    outcome.stderr.lines().filter(|line| line.starts_with("pcpalloc: ")).collect()
}

/// A limit too small is never the end of a program, which starts, has threads, and is told: in the static, where the limit
/// becomes the least there is; in the environment, where it is left out, and what the static says holds. What is refused
/// under it is null.
///
/// Red if it ends the process: in `with_environment` (`src/control/config.rs`), do not compare the limit with `LEAST_LIMIT`. (The
/// test's own process, whose static has the same limit, does not get as far as this.)
#[test]
fn a_limit_too_small_to_start_with_is_told_and_not_taken() {
    const NAME: &str = "a_limit_too_small_to_start_with_is_told_and_not_taken";
    body(NAME, |_| {
        let threads: Vec<_> = (0..16).map(|n| thread::spawn(move || format!("thread {n}").len())).collect();
        let letters: usize = threads.into_iter().map(|thread| thread.join().expect("it ran")).sum();
        say("letters", letters);
        say("limit", HEAP.limit().map_or(0, |limit| limit));
        let mut large = Vec::<u8>::new();
        say("refused", large.try_reserve_exact(5 * MIB).is_err());
    });
    // The parent has its own limit behind it: a backtrace of a failure needs more.
    HEAP.set_limit(None).expect("no limit");
    for settings in ["", "limit:0", "limit:1k", "limit:100k", "limit:4095k", "limit:5m"] {
        let outcome = Child::new(NAME, "").settings(settings).run().succeeded();
        let taken = settings == "limit:5m";
        assert_eq!(outcome.number("limit"), if taken { 5 * MIB } else { 4 * MIB }, "{settings}");
        assert_eq!(outcome.number("letters"), 10 * "thread 0".len() + 6 * "thread 10".len());
        assert_eq!(outcome.value("refused"), "true", "{settings}: {outcome:?}");
        let said = complaints(&outcome);
        let left_out = format!("pcpalloc: PCPALLOC_CONF: \"{settings}\" is left out: a limit is 4m at least");
        let raised = "pcpalloc: Config::limit: less than 4 MiB, so it is 4 MiB";
        match settings {
            "" => assert_eq!(said, [raised]),
            "limit:5m" => assert!(said.is_empty(), "{said:?}"),
            _ => assert_eq!(said, [&left_out[..], raised]),
        }
    }
}

/// A charge that the limit has no room for is refused before it costs anything: the array for its blocks would stay.
///
/// Red if it costs one: in `set_charge` (`src/percpu/reserve.rs`), do not ask `fits`.
#[test]
fn a_charge_beyond_the_limit_leaves_no_array() {
    const NAME: &str = "a_charge_beyond_the_limit_leaves_no_array";
    body(NAME, |_| {
        let layout = Layout::new::<[u64; 4]>();
        HEAP.charge_nolock(layout, 1000).expect("32 KB a CPU, and 8 for the array");
        HEAP.charge_nolock(layout, 0).expect("less is always had");
        let before = HEAP.stats().metadata;
        assert!(HEAP.charge_nolock(layout, 1 << 20).is_err(), "32 MiB a CPU");
        let after = HEAP.stats().metadata;
        assert!(after < before + MIB, "{before} bytes of tables before, {after} after");
        HEAP.charge_nolock(layout, 1000).expect("as before");
    });
    HEAP.set_limit(None).expect("no limit");
    Child::new(NAME, "").run().succeeded();
}
