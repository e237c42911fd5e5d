//! Freed mappings, kept for a while: address space with memory behind it that the next large block can have.
//!
//! ```text
//! free:   a piece, the newest; what is too much for the bound leaves, the oldest first (and raises it if it comes back soon)
//! alloc:  the smallest piece that is large enough, in full or its start; else the largest, which is then made longer
//! grow:   the piece right behind the block, or the start of it
//! idle:   a piece that lay here for a second leaves
//! ```
//!
//! A vector that doubles until it has 64 MiB and is freed leaves one piece. The next such vector takes the start of it,
//! and grows into the rest without a system call and without a page fault.
//!
//! The table is small and its lock is held for a look through it; whatever leaves is unmapped by the caller, without it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::{COUNTERS, RUN_MAX, refault};
use crate::lock::Lock;
use crate::sys;

/// Pieces that are kept at most.
const SLOTS: usize = 16;

/// Part of a block, as a shift, by which a piece may be longer without being cut: sizes that vary a little pay for no
/// cut, and leave no rests.
const SLACK_SHIFT: u32 = 4;

/// What is left over of a piece stays with the block if it is less than this.
const REST_MIN: usize = 256 << 10;

/// Free mappings of one address range. The range belongs to whoever holds the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub start: NonNull<u8>,
    pub len: usize,
    pub origin: Origin,
}

/// Which call to the system a range came from: pieces side by side may be joined only if it is the same, since the system
/// moves no range that it has as several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin(u32);

impl Origin {
    /// Of a range that is not like others, and is never kept.
    pub(super) const PECULIAR: Origin = Origin(0);

    /// Of a range that the system has just mapped, or moved.
    pub(super) fn new() -> Origin {
        static LAST: AtomicU32 = AtomicU32::new(0);
        // Relaxed: a number that nobody else has. After 2³² calls some piece might have the same, and then not lie next
        // to this one.
        Origin(LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1))
    }
}

// SAFETY: a range of addresses, which any thread may use.
unsafe impl Send for Piece {}

#[derive(Clone, Copy)]
struct Slot {
    piece: Piece,
    /// What the worker had counted when it came.
    since: u32,
}

struct Cache {
    slots: [Option<Slot>; SLOTS],
    /// Bytes of all pieces.
    bytes: usize,
    /// Seconds that the worker has counted.
    now: u32,
}

static CACHE: Lock<Cache> = Lock::new(Cache::new());

/// Bytes of all mappings, in use or kept: what the limit is compared with changes with the system's mappings alone, not where
/// one changes hands. Relaxed throughout: the value is the whole of what is compared.
pub(crate) static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of all pieces when the lock was last held. Relaxed throughout: a statistic.
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// Whether every freed mapping goes back at once. Relaxed: set before the heap is announced to be up.
static DISABLED: AtomicBool = AtomicBool::new(cfg!(any(pcpalloc_twin, miri)));

/// Runs `f` on the cache, under its lock.
fn with_cache<R>(f: impl FnOnce(&mut Cache) -> R) -> R {
    let mut cache = CACHE.lock();
    let result = f(&mut cache);
    BYTES.store(cache.bytes, Ordering::Relaxed);
    result
}

/// Has every freed mapping go back at once, so that a use after the free ends the process.
pub(crate) fn disable() {
    DISABLED.store(true, Ordering::Relaxed);
}

/// Bytes that are kept, resident or not.
pub(crate) fn bytes() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// Of these, bytes that have memory behind them. For reports: the system is asked about each page.
pub(crate) fn resident_bytes() -> usize {
    // Without the lock: what leaves meanwhile is not counted, or is another's for a moment.
    let pieces = with_cache(|cache| cache.slots.map(|slot| Some(slot?.piece)));
    pieces.into_iter().flatten().map(|piece| sys::resident_bytes(piece.start, piece.len)).sum()
}

/// Bytes in mappings that hold a block, headers included.
pub(crate) fn in_use() -> usize {
    MAPPED.load(Ordering::Relaxed).saturating_sub(bytes())
}

