//! Blocks of a class moved in bulk, out of slabs and into them, with one hold of the class's lock.

use core::mem;
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

use super::Slab;
use super::bitmap::{Arrangement, Backing, GROUP, Misuse, arrangement};
use super::central::{Slabs, central, run_of};
use super::retire::{make_room, retire};
use super::tags::{MIDDLE, TWICE, expect_tag, tag_of, zone_of};
use super::{empty, guard, holes};
use crate::hardening::{self, Hardening};
use crate::lock::Guard;
use crate::size_class::{BATCH_MAX, CLASS, Class, PAGE};
use crate::sys;
use crate::zone::{BELL, HOLES, Purpose, Zone, nodes};

/// A new slab is given its memory in one call, which takes 30 % less time than a fault for every page, once its zone
/// has this many bytes in use: a program so large will use the rest of the slab, too.
const POPULATE_FROM: usize = 8 << 20;

/// Fills `out` with blocks of `class`, from `node` if it has or gets any; returns how many there are.
///
/// 0 means that the system gives no more memory.
pub(crate) fn alloc_bulk(node: usize, class: usize, out: &mut [usize]) -> usize {
    alloc_bulk_counted(node, class, out).0
}

/// As [`alloc_bulk`]; returns also how many blocks of the class the node has handed out, these among them.
pub(crate) fn alloc_bulk_counted(node: usize, class: usize, out: &mut [usize]) -> (usize, usize) {
    let fixed = &CLASS[class];
    if fixed.is_run() {
        return alloc_runs(node, class, out);
    }
    let mut slabs = central(node, class).lock();
    let taken = take_partial(&mut slabs, fixed, out);
    if taken > 0 {
        return (taken, slabs.counts.out);
    }
    drop(slabs);
    // The new slab is filled from before anybody else sees it, without the lock.
    let pages = fixed.pages as u32 + guard::pages() as u32;
    let Some(run) = nodes()[node].alloc(pages, fixed.order as u32, Purpose::Slab(tag_of(class)), make_room) else {
        return (0, 0);
    };
    run.zone.forget_marks(run.page, fixed.pages as u32);
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
    let mut slabs = central(run.zone.node(), class).lock();
    slabs.counts.slabs += 1;
    slabs.counts.free += left;
    slabs.counts.untouched += untouched;
    slabs.counts.out += taken;
    if left > 0 {
        slabs.link(slab);
    }
    (taken, slabs.counts.out)
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
        slabs.counts.free -= n;
        slabs.counts.out += n;
        taken += n;
        if this.free_blocks() == 0 {
            slabs.unlink(slab);
        }
        slab = next;
    }
    slabs.least = slabs.least.min(slabs.counts.free);
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
    (taken, central(node, class).runs.fetch_add(taken, Ordering::Relaxed) + taken)
}

/// Gives blocks of `class` back to their slabs; slabs that are empty then are kept, or go back to their zones.
///
/// Ends the process over a block that is free already, or that is none.
pub(crate) fn free_bulk(class: usize, blocks: &[usize]) {
    let fixed = &CLASS[class];
    if fixed.is_run() {
        return free_runs(class, blocks);
    }
    if nodes().len() == 1 || blocks.len() == 1 {
        return free_to_slabs(class, blocks);
    }
    // Batches that went through several hands have blocks of several nodes by turns, and each turn would take a lock.
    let node_of = |address: usize| zone_of(address, class).0.node();
    let mut sorted = [0; BATCH_MAX];
    for part in blocks.chunks(BATCH_MAX) {
        let mut rest = &mut sorted[..part.len()];
        rest.copy_from_slice(part);
        while let Some(&first) = rest.first() {
            let node = node_of(first);
            let mut count = 0;
            for n in 0..rest.len() {
                if node_of(rest[n]) == node {
                    rest.swap(count, n);
                    count += 1;
                }
            }
            let (of_node, others) = rest.split_at_mut(count);
            free_to_slabs(class, of_node);
            rest = others;
        }
    }
}

