//! Pools keep their promise when the heap has nothing at hand, for threads and handlers alike.
#![cfg(not(miri))]

mod rcu_common;

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use std::alloc::Layout;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use pcpalloc::mempool::Pool;
use pcpalloc::{Drain, PcpAlloc};
use rcu_common::signals::{Timer, handle};
use rcu_common::{Watchdog, alone, child, dealloc, fill, is_filled, scaled};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A layout that nolock allocation never serves, so that all there is, is what the pool has set aside.
fn beyond_nolock() -> Layout {
    layout(300 << 10)
}

/// Exactly as many as were promised, again and again.
///
/// Positive control: `Pool::free` that gives to the heap first.
#[test]
fn the_promise_is_kept_without_the_heap() {
    let _alone = alone();
    for layout in [beyond_nolock(), layout(5 << 10)] {
        let pool = Pool::new(layout, 16).unwrap();
        for _ in 0..50 {
            // Nothing at hand in the heap.
            GLOBAL.drain(Drain::All);
            let mut blocks: Vec<_> = (0..16).map(|_| pool.alloc().expect("promised")).collect();
            // SAFETY: ours.
            blocks.iter().for_each(|&block| unsafe { fill(block, layout.size()) });
            if layout == beyond_nolock() {
                assert_eq!((pool.available(), pool.alloc()), (0, None));
            }
            for (n, block) in blocks.drain(..).enumerate() {
                let available = pool.available();
                // SAFETY: ours, filled above.
                unsafe {
                    assert!(is_filled(block, layout.size()), "block {n} was handed out twice");
                    pool.free(block);
                }
                assert!(pool.available() == available + 1 || available == 16, "the pool is filled first");
            }
            assert_eq!(pool.available(), 16);
        }
    }
}

/// A block of the heap that comes back fills the pool, and one of the pool may go back to the heap.
#[test]
fn a_free_fills_the_pool_first() {
    let _alone = alone();
    let layout = layout(6 << 10);
    let pool = Pool::new(layout, 2).unwrap();
    GLOBAL.drain(Drain::All);
    let own: Vec<_> = (0..2).map(|_| pool.alloc().unwrap()).collect();
    assert_eq!(pool.available(), 0);
    // SAFETY: of the heap, with the pool's layout; then the pool's own; each given up.
    unsafe {
        pool.free(rcu_common::alloc(layout));
        assert_eq!(pool.available(), 1);
        pool.free(own[0]);
        assert_eq!(pool.available(), 2);
        pool.free(own[1]);
    }
    assert_eq!(pool.available(), 2);
    assert!(GLOBAL.try_alloc_nolock(layout).is_some_and(|block| {
        // SAFETY: ours.
        unsafe { dealloc(block, layout) };
        true
    }));
}

#[test]
fn what_cannot_be_promised_is_refused() {
    let _alone = alone();
    assert!(Pool::new(Layout::from_size_align(0, 8).unwrap(), 1).is_err());
    assert!(Pool::new(layout(8), (1 << 20) + 1).is_err());
    let none = Pool::new(beyond_nolock(), 0).unwrap();
    assert_eq!((none.available(), none.alloc()), (0, None));
    assert!(Pool::new(layout(1 << 50), 1).is_err(), "no such memory");
}

/// A limit that has no room for a pool refuses it, be it the blocks or what the pool keeps for each; the process goes on.
///
/// Red if it does not: in `Pool::new` (`src/mempool.rs`), `collect` the slots.
#[test]
fn a_limit_refuses_a_pool() {
    const NAME: &str = "a_limit_refuses_a_pool";
    if child::role().is_some() {
        GLOBAL.set_limit(Some(8 << 20)).unwrap();
        for min in [1 << 20, 1 << 18, 1 << 16] {
            assert!(Pool::new(layout(128), min).is_err(), "{min} blocks");
        }
        assert_eq!(Pool::new(layout(128), 16).unwrap().available(), 16);
        return;
    }
    let _alone = alone();
    child::assert_passed(&child::run_plain(NAME, "is refused"));
}

/// A pool that goes gives everything back.
#[test]
fn a_pool_gives_back_what_it_set_aside() {
    let _alone = alone();
    let before = GLOBAL.stats().in_use;
    for _ in 0..20 {
        let pool = Pool::new(layout(64 << 10), 64).unwrap();
        assert!(GLOBAL.stats().in_use >= before + 64 * (64 << 10));
        // SAFETY: from the pool.
        unsafe { pool.free(pool.alloc().unwrap()) };
    }
    GLOBAL.drain(Drain::All);
    let after = GLOBAL.stats().in_use;
    assert!(after < before + (1 << 20), "{} bytes are lost", after - before);
}

/// Blocks that handlers keep from one signal to the next, by thread.
const HELD: usize = 4;
const THREADS: usize = 4;

struct Held([AtomicPtr<u8>; HELD]);

thread_local! {
    static MINE: Cell<*const Held> = const { Cell::new(std::ptr::null()) };
}

static POOL: OnceLock<Pool> = OnceLock::new();
static SIGNALS: AtomicUsize = AtomicUsize::new(0);
static BROKEN: AtomicUsize = AtomicUsize::new(0);
static CORRUPT: AtomicUsize = AtomicUsize::new(0);

fn swap(pool: &Pool, slot: &AtomicPtr<u8>) {
    let size = pool.layout().size();
    if let Some(old) = NonNull::new(slot.swap(null_mut(), Ordering::AcqRel)) {
        // SAFETY: ours, filled when it was put there.
        unsafe {
            if !is_filled(old, size) {
                CORRUPT.fetch_add(1, Ordering::Relaxed);
            }
            pool.free(old);
        }
    }
    match pool.alloc() {
        Some(block) => {
            // SAFETY: ours.
            unsafe { fill(block, size) };
            slot.store(block.as_ptr(), Ordering::Release);
        }
        None => _ = BROKEN.fetch_add(1, Ordering::Relaxed),
    }
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let count = SIGNALS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: set while the blocks are there.
    if let (Some(held), Some(pool)) = (unsafe { MINE.get().as_ref() }, POOL.get()) {
        // The last of the slots is for the thread.
        swap(pool, &held.0[count % (HELD - 1)]);
    }
}

/// Threads hold blocks of a pool, and handlers on top of them do: together never more than was promised, and never
/// is one refused.
///
/// Positive control: `Pool::free` that gives to the heap first has allocations refused.
#[test]
fn the_promise_is_kept_in_handlers() {
    let _alone = alone();
    let _watchdog = Watchdog::new("pool");
    // One more per thread: what a free is in the middle of passing on is still out.
    let pool = POOL.get_or_init(|| Pool::new(layout(2304), THREADS * (HELD + 2)).unwrap());
    handle(libc::SIGUSR2, on_signal);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let held = Held([const { AtomicPtr::new(null_mut()) }; HELD]);
                MINE.set(&held);
                let timer = Timer::every_nanos(60_000, libc::SIGUSR2);
                while !stop.load(Ordering::Relaxed) {
                    swap(pool, &held.0[HELD - 1]);
                }
                drop(timer);
                MINE.set(std::ptr::null());
                for slot in &held.0 {
                    if let Some(block) = NonNull::new(slot.load(Ordering::Acquire)) {
                        // SAFETY: ours.
                        unsafe { pool.free(block) };
                    }
                }
            });
        }
        while SIGNALS.load(Ordering::Relaxed) < scaled(20_000) {
            GLOBAL.drain(Drain::All);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!((BROKEN.load(Ordering::Relaxed), CORRUPT.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(pool.available(), THREADS * (HELD + 2));
}
