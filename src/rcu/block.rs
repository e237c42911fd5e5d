//! Pages of pointers that wait, the pool they come from, and bulk freeing.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{BlockSource, RcuHead};
use crate::lock::Lock;
use crate::percpu::{self, Array};
use crate::size_class::{BATCH_MAX, CLASSES, PAGE, block_size, class_of};
use crate::slab::{self, transfer};

/// Pointers in a block.
pub(super) const ENTRIES: usize = PAGE / size_of::<usize>() - 5;

/// In an entry: where the number of the class starts. Addresses of user space end before.
const CLASS_SHIFT: u32 = 48;
const ADDRESS_MASK: usize = (1 << CLASS_SHIFT) - 1;

/// In place of a class: the address is that of a head in which a call is noted.
const CALL: usize = CLASSES;

/// The largest block whose pointer goes into a page; more is counted, and freed, one by one.
pub(super) const ENTRY_MAX: usize = PAGE;

const LAYOUT: Layout = match Layout::from_size_align(PAGE, 8) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// A page of pointers.
#[repr(C)]
pub(super) struct Block {
    pub(super) next: *mut Block,
    /// The grace period after which they may be freed.
    pub(super) cookie: u64,
    pub(super) len: usize,
    pub(super) bytes: usize,
    /// Whether the page came by the ordinary path and not from the source.
    ordinary: bool,
    entries: [usize; ENTRIES],
}

const _: () = assert!(size_of::<Block>() == PAGE);

/// A pointer and its class in a word; `None` for what is too large.
#[inline(always)]
pub(super) fn entry(block: NonNull<u8>, layout: Layout) -> Option<usize> {
    match class_of(layout.size(), layout.align()) {
        Some(class) if layout.size() <= ENTRY_MAX => Some(block.as_ptr() as usize | class << CLASS_SHIFT),
        _ => None,
    }
}

/// A call that was noted in its head, as a word; `None` if the head, which may be anybody's memory, lies or is tagged
/// beyond the addresses that the heap's own blocks have.
pub(super) fn call_entry(head: NonNull<RcuHead>) -> Option<usize> {
    let address = head.as_ptr() as usize;
    (address & !ADDRESS_MASK == 0).then_some(address | CALL << CLASS_SHIFT)
}

fn class_of_entry(entry: usize) -> usize {
    entry >> CLASS_SHIFT
}

/// The head of a call's word.
fn head_of(address: usize) -> NonNull<RcuHead> {
    // SAFETY: words of calls are made of pointers that are not null.
    unsafe { NonNull::new_unchecked(address as *mut RcuHead) }
}

/// Bytes that a word's block has, or that its call will free.
fn bytes_of(entry: usize) -> usize {
    match class_of_entry(entry) {
        // SAFETY: the call was noted before its word was made, and the head is left alone until it is called.
        CALL => unsafe { RcuHead::call_bytes(head_of(entry & ADDRESS_MASK)) },
        class => block_size(class),
    }
}

/// Frees the block that a word stands for.
pub(super) fn free_entry(entry: usize) {
    slab::free_bulk(class_of_entry(entry), &[entry & ADDRESS_MASK]);
}

impl Block {
    /// Where the entries are, for a stack to fill.
    ///
    /// # Safety
    /// `block` is a block from a pool that nobody else uses.
    pub(super) unsafe fn array(block: *mut Block) -> Array {
        // SAFETY: the caller's obligation.
        let base = unsafe { (&raw mut (*block).entries).cast::<usize>() };
        Array { base, top: base, limit: base.wrapping_add(ENTRIES) }
    }

    /// The block that an array is part of, its length and bytes set; `None` if it is no array.
    pub(super) fn of_array(array: Array) -> Option<NonNull<Block>> {
        if array.is_none() {
            return None;
        }
        let block = array.base.wrapping_byte_sub(core::mem::offset_of!(Block, entries)).cast::<Block>();
        // SAFETY: arrays on the deferred stacks come from `array`, and nobody else uses this one any more.
        unsafe {
            (*block).len = array.len();
            let entries = &(&(*block).entries)[..array.len()];
            (*block).bytes = entries.iter().map(|&entry| bytes_of(entry)).sum();
        }
        NonNull::new(block)
    }

    /// Adds a word; false if there is no room.
    pub(super) fn push(&mut self, entry: usize) -> bool {
        let room = self.len < ENTRIES;
        if room {
            self.entries[self.len] = entry;
            self.len += 1;
            self.bytes += bytes_of(entry);
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
            if start < end as usize {
                give(class, &scratch.0[start..end as usize]);
            }
            start = end as usize;
        }
        self.len = 0;
        self.bytes = 0;
        scratch.0[start..ends[CALL] as usize].iter().map(|&address| head_of(address))
    }
}

/// Room to sort a block's pointers in.
pub(super) struct Scratch([usize; ENTRIES]);

impl Scratch {
    pub(super) const fn new() -> Scratch {
        Scratch([0; ENTRIES])
    }
}

