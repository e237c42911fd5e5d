//! Blocks of a class moved in bulk, out of slabs and into them, with one hold of the class's lock.

use core::mem;
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::Slab;
use super::bitmap::{Arrangement, Backing, GROUP, Misuse, arrangement};
use super::central::{Slabs, central, run_of};
use super::retire::{make_room, retire};
use super::shard::{self, others};
use super::tags::{MIDDLE, TWICE, tag_of, zone_of};
use super::{empty, guard, holes};
use crate::hardening::{self, Hardening};
use crate::lock::Guard;
use crate::size_class::{CLASS, Class, PAGE};
use crate::sys;
use crate::zone::{BELL, HOLES, Purpose, Zone, nodes};

/// A new slab is given its memory in one call, which takes 30 % less time than a fault for every page, once its zone
/// has this many bytes in use: a program so large will use the rest of the slab, too.
const POPULATE_FROM: usize = 8 << 20;

/// Most bytes of slabs that a shard has before it borrows others of a class whose blocks share lines.
const BORROW_FROM: usize = 256 << 10;
/// The same of all shards of a node together, which is what that may waste.
const ALL_BORROW_FROM: usize = 1 << 20;

/// Fills `out` with blocks of `class`, from `shard` if it has or gets any; returns how many there are.
///
/// 0 means that the system gives no more memory.
pub(crate) fn alloc_bulk(shard: usize, class: usize, out: &mut [usize]) -> usize {
    alloc_bulk_counted(shard, class, out).0
}

/// As [`alloc_bulk_counted`], but only what the shard has in its slabs; there may be more where this gives nothing.
pub(crate) fn take_bulk_counted(shard: usize, class: usize, out: &mut [usize]) -> (usize, usize) {
    let fixed = &CLASS[class];
    if fixed.is_run() {
        return (0, 0);
    }
    let mut slabs = central(shard, class).lock();
    (take_partial(&mut slabs, fixed, out), slabs.counts.out * shard::per_node(class))
}

/// As [`alloc_bulk`]; returns also how many blocks of the class the node has handed out, these among them, if its shards are all
/// alike.
pub(crate) fn alloc_bulk_counted(shard: usize, class: usize, out: &mut [usize]) -> (usize, usize) {
    let node = shard::node_of(shard);
    let fixed = &CLASS[class];
    if fixed.is_run() {
        return alloc_runs(node, class, out);
    }
    let mut slabs = central(shard, class).lock();
    let mut taken = take_partial(&mut slabs, fixed, out);
    let few = BORROW_FROM.min(ALL_BORROW_FROM / shard::per_node(class));
    let has_few = slabs.counts.slabs * fixed.pages as usize * PAGE < few;
    if taken == 0 && !(fixed.shares_lines() && has_few) && slabs.borrow(shard, class) {
        taken = take_partial(&mut slabs, fixed, out);
    }
    if taken > 0 {
        return (taken, slabs.counts.out * shard::per_node(class));
    }
    drop(slabs);
    // The new slab is filled from before anybody else sees it, without the lock.
    let pages = fixed.pages as u32 + guard::pages() as u32;
    let Some(run) = nodes()[node].alloc(pages, fixed.order as u32, Purpose::Slab(tag_of(class)), make_room) else {
        return (take_from_others(shard, class, out), 0);
    };
    run.zone.forget_marks(run.page, fixed.pages as u32);
    run.zone.set_shard(run.page, shard);
    if guard::pages() > 0 {
        guard::raise(run.zone, run.page + fixed.pages as u32);
    }
    sys::tools::close(run.address().as_ptr(), (fixed.pages as usize) * PAGE);
    let populated = run.warm == 0
        && fixed.size as usize <= PAGE
        && run.zone.resident_bytes() >= POPULATE_FROM
        && run.zone.populate_run(run.page, fixed.pages as u32);
    if run.grows {
        holes::heap_grew();
    }
    let backing = match run.warm {
        _ if populated => Backing::Populated,
        0 => Backing::Cold,
        _ => Backing::Warm,
    };
    let slab = run.zone.descriptors(run.page).cast::<Slab>();
    let (taken, left, untouched) = unsafe {
        // SAFETY: the run was just taken, so its descriptors belong to us, and they hold the bitmap.
        Slab::init(slab, fixed, backing);
        let slab = &mut *slab;
        if hardening::any(Hardening::RANDOM) {
            slab.carve_all(fixed);
        }
        let taken = take(slab, fixed, sys::addr(run.address()), out);
        (taken, slab.free_blocks(), slab.untouched(fixed))
    };
    let mut slabs = central(shard, class).lock();
    slabs.counts.slabs += 1;
    slabs.counts.free += left;
    slabs.counts.untouched += untouched;
    slabs.counts.out += taken;
    if left > 0 {
        slabs.link(slab);
    }
    (taken, slabs.counts.out * shard::per_node(class))
}

