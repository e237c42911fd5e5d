//! Pages of pointers that wait.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};

use super::RcuHead;
use super::entry::{ADDRESS_MASK, CALL, bytes_of, class_of_entry, head_of, note_deferred};
use super::gather::Gather;
use crate::observe;
use crate::percpu::Array;
use crate::size_class::PAGE;

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

    /// Takes the blocks out, for `gather`; calls stay.
    pub(super) fn take_blocks(&mut self, gather: &mut Gather) {
        let (mut calls, mut bytes) = (0, 0);
        for n in 0..self.len {
            let entry = self.entries[n];
            match class_of_entry(entry) {
                CALL => {
                    self.entries[calls] = entry;
                    calls += 1;
                    bytes += bytes_of(entry);
                }
                class => gather.add(class, entry & ADDRESS_MASK),
            }
        }
        (self.len, self.bytes) = (calls, bytes);
    }

    /// Takes out what is left when the blocks are gone: `call` gets each call's head, and the bytes noted in it.
    pub(super) fn take_calls(&mut self, mut call: impl FnMut(NonNull<RcuHead>, usize)) {
        for &entry in &self.entries[..self.len] {
            call(head_of(entry & ADDRESS_MASK), bytes_of(entry));
        }
        (self.len, self.bytes) = (0, 0);
    }
}
