//! The slabs of a class on a node, and blocks moved in bulk.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Slab;
use super::bitmap::Misuse;
use crate::lock::{Guard, Lock};
use crate::size_class::{CLASS, CLASSES, Class, PAGE};
use crate::sys;
use crate::zone::{Purpose, TAG_RUN, Zone, nodes};

/// All slabs, by node and class.
static CENTRALS: [[Central; CLASSES]; sys::MAX_NODES] = [const { [const { Central::new() }; CLASSES] }; sys::MAX_NODES];

/// The slabs of a class on a node.
pub(crate) fn central(node: usize, class: usize) -> &'static Central {
    &CENTRALS[node][class]
}

/// A new slab is given its memory in one call, which takes 30 % less time than a fault for every page, once its zone
/// has this many bytes in use: a program so large will use the rest of the slab, too.
const POPULATE_FROM: usize = 8 << 20;

/// The slabs of a class on a node; aligned so that two classes share no cache line.
#[repr(align(64))]
pub(crate) struct Central {
    slabs: Lock<Slabs>,
    /// Blocks handed out that are runs of their own. Relaxed throughout: a statistic.
    runs: AtomicUsize,
}

struct Slabs {
    /// Those with a free block, the one that came last in front.
    partial: *mut Slab,
    /// What there is, on the list or not.
    counts: Counts,
}

// SAFETY: the list's slabs belong to the central, under whose lock the value is.
unsafe impl Send for Slabs {}

/// How the blocks of a central stand.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub slabs: usize,
    /// Blocks of all slabs that are with this layer.
    pub free: usize,
    /// Of these, blocks that have no memory behind them yet.
    pub untouched: usize,
    /// Blocks handed out.
    pub out: usize,
}

impl Central {
    const fn new() -> Central {
        let counts = Counts { slabs: 0, free: 0, untouched: 0, out: 0 };
        Central { slabs: Lock::new(Slabs { partial: null_mut(), counts }), runs: AtomicUsize::new(0) }
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = self.slabs.lock().counts;
        counts.out += self.runs.load(Ordering::Relaxed);
        counts
    }

    /// Locks or unlocks for `fork`.
    pub(crate) fn fork_lock(&self, acquire: bool) {
        if acquire { self.slabs.acquire() } else { self.slabs.release() }
    }
}

impl Slabs {
    fn link(&mut self, slab: *mut Slab) {
        // SAFETY: the slab and the list's head are slabs of this central, under its lock.
        unsafe {
            (*slab).prev = null_mut();
            (*slab).next = self.partial;
            if !self.partial.is_null() {
                (*self.partial).prev = slab;
            }
        }
        self.partial = slab;
    }

    fn unlink(&mut self, slab: *mut Slab) {
        // SAFETY: the slab is on the list, so its neighbours are, under the lock.
        unsafe {
            let (next, prev) = ((*slab).next, (*slab).prev);
            if !next.is_null() {
                (*next).prev = prev;
            }
            if prev.is_null() {
                self.partial = next;
            } else {
                (*prev).next = next;
            }
        }
    }
}

/// The run of a slab, from the slab's address: descriptors lie in their zone, 64 bytes a page.
fn run_of(slab: *mut Slab) -> (&'static Zone, u32) {
    // SAFETY: a slab's header is the descriptor of its first page, which lies in a zone.
    let zone = unsafe { Zone::of(slab as usize) };
    let page = (slab as usize - zone.descriptors(0) as usize) / crate::size_class::DESCRIPTOR;
    (zone, page as u32)
}

/// The tag of the pages of a class.
pub(crate) fn tag_of(class: usize) -> u8 {
    class as u8 + 1
}

