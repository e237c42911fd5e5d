//! The stacks of one CPU (or of one thread): headers, arrays, and what is known about them.
//!
//! ```text
//! | header of class 0 | header of class 1 | … | Book | small arrays … | large arrays … |
//!   top  limit
//! ```
//!
//! A stack is an array of addresses that grows upwards. `top` points behind its last entry, `limit` is as
//! far as `top` may go, and the word before the first entry is 0: a pop that finds it knows that the stack is
//! empty without looking at anything but the word it would have returned.
//!
//! ```text
//!              base        top         limit
//! | sentinel | b0 | b1 | b2 |    |    |
//! ```
//!
//! What bounds an operation is how fast the processor forwards the store to `top` to the load of the next
//! operation. It does so at register speed if both name the address by one register and are equally wide, so
//! a header is 16 bytes with `top` first and nothing indexes it (`x86_64.rs`). Arrays of different classes
//! start in different sets of the first-level cache; small ones lie side by side, so that a program that uses
//! all classes a little touches few pages. A stack that grows past its small array moves to a large one.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use super::observed::Sampler;
use super::pace::{Look, Pace};
use crate::lock::Lock;
use crate::size_class::{CLASS, CLASSES};
use crate::sys;
use crate::zone::META;

/// Headers of a region, by index: the stack of each class is at the class's own; then come
/// - a floor for each, in place of a top, below which `pop_above_floor` does not go; and its limit, which is not the
///   one that a push sees while it is diverted (`observed.rs`),
/// - the reserves, stacks that only nolock allocation takes from,
/// - a stack of words whose arrays come from the layer above (`deferred.rs`).
pub(super) const FLOOR: usize = CLASSES;
pub(super) const RESERVE: usize = 2 * CLASSES;
pub(super) const DEFERRED: usize = 3 * CLASSES;
pub(super) const HEADERS: usize = DEFERRED + 1;

/// Where a stack stands.
#[repr(C, align(16))]
pub(super) struct Header {
    pub(super) top: AtomicPtr<usize>,
    pub(super) limit: AtomicPtr<usize>,
}

/// The headers are at the region's start, where the sequences look for them. All-zero bytes are a valid value.
#[repr(C, align(4096))]
pub(crate) struct Region {
    pub(super) headers: [Header; HEADERS],
    pub(super) book: Lock<Book>,
    /// Per-thread mode: the next region that waits for a thread.
    pub(super) next: AtomicPtr<Region>,
    /// Per-thread mode: the next of all regions.
    pub(super) sibling: AtomicPtr<Region>,
    /// Per-thread mode: an operation is under way that a signal handler must not interrupt with another.
    pub(super) busy: AtomicBool,
    /// A reserve has been taken from, or a nolock allocation found nothing: the next visit to the slow path
    /// sees to it.
    pub(super) wanting: AtomicBool,
    /// What the stacks' tops added up to when the worker last came by.
    pub(super) seen: AtomicUsize,
    /// How much to add to each stack that nolock allocation finds empty (`nolock.rs`).
    pub(super) levels: [AtomicU8; CLASSES],
    pub(super) counters: Counters,
    pub(super) sampler: Sampler,
    pub(super) look: Look,
}

/// What happened here, in numbers. Relaxed throughout: statistics.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) refills: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    pub(crate) drains: AtomicUsize,
    pub(crate) sent_home: AtomicUsize,
    pub(crate) nolock_hits: AtomicUsize,
    pub(crate) nolock_misses: AtomicUsize,
    pub(crate) nolock_refusals: AtomicUsize,
}

/// What `pop_above_floor` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AboveFloor {
    Block(usize),
    /// Nothing, or the CPU is stopped.
    Empty,
    /// What there is must not be taken.
    Floor,
    /// Something came between: worth another try.
    Aborted,
}

/// What is known about the stacks of a region, under its lock.
pub(super) struct Book {
    pub(super) stacks: [Stack; CLASSES],
    /// Bytes that all stacks together could hold, if full.
    pub(super) charged: usize,
    /// Most that this may be.
    pub(super) budget: usize,
    /// Where the search for an idle stack goes on.
    pub(super) hand: usize,
    /// Visits to the slow path of stacks of runs that have no capacity.
    pub(super) turn: u16,
    pub(super) outflow: Outflow,
    pub(super) pace: Pace,
    pub(super) reserves: [Reserve; CLASSES],
    /// First word of the array on the deferred stack.
    pub(super) deferred: *mut usize,
    /// Pushes see no limit, and miss.
    pub(super) diverted: bool,
}

