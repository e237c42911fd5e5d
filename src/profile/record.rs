//! What has been sampled: stacks, sites and the blocks that are in use, in memory of its own and bounded.
//!
//! ```text
//! Table:  address of a block in use -> its site and weight                  without locks
//! Stack:  frames; bytes held now, and at most
//! Site:   a stack and a block size; objects allocated, held, held at peak   all three under one lock
//! ```
//!
//! A sampled block stands for 1/p blocks of its size, where p was its chance to be sampled: its *weight*. Sums of weights
//! are unbiased estimates (Horvitz and Thompson, JASA 47, 1952; with p = 1 - exp(-size/interval) it is what jemalloc's
//! `prof_unbias_map`, TCMalloc's `AllocatedBytes` and Go's `scaleHeapSample` do). Weights are whole numbers of 65536ths,
//! so that what is added when a block is allocated is what is taken off when it is freed.
//!
//! A site's share of the peak is found without a look at all sites at every new peak: whoever changes what a site holds
//! notes first what it held, if that is what it held at the last peak.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Instant;

use super::unwind::{self, FRAMES_MAX};
use crate::lock::Lock;
use crate::observe::table::Table;
use crate::observe::{Client, forget, note};
use crate::zone::META;

/// log2 of buckets: 65536 sampled blocks may be in use at a time, in 1 MiB.
const TABLE_BITS: u32 = 13;
const STACKS: usize = 1 << 14;
const SITES: usize = 1 << 15;
/// Frames of all stacks together.
const FRAMES: usize = 1 << 18;
const HEADS: usize = 1 << 14;

/// A weight of 1.
pub(super) const ONE: u64 = 1 << 16;

/// In the word of a block: its site below, its weight (an `f32`) above.
const DEFERRED: usize = 1 << 31;
const WEIGHT_SHIFT: u32 = 32;

/// Numbers are indices; 0 is none. All zero is a valid value, here and below.
#[derive(Clone, Copy)]
pub(super) struct Stack {
    hash: u64,
    pub(super) first_frame: u32,
    pub(super) depth: u32,
    next: u32,
    first_site: u32,
    held_bytes: u128,
    held: u64,
    /// Most bytes that were held at a time, and the objects then.
    pub(super) most_bytes: u128,
    pub(super) most: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Site {
    pub(super) stack: u32,
    next: u32,
    pub(super) size: usize,
    /// Blocks that were sampled.
    pub(super) samples: u64,
    /// Sums of weights: of all that were allocated, of those not freed yet, of those held at the peak, and of those that
    /// wait for a grace period.
    pub(super) allocated: u64,
    pub(super) held: u64,
    at_peak: u64,
    pub(super) deferred: u64,
    /// When `held` last changed, by the book's clock.
    changed: u64,
    /// Weights times microseconds: the sum over frees less the sum over allocations.
    lifetimes: i128,
}

/// The book. Times are in microseconds since `started`.
pub(super) struct Book {
    memory: Option<Memory>,
    started: Option<Instant>,
    /// When it was closed, if it was: its time stands still from then on.
    ended: Option<u64>,
    frames: usize,
    stacks: usize,
    sites: usize,
    held_bytes: u128,
    clock: u64,
    peak: Peak,
    lost: u64,
    sampling: bool,
}

#[derive(Clone, Copy, Default)]
struct Peak {
    bytes: u128,
    clock: u64,
    at: u64,
}

#[derive(Clone, Copy)]
struct Memory {
    frames: NonNull<usize>,
    stacks: NonNull<Stack>,
    sites: NonNull<Site>,
    heads: NonNull<u32>,
}

// SAFETY: the arrays are the book's, under whose lock it is.
unsafe impl Send for Memory {}

static BOOK: Lock<Book> = Lock::new(Book {
    memory: None,
    started: None,
    ended: None,
    frames: 0,
    stacks: 0,
    sites: 0,
    held_bytes: 0,
    clock: 0,
    peak: Peak { bytes: 0, clock: 0, at: 0 },
    lost: 0,
    sampling: false,
});
/// The blocks in use; null before the first start.
static TABLE: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());
/// Words have been left in the table by frees that could not wait for the lock. Relaxed: a hint.
static LEFT: AtomicBool = AtomicBool::new(false);
/// Samples lost because one was taken on top of another. Relaxed: a statistic.
static NESTED: AtomicUsize = AtomicUsize::new(0);

