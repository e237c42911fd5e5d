//! Pages of pointers that wait, and how what they stand for is freed in bulk.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};

use super::RcuHead;
use super::entry::{ADDRESS_MASK, CALL, bytes_of, class_of_entry, head_of, note_deferred};
use crate::percpu::{self, Array};
use crate::size_class::{BATCH, CLASSES, PAGE, block_size};
use crate::slab::{self, transfer};
use crate::sys::tools;
use crate::{checked, observe};

/// Entries of a page.
pub(super) const ENTRIES: usize = PAGE / size_of::<usize>() - 5;

pub(super) const LAYOUT: Layout = match Layout::from_size_align(PAGE, 8) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// A page of pointers: the kernel's `kvfree_rcu_bulk_data`.
#[repr(C)]
pub(super) struct PointerPage {
    pub(super) next: *mut PointerPage,
    /// The grace period after which they may be freed.
    pub(super) cookie: u64,
    pub(super) len: usize,
    pub(super) bytes: usize,
    /// Whether the page came by the ordinary path and not from the source.
    pub(super) ordinary: bool,
    entries: [usize; ENTRIES],
}

const _: () = assert!(size_of::<PointerPage>() == PAGE);

impl PointerPage {
    /// Makes an empty page of memory.
    ///
    /// # Safety
    /// `memory` is as [`LAYOUT`] says, and nobody else uses it.
    pub(super) unsafe fn init(memory: NonNull<u8>, ordinary: bool) -> NonNull<PointerPage> {
        let page = memory.cast::<PointerPage>().as_ptr();
        // SAFETY: the caller's obligation; the entries need no value while `len` is 0.
        unsafe {
            (&raw mut (*page).next).write(null_mut());
            (&raw mut (*page).cookie).write(0);
            (&raw mut (*page).len).write(0);
            (&raw mut (*page).bytes).write(0);
            (&raw mut (*page).ordinary).write(ordinary);
        }
        memory.cast()
    }

    /// Where the entries are, for a stack to fill.
    ///
    /// # Safety
    /// `page` is one from a pool that nobody else uses.
    pub(super) unsafe fn array(page: *mut PointerPage) -> Array {
        // SAFETY: the caller's obligation.
        let base = unsafe { (&raw mut (*page).entries).cast::<usize>() };
        Array { base, top: base, limit: base.wrapping_add(ENTRIES) }
    }

    /// The page that an array is part of, its length and bytes set; `None` if it is no array.
    pub(super) fn of_array(array: Array) -> Option<NonNull<PointerPage>> {
        if array.is_none() {
            return None;
        }
        let page = array.base.wrapping_byte_sub(core::mem::offset_of!(PointerPage, entries)).cast::<PointerPage>();
        // SAFETY: arrays on the deferred stacks come from `array`, and nobody else uses this one any more.
        unsafe {
            (*page).len = array.len();
            let entries = &(&(*page).entries)[..array.len()];
            (*page).bytes = entries.iter().map(|&entry| bytes_of(entry)).sum();
            if observe::is_on() {
                entries.iter().for_each(|&entry| note_deferred(entry));
            }
        }
        NonNull::new(page)
    }

    /// Adds a word; false if there is no room.
    pub(super) fn push(&mut self, entry: usize) -> bool {
        let room = self.len < ENTRIES;
        if room {
            self.entries[self.len] = entry;
            self.len += 1;
            self.bytes += bytes_of(entry);
            if observe::is_on() {
                note_deferred(entry);
            }
        }
        room
    }

    /// Frees what the words stand for: grouped by class, by whole batches back to the stacks' own supply where
    /// that wants any, the rest to the slabs. Returns the calls among them, which are still to be made.
    pub(super) fn free_all<'s>(&mut self, scratch: &'s mut Scratch) -> impl Iterator<Item = NonNull<RcuHead>> + 's {
        let entries = &self.entries[..self.len];
        let mut ends = [0u16; CLASSES + 1];
        entries.iter().for_each(|&entry| ends[class_of_entry(entry)] += 1);
        let mut end = 0;
        for count in &mut ends {
            end += *count;
            *count = end - *count;
        }
        for &entry in entries {
            let at = &mut ends[class_of_entry(entry)];
            scratch.0[*at as usize] = entry & ADDRESS_MASK;
            *at += 1;
        }
        let mut start = 0;
        for (class, &end) in ends[..CALL].iter().enumerate() {
            let blocks = &mut scratch.0[start..end as usize];
            let blocks = if observe::is_on() { unobserved(blocks) } else { blocks };
            if !blocks.is_empty() {
                give(class, blocks);
            }
            start = end as usize;
        }
        self.len = 0;
        self.bytes = 0;
        scratch.0[start..ends[CALL] as usize].iter().map(|&address| head_of(address))
    }
}

/// Room to sort a page's entries in.
pub(super) struct Scratch([usize; ENTRIES]);

impl Scratch {
    pub(super) const fn new() -> Scratch {
        Scratch([0; ENTRIES])
    }
}

/// Frees the block that a word stands for.
pub(super) fn free_entry(entry: usize) {
    if class_of_entry(entry) != CALL && observe::freed((entry & ADDRESS_MASK) as *mut u8) {
        return;
    }
    give(class_of_entry(entry), &[entry & ADDRESS_MASK]);
}

/// Tells whoever observes the heap that these are freed; those that are nobody's own, in front.
fn unobserved(blocks: &mut [usize]) -> &mut [usize] {
    let mut len = 0;
    for n in 0..blocks.len() {
        if !observe::freed(blocks[n] as *mut u8) {
            blocks[len] = blocks[n];
            len += 1;
        }
    }
    &mut blocks[..len]
}

/// Passes blocks of a class on in batches, as long as those are wanted, and gives the rest back to the slabs.
fn give(class: usize, blocks: &[usize]) {
    if tools::are_present() {
        blocks.iter().for_each(|&block| tools::freed(block as *mut u8, block_size(class)));
    }
    if checked::is_on() {
        // SAFETY: blocks of the class that no reader is left of, each looked at as any that is freed.
        return blocks.iter().for_each(|&block| unsafe { checked::free(class, block as *mut u8) });
    }
    let node = percpu::node_here();
    let mut chunks = blocks.chunks(BATCH);
    for chunk in chunks.by_ref() {
        let Some(mut batch) = transfer::BatchBox::new() else {
            slab::free_bulk(class, chunk);
            break;
        };
        batch.room()[..chunk.len()].copy_from_slice(chunk);
        batch.set_len(chunk.len());
        if let Err(mut batch) = transfer::push(node, class, batch) {
            slab::free_bulk(class, batch.blocks());
            break;
        }
    }
    chunks.for_each(|chunk| slab::free_bulk(class, chunk));
}
