//! Blocks too large for a zone: a mapping each, with a page in front that says what it is.
//!
//! ```text
//! | … | header, one page of the system | block … |
//! ```
//!
//! A mapping grows and shrinks by `mremap`, which moves page tables instead of contents. It always reads
//! as zero where nothing was written.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{MARKS, Zone};
use crate::sys;

/// Bytes in mappings, headers included. Relaxed throughout: a statistic.
pub(crate) static MAPPED: AtomicUsize = AtomicUsize::new(0);
/// Number of mappings. Relaxed throughout: a statistic.
pub(crate) static MAPPINGS: AtomicUsize = AtomicUsize::new(0);

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
}

const MAGIC: usize = 0x7063_7061_6c6c_6f63;

const FOREIGN: &str = "a pointer that is not from this allocator was freed or resized";

/// The header in front of a block of ours; `None` if the pointer is not one of this module. Any address may be asked
/// about that lies in no zone: what is there is read only if it can be.
fn find<'a>(block: NonNull<u8>) -> Option<&'a mut Header> {
    let address = sys::addr(block);
    let at = address.wrapping_sub(sys::page_size());
    if !address.is_multiple_of(sys::page_size()) || address < sys::page_size() || !sys::is_readable(at) {
        return None;
    }
    // SAFETY: the page in front of the block can be read; for a block of ours it holds the header, which
    // nobody else refers to while the caller owns the block.
    let header = unsafe { &mut *(at as *mut Header) };
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

/// A block of `size` bytes aligned to `align`; reads as zero.
pub(crate) fn alloc(size: usize, align: usize) -> Option<NonNull<u8>> {
    let page = sys::page_size();
    let usable = sys::round_up(size, page)?;
    let slack = if align > page { align } else { 0 };
    let len = usable.checked_add(page)?.checked_add(slack)?;
    if len > isize::MAX as usize {
        return None;
    }
    if !MARKS.admits(usable, size) {
        return None;
    }
    let start = sys::map(len)?;
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
        kept.cast::<Header>().write(Header { magic: block ^ MAGIC, start, len, usable });
        MAPPED.fetch_add(len, Ordering::Relaxed);
        MAPPINGS.fetch_add(1, Ordering::Relaxed);
        Some(kept.add(page))
    }
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
        let (start, len) = (header.start, header.len);
        header.magic = 0;
        MAPPED.fetch_sub(len, Ordering::Relaxed);
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
        sys::unmap(start, len);
    }
}

/// Changes the size of a block; `None` if the system refuses or the block is aligned beyond a page, and the
/// block is as it was.
///
/// # Safety
/// As for [`free`]; after success only the new address is used.
pub(crate) unsafe fn resize(block: NonNull<u8>, align: usize, old: usize, new: usize) -> Option<NonNull<u8>> {
    let page = sys::page_size();
    let usable = sys::round_up(new, page)?;
    // SAFETY: the caller's obligation; the mapping is moved as a whole, header first.
    unsafe {
        let header = header(block);
        check(header, block, old);
        let (start, len) = (header.start, header.len);
        if usable == header.usable {
            return Some(block);
        }
        // A mapping that moves is aligned to a page. (The twin keeps what lies in front of the header.)
        if align > page || sys::addr(start) + page != sys::addr(block) || usable > isize::MAX as usize - page {
            return None;
        }
        if usable > header.usable && !MARKS.admits(usable - header.usable, new) {
            return None;
        }
        let had = header.usable;
        let start = sys::remap(start, len, usable + page)?;
        let block = start.add(page);
        if usable > had {
            populate_ahead(block.add(had), usable - had);
        }
        let magic = sys::addr(block) ^ MAGIC;
        start.cast::<Header>().write(Header { magic, start, len: usable + page, usable });
        MAPPED.fetch_add(usable + page, Ordering::Relaxed);
        MAPPED.fetch_sub(len, Ordering::Relaxed);
        Some(block)
    }
}

/// Gives memory to the first quarter of what a block has grown by: whoever lets a block grow is about to write there,
/// and one call takes 30 % less time than a fault for every page. At most an eighth of a block that has doubled is
/// resident in vain.
///
/// # Safety
/// The range is a block's new part.
unsafe fn populate_ahead(start: NonNull<u8>, len: usize) {
    let quarter = (len / 4) & !(sys::page_size() - 1);
    if quarter > 0 && !MARKS.is_limited() {
        // SAFETY: the caller's obligation; both are multiples of a page. A refusal is harmless.
        unsafe { sys::populate(start, quarter) };
    }
}

fn check(header: &Header, block: NonNull<u8>, size: usize) {
    if sys::round_up(size, sys::page_size()) != Some(header.usable) {
        sys::die("a block was freed or resized with a size that cannot be its own", sys::addr(block));
    }
}