/// How much more goes out of the stacks than comes in; zeros at the start.
#[derive(Clone, Copy)]
pub(super) struct Outflow {
    /// Bytes flushed less bytes refilled, from 0 on; those before the last sweep count as [`HIGH`](super::capacity::HIGH).
    pub(super) bytes: usize,
    pub(super) is_high: bool,
    /// Classes below this one are to be swept, from the last on.
    pub(super) sweep_below: usize,
}

/// A stack that only nolock allocation takes from.
#[derive(Clone, Copy)]
pub(super) struct Reserve {
    /// First entry of its array; null if there is none.
    pub(super) base: *mut usize,
    /// Blocks promised.
    pub(super) charge: usize,
    /// Entries that the array has room for.
    pub(super) room: usize,
    /// The array it had before, which the next charge uses if it fits, and its room.
    pub(super) other: (*mut usize, usize),
}

/// An array for the deferred stack: empty if it is given, what it holds if it is returned (`deferred.rs`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Array {
    pub base: *mut usize,
    /// Behind the last word in use.
    pub top: *mut usize,
    pub limit: *mut usize,
}

impl Array {
    /// No array: every push finds it full.
    pub(crate) fn none() -> Array {
        let end = (&raw const NOTHING).cast_mut().wrapping_add(1);
        Array { base: end, top: end, limit: end }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.base == self.limit
    }

    pub(crate) fn len(&self) -> usize {
        (self.top as usize - self.base as usize) / size_of::<usize>()
    }
}

#[derive(Clone, Copy)]
pub(super) struct Stack {
    /// First entry of the array in use.
    pub(super) base: *mut usize,
    pub(super) capacity: u16,
    pub(super) large: bool,
    pub(super) last: Event,
    /// The book's `turn` when a block was freed for which the stack, of runs, had no capacity.
    pub(super) freed_at: u16,
    /// How often in a row one was asked for soon after that.
    pub(super) soon: u8,
    /// Pages of the large array that have been given memory, from the sentinel's on.
    provided: u8,
    /// `top` as it was when the hand last came by.
    pub(super) seen: *mut usize,
}

/// Pages of a large array that have no memory yet.
pub(super) struct Lacking {
    pub(super) start: NonNull<u8>,
    /// Bytes.
    pub(super) len: usize,
    /// Pages of the array that have memory once these have, from the sentinel's on.
    pages: u8,
}

impl Stack {
    /// The memory has been given.
    pub(super) fn note_provided(&mut self, memory: &Lacking) {
        // Somebody else may have given more meanwhile.
        self.provided = self.provided.max(memory.pages);
    }
}

/// What last sent a stack to the slow path.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Event {
    Nothing,
    Empty,
    Full,
}

/// A sentinel: a stack whose top and limit are behind it is empty and full at once.
pub(super) static NOTHING: usize = 0;

// SAFETY: the pointers lead into the region itself, which lives for ever.
unsafe impl Send for Book {}

pub(super) const WORD: usize = size_of::<usize>();

/// Offsets of the arrays' sentinels, small and large, and the bytes of a region.
const fn layout() -> ([u32; CLASSES], [u32; CLASSES], usize) {
    let (mut small, mut large) = ([0; CLASSES], [0; CLASSES]);
    let mut at = size_of::<Region>();
    let mut class = 0;
    while class < CLASSES {
        small[class] = at as u32;
        at += (1 + CLASS[class].capacity as usize) * WORD;
        class += 1;
    }
    at = (at + 4095) & !4095;
    class = 0;
    while class < CLASSES {
        // An odd number of lines further than a whole page, so that bottoms spread over all sets.
        large[class] = (at + (class * 7 % 64) * 64) as u32;
        at += ((1 + CLASS[class].capacity_max as usize) * WORD + 64 * 64 + 4095) & !4095;
        class += 1;
    }
    (small, large, at)
}

const LAYOUT: ([u32; CLASSES], [u32; CLASSES], usize) = layout();

impl Region {
    /// Bytes of address space in a region; memory is behind what has been used of it.
    pub(crate) const BYTES: usize = LAYOUT.2;

