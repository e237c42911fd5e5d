//! Stacks while somebody observes the heap: every free takes the slow path, and so does every allocation that is due
//! to be sampled. All others are as fast as ever, and with nobody observing nothing is different at all.
//!
//! **Frees.** A push compares `top` with `limit`. While frees are diverted the limit that a push sees is 0, so that it
//! misses; the limit in force lies in the header of the stack's floor, and what only the slow paths use, batches and
//! `push_observed`, looks at that one. So the free's slow path puts the block where the push would have put it, unless
//! somebody has noted a block of its page: then whoever did is asked first.
//!
//! **Allocations.** Whether an allocation is sampled is decided when its block is put on a stack, since that happens
//! before every pop and once: a block that is due gets a *mark* put on top, an entry that is 0. A pop that finds it
//! misses, as on an empty stack, and the slow path takes off the mark and the block below it.
//!
//! ```text
//!              base                      top
//! | sentinel | b0 | b1 | 0 | b2 | b3 | b4 |        // b1 is due: b4, b3 and b2 are popped without anybody noticing
//! ```
//!
//! A block that nobody put on a stack (it comes straight from a slab or a zone) is decided about when it is handed out.
//! Every decision is independent of all others, with the chance 1 - exp(-hazard), where a block's hazard is its size
//! times a rate per byte plus a rate per block: a Poisson process along the bytes, and one along the blocks. One
//! countdown per region, drawn from the exponential distribution whenever it has run out, makes the decisions: it has
//! no memory, so what is left of it after a block that was not due is as good as new.
//!
//! - A mark for which there is no room makes a sample *owed*: the block goes home, and the next allocation of its class
//!   that comes by the slow path of this region is sampled in its stead.
//! - Marks are not blocks: whatever counts or takes blocks skips them. A batch stops at one.
//! - Nolock allocation takes a mark for the end of the stack. It is not sampled.
//! - Stacks of threads have no marks. Each of their operations takes the slow path, where it is decided about.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU64, Ordering};

use super::capacity::Exclusive;
use super::choice::{Mode, mode};
use super::cpus::cpus;
use super::region::{Book, FLOOR, Region};
use super::regions::{cpu_regions, creation_lock, region_of};
use super::stacks::Stacks;
use super::{fence, rseq};
use crate::size_class::{BATCH, CLASS, CLASSES, block_size};
use crate::{slab, sys};

/// Whether samples are taken. Relaxed: set after every CPU has been fenced; a slow path that does not see it yet
/// samples nothing.
static ON: AtomicBool = AtomicBool::new(false);
/// Whether marks have ever been put on stacks. Relaxed: set before the fences that come before the first mark.
static EVER: AtomicBool = AtomicBool::new(false);
/// Whether pushes miss. Written under the lock under which regions are made.
static DIVERTED: AtomicBool = AtomicBool::new(false);
/// Hazard of a byte, and of a block. Relaxed: each stands for itself.
static BYTE_RATE: AtomicU64 = AtomicU64::new(0);
static BLOCK_RATE: AtomicU64 = AtomicU64::new(0);
/// Hazard of a block of each class. Relaxed, as they are.
static CLASS_HAZARDS: [AtomicU64; CLASSES] = [const { AtomicU64::new(0) }; CLASSES];
/// Decides where no region is at hand.
static ELSEWHERE: Sampler = Sampler::new();

/// What a hazard of 1 is in the units of the rates.
pub(crate) const UNIT: u64 = 1 << 48;

/// Whether somebody observes the heap: a load, and a branch that is not taken.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Whether there may be marks on stacks.
#[inline(always)]
pub(super) fn has_marks() -> bool {
    EVER.load(Ordering::Relaxed)
}

/// The hazard of a block of `size` bytes at these rates, in units.
pub(crate) fn hazard(size: usize, byte_rate: u64, block_rate: u64) -> u64 {
    (size as u64).saturating_mul(byte_rate).saturating_add(block_rate).min(64 * UNIT)
}

/// Decides what is sampled. All zero is a valid value.
///
/// Relaxed throughout, and no read-modify-writes: a step that is lost because two threads took it at once, or a signal
/// came between, moves the next sample by one block.
pub(super) struct Sampler {
    /// Hazard to go until the next sample.
    left: AtomicI64,
    random: AtomicU64,
    owed: [AtomicU16; CLASSES],
}

impl Sampler {
    const fn new() -> Sampler {
        Sampler { left: AtomicI64::new(0), random: AtomicU64::new(0), owed: [const { AtomicU16::new(0) }; CLASSES] }
    }