fn table() -> Option<&'static Table> {
    // Acquire, paired with the release in `Memory::new`. SAFETY: tables live for ever.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

/// Locks or unlocks for `fork`.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire { BOOK.acquire() } else { BOOK.release() }
}

fn weight_of(word: usize) -> u64 {
    (f32::from_bits((word >> WEIGHT_SHIFT) as u32) as f64 * ONE as f64) as u64
}

impl Memory {
    /// Nine MiB of address space, of which is resident what is used.
    fn new() -> Option<Memory> {
        let array = |bytes: usize| META.alloc(bytes, 64);
        let memory = Memory {
            frames: array(FRAMES * size_of::<usize>())?.cast(),
            stacks: array(STACKS * size_of::<Stack>())?.cast(),
            sites: array(SITES * size_of::<Site>())?.cast(),
            heads: array(HEADS * size_of::<u32>())?.cast(),
        };
        let table = array(Table::bytes(TABLE_BITS))?;
        let home = array(size_of::<Table>())?.cast::<Table>();
        // SAFETY: META's memory reads as zero, is nobody else's, aligned to a page if it is so large, and lives for ever.
        unsafe { home.write(Table::new(table, TABLE_BITS)) };
        // Release, paired with the acquire in `table`.
        TABLE.store(home.as_ptr(), Ordering::Release);
        Some(memory)
    }

    fn stack(&mut self, number: u32) -> &mut Stack {
        debug_assert!((number as usize) < STACKS);
        // SAFETY: numbers were given out by the book, within the array, which is borrowed as the memory is.
        unsafe { self.stacks.add(number as usize).as_mut() }
    }

    fn site(&mut self, number: u32) -> &mut Site {
        debug_assert!((number as usize) < SITES);
        // SAFETY: as in `stack`.
        unsafe { self.sites.add(number as usize).as_mut() }
    }

    fn head(&mut self, hash: u64) -> &mut u32 {
        // SAFETY: less than HEADS.
        unsafe { self.heads.add((hash >> 32) as usize % HEADS).as_mut() }
    }

    fn frames(&self, first: u32, depth: u32) -> &[usize] {
        // SAFETY: frames that were written when the stack was made.
        unsafe { core::slice::from_raw_parts(self.frames.add(first as usize).as_ptr(), depth as usize) }
    }
}