/// Passes blocks of a class on in batches, as long as those are wanted, and gives the rest back to the slabs.
fn give(class: usize, blocks: &[usize]) {
    let node = percpu::node_here();
    let mut chunks = blocks.chunks(BATCH_MAX);
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

/// Blocks that are not in use: recycled ones first, then from the source by its nolock path.
///
/// After a miss twice as many are kept, up to a cap; each quiet tick gives an eighth of the surplus back.
pub(super) struct Pool {
    spare: Lock<Spare>,
    /// Blocks in use or spare. Relaxed: statistics, both.
    pub(super) blocks: AtomicUsize,
    pub(super) misses: AtomicUsize,
}

struct Spare {
    first: *mut Block,
    count: usize,
    target: usize,
}

// SAFETY: spare blocks are nobody else's.
unsafe impl Send for Spare {}

const TARGET_MIN: usize = 4;
const TARGET_MAX: usize = 128;

impl Pool {
    pub(super) const fn new() -> Pool {
        Pool {
            spare: Lock::new(Spare { first: null_mut(), count: 0, target: TARGET_MIN }),
            blocks: AtomicUsize::new(0),
            misses: AtomicUsize::new(0),
        }
    }

    fn init(&self, block: NonNull<u8>, ordinary: bool) -> NonNull<Block> {
        let block = block.cast::<Block>();
        self.blocks.fetch_add(1, Ordering::Relaxed);
        // SAFETY: a page of ours; the entries need no value while `len` is 0.
        unsafe {
            (&raw mut (*block.as_ptr()).next).write(null_mut());
            (&raw mut (*block.as_ptr()).cookie).write(0);
            (&raw mut (*block.as_ptr()).len).write(0);
            (&raw mut (*block.as_ptr()).bytes).write(0);
            (&raw mut (*block.as_ptr()).ordinary).write(ordinary);
        }
        block
    }

    /// An empty block, without waiting for anything.
    pub(super) fn get(&self, source: &dyn BlockSource) -> Option<NonNull<Block>> {
        {
            let mut spare = self.spare.lock();
            if let Some(block) = NonNull::new(spare.first) {
                // SAFETY: spare blocks are valid and nobody else's.
                spare.first = unsafe { block.as_ref().next };
                spare.count -= 1;
                return Some(block);
            }
        }
        if let Some(block) = source.try_alloc_nolock(LAYOUT) {
            return Some(self.init(block, false));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let mut spare = self.spare.lock();
        spare.target = (spare.target * 2).min(TARGET_MAX);
        None
    }

    /// An empty block from the ordinary allocation path of the heap, which may lock and map.
    pub(super) fn get_waiting(&self) -> Option<NonNull<Block>> {
        // SAFETY: the layout's size is not zero.
        let block = unsafe { crate::alloc::alloc_block(LAYOUT) };
        NonNull::new(block).map(|block| self.init(block, true))
    }

    /// Around a `fork`: the list is whole.
    pub(super) fn fork_lock(&self, acquire: bool) {
        if acquire { self.spare.acquire() } else { self.spare.release() }
    }

    /// Takes an empty block back.
    pub(super) fn put(&self, block: NonNull<Block>, source: &dyn BlockSource) {
        {
            let mut spare = self.spare.lock();
            if spare.count < spare.target {
                // SAFETY: the caller gives up the block.
                unsafe { (*block.as_ptr()).next = spare.first };
                spare.first = block.as_ptr();
                spare.count += 1;
                return;
            }
        }
        self.release(block, source);
    }

    fn release(&self, block: NonNull<Block>, source: &dyn BlockSource) {
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the page goes back to where it came from, with the layout it was asked for.
        unsafe {
            if block.as_ref().ordinary {
                crate::alloc::free_block(block.cast(), LAYOUT);
            } else {
                source.free_nolock(block.cast(), LAYOUT);
            }
        }
    }

    /// Nothing has happened for a while: keep less.
    pub(super) fn decay(&self, source: &dyn BlockSource) {
        loop {
            let block = {
                let mut spare = self.spare.lock();
                spare.target -= (spare.target - TARGET_MIN).div_ceil(8);
                if spare.count <= spare.target {
                    return;
                }
                let block = spare.first;
                // SAFETY: more than the target, so not empty.
                spare.first = unsafe { (*block).next };
                spare.count -= 1;
                block
            };
            if let Some(block) = NonNull::new(block) {
                self.release(block, source);
            }
        }
    }

    /// Gives every spare block back.
    pub(super) fn empty(&self, source: &dyn BlockSource) {
        let mut first = {
            let mut spare = self.spare.lock();
            spare.count = 0;
            core::mem::replace(&mut spare.first, null_mut())
        };
        while let Some(block) = NonNull::new(first) {
            // SAFETY: ours since the lock.
            first = unsafe { block.as_ref().next };
            self.release(block, source);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A head of anybody's may lie where a word has no room for it. Red if `call_entry` does not look.
    #[test]
    fn heads_beyond_a_word_make_none() {
        let at = |address: usize| call_entry(NonNull::new(address as *mut RcuHead).unwrap());
        let word = at(0x7fff_ffff_fff8).unwrap();
        assert_eq!((class_of_entry(word), word & ADDRESS_MASK), (CALL, 0x7fff_ffff_fff8));
        assert_eq!(at(1 << CLASS_SHIFT), None);
        assert_eq!(at(0xb400_7fff_ffff_fff8), None);
    }
}
