//! The zones of a memory node, and runs of pages from them.

use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use super::bell::BELL;
use super::buddy::{MAX_ORDER, ORDERS, Purpose};
use super::counters::COUNTERS;
use super::filled;
use super::huge;
use super::mapping_cache;
use super::marks::MARKS;
use super::refault;
use super::reservation::Zone;
use crate::latency::{self, SlowPath};
use crate::lock::Lock;
use crate::size_class::{PAGE, PAGE_SHIFT};
use crate::sys;

/// Room for all nodes; those that the machine does not have stay empty.
static NODES: [Node; sys::MAX_NODES] = [const { Node::new() }; sys::MAX_NODES];

/// How many nodes the machine has. Relaxed: set before initialisation is announced.
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// Makes node numbers up to `highest` known.
pub(crate) fn note_node(highest: usize) {
    COUNT.fetch_max((highest + 1).min(sys::MAX_NODES), Ordering::Relaxed);
}

/// For each node all nodes, the nearest first. Relaxed: as for `COUNT`.
static NEAREST: [[AtomicU8; sys::MAX_NODES]; sys::MAX_NODES] =
    [const { [const { AtomicU8::new(0) }; sys::MAX_NODES] }; sys::MAX_NODES];

/// Learns how far the nodes are from each other. Called once, when all are known.
pub(crate) fn note_distances() {
    let count = nodes().len();
    for (node, nearest) in NEAREST.iter().enumerate().take(count) {
        let distances = if count > 1 { sys::node_distances(node) } else { [0; sys::MAX_NODES] };
        let mut order: [u8; sys::MAX_NODES] = core::array::from_fn(|n| n as u8);
        // Itself, then by distance, and nodes that are as far by their numbers from its own on, so that not all turn to
        // the same.
        order[..count].sort_unstable_by_key(|&other| {
            let other = other as usize;
            (other != node, distances[other], (other + count - node) % count)
        });
        order[..count].iter().zip(nearest).for_each(|(&other, entry)| entry.store(other, Ordering::Relaxed));
    }
}

/// All nodes, `node` itself first and then the nearest: where to ask for memory when a node gives none.
pub(crate) fn nodes_from(node: usize) -> impl Iterator<Item = usize> {
    let order = &NEAREST.get(node).unwrap_or(&NEAREST[0])[..nodes().len()];
    order.iter().map(|other| other.load(Ordering::Relaxed) as usize)
}

/// The machine's nodes.
pub(crate) fn nodes() -> &'static [Node] {
    &NODES[..COUNT.load(Ordering::Relaxed)]
}

/// A memory node.
pub(crate) struct Node {
    zones: AtomicPtr<Zone>,
    /// Guards the list's end, across the system calls that make a zone.
    appending: Lock<()>,
    /// A thread gives memory to a unit. Relaxed: whoever has not heard of it gives it to one more.
    populating: AtomicBool,
    /// Bytes of runs that are one block and larger than any class.
    pub(crate) run_bytes: AtomicUsize,
}

/// How often room is made for one run, each time for twice as much: what others free meanwhile would go on for ever.
const ROOM_TRIES: u32 = 16;

/// Pages handed out.
pub(crate) struct Run {
    pub zone: &'static Zone,
    pub page: u32,
    /// How many of the pages may hold old contents; if none does, the run reads as zero.
    pub warm: u32,
    /// Whether the heap takes memory from the system for it: some pages are cold, or a unit of pages was until now.
    pub grows: bool,
}

impl Run {
    #[inline]
    pub(crate) fn address(&self) -> NonNull<u8> {
        self.zone.address_of(self.page)
    }
}

impl Node {
    const fn new() -> Node {
        Node {
            zones: AtomicPtr::new(null_mut()),
            appending: Lock::new(()),
            populating: AtomicBool::new(false),
            run_bytes: AtomicUsize::new(0),
        }
    }