    /// A number from 0 to 1, neither included.
    fn uniform(&self) -> f64 {
        // SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014); each sampler starts from its own address.
        let state = match self.random.load(Ordering::Relaxed) {
            0 => self as *const Sampler as u64,
            state => state,
        };
        let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.store(state, Ordering::Relaxed);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    fn renew(&self) {
        self.left.store((-libm::log(self.uniform()) * UNIT as f64) as i64 + 1, Ordering::Relaxed);
    }

    fn reset(&self) {
        self.renew();
        self.owed.iter().for_each(|owed| owed.store(0, Ordering::Relaxed));
    }

    /// Whether a block of `size` bytes is due.
    fn decide(&self, size: usize) -> bool {
        self.step(hazard(size, BYTE_RATE.load(Ordering::Relaxed), BLOCK_RATE.load(Ordering::Relaxed)))
    }

    /// Whether a block of a class is due.
    #[inline(always)]
    fn decide_class(&self, class: usize) -> bool {
        self.step(CLASS_HAZARDS[class].load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn step(&self, hazard: u64) -> bool {
        // At most 64 units, which an `i64` holds, and so does what is left after it.
        let left = self.left.load(Ordering::Relaxed) - hazard as i64;
        self.left.store(left, Ordering::Relaxed);
        left <= 0 && self.renewed()
    }

    #[cold]
    #[inline(never)]
    fn renewed(&self) -> bool {
        self.renew();
        true
    }

    fn owe(&self, class: usize) {
        let owed = self.owed[class].load(Ordering::Relaxed);
        self.owed[class].store(owed.saturating_add(1), Ordering::Relaxed);
    }

    fn settle(&self, class: usize) -> bool {
        let owed = self.owed[class].load(Ordering::Relaxed);
        if owed > 0 {
            self.owed[class].store(owed - 1, Ordering::Relaxed);
        }
        owed > 0
    }
}

/// A number from 0 to 1, neither included.
pub(crate) fn uniform() -> f64 {
    sampler_here().uniform()
}

fn sampler_here() -> &'static Sampler {
    let region = rseq::cpu().filter(|&cpu| cpu < cpus()).and_then(region_of);
    region.map_or(&ELSEWHERE, |region| &region.sampler)
}

/// Whether a block of `size` bytes that comes from no stack is due.
pub(crate) fn is_due(size: usize) -> bool {
    is_on() && sampler_here().decide(size)
}

/// The same of a block of a class that goes past its stack.
pub(super) fn is_class_due(region: Option<&Region>, class: usize) -> bool {
    let sampler = region.map_or(&ELSEWHERE, |region| &region.sampler);
    is_on() && (sampler.settle(class) || sampler.decide_class(class))
}

/// As [`is_due`], of a block of a class whose blocks are runs.
pub(crate) fn is_run_due(class: usize) -> bool {
    is_on() && (sampler_here().settle(class) || sampler_here().decide_class(class))
}

/// Sets the rates; what is left of countdowns is drawn anew.
pub(crate) fn set_rates(byte_rate: u64, block_rate: u64) {
    BYTE_RATE.store(byte_rate, Ordering::Relaxed);
    BLOCK_RATE.store(block_rate, Ordering::Relaxed);
    for (class, known) in CLASS_HAZARDS.iter().enumerate() {
        known.store(hazard(block_size(class), byte_rate, block_rate), Ordering::Relaxed);
    }
    ELSEWHERE.reset();
    cpu_regions().for_each(|(_, region)| region.sampler.reset());
}

/// Has all frees take the slow path, from when this returns true, and samples be taken; or no longer. False if some CPU
/// cannot be fenced: then everything is as before.
pub(crate) fn observe(on: bool) -> bool {
    let _creating = creation_lock().lock();
    if mode() == Mode::PerThread {
        ON.store(on, Ordering::Relaxed);
        return true;
    }
    if on && !fence::fence_available() {
        return false;
    }
    ON.store(false, Ordering::Relaxed);
    if on {
        EVER.store(true, Ordering::Relaxed);
    }
    divert(on);
    // A push that saw the limit before it went does not commit after the fence: it is sent to its abort handler.
    if on && !cpu_regions().all(|(cpu, _)| sys::fence_cpu(cpu)) {
        divert(false);
        return false;
    }
    if !on {
        cpu_regions().for_each(|(cpu, region)| remove_marks(cpu, region));
    }
    ON.store(on, Ordering::Relaxed);
    true
}

/// The lock under which regions are made is held.
fn divert(on: bool) {
    DIVERTED.store(on, Ordering::Relaxed);
    for (_, region) in cpu_regions() {
        let mut book = region.book.lock();
        book.diverted = on;
        (0..CLASSES).for_each(|class| region.show_limit(&book, class));
    }
}

/// Has a new region, of which nobody knows yet, start as all others are. The lock under which regions are made is held.
pub(super) fn join(region: &Region) {
    let mut book = region.book.lock();
    book.diverted = DIVERTED.load(Ordering::Relaxed);
    (0..CLASSES).for_each(|class| region.show_limit(&book, class));
    region.sampler.renew();
}

/// Takes all marks off a CPU's stacks. One that a thread was about to put there stays until it is come to.
fn remove_marks(cpu: usize, region: &'static Region) {
    let book = region.book.lock();
    if !fence::stop(cpu, region) {
        return;
    }
    for class in 0..CLASSES {
        // SAFETY: the CPU is stopped and the lock held.
        unsafe { region.compact(class, book.stacks[class].base) };
    }
    rseq::start(cpu, region);
}

/// Puts blocks on this CPU's stack, with marks on those that are due; returns how many are no longer the caller's.
/// `region` is that of this CPU, most likely.
///
/// # Safety
/// All are blocks of `class` that nobody uses.
pub(super) unsafe fn push(region: &Region, class: usize, blocks: &[usize]) -> usize {
    let mut all = 0;
    for part in blocks.chunks(BATCH) {
        // SAFETY: the caller's obligation.
        let put = unsafe { push_part(region, class, part) };
        all += put;
        if put < part.len() {
            break;
        }
    }
    all
}

/// # Safety
/// As for [`push`]; at most [`BATCH`] blocks.
unsafe fn push_part(region: &Region, class: usize, blocks: &[usize]) -> usize {
    if let &[block] = blocks {
        if region.sampler.decide_class(class) {
            // SAFETY: the caller's obligation.
            return unsafe { push_due(region, class, block) } as usize;
        }
        // SAFETY: the caller's obligation.
        return unsafe { rseq::push_batch(class, blocks) };
    }
    let mut entries = [0; 2 * BATCH];
    let mut len = 0;
    for &block in blocks {
        entries[len] = block;
        len += 1 + region.sampler.decide_class(class) as usize;
    }
    // SAFETY: the caller's obligation, and a mark is what pops take for the end of the stack.
    let put = unsafe { rseq::push_batch(class, &entries[..len]) };
    if put > 0 && put < len && entries[put] == 0 {
        take_unmarked(region, class);
    }
    entries[..put].iter().filter(|&&entry| entry != 0).count()
}

/// Puts a block that is due on this CPU's stack, and a mark on it.
///
/// # Safety
/// As for [`push`].
#[cold]
#[inline(never)]
unsafe fn push_due(region: &Region, class: usize, block: usize) -> bool {
    // SAFETY: the caller's obligation, and a mark is what pops take for the end of the stack.
    let put = unsafe { rseq::push_batch(class, &[block, 0]) };
    if put == 1 {
        take_unmarked(region, class);
    }
    put > 0
}

/// There was no room for a mark: the block, or whatever is on the stack by now, does not stay either.
#[cold]
fn take_unmarked(region: &Region, class: usize) {
    match rseq::pop_slow(class) as usize {
        0 => {}
        block => {
            slab::free_bulk(class, &mut [block]);
            region.sampler.owe(class);
        }
    }
}

/// What a push would have done had it not been diverted; false if it would have missed, too.
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[inline(always)]
pub(crate) unsafe fn push_diverted(class: usize, block: *mut u8) -> bool {
    let Some(region) = rseq::cpu().filter(|&cpu| cpu < cpus()).and_then(region_of) else { return false };
    if region.sampler.decide_class(class) {
        // SAFETY: the caller's obligation.
        return unsafe { push_due(region, class, block as usize) };
    }
    // SAFETY: the caller's obligation.
    unsafe { rseq::push_observed(class, block as usize) }
}

/// As [`push`] of one block, where no lock may be taken: if there is no room for its mark, the block stays without.
///
/// # Safety
/// As for [`push`].
pub(super) unsafe fn push_nolock(region: &Region, class: usize, block: usize) -> bool {
    let len = 1 + region.sampler.decide_class(class) as usize;
    // SAFETY: as in `push`.
    let put = unsafe { rseq::push_batch(class, &[block, 0][..len]) };
    if put == 1 && len == 2 {
        region.sampler.owe(class);
    }
    put > 0
}

/// A block that lies below a mark, or on top after all; 0 if there is none, or the stack cannot be had just now.
pub(super) fn pop_marked(stacks: &Stacks, class: usize) -> (usize, bool) {
    let region = stacks.region();
    let Some(book) = region.book.try_lock() else { return (0, false) };
    let base = book.stacks[class].base;
    // Relaxed: a look; the stack is the CPU's as long as it runs.
    if region.headers[class].top.load(Ordering::Relaxed) == base || !stacks.stop() {
        return (0, false);
    }
    // SAFETY: the CPU is stopped and the lock held.
    let (block, marked) = unsafe {
        let marked = region.skip_marks(class, base);
        (region.pop(class), marked)
    };
    stacks.start();
    (block, marked && is_on())
}

/// A block of `class` from this CPU's stack that is due, after a pop has found none.
pub(crate) fn pop_due(class: usize) -> Option<*mut u8> {
    let cpu = rseq::cpu().filter(|&cpu| is_on() && cpu < cpus())?;
    match pop_marked(&Stacks::Cpu(cpu, region_of(cpu)?), class) {
        (block, true) if block != 0 => Some(block as *mut u8),
        (0, _) => None,
        (block, _) => {
            slab::free_bulk(class, &mut [block]);
            None
        }
    }
}

/// Takes blocks from this CPU's stack, whatever marks lie between them, after a batch has stopped short.
pub(super) fn pop_batch(stacks: &Stacks, class: usize, out: &mut [usize]) -> usize {
    let region = stacks.region();
    let Some(book) = region.book.try_lock() else { return 0 };
    let base = book.stacks[class].base;
    if region.headers[class].top.load(Ordering::Relaxed) == base || !stacks.stop() {
        return 0;
    }
    let mut taken = 0;
    loop {
        // SAFETY: the CPU is stopped and the lock held.
        let n = unsafe {
            region.skip_marks(class, base);
            region.pop_batch(class, &mut out[taken..])
        };
        taken += n;
        if n == 0 || taken == out.len() {
            break;
        }
    }
    stacks.start();
    taken
}

impl Region {
    /// Sets how far the stack of a class may grow. Safe while it is in use: see `set_capacity`.
    pub(super) fn set_limit(&self, book: &Book, class: usize, limit: *mut usize) {
        // Relaxed: a sequence needs nothing but the value.
        self.headers[FLOOR + class].limit.store(limit, Ordering::Relaxed);
        self.show_limit(book, class);
    }

    /// Whether pushes of a class miss: somebody observes the heap, or its blocks share lines and the CPU looks at their frees
    /// (`homing.rs`).
    pub(super) fn is_diverted(&self, book: &Book, class: usize) -> bool {
        book.diverted || self.is_looking() && CLASS[class].shares_lines()
    }

    /// Has pushes see the limit, or that there is no room.
    pub(super) fn show_limit(&self, book: &Book, class: usize) {
        let limit = self.headers[FLOOR + class].limit.load(Ordering::Relaxed);
        let shown = if self.is_diverted(book, class) { core::ptr::null_mut() } else { limit };
        self.headers[class].limit.store(shown, Ordering::Relaxed);
    }

    /// Takes off the marks that lie on top; whether there were any.
    ///
    /// # Safety
    /// As for [`Region::pop`]; `base` is the first entry of the stack's array.
    pub(super) unsafe fn skip_marks(&self, class: usize, base: *mut usize) -> bool {
        let top = self.headers[class].top.load(Ordering::Relaxed);
        let mut at = top;
        // SAFETY: above `base` there are entries.
        while at > base && unsafe { *at.sub(1) } == 0 {
            at = at.wrapping_sub(1);
        }
        self.headers[class].top.store(at, Ordering::Relaxed);
        at != top
    }

    /// Takes off all marks.
    ///
    /// # Safety
    /// As for [`Region::skip_marks`].
    unsafe fn compact(&self, class: usize, base: *mut usize) {
        let top = self.headers[class].top.load(Ordering::Relaxed);
        let (mut from, mut to) = (base, base);
        // SAFETY: both run from the first entry to the last, `to` not ahead of `from`.
        unsafe {
            while from < top {
                if *from != 0 {
                    *to = *from;
                    to = to.add(1);
                }
                from = from.add(1);
            }
        }
        self.headers[class].top.store(to, Ordering::Relaxed);
    }

    /// Marks among the first `len` entries from `base`.
    pub(super) fn marks(&self, base: *mut usize, len: usize) -> usize {
        if !has_marks() {
            return 0;
        }
        // SAFETY: entries of an array of this region, which lives for ever; others may write them meanwhile, whole words.
        let entry = |n: usize| unsafe { core::ptr::read_volatile(base.wrapping_add(n)) };
        (0..len).filter(|&n| entry(n) == 0).count()
    }
}

const _: () = assert!(CLASS.len() == CLASSES);
