//! What RCU does when there is no page, too much waits, a reader stalls, a call panics, or nothing more comes.
#![cfg(not(miri))]

mod rcu_common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, Backlog, BlockSource, Domain, Heap, RcuHead};
use rcu_common::{Watchdog, alloc, alone, child, until};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const LAYOUT: Layout = match Layout::from_size_align(96, 8) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};
/// The page's bytes that a formula in the module's documentation calls P.
const P: usize = 507 * 4096;

/// Hands out so many pages, and then none.
struct Meagre {
    left: AtomicUsize,
    refused: AtomicUsize,
    ordinary: bool,
}

impl Meagre {
    fn new(pages: usize, ordinary: bool) -> Meagre {
        Meagre { left: AtomicUsize::new(pages), refused: AtomicUsize::new(0), ordinary }
    }
}

/// So that a test can look at its source while the domain has it.
impl BlockSource for &'static Meagre {
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        let took = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if took.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(alloc(layout))
    }

    unsafe fn free_nolock(&self, block: NonNull<u8>, layout: Layout) {
        self.left.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligation.
        unsafe { GLOBAL.free_nolock(block, layout) };
    }

    fn may_allocate(&self) -> bool {
        self.ordinary
    }
}

fn meagre(pages: usize, ordinary: bool) -> (&'static Meagre, Domain<&'static Meagre>) {
    let source: &'static Meagre = Box::leak(Box::new(Meagre::new(pages, ordinary)));
    (source, Domain::new(source))
}

fn free_one<S: BlockSource>(domain: &Domain<S>) {
    // SAFETY: a block that nobody else knows.
    unsafe { domain.free(alloc(LAYOUT), LAYOUT) };
}

/// Without a page from the hook one is had by the ordinary path, if that is allowed: nothing waits, nothing is lost.
///
/// Positive control: `Core::new_page` without its last line has the free wait for a grace period of its own.
#[test]
fn a_page_is_had_by_the_ordinary_path() {
    let (source, domain) = meagre(0, true);
    (0..2000).for_each(|_| free_one(&domain));
    let stats = domain.stats();
    assert!(source.refused.load(Ordering::Relaxed) > 0 && stats.fallbacks > 0 && stats.blocks > 0);
    domain.barrier();
    let stats = domain.stats();
    assert_eq!((stats.freed, stats.pending_pointers, stats.leaked), (2000, 0, 0));
}

/// Without any page a free waits for a grace period and frees the block itself.
///
/// Positive control: `Core::free_without_page` that returns at once, and the counts of freed objects differ.
#[test]
fn without_any_page_a_free_waits() {
    let (source, domain) = meagre(0, false);
    for n in 1..=20 {
        let periods = domain.stats().grace_periods;
        free_one(&domain);
        let stats = domain.stats();
        assert_eq!((stats.freed, stats.pending_pointers, stats.blocks, stats.leaked), (n, 0, 0, 0));
        assert!(stats.grace_periods > periods, "freed before a grace period");
    }
    assert!(source.refused.load(Ordering::Relaxed) >= 20);
    // Others wait for the same grace periods, not one after the other.
    std::thread::scope(|scope| (0..8).for_each(|_| _ = scope.spawn(|| (0..10).for_each(|_| free_one(&domain)))));
    assert_eq!(domain.stats().freed, 100);
}

/// A reader keeps the waiting free from freeing: what is freed one by one is freed no earlier.
#[test]
fn without_any_page_a_free_waits_for_readers() {
    let _watchdog = Watchdog::new("a free waits for readers");
    let (_, domain) = meagre(0, false);
    let freed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guard = domain.read_lock();
        scope.spawn(|| {
            free_one(&domain);
            freed.store(true, Ordering::Release);
        });
        // Long enough for one that does not wait, most of the time.
        std::thread::sleep(Duration::from_millis(50));
        assert!(!freed.load(Ordering::Acquire) && domain.stats().freed == 0, "freed while a reader may look");
        drop(guard);
    });
    assert_eq!(domain.stats().freed, 1);
}

