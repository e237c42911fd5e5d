//! The public surface as a program outside the crate writes it: every signature that others depend on, by type.
#![cfg(not(miri))]

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pcpalloc::rcu::{
    self, Backlog, BlockSource, Cookie, Domain, Heap, RcuCell, RcuHead, RcuReport, RcuStats, ReadGuard,
};
use pcpalloc::{
    AllocError, Config, ConfigError, Drain, DrainReport, PcpAlloc, Stats, TrimReport, Watermarks, ZoneInfo,
};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().limit(8 << 30).worker(true));

/// A source of one's own, outside the crate.
struct Passing;

impl BlockSource for Passing {
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        GLOBAL.try_alloc_nolock(layout)
    }

    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { GLOBAL.free_nolock(ptr, layout) }
    }
}

#[test]
fn the_heap() {
    const _: PcpAlloc = PcpAlloc::new();
    let layout = Layout::new::<[u64; 8]>();
    let charged: Result<(), AllocError> = GLOBAL.charge_nolock(layout, 16);
    charged.expect("memory");
    let block: Option<NonNull<u8>> = GLOBAL.try_alloc_nolock(layout);
    // SAFETY: allocated with this layout just now.
    unsafe { GLOBAL.free_nolock(block.expect("charged"), layout) };

    let Watermarks { min, low, high } = GLOBAL.watermarks();
    let set: Result<(), ConfigError> = GLOBAL.set_watermarks(Watermarks { min, low, high });
    set.expect("what is in force");
    let wrong = GLOBAL.set_watermarks(Watermarks { min: 0, low: 2 << 20, high: 1 << 20 }).expect_err("low above high");
    assert!(!wrong.to_string().is_empty());
    assert_eq!(GLOBAL.limit(), Some(8 << 30));
    GLOBAL.set_limit(Some(1)).expect_err("more is in use");
    GLOBAL.set_limit(None).expect("no limit");
    assert_eq!(GLOBAL.limit(), None);

    for scope in [Drain::Local, Drain::Cpu(0), Drain::All] {
        let _: DrainReport = GLOBAL.drain(scope);
    }
    let TrimReport { released, .. } = GLOBAL.trim();
    let stats: Stats = GLOBAL.stats();
    let Stats { in_use, percpu_cached, free_resident, metadata, resident, .. } = stats;
    assert!(in_use > 0 && in_use <= resident && metadata <= resident && free_resident <= resident);
    assert!(percpu_cached <= resident && released <= 1 << 40);
    let zones: ZoneInfo = GLOBAL.zoneinfo();
    for text in [
        stats.to_string(),
        zones.to_string(),
        GLOBAL.buddyinfo().to_string(),
        GLOBAL.slabinfo().to_string(),
        GLOBAL.vmstat().to_string(),
    ] {
        assert!(!text.is_empty());
    }
}