/// Takes blocks from slabs of the node's other shards, whether they could spare them or not.
#[cold]
fn take_from_others(shard: usize, class: usize, out: &mut [usize]) -> usize {
    others(shard, class)
        .map(|other| take_partial(&mut central(other, class).lock(), &CLASS[class], out))
        .find(|&n| n > 0)
        .unwrap_or(0)
}

/// Takes free blocks of a slab: the lowest, or any.
fn take(slab: &mut Slab, class: &Class, start: usize, out: &mut [usize]) -> usize {
    if hardening::any(Hardening::RANDOM) {
        slab.take_any(class, start, out, crate::random::below)
    } else {
        slab.take(class, start, out)
    }
}

/// Takes blocks from slabs on the list, then from empty ones, until `out` is full or there are no more.
fn take_partial(slabs: &mut Guard<'_, Slabs>, class: &Class, out: &mut [usize]) -> usize {
    let mut taken = 0;
    let mut slab = slabs.partial;
    while taken < out.len() {
        if slab.is_null() {
            slab = slabs.revive(class);
        }
        // SAFETY: slabs on the list belong to this central, whose lock is held.
        let Some(this) = (unsafe { slab.as_mut() }) else { break };
        let next = this.next;
        if !holes::admits(class, this) {
            slab = next;
            continue;
        }
        let (zone, page) = run_of(slab);
        let (untouched, holes) = (this.untouched(class), this.hole_bytes(class));
        let n = take(this, class, sys::addr(zone.address_of(page)), &mut out[taken..]);
        slabs.counts.untouched -= untouched - this.untouched(class);
        let filled = holes - this.hole_bytes(class);
        if filled > 0 {
            slabs.counts.holes -= filled;
            HOLES.fetch_sub(filled, Ordering::Relaxed);
        }
        slabs.went_out(n);
        taken += n;
        if this.free_blocks() == 0 {
            slabs.unlink(slab);
        }
        slab = next;
    }
    taken
}

fn alloc_runs(node: usize, class: usize, out: &mut [usize]) -> (usize, usize) {
    let fixed = &CLASS[class];
    let mut taken = 0;
    while taken < out.len() {
        let Some(run) = nodes()[node].alloc(fixed.pages as u32, 0, Purpose::Block(tag_of(class)), make_room) else {
            break;
        };
        run.zone.forget_marks(run.page, 1);
        out[taken] = sys::addr(run.address());
        taken += 1;
    }
    (taken, central(shard::first_of(node), class).runs.fetch_add(taken, Ordering::Relaxed) + taken)
}

/// Gives blocks of `class` back to their slabs; slabs that are empty then are kept, or go back to their zones. What the slice
/// holds afterwards means nothing.
///
/// Ends the process over a block that is free already, or that is none.
pub(crate) fn free_bulk(class: usize, blocks: &mut [usize]) {
    if CLASS[class].is_run() {
        return free_runs(class, blocks);
    }
    let mut rest = blocks;
    // Batches that went through several hands have blocks of several shards; each turn takes the lock of one.
    while let Some(&first) = rest.first() {
        let left = free_to_shard(shard_of_block(class, first), class, rest);
        rest = &mut rest[..left];
    }
}

/// The shard to whose slabs a block of `class` goes back, unless another one gets the slab meanwhile.
pub(crate) fn shard_of_block(class: usize, address: usize) -> usize {
    let (zone, _) = zone_of(address, class);
    zone.shard(Zone::page_of(run_start(&CLASS[class], address)))
}

/// Where the run of a slab starts that a block lies in: runs are aligned stretches of zones, and zones are aligned to more.
#[inline(always)]
fn run_start(class: &Class, address: usize) -> usize {
    address & !((PAGE << class.order) - 1)
}