/// Inside a section one cannot wait: the block is lost, counted, and nothing else is.
///
/// Positive control: `reads` passed on as false panics or hangs here.
#[test]
fn inside_a_section_what_cannot_be_noted_is_counted() {
    let (_, domain) = meagre(0, false);
    let guard = domain.read_lock();
    (0..5).for_each(|_| free_one(&domain));
    assert_eq!((domain.stats().leaked, domain.stats().freed), (5, 0));
    drop(guard);
    free_one(&domain);
    assert_eq!((domain.stats().leaked, domain.stats().freed), (5, 1));
}

/// The two-argument form needs no page at all, inside a section or out of it.
#[test]
fn two_arguments_need_no_page() {
    let (source, domain) = meagre(0, false);
    let guard = domain.read_lock();
    for _ in 0..1000 {
        let block = alloc(LAYOUT);
        let head = block.cast::<RcuHead>();
        // SAFETY: a block that nobody else knows, with room for the head.
        unsafe {
            head.write(RcuHead::new());
            domain.free_nolock(head, block, LAYOUT);
        }
    }
    let stats = domain.stats();
    assert_eq!((stats.chained, stats.pending_pointers, stats.pending_bytes), (1000, 1000, 1000 * LAYOUT.size()));
    assert_eq!(source.refused.load(Ordering::Relaxed), 0, "no page was asked for");
    drop(guard);
    assert_eq!(domain.drain().freed, 1000);
    assert_eq!((domain.stats().pending_bytes, domain.stats().leaked), (0, 0));
}

/// A large block for which no note is to be had is freed after a grace period of its own, and counted.
///
/// Red if it is not counted: in `Core::free_large` (`src/rcu/defer.rs`), leave out the line about `freed`.
#[test]
fn without_a_note_a_large_free_waits() {
    const NAME: &str = "without_a_note_a_large_free_waits";
    if child::role().is_some() {
        let large = Layout::from_size_align(64 << 10, 8).unwrap();
        let block = alloc(large);
        rcu::barrier();
        let before = rcu::stats();
        GLOBAL.set_limit(Some(8 << 20)).unwrap();
        // Everything there is, linked through itself: the note's class last.
        let mut taken = std::ptr::null_mut::<*mut u8>();
        for size in [4096, size_of::<RcuHead>()] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            loop {
                // SAFETY: the size is not 0; a block has room for a pointer.
                unsafe {
                    let block = GLOBAL.alloc(layout).cast::<*mut u8>();
                    if block.is_null() {
                        break;
                    }
                    block.write(taken.cast());
                    taken = block;
                }
            }
        }
        // SAFETY: a block that nobody else knows.
        unsafe { rcu::free(block, large) };
        let after = rcu::stats();
        GLOBAL.set_limit(None).unwrap();
        assert_eq!((after.fallbacks, after.pending_pointers), (before.fallbacks + 1, 0), "there was a note");
        assert_eq!(after.freed, before.freed + 1);
        return;
    }
    child::assert_passed(&child::run_plain(NAME, "waits"));
}

/// One page is enough for any number of frees: it is recycled, by whoever defers if nobody else does it.
///
/// Red if nobody helps: in `new_page` (`src/rcu/defer.rs`), change `self.poll(source, Collect::Aged)` to nothing, and a free
/// is a fallback of its own for as long as the reclaimer takes.
#[test]
fn one_page_is_recycled() {
    let (_, domain) = meagre(1, false);
    (0..20_000).for_each(|_| free_one(&domain));
    domain.barrier();
    let stats = domain.stats();
    assert_eq!((stats.freed, stats.pending_pointers, stats.leaked), (20_000, 0, 0));
    assert!(stats.blocks <= 1);
    // One whenever the page is full, every 507 frees, and some more if the reclaimer is at it just then.
    assert!(stats.fallbacks < 200, "{stats:?}");
}

