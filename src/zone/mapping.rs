//! Blocks too large for a zone: a mapping each, with a page in front that says what it is.
//!
//! ```text
//! | … | header, one page of the system | block … |
//! ```
//!
//! A mapping grows and shrinks by `mremap`, which moves page tables instead of contents. One that is freed is kept for
//! a while ([`mapping_cache`]), and the next block may lie in it; it may then be a little longer than the block.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::filled::{self, Contents};
use super::mapping_cache::{self, MAPPED, Origin, Piece};
use super::{BELL, MARKS, Zone};
use super::{huge, refault};
use crate::latency::{self, SlowPath};
use crate::sys;

/// Number of mappings. Relaxed throughout: a statistic.
pub(crate) static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

/// Has mappings grow by so many bytes, by what `f` does, for a block of `size`. They are counted before it is looked whether
/// that may be: of several who ask at once and are too many together, none is overlooked.
fn grow<R>(bytes: usize, size: usize, f: impl FnOnce() -> Option<R>) -> Option<R> {
    MAPPED.fetch_add(bytes, Ordering::Relaxed);
    let grown = if MARKS.admits(0, size) { f() } else { None };
    match grown {
        Some(_) => refault::MAPPINGS.took(bytes),
        None => _ = MAPPED.fetch_sub(bytes, Ordering::Relaxed),
    }
    grown
}

#[repr(C)]
struct Header {
    /// Address of the block, mixed with [`MAGIC`].
    magic: usize,
    /// Start of the mapping.
    start: NonNull<u8>,
    /// Bytes from there.
    len: usize,
    /// Bytes usable from the block's address on.
    usable: usize,
    origin: Origin,
    /// Whether what is written to first gets huge pages, as the last growth settled.
    huge: bool,
    /// [`filled`] wants to know when the block is freed. Not once its length has changed.
    fresh: bool,
}

const MAGIC: usize = 0x7063_7061_6c6c_6f63;
/// As [`MAGIC`], of a block that was freed and whose mapping is kept.
const FREED: usize = 0x6672_6565_6432_7863;

const FOREIGN: &str = "a pointer that is not from this allocator was freed or resized";

/// The header in front of a block of ours; `None` if the pointer is not one of this module, and the end of the process if
/// the block was freed before and its mapping is kept. Any address may be asked about that lies in no zone: what is there
/// is read only if it can be.
fn find<'a>(block: NonNull<u8>) -> Option<&'a mut Header> {
    let address = sys::addr(block);
    let at = address.wrapping_sub(sys::page_size());
    if !address.is_multiple_of(sys::page_size()) || address < sys::page_size() || !sys::is_readable(at) {
        return None;
    }
    // SAFETY: the page in front of the block can be read; for a block of ours it holds the header, which
    // nobody else refers to while the caller owns the block.
    let header = unsafe { &mut *(at as *mut Header) };
    if header.magic == address ^ FREED {
        sys::die("a block was freed twice", address);
    }
    (header.magic == address ^ MAGIC).then_some(header)
}

/// The header in front of a block of ours; ends the process if there is none.
///
/// # Safety
/// `block` was returned by this module and not freed since, or is a mistake that can be told from that: its
/// address lies in no zone. (What is mapped by others in front of a foreign pointer is read.)
unsafe fn header<'a>(block: NonNull<u8>) -> &'a mut Header {
    let address = sys::addr(block);
    if Zone::lookup(address).is_some() {
        sys::die("a block was freed or resized with a size that cannot be its own", address);
    }
    find(block).unwrap_or_else(|| sys::die(FOREIGN, address))
}

/// Bytes usable in a block of this module; `None` if the pointer, which lies in no zone, is to something else.
#[cfg(feature = "capi")]
pub(crate) fn usable_at(block: NonNull<u8>) -> Option<usize> {
    find(block).map(|header| header.usable)
}

/// A block of `size` bytes aligned to `align`.
pub(crate) fn alloc(size: usize, align: usize, contents: Contents) -> Option<NonNull<u8>> {
    let kept = if align <= sys::page_size() { alloc_kept(size, contents == Contents::Zeroed) } else { None };
    kept.or_else(|| {
        let block = alloc_new(size, align, Origin::new())?;
        if contents == Contents::Any {
            // SAFETY: the block was mapped just now, behind its header, and nobody else knows of it.
            unsafe {
                let header = header(block);
                let given = filled::handed_out(header.start, header.len);
                (header.fresh, header.huge) = (given.fresh, given.huge);
            }
        }
        Some(block)
    })
}