/// As [`free_bulk`], for a class with slabs, and blocks of one node.
fn free_to_slabs(class: usize, blocks: &[usize]) {
    let fixed = &CLASS[class];
    let Some(&first) = blocks.first() else { return };
    // Headers and bitmaps are out of the way of everything else, so most will miss: let them miss together,
    // and before the lock is held.
    let arrangement = arrangement(fixed, blocks);
    let fetch = |address: usize| prefetch(Zone::descriptor_at(address & !((PAGE << fixed.order) - 1)));
    if arrangement == Arrangement::Rows {
        blocks.chunks(GROUP).for_each(|group| fetch(group[0]));
    } else {
        blocks.iter().for_each(|&address| fetch(address));
    }
    let (zone, _) = zone_of(first, class);
    let mut slabs = central(zone.node(), class).lock();
    let (emptied, kept) = match arrangement {
        Arrangement::Rows => give_each(&mut slabs, class, zone, blocks, Slab::give_rows),
        Arrangement::Runs => give_each(&mut slabs, class, zone, blocks, Slab::give),
        Arrangement::Scattered => give_each(&mut slabs, class, zone, blocks, Slab::give_first),
    };
    let counts = &slabs.counts;
    // Where a quarter of the slabs is free there may be pages that nobody uses.
    if counts.free > counts.out / 3 {
        BELL.freed(counts.idle_bytes(class));
    }
    drop(slabs);
    retire(fixed, emptied);
    if kept {
        empty::ring();
    }
}

/// Gives blocks of a central, of which the first lies in `zone`, back to their slabs by `give`, which is as [`Slab::give`];
/// returns the slabs that have no place any more, chained, and whether others that are empty now are kept.
#[inline(always)]
fn give_each(
    slabs: &mut Slabs,
    class: usize,
    mut zone: &'static Zone,
    blocks: &[usize],
    give: impl Fn(&mut Slab, &Class, usize, &[usize]) -> Result<usize, (usize, Misuse)>,
) -> (*mut Slab, bool) {
    let fixed = &CLASS[class];
    let (mut emptied, mut kept) = (null_mut(), false);
    let mut committed = zone.committed_bytes();
    // Blocks that are back and not counted yet.
    let mut given = 0;
    let mut rest = blocks;
    while let Some(&address) = rest.first() {
        // Most blocks are of the zone of the one before them.
        if address.wrapping_sub(zone.base()) >= committed {
            zone = zone_of(address, class).0;
            committed = zone.committed_bytes();
        }
        expect_tag(zone, address, class);
        // Runs are aligned stretches of zones, and zones are aligned to more.
        let start = address & !((PAGE << fixed.order) - 1);
        let slab = Zone::descriptor_at(start).cast::<Slab>();
        // SAFETY: the tag says that the page belongs to a slab of this class, whose header is the descriptor of the first
        // page of its run; the lock of its central is held.
        let this = unsafe { &mut *slab };
        let before = this.free_blocks();
        // Blocks that were handed out together often come back together.
        let now = match give(this, fixed, start, rest) {
            Ok(given) => given,
            Err((address, Misuse::DoubleFree)) => sys::die(TWICE, address),
            Err((address, Misuse::NotABlock)) => {
                // Behind the run's last page somebody else's begin.
                zone_of(address, class);
                sys::die(MIDDLE, address)
            }
        };
        rest = &rest[now..];
        given += now;
        // Only then has the central something to do.
        if before == 0 || before + now == fixed.blocks as usize {
            slabs.counts.came_back(mem::take(&mut given));
            kept |= slabs.gave_back(fixed, slab, before, &mut emptied);
        }
    }
    slabs.counts.came_back(given);
    (emptied, kept)
}

fn free_runs(class: usize, blocks: &[usize]) {
    let pages = CLASS[class].pages as u32;
    for &address in blocks {
        let (zone, page) = zone_of(address, class);
        if !address.is_multiple_of(PAGE) {
            sys::die(MIDDLE, address);
        }
        central(zone.node(), class).runs.fetch_sub(1, Ordering::Relaxed);
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
        central(node, class).runs.fetch_sub(1, Ordering::Relaxed);
    }
    if let Some(class) = to {
        central(node, class).runs.fetch_add(1, Ordering::Relaxed);
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
    let _slabs = central(zone.node(), class).lock();
    // SAFETY: as in `free_bulk`.
    let slab = unsafe { &mut *zone.descriptors(first).cast::<Slab>() };
    slab.is_out(fixed, address - sys::addr(zone.address_of(first)))
}