    /// The node's zones, oldest first.
    pub(crate) fn zones(&self) -> impl Iterator<Item = &'static Zone> {
        // Acquire, paired with the release in `append`. SAFETY: zones live for ever.
        let first: Option<&'static Zone> = unsafe { self.zones.load(Ordering::Acquire).as_ref() };
        core::iter::successors(first, |zone| zone.next())
    }

    /// Locks or unlocks the list and all its zones, for `fork`.
    pub(crate) fn fork_lock(&self, acquire: bool) {
        if acquire {
            self.appending.acquire();
            self.zones().for_each(|zone| zone.fork_lock(true));
        } else {
            self.zones().for_each(|zone| zone.fork_lock(false));
            self.appending.release();
            // Whoever was at it in the parent does not come to its end in a child.
            self.populating.store(false, Ordering::Relaxed);
        }
    }

    /// A run of `pages` aligned to `1 << align` pages: from the oldest zone that has one free, by growing a
    /// zone, or from a new zone. `None` when the system gives no more.
    ///
    /// Before it takes cold memory, `make_room` may give this node's zones what it has of warm memory, for so many bytes,
    /// and says whether it had any.
    pub(crate) fn alloc(
        &self,
        pages: u32,
        align: u32,
        purpose: Purpose,
        make_room: impl Fn(usize, usize) -> bool,
    ) -> Option<Run> {
        let order = align.max(pages.next_power_of_two().trailing_zeros());
        if order > MAX_ORDER {
            return None;
        }
        let mut tries = 0..ROOM_TRIES;
        let bytes = (pages as usize) << PAGE_SHIFT;
        let mut make_room = || tries.next().is_some_and(|n| make_room(self.number(), bytes << n));
        // Bytes that a unit was given for this run.
        let mut ahead = None;
        loop {
            if let Some(run) = self.alloc_free(pages, align, order, purpose) {
                if run.warm < pages && make_room() {
                    run.zone.free(run.page, pages, 0);
                    continue;
                }
                if run.warm == 0 && huge::wants_sample() {
                    huge::sample(pages, |pages| run.zone.populate_run(run.page, pages));
                } else if run.warm < pages
                    && ahead.is_none()
                    && huge::is_due(pages)
                    && let Some(_alone) = self.begin_unit()
                {
                    // Once: what another thread takes of it meanwhile is not made up for. The run goes back first, since what is
                    // left of a larger block beside it may be no unit.
                    run.zone.free(run.page, pages, 0);
                    let given = run.zone.populate_unit(run.page..run.page + pages, huge::order_due(pages));
                    refault::ZONES.took(given);
                    ahead = Some(given);
                    continue;
                }
                let run = Run { grows: run.grows || ahead > Some(0), ..run };
                sys::tools::open(run.address().as_ptr(), (pages as usize) << PAGE_SHIFT);
                if run.warm < pages && MARKS.is_limited() && !MARKS.admits(0, (pages as usize) << PAGE_SHIFT) {
                    run.zone.free(run.page, pages, 0);
                    return None;
                }
                refault::ZONES.took(((pages - run.warm) as usize) << PAGE_SHIFT);
                return Some(run);
            }
            if make_room() {
                continue;
            }
            // One that found room between our look and the lock makes us look again; each turn somebody
            // has taken what was added, so the loop is bounded by what the system gives.
            if !self.zones().any(|zone| zone.grow(order)) && !self.append(order) {
                return None;
            }
        }
    }

    /// One thread at a time gives memory to a unit; `None` for all others meanwhile, whose runs get theirs by page faults. What 16
    /// threads that grow at once need is less than 16 units, and on fewer CPUs each would be kept waiting for all of them.
    fn begin_unit(&self) -> Option<impl Drop + use<'_>> {
        struct Alone<'a>(&'a AtomicBool);
        impl Drop for Alone<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        let is_first = !self.populating.load(Ordering::Relaxed) && !self.populating.swap(true, Ordering::Relaxed);
        is_first.then(|| Alone(&self.populating))
    }

    /// Its number.
    fn number(&self) -> usize {
        nodes().iter().position(|node| core::ptr::eq(node, self)).unwrap_or(0)
    }

    fn alloc_free(&self, pages: u32, align: u32, order: u32, purpose: Purpose) -> Option<Run> {
        self.zones().filter(|zone| zone.may_have(order)).find_map(|zone| {
            let taken = zone.alloc(pages, align, purpose)?;
            Some(Run { zone, page: taken.page, warm: taken.warm, grows: taken.warm < pages })
        })
    }

    /// Adds a zone with a free block of `order`, unless somebody just did.
    fn append(&self, order: u32) -> bool {
        let _appending = self.appending.lock();
        if self.zones().any(|zone| zone.may_have(order)) {
            return true;
        }
        let Some(zone) = Zone::reserve(self.number(), order) else { return false };
        let link = match self.zones().last() {
            Some(last) => &last.next,
            None => &self.zones,
        };
        // Release, paired with the acquires in `zones` and `Zone::next`: the header is complete.
        link.store(zone as *const Zone as *mut Zone, Ordering::Release);
        true
    }
}