#[test]
fn deferral() {
    let guard: ReadGuard = rcu::read_lock();
    let nested = rcu::read_lock();
    drop((guard, nested));
    rcu::synchronize();
    rcu::synchronize_expedited();
    let cookie: Cookie = rcu::start_poll();
    cookie.wait();
    assert!(cookie.is_done());

    let _free: unsafe fn(NonNull<u8>, Layout) = rcu::free;
    let _free_nolock: unsafe fn(NonNull<RcuHead>, NonNull<u8>, Layout) = rcu::free_nolock;
    static CALLED: AtomicBool = AtomicBool::new(false);
    static HEAD: RcuHead = RcuHead::new();
    unsafe fn called(head: NonNull<RcuHead>) {
        assert_eq!(head, NonNull::from(&HEAD));
        CALLED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the head is used for nothing else, and what is called only looks at its address.
    unsafe { rcu::call(NonNull::from(&HEAD), called) };
    rcu::retire(Box::new(String::from("later")));
    rcu::barrier();
    assert!(CALLED.load(Ordering::Relaxed));
    let _: RcuReport = rcu::drain();
    let Backlog { low, high } = rcu::watermarks();
    rcu::set_watermarks(Backlog { low, high }).expect("what is in force");
    rcu::set_watermarks(Backlog { low: 2, high: 1 }).expect_err("low above high");
    let RcuStats { pending_pointers, pending_bytes, grace_periods, expedited, fallbacks, .. } = rcu::stats();
    assert_eq!((pending_pointers, pending_bytes), (0, 0));
    assert!(grace_periods > 0 && expedited > 0 && fallbacks < 1 << 40);

    let cell = RcuCell::new(1);
    let guard = rcu::read_lock();
    cell.replace(2);
    let seen: &i32 = cell.read(&guard);
    assert_eq!(*seen, 2);
    cell.update(|old| old + 1);
    drop(guard);
    assert_eq!(cell.into_inner(), 3);
}

#[test]
fn domains() {
    let domain: Domain<Heap> = Domain::new(Heap);
    drop(domain.read_lock());
    domain.synchronize();
    let own: Domain<Passing> = Domain::new(Passing);
    own.retire(Box::new([1u8; 100]));
    own.synchronize_expedited();
    own.barrier();
    assert_eq!(own.stats().pending_pointers, 0);
}

/// A source that counts what it is asked, and forbids the ordinary path.
#[derive(Default)]
struct Counting {
    out: AtomicUsize,
    asked: AtomicUsize,
}

impl BlockSource for Counting {
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        let block = Heap.try_alloc_nolock(layout);
        self.out.fetch_add(usize::from(block.is_some()), Ordering::Relaxed);
        block
    }

    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
        self.out.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's obligation.
        unsafe { Heap.free_nolock(ptr, layout) }
    }

    fn may_allocate(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// Whoever has a domain over any source says no more of it than that.
struct Holds<S: BlockSource> {
    domain: Domain<S>,
}

impl<S: BlockSource> Holds<S> {
    fn over(source: S) {
        let holds = Holds { domain: Domain::new(source) };
        (0..2000).for_each(|n| holds.domain.retire(Box::new([n; 4])));
        holds.domain.barrier();
        assert_eq!(holds.domain.stats().pending_pointers, 0);
    }
}

/// A source may be the heap's handle, or lie behind a pointer, which says of everything what the source says.
///
/// Red if a pointer answers for itself: in `may_allocate` of `Arc<S>` (`src/rcu/source.rs`), return true.
#[test]
fn sources() {
    Holds::over(GLOBAL);
    let borrowed: &'static PcpAlloc = &GLOBAL;
    Holds::<&PcpAlloc>::over(borrowed);
    Holds::over(Box::new(Passing) as Box<dyn BlockSource>);
    Holds { domain: Domain::default() }.domain.retire(Box::new(1));
    static STATIC: Counting = Counting { out: AtomicUsize::new(0), asked: AtomicUsize::new(0) };
    let shared = Arc::new(Counting::default());
    let boxed: Box<dyn BlockSource> = Box::new(shared.clone());
    for pointer in [&boxed, &(Box::new(&STATIC) as Box<dyn BlockSource>)] {
        let layout = Layout::new::<u64>();
        GLOBAL.charge_nolock(layout, 4).expect("memory");
        let block = pointer.try_alloc_nolock(layout).expect("charged");
        assert_eq!(shared.out.load(Ordering::Relaxed) + STATIC.out.load(Ordering::Relaxed), 1);
        // SAFETY: from the line above, with this layout, and not used any more.
        unsafe { pointer.free_nolock(block, layout) };
        assert_eq!(shared.out.load(Ordering::Relaxed) + STATIC.out.load(Ordering::Relaxed), 0);
        assert!(!pointer.may_allocate());
    }
    assert_eq!((shared.asked.load(Ordering::Relaxed), STATIC.asked.load(Ordering::Relaxed)), (1, 1));
    Holds::over(shared.clone());
    Holds::over(&STATIC);
}

/// What the heap answers can be printed in a line, made from nothing, and compared.
///
/// Red if two domains' cookies are one: in `eq` of `Cookie` (`src/rcu/cookie.rs`), compare the numbers only. Red if a default is not
/// what is in force: in `default` of `Backlog` (`src/rcu/stats.rs`), halve `low`.
#[test]
fn answers() {
    let domain: Domain<Heap> = Domain::default();
    assert_eq!(domain.watermarks(), Backlog::default());
    assert_eq!(Watermarks::default(), Watermarks { min: 0, low: 0, high: 0 });
    domain.retire(Box::new([0u8; 100]));
    let report: RcuReport = domain.drain();
    assert_eq!(report.to_string(), format!("{} freed, {} B in blocks", report.freed, report.freed_bytes));
    let none = "0 pending, 0 B, 0 freed, 0 called, 0 leaked, 0 grace periods (median 0ns, 99 % 0ns), \
                0 expedited, 0 waits at the high mark, 0 stalls";
    assert_eq!(RcuStats::default().to_string(), none);
    assert!(domain.stats().to_string().contains(" grace periods (median "));
    assert_eq!(DrainReport::default().to_string(), "0 B drained, 0 CPUs out of reach");
    let none = "0 B given back, 0 B drained first, 0 CPUs out of reach, 0 B free and resident";
    assert_eq!(TrimReport::default().to_string(), none);

    let (one, other) = (Domain::new(Heap), Domain::new(Heap));
    let (cookie, same): (Cookie, Cookie) = (one.start_poll(), other.start_poll());
    assert_eq!(cookie, cookie.clone());
    assert_ne!(cookie, same, "of two domains");
    cookie.wait();
    assert_ne!(cookie, one.start_poll(), "a later one");

    // Whoever has a cell says nothing of what is in it.
    struct Has<T> {
        cell: RcuCell<T>,
    }
    assert_eq!(Has { cell: RcuCell::new(5) }.cell.into_inner(), 5);
}