/// As [`free_bulk`], for a class with slabs, and those blocks that are of one shard; the others are moved to the front. Returns
/// how many these are.
fn free_to_shard(shard: usize, class: usize, blocks: &mut [usize]) -> usize {
    let fixed = &CLASS[class];
    let arrangement = arrangement(fixed, blocks);
    // Headers and bitmaps are out of the way of everything else, so most will miss: let them miss together,
    // and before the lock is held.
    let fetch = |address: usize| prefetch(Zone::descriptor_at(run_start(fixed, address)));
    if arrangement == Arrangement::Rows {
        blocks.chunks(GROUP).for_each(|group| fetch(group[0]));
    } else {
        blocks.iter().for_each(|&address| fetch(address));
    }
    let mut slabs = central(shard, class).lock();
    let given = match arrangement {
        Arrangement::Rows => give_several(&mut slabs, shard, class, blocks, Slab::give_rows),
        Arrangement::Runs => give_several(&mut slabs, shard, class, blocks, Slab::give),
        Arrangement::Scattered => give_singly(&mut slabs, shard, class, blocks),
    };
    let counts = &slabs.counts;
    // Where a quarter of the slabs is free there may be pages that nobody uses.
    if counts.free > counts.out / 3 {
        BELL.freed(counts.idle_bytes(class));
    }
    drop(slabs);
    retire(fixed, given.emptied);
    if given.kept {
        empty::ring();
    }
    given.left
}

/// What became of blocks that went back to a shard.
struct Given {
    /// Slabs that have no place any more, chained.
    emptied: *mut Slab,
    /// Others that are empty now are kept.
    kept: bool,
    /// Blocks that are another shard's, which are in front now.
    left: usize,
}

/// Finds the slabs that blocks of a class go back to.
struct Finder {
    class: usize,
    shard: usize,
    /// Most blocks are of the zone of the one before them.
    zone: &'static Zone,
    committed: usize,
    /// What the pages of the class are tagged with, and the bits of an address within the aligned stretch that a run lies in.
    tag: u8,
    within: usize,
}

impl Finder {
    #[inline(always)]
    fn new(class: usize, shard: usize, first: usize) -> Finder {
        let (zone, _) = zone_of(first, class);
        let (tag, within) = (tag_of(class), (PAGE << CLASS[class].order) - 1);
        Finder { class, shard, zone, committed: zone.committed_bytes(), tag, within }
    }

    /// The slab of a block, and where in its run the block lies; `None` if the slab is another shard's. The lock of the shard's
    /// slabs is held.
    #[inline(always)]
    fn find(&mut self, address: usize) -> Option<(*mut Slab, usize)> {
        let mut offset = address.wrapping_sub(self.zone.base());
        if offset >= self.committed {
            self.zone = zone_of(address, self.class).0;
            self.committed = self.zone.committed_bytes();
            offset = address - self.zone.base();
        }
        let page = (offset / PAGE) as u32;
        if self.zone.tag(page) != self.tag {
            misused(self.class, address, Misuse::NotABlock);
        }
        let first = page & !((self.within / PAGE) as u32);
        if self.zone.shard(first) != self.shard {
            return None;
        }
        Some((self.zone.descriptors(first).cast(), offset & self.within))
    }
}

/// Gives blocks back to their slabs by `give`, which is as [`Slab::give`], if these are of the shard, whose lock is held.
#[inline(always)]
fn give_several(
    slabs: &mut Slabs,
    shard: usize,
    class: usize,
    blocks: &mut [usize],
    give: impl Fn(&mut Slab, &Class, usize, &[usize]) -> Result<usize, (usize, Misuse)>,
) -> Given {
    let fixed = &CLASS[class];
    let mut done = Given { emptied: null_mut(), kept: false, left: 0 };
    let Some(&first) = blocks.first() else { return done };
    let mut finder = Finder::new(class, shard, first);
    // Blocks that are back and not counted yet.
    let mut given = 0;
    let mut at = 0;
    while let Some(&address) = blocks.get(at) {
        let Some((slab, offset)) = finder.find(address) else {
            blocks[done.left] = address;
            done.left += 1;
            at += 1;
            continue;
        };
        // SAFETY: the tag says that the page belongs to a slab of this class, whose header is the descriptor of the first
        // page of its run. It is of this shard, and stays so, since the lock of the shard's slabs is held.
        let this = unsafe { &mut *slab };
        let before = this.free_blocks();
        // Blocks that were handed out together often come back together.
        let now = match give(this, fixed, address - offset, &blocks[at..]) {
            Ok(given) => given,
            Err((address, misuse)) => misused(class, address, misuse),
        };
        at += now;
        given += now;
        // Only then has the central something to do.
        if before == 0 || before + now == fixed.blocks as usize {
            slabs.counts.came_back(mem::take(&mut given));
            done.kept |= slabs.gave_back(fixed, slab, before, &mut done.emptied);
        }
    }
    slabs.counts.came_back(given);
    done
}

