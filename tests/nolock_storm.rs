//! Handlers that allocate and free while the threads they interrupt do, and while all CPUs are drained.
#![cfg(not(miri))]

mod rcu_common;

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use std::alloc::Layout;
use std::ptr::{NonNull, null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pcpalloc::{Drain, Mode, PcpAlloc};
use rcu_common::signals::{Timer, handle, send};
use rcu_common::{Random, Watchdog, alloc, child, dealloc, fill, is_filled, scaled};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const THREADS: usize = 4;
const SLOTS: usize = 48;

/// What handlers allocate; the slot a block lies in says which.
const LAYOUTS: [Layout; 3] = [layout(64), layout(200), layout(1024)];

const fn layout(size: usize) -> Layout {
    match Layout::from_size_align(size, 8) {
        Ok(layout) => layout,
        Err(_) => panic!(),
    }
}

fn layout_of(slot: usize) -> Layout {
    LAYOUTS[slot % LAYOUTS.len()]
}

/// What a thread and the handlers on it share.
struct Shared {
    /// Allocated by one handler, freed by a later one or by the thread.
    kept: [AtomicPtr<u8>; SLOTS],
    /// Allocated by the thread, for handlers to free.
    offered: [AtomicPtr<u8>; SLOTS],
    count: AtomicU64,
}

thread_local! {
    static SHARED: Cell<*const Shared> = const { Cell::new(null()) };
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);
static TRIES: AtomicUsize = AtomicUsize::new(0);
static HITS: AtomicUsize = AtomicUsize::new(0);
static FREED_OFFERED: AtomicUsize = AtomicUsize::new(0);
static CORRUPT: AtomicUsize = AtomicUsize::new(0);

/// Takes the block out of a slot, looks at its contents, and frees it without a lock.
fn free_slot(slot: &AtomicPtr<u8>, layout: Layout) -> bool {
    let Some(block) = NonNull::new(slot.swap(null_mut(), Ordering::AcqRel)) else { return false };
    // SAFETY: whoever put the block there filled it and gave it up.
    unsafe {
        if !is_filled(block, layout.size()) {
            CORRUPT.fetch_add(1, Ordering::Relaxed);
        }
        GLOBAL.free_nolock(block, layout);
    }
    true
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: set while the thread's `Shared` is there.
    let Some(shared) = (unsafe { SHARED.get().as_ref() }) else { return };
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    let count = shared.count.fetch_add(1, Ordering::Relaxed) as usize;
    let slot = count % SLOTS;
    let layout = layout_of(slot);
    TRIES.fetch_add(1, Ordering::Relaxed);
    if let Some(block) = GLOBAL.try_alloc_nolock(layout) {
        HITS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: ours; freed or given up below.
        unsafe {
            fill(block, layout.size());
            if count.is_multiple_of(3) {
                free_slot(&shared.kept[slot], layout);
                // Another handler of this thread cannot come between: its signal is blocked.
                shared.kept[slot].store(block.as_ptr(), Ordering::Release);
            } else {
                if !is_filled(block, layout.size()) {
                    CORRUPT.fetch_add(1, Ordering::Relaxed);
                }
                GLOBAL.free_nolock(block, layout);
            }
        }
    }
    if free_slot(&shared.offered[slot], layout) {
        FREED_OFFERED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Allocates and frees blocks of all sizes, looks at their contents, and passes blocks to and fro with handlers.
fn churn(seed: u64, stop: &AtomicBool, ids: &Mutex<Vec<libc::pid_t>>) {
    let shared = Shared {
        kept: [const { AtomicPtr::new(null_mut()) }; SLOTS],
        offered: [const { AtomicPtr::new(null_mut()) }; SLOTS],
        count: AtomicU64::new(seed),
    };
    // SAFETY: gettid has no preconditions.
    ids.lock().unwrap().push(unsafe { libc::gettid() });
    SHARED.set(&shared);
    let timer = Timer::every_nanos(40_000, libc::SIGUSR1);
    let mut random = Random::new(seed);
    let mut live: Vec<(NonNull<u8>, Layout)> = Vec::with_capacity(256);
    let free = |(block, layout): (NonNull<u8>, Layout)| {
        // SAFETY: ours, filled when it was allocated.
        unsafe {
            assert!(is_filled(block, layout.size()), "a block of {} bytes was overwritten", layout.size());
            dealloc(block, layout);
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let size = if random.below(4) == 0 { 1 + random.below(8192) } else { 1 + random.below(512) };
        let layout = layout(size);
        let block = alloc(layout);
        // SAFETY: ours.
        unsafe { fill(block, size) };
        live.push((block, layout));
        if live.len() == 256 || random.below(3) == 0 {
            free(live.swap_remove(random.below(live.len())));
        }
        let slot = random.below(SLOTS);
        if random.below(2) == 0 {
            if shared.offered[slot].load(Ordering::Relaxed).is_null() {
                let block = alloc(layout_of(slot));
                // SAFETY: ours until it is in the slot, which only this thread fills.
                unsafe { fill(block, layout_of(slot).size()) };
                shared.offered[slot].store(block.as_ptr(), Ordering::Release);
            }
        } else if let Some(block) = NonNull::new(shared.kept[slot].swap(null_mut(), Ordering::AcqRel)) {
            free((block, layout_of(slot)));
        }
    }
    drop(timer);
    SHARED.set(null());
    live.into_iter().for_each(free);
    for slot in 0..SLOTS {
        for blocks in [&shared.kept, &shared.offered] {
            if let Some(block) = NonNull::new(blocks[slot].load(Ordering::Acquire)) {
                free((block, layout_of(slot)));
            }
        }
    }
}

/// Runs the storm until so many signals have been handled.
fn storm(signals: usize) {
    let _watchdog = Watchdog::new("storm");
    handle(libc::SIGUSR1, on_signal);
    let (before, stop, ids) = (GLOBAL.stats(), AtomicBool::new(false), Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for seed in 1..=THREADS as u64 {
            let (stop, ids) = (&stop, &ids);
            scope.spawn(move || churn(seed, stop, ids));
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                GLOBAL.drain(Drain::All);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        // Beside the timers, which do not reach a thread that is not running.
        while SIGNALS.load(Ordering::Relaxed) < signals {
            for _ in 0..16 {
                ids.lock().unwrap().iter().for_each(|&id| assert!(send(id, libc::SIGUSR1)));
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let per_second = SIGNALS.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    GLOBAL.drain(Drain::All);
    let after = GLOBAL.stats();
    let (tries, hits) = (TRIES.load(Ordering::Relaxed), HITS.load(Ordering::Relaxed));
    println!(
        "{:?}: {per_second:.0} signals/s, {hits} of {tries} allocated ({:.2} %), {} ordinary blocks freed, {} drains",
        after.mode,
        100.0 * hits as f64 / tries as f64,
        FREED_OFFERED.load(Ordering::Relaxed),
        after.drains - before.drains,
    );
    assert_eq!(CORRUPT.load(Ordering::Relaxed), 0, "a handler found a block overwritten");
    assert!(FREED_OFFERED.load(Ordering::Relaxed) > 0);
    assert_eq!(after.nolock_hits - before.nolock_hits, hits);
    let failed = after.nolock_misses + after.nolock_refusals - before.nolock_misses - before.nolock_refusals;
    if after.mode == Mode::PerThread {
        assert!(failed <= tries - hits, "a handler that finds its thread at work is not counted");
    } else {
        assert_eq!(failed, tries - hits);
    }
    assert_eq!(after.nolock_deferred, 0, "the drain has emptied the list");
    let lost = after.in_use.saturating_sub(before.in_use);
    assert!(lost < 256 << 10, "{lost} bytes are in use that were not before");
}

/// With a charge, handlers are served whatever the threads and the drains do.
///
/// Positive controls: without the loop over `charge_nolock`, 2 in 3 allocations succeed and the last assertion
/// fails; with `pop_above_floor` that leaves out the store of the new top, the first handler that keeps its block
/// hands it out twice and the contents are found overwritten.
#[test]
fn handlers_are_served_through_a_storm() {
    for layout in LAYOUTS {
        GLOBAL.charge_nolock(layout, 64).expect("a charge");
    }
    storm(scaled(100_000));
    let (tries, hits) = (TRIES.load(Ordering::Relaxed), HITS.load(Ordering::Relaxed));
    assert!(hits * 100 > tries * 95, "{hits} of {tries}");
}

/// Where stacks belong to threads a handler may get nothing, but never what its thread is in the middle of taking.
///
/// Positive control: with `thread::with_region` that does not look at the busy mark, a thread's contents are
/// found overwritten, or blocks are lost.
#[test]
fn handlers_do_no_harm_without_rseq() {
    if child::role().is_some() {
        assert_eq!(GLOBAL.stats().mode, Mode::PerThread);
        return storm(scaled(50_000));
    }
    let output = child::run_without_rseq("handlers_do_no_harm_without_rseq", "storm");
    print!("{}", child::text(&output));
    child::assert_passed(&output);
}
