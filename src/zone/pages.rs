//! What a zone knows about each of its pages: a descriptor, a tag, and whether memory is behind it.

use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::size_class::DESCRIPTOR;

/// Bytes of bookkeeping that belong to a page. Who holds the page says what is in them: the buddy links
/// its free blocks there, a run notes its length, a slab keeps its header and bitmap in those of its run.
#[repr(C, align(64))]
pub(crate) struct Descriptor {
    /// Free block: the next of its list. Run of one block: 1 if it is fresh, else 0.
    pub next: u32,
    /// Free block: the previous of its list. Run: unused.
    pub prev: u32,
    /// Run: its length in pages.
    pub pages: u32,
    _rest: [u32; 13],
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR);

/// Tag of a page that starts nothing: inside a run that is one block, inside a free block, or not ours.
pub(crate) const TAG_NONE: u8 = 0;
/// Tag of the first page of a run larger than any class.
pub(crate) const TAG_RUN: u8 = 0x7f;
/// Tag of a page behind a slab that nobody can touch.
pub(crate) const TAG_GUARD: u8 = 0x7e;
/// Tag of the first page of a free block, with its order and [`TAG_WARM`].
pub(crate) const TAG_FREE: u8 = 0x80;
/// In a free block's tag: some page of it has memory behind it.
pub(crate) const TAG_WARM: u8 = 0x40;

/// The three tables over the pages of a zone (or of a test).
///
/// The buddy's lock guards all of them, with two exceptions: the descriptors of pages that are held belong
/// to the holder, and tags are read without the lock by whoever is given a pointer to free. The tag of a
/// page that is held does not change, so that read is exact for a valid pointer.
pub(crate) struct Pages {
    descriptors: *mut Descriptor,
    tags: *const AtomicU8,
    warm: *mut u64,
}

// SAFETY: the tables live as long as the zone (for ever) and are guarded as the type's documentation says.
unsafe impl Send for Pages {}

impl Pages {
    /// # Safety
    /// Each table covers every page number the owner will use, starts out zero, and outlives the value.
    pub(crate) const unsafe fn new(descriptors: *mut Descriptor, tags: *const AtomicU8, warm: *mut u64) -> Self {
        Pages { descriptors, tags, warm }
    }

    #[inline]
    pub(crate) fn descriptor(&mut self, page: u32) -> &mut Descriptor {
        // SAFETY: the table covers `page`, and the buddy asks only for descriptors of pages that are free
        // or that it is about to hand out or has been given back; nobody else refers to those.
        unsafe { &mut *self.descriptors.add(page as usize) }
    }

    #[inline]
    pub(crate) fn tag(&self, page: u32) -> u8 {
        // SAFETY: the table covers `page`. Relaxed: ordered by the lock, or stable for a page that is held.
        unsafe { (*self.tags.add(page as usize)).load(Ordering::Relaxed) }
    }

    #[inline]
    pub(crate) fn set_tag(&mut self, page: u32, tag: u8) {
        // SAFETY: as in `tag`; so is the ordering.
        unsafe { (*self.tags.add(page as usize)).store(tag, Ordering::Relaxed) }
    }

    pub(crate) fn set_tags(&mut self, pages: Range<u32>, tag: u8) {
        pages.for_each(|page| self.set_tag(page, tag));
    }

    /// How many pages of the range have memory behind them.
    pub(crate) fn warm_in(&mut self, pages: Range<u32>) -> u32 {
        let mut count = 0;
        self.words(pages, |word, mask| count += (*word & mask).count_ones());
        count
    }

    pub(crate) fn set_warm(&mut self, pages: Range<u32>) {
        self.words(pages, |word, mask| *word |= mask);
    }

    pub(crate) fn set_cold(&mut self, pages: Range<u32>) {
        self.words(pages, |word, mask| *word &= !mask);
    }

    /// Calls `each` with every word of the warm bitmap that the range touches and the mask of its bits.
    fn words(&mut self, pages: Range<u32>, mut each: impl FnMut(&mut u64, u64)) {
        let mut page = pages.start;
        while page < pages.end {
            let end = pages.end.min((page | 63) + 1);
            let mask = (u64::MAX >> (64 - (end - page))) << (page & 63);
            // SAFETY: the table covers `page`; the lock guards it.
            each(unsafe { &mut *self.warm.add(page as usize / 64) }, mask);
            page = end;
        }
    }
}
