//! Holes: what is free inside slabs that are partly in use, given back to the system.
//!
//! A program that has freed nine objects in ten, but one of every slab, keeps all slabs. The pages between those
//! objects go back: when nobody has used them for a second (the worker), before the heap grows by a sixteenth of what is
//! resident, when memory is short, and in a trim. A hole costs a bit in the slab's header; it closes by itself
//! when a block that reaches into it is handed out, whose user faults the page in.
//!
//! ```text
//! | used |  free  |  free  | free | used |  free  |        slab, cut into blocks
//! |     page      |     page     |     page      |        the one in the middle is a hole
//! ```
//!
//! Pages are given back many at a time (`process_madvise`, Linux 6.14): one by one costs a fence of all CPUs each,
//! twenty times as much in a program of two threads. Where that call is missing, only a trim and a shortage do it.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Slab;
use super::central::{central, run_of};
use super::retire::retire;
use super::shard::{self, shards};
use crate::hardening::{self, Hardening};
use crate::latency::{self, SlowPath};
use crate::lock::Lock;
use crate::size_class::{CLASS, CLASSES, Class, PAGE, block_size};
use crate::sys;
use crate::zone::{COUNTERS, HOLES, MARKS, resident};

/// Free memory in the slabs of a class below this is left alone.
const NEGLIGIBLE: usize = 256 << 10;

/// Ranges given back by one call.
const RANGES: usize = 64;

/// Resident bytes of the heap from which on [`heap_grew`] looks for holes. Relaxed throughout: a hint.
static NEXT_LOOK: AtomicUsize = AtomicUsize::new(FIRST_LOOK);
const FIRST_LOOK: usize = 8 << 20;

/// Held while blocks are set aside, so that a child of `fork` finds none that are.
static PUNCHING: Lock<()> = Lock::new(());

/// Locks or unlocks for `fork`.
pub(crate) fn fork_lock(acquire: bool) {
    if acquire { PUNCHING.acquire() } else { PUNCHING.release() }
}

/// Bytes that a bit of [`Slab::holes`] stands for: a sixteenth of the largest slabs, and whole pages of the system.
fn stretch(class: &Class) -> usize {
    (PAGE << class.order.saturating_sub(4)).max(sys::page_size())
}

impl Slab {
    /// The blocks that reach into a stretch.
    fn blocks_in(class: &Class, index: usize) -> Range<usize> {
        let stretch = stretch(class);
        class.block_at(index * stretch)..class.block_at((index + 1) * stretch - 1) + 1
    }

    /// The stretches of a set.
    fn stretches(mut set: u16) -> impl Iterator<Item = usize> {
        core::iter::from_fn(move || {
            let lowest = (set != 0).then(|| set.trailing_zeros() as usize);
            set &= set.wrapping_sub(1);
            lowest
        })
    }

    /// Stretches that have memory behind them and that no block reaches into but free ones, which were used before.
    fn idle_stretches(&mut self, class: &Class) -> u16 {
        let carved = self.carved as usize * class.size as usize;
        let mut idle = 0;
        for index in 0..(carved / stretch(class)).min(u16::BITS as usize) {
            if self.holes >> index & 1 == 0 && Slab::blocks_in(class, index).all(|block| self.is_free(block)) {
                idle |= 1 << index;
            }
        }
        idle
    }

    /// Blocks that reach into a set of stretches.
    fn blocks_of(class: &Class, set: u16) -> impl Iterator<Item = usize> {
        let mut next = 0;
        Slab::stretches(set).flat_map(move |index| {
            // Neighbours share the block that lies across their border.
            let blocks = Slab::blocks_in(class, index);
            let first = blocks.start.max(next);
            next = blocks.end;
            first..blocks.end
        })
    }

    /// Takes the blocks of idle stretches out, as if they were handed out; returns their number.
    fn set_aside(&mut self, class: &Class, set: u16) -> usize {
        Slab::blocks_of(class, set).map(|block| self.clear_free(block)).count()
    }

    /// Puts blocks back that were set aside.
    fn put_back(&mut self, class: &Class, set: u16) -> usize {
        Slab::blocks_of(class, set).map(|block| self.set_free(block)).count()
    }

    /// Closes the holes that blocks just handed out reach into.
    #[cold]
    pub(super) fn fill_holes(&mut self, class: &Class, start: usize, blocks: &[usize]) {
        let stretch = stretch(class);
        for &address in blocks {
            let offset = address - start;
            for index in offset / stretch..=(offset + class.size as usize - 1) / stretch {
                self.holes &= !(1u16.checked_shl(index as u32).unwrap_or(0));
            }
        }
    }

    /// Bytes of the slab that have been given back.
    pub(super) fn hole_bytes(&self, class: &Class) -> usize {
        self.holes.count_ones() as usize * stretch(class)
    }

    /// Pages of the slab that have been given back: bit n for the n-th.
    pub(super) fn hole_pages(&self, class: &Class) -> u32 {
        let pages = (stretch(class) / PAGE) as u32;
        Slab::stretches(self.holes).fold(0, |set, index| set | (((1u64 << pages) - 1) << (index as u32 * pages)) as u32)
    }

