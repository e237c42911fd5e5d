//! Who looks at allocations and frees: the profiler, and whoever wants to serve some blocks from elsewhere.
//!
//! While nobody does, the fast paths are as ever and the slow paths test one flag. While somebody does, frees and due
//! samples come by the slow paths (`percpu/observed.rs`) and from there to the clients here.
//!
//! # How to be a client
//!
//! ```text
//! struct Guard;
//! impl observe::Client for Guard { … }
//! static GUARD: &dyn observe::Client = &Guard;
//!
//! observe::start(Role::Guard, &GUARD, Rate::Blocks(5000))?;      // one block in 5000, at random
//! observe::stop(Role::Guard);                                    // when none of its blocks is in use any more
//! ```
//!
//! 1. [`Client::sampled`] is told of a block that was allocated and due, by the thread that allocated it, with no lock
//!    of the allocator held. It returns that block, after [`note`] if it wants to hear of its free, or another one of its
//!    own making, which the program gets instead: the first then goes back.
//! 2. [`Client::freed`] is told of every free of a block on a page on which some block has been noted, before anything
//!    is done with it. It finds out whether the block is one of its own, calls [`forget`] if so, and returns whether the
//!    block is no block of the heap, so that nobody else touches it.
//! 3. A client that serves blocks from elsewhere says so in [`Client::owns`], so that a resize copies them. The C
//!    interface asks tags instead of layouts (`capi/`), so it has to ask `owns` before it believes them.
//!
//! Callbacks may be called by several threads at once. They must not allocate or free by this heap. Sizes are those of
//! blocks: a class's own, where one serves the request. A client of [`Role::Guard`] is asked first, so that the profiler
//! sees the address that the program gets.

#[cfg(feature = "debug")]
pub mod count;
pub(crate) mod table;

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::lock::Lock;
use crate::percpu::observed::{self, UNIT};
use crate::size_class::PAGE_SHIFT;
use crate::{percpu, sys};

/// What is asked of those who look.
pub(crate) trait Client: Sync {
    /// `block` of `size` bytes, whose chance to be sampled was `chance`, was allocated and is due. Returns what the
    /// program is to get, not null.
    fn sampled(&self, block: *mut u8, size: usize, chance: f64) -> *mut u8;

    /// `block` is being freed, or has left its address; whether it is this client's own and has been taken care of. With
    /// `nolock` no lock may be waited for and no system call made.
    fn freed(&self, block: *mut u8, nolock: bool) -> bool;

    /// `block` waits for a grace period; it is freed after it. No lock may be waited for.
    fn deferred(&self, _block: *mut u8) {}

    /// Whether `block` is one that [`Client::sampled`] returned in place of another.
    fn owns(&self, _block: *mut u8) -> bool {
        false
    }
}

/// Who.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Role {
    #[allow(dead_code)]
    Guard,
    Profiler,
}

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    /// A sample in so many bytes on average, at least 1.
    Bytes(usize),
    /// A sample in so many blocks on average, at least 1.
    #[allow(dead_code)]
    Blocks(usize),
}

struct Slot {
    /// Null if nobody has the role. A pointer to a pointer, since the latter is two words.
    client: AtomicPtr<&'static dyn Client>,
    byte_rate: AtomicU64,
    block_rate: AtomicU64,
}

/// By role.
static SLOTS: [Slot; 2] = [const { Slot::new() }; 2];

/// Callbacks that are under way.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// Runs what calls callbacks.
fn under_way<R>(f: impl FnOnce() -> R) -> R {
    // Sequentially consistent, as are the loads of clients, and in `stop` likewise: either `stop` sees that somebody is
    // under way, or whoever comes later sees that there is no client. The release is paired with the acquire in `stop`.
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    let result = f();
    UNDER_WAY.fetch_sub(1, Ordering::Release);
    result
}

/// Held by whoever changes who looks.
static CHANGING: Lock<()> = Lock::new(());
/// Rates are being changed, and what is due was found to be at those before: nobody is asked. Relaxed: a thread that has
/// found a block due before and asks afterwards has the one block in its hands.
static BETWEEN_RATES: AtomicBool = AtomicBool::new(false);

/// Pages on which blocks have been noted, by hash: how many, or 255 for more than can be counted. Relaxed: whoever frees
/// a block has it from whoever noted it.
static NOTED: [AtomicU8; 1 << NOTED_BITS] = [const { AtomicU8::new(0) }; 1 << NOTED_BITS];
const NOTED_BITS: u32 = 14;

/// Frees cannot be seen: there is no way to fence another CPU (`membarrier`, Linux 5.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unobservable;

/// Whether anybody looks.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    observed::is_on()
}

impl Slot {
    const fn new() -> Slot {
        Slot { client: AtomicPtr::new(null_mut()), byte_rate: AtomicU64::new(0), block_rate: AtomicU64::new(0) }
    }

