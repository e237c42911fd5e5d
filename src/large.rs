//! Blocks larger than any class: runs of pages from a zone up to 4 MiB, mappings of their own beyond.
//!
//! A block of more than 32 KiB is a run whether a class serves it or not, so [`resize`] makes it longer or
//! shorter where it lies, across the border between the two.
//!
//! A request for 0 bytes, which a layout may say and `GlobalAlloc` never does, is one for 1 byte of no class: a page, or
//! a mapping if the alignment is beyond what a zone has.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use crate::checked;
use crate::percpu;
use crate::size_class::{CLASS, PAGE, PAGE_SHIFT, class_of};
use crate::slab::{NOT_IN_USE, account_run, class_of_tag, holes, retire, tag_at, tag_of};
use crate::sys;
pub(crate) use crate::zone::filled::Contents;
use crate::zone::{MARKS, Purpose, RUN_MAX, Run, TAG_RUN, Zone, filled, mapping, nodes, nodes_from, pages_for};

/// How a request is served that no slab serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A run of this many pages that is a block of a class.
    Class(usize, u32),
    /// A run of this many pages.
    Run(u32),
    Mapping,
    /// A block in a slab.
    Slab,
}

fn kind(size: usize, align: usize) -> Kind {
    match class_of(size, align) {
        Some(class) if CLASS[class].is_run() => Kind::Class(class, CLASS[class].pages as u32),
        Some(_) => Kind::Slab,
        None if size <= RUN_MAX && align <= RUN_MAX => Kind::Run(pages_for(size.max(1)) as u32),
        None => Kind::Mapping,
    }
}

/// A block for a request that no class serves. Null when the system gives no more memory.
pub(crate) fn alloc(size: usize, align: usize, contents: Contents) -> *mut u8 {
    let block = match kind(size, align) {
        Kind::Run(pages) => {
            let order = (align / PAGE).max(1).trailing_zeros();
            alloc_run(pages, order, Purpose::Large).map(|run| {
                let bytes = (pages as usize) << PAGE_SHIFT;
                nodes()[run.zone.node()].run_bytes.fetch_add(bytes, Ordering::Relaxed);
                match contents {
                    Contents::Zeroed => zero(&run, pages),
                    // Where blocks are checked, what is freed is written to all over.
                    Contents::Any if run.warm == 0 && !checked::is_on() => {
                        // SAFETY: the run came just now, and is committed.
                        let given = unsafe { filled::handed_out(run.address(), bytes) };
                        if given.fresh {
                            run.zone.set_fresh(run.page);
                        }
                    }
                    _ => {}
                }
                run.address()
            })
        }
        _ => checked::insist(|| mapping::alloc(size.max(1), align, contents)),
    };
    block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
}

/// A zeroed block of a class whose blocks are runs, straight from a zone, which knows what needs no memset.
pub(crate) fn alloc_zeroed_class(class: usize) -> *mut u8 {
    let pages = CLASS[class].pages as u32;
    let run = alloc_run(pages, 0, Purpose::Block(tag_of(class)));
    run.map_or(core::ptr::null_mut(), |run| {
        run.zone.forget_marks(run.page, 1);
        account_run(run.zone.node(), None, Some(class));
        zero(&run, pages);
        run.address().as_ptr()
    })
}

fn alloc_run(pages: u32, order: u32, purpose: Purpose) -> Option<Run> {
    let any_node = || {
        nodes_from(percpu::node_here()).find_map(|node| nodes()[node].alloc(pages, order, purpose, retire::make_room))
    };
    let run = checked::insist(any_node)?;
    if run.grows {
        holes::heap_grew();
    }
    Some(run)
}

/// Zeroes those pages of a run that may hold something.
fn zero(run: &Run, pages: u32) {
    if run.warm == 0 {
        return;
    }
    let warm = run.zone.warm_pages(run.page, pages);
    for page in 0..pages {
        if warm[page as usize / 64] & (1 << (page % 64)) != 0 {
            // SAFETY: the page belongs to the run, which belongs to the caller.
            unsafe { run.zone.address_of(run.page + page).as_ptr().write_bytes(0, PAGE) };
        }
    }
}

