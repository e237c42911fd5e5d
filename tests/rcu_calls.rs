//! What deferred calls of domains may do.
#![cfg(not(miri))]

mod rcu_common;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, LazyLock};

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, Backlog, Domain, Heap, RcuHead};
use rcu_common::{Watchdog, child, until};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Calls that a domain makes may wait for its readers.
///
/// Red if that is taken for waiting for themselves: in `Domain::synchronize` or `Domain::synchronize_expedited`
/// (`src/rcu/domain.rs`), call `assert_not_disposing` as `drain` does.
#[test]
fn calls_of_a_domain_may_wait_for_its_readers() {
    static DOMAIN: LazyLock<Domain<Heap>> = LazyLock::new(|| Domain::new(Heap));
    static DONE: AtomicUsize = AtomicUsize::new(0);
    struct Waits;
    impl Drop for Waits {
        fn drop(&mut self) {
            DOMAIN.synchronize();
            DOMAIN.synchronize_expedited();
            DOMAIN.start_poll().wait();
            DONE.fetch_add(1, Ordering::Release);
        }
    }
    let _watchdog = Watchdog::new("calls of a domain");
    DOMAIN.retire(Box::new((Waits, 0u8)));
    DOMAIN.barrier();
    until(|| DOMAIN.stats().called == 1);
    assert_eq!(DONE.load(Ordering::Acquire), 1, "the call panicked");
}

/// Calls of two domains may each defer to the other beyond its high mark: they do not wait for each other.
///
/// Red if they do: in `Core::hold_back` (`src/rcu/defer.rs`), ask `self.is_disposing()` in place of `disposes()`.
#[test]
fn calls_of_two_domains_may_defer_to_each_other() {
    const NAME: &str = "calls_of_two_domains_may_defer_to_each_other";
    static DOMAINS: LazyLock<[Domain<Heap>; 2]> = LazyLock::new(|| [Domain::new(Heap), Domain::new(Heap)]);
    static BOTH: Barrier = Barrier::new(2);
    struct Defers(usize);
    impl Drop for Defers {
        fn drop(&mut self) {
            // Both are in the middle of a batch from here on.
            BOTH.wait();
            DOMAINS[self.0].retire(Box::new(String::from("beyond the mark")));
        }
    }
    if child::role().is_some() {
        // SAFETY: alarm has no preconditions. Whoever waits for the other is ended by it.
        unsafe { libc::alarm(20) };
        // All is done by these threads, so that it is known which of them does what.
        rcu::set_reclaimer(false);
        DOMAINS.iter().for_each(|domain| domain.set_watermarks(Backlog { low: 0, high: 0 }).unwrap());
        std::thread::scope(|scope| {
            (0..2).for_each(|n| _ = scope.spawn(move || DOMAINS[n].retire(Box::new(Defers(1 - n)))))
        });
        for domain in &*DOMAINS {
            domain.barrier();
            assert_eq!((domain.stats().called, domain.stats().pending_pointers), (2, 0));
        }
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "defers"));
}

/// What is being called still waits: whoever finds that nothing does may count on all of it being done.
///
/// Red if it is counted off before: in `Core::dispose` (`src/rcu/work.rs`), call `note_done` of the chain before the `match`
/// (with the bytes of `queued`, or 0).
#[test]
fn what_is_being_called_still_waits() {
    static DOMAIN: LazyLock<Domain<Heap>> = LazyLock::new(|| Domain::new(Heap));
    static WAITED: AtomicUsize = AtomicUsize::new(usize::MAX);
    unsafe fn look(_: NonNull<RcuHead>) {
        WAITED.store(DOMAIN.stats().pending_pointers, Ordering::Relaxed);
    }
    let _watchdog = Watchdog::new("what is being called");
    let head = NonNull::from(Box::leak(Box::new(RcuHead::new())));
    // SAFETY: the head is never freed, and the function looks at the domain only.
    unsafe { DOMAIN.call(head, look) };
    DOMAIN.barrier();
    until(|| DOMAIN.stats().pending_pointers == 0);
    assert_eq!((WAITED.load(Ordering::Relaxed), DOMAIN.stats().called), (1, 1));
}