    /// A region whose stacks are all empty and of capacity 0, and may grow to `budget` bytes together.
    pub(super) fn new(budget: usize) -> Option<&'static Region> {
        let memory = META.alloc(Region::BYTES, align_of::<Region>())?.cast::<Region>();
        // Filled in where it lies: it is larger than a small thread's stack has room for.
        // SAFETY: META's memory is aligned as asked, long enough, nobody else's, and all zero, which is a
        // valid region: integers, pointers, atomics, free locks, and `Event::Nothing`.
        let region = unsafe { &mut *memory.as_ptr() };
        let book = region.book.get_mut();
        book.budget = budget;
        for (class, stack) in book.stacks.iter_mut().enumerate() {
            let sentinel = (memory.as_ptr() as usize + LAYOUT.0[class] as usize) as *mut usize;
            // The sentinel, the word below, is 0 as all of the memory.
            stack.base = sentinel.wrapping_add(1);
            *region.headers[class].top.get_mut() = stack.base;
            *region.headers[class].limit.get_mut() = stack.base;
            *region.headers[FLOOR + class].top.get_mut() = stack.base;
            *region.headers[FLOOR + class].limit.get_mut() = stack.base;
        }
        for class in 0..CLASSES {
            // Until it is charged, a reserve is empty and full as a stack of no capacity is.
            *region.headers[RESERVE + class].top.get_mut() = (&raw const NOTHING).cast_mut().wrapping_add(1);
            *region.headers[RESERVE + class].limit.get_mut() = (&raw const NOTHING).cast_mut().wrapping_add(1);
        }
        let nothing = Array::none();
        *region.headers[DEFERRED].top.get_mut() = nothing.top;
        *region.headers[DEFERRED].limit.get_mut() = nothing.limit;
        book.deferred = nothing.base;
        Some(region)
    }

    /// The memory that a class's large array lacks for `capacity` entries; none where its small array has room for them.
    ///
    /// It is given before the array is used, and not by page faults: those would be taken while the CPU is stopped, and by frees,
    /// which must not wait for memory when there is none (at the limit of a control group they would, until somebody frees).
    ///
    /// These are pages of `META`'s memory, which is never unmapped, so they may be given memory at any time, and twice.
    pub(super) fn lacking(&self, book: &Book, class: usize, capacity: usize) -> Option<Lacking> {
        if capacity <= CLASS[class].capacity as usize {
            return None;
        }
        let page = sys::page_size();
        let sentinel = self as *const Region as usize + LAYOUT.1[class] as usize;
        let first = sentinel & !(page - 1);
        let pages = (sentinel + (1 + capacity) * WORD - first).div_ceil(page);
        let provided = book.stacks[class].provided as usize;
        if pages <= provided {
            return None;
        }
        let start = NonNull::new((first + provided * page) as *mut u8)?;
        Some(Lacking { start, len: (pages - provided) * page, pages: pages as u8 })
    }

    /// The first entry of the large array of a class, its sentinel in place.
    pub(super) fn large_base(&self, class: usize) -> *mut usize {
        let sentinel = (self as *const Region as usize + LAYOUT.1[class] as usize) as *mut usize;
        // SAFETY: as in `new`; the caller holds the region's lock and the array is not in use yet.
        unsafe {
            sentinel.write(0);
            sentinel.add(1)
        }
    }

    /// The plain-Rust twin of the sequence `pop`.
    ///
    /// # Safety
    /// For this and the three below: nobody else operates on the region's stacks meanwhile. They belong to
    /// the calling thread, or their CPU has been stopped.
    pub(super) unsafe fn pop(&self, class: usize) -> usize {
        let header = &self.headers[class];
        // Relaxed, here and below: the stacks are the caller's alone.
        let top = header.top.load(Ordering::Relaxed);
        // SAFETY: `top` points behind an entry or behind the sentinel.
        let block = unsafe { *top.sub(1) };
        if block != 0 {
            // SAFETY: an entry was found, so `top` stays in the array.
            header.top.store(unsafe { top.sub(1) }, Ordering::Relaxed);
        }
        block
    }

    /// The plain-Rust twin of the sequence `pop_above_floor`.
    ///
    /// # Safety
    /// As for `pop`.
    pub(super) unsafe fn pop_above_floor(&self, class: usize) -> AboveFloor {
        let top = self.headers[class].top.load(Ordering::Relaxed);
        // SAFETY: as in `pop`.
        if unsafe { *top.sub(1) } == 0 {
            return AboveFloor::Empty;
        }
        if top <= self.headers[FLOOR + class].top.load(Ordering::Relaxed) {
            return AboveFloor::Floor;
        }
        // SAFETY: the caller's obligation.
        AboveFloor::Block(unsafe { self.pop(class) })
    }

    /// The plain-Rust twin of the sequence `push`, with the limit in force.
    ///
    /// # Safety
    /// As for `pop`, and `block` is a block of the class that nobody uses.
    pub(super) unsafe fn push(&self, class: usize, block: usize) -> bool {
        let header = &self.headers[class];
        let limit = if class < CLASSES { &self.headers[FLOOR + class].limit } else { &header.limit };
        let top = header.top.load(Ordering::Relaxed);
        if top >= limit.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: below the limit there is room in the array.
        unsafe {
            top.write(block);
            header.top.store(top.add(1), Ordering::Relaxed);
        }
        true
    }

    /// The plain-Rust twin of the sequence `pop_batch`.
    ///
    /// # Safety
    /// As for `pop`.
    pub(super) unsafe fn pop_batch(&self, class: usize, out: &mut [usize]) -> usize {
        let mut taken = 0;
        while taken < out.len() {
            // SAFETY: the caller's obligation.
            let block = unsafe { self.pop(class) };
            if block == 0 {
                break;
            }
            out[taken] = block;
            taken += 1;
        }
        taken
    }

    /// The plain-Rust twin of the sequence `push_batch`.
    ///
    /// # Safety
    /// As for `push`.
    pub(super) unsafe fn push_batch(&self, class: usize, blocks: &[usize]) -> usize {
        // SAFETY: the caller's obligation.
        blocks.iter().take_while(|&&block| unsafe { self.push(class, block) }).count()
    }

    /// The first entry of the array that a class's stack uses.
    pub(super) fn base_of(&self, class: usize) -> *mut usize {
        self.book.lock().stacks[class].base
    }

    /// Where the region lies.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        (NonNull::from(self).cast(), Region::BYTES)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(feature = "debug")]
