//! Pools that promise a number of blocks of one layout, in any context.
//!
//! The kernel's `mempool` (`mm/mempool.c`): allocation tries the heap first and takes from what was set aside only
//! when that has nothing at hand; a free fills up what was set aside before anything goes back to the heap.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::tagged_stack::{Links, Stack};
use crate::{AllocError, alloc, nolock, percpu};

/// `min` blocks of one layout that are always there, for crash handlers, profilers and whoever must not fail.
///
/// Allocating and freeing neither lock, wait, make a system call nor allocate: legal in a signal handler. With at
/// most `min` blocks out at a time, allocation never fails.
///
/// ```
/// use pcpalloc::mempool::Pool;
/// use std::alloc::Layout;
///
/// let pool = Pool::new(Layout::new::<[u64; 32]>(), 8)?;
/// let block = pool.alloc().expect("fewer than 8 are out");
/// // SAFETY: from this pool, and not used any more.
/// unsafe { pool.free(block) };
/// assert_eq!(pool.available(), 8);
/// # Ok::<(), pcpalloc::AllocError>(())
/// ```
#[doc(alias = "mempool_t")]
#[derive(Debug)]
pub struct Pool {
    layout: Layout,
    /// Slots by number, from 1; a slot is on `full` with a block in it or on `vacant` without.
    slots: Box<[Slot]>,
    full: Stack,
    vacant: Stack,
    available: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    link: AtomicU32,
    block: AtomicPtr<u8>,
}

impl Links for Box<[Slot]> {
    fn link(&self, number: u32) -> &AtomicU32 {
        &self[number as usize - 1].link
    }
}

impl Pool {
    /// A pool that sets `min` blocks of `layout` aside: their memory, and 16 bytes for each, for as long as the pool lives.
    ///
    /// # Errors
    /// If the memory is not to be had, the layout's size is 0, or `min` is beyond a million.
    #[doc(alias = "mempool_create")]
    pub fn new(layout: Layout, min: usize) -> Result<Pool, AllocError> {
        let refused = AllocError(percpu::ChargeError::OutOfMemory);
        if layout.size() == 0 || min > 1 << 20 {
            return Err(refused);
        }
        let mut slots = Vec::new();
        // As many as there is room for, so that the vector is the box.
        slots.try_reserve_exact(min).map_err(|_| refused)?;
        slots.extend((0..min).map(|_| Slot { link: AtomicU32::new(0), block: AtomicPtr::new(null_mut()) }));
        let slots = slots.into_boxed_slice();
        let pool = Pool { layout, slots, full: Stack::new(), vacant: Stack::new(), available: AtomicUsize::new(0) };
        for number in 1..=min as u32 {
            // SAFETY: the size is not zero.
            let block = NonNull::new(unsafe { alloc::alloc_block(layout) }).ok_or(refused)?;
            pool.set_aside(number, block);
        }
        Ok(pool)
    }

    fn set_aside(&self, number: u32, block: NonNull<u8>) {
        // Relaxed: the push publishes.
        self.slots[number as usize - 1].block.store(block.as_ptr(), Ordering::Relaxed);
        self.available.fetch_add(1, Ordering::Relaxed);
        self.full.push(&self.slots, number);
    }

    /// A block: from the heap if it has one at hand ([`PcpAlloc::try_alloc_nolock`](crate::PcpAlloc::try_alloc_nolock)), else from what was set
    /// aside; `None` if that is all out.
    #[doc(alias = "mempool_alloc")]
    pub fn alloc(&self) -> Option<NonNull<u8>> {
        if let Some(block) = nolock::alloc(self.layout) {
            return Some(block);
        }
        let number = self.full.pop(&self.slots)?;
        // Relaxed, both: ordered by the pop, whose partner is the push in `set_aside`.
        let block = self.slots[number as usize - 1].block.swap(null_mut(), Ordering::Relaxed);
        self.available.fetch_sub(1, Ordering::Relaxed);
        self.vacant.push(&self.slots, number);
        NonNull::new(block)
    }

    /// Takes a block back: into what is set aside if that lacks one, else to the heap.
    ///
    /// # Safety
    /// `block` came from [`Pool::alloc`] of this pool, or from the heap with the same layout, and is not used
    /// any more.
    #[doc(alias = "mempool_free")]
    pub unsafe fn free(&self, block: NonNull<u8>) {
        match self.vacant.pop(&self.slots) {
            Some(number) => self.set_aside(number, block),
            // SAFETY: the caller's obligation.
            None => unsafe { nolock::free(block, self.layout) },
        }
    }

    /// Blocks set aside right now.
    pub fn available(&self) -> usize {
        self.available.load(Ordering::Relaxed)
    }

    /// What its blocks look like.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            if let Some(block) = NonNull::new(*slot.block.get_mut()) {
                // SAFETY: set aside, and nobody's since the pool is going.
                unsafe { alloc::free_block(block, self.layout) };
            }
        }
    }
}
