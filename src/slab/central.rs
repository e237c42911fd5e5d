//! The slabs of a class in a shard, and what there is of them.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Slab;
use super::empty::{self, Chain};
use super::shard::{SHARDS, others, shards_of};
use super::tags::class_of_tag;
#[cfg(feature = "debug")]
use super::tags::tag_of;
use crate::lock::{Guard, Lock};
use crate::size_class::{CLASS, CLASSES, Class, block_size};
use crate::zone::{MARKS, Zone};

/// A shard with so few slabs of a class lends them whether it uses them or not: were it to keep them, each class that a
/// program uses at all would have one for each of its CPUs.
const FEW: usize = 4;

/// All slabs, by shard and class.
static CENTRALS: [[Central; CLASSES]; SHARDS] = [const { [const { Central::new() }; CLASSES] }; SHARDS];

/// The slabs of a class in a shard.
pub(crate) fn central(shard: usize, class: usize) -> &'static Central {
    &CENTRALS[shard][class]
}

/// How the blocks of a class on a node stand, in all of its shards.
pub(crate) fn counts_on(node: usize, class: usize) -> Counts {
    shards_of(node, class).map(|shard| central(shard, class).counts()).fold(Counts::NONE, Counts::plus)
}

/// The slabs of a class in a shard; aligned so that two classes share no cache line.
#[repr(align(64))]
pub(crate) struct Central {
    slabs: Lock<Slabs>,
    /// Blocks handed out that are runs of their own: counted in the first shard of their node. Relaxed throughout: a statistic.
    pub(super) runs: AtomicUsize,
}

/// What a central's lock guards.
pub(super) struct Slabs {
    /// Those with a free block, the one that came last in front.
    pub(super) partial: *mut Slab,
    /// The last of them.
    last: *mut Slab,
    listed: usize,
    /// Those that no block of is in use.
    empty: Chain,
    /// What there is, on a list or not.
    pub(super) counts: Counts,
    /// The fewest free blocks that there have been since that was last asked.
    pub(super) least: usize,
    /// The fewest since another shard last came by for a slab.
    lendable: usize,
    /// Some are looked at without the lock (`holes.rs`): none goes to another shard meanwhile.
    pub(super) stay: bool,
}

// SAFETY: the list's slabs belong to the central, under whose lock the value is.
unsafe impl Send for Slabs {}

/// How the blocks of a central stand.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub slabs: usize,
    /// Of these, slabs without a block in use: in what [`Central::counts`] returns, not in what the lock guards.
    pub empty: usize,
    /// Blocks of all slabs that are with this layer.
    pub free: usize,
    /// Of these, blocks that have no memory behind them yet.
    pub untouched: usize,
    /// Bytes of the slabs that have been given back to the system; those of blocks that are free.
    pub holes: usize,
    /// Blocks handed out.
    pub out: usize,
}

impl Counts {
    const NONE: Counts = Counts { slabs: 0, empty: 0, free: 0, untouched: 0, holes: 0, out: 0 };

    fn plus(self, other: Counts) -> Counts {
        Counts {
            slabs: self.slabs + other.slabs,
            empty: self.empty + other.empty,
            free: self.free + other.free,
            untouched: self.untouched + other.untouched,
            holes: self.holes + other.holes,
            out: self.out + other.out,
        }
    }

    /// So many blocks that were handed out are free.
    pub(super) fn came_back(&mut self, blocks: usize) {
        self.free += blocks;
        self.out -= blocks;
    }

    /// Bytes of free blocks that have memory behind them.
    pub(crate) fn idle_bytes(&self, class: usize) -> usize {
        ((self.free - self.untouched) * block_size(class)).saturating_sub(self.holes)
    }
}

impl Central {
    const fn new() -> Central {
        let slabs = Slabs {
            partial: null_mut(),
            last: null_mut(),
            listed: 0,
            empty: Chain::new(),
            counts: Counts::NONE,
            least: 0,
            lendable: 0,
            stay: false,
        };
        Central { slabs: Lock::new(slabs), runs: AtomicUsize::new(0) }
    }