/// Frees a block that no class serves.
///
/// # Safety
/// `block` is a block from [`alloc`] for this size and alignment that is not used any more.
pub(crate) unsafe fn free(block: NonNull<u8>, size: usize, align: usize) {
    match kind(size, align) {
        Kind::Run(pages) => free_run(block, pages),
        // SAFETY: the caller's obligation.
        _ => unsafe { mapping::free(block, size.max(1)) },
    }
}

fn free_run(block: NonNull<u8>, pages: u32) {
    let (zone, page) = run_at(block, TAG_RUN);
    if checked::is_on() && zone.run_length(page) == pages {
        // SAFETY: a run of this length, which its owner has given up.
        unsafe { checked::scrub(block, (pages as usize) << PAGE_SHIFT) };
    }
    if !zone.free_run(page, pages) {
        sys::die(WRONG_SIZE, sys::addr(block));
    }
    nodes()[zone.node()].run_bytes.fetch_sub((pages as usize) << PAGE_SHIFT, Ordering::Relaxed);
}

const WRONG_SIZE: &str = "a block was freed or resized with a size that cannot be its own";

/// Where a run lies; ends the process if the block is no run of this tag.
fn run_at(block: NonNull<u8>, tag: u8) -> (&'static Zone, u32) {
    let address = sys::addr(block);
    match tag_at(block) {
        None => sys::die("a pointer that is not from this allocator was freed or resized", address),
        Some((zone, page, found)) if found == tag => {
            if !address.is_multiple_of(PAGE) {
                sys::die("a pointer into the middle of a block was freed", address);
            }
            (zone, page)
        }
        Some((_, _, found)) if found == TAG_RUN || class_of_tag(found).is_some() => sys::die(WRONG_SIZE, address),
        Some(_) => sys::die(NOT_IN_USE, address),
    }
}

/// Changes the size of a block where it lies, or by moving page tables; `None` if that cannot be done, and
/// the block is as it was. What a mapping has grown by reads as zero if `zeroed`; of runs the caller sees to that.
///
/// # Safety
/// `block` is a block of the heap of this size and alignment; after success only the new address is used.
pub(crate) unsafe fn resize(
    block: NonNull<u8>,
    align: usize,
    old: usize,
    new: usize,
    zeroed: bool,
) -> Option<NonNull<u8>> {
    // SAFETY: the caller's obligation.
    unsafe { resize_kind(block, kind(old, align), align, old, new, zeroed) }
}

/// # Safety
/// As for [`resize`], of a block of this kind. Only that of a mapping depends on `old`.
unsafe fn resize_kind(
    block: NonNull<u8>,
    from: Kind,
    align: usize,
    old: usize,
    new: usize,
    zeroed: bool,
) -> Option<NonNull<u8>> {
    let to = kind(new, align);
    match (from, to) {
        // SAFETY: the caller's obligation.
        (Kind::Mapping, Kind::Mapping) => unsafe { mapping::resize(block, align, old, new, zeroed) },
        (Kind::Class(_, had) | Kind::Run(had), Kind::Class(_, wants) | Kind::Run(wants)) => {
            let (old_class, tag) = match from {
                Kind::Class(class, _) => (Some(class), tag_of(class)),
                _ => (None, TAG_RUN),
            };
            let (new_class, purpose) = match to {
                Kind::Class(class, _) => (Some(class), Purpose::Block(tag_of(class))),
                _ => (None, Purpose::Large),
            };
            let (zone, page) = run_at(block, tag);
            if zone.run_length(page) != had {
                sys::die(WRONG_SIZE, sys::addr(block));
            }
            if wants > had && !MARKS.admits((wants - had) as usize * PAGE, new)
                || !zone.resize(page, had, wants, purpose)
            {
                return None;
            }
            checked::resized(zone, block, new_class.is_some());
            let node = zone.node();
            account_run(node, old_class, new_class);
            let bytes = &nodes()[node].run_bytes;
            if old_class.is_none() {
                bytes.fetch_sub((had as usize) << PAGE_SHIFT, Ordering::Relaxed);
            }
            if new_class.is_none() {
                bytes.fetch_add((wants as usize) << PAGE_SHIFT, Ordering::Relaxed);
            }
            Some(block)
        }
        _ => None,
    }
}