    /// Whether no block in use reaches into a hole.
    #[cfg(feature = "debug")]
    pub(super) fn check_holes(&mut self, class: &Class) -> bool {
        Slab::blocks_of(class, self.holes).all(|block| self.is_free(block))
    }
}

/// Slabs with idle stretches, whose blocks are set aside.
struct Found {
    slabs: [(*mut Slab, u16); RANGES / 4],
    len: usize,
    ranges: sys::Ranges<RANGES>,
}

impl Found {
    const fn new() -> Found {
        Found { slabs: [(core::ptr::null_mut(), 0); RANGES / 4], len: 0, ranges: sys::Ranges::new() }
    }

    /// Whether any slab has room here, which may have eight stretches apart from each other.
    fn has_room(&self) -> bool {
        self.len < self.slabs.len() && self.ranges.room() >= u16::BITS as usize / 2
    }

    fn add(&mut self, class: &Class, slab: *mut Slab, set: u16) {
        self.slabs[self.len] = (slab, set);
        self.len += 1;
        let (zone, page) = run_of(slab);
        for index in Slab::stretches(set) {
            let stretch = stretch(class);
            self.ranges.add(zone.address_of(page).as_ptr() as usize + index * stretch, stretch);
        }
    }
}

/// Makes holes in the slabs of a class, but for the first ones, which have so many free blocks; returns the bytes.
fn punch(shard: usize, class: usize, spared: usize) -> usize {
    let (fixed, central) = (&CLASS[class], central(shard, class));
    let mut left = central.lock().listed();
    let (mut passed, mut bytes) = (0, 0);
    while left > 0 {
        let _punching = PUNCHING.lock();
        let mut slabs = central.lock();
        let mut found = Found::new();
        // Every slab goes to the end of the list, so that all have been seen when as many have, whatever is listed or
        // unlisted where the lock is not held.
        while left > 0 && found.has_room() {
            let Some(slab) = slabs.pop_front() else {
                left = 0;
                break;
            };
            left -= 1;
            // SAFETY: a slab of this central, whose lock is held.
            let this = unsafe { &mut *slab.as_ptr() };
            let idle = if passed < spared { 0 } else { this.idle_stretches(fixed) };
            passed += this.free_blocks();
            if idle != 0 {
                let aside = this.set_aside(fixed, idle);
                slabs.counts.free -= aside;
                slabs.counts.out += aside;
                found.add(fixed, slab.as_ptr(), idle);
            }
            if this.free_blocks() > 0 {
                slabs.push_back(slab);
            }
        }
        slabs.stay = true;
        drop(slabs);
        let timer = latency::start(SlowPath::Advise);
        // SAFETY: no block in these ranges is in use, and those that reach into them are set aside, so that none is
        // handed out meanwhile.
        let punched = found.len > 0 && unsafe { sys::release_all(&found.ranges) };
        drop(timer);
        slabs = central.lock();
        slabs.stay = false;
        let mut emptied = core::ptr::null_mut();
        for &(slab, set) in &found.slabs[..found.len] {
            // SAFETY: a slab of this central, whose lock is held; it still is one, since blocks of it were aside and `stay` was set.
            let this = unsafe { &mut *slab };
            let before = this.free_blocks();
            if punched {
                this.holes |= set;
                let more = set.count_ones() as usize * stretch(fixed);
                bytes += more;
                slabs.counts.holes += more;
            }
            let back = this.put_back(fixed, set);
            slabs.counts.free += back;
            slabs.counts.out -= back;
            slabs.gave_back(fixed, slab, before, &mut emptied);
        }
        if punched {
            HOLES.fetch_add(found.ranges.bytes(), Ordering::Relaxed);
            COUNTERS.released.fetch_add(found.ranges.bytes(), Ordering::Relaxed);
        }
        drop(slabs);
        retire(fixed, emptied);
        if found.len > 0 && !punched {
            break;
        }
    }
    bytes
}

/// All classes with slabs, in all shards. None where free blocks hold a pattern that is looked at again: a hole reads as
/// zero.
fn slab_classes() -> impl Iterator<Item = (usize, usize)> {
    let poisoned = hardening::any(Hardening::POISON);
    let classes = (0..CLASSES).filter(move |&class| !poisoned && !CLASS[class].is_run());
    classes.flat_map(|class| shards(class).map(move |shard| (shard, class)))
}

/// Bytes of free blocks in slabs that have memory behind them, whatever is in use beside them.
pub(crate) fn idle_bytes() -> usize {
    slab_classes().map(|(shard, class)| central(shard, class).counts().idle_bytes(class)).sum()
}

/// Makes holes wherever nothing in use is in the way; returns the bytes.
pub(crate) fn punch_all() -> usize {
    slab_classes()
        .filter(|&(shard, class)| central(shard, class).counts().idle_bytes(class) > 0)
        .fold(0, |bytes, (shard, class)| bytes + punch(shard, class, 0))
}