/// As [`give_several`], one at a time, with as little to do for each as can be.
fn give_singly(slabs: &mut Slabs, shard: usize, class: usize, blocks: &mut [usize]) -> Given {
    let fixed = &CLASS[class];
    let mut done = Given { emptied: null_mut(), kept: false, left: 0 };
    let Some(&first) = blocks.first() else { return done };
    let mut finder = Finder::new(class, shard, first);
    // Blocks that are back and counted.
    let mut counted = 0;
    for at in 0..blocks.len() {
        let address = blocks[at];
        let Some((slab, offset)) = finder.find(address) else {
            blocks[done.left] = address;
            done.left += 1;
            continue;
        };
        // SAFETY: as in `give_several`.
        let this = unsafe { &mut *slab };
        let before = this.free_blocks() as u16;
        if let Err(misuse) = this.give_one(fixed, offset) {
            misused(class, address, misuse);
        }
        // It had none, or all but one.
        if before.wrapping_sub(1) >= fixed.blocks - 2 {
            slabs.counts.came_back(at + 1 - done.left - counted);
            counted = at + 1 - done.left;
            done.kept |= slabs.gave_back(fixed, slab, before as usize, &mut done.emptied);
        }
    }
    slabs.counts.came_back(blocks.len() - done.left - counted);
    done
}

/// Ends the process over what was given back.
#[cold]
fn misused(class: usize, address: usize, misuse: Misuse) -> ! {
    match misuse {
        Misuse::DoubleFree => sys::die(TWICE, address),
        Misuse::NotABlock => {
            // Another class's page, or, behind the run's last, somebody else's.
            zone_of(address, class);
            sys::die(MIDDLE, address)
        }
    }
}

fn free_runs(class: usize, blocks: &[usize]) {
    let pages = CLASS[class].pages as u32;
    for &address in blocks {
        let (zone, page) = zone_of(address, class);
        if !address.is_multiple_of(PAGE) {
            sys::die(MIDDLE, address);
        }
        central(shard::first_of(zone.node()), class).runs.fetch_sub(1, Ordering::Relaxed);
        zone.free(page, pages, pages);
    }
}

/// Has the processor fetch a line that will be written soon.
#[inline(always)]
fn prefetch<T>(at: *mut T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch of any address has no effect that a program can see.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast::<i8>());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// A block that is a run of its own changes its class, or becomes one, where it lies: accounts for it.
pub(crate) fn account_run(node: usize, from: Option<usize>, to: Option<usize>) {
    if let Some(class) = from {
        central(shard::first_of(node), class).runs.fetch_sub(1, Ordering::Relaxed);
    }
    if let Some(class) = to {
        central(shard::first_of(node), class).runs.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a block of a class has been handed out, by what its page and its slab say.
#[cfg(feature = "debug")]
pub(crate) fn is_out(class: usize, address: usize) -> bool {
    let fixed = &CLASS[class];
    let Some(zone) = Zone::lookup(address) else { return false };
    let page = Zone::page_of(address);
    if zone.tag(page) != tag_of(class) {
        return false;
    }
    if fixed.is_run() {
        return address.is_multiple_of(PAGE);
    }
    let first = page & !((1u32 << fixed.order) - 1);
    let _slabs = loop {
        let shard = zone.shard(first);
        let slabs = central(shard, class).lock();
        if zone.shard(first) == shard {
            break slabs;
        }
    };
    // SAFETY: as in `give_several`.
    let slab = unsafe { &mut *zone.descriptors(first).cast::<Slab>() };
    slab.is_out(fixed, address - sys::addr(zone.address_of(first)))
}
