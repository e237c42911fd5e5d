//! What deferred calls of domains may do.
#![cfg(not(miri))]

mod rcu_common;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{Domain, Heap};
use rcu_common::{Watchdog, until};

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
