//! Whose a page is, by its tag; and what a pointer is called that is no block's.

use core::ptr::NonNull;

use crate::size_class::{CLASS, CLASSES, PAGE};
use crate::sys;
use crate::zone::{TAG_RUN, Zone, nodes};

/// The tag of the pages of a class.
pub(crate) fn tag_of(class: usize) -> u8 {
    class as u8 + 1
}

/// The class that a tag belongs to.
pub(crate) fn class_of_tag(tag: u8) -> Option<usize> {
    (1..=CLASSES as u8).contains(&tag).then(|| tag as usize - 1)
}

/// A block that was given back with its whole run looks like this, and so does the middle of a large block.
pub(crate) const NOT_IN_USE: &str = "a pointer that is not a block in use was freed (a double free, most likely)";
pub(crate) const TWICE: &str = "a block was freed twice";
pub(crate) const MIDDLE: &str = "a pointer into the middle of a block was freed";
const FOREIGN: &str = "a pointer that is not from this allocator was freed or resized";

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
pub(crate) fn zone_of(address: usize, class: usize) -> (&'static Zone, u32) {
    let Some(zone) = Zone::lookup(address) else {
        sys::die(FOREIGN, address);
    };
    (zone, expect_tag(zone, address, class))
}

/// The page of a block of `class` in a zone, of which its address is committed; ends the process if there can be no such block.
#[inline(always)]
pub(crate) fn expect_tag(zone: &Zone, address: usize, class: usize) -> u32 {
    let page = Zone::page_of(address);
    let tag = zone.tag(page);
    if tag != tag_of(class) {
        misuse(address, tag);
    }
    page
}

/// The node whose memory a block of `class` is.
pub(crate) fn node_of(address: usize, class: usize) -> usize {
    if nodes().len() == 1 { 0 } else { zone_of(address, class).0.node() }
}

/// Where a block of any kind in a zone lies, for layers that were not told its class.
pub(crate) fn tag_at(block: NonNull<u8>) -> Option<(&'static Zone, u32, u8)> {
    let address = sys::addr(block);
    let zone = Zone::lookup(address)?;
    let page = Zone::page_of(address);
    Some((zone, page, zone.tag(page)))
}

/// Whether a block of `class`, and of no other, begins at this address, if any that is in use does.
#[inline]
pub(crate) fn is_place_of(block: NonNull<u8>, class: usize) -> bool {
    let fixed = &CLASS[class];
    // Slabs lie in aligned stretches of their zones, which are aligned to more. Of a run of one block only the first page has
    // the tag.
    let stretch = if fixed.is_run() { PAGE } else { PAGE << fixed.order };
    let offset = sys::addr(block) & (stretch - 1);
    tag_at(block).is_some_and(|(_, _, tag)| tag == tag_of(class)) && fixed.block_that_begins_at(offset).is_some()
}