/// Pages go back to where they came from when the domain goes.
#[test]
fn a_domain_gives_its_pages_back() {
    let (source, domain) = meagre(64, false);
    (0..20_000).for_each(|_| free_one(&domain));
    drop(domain);
    until(|| source.left.load(Ordering::Relaxed) == 64);
}

/// What is held back stays within the formula of the module's documentation, however fast it comes and however
/// long a reader dawdles; and nothing is held back for longer than the reader takes.
///
/// Positive control: `Core::hold_back` that returns at once.
fn backlog_is_bounded(defer: impl Fn(&Domain<Heap>) + Sync, largest: usize) {
    const THREADS: usize = 3;
    let _watchdog = Watchdog::new("backlog");
    let domain = Domain::new(Heap);
    let high = 4 << 20;
    domain.set_watermarks(Backlog { low: high / 4, high }).unwrap();
    assert_eq!(domain.watermarks(), Backlog { low: high / 4, high });
    let (stop, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    let bound = high + 3 * P + THREADS * largest.max(P);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    defer(&domain);
                    let pending = domain.stats().pending_bytes;
                    seen.fetch_max(pending, Ordering::Relaxed);
                    assert!(pending <= bound, "{pending} bytes wait, and the bound is {bound}");
                }
            });
        }
        for _ in 0..20 {
            let guard = domain.read_lock();
            // Until all of them wait for this reader.
            let waits = domain.stats().waits;
            until(|| domain.stats().waits > waits || domain.stats().pending_bytes >= high);
            std::thread::sleep(Duration::from_millis(5));
            drop(guard);
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    domain.barrier();
    let stats = domain.stats();
    println!(
        "most {} of {bound} bytes; {} waits, {} freed",
        seen.into_inner(),
        stats.waits,
        stats.freed + stats.called
    );
    assert!(stats.waits > 0);
    assert_eq!((stats.pending_bytes, stats.pending_pointers), (0, 0));
}

#[test]
fn the_backlog_of_small_blocks_is_bounded() {
    backlog_is_bounded(|domain| (0..64).for_each(|_| free_one(domain)), 0);
}

#[test]
fn the_backlog_of_pages_and_large_blocks_is_bounded() {
    let large = 3 << 20;
    backlog_is_bounded(
        |domain| {
            for size in [4096, large] {
                let layout = Layout::from_size_align(size, 8).unwrap();
                // SAFETY: a block that nobody else knows.
                unsafe { domain.free(alloc(layout), layout) };
            }
        },
        large,
    );
}

#[test]
fn the_backlog_of_values_with_destructors_is_bounded() {
    struct Value([u8; 2000], String);
    backlog_is_bounded(
        |domain| {
            domain.retire(Box::new(Value([1; 2000], String::from("dropped"))));
        },
        4096,
    );
    let _ = |value: Value| (value.0, value.1);
}

/// The default domain: the same bound, with every CPU's page.
#[test]
fn the_backlog_of_the_default_domain_is_bounded() {
    let _alone = alone();
    let _watchdog = Watchdog::new("backlog");
    let before = rcu::watermarks();
    let high = 2 << 20;
    rcu::set_watermarks(Backlog { low: 1 << 20, high }).unwrap();
    // SAFETY: sysconf has no preconditions.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) } as usize;
    let layout = Layout::from_size_align(4096, 8).unwrap();
    let (threads, stop) = (3, AtomicBool::new(false));
    let bound = high + (2 * cpus + 1 + threads) * P;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: a block that nobody else knows.
                    (0..8).for_each(|_| unsafe { rcu::free(alloc(layout), layout) });
                    let pending = rcu::stats().pending_bytes;
                    assert!(pending <= bound, "{pending} bytes wait, and the bound is {bound}");
                }
            });
        }
        for _ in 0..10 {
            let guard = rcu::read_lock();
            let waits = rcu::stats().waits;
            until(|| rcu::stats().waits > waits || rcu::stats().pending_bytes >= high);
            std::thread::sleep(Duration::from_millis(5));
            drop(guard);
        }
        stop.store(true, Ordering::Relaxed);
    });
    rcu::set_watermarks(before).unwrap();
    rcu::barrier();
    assert!(rcu::stats().waits > 0);
    assert_eq!(rcu::stats().pending_bytes, 0);
}