/// Fills `out` with blocks of `class`, from `node` if it has or gets any; returns how many there are.
///
/// 0 means that the system gives no more memory.
pub(crate) fn alloc_bulk(node: usize, class: usize, out: &mut [usize]) -> usize {
    let fixed = &CLASS[class];
    if fixed.is_run() {
        return alloc_runs(node, class, out);
    }
    let taken = take_partial(&mut central(node, class).slabs.lock(), fixed, out);
    if taken > 0 {
        return taken;
    }
    // The new slab is filled from before anybody else sees it, without the lock.
    let Some(run) = nodes()[node].alloc(fixed.pages as u32, fixed.order as u32, Purpose::Slab(tag_of(class))) else {
        return 0;
    };
    let populated = run.warm == 0
        && fixed.size as usize <= PAGE
        && run.zone.resident_bytes() >= POPULATE_FROM
        && run.zone.populate_run(run.page, fixed.pages as u32);
    let slab = run.zone.descriptors(run.page).cast::<Slab>();
    let (taken, left, untouched) = unsafe {
        // SAFETY: the run was just taken, so its descriptors belong to us, and they hold the bitmap.
        Slab::init(slab, fixed, run.warm == 0 && !populated, populated);
        let slab = &mut *slab;
        let taken = slab.take(fixed, sys::addr(run.address()), out);
        (taken, slab.free_blocks(), slab.untouched(fixed))
    };
    let mut slabs = central(run.zone.node(), class).slabs.lock();
    slabs.counts.slabs += 1;
    slabs.counts.free += left;
    slabs.counts.untouched += untouched;
    slabs.counts.out += taken;
    if left > 0 {
        slabs.link(slab);
    }
    taken
}

/// Takes blocks from slabs on the list until `out` is full or the list empty.
fn take_partial(slabs: &mut Guard<'_, Slabs>, class: &Class, out: &mut [usize]) -> usize {
    let mut taken = 0;
    while taken < out.len() && !slabs.partial.is_null() {
        let slab = slabs.partial;
        let (zone, page) = run_of(slab);
        // SAFETY: slabs on the list belong to this central, whose lock is held.
        let slab_ref = unsafe { &mut *slab };
        let untouched = slab_ref.untouched(class);
        let n = slab_ref.take(class, sys::addr(zone.address_of(page)), &mut out[taken..]);
        slabs.counts.untouched -= untouched - slab_ref.untouched(class);
        slabs.counts.free -= n;
        slabs.counts.out += n;
        taken += n;
        if slab_ref.free_blocks() == 0 {
            slabs.unlink(slab);
        }
    }
    taken
}

fn alloc_runs(node: usize, class: usize, out: &mut [usize]) -> usize {
    let fixed = &CLASS[class];
    let mut taken = 0;
    while taken < out.len() {
        let Some(run) = nodes()[node].alloc(fixed.pages as u32, 0, Purpose::Block(tag_of(class))) else { break };
        out[taken] = sys::addr(run.address());
        taken += 1;
    }
    central(node, class).runs.fetch_add(taken, Ordering::Relaxed);
    taken
}

/// The class that a tag belongs to.
pub(crate) fn class_of_tag(tag: u8) -> Option<usize> {
    (1..=CLASSES as u8).contains(&tag).then(|| tag as usize - 1)
}

/// A block that was given back with its whole run looks like this, and so does the middle of a large block.
pub(crate) const NOT_IN_USE: &str = "a pointer that is not a block in use was freed (a double free, most likely)";

/// Ends the process over a block that is not what its caller says.
#[cold]
fn misuse(address: usize, tag: u8) -> ! {
    let what = match tag {
        TAG_RUN => "a block was freed or resized with a size that cannot be its own",
        _ if class_of_tag(tag).is_some() => "a block was freed or resized with a size that cannot be its own",
        _ => NOT_IN_USE,
    };
    sys::die(what, address)
}

/// The zone of a block of `class`; ends the process if there can be no such block.
#[inline]
fn zone_of(address: usize, class: usize) -> (&'static Zone, u32) {
    let Some(zone) = Zone::lookup(address) else {
        sys::die("a pointer that is not from this allocator was freed or resized", address);
    };
    let page = Zone::page_of(address);
    let tag = zone.tag(page);
    if tag != tag_of(class) {
        misuse(address, tag);
    }
    (zone, page)
}

