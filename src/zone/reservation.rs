//! One zone: a reservation, the tables over its pages, and the buddy that hands them out.
//!
//! ```text
//! base (a multiple of 1 GiB)
//! | Zone | warm bits | tags  | shards | descriptors … | pages in use or free … | reserved, not committed … |
//!   4 KiB   32 KiB    256 KiB 256 KiB  64 B a page    ^ first                ^ committed                ^ pages
//! ```
//!
//! A zone starts with little committed and grows at its end; a system that refuses a large reservation
//! (`RLIMIT_AS`, strict overcommit) gets a smaller one at an address just as well aligned.

use core::ops::Range;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::bell::BELL;
use super::buddy::{Buddy, MAX_ORDER, Purpose, Taken};
use super::counters::COUNTERS;
use super::huge;
use super::marks::MARKS;
#[cfg(feature = "capi")]
use super::pages::TAG_NONE;
use super::pages::{Descriptor, Pages};
use super::shadow;
use crate::latency::{self, SlowPath};
use crate::lock::Lock;
use crate::size_class::{DESCRIPTOR, PAGE, PAGE_SHIFT};
use crate::sys;

/// log2 of a zone's alignment and largest size. Under the twin, which backs all of a reservation with
/// memory, zones are small.
const ZONE_SHIFT: u32 = if cfg!(any(pcpalloc_twin, miri)) { 24 } else { 30 };
const ZONE_SIZE: usize = 1 << ZONE_SHIFT;
const ZONE_MASK: usize = ZONE_SIZE - 1;
const ZONE_PAGES: usize = ZONE_SIZE / PAGE;

/// The smallest reservation worth trying.
const ZONE_MIN: usize = 4 << 20;

/// Zones grow by multiples of the largest block.
const CHUNK: usize = PAGE << MAX_ORDER;
/// Most that a zone grows by at once.
const GROWTH_MAX: usize = 64 << 20;

const WARM_AT: usize = PAGE;
const TAGS_AT: usize = WARM_AT + ZONE_PAGES / 8;
const SHARDS_AT: usize = TAGS_AT + ZONE_PAGES;
const DESCRIPTORS_AT: usize = SHARDS_AT + ZONE_PAGES;

/// Bits of a user-space address that mappings use unless asked otherwise.
const ADDRESS_BITS: u32 = if cfg!(target_arch = "x86_64") { 47 } else { 48 };

/// Bit n is set if address n * ZONE_SIZE starts a zone.
static PRESENT: [AtomicU64; 1 << (ADDRESS_BITS - ZONE_SHIFT - 6)] =
    [const { AtomicU64::new(0) }; 1 << (ADDRESS_BITS - ZONE_SHIFT - 6)];

/// The header of a zone, at its base.
#[repr(C, align(64))]
pub(crate) struct Zone {
    /// The next zone of the node.
    pub(super) next: AtomicPtr<Zone>,
    node: u32,
    /// Pages reserved.
    pages: u32,
    /// Bit n is set if a block of order n was free when the lock was last held: a hint, to pass by.
    orders: AtomicU32,
    /// Pages committed. Written under `growth`.
    committed: AtomicU32,
    /// Pages handed out or warm. Relaxed: a statistic, as of when the lock was last held.
    resident: AtomicU32,
    growth: Lock<()>,
    buddy: Lock<Buddy>,
}