    fn client(&self) -> Option<&'static dyn Client> {
        // Sequentially consistent: see `under_way`. SAFETY: a pointer to a static.
        unsafe { self.client.load(Ordering::SeqCst).as_ref() }.copied()
    }

    fn chance(&self, size: usize) -> f64 {
        let (bytes, blocks) = (self.byte_rate.load(Ordering::Relaxed), self.block_rate.load(Ordering::Relaxed));
        let hazard = observed::hazard(size, bytes, blocks);
        -libm::expm1(-(hazard as f64) / UNIT as f64)
    }

    fn set(&self, client: &'static &'static dyn Client, rate: Rate) {
        let rate_of = |mean: usize| (UNIT / mean.max(1) as u64).max(1);
        let (bytes, blocks) = match rate {
            Rate::Bytes(mean) => (rate_of(mean), 0),
            Rate::Blocks(mean) => (0, rate_of(mean)),
        };
        self.set_rates(bytes, blocks);
        // Sequentially consistent: see `under_way`. After the rates, so that nobody is asked who has none yet.
        self.client.store(core::ptr::from_ref(client).cast_mut(), Ordering::SeqCst);
    }

    fn clear(&self) {
        // As in `set`. Before the rates, so that nobody is asked who has none any more.
        self.client.store(null_mut(), Ordering::SeqCst);
        self.set_rates(0, 0);
    }

    fn set_rates(&self, bytes: u64, blocks: u64) {
        // Relaxed, both: whoever reads them in between finds another chance, or none, with which nobody is asked.
        self.byte_rate.store(bytes, Ordering::Relaxed);
        self.block_rate.store(blocks, Ordering::Relaxed);
    }
}

/// Has `client` look from now on, or changes how often it does. The heap is up.
pub(crate) fn start(role: Role, client: &'static &'static dyn Client, rate: Rate) -> Result<(), Unobservable> {
    let _changing = CHANGING.lock();
    let slot = &SLOTS[role as usize];
    BETWEEN_RATES.store(true, Ordering::Relaxed);
    slot.set(client, rate);
    apply_rates();
    let is_on = observed::is_on() || observed::observe(true);
    if is_on {
        decide_anew();
    } else {
        slot.clear();
        apply_rates();
    }
    BETWEEN_RATES.store(false, Ordering::Relaxed);
    if is_on { Ok(()) } else { Err(Unobservable) }
}

/// Has every block be decided about at the rates in force before it is handed out: those on stacks were when they came there,
/// at other rates, or before anybody looked. (Those in batches between CPUs are when they come to a stack.)
fn decide_anew() {
    for cpu in 0..percpu::cpus() {
        // One that cannot be reached, which takes a filter against fences that came late, keeps what was decided.
        percpu::drain_cpu(cpu);
    }
}

/// Nobody looks in this role from now on. Waits for callbacks that are under way, so it is not for one of them.
pub(crate) fn stop(role: Role) {
    let _changing = CHANGING.lock();
    BETWEEN_RATES.store(true, Ordering::Relaxed);
    SLOTS[role as usize].clear();
    apply_rates();
    if SLOTS.iter().all(|slot| slot.client().is_none()) {
        observed::observe(false);
    } else {
        decide_anew();
    }
    BETWEEN_RATES.store(false, Ordering::Relaxed);
    // Acquire, paired with the release in `under_way`: what callbacks did is seen.
    while UNDER_WAY.fetch_add(0, Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
}

fn apply_rates() {
    let sum = |rate: fn(&Slot) -> &AtomicU64| SLOTS.iter().map(|slot| rate(slot).load(Ordering::Relaxed)).sum();
    observed::set_rates(sum(|slot| &slot.byte_rate), sum(|slot| &slot.block_rate));
}

/// Locks or unlocks for `fork`; before every lock of the heap.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire { CHANGING.acquire() } else { CHANGING.release() }
}

/// In the child of a `fork`, which has but the thread that forked, and that from no callback.
pub(crate) fn after_fork() {
    UNDER_WAY.store(0, Ordering::SeqCst);
}

fn note_of(block: *mut u8) -> &'static AtomicU8 {
    // Fibonacci hashing (Knuth, TAOCP 3, 6.4) of the page.
    let page = (block as usize >> PAGE_SHIFT) as u64;
    &NOTED[(page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - NOTED_BITS)) as usize]
}

/// Has frees of this block be told to clients.
pub(crate) fn note(block: *mut u8) {
    let _ = note_of(block).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1));
}