impl Zone {
    /// Which of the pages of a run may hold old contents: bit n of word n / 64 for the n-th page.
    pub(crate) fn warm_pages(&self, page: u32, pages: u32) -> [u64; (1 << MAX_ORDER) / 64] {
        let mut bits = [0; (1 << MAX_ORDER) / 64];
        self.with_buddy(|buddy| {
            for n in 0..pages.min(1 << MAX_ORDER) {
                bits[n as usize / 64] |= (buddy.pages().warm_in(page + n..page + n + 1) as u64) << (n % 64);
            }
        });
        bits
    }

    /// Free bytes that have memory behind them.
    pub(crate) fn free_warm_bytes(&self) -> usize {
        (self.with_buddy(|buddy| buddy.free_warm_pages()) as usize) << PAGE_SHIFT
    }

    /// Free pages, and how many of them have memory behind them.
    pub(crate) fn free_pages(&self) -> (u32, u32) {
        self.with_buddy(|buddy| (buddy.free_pages(), buddy.free_warm_pages()))
    }

    /// Free blocks of each order.
    pub(crate) fn free_blocks(&self) -> [u32; ORDERS] {
        self.with_buddy(|buddy| {
            buddy.unpark();
            core::array::from_fn(|order| buddy.free_blocks(order))
        })
    }

    /// Free bytes that have had memory behind them and no use since this was last asked.
    pub(crate) fn take_surplus(&self) -> usize {
        (self.with_buddy(|buddy| buddy.take_least_warm()) as usize) << PAGE_SHIFT
    }

    /// Whether all of its free memory has been free since [`Zone::take_surplus`] was last asked.
    pub(crate) fn is_still(&self) -> bool {
        self.with_buddy(|buddy| buddy.is_still())
    }

    /// Gives memory to free blocks that have none or too little, until `bytes` are had; returns the bytes.
    pub(crate) fn populate_free(&self, bytes: usize) -> usize {
        let mut populated = self.populate_partly_warm(bytes);
        while populated < bytes {
            let most = ((bytes - populated) / PAGE).max(1).ilog2().min(MAX_ORDER);
            let Some(block) = self.with_buddy(|buddy| buddy.take_cold(most)) else {
                if self.enlarge() {
                    continue;
                }
                break;
            };
            let Some(more) = self.populate_block(block, 0) else { break };
            populated += more;
        }
        populated
    }

    /// Gives memory in full to free blocks that have it behind some of their pages, until `bytes` are had; returns
    /// the bytes. They are handed out before cold ones are, and would fault where nobody expects it.
    pub(crate) fn populate_partly_warm(&self, bytes: usize) -> usize {
        let mut populated = 0;
        while populated < bytes
            && let Some((block, warm)) = self.with_buddy(|buddy| buddy.take_partly_warm())
            && let Some(more) = self.populate_block(block, warm)
        {
            populated += more;
        }
        populated
    }

    /// Gives memory to a whole unit of free cold pages, or a part of that order, if there is one and the system does not refuse: for
    /// a run that is wanted and was found at `run`, where it lies free. Returns the bytes that it got.
    fn populate_unit(&self, run: Range<u32>, order: u32) -> usize {
        let Some(unit) = self.take_unit(run, order) else { return 0 };
        // SAFETY: the unit is committed, free, and out of the buddy, so it is ours.
        let done = unsafe { huge::populate_unit(self.address_of(unit.start), order, || self.populate_range(&unit)) };
        self.put_populated(unit, 0, done).unwrap_or(0)
    }