    pub(crate) fn counts(&self) -> Counts {
        let slabs = self.slabs.lock();
        let mut counts = slabs.counts;
        counts.empty = slabs.empty.len();
        counts.out += self.runs.load(Ordering::Relaxed);
        counts
    }

    pub(super) fn lock(&self) -> Guard<'_, Slabs> {
        self.slabs.lock()
    }

    /// What there is, and the fewest free blocks that there have been since this was last asked.
    pub(super) fn take_least(&self) -> (Counts, usize) {
        let mut slabs = self.slabs.lock();
        let free = slabs.counts.free;
        (slabs.counts, core::mem::replace(&mut slabs.least, free))
    }

    /// The fewest empty slabs that there have been since this was last asked.
    pub(super) fn take_least_empty(&self) -> usize {
        self.slabs.lock().empty.take_least()
    }

    /// Takes empty slabs out of the central, those that came first: as many as `wanted` says of how many there are; chained,
    /// for [`retire`](super::retire::retire), and how many.
    pub(super) fn take_empty(&self, class: &Class, wanted: impl FnOnce(usize) -> usize) -> (*mut Slab, usize) {
        let mut slabs = self.slabs.lock();
        let count = wanted(slabs.empty.len()).min(slabs.empty.len());
        let kept = slabs.empty.len() - count;
        let first = slabs.empty.split_off(kept);
        let mut slab = first;
        // SAFETY: these were on the list, and whoever takes them off it is the only one to refer to them.
        while let Some(this) = unsafe { slab.as_ref() } {
            slabs.forget(class, this);
            slab = this.next;
        }
        if count > 0 {
            // Under the lock, so that a child of `fork` has as many as are counted.
            empty::forget(class, count);
            slabs.note_empty(first);
        }
        (first, count)
    }

    /// Takes a slab out of the central that its shard has had no use for since it was last asked, if there is one and nobody
    /// holds the lock; the slab is on no list then, and `shard`'s.
    ///
    /// That is one with no more free blocks than there have always been: so many could have been taken away, and the shard
    /// would have done the same.
    fn lend(&self, class: &Class, shard: usize) -> Option<NonNull<Slab>> {
        let mut slabs = self.slabs.try_lock()?;
        let free = slabs.counts.free;
        let lendable = core::mem::replace(&mut slabs.lendable, free);
        // The one that came first: what is in it has been free for longest.
        let slab = NonNull::new(slabs.last)?;
        // SAFETY: a slab of this central, whose lock is held.
        let this = unsafe { slab.as_ref() };
        if slabs.stay
            || this.free_blocks() > lendable && slabs.counts.slabs > FEW
            || this.holes != 0 && MARKS.is_limited()
        {
            return None;
        }
        slabs.unlink(slab.as_ptr());
        slabs.forget(class, this);
        slabs.counts.out -= class.blocks as usize - this.free_blocks();
        slabs.lendable = lendable.saturating_sub(this.free_blocks());
        let (zone, page) = run_of(slab.as_ptr());
        zone.set_shard(page, shard);
        Some(slab)
    }

    /// Locks or unlocks for `fork`.
    pub(crate) fn fork_lock(&self, acquire: bool) {
        if acquire { self.slabs.acquire() } else { self.slabs.release() }
    }
}

impl Slabs {
    /// Takes blocks off what is counted as free, as handed out.
    pub(super) fn went_out(&mut self, blocks: usize) {
        self.counts.free -= blocks;
        self.counts.out += blocks;
        self.note_least();
    }

    fn note_least(&mut self) {
        self.least = self.least.min(self.counts.free);
        self.lendable = self.lendable.min(self.counts.free);
    }

