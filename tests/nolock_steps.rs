//! Nolock allocation after every single instruction of the ordinary operations, on the same thread.
//!
//! Each operation is stepped through as far as its budget goes, then runs on at full speed: without optimisation
//! some take a million steps. An optimised build, or `PCPALLOC_TEST_SCALE`, goes through all of them.
#![cfg(all(target_arch = "x86_64", not(miri)))]

mod rcu_common;

use core::ffi::{c_int, c_void};
use std::alloc::Layout;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use pcpalloc::rcu::{self, RcuHead};
use pcpalloc::{Drain, Mode, PcpAlloc};
use rcu_common::signals::{handle, step_through};
use rcu_common::{Watchdog, alloc, child, dealloc, fill, is_filled, scaled};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const LAYOUT: Layout = match Layout::from_size_align(192, 8) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};

/// Steps that are left to the operation.
static BUDGET: AtomicUsize = AtomicUsize::new(0);
static STEPS: AtomicUsize = AtomicUsize::new(0);
static HITS: AtomicUsize = AtomicUsize::new(0);
static CORRUPT: AtomicUsize = AtomicUsize::new(0);
/// The block that the handler got last, and keeps until it gets another.
static KEPT: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// What the handler's blocks are full of, which nobody else's are.
const MARK: u8 = 0xe7;

/// Allocates, fills and keeps a block, and frees the one that it got before: in turn at once, and after a grace period. So
/// it has each for as long as the operation takes from one step to a later one.
extern "C" fn on_step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    if BUDGET.fetch_sub(1, Ordering::Relaxed) == 1 {
        // SAFETY: the kernel passes a `ucontext_t` to a handler with SA_SIGINFO; its flags are those to return with.
        unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_EFL as usize] &= !0x100 };
    }
    let step = STEPS.fetch_add(1, Ordering::Relaxed);
    let Some(block) = GLOBAL.try_alloc_nolock(LAYOUT) else { return };
    HITS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: ours, and of this size.
    unsafe { block.as_ptr().write_bytes(MARK, LAYOUT.size()) };
    let Some(block) = NonNull::new(KEPT.swap(block.as_ptr(), Ordering::Relaxed)) else { return };
    // SAFETY: ours since an earlier step; large and aligned enough for the head.
    unsafe {
        if !is_marked(block) {
            CORRUPT.fetch_add(1, Ordering::Relaxed);
        }
        if step.is_multiple_of(500) {
            let head = block.cast::<RcuHead>();
            head.write(RcuHead::new());
            rcu::free_nolock(head, block, LAYOUT);
        } else {
            GLOBAL.free_nolock(block, LAYOUT);
        }
    }
}

/// Whether one of the handler's blocks still holds what the handler put there.
///
/// # Safety
/// The block is the handler's.
unsafe fn is_marked(block: NonNull<u8>) -> bool {
    // SAFETY: the caller's obligation; blocks are as large.
    unsafe { core::slice::from_raw_parts(block.as_ptr(), LAYOUT.size()) }.iter().all(|&byte| byte == MARK)
}

/// Enough blocks to run the stack empty and then full, so that both slow paths are stepped through.
fn to_and_fro(count: usize) {
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        let block = alloc(LAYOUT);
        // SAFETY: ours.
        unsafe { fill(block, LAYOUT.size()) };
        blocks.push(block);
    }
    for block in blocks {
        // SAFETY: ours, and not used any more.
        unsafe {
            assert!(is_filled(block, LAYOUT.size()), "a handler was given a block that is in use");
            dealloc(block, LAYOUT);
        }
    }
}

fn defer(count: usize) {
    for _ in 0..count {
        // SAFETY: a block that nobody else knows.
        unsafe { rcu::free(alloc(LAYOUT), LAYOUT) };
    }
}

fn large() {
    let layout = Layout::from_size_align(600 << 10, 64).unwrap();
    // SAFETY: ours.
    unsafe { dealloc(alloc(layout), layout) };
}