/// A block for a request that no class serves, from this node alone.
pub(crate) fn alloc_on(node: usize, size: usize, align: usize) -> Option<NonNull<u8>> {
    match kind(size, align) {
        Kind::Run(pages) => {
            let run = nodes()[node].alloc(
                pages,
                (align / PAGE).max(1).trailing_zeros(),
                Purpose::Large,
                retire::make_room,
            )?;
            nodes()[run.zone.node()].run_bytes.fetch_add((pages as usize) << PAGE_SHIFT, Ordering::Relaxed);
            Some(run.address())
        }
        _ => mapping::alloc_on(node, size.max(1), align),
    }
}

/// Whether a request is served by a mapping of its own.
#[cfg(any(feature = "allocator-api2", feature = "nightly"))]
pub(crate) fn is_mapping(size: usize, align: usize) -> bool {
    kind(size, align) == Kind::Mapping
}

/// Bytes usable in a block for this request, which no class serves.
pub(crate) fn usable_size(size: usize, align: usize) -> usize {
    match kind(size, align) {
        Kind::Run(pages) => (pages as usize) << PAGE_SHIFT,
        _ => sys::round_up(size.max(1), sys::page_size()).unwrap_or(size),
    }
}

#[cfg(feature = "capi")]
#[cfg_attr(any(pcpalloc_twin, miri), allow(unused_imports))]
pub(crate) use unsized_blocks::{Found, find, free_found, resize_found};

/// Blocks of which their owner does not know the size.
#[cfg(feature = "capi")]
mod unsized_blocks {
    use super::*;
    use crate::size_class::block_size;

    /// What a pointer is to this heap.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Found {
        /// A block of a class.
        Class(usize),
        /// A run of this many pages.
        Run(u32),
        /// A mapping of its own, of this many usable bytes.
        Mapping(usize),
        /// Something in memory of the heap that is no block in use.
        NotInUse,
        /// Nothing of this heap.
        Foreign,
    }

    impl Found {
        /// Bytes usable in the block, 0 if it is none.
        pub(crate) fn usable(self) -> usize {
            match self {
                Found::Class(class) => block_size(class),
                Found::Run(pages) => (pages as usize) << PAGE_SHIFT,
                Found::Mapping(usable) => usable,
                Found::NotInUse | Found::Foreign => 0,
            }
        }

        fn kind(self) -> Option<Kind> {
            match self {
                Found::Class(class) if CLASS[class].is_run() => Some(Kind::Class(class, CLASS[class].pages as u32)),
                Found::Class(_) => Some(Kind::Slab),
                Found::Run(pages) => Some(Kind::Run(pages)),
                Found::Mapping(_) => Some(Kind::Mapping),
                Found::NotInUse | Found::Foreign => None,
            }
        }
    }

    /// What `block` is. Exact for a block that the caller holds; of anything else, what can be told.
    pub(crate) fn find(block: NonNull<u8>) -> Found {
        match tag_at(block) {
            Some((zone, page, TAG_RUN)) => Found::Run(zone.run_length(page)),
            Some((_, _, tag)) => class_of_tag(tag).map_or(Found::NotInUse, Found::Class),
            None if checked::is_guarded(sys::addr(block)) => {
                checked::guarded_class_at(sys::addr(block)).map_or(Found::NotInUse, Found::Class)
            }
            None => mapping::usable_at(block).map_or(Found::Foreign, Found::Mapping),
        }
    }

    /// Frees a block that is a run or a mapping; false if it is neither.
    ///
    /// # Safety
    /// `found` is what [`find`] says of `block`, which is not used any more.
    pub(crate) unsafe fn free_found(block: NonNull<u8>, found: Found) -> bool {
        match found {
            Found::Run(pages) => free_run(block, pages),
            // SAFETY: the caller's obligation.
            Found::Mapping(usable) => unsafe { mapping::free(block, usable) },
            Found::Class(_) | Found::NotInUse | Found::Foreign => return false,
        }
        true
    }

    /// Changes the size of a block as [`resize`] does; no alignment beyond `align` is kept.
    ///
    /// # Safety
    /// `found` is what [`find`] says of `block`; after success only the new address is used.
    pub(crate) unsafe fn resize_found(
        block: NonNull<u8>,
        found: Found,
        align: usize,
        new: usize,
    ) -> Option<NonNull<u8>> {
        // SAFETY: the caller's obligation; a block of this kind, as found.
        unsafe { resize_kind(block, found.kind()?, align, found.usable(), new, false) }
    }
}
