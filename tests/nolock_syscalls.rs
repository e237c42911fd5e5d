//! Threads on which any system call at all ends the process.
#![cfg(not(miri))]

mod rcu_common;

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pcpalloc::mempool::Pool;
use pcpalloc::rcu::{self, RcuHead};
use pcpalloc::{Mode, PcpAlloc};
use rcu_common::filter::kill_on_any_call;
use rcu_common::{Random, Watchdog, alloc, child, dealloc, fill, is_filled, scaled};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const SIZES: [usize; 4] = [32, 128, 512, 4096];

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Runs `f` on a thread of its own that may make no system call, and ends the process well when it is through.
///
/// The thread cannot even end: it says that it is done, and waits to be ended along with the process.
fn confined(f: impl FnOnce() + Send + 'static) -> ! {
    static DONE: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(move || {
        kill_on_any_call().expect("a filter");
        f();
        DONE.store(true, Ordering::Release);
        loop {
            core::hint::spin_loop();
        }
    });
    while !DONE.load(Ordering::Acquire) {
        // Slow paths here refill this CPU's stacks, as the rest of a program does.
        let blocks: Vec<_> = (0..256).map(|n| (alloc(layout(SIZES[n % 4])), layout(SIZES[n % 4]))).collect();
        // SAFETY: ours.
        blocks.into_iter().for_each(|(block, layout)| unsafe { dealloc(block, layout) });
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("through");
    std::process::exit(0);
}

/// What the thread did, without anything that prints: it may not.
#[derive(Default)]
struct Tally {
    none: usize,
    hits: usize,
    pooled: usize,
    deferred: usize,
}

fn operations(count: usize, pool: &Pool) -> Tally {
    let mut random = Random::new(5);
    let mut tally = Tally::default();
    // On the stack: even a vector's growth could be a system call.
    let mut kept = [None::<(NonNull<u8>, Layout)>; 64];
    for _ in 0..count {
        let layout = layout(SIZES[random.below(4)]);
        let slot = &mut kept[random.below(64)];
        match slot.take() {
            Some((block, layout)) if random.below(4) == 0 => {
                let head = block.cast::<RcuHead>();
                // SAFETY: ours, filled by us, and large enough for the head.
                unsafe {
                    assert!(is_filled(block, layout.size()));
                    head.write(RcuHead::new());
                    rcu::free_nolock(head, block, layout);
                }
                tally.deferred += 1;
            }
            Some((block, layout)) => {
                // SAFETY: ours, filled by us.
                unsafe {
                    assert!(is_filled(block, layout.size()));
                    GLOBAL.free_nolock(block, layout);
                }
            }
            None => match GLOBAL.try_alloc_nolock(layout) {
                Some(block) => {
                    // SAFETY: ours.
                    unsafe { fill(block, layout.size()) };
                    *slot = Some((block, layout));
                    tally.hits += 1;
                }
                None => tally.none += 1,
            },
        }
        // At most one of the pool's eight is out.
        let block = pool.alloc().expect("fewer are out than the pool promises");
        // SAFETY: ours.
        unsafe {
            fill(block, pool.layout().size());
            assert!(is_filled(block, pool.layout().size()));
            pool.free(block);
        }
        tally.pooled += 1;
    }
    tally
}

/// A million turns, each an allocation or a free and a pool's allocation and free.
///
/// Positive control: `an_ordinary_allocation_is_killed` and `the_filter_kills_a_thread_that_reports`; or
/// `std::thread::yield_now` in `nolock::alloc`, which kills this.
#[test]
fn nothing_here_makes_a_system_call() {
    const NAME: &str = "nothing_here_makes_a_system_call";
    if child::role().is_some() {
        let _watchdog = Watchdog::new("no system calls");
        SIZES.iter().for_each(|&size| GLOBAL.charge_nolock(layout(size), 256).expect("a charge"));
        let pool = Pool::new(layout(256), 8).expect("a pool");
        // So that the reclaimer is there to work off what is deferred.
        rcu::retire(Box::new(String::from("started")));
        let count = scaled(1_000_000);
        confined(move || {
            let tally = operations(count, &pool);
            assert!(tally.hits > 0 && tally.deferred > 0 && tally.pooled == count);
            // Dropping it takes locks.
            core::mem::forget(pool);
        });
    }
    let output = child::run_plain(NAME, "confined");
    assert!(output.status.success() && output.stdout.ends_with(b"through\n"), "{}", child::text(&output));
}

/// An exhausted cache answers `None`, and does again after blocks came back and went; nothing is asked of the system.
#[test]
fn an_exhausted_cache_answers_none() {
    const NAME: &str = "an_exhausted_cache_answers_none";
    if child::role().is_some() {
        let layout = layout(320);
        GLOBAL.charge_nolock(layout, 8).expect("a charge");
        // SAFETY: the set is initialised; the thread stays on one CPU, so that there is one cache to exhaust.
        unsafe {
            let mut set: libc::cpu_set_t = core::mem::zeroed();
            libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
            assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
        }
        // Hands over what it found: the number of blocks in a first round and in a second.
        confined(move || {
            let mut blocks = [None; 4096];
            for _ in 0..2 {
                let mut count = 0;
                while let Some(block) = GLOBAL.try_alloc_nolock(layout) {
                    assert!(count < blocks.len(), "the cache has no end");
                    // SAFETY: ours.
                    unsafe { fill(block, layout.size()) };
                    blocks[count] = Some(block);
                    count += 1;
                }
                assert!(count >= 8, "less than was charged");
                assert!(GLOBAL.try_alloc_nolock(layout).is_none());
                // A layout that nothing was ever allocated of, and one that no cache serves.
                assert!(GLOBAL.try_alloc_nolock(Layout::from_size_align(7 << 10, 64).unwrap()).is_none());
                assert!(GLOBAL.try_alloc_nolock(Layout::from_size_align(300 << 10, 8).unwrap()).is_none());
                for block in blocks.iter_mut().filter_map(Option::take) {
                    // SAFETY: ours, filled above.
                    unsafe {
                        assert!(is_filled(block, layout.size()));
                        GLOBAL.free_nolock(block, layout);
                    }
                }
            }
        });
    }
    let output = child::run_plain(NAME, "confined");
    assert!(output.status.success() && output.stdout.ends_with(b"through\n"), "{}", child::text(&output));
}

/// The filter does what the tests above rely on: an allocation that has to map memory is the end.
#[test]
fn an_ordinary_allocation_is_killed() {
    const NAME: &str = "an_ordinary_allocation_is_killed";
    if child::role().is_some() {
        assert_ne!(GLOBAL.stats().mode, Mode::PerThread);
        confined(|| {
            core::hint::black_box(alloc(layout(64 << 20)));
        });
    }
    let output = child::run_plain(NAME, "confined");
    assert!(child::was_killed_by(&output, libc::SIGSYS), "{}", child::text(&output));
}

/// As little as one write is the end.
#[test]
fn the_filter_kills_a_thread_that_reports() {
    const NAME: &str = "the_filter_kills_a_thread_that_reports";
    if child::role().is_some() {
        confined(|| eprintln!("not to be seen"));
    }
    let output = child::run_plain(NAME, "confined");
    assert!(child::was_killed_by(&output, libc::SIGSYS), "{}", child::text(&output));
}