/// A block in a mapping that was kept, if there is one.
fn alloc_kept(size: usize, zeroed: bool) -> Option<NonNull<u8>> {
    let page = sys::page_size();
    let usable = sys::round_up(size, page)?;
    let len = usable.checked_add(page).filter(|&len| len <= isize::MAX as usize)?;
    let mut piece = mapping_cache::take(len)?;
    if zeroed {
        // SAFETY: the piece was taken just now and is nobody else's. What follows adds zeroes.
        unsafe { zero(piece.start, piece.len.min(len)) };
    }
    if piece.len < len {
        let more = len - piece.len;
        // SAFETY: the piece is a whole range of one origin and nobody else's; its old address is not used again.
        let Some(start) = grow(more, size, || unsafe { sys::remap(piece.start, piece.len, len) }) else {
            mapping_cache::unmap(piece);
            return None;
        };
        piece = Piece { start, len, origin: Origin::new() };
    }
    // SAFETY: the piece is at least as long as the header's page and the block together.
    Some(unsafe { begin(piece, usable) })
}

/// Has the bytes read as zero: by writing them, unless most have no memory behind them, which they need not get then.
///
/// # Safety
/// The range is whole pages of a mapping of the caller's, with nothing in it that is still needed.
unsafe fn zero(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller's obligation.
    unsafe {
        if sys::resident_bytes(start, len) >= len / 4 * 3 || !sys::release(start, len) {
            start.as_ptr().write_bytes(0, len);
        }
    }
}

/// A block at the start of a piece, behind its header.
///
/// # Safety
/// The piece is the caller's, and has room for a page and `usable` bytes.
unsafe fn begin(piece: Piece, usable: usize) -> NonNull<u8> {
    let Piece { start, len, origin } = piece;
    // SAFETY: the caller's obligation; a mapping is aligned to pages.
    unsafe {
        let block = start.add(sys::page_size());
        start.cast::<Header>().write(Header {
            magic: sys::addr(block) ^ MAGIC,
            start,
            len,
            usable,
            origin,
            huge: false,
            fresh: false,
        });
        MAPPINGS.fetch_add(1, Ordering::Relaxed);
        block
    }
}

/// A block in a mapping of its own; reads as zero.
fn alloc_new(size: usize, align: usize, origin: Origin) -> Option<NonNull<u8>> {
    let page = sys::page_size();
    let usable = sys::round_up(size, page)?;
    let slack = if align > page { align } else { 0 };
    let len = usable.checked_add(page)?.checked_add(slack)?;
    if len > isize::MAX as usize {
        return None;
    }
    let start = grow(page + usable, size, || sys::map(len))?;
    let block = sys::round_up(sys::addr(start) + page, align.max(page))?;
    let (head, tail) = (block - page - sys::addr(start), sys::addr(start) + len - block - usable);
    // SAFETY: `page + slack` bytes are to spare, so the header's page and the block lie inside the new
    // mapping, as do both ends cut off; the header's page is aligned and writable.
    unsafe {
        let kept = start.add(head);
        if !cfg!(any(pcpalloc_twin, miri)) {
            if head > 0 {
                sys::unmap(start, head);
            }
            if tail > 0 {
                sys::unmap(NonNull::new_unchecked((block + usable) as *mut u8), tail);
            }
        }
        let (start, len) = if cfg!(any(pcpalloc_twin, miri)) { (start, len) } else { (kept, page + usable) };
        let header = Header { magic: block ^ MAGIC, start, len, usable, origin, huge: false, fresh: false };
        kept.cast::<Header>().write(header);
        // The twin keeps both ends.
        MAPPED.fetch_add(len - (page + usable), Ordering::Relaxed);
        MAPPINGS.fetch_add(1, Ordering::Relaxed);
        huge::advise(start, len);
        Some(kept.add(page))
    }
}

/// A block that reads as zero, with memory from `node` as far as that has any. The mapping is not kept when it is freed.
pub(crate) fn alloc_on(node: usize, size: usize, align: usize) -> Option<NonNull<u8>> {
    let block = alloc_new(size, align, Origin::PECULIAR)?;
    if let Some(len) = sys::round_up(size, sys::page_size()).filter(|&len| len > 0) {
        // SAFETY: the block was mapped just now, as long as this, and nobody else knows of it.
        unsafe { sys::prefer_node(block, len, node) };
    }
    Some(block)
}

