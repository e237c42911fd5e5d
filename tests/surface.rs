//! The public surface as a program outside the crate writes it: every signature that others depend on, by type.
#![cfg(not(miri))]

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

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
