//! A page behind every slab that nobody can touch.
//!
//! Since Linux 6.13 a guard is a mark in the page tables (`MADV_GUARD_INSTALL`, madvise(2)); before, it is a mapping
//! with fewer rights, of which a process may have some 65 000 pieces (`vm.max_map_count`). A slab whose page cannot be
//! guarded for that reason goes without; the page is held all the same.

use crate::hardening::{self, Hardening};
use crate::size_class::PAGE;
use crate::sys;
use crate::zone::{TAG_GUARD, Zone};

/// Pages behind every slab: 0 if there are none, and where the system's pages are larger than the heap's.
#[inline]
pub(crate) fn pages() -> usize {
    (hardening::any(Hardening::GUARD) && sys::page_size() == PAGE) as usize
}

/// Makes a page that the caller holds one that nobody can touch.
pub(super) fn raise(zone: &Zone, page: u32) {
    // SAFETY: the page is the caller's, and nothing in it is needed.
    let empty = unsafe { sys::guard(zone.address_of(page), PAGE) };
    zone.with_buddy(|buddy| {
        buddy.pages().set_tag(page, TAG_GUARD);
        if empty {
            buddy.pages().set_cold(page..page + 1);
        }
    });
}

/// Makes it an ordinary page again; false if the system refuses.
pub(super) fn lower(zone: &Zone, page: u32) -> bool {
    // SAFETY: the page is the caller's.
    unsafe { sys::unguard(zone.address_of(page), PAGE) }
}