/// Makes holes where nobody has taken a free block for a second, which is `everywhere` if nobody has done anything;
/// returns the bytes. Once a second.
pub(crate) fn punch_unused(everywhere: bool) -> usize {
    // What the heap has shrunk to is what it will grow from.
    NEXT_LOOK.fetch_min(next_look(), Ordering::Relaxed);
    let mut bytes = 0;
    for (shard, class) in slab_classes() {
        let (counts, least) = central(shard, class).take_least();
        let least = if everywhere { counts.free } else { least };
        let unused = least * block_size(class);
        if unused.min(counts.idle_bytes(class)) >= NEGLIGIBLE / shard::per_node(class) && sys::releases_at_once() {
            bytes += punch(shard, class, counts.free - least);
        }
    }
    bytes
}

fn next_look() -> usize {
    let resident = resident();
    (resident + resident / 16).max(FIRST_LOOK)
}

/// The heap has taken memory that was cold: if it has grown by a sixteenth since the last look, and as much lies idle in
/// slabs, makes holes there first. Call it without a lock.
#[inline]
pub(crate) fn heap_grew() {
    if resident() >= NEXT_LOOK.load(Ordering::Relaxed) {
        look();
    }
}

#[cold]
fn look() {
    // One of those who come at once looks.
    let (seen, resident) = (NEXT_LOOK.load(Ordering::Relaxed), resident());
    let next = resident + resident / 16;
    if resident < seen || NEXT_LOOK.compare_exchange(seen, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return;
    }
    let idle = |(shard, class)| central(shard, class).counts().idle_bytes(class);
    if sys::releases_at_once() && slab_classes().map(idle).sum::<usize>() >= resident / 16 {
        for (shard, class) in slab_classes().filter(|&at| idle(at) >= NEGLIGIBLE) {
            punch(shard, class, 0);
        }
        NEXT_LOOK.fetch_min(next_look(), Ordering::Relaxed);
    }
}

/// Whether a slab may be allocated from: not if that would fill its holes where the limit leaves no room for them.
pub(super) fn admits(class: &Class, slab: &Slab) -> bool {
    slab.holes == 0 || !MARKS.is_limited() || MARKS.admits(slab.hole_bytes(class), PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::bitmap::Backing;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 300 }, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a set of blocks in use, byte by byte: idle is what no block in use reaches into, all blocks come back
        /// from being set aside, and a hole closes when a block that reaches into it is handed out.
        ///
        /// Red if neighbours' shared block is counted twice: in `blocks_of`, start at `blocks.start`; and red if
        /// `fill_holes` looks at the first byte of a block only.
        #[test]
        fn holes_lie_where_nothing_is_in_use(index in 0..CLASSES, seed in any::<u64>(), used in 0usize..=100) {
            let class = &CLASS[index];
            prop_assume!(!class.is_run());
            let (start, size, blocks) = (0x10_0000, class.size as usize, class.blocks as usize);
            let mut memory = vec![u64::MAX; class.pages as usize * 8];
            let slab = memory.as_mut_ptr().cast::<Slab>();
            // SAFETY: 64 bytes for every page hold the header and the bitmap, as the class tests show.
            let slab = unsafe {
                Slab::init(slab, class, Backing::Warm);
                &mut *slab
            };
            let mut out = vec![0; blocks];
            // All but a few blocks have been used once; clusters of them are in use.
            let carved = slab.take(class, start, &mut out[..blocks - blocks / 10]);
            let mut random = seed;
            let mut in_use = vec![false; blocks];
            for block in 0..carved {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                in_use[block] = if block % 7 == 0 { (random >> 33) % 100 < used as u64 } else { block > 0 && in_use[block - 1] };
                if !in_use[block] {
                    slab.give(class, start, &[start + block * size]).expect("it was handed out");
                }
            }
            let free = slab.free_blocks();
            let stretch = stretch(class);
            let idle = slab.idle_stretches(class);
            for n in 0..class.pages as usize * PAGE / stretch {
                let reaching = (0..carved).filter(|b| b * size < (n + 1) * stretch && (b + 1) * size > n * stretch);
                let whole = (n + 1) * stretch <= carved * size;
                let expected = whole && reaching.clone().all(|block| !in_use[block]);
                prop_assert_eq!(idle >> n & 1 != 0, expected, "stretch {} of {}", n, size);
            }
            let aside = slab.set_aside(class, idle);
            prop_assert_eq!(slab.free_blocks(), free - aside);
            prop_assert_eq!(slab.put_back(class, idle), aside);
            prop_assert_eq!(slab.free_blocks(), free);
            slab.holes = idle;
            prop_assert_eq!(slab.hole_bytes(class), idle.count_ones() as usize * stretch);
            prop_assert_eq!(slab.hole_pages(class).count_ones() as usize * PAGE, slab.hole_bytes(class));
            prop_assert_eq!(slab.idle_stretches(class), 0);
            let taken = slab.take(class, start, &mut out[..free.div_ceil(2)]);
            for n in 0..u16::BITS as usize {
                let reaches = |address: &usize| address - start < (n + 1) * stretch && address - start + size > n * stretch;
                let open = idle >> n & 1 != 0 && !out[..taken].iter().any(reaches);
                prop_assert_eq!(slab.holes >> n & 1 != 0, open, "stretch {} of {}", n, size);
            }
        }
    }
}