/// The most of them in this second and in the one before. Relaxed throughout: how much is kept by it is a guess.
static MOST: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// There are about to be fewer bytes in use.
pub(super) fn note_most() {
    MOST[0].fetch_max(in_use(), Ordering::Relaxed);
}

/// Bytes by which fewer are in use than were at some time in this second or the one before.
pub(super) fn below_most() -> usize {
    let [now, before] = &MOST;
    now.load(Ordering::Relaxed).max(before.load(Ordering::Relaxed)).saturating_sub(in_use())
}

/// Locks or unlocks for `fork`.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire { CACHE.acquire() } else { CACHE.release() }
}

/// Keeps a freed mapping, or as much of it as may be kept: `bound` bytes with what is kept already.
pub(super) fn put(piece: Piece, bound: usize) {
    if DISABLED.load(Ordering::Relaxed) || piece.origin == Origin::PECULIAR {
        return unmap(piece);
    }
    let (kept, rest) = piece.cut(bound);
    if let Some(rest) = rest {
        refault::MAPPINGS.gave(rest.len);
        unmap(rest);
    }
    let Some(kept) = kept else { return };
    shrink_to(bound - kept.len);
    // A second time if the table is full and its oldest has gone; a third time others are as fast.
    let mut kept = kept;
    for _ in 0..2 {
        let outcome = with_cache(|cache| cache.insert(kept));
        let Err(refused) = outcome else { return };
        kept = refused;
        let oldest = with_cache(|cache| cache.remove_oldest(0));
        oldest.into_iter().for_each(|slot| unmap_kept(slot.piece));
    }
    unmap(kept);
}

/// A piece for a mapping of `len` bytes, which may be longer or shorter than that.
pub(super) fn take(len: usize) -> Option<Piece> {
    // Relaxed: a hint.
    if bytes() == 0 {
        return None;
    }
    let piece = with_cache(|cache| cache.take(len))?;
    COUNTERS.reused.fetch_add(1, Ordering::Relaxed);
    Some(piece)
}

/// Bytes from `end` on, where a mapping of this origin ends, that now belong to it: `len` or a few more; fewer if there
/// are no more.
pub(super) fn take_behind(end: usize, origin: Origin, len: usize) -> usize {
    if bytes() == 0 || origin == Origin::PECULIAR {
        return 0;
    }
    let taken = with_cache(|cache| cache.take_behind(end, origin, len));
    if taken > 0 {
        COUNTERS.reused.fetch_add(1, Ordering::Relaxed);
    }
    taken
}

/// Gives `bytes` back to the system, the oldest first, if there are as many; returns how many there were.
pub(crate) fn release(bytes: usize) -> usize {
    let mut released = 0;
    while released < bytes {
        let oldest = with_cache(|cache| cache.remove_oldest(0));
        let Some(oldest) = oldest else { break };
        let (kept, rest) = oldest.piece.cut(oldest.piece.len.saturating_sub(bytes - released));
        if let Some(rest) = rest {
            released += rest.len;
            unmap_kept(rest);
        }
        if let Some(kept) = kept {
            let back = with_cache(|cache| cache.insert_at(kept, oldest.since));
            if let Err(kept) = back {
                released += kept.len;
                unmap_kept(kept);
            }
        }
    }
    released
}

/// Gives back what exceeds `bound`; returns how much.
pub(crate) fn shrink_to(bound: usize) -> usize {
    let excess = bytes().saturating_sub(bound);
    let released = if excess > 0 { release(excess) } else { 0 };
    refault::MAPPINGS.gave(released);
    released
}

/// A second has passed: gives back what has lain here for as long; returns how much.
pub(crate) fn release_unused() -> usize {
    with_cache(|cache| cache.now = cache.now.wrapping_add(1));
    let [now, before] = &MOST;
    before.store(now.swap(in_use(), Ordering::Relaxed), Ordering::Relaxed);
    let mut released = 0;
    loop {
        let oldest = with_cache(|cache| cache.remove_oldest(2));
        let Some(oldest) = oldest else { break };
        released += oldest.piece.len;
        unmap_kept(oldest.piece);
    }
    released
}