#[test]
fn marks_that_contradict_each_other_are_refused() {
    let before = rcu::watermarks();
    let error = rcu::set_watermarks(Backlog { low: 2, high: 1 }).unwrap_err();
    assert!(error.to_string().contains("low is above high"), "{error}");
    assert_eq!(rcu::watermarks(), before, "a refused setting changes nothing");
    let domain = Domain::new(Heap);
    assert!(domain.set_watermarks(Backlog { low: 2, high: 1 }).is_err());
    // Marks that meet are none to contradict each other, nor are marks of nothing at all.
    assert!(domain.set_watermarks(Backlog { low: 0, high: 0 }).is_ok());
    (0..2000).for_each(|_| free_one(&domain));
    domain.barrier();
    assert_eq!(domain.stats().freed, 2000);
}

/// A single free is done without any other following it: its page ages.
///
/// Positive controls: `Core::collect` that never finds pages to have aged; `free_slow` without `arm`.
#[test]
fn what_was_freed_last_does_not_wait_for_more() {
    let _alone = alone();
    let _watchdog = Watchdog::new("age");
    rcu::barrier();
    let freed = rcu::stats().freed;
    // SAFETY: a block that nobody else knows.
    unsafe { rcu::free(alloc(LAYOUT), LAYOUT) };
    until(|| rcu::stats().freed == freed + 1);
    let domain = Domain::new(Heap);
    free_one(&domain);
    until(|| domain.stats().freed == 1);
    // Long enough for the reclaimers to have gone to sleep, and the pages to have been taken back.
    std::thread::sleep(Duration::from_millis(1600));
    // SAFETY: as above.
    unsafe { rcu::free(alloc(LAYOUT), LAYOUT) };
    free_one(&domain);
    until(|| rcu::stats().freed == freed + 2 && domain.stats().freed == 2);
}

/// What threads have deferred is freed although they have ended, with their pages part-filled.
#[test]
fn threads_may_end_with_frees_under_way() {
    let _alone = alone();
    let _watchdog = Watchdog::new("thread exit");
    rcu::barrier();
    let freed = rcu::stats().freed;
    for _ in 0..50 {
        std::thread::spawn(|| {
            drop(rcu::read_lock());
            // SAFETY: a block that nobody else knows.
            unsafe { rcu::free(alloc(LAYOUT), LAYOUT) };
        })
        .join()
        .unwrap();
    }
    until(|| rcu::stats().freed == freed + 50);
}

/// What waits is counted from the first block on, whatever page it is in.
///
/// Red if pages that fill are left out: in `stats` (`src/rcu/core.rs`), leave out `filling_bytes`.
#[test]
fn what_waits_is_counted_in_pages_that_fill() {
    let _alone = alone();
    rcu::barrier();
    let layout = Layout::from_size_align(4000, 8).unwrap();
    let section = rcu::read_lock();
    let before = rcu::stats();
    // SAFETY: blocks that nobody else knows.
    (0..5).for_each(|_| unsafe { rcu::free(alloc(layout), layout) });
    let stats = rcu::stats();
    drop(section);
    let pointers = stats.pending_pointers - before.pending_pointers;
    let bytes = stats.pending_bytes - before.pending_bytes;
    assert!(pointers == 5 && bytes >= 5 * 4000, "{pointers} blocks, {bytes} bytes");
    rcu::barrier();
}