    /// Takes a unit of cold pages, or a part of that order, out of the buddy: the one in which what is cold of a free run begins, so
    /// that the run can lie across its border; or else, if no page of the run is warm, any.
    ///
    /// A unit that is in use in part stays as it is, and the zone is made larger: what is cold costs address space only. But not
    /// where more lies cold than a unit, or an eighth of the zone, as what is between pages in use does after the rest has
    /// gone back: that is for page faults.
    fn take_unit(&self, run: Range<u32>, order: u32) -> Option<Range<u32>> {
        let pages = 1 << order;
        let (beside, warm) = self.with_buddy(|buddy| {
            let first = run.clone().find(|&page| buddy.pages().warm_in(page..page + 1) == 0);
            let beside = first.and_then(|page| buddy.take_cold_at(page & !(pages - 1), order));
            (beside, buddy.pages().warm_in(run.clone()))
        });
        if beside.is_some() || warm > 0 {
            return beside;
        }
        let any = || {
            self.with_buddy(|buddy| {
                let cold = buddy.free_pages() - buddy.free_warm_pages();
                (buddy.take_cold_unit(order), cold < pages.max(buddy.added_pages() / 8))
            })
        };
        match any() {
            (None, true) if self.enlarge() => any().0,
            (unit, _) => unit,
        }
    }

    /// Gives memory to a block that is out of the buddy, of which so many pages have some, and puts it back; returns
    /// the bytes it got, or `None` if the system refuses.
    fn populate_block(&self, block: Range<u32>, warm: u32) -> Option<usize> {
        // SAFETY: the block is committed, free, and out of the buddy, so it is ours.
        let done = unsafe { self.populate_range(&block) };
        self.put_populated(block, warm, done)
    }

    /// Gives memory to a block that is out of the buddy; false if the system refuses.
    ///
    /// # Safety
    /// The block is committed and the caller's.
    unsafe fn populate_range(&self, block: &Range<u32>) -> bool {
        let _timer = latency::start(SlowPath::Advise);
        // SAFETY: the caller's obligation.
        unsafe { sys::populate(self.address_of(block.start), ((block.end - block.start) as usize) << PAGE_SHIFT) }
    }

    /// Puts a block back into the buddy that has been given memory, if `done`; returns the bytes it got.
    fn put_populated(&self, block: Range<u32>, warm: u32, done: bool) -> Option<usize> {
        let pages = block.end - block.start;
        self.populate_descriptors(&block);
        self.with_buddy(|buddy| buddy.free(block, if done { pages } else { 0 }));
        let more = ((pages - warm) as usize) << PAGE_SHIFT;
        if done {
            COUNTERS.populated.fetch_add(more, Ordering::Relaxed);
        }
        done.then_some(more)
    }

    /// Gives memory to a run that the caller holds and that has none; false if the system refuses.
    pub(crate) fn populate_run(&self, page: u32, pages: u32) -> bool {
        let len = (pages as usize) << PAGE_SHIFT;
        let _timer = latency::start(SlowPath::Advise);
        // SAFETY: the run is committed and the caller's. (Where the system's pages are larger, a run need not be whole
        // ones; then it is left to be faulted in.)
        len.is_multiple_of(sys::page_size()) && unsafe { sys::populate(self.address_of(page), len) }
    }

    /// Gives memory to the descriptors of a block that is out of the buddy, where slabs will keep their bitmaps.
    fn populate_descriptors(&self, block: &Range<u32>) {
        let page = sys::page_size();
        let (first, end) = (self.descriptors(block.start) as usize, self.descriptors(block.end) as usize);
        let (start, end) = (first & !(page - 1), end.next_multiple_of(page));
        if let Some(at) = NonNull::new(start as *mut u8) {
            // SAFETY: whole pages of the zone's own tables, which are committed; populating changes no contents.
            unsafe { sys::populate(at, end - start) };
        }
    }

    /// Gives the memory of free blocks back to the system, largest blocks first, but not more than
    /// `bytes`; returns how many. Blocks smaller than a page of the system are left.
    ///
    /// Each block is taken out of the buddy meanwhile, so that its lock is not held across the call.
    pub(crate) fn release_free(&self, bytes: usize) -> usize {
        let least = (sys::page_size() / PAGE).trailing_zeros();
        let mut released = 0;
        while let pages = ((bytes - released) >> PAGE_SHIFT).min(u32::MAX as usize) as u32
            && let Some((block, warm)) = self.with_buddy(|buddy| buddy.take_warm(least, pages))
        {
            let warm = warm as usize;
            let len = ((block.end - block.start) as usize) << PAGE_SHIFT;
            let timer = latency::start(SlowPath::Advise);
            // SAFETY: the block is committed, free, and out of the buddy, so nobody has a use for it.
            let cold = unsafe { sys::release(self.address_of(block.start), len) };
            drop(timer);
            if cold {
                self.release_descriptors(&block);
            }
            self.with_buddy(|buddy| buddy.return_cold(block, cold));
            if !cold {
                break;
            }
            released += warm << PAGE_SHIFT;
            COUNTERS.released.fetch_add(warm << PAGE_SHIFT, Ordering::Relaxed);
        }
        released
    }