/// Gives a piece back.
pub(super) fn unmap(piece: Piece) {
    // SAFETY: the piece is the caller's, who has given up what was in it.
    unsafe { sys::unmap(piece.start, piece.len) };
    MAPPED.fetch_sub(piece.len, Ordering::Relaxed);
}

fn unmap_kept(piece: Piece) {
    unmap(piece);
    COUNTERS.released.fetch_add(piece.len, Ordering::Relaxed);
}

impl Piece {
    fn address(&self) -> usize {
        sys::addr(self.start)
    }

    /// Its first bytes, at most so many and whole pages, and the rest. A start that serves no block is rest, too.
    fn cut(self, len: usize) -> (Option<Piece>, Option<Piece>) {
        let len = len & !(sys::page_size() - 1);
        if self.len <= len {
            (Some(self), None)
        } else if len < RUN_MAX {
            (None, Some(self))
        } else {
            (Some(Piece { len, ..self }), Some(self.behind(len)))
        }
    }

    /// Whether it lies right behind another of the same origin.
    fn follows(&self, other: &Piece) -> bool {
        self.origin == other.origin && self.address() == other.address() + other.len
    }

    /// What lies behind its first `len` bytes, of which it has more.
    fn behind(self, len: usize) -> Piece {
        // SAFETY: an address inside the piece, which is one mapping.
        Piece { start: unsafe { self.start.add(len) }, len: self.len - len, origin: self.origin }
    }
}

impl Cache {
    const fn new() -> Cache {
        Cache { slots: [None; SLOTS], bytes: 0, now: 0 }
    }

    /// Puts a piece in as the newest.
    fn insert(&mut self, piece: Piece) -> Result<(), Piece> {
        self.insert_at(piece, self.now)
    }