/// Runs `f` in single steps and says how often the handler got something.
fn stepped(name: &str, f: impl FnOnce()) {
    // Handlers find something, and the operation does not.
    to_and_fro(64);
    let (steps, hits) = (STEPS.load(Ordering::Relaxed), HITS.load(Ordering::Relaxed));
    BUDGET.store(scaled(15_000), Ordering::Relaxed);
    step_through(f);
    let (steps, hits) = (STEPS.load(Ordering::Relaxed) - steps, HITS.load(Ordering::Relaxed) - hits);
    println!("{name}: {steps} steps, {hits} allocations");
    assert!(steps > 100 && hits > 0, "{name} was not stepped through");
}

fn every_operation() {
    let _watchdog = Watchdog::new("steps");
    let in_use = GLOBAL.stats().in_use;
    handle(libc::SIGTRAP, on_step);
    // The thread's slot, the reclaimer and the code that is only ever run once.
    drop(rcu::read_lock());
    defer(1);
    to_and_fro(8);
    GLOBAL.charge_nolock(LAYOUT, 64).unwrap();
    stepped("alloc and dealloc", || to_and_fro(5));
    stepped("drain", || assert_eq!(GLOBAL.drain(Drain::All).unreachable_cpus, 0));
    stepped("refill after a drain", || to_and_fro(12));
    stepped("charge", || GLOBAL.charge_nolock(LAYOUT, 16).unwrap());
    stepped("rcu::free", || defer(3));
    stepped("read_lock", || (0..10).for_each(|_| drop(rcu::read_lock())));
    stepped("rcu::synchronize_expedited", rcu::synchronize_expedited);
    stepped("rcu::drain", || _ = core::hint::black_box(rcu::drain()));
    stepped("a mapping", large);
    stepped("trim", || assert_eq!(GLOBAL.trim().unreachable_cpus, 0));
    stepped("no charge", || GLOBAL.charge_nolock(LAYOUT, 0).unwrap());
    if let Some(block) = NonNull::new(KEPT.swap(null_mut(), Ordering::Relaxed)) {
        // SAFETY: the handler's last, which nobody uses any more.
        unsafe {
            assert!(is_marked(block), "the handler was given a block that is in use");
            dealloc(block, LAYOUT);
        }
    }
    rcu::barrier();
    GLOBAL.drain(Drain::All);
    let stats = GLOBAL.stats();
    assert_eq!(CORRUPT.load(Ordering::Relaxed), 0);
    assert!(HITS.load(Ordering::Relaxed) > 0);
    assert_eq!((stats.nolock_deferred, rcu::stats().pending_pointers), (0, 0));
    let lost = stats.in_use.saturating_sub(in_use);
    assert!(lost < 256 << 10, "{lost} bytes are in use that were not before");
}

/// Positive control: a lock in `nolock::alloc` that slow paths take, too, waits for ever at the first step inside one.
#[test]
fn a_handler_may_come_between_any_two_instructions() {
    every_operation();
}

/// Without rseq the stacks are plain memory that a handler must keep away from while its thread works on it.
///
/// Positive control: with `thread::with_region` that does not look at the busy mark, a step between the load and
/// the store of a stack's top has the handler given the block that the thread is taking.
#[test]
fn a_handler_may_come_between_any_two_instructions_without_rseq() {
    const NAME: &str = "a_handler_may_come_between_any_two_instructions_without_rseq";
    if child::role().is_some() {
        assert_eq!(GLOBAL.stats().mode, Mode::PerThread);
        let block = NonNull::from(Box::leak(Box::new([0u8; 192]))).cast::<u8>();
        // SAFETY: from a box of this layout's size and class.
        unsafe { dealloc(block, LAYOUT) };
        return every_operation();
    }
    let output = child::run_without_rseq(NAME, "steps");
    print!("{}", child::text(&output));
    child::assert_passed(&output);
}