    /// Gives back the memory of the descriptors of a block that is out of the buddy. What is in them means
    /// nothing while the pages are free, but for that of the block's first page, which holds its links.
    fn release_descriptors(&self, block: &Range<u32>) {
        let page = sys::page_size();
        let first = self.descriptors(block.start + 1) as usize;
        let (start, end) = (first.next_multiple_of(page), self.descriptors(block.end) as usize & !(page - 1));
        if let Some(at) = NonNull::new(start as *mut u8)
            && start < end
        {
            // SAFETY: whole pages of the zone's own table, of pages that nobody holds.
            unsafe { sys::release(at, end - start) };
        }
    }

    /// The length of a run, which the caller holds.
    pub(crate) fn run_length(&self, page: u32) -> u32 {
        self.with_buddy(|buddy| buddy.run_length(page))
    }

    /// Notes that a run, which the caller has just taken, is fresh.
    pub(crate) fn set_fresh(&self, page: u32) {
        self.with_buddy(|buddy| buddy.set_fresh(page));
    }

    /// Gives a run back, of which the first `touched` pages have been written to.
    pub(crate) fn free(&self, page: u32, pages: u32, touched: u32) {
        let warm = self.with_buddy(|buddy| {
            buddy.free(page..page + pages, touched);
            buddy.free_warm_pages()
        });
        BELL.freed((warm as usize) << PAGE_SHIFT);
    }

    /// Gives the run of a slab back, of which the first `touched` pages have been written to; those that bit n of
    /// `holes` stands for have no memory behind them since.
    pub(crate) fn free_slab(&self, page: u32, pages: u32, touched: u32, holes: u32) {
        let warm = self.with_buddy(|buddy| {
            buddy.free_with_holes(page..page + pages, touched, holes);
            buddy.free_warm_pages()
        });
        BELL.freed((warm as usize) << PAGE_SHIFT);
    }

    /// Gives a run of one block back, all of it written to; false, and nothing is done, if it has another length.
    pub(crate) fn free_run(&self, page: u32, pages: u32) -> bool {
        let freed = self.with_buddy(|buddy| {
            if buddy.run_length(page) != pages {
                return None;
            }
            let fresh = buddy.is_fresh(page);
            buddy.free(page..page + pages, pages);
            Some((buddy.free_warm_pages(), fresh))
        });
        let Some((warm, fresh)) = freed else { return false };
        if fresh {
            // What is seen may be another's by now, or have been given back: a hint goes wrong, nothing else.
            filled::freed(self.address_of(page), (pages as usize) << PAGE_SHIFT);
        }
        BELL.freed((warm as usize) << PAGE_SHIFT);
        true
    }

    /// Makes a run of one block longer or shorter where it lies; false if what lies behind it is in use.
    pub(crate) fn resize(&self, page: u32, old: u32, new: u32, purpose: Purpose) -> bool {
        let warm = self.with_buddy(|buddy| {
            if new > old && buddy.extend(page..page + old, page + new).is_none() {
                return None;
            }
            if new < old {
                buddy.free(page + new..page + old, old - new);
            }
            buddy.tag_run(page, new, purpose);
            Some(buddy.free_warm_pages())
        });
        if new < old
            && let Some(warm) = warm
        {
            BELL.freed((warm as usize) << PAGE_SHIFT);
        }
        warm.is_some()
    }
}

/// Gives `bytes` of free memory back to the system, mappings first, if there are as many; returns how many there were.
pub(crate) fn release(bytes: usize) -> usize {
    let released = mapping_cache::release(bytes);
    released + release_from_zones(bytes.saturating_sub(released))
}

/// As [`release`], from zones alone.
pub(crate) fn release_from_zones(bytes: usize) -> usize {
    let mut released = 0;
    for zone in nodes().iter().flat_map(|node| node.zones()) {
        if released < bytes {
            released += zone.release_free(bytes - released);
        }
    }
    released
}

/// Bytes rounded up to whole pages, as a number of pages.
#[inline]
pub(crate) fn pages_for(bytes: usize) -> usize {
    bytes.div_ceil(PAGE)
}

#[cfg(test)]
mod tests;