    /// Gets a slab from another shard of the node that can spare one; whether there was any. These are the slabs of `shard`.
    pub(super) fn borrow(&mut self, shard: usize, index: usize) -> bool {
        let class = &CLASS[index];
        let Some(slab) = others(shard, index).find_map(|other| central(other, index).lend(class, shard)) else {
            return false;
        };
        // SAFETY: a slab that is this central's from now on, whose lock is held.
        let this = unsafe { slab.as_ref() };
        self.counts.slabs += 1;
        self.counts.free += this.free_blocks();
        self.counts.out += class.blocks as usize - this.free_blocks();
        self.counts.untouched += this.untouched(class);
        self.counts.holes += this.hole_bytes(class);
        self.link(slab.as_ptr());
        true
    }

    pub(super) fn listed(&self) -> usize {
        self.listed
    }

    pub(super) fn link(&mut self, slab: *mut Slab) {
        // SAFETY: the slab and the list's head are slabs of this central, under its lock.
        unsafe {
            (*slab).prev = null_mut();
            (*slab).next = self.partial;
            match self.partial.as_mut() {
                Some(first) => first.prev = slab,
                None => self.last = slab,
            }
        }
        self.partial = slab;
        self.listed += 1;
    }

    pub(super) fn unlink(&mut self, slab: *mut Slab) {
        // SAFETY: the slab is on the list, so its neighbours are, under the lock.
        unsafe {
            let (next, prev) = ((*slab).next, (*slab).prev);
            match next.as_mut() {
                Some(next) => next.prev = prev,
                None => self.last = prev,
            }
            match prev.as_mut() {
                Some(prev) => prev.next = next,
                None => self.partial = next,
            }
        }
        self.listed -= 1;
    }

    /// Takes the first slab off the list.
    pub(super) fn pop_front(&mut self) -> Option<NonNull<Slab>> {
        let first = NonNull::new(self.partial)?;
        self.unlink(first.as_ptr());
        Some(first)
    }

    /// Puts a slab that has a free block and is not on the list at its end.
    pub(super) fn push_back(&mut self, slab: NonNull<Slab>) {
        let Some(last) = NonNull::new(self.last) else { return self.link(slab.as_ptr()) };
        // SAFETY: both are slabs of this central, under its lock.
        unsafe {
            (*slab.as_ptr()).prev = last.as_ptr();
            (*slab.as_ptr()).next = null_mut();
            (*last.as_ptr()).next = slab.as_ptr();
        }
        self.last = slab.as_ptr();
        self.listed += 1;
    }

    /// Puts an empty slab on the list, the one that came last; null if there is none.
    pub(super) fn revive(&mut self, class: &Class) -> *mut Slab {
        let slab = self.empty.pop();
        if !slab.is_null() {
            empty::forget(class, 1);
            self.note_empty(slab);
            self.link(slab);
        }
        slab
    }

    /// One or more have come to the empty slabs or left them, of which `slab` is one: notes it where the class has its first
    /// or none now.
    fn note_empty(&self, slab: *mut Slab) {
        let count = self.empty.len();
        if count <= 1 {
            let (zone, page) = run_of(slab);
            // A slab that is not retired yet: its pages carry its class.
            if let Some(class) = class_of_tag(zone.tag(page)) {
                empty::note_there(zone.shard(page), class, count == 1);
            }
        }
    }

    /// A slab without a block in use leaves the central.
    fn forget(&mut self, class: &Class, slab: &Slab) {
        self.counts.slabs -= 1;
        self.counts.free -= slab.free_blocks();
        self.counts.untouched -= slab.untouched(class);
        self.counts.holes -= slab.hole_bytes(class);
        self.note_least();
    }

