//! Two bits for every block a zone could hold: is it handed out, and has it been overwritten since it was freed.
//!
//! A hardened heap keeps them in a table behind its zones' descriptors, two bits for every 8 bytes of address space, of
//! which those of a block's first 8 bytes count: 128 bytes a page, touched only where blocks are. Slabs and stacks know
//! nothing of them, so they are right whatever layer a block lies in.

use core::sync::atomic::{AtomicU64, Ordering};

use super::reservation::Zone;
use crate::hardening::{self, Hardening};
use crate::size_class::PAGE;

/// Bytes of the table for every page.
const PER_PAGE: usize = PAGE / 8 * 2 / 8;

/// The block is handed out.
pub(crate) const LIVE: u64 = 1;
/// The block has been overwritten with the pattern of free blocks.
pub(crate) const FILLED: u64 = 2;

/// Bytes of the table for every page of a zone, as the heap is: 0 if it has none.
pub(super) fn per_page() -> usize {
    if hardening::any(Hardening::CHECKED) { PER_PAGE } else { 0 }
}

impl Zone {
    /// The word that has the bits of the block at `address`, and where in it. `None` where there is no table.
    #[inline]
    fn marks_at(&self, address: usize) -> Option<(&AtomicU64, u32)> {
        if !hardening::any(Hardening::CHECKED) {
            return None;
        }
        let granule = (address - self.base()) / 8;
        let word = self.shadow_base() + granule / 32 * size_of::<u64>();
        // SAFETY: the table covers the zone's pages, is aligned to 64 bytes, zero to begin with and lives for ever; it
        // is used as atomic words alone.
        Some((unsafe { &*(word as *const AtomicU64) }, (granule % 32 * 2) as u32))
    }

    // Relaxed throughout: the bits of a block are its owner's to change, and ownership passes by other means; of two
    // frees at once the order in which the word itself changes decides which is the second.

    /// Sets bits of a block; returns what they were.
    #[inline]
    pub(crate) fn mark(&self, address: usize, bits: u64) -> u64 {
        self.marks_at(address).map_or(0, |(word, at)| word.fetch_or(bits << at, Ordering::Relaxed) >> at & 3)
    }

    /// Clears bits of a block; returns what they were.
    #[inline]
    pub(crate) fn unmark(&self, address: usize, bits: u64) -> u64 {
        self.marks_at(address).map_or(0, |(word, at)| word.fetch_and(!(bits << at), Ordering::Relaxed) >> at & 3)
    }

    /// Forgets what was known of blocks in these pages, which the caller has just taken.
    pub(crate) fn forget_marks(&self, page: u32, pages: u32) {
        if !hardening::any(Hardening::CHECKED) {
            return;
        }
        let start = crate::sys::addr(self.address_of(page));
        for page in 0..pages as usize {
            // A page has whole words: 128 bytes.
            for granule in (0..PAGE).step_by(8 * 32) {
                if let Some((word, _)) = self.marks_at(start + page * PAGE + granule) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
    }
}