/// Takes a [`note`] back.
pub(crate) fn forget(block: *mut u8) {
    let less = |n: u8| if n == u8::MAX { None } else { n.checked_sub(1) };
    let _ = note_of(block).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// A block of `size` bytes is due: what the program is to get in its place, perhaps.
#[cold]
#[inline(never)]
pub(crate) fn sampled(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() || BETWEEN_RATES.load(Ordering::Relaxed) { block } else { ask(&SLOTS, block, size) }
}

fn ask(slots: &[Slot; 2], block: *mut u8, size: usize) -> *mut u8 {
    let chances = slots.each_ref().map(|slot| slot.chance(size));
    // At least one is due. Which, given that: the first with its share of the chance that any is, the second for sure if
    // the first is not, else by itself.
    let any = 1.0 - (1.0 - chances[0]) * (1.0 - chances[1]);
    let first = observed::uniform() * any < chances[0];
    let second = !first || observed::uniform() < chances[1];
    let mut given = block;
    for ((slot, chance), due) in slots.iter().zip(chances).zip([first, second]) {
        // Without a chance nothing is due: whoever it was for has stopped since the block was found to be.
        if due && chance > 0.0 {
            given = under_way(|| slot.client().map_or(given, |client| client.sampled(given, size, chance)));
        }
    }
    given
}

/// Whether frees of this block may have to be told to clients.
#[inline(always)]
pub(crate) fn is_noted(block: *mut u8) -> bool {
    note_of(block).load(Ordering::Relaxed) != 0
}

/// Tells clients of a free; whether one of them has taken the block.
#[inline(always)]
pub(crate) fn freed(block: *mut u8) -> bool {
    is_on() && freed_observed(block, false)
}

/// As [`freed`], wherever nolock allocation is legal.
#[inline(always)]
pub(crate) fn freed_nolock(block: *mut u8) -> bool {
    is_on() && freed_observed(block, true)
}

#[inline]
fn freed_observed(block: *mut u8, nolock: bool) -> bool {
    is_noted(block) && tell(block, nolock)
}

#[cold]
#[inline(never)]
fn tell(block: *mut u8, nolock: bool) -> bool {
    // All of them: a block may be the profiler's, too.
    let told = || SLOTS.each_ref().map(|slot| slot.client().is_some_and(|client| client.freed(block, nolock)));
    under_way(told).contains(&true)
}

/// Tells clients that a block waits for a grace period.
#[inline]
pub(crate) fn deferred(block: *mut u8) {
    if is_on() && is_noted(block) {
        under_way(|| SLOTS.iter().filter_map(Slot::client).for_each(|client| client.deferred(block)));
    }
}

/// Whether a block lies elsewhere, so that it cannot be resized where it is.
#[inline]
pub(crate) fn is_elsewhere(block: NonNull<u8>) -> bool {
    is_on()
        && is_noted(block.as_ptr())
        && under_way(|| SLOTS.iter().filter_map(Slot::client).any(|client| client.owns(block.as_ptr())))
}

/// A block has been resized: where it lay is free, and where it lies is as good as allocated.
#[inline]
pub(crate) fn resized(old: NonNull<u8>, new: NonNull<u8>, size: usize) {
    if is_on() {
        freed_observed(old.as_ptr(), false);
        if observed::is_due(size) && !BETWEEN_RATES.load(Ordering::Relaxed) {
            told_where_it_is(new, size);
        }
    }
}

/// The profiler alone is told of what cannot be served from elsewhere any more.
#[cold]
fn told_where_it_is(block: NonNull<u8>, size: usize) {
    let slot = &SLOTS[Role::Profiler as usize];
    let (mine, other) = (slot.chance(size), SLOTS[Role::Guard as usize].chance(size));
    if observed::uniform() * (1.0 - (1.0 - mine) * (1.0 - other)) < mine
        && under_way(|| slot.client().is_some_and(|c| c.sampled(block.as_ptr(), size, mine) != block.as_ptr()))
    {
        sys::die("a resized block was served from elsewhere", sys::addr(block));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says that a block was sampled by being put in its place.
    struct Replacing;
    static REPLACING: &dyn Client = &Replacing;
    const REPLACED: *mut u8 = core::ptr::without_provenance_mut(64);

    impl Client for Replacing {
        fn sampled(&self, _block: *mut u8, _size: usize, _chance: f64) -> *mut u8 {
            REPLACED
        }

        fn freed(&self, _block: *mut u8, _nolock: bool) -> bool {
            false
        }
    }

    /// A thread that finds a block due while another stops may find the rates gone and the client still there. A sample
    /// without a chance would stand for infinitely many blocks.
    ///
    /// Red if the client is asked: in `ask` (`src/observe/mod.rs`), change `due && chance > 0.0` to `due`.
    #[test]
    fn a_client_without_a_chance_is_not_asked() {
        let slots = [const { Slot::new() }; 2];
        let block = core::ptr::without_provenance_mut(32);
        for slot in &slots {
            slot.set(&REPLACING, Rate::Bytes(1));
            assert_eq!(ask(&slots, block, 1 << 20), REPLACED, "due for sure");
            slot.set_rates(0, 0);
            assert_eq!(ask(&slots, block, 1 << 20), block);
            slot.clear();
        }
    }
}