impl Zone {
    /// The zone that `address` lies in.
    ///
    /// # Safety
    /// The address lies in a zone; [`Zone::lookup`] finds out whether it does.
    #[inline(always)]
    pub(crate) unsafe fn of(address: usize) -> &'static Zone {
        // SAFETY: zones start at multiples of ZONE_SIZE, are never longer, and live for ever.
        unsafe { &*((address & !ZONE_MASK) as *const Zone) }
    }

    /// The zone that `address` lies in, if it lies in the committed pages of one.
    #[inline]
    pub(crate) fn lookup(address: usize) -> Option<&'static Zone> {
        let word = PRESENT.get(address >> (ZONE_SHIFT + 6))?;
        // Acquire, paired with the release in `reserve`: the zone was complete before its bit was set.
        if word.load(Ordering::Acquire) & (1 << ((address >> ZONE_SHIFT) & 63)) == 0 {
            return None;
        }
        // SAFETY: the bit says that a zone starts there.
        let zone = unsafe { Zone::of(address) };
        let page = Zone::page_of(address);
        // Relaxed: a valid pointer was handed out after its page was committed.
        (page < zone.committed.load(Ordering::Relaxed)).then_some(zone)
    }

    /// The tag of the page that `address` lies in, or the one that says nothing if it lies in no zone; exact if the
    /// caller holds the page.
    #[cfg(feature = "capi")]
    #[inline(always)]
    pub(crate) fn tag_of_page_at(address: usize) -> u8 {
        let Some(word) = PRESENT.get(address >> (ZONE_SHIFT + 6)) else { return TAG_NONE };
        // Acquire, paired with the release in `reserve`: the zone was complete before its bit was set.
        if word.load(Ordering::Acquire) & (1 << ((address >> ZONE_SHIFT) & 63)) == 0 {
            return TAG_NONE;
        }
        // SAFETY: a zone starts there, and every zone begins with tags for as many pages as the largest has: those
        // that it does not have are not tagged.
        unsafe { Zone::of(address).tag(Zone::page_of(address)) }
    }

    /// Number of the page that holds `address`, counted from its zone's base.
    #[inline(always)]
    pub(crate) fn page_of(address: usize) -> u32 {
        ((address & ZONE_MASK) >> PAGE_SHIFT) as u32
    }

    #[inline(always)]
    pub(crate) fn base(&self) -> usize {
        self as *const Zone as usize
    }

    /// Address of a page.
    #[inline(always)]
    pub(crate) fn address_of(&self, page: u32) -> NonNull<u8> {
        // SAFETY: page numbers count from the base, which is not null, and stay inside the reservation.
        unsafe { NonNull::new_unchecked((self.base() + ((page as usize) << PAGE_SHIFT)) as *mut u8) }
    }

    /// The descriptors that belong to the pages from `page` on.
    #[inline(always)]
    pub(crate) fn descriptors(&self, page: u32) -> *mut Descriptor {
        (self.base() + DESCRIPTORS_AT + page as usize * DESCRIPTOR) as *mut Descriptor
    }

    /// The descriptor of the page that `address` lies in, if it lies in a zone.
    #[inline(always)]
    pub(crate) fn descriptor_at(address: usize) -> *mut Descriptor {
        let page = Zone::page_of(address) as usize;
        ((address & !ZONE_MASK) + DESCRIPTORS_AT + page * DESCRIPTOR) as *mut Descriptor
    }

    /// The tag of a page; exact if the caller holds the page.
    #[inline(always)]
    pub(crate) fn tag(&self, page: u32) -> u8 {
        // SAFETY: the table is part of the zone. Relaxed: see `Pages`.
        unsafe { (*((self.base() + TAGS_AT + page as usize) as *const AtomicU8)).load(Ordering::Relaxed) }
    }

    /// The shard of the slab that begins with a page; exact if the caller holds the lock of the slabs of that shard.
    #[inline(always)]
    pub(crate) fn shard(&self, page: u32) -> usize {
        self.shard_at(page).load(Ordering::Relaxed) as usize
    }

    /// Sets it. The caller holds the locks of the slabs of both shards, or nobody else has seen the slab.
    pub(crate) fn set_shard(&self, page: u32, shard: usize) {
        self.shard_at(page).store(shard as u8, Ordering::Relaxed);
    }

    /// Relaxed: looked at without the lock, it says which to take, under which it is looked at again.
    #[inline(always)]
    fn shard_at(&self, page: u32) -> &AtomicU8 {
        // SAFETY: the table is part of the zone, reads as zero until written, and is only used atomically.
        unsafe { &*((self.base() + SHARDS_AT + page as usize) as *const AtomicU8) }
    }

    pub(crate) fn node(&self) -> usize {
        self.node as usize
    }

    /// The next zone of the same node.
    pub(crate) fn next(&self) -> Option<&'static Zone> {
        // Acquire, paired with the release that linked it: its header was written before.
        // SAFETY: zones live for ever.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn committed_bytes(&self) -> usize {
        (self.committed.load(Ordering::Relaxed) as usize) << PAGE_SHIFT
    }

    /// Bytes of pages that are handed out, or free and warm.
    pub(crate) fn resident_bytes(&self) -> usize {
        (self.resident.load(Ordering::Relaxed) as usize) << PAGE_SHIFT
    }

    /// Pages of address space.
    pub(crate) fn spanned_pages(&self) -> u32 {
        self.pages
    }

    /// Pages that can be handed out.
    pub(crate) fn managed_pages(&self) -> u32 {
        self.with_buddy(|buddy| buddy.added_pages())
    }

    /// The tables at the start of the zone.
    pub(crate) fn metadata(&self) -> (NonNull<u8>, usize) {
        (self.address_of(0), Zone::tables(self.pages))
    }

    /// Bytes of the tables of a zone of so many pages.
    fn tables(pages: u32) -> usize {
        DESCRIPTORS_AT + pages as usize * (DESCRIPTOR + shadow::per_page())
    }

    /// Where the table of a hardened heap's blocks starts: behind the descriptors.
    #[inline]
    pub(super) fn shadow_base(&self) -> usize {
        self.base() + DESCRIPTORS_AT + self.pages as usize * DESCRIPTOR
    }

    /// Locks or unlocks for `fork`.
    pub(crate) fn fork_lock(&self, acquire: bool) {
        if acquire {
            self.growth.acquire();
            self.buddy.acquire();
        } else {
            self.buddy.release();
            self.growth.release();
        }
    }

    /// Reserves a zone on `node` that can serve a block of `order`; the largest the system allows.
    pub(super) fn reserve(node: usize, order: u32) -> Option<&'static Zone> {
        let _timer = latency::start(SlowPath::Grow);
        let mut size = ZONE_SIZE;
        loop {
            if let Some(base) = sys::reserve(size, ZONE_SIZE) {
                // SAFETY: a new reservation of `size` bytes, aligned as asked.
                if let Some(zone) = unsafe { Zone::create(base, size, node, order) } {
                    return Some(zone);
                }
                // SAFETY: as above, and nothing refers to it.
                unsafe { sys::unmap(base, size) };
            }
            size /= 4;
            if size < ZONE_MIN {
                return None;
            }
        }
    }

    /// # Safety
    /// `base` is a reservation of `size` bytes aligned to `ZONE_SIZE` that nothing refers to.
    unsafe fn create(base: NonNull<u8>, size: usize, node: usize, order: u32) -> Option<&'static Zone> {
        if sys::addr(base) >> ADDRESS_BITS != 0 {
            return None;
        }
        let pages = (size / PAGE) as u32;
        let tables = Zone::tables(pages);
        let first = tables.div_ceil(PAGE) as u32;
        // Room for one block of the order asked for, behind what the tables leave of their chunk.
        let start = sys::round_up(tables, PAGE << order)?;
        let committed = sys::round_up(start + (PAGE << order), CHUNK)?.min(size);
        // SAFETY: the start of the reservation, which belongs to us; small pages, because the tables are
        // touched here and there.
        unsafe {
            if start + (PAGE << order) > size || !sys::commit(base, committed) {
                return None;
            }
            sys::prefer_node(base, size, node);
            let tables = sys::round_up(tables, sys::page_size())?;
            sys::advise_huge(base, tables, false);
            huge::advise(base.add(tables), committed - tables);
        }
        let at = |offset: usize| (sys::addr(base) + offset) as *mut u8;
        // SAFETY: the tables lie in the committed start, read as zero, do not overlap, and live for ever.
        let tables = unsafe { Pages::new(at(DESCRIPTORS_AT).cast(), at(TAGS_AT).cast(), at(WARM_AT).cast()) };
        let mut buddy = Buddy::new(tables);
        buddy.add(first..(committed / PAGE) as u32);
        let zone = base.cast::<Zone>();
        // SAFETY: the header's page is committed, aligned, and nobody has seen it yet.
        let zone: &'static Zone = unsafe {
            zone.write(Zone {
                next: AtomicPtr::new(null_mut()),
                node: node as u32,
                pages,
                orders: AtomicU32::new(buddy.orders()),
                committed: AtomicU32::new((committed / PAGE) as u32),
                resident: AtomicU32::new(0),
                growth: Lock::new(()),
                buddy: Lock::new(buddy),
            });
            zone.as_ref()
        };
        let bit = zone.base() >> ZONE_SHIFT;
        // Release, paired with the acquire in `lookup`.
        PRESENT[bit / 64].fetch_or(1 << (bit % 64), Ordering::Release);
        Some(zone)
    }

    /// Whether a block of `order` may be free.
    #[inline]
    pub(super) fn may_have(&self, order: u32) -> bool {
        // Relaxed: a hint; the lock decides.
        self.orders.load(Ordering::Relaxed) >> order != 0
    }

    /// Runs `f` on the buddy, under its lock.
    #[inline]
    pub(crate) fn with_buddy<R>(&self, f: impl FnOnce(&mut Buddy) -> R) -> R {
        let mut buddy = self.buddy.lock();
        let result = f(&mut buddy);
        self.orders.store(buddy.orders(), Ordering::Relaxed);
        self.resident.store(buddy.resident_pages(), Ordering::Relaxed);
        result
    }

    /// Takes pages: see [`Buddy::alloc`].
    pub(super) fn alloc(&self, count: u32, align: u32, purpose: Purpose) -> Option<Taken> {
        // Relaxed: a setting.
        let reserve = MARKS.min.load(Ordering::Relaxed) / PAGE;
        self.with_buddy(|buddy| {
            buddy.reserve = reserve.min(u32::MAX as usize) as u32;
            buddy.alloc(count, align, purpose)
        })
    }

    /// Commits more of the reservation, unless somebody just did; whether a block of `order` may be free now.
    pub(super) fn grow(&self, order: u32) -> bool {
        // Held across the system call; the buddy's lock is not.
        let _growing = self.growth.lock();
        self.may_have(order) || self.commit_more()
    }

    /// Commits more of the reservation, whatever is free; false at its end, or if the system refuses.
    pub(super) fn enlarge(&self) -> bool {
        let _growing = self.growth.lock();
        self.commit_more()
    }

    /// The lock of `growth` is held.
    fn commit_more(&self) -> bool {
        let _timer = latency::start(SlowPath::Grow);
        let committed = self.committed_bytes();
        let reserved = self.pages as usize * PAGE;
        let step = (committed / 8 / CHUNK * CHUNK).clamp(CHUNK, GROWTH_MAX).min(reserved - committed);
        // SAFETY: the range lies inside the reservation, behind what is committed.
        if step == 0 || !unsafe { sys::commit(self.address_of((committed / PAGE) as u32), step) } {
            return false;
        }
        let range: Range<u32> = (committed / PAGE) as u32..((committed + step) / PAGE) as u32;
        // Relaxed: whoever gets a pointer into the new pages gets it through the buddy's lock below.
        self.committed.store(range.end, Ordering::Relaxed);
        COUNTERS.growths.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the range was committed just now and belongs to the zone.
        unsafe { huge::advise(self.address_of(range.start), step) };
        self.with_buddy(|buddy| buddy.add(range));
        BELL.grew();
        true
    }
}

#[cfg(feature = "debug")]
impl Zone {
    /// What has happened to the locks of the buddy and of growth.
    pub(crate) fn lock_counts(&self) -> [crate::lock::counted::LockCounts; 2] {
        [self.buddy.counts(), self.growth.counts()]
    }

    /// Whether the zone's tables agree with each other; calls `each` with the tag and length of everything held.
    pub(crate) fn check(&self, walk: bool, each: impl FnMut(u8, u32)) -> Result<(), &'static str> {
        let tables = Zone::tables(self.pages);
        let first = tables.div_ceil(PAGE) as u32;
        let committed = self.committed.load(Ordering::Relaxed);
        if committed > self.pages {
            return Err("a zone is not committed beyond its end");
        }
        self.with_buddy(|buddy| {
            if buddy.added_pages() != committed - first {
                return Err("what is committed is tables or the buddy's");
            }
            if !walk {
                return Ok(());
            }
            buddy.check(first)?;
            buddy.held(first, each)
        })
    }
}