impl Region {
    /// Bytes of the headers with the book, of the small arrays, and of the large ones, in address space.
    pub(crate) const PARTS: [usize; 3] = {
        let (head, small) = (size_of::<Region>(), LAYOUT.0[CLASSES - 1] as usize);
        let small = small + (1 + CLASS[CLASSES - 1].capacity as usize) * WORD - head;
        [head, small, Region::BYTES - head - small]
    };

    /// What has happened to the book's lock.
    pub(crate) fn lock_counts(&self) -> crate::lock::counted::LockCounts {
        self.book.counts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_do_not_overlap() {
        let mut arrays: Vec<(usize, usize)> = vec![(0, size_of::<Region>())];
        for (class, fixed) in CLASS.iter().enumerate() {
            arrays.push((LAYOUT.0[class] as usize, (1 + fixed.capacity as usize) * WORD));
            arrays.push((LAYOUT.1[class] as usize, (1 + fixed.capacity_max as usize) * WORD));
        }
        arrays.sort_unstable();
        for pair in arrays.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
        let (at, len) = arrays[arrays.len() - 1];
        assert!(at + len <= Region::BYTES);
    }

    #[test]
    fn a_stack_is_last_in_first_out_and_bounded() {
        let region = Region::new(1 << 20).unwrap();
        let base = region.book.lock().stacks[5].base;
        // SAFETY: nobody else knows of the region; the small array has room for 4.
        unsafe {
            assert!(!region.push(5, 0x10));
            region.headers[FLOOR + 5].limit.store(base.add(4), Ordering::Relaxed);
            assert_eq!(region.push_batch(5, &[0x10, 0x20, 0x30, 0x40, 0x50]), 4);
            assert!(!region.push(5, 0x60));
            assert_eq!(region.pop(5), 0x40);
            let mut out = [0; 8];
            assert_eq!(region.pop_batch(5, &mut out), 3);
            assert_eq!(out[..3], [0x30, 0x20, 0x10]);
            assert_eq!((region.pop(5), region.pop(6)), (0, 0));
        }
    }
}