/// Gives blocks of `class` back to their slabs, and slabs that are empty to their zones.
///
/// Ends the process over a block that is free already, or that is none.
pub(crate) fn free_bulk(class: usize, blocks: &[usize]) {
    let fixed = &CLASS[class];
    if fixed.is_run() {
        return free_runs(class, blocks);
    }
    let slab_at = |address: usize| {
        let (zone, page) = zone_of(address, class);
        let first = page & !((1u32 << fixed.order) - 1);
        (zone, first, zone.descriptors(first).cast::<Slab>())
    };
    // Headers and bitmaps are out of the way of everything else, so most will miss: let them miss together,
    // and before the lock is held.
    for &address in blocks {
        prefetch(slab_at(address).2);
    }
    let mut empty: *mut Slab = null_mut();
    let mut held: Option<(usize, Guard<'_, Slabs>)> = None;
    for &address in blocks {
        let (zone, first, slab) = slab_at(address);
        let slabs = match &mut held {
            Some((node, slabs)) if *node == zone.node() => slabs,
            _ => {
                held = None;
                &mut held.insert((zone.node(), central(zone.node(), class).slabs.lock())).1
            }
        };
        // SAFETY: the tag says that the page belongs to a slab of this class, whose header is the
        // descriptor of the first page of its aligned run; its central's lock is held.
        let slab_ref = unsafe { &mut *slab };
        let offset = address - sys::addr(zone.address_of(first));
        match slab_ref.give(fixed, offset) {
            Ok(()) => {}
            Err(Misuse::DoubleFree) => sys::die("a block was freed twice", address),
            Err(Misuse::NotABlock) => sys::die("a pointer into the middle of a block was freed", address),
        }
        slabs.counts.free += 1;
        slabs.counts.out -= 1;
        let free = slab_ref.free_blocks();
        if free == fixed.blocks as usize {
            if free > 1 {
                slabs.unlink(slab);
            }
            slabs.counts.slabs -= 1;
            slabs.counts.free -= free;
            slabs.counts.untouched -= slab_ref.untouched(fixed);
            slab_ref.next = empty;
            empty = slab;
        } else if free == 1 {
            slabs.link(slab);
        }
    }
    drop(held);
    while !empty.is_null() {
        // SAFETY: these slabs were taken out of their central, so they are ours alone.
        let (next, touched) = unsafe { ((*empty).next, (*empty).touched_pages(fixed)) };
        let (zone, page) = run_of(empty);
        zone.free(page, fixed.pages as u32, touched as u32);
        empty = next;
    }
}

fn free_runs(class: usize, blocks: &[usize]) {
    let pages = CLASS[class].pages as u32;
    for &address in blocks {
        let (zone, page) = zone_of(address, class);
        if !address.is_multiple_of(PAGE) {
            sys::die("a pointer into the middle of a block was freed", address);
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

/// Where a block of any kind in a zone lies, for layers that were not told its class.
pub(crate) fn tag_at(block: NonNull<u8>) -> Option<(&'static Zone, u32, u8)> {
    let address = sys::addr(block);
    let zone = Zone::lookup(address)?;
    let page = Zone::page_of(address);
    Some((zone, page, zone.tag(page)))
}

#[cfg(feature = "debug")]
impl Central {
    /// Whether the list of slabs is whole, and they agree with what is counted.
    pub(crate) fn check(&self, class: usize) -> Result<(), &'static str> {
        let fixed = &CLASS[class];
        let slabs = self.slabs.lock();
        let (mut slab, mut previous) = (slabs.partial, null_mut::<Slab>());
        let (mut free, mut untouched, mut listed) = (0, 0, 0);
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
            if this.free_blocks() == 0 || this.free_blocks() == fixed.blocks as usize && fixed.blocks > 1 {
                return Err("a listed slab is neither full nor empty");
            }
            free += this.free_blocks();
            untouched += this.untouched(fixed);
            listed += 1;
            (previous, slab) = (slab, this.next);
        }
        let counts = &slabs.counts;
        if (free, untouched) != (counts.free, counts.untouched) || listed > counts.slabs {
            return Err("slabs hold as many free blocks as counted");
        }
        if counts.slabs * fixed.blocks as usize != counts.out + counts.free {
            return Err("every block of a slab is free or handed out");
        }
        Ok(())
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
        return address.is_multiple_of(crate::size_class::PAGE);
    }
    let first = page & !((1u32 << fixed.order) - 1);
    let _slabs = central(zone.node(), class).slabs.lock();
    // SAFETY: as in `free_bulk`.
    let slab = unsafe { &mut *zone.descriptors(first).cast::<Slab>() };
    slab.is_out(fixed, address - sys::addr(zone.address_of(first)))
}