    /// A slab that had `before` free blocks has more now, which are counted: puts it on the list if it had none. One that is
    /// empty is kept as such, unless there are enough of these, or it has holes; then it is taken out of the central and
    /// chained to `emptied`, for [`retire`](super::retire::retire). Whether it is kept.
    pub(super) fn gave_back(&mut self, class: &Class, slab: *mut Slab, before: usize, emptied: &mut *mut Slab) -> bool {
        // SAFETY: a slab of this central, whose lock is held.
        let this = unsafe { &mut *slab };
        let free = this.free_blocks();
        if free == class.blocks as usize {
            if before > 0 {
                self.unlink(slab);
            }
            if this.holes == 0 && empty::admits(class) {
                // SAFETY: a slab of this central that is off its list; with no block in use nobody comes to it by a block.
                unsafe { self.empty.push(slab) };
                empty::note(class);
                self.note_empty(slab);
                return true;
            }
            self.forget(class, this);
            this.next = *emptied;
            *emptied = slab;
        } else if before == 0 {
            self.link(slab);
        }
        false
    }
}

/// The run of a slab, from the slab's address: descriptors lie in their zone, 64 bytes a page.
pub(super) fn run_of(slab: *mut Slab) -> (&'static Zone, u32) {
    // SAFETY: a slab's header is the descriptor of its first page, which lies in a zone.
    let zone = unsafe { Zone::of(slab as usize) };
    let page = (slab as usize - zone.descriptors(0) as usize) / crate::size_class::DESCRIPTOR;
    (zone, page as u32)
}

#[cfg(feature = "debug")]
impl Central {
    /// What has happened to the lock.
    pub(crate) fn lock_counts(&self) -> crate::lock::counted::LockCounts {
        self.slabs.counts()
    }

    /// Whether the list of slabs is whole, and they agree with what is counted.
    pub(crate) fn check(&self, shard: usize, class: usize) -> Result<(), &'static str> {
        let fixed = &CLASS[class];
        let slabs = self.slabs.lock();
        let (mut slab, mut previous) = (slabs.partial, null_mut::<Slab>());
        let (mut free, mut untouched, mut holes, mut listed) = (0, 0, 0, 0);
        // SAFETY: slabs on the list belong to this central, whose lock is held.
        while let Some(this) = unsafe { slab.as_mut() } {
            if this.prev != previous {
                return Err("a list of slabs leads back where it came from");
            }
            this.check(fixed)?;
            let (zone, page) = run_of(slab);
            if zone.tag(page) != tag_of(class) {
                return Err("a slab's pages carry its class");
            }
            if zone.shard(page) != shard {
                return Err("a listed slab is of the shard on whose list it is");
            }
            if this.free_blocks() == 0 || this.free_blocks() == fixed.blocks as usize && fixed.blocks > 1 {
                return Err("a listed slab is neither full nor empty");
            }
            free += this.free_blocks();
            untouched += this.untouched(fixed);
            holes += this.hole_bytes(fixed);
            if !this.check_holes(fixed) {
                return Err("no block in use reaches into a hole");
            }
            listed += 1;
            (previous, slab) = (slab, this.next);
        }
        let mut empty = 0;
        for slab in slabs.empty.iter() {
            // SAFETY: as above.
            let this = unsafe { &mut *slab };
            this.check(fixed)?;
            if this.free_blocks() != fixed.blocks as usize || this.holes != 0 {
                return Err("an empty slab has all blocks, and no holes");
            }
            free += this.free_blocks();
            untouched += this.untouched(fixed);
            empty += 1;
        }
        if empty != slabs.empty.len() {
            return Err("there are as many empty slabs as counted");
        }
        if empty::are_there(shard, class) != (empty > 0) {
            return Err("classes with empty slabs are those noted");
        }
        let counts = &slabs.counts;
        if (free, untouched, holes) != (counts.free, counts.untouched, counts.holes) {
            return Err("slabs hold as many free blocks as counted");
        }
        if previous != slabs.last || listed != slabs.listed || listed + empty > counts.slabs {
            return Err("as many slabs are listed as counted");
        }
        if counts.slabs * fixed.blocks as usize != counts.out + counts.free {
            return Err("every block of a slab is free or handed out");
        }
        Ok(())
    }
}