fn hash_of(frames: &[usize]) -> u64 {
    frames.iter().fold(0x9e37_79b9_7f4a_7c15, |hash, &frame| {
        let mixed = (hash ^ frame as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    })
}

impl Book {
    fn now(&self) -> u64 {
        let running = || self.started.map_or(0, |started| started.elapsed().as_micros() as u64);
        self.ended.unwrap_or_else(running)
    }

    /// The number of a stack, a new one if need be; `None` if there is no room.
    fn stack_of(&mut self, frames: &[usize]) -> Option<u32> {
        let memory = self.memory.as_mut()?;
        let hash = hash_of(frames);
        let mut number = *memory.head(hash);
        while number != 0 {
            let Stack { hash: found, first_frame, depth, next, .. } = *memory.stack(number);
            if found == hash && memory.frames(first_frame, depth) == frames {
                return Some(number);
            }
            number = next;
        }
        if self.stacks + 1 >= STACKS || self.frames + frames.len() > FRAMES {
            return None;
        }
        self.stacks += 1;
        let number = self.stacks as u32;
        let next = core::mem::replace(memory.head(hash), number);
        let first_frame = self.frames as u32;
        self.frames += frames.len();
        // SAFETY: there is room, as was seen above.
        unsafe {
            memory.frames.add(first_frame as usize).copy_from_nonoverlapping(NonNull::from(frames).cast(), frames.len())
        };
        *memory.stack(number) = Stack {
            hash,
            first_frame,
            depth: frames.len() as u32,
            next,
            first_site: 0,
            held_bytes: 0,
            held: 0,
            most_bytes: 0,
            most: 0,
        };
        Some(number)
    }

    /// The number of a site, a new one if need be; `None` if there is no room.
    fn site_of(&mut self, frames: &[usize], size: usize) -> Option<u32> {
        let stack = self.stack_of(frames)?;
        let memory = self.memory.as_mut()?;
        let first = memory.stack(stack).first_site;
        let mut number = first;
        while number != 0 {
            let site = memory.site(number);
            if site.size == size {
                return Some(number);
            }
            number = site.next;
        }
        if self.sites + 1 >= SITES {
            return None;
        }
        self.sites += 1;
        let number = self.sites as u32;
        memory.stack(stack).first_site = number;
        *memory.site(number) = Site {
            stack,
            next: first,
            size,
            samples: 0,
            allocated: 0,
            held: 0,
            at_peak: 0,
            deferred: 0,
            changed: 0,
            lifetimes: 0,
        };
        Some(number)
    }

    /// A site holds so much more, or less.
    fn change(&mut self, number: u32, more: bool, weight: u64) {
        let (now, peak_clock) = (self.now() as i128, self.peak.clock);
        self.clock += 1;
        let Some(memory) = self.memory.as_mut() else { return };
        let site = memory.site(number);
        if site.changed <= peak_clock {
            site.at_peak = site.held;
        }
        site.changed = self.clock;
        let bytes = weight as u128 * site.size as u128;
        let stack_number = site.stack;
        if more {
            site.held += weight;
            site.lifetimes -= now * weight as i128;
        } else {
            site.held -= weight;
            site.lifetimes += now * weight as i128;
        }
        let stack = memory.stack(stack_number);
        if more {
            stack.held += weight;
            stack.held_bytes += bytes;
            if stack.held_bytes > stack.most_bytes {
                (stack.most_bytes, stack.most) = (stack.held_bytes, stack.held);
            }
            self.held_bytes += bytes;
            if self.held_bytes > self.peak.bytes {
                self.peak = Peak { bytes: self.held_bytes, clock: self.clock, at: now as u64 };
            }
        } else {
            stack.held -= weight;
            stack.held_bytes -= bytes;
            self.held_bytes -= bytes;
        }
    }

    fn free(&mut self, word: usize) {
        self.change((word & (DEFERRED - 1)) as u32, false, weight_of(word));
    }

    /// Accounts for what was left in the table.
    fn sweep(&mut self) {
        // Relaxed: whoever leaves a word afterwards says so again.
        if LEFT.swap(false, Ordering::Relaxed)
            && let Some(table) = table()
        {
            table.sweep(|_, word| self.free(word));
        }
    }

    fn sampled(&mut self, block: *mut u8, size: usize, chance: f64, frames: &[usize]) {
        self.sweep();
        let Some(table) = table().filter(|_| self.sampling) else { return };
        let weight = (1.0 / chance) as f32;
        let Some(number) = self.site_of(frames, size) else {
            self.lost += 1;
            return;
        };
        let word = number as usize | (weight.to_bits() as usize) << WEIGHT_SHIFT;
        if let Some(stale) = table.remove(block as usize) {
            // Its free came too early to be told of: a mapping that moved, and somebody else got its address.
            forget(block);
            self.free(stale);
        }
        if !table.insert(block as usize, word) {
            self.lost += 1;
            return;
        }
        note(block);
        let weight = weight_of(word);
        if let Some(memory) = self.memory.as_mut() {
            let site = memory.site(number);
            site.samples += 1;
            site.allocated += weight;
        }
        self.change(number, true, weight);
    }
}

/// The profiler, as the heap sees it.
pub(super) struct Profiler;

impl Client for Profiler {
    fn sampled(&self, block: *mut u8, size: usize, chance: f64) -> *mut u8 {
        let mut frames = [0; FRAMES_MAX];
        match unwind::guarded(|| unwind::walk(&mut frames)) {
            Some(depth) => BOOK.lock().sampled(block, size, chance, &frames[..depth]),
            None => _ = NESTED.fetch_add(1, Ordering::Relaxed),
        }
        block
    }

    fn freed(&self, block: *mut u8, nolock: bool) -> bool {
        let Some(table) = table() else { return false };
        if !nolock {
            if let Some(word) = table.remove(block as usize) {
                forget(block);
                BOOK.lock().free(word);
            }
        } else if table.leave(block as usize) {
            forget(block);
            LEFT.store(true, Ordering::Relaxed);
        }
        false
    }

    fn deferred(&self, block: *mut u8) {
        if let Some(table) = table() {
            table.set(block as usize, DEFERRED);
        }
    }
}

/// Has memory for a book; false if there is none.
pub(super) fn make_room() -> bool {
    let mut book = BOOK.lock();
    if book.memory.is_none() {
        book.memory = Memory::new();
    }
    book.memory.is_some()
}

/// Begins a new book in place of the last, which is closed. There is memory for it.
pub(super) fn begin() {
    let mut book = BOOK.lock();
    let Some(memory) = book.memory else { return };
    // SAFETY: the array has as many heads.
    unsafe { memory.heads.write_bytes(0, HEADS) };
    *book = Book {
        memory: Some(memory),
        started: Some(Instant::now()),
        ended: None,
        frames: 0,
        stacks: 0,
        sites: 0,
        held_bytes: 0,
        clock: 0,
        peak: Peak::default(),
        lost: 0,
        sampling: true,
    };
    NESTED.store(0, Ordering::Relaxed);
}

/// Closes the book, which can still be read. Nobody is told of samples any more.
pub(super) fn end() {
    let mut book = BOOK.lock();
    book.sweep();
    book.sampling = false;
    book.ended = Some(book.now());
    let (Some(table), Some(mut memory)) = (table(), book.memory) else { return };
    table.words(|word| {
        if word & DEFERRED != 0 {
            memory.site((word & (DEFERRED - 1)) as u32).deferred += weight_of(word);
        }
    });
    table.clear(|address| forget(address as *mut u8));
}

/// A copy of the book.
pub(super) struct Copy {
    pub(super) frames: Vec<usize>,
    /// Number 0 is no stack, here and of sites.
    pub(super) stacks: Vec<Stack>,
    pub(super) sites: Vec<Site>,
    pub(super) lost: u64,
    pub(super) peak_at: u64,
    pub(super) now: u64,
}

impl Site {
    /// Sum of weights held at the peak. In a copy this has been settled.
    pub(super) fn at_peak(&self) -> u64 {
        self.at_peak
    }

    /// Weights times microseconds that all blocks have been in use.
    pub(super) fn lifetimes(&self, now: u64) -> u128 {
        (self.lifetimes + now as i128 * self.held as i128).max(0) as u128
    }
}

/// Copies the book. The copy's memory is had before the lock is.
pub(super) fn copy() -> Copy {
    let mut room = (0, 0, 0);
    loop {
        let mut copy = Copy {
            frames: Vec::with_capacity(room.0),
            stacks: Vec::with_capacity(room.1),
            sites: Vec::with_capacity(room.2),
            lost: 0,
            peak_at: 0,
            now: 0,
        };
        if copy.fill(&mut room) {
            return copy;
        }
    }
}

impl Copy {
    /// Fills in what there is if there is room for it, else says how much room it takes. Allocates nothing.
    fn fill(&mut self, room: &mut (usize, usize, usize)) -> bool {
        let mut book = BOOK.lock();
        book.sweep();
        let wanted = (book.frames, book.stacks + 1, book.sites + 1);
        if self.frames.capacity() < wanted.0 || self.stacks.capacity() < wanted.1 || self.sites.capacity() < wanted.2 {
            // Some more, for what is sampled while there is no lock.
            *room = (wanted.0 + 4096, wanted.1 + 256, wanted.2 + 256);
            return false;
        }
        let Some(memory) = book.memory else { return true };
        // SAFETY: the arrays have as many elements, and elements of 0 are valid.
        unsafe {
            self.frames.extend_from_slice(core::slice::from_raw_parts(memory.frames.as_ptr(), wanted.0));
            self.stacks.extend_from_slice(core::slice::from_raw_parts(memory.stacks.as_ptr(), wanted.1));
            self.sites.extend_from_slice(core::slice::from_raw_parts(memory.sites.as_ptr(), wanted.2));
        }
        for site in &mut self.sites {
            if site.changed <= book.peak.clock {
                site.at_peak = site.held;
            }
        }
        if book.sampling
            && let Some(table) = table()
        {
            table.words(|word| {
                let site = &mut self.sites[word & (DEFERRED - 1)];
                if word & DEFERRED != 0 {
                    // A block that is being freed this moment is in the table, or in what is held, or in both.
                    site.deferred = (site.deferred + weight_of(word)).min(site.held);
                }
            });
        }
        (self.lost, self.peak_at) = (book.lost + NESTED.load(Ordering::Relaxed) as u64, book.peak.at);
        self.now = book.now();
        true
    }
}