/// Frees a block.
///
/// # Safety
/// `block` is a block of `size` bytes from this module that is not used any more.
pub(crate) unsafe fn free(block: NonNull<u8>, size: usize) {
    // SAFETY: the caller's obligation.
    unsafe {
        let header = header(block);
        check(header, block, size);
        let &mut Header { start, len, origin, huge, fresh, .. } = header;
        header.magic = sys::addr(block) ^ FREED;
        if fresh {
            filled::freed(start, len);
        }
        if huge {
            // The next block here may be written to in a few places only.
            sys::advise_huge(start, len, false);
        }
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
        mapping_cache::note_most();
        mapping_cache::put(Piece { start, len, origin }, MARKS.mappings_kept(len));
        BELL.freed(mapping_cache::bytes());
    }
}

/// Changes the size of a block; `None` if the system refuses or the block is aligned beyond a page, and the
/// block is as it was. Pages that it has grown by read as zero if `zeroed`.
///
/// # Safety
/// As for [`free`]; after success only the new address is used.
pub(crate) unsafe fn resize(
    block: NonNull<u8>,
    align: usize,
    old: usize,
    new: usize,
    zeroed: bool,
) -> Option<NonNull<u8>> {
    let page = sys::page_size();
    let usable = sys::round_up(new, page)?;
    // SAFETY: the caller's obligation; the mapping is moved as a whole, header first.
    unsafe {
        let header = header(block);
        check(header, block, old);
        let (start, mut origin, mut huge) = (header.start, header.origin, header.huge);
        if usable == header.usable {
            return Some(block);
        }
        // A mapping that moves is aligned to a page. (The twin keeps what lies in front of the header.)
        if align > page || sys::addr(start) + page != sys::addr(block) || usable > isize::MAX as usize - page {
            return None;
        }
        let wanted = usable + page;
        if wanted > header.len {
            // What is kept right behind it, as far as that goes, is the block's first: then there is less to be had from
            // the system, and nothing in the way.
            let more = mapping_cache::take_behind(sys::addr(start) + header.len, origin, wanted - header.len);
            header.len += more;
        }
        let had = header.len;
        let (used, reused) = (header.usable, usable.min(had - page));
        if zeroed && used < reused {
            zero(block.add(used), reused - used);
        }
        if usable > used && wanted <= had {
            (header.usable, header.fresh) = (usable, false);
            return Some(block);
        }
        let start = if wanted > had {
            let start = grow(wanted - had, new, || sys::remap(start, had, wanted))?;
            huge = populate_ahead(start, had, wanted).unwrap_or(huge);
            start
        } else {
            let start = sys::remap(start, had, wanted)?;
            MAPPED.fetch_sub(had - wanted, Ordering::Relaxed);
            if huge {
                sys::advise_huge(start, wanted, false);
                huge = false;
            }
            start
        };
        // It may have moved, and what was behind it is not any more.
        if origin != Origin::PECULIAR {
            origin = Origin::new();
        }
        let block = start.add(page);
        let magic = sys::addr(block) ^ MAGIC;
        start.cast::<Header>().write(Header { magic, start, len: wanted, usable, origin, huge, fresh: false });
        Some(block)
    }
}

/// Gives memory to the first quarter of what a mapping has grown by: whoever lets a block grow is about to write there,
/// and one call takes 30 % less time than a fault for every page. At most an eighth of a block that has doubled is
/// resident in vain. Returns whether the rest gets huge pages, when it is written to, if that has been settled.
///
/// # Safety
/// The mapping is the caller's, `len` bytes long, and had `had` bytes before; both are multiples of a page.
unsafe fn populate_ahead(start: NonNull<u8>, had: usize, len: usize) -> Option<bool> {
    let quarter = ((len - had) / 4) & !(sys::page_size() - 1);
    if quarter == 0 || MARKS.is_limited() {
        return None;
    }
    let _timer = latency::start(SlowPath::Advise);
    // SAFETY: the caller's obligation; a quarter of the growth is part of it.
    unsafe { huge::populate_growth(start, len, had, quarter) }
}

fn check(header: &Header, block: NonNull<u8>, size: usize) {
    if sys::round_up(size, sys::page_size()) != Some(header.usable) {
        sys::die("a block was freed or resized with a size that cannot be its own", sys::addr(block));
    }
}