    fn insert_at(&mut self, mut piece: Piece, since: u32) -> Result<(), Piece> {
        // A short rest of the same mapping serves no block by itself.
        for slot in &mut self.slots {
            if let Some(rest) = slot
                && rest.piece.len < RUN_MAX
                && rest.piece.follows(&piece)
            {
                piece.len += rest.piece.len;
                self.bytes -= rest.piece.len;
                *slot = None;
            }
        }
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.is_none()) else { return Err(piece) };
        self.bytes += piece.len;
        *slot = Some(Slot { piece, since });
        Ok(())
    }

    fn remove(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots[index].take()?;
        self.bytes -= slot.piece.len;
        Some(slot)
    }

    /// Seconds that the worker has counted since it came.
    fn age(&self, slot: &Slot) -> u32 {
        self.now.wrapping_sub(slot.since)
    }

    /// The slots in use, by number.
    fn used(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
    }

    /// The piece that came first, if it was here when the worker counted `age` seconds.
    fn remove_oldest(&mut self, age: u32) -> Option<Slot> {
        let ages = self.used().map(|(index, slot)| (self.age(slot), index));
        let (_, index) = ages.max().filter(|oldest| oldest.0 >= age)?;
        self.remove(index)
    }

    /// The start of the smallest piece that has `len` bytes, once those side by side are joined if need be; else all of
    /// the largest.
    fn take(&mut self, len: usize) -> Option<Piece> {
        let smallest = |cache: &Cache| {
            let fits = cache.used().filter(|(_, slot)| slot.piece.len >= len);
            fits.min_by_key(|(_, slot)| slot.piece.len).map(|(index, _)| index)
        };
        let index = smallest(self).or_else(|| {
            self.join();
            smallest(self)
        });
        let index = index.or_else(|| Some(self.used().max_by_key(|(_, slot)| slot.piece.len)?.0))?;
        self.take_start(index, len)
    }

    fn take_follower(&mut self, piece: &Piece) -> Option<Slot> {
        let follows = |slot: &&mut Option<Slot>| slot.is_some_and(|slot| slot.piece.follows(piece));
        self.slots.iter_mut().find(follows)?.take()
    }

    /// Makes one of pieces side by side, as old as the oldest of them.
    fn join(&mut self) {
        for first in 0..SLOTS {
            while let Some(slot) = self.slots[first]
                && let Some(behind) = self.take_follower(&slot.piece)
            {
                let piece = Piece { len: slot.piece.len + behind.piece.len, ..slot.piece };
                let oldest = if self.age(&behind) > self.age(&slot) { behind } else { slot };
                self.slots[first] = Some(Slot { piece, since: oldest.since });
            }
        }
    }

    /// The first bytes of a piece, `len` or a few more, or all that it has.
    fn take_start(&mut self, index: usize, len: usize) -> Option<Piece> {
        let slot = self.slots[index].as_mut()?;
        let piece = slot.piece;
        if piece.len < len || piece.len - len <= (len >> SLACK_SHIFT).max(REST_MIN) {
            return self.remove(index).map(|slot| slot.piece);
        }
        slot.piece = piece.behind(len);
        self.bytes -= len;
        Some(Piece { len, ..piece })
    }

    /// Bytes of pieces from `end` on, `len` or a few more if there are as many.
    fn take_behind(&mut self, end: usize, origin: Origin, len: usize) -> usize {
        let mut taken = 0;
        while taken < len {
            let next = self.used().find(|(_, slot)| slot.piece.address() == end + taken && slot.piece.origin == origin);
            let Some((index, _)) = next else { break };
            taken += self.take_start(index, len - taken).map_or(0, |piece| piece.len);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::PAGE;

    const UNIVERSE: usize = 4096;

    fn piece(page: usize, pages: usize) -> Piece {
        let start = NonNull::new(((1 << 30) + page * PAGE) as *mut u8).expect("no page is at 0");
        Piece { start, len: pages * PAGE, origin: Origin(7) }
    }

    fn pages(piece: &Piece) -> core::ops::Range<usize> {
        let first = (piece.address() - (1 << 30)) / PAGE;
        first..first + piece.len / PAGE
    }

    /// A cache of which every page is known to be in it, in a block, or gone.
    struct World {
        cache: Cache,
        /// 0 in the cache, 1 in a block, 2 gone.
        state: Vec<u8>,
        blocks: Vec<Piece>,
        random: u64,
    }

    impl World {
        fn below(&mut self, n: usize) -> usize {
            self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.random >> 33) as usize % n
        }

        fn turn(&mut self, piece: &Piece, from: u8, to: u8) {
            for page in pages(piece) {
                assert_eq!(self.state[page], from, "page {page}");
                self.state[page] = to;
            }
        }

        fn step(&mut self) {
            match self.below(10) {
                0..4 => {
                    let wanted = (1 + self.below(1500)) * PAGE;
                    let largest = self.cache.used().map(|(_, slot)| slot.piece.len).max();
                    let taken = self.cache.take(wanted);
                    assert_eq!(taken.is_some(), largest.is_some());
                    let Some(piece) = taken else { return };
                    assert!(
                        largest.is_none_or(|largest| largest < wanted) || piece.len >= wanted,
                        "one was long enough"
                    );
                    assert!(piece.len <= wanted + (wanted >> SLACK_SHIFT).max(REST_MIN), "too much for {wanted}");
                    self.turn(&piece, 0, 1);
                    self.blocks.push(piece);
                }
                4..6 if !self.blocks.is_empty() => {
                    let at = self.below(self.blocks.len());
                    let wanted = (1 + self.below(500)) * PAGE;
                    let block = self.blocks[at];
                    let end = block.address() + block.len;
                    assert_eq!(self.cache.take_behind(end, Origin(8), wanted), 0, "another origin's");
                    let more = self.cache.take_behind(end, block.origin, wanted);
                    if more > 0 {
                        self.turn(&Piece { len: more, ..block.behind_end() }, 0, 1);
                        self.blocks[at].len += more;
                    }
                }
                6 => {
                    let age = self.below(3) as u32;
                    if let Some(slot) = self.cache.remove_oldest(age) {
                        assert!(self.cache.age(&slot) >= age);
                        assert!(self.cache.used().all(|(_, other)| self.cache.age(other) <= self.cache.age(&slot)));
                        self.turn(&slot.piece, 0, 2);
                    }
                }
                7 => self.cache.now = self.cache.now.wrapping_add(1),
                _ if !self.blocks.is_empty() => {
                    let at = self.below(self.blocks.len());
                    let block = self.blocks.swap_remove(at);
                    self.turn(&block, 1, 0);
                    if let Err(refused) = self.cache.insert(block) {
                        assert_eq!(self.cache.used().count(), SLOTS);
                        assert_eq!(refused, block);
                        self.turn(&refused, 0, 2);
                    }
                }
                _ => {}
            }
        }

        fn check(&self) {
            let mut state = self.state.clone();
            for (_, slot) in self.cache.used() {
                for page in pages(&slot.piece) {
                    assert_eq!(state[page], 0, "page {page} is kept, once");
                    state[page] = 3;
                }
            }
            assert!(!state.contains(&0), "a page is lost");
            let kept: usize = self.cache.used().map(|(_, slot)| slot.piece.len).sum();
            assert_eq!(kept, self.cache.bytes);
        }
    }

    impl Piece {
        fn behind_end(self) -> Piece {
            // SAFETY: an address, of which nothing is read.
            Piece { start: unsafe { NonNull::new_unchecked(self.start.as_ptr().wrapping_add(self.len)) }, ..self }
        }
    }

    /// Every page is kept once, in one block, or gone; blocks are as long as they must be and not much longer.
    ///
    /// Control: `take_start` that leaves the piece as it was, `join` that drops the follower, `remove_oldest` by `min`,
    /// `follows` without the origin: red.
    #[test]
    fn no_page_is_lost_or_kept_twice() {
        for seed in 0..200 {
            let mut world = World { cache: Cache::new(), state: vec![1; UNIVERSE], blocks: Vec::new(), random: seed };
            world.cache.now = u32::MAX - 5;
            world.blocks = (0..UNIVERSE / 512).map(|n| piece(n * 512, 512)).collect();
            for _ in 0..400 {
                world.step();
                world.check();
            }
        }
    }

    /// What a vector that doubles needs is one piece, however it was cut.
    #[test]
    fn a_block_grows_into_what_it_left() {
        let mut cache = Cache::new();
        cache.insert(piece(0, 4096)).expect("there is room");
        let mut block = cache.take(1025 * PAGE).expect("a piece");
        assert_eq!(pages(&block), 0..1025);
        for pages in [2049, 4096] {
            let wanted = pages * PAGE - block.len;
            assert_eq!(cache.take_behind(block.address() + block.len, block.origin, wanted), wanted);
            block.len += wanted;
        }
        assert_eq!((cache.bytes, cache.used().count()), (0, 0));
    }

    /// Pieces that were cut for small blocks are one again when a large one comes.
    ///
    /// Control: `take` without `join`.
    #[test]
    fn pieces_are_joined_when_none_fits() {
        let mut cache = Cache::new();
        [piece(2048, 1024), piece(0, 1024), piece(3072, 1024), piece(1024, 1024)]
            .into_iter()
            .for_each(|piece| cache.insert(piece).expect("there is room"));
        assert_eq!(cache.take(1024 * PAGE).map(|piece| piece.len), Some(1024 * PAGE));
        assert_eq!(cache.used().count(), 3);
        assert!(cache.take(2048 * PAGE).is_some_and(|piece| piece.len >= 2048 * PAGE));
        // Of other origins they stay apart.
        let mut cache = Cache::new();
        cache.insert(piece(0, 1024)).expect("there is room");
        cache.insert(Piece { origin: Origin(8), ..piece(1024, 1024) }).expect("there is room");
        assert_eq!(cache.take(2048 * PAGE).map(|piece| piece.len), Some(1024 * PAGE));
    }
}
