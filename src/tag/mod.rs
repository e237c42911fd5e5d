//! Memory by part of the program: blocks counted under the name of whoever asked for them.
//!
//! A [`Tag`] is a name with two numbers behind it, the bytes and the blocks that are out. Blocks come to be counted under
//! it in one of two ways:
//!
//! | | how | costs |
//! | --- | --- | --- |
//! | [`Tag`] as an allocator | collections take a `Tag`, or a reference to one, for their allocator | no memory |
//! | [`TaggedAlloc`] as the global allocator | whatever is allocated inside [`Tag::with`] | a byte per block |
//!
//! ```
//! use pcpalloc::tag::{Tag, TaggedAlloc};
//!
//! #[global_allocator]
//! static GLOBAL: TaggedAlloc = TaggedAlloc::new();
//!
//! static INDEX: Tag = Tag::new("index");
//!
//! let words = INDEX.with(|| vec![String::from("tagged"); 1000]);
//! assert_eq!(INDEX.stats().blocks, 1001);
//! drop(words);
//! assert_eq!(INDEX.stats().bytes, 0);
//! ```
//!
//! # What is counted
//!
//! What a block really takes ([`PcpAlloc::usable_size`]), from the allocation to the free, under the tag it was allocated
//! with, whichever thread frees it and whatever tag is in force there. A block that is resized stays with its tag. So when
//! nothing moves, the figures are exact, and they add up to what of [`Stats::in_use`](crate::Stats::in_use) came this way.
//! While other threads allocate and free, a tag's two figures are each as of some moment during the call.
//!
//! [`rcu::retire`](crate::rcu::retire) drops its box through the global allocator where that is a [`TaggedAlloc`], so what
//! it retires is counted until it is freed. [`rcu::free`](crate::rcu::free) and the like are for blocks of [`PcpAlloc`]
//! itself ([`TaggedAlloc::heap`]), not for boxes of such a program, which are longer than their layout says.
//!
//! # What it costs
//!
//! Each thread counts for itself, in memory of its own that no other thread writes to: a load, an addition and a store for
//! each of the two numbers, without atomic read-modify-write; `cargo bench --bench tags` measures it. A thread that uses tags takes
//! 2 KiB for them, which the next one takes over when it ends.

mod counts;
mod global;

pub use global::TaggedAlloc;

use core::alloc::{GlobalAlloc, Layout};
use core::fmt;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

use self::counts::{Side, count, count_resized, sum};
use crate::PcpAlloc;
use crate::alloc::usable_size;
use crate::zone::META;

/// Tags that are told apart; blocks of further ones are counted as untagged.
const TAGS: usize = 64;
/// The tag of blocks that nobody has named a tag for.
const UNTAGGED: u8 = 0;
const UNTAGGED_NAME: &str = "untagged";
/// Of a [`Tag`]: it has no number yet. Of a thread: no tag is in force, and it has not looked after [`untagged`] yet.
const UNKNOWN: u8 = u8::MAX;

/// Names of the tags, by number, each written once. The first is that of [`UNTAGGED`].
static NAMES: [AtomicPtr<&'static str>; TAGS] = [const { AtomicPtr::new(null_mut()) }; TAGS];

/// A name under which blocks are counted.
///
/// Tags of the same name are the same tag, and one that is called `untagged` is none. 63 names are told apart; blocks of
/// further tags are counted as untagged.
#[derive(Debug)]
pub struct Tag {
    name: &'static str,
    /// Its number, once it is known.
    number: AtomicU8,
}

/// What is out under a tag, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TagStats {
    /// The tag's name; `untagged` for blocks of a [`TaggedAlloc`] that were allocated under no tag.
    pub name: &'static str,
    /// Bytes of the blocks.
    pub bytes: usize,
    /// Blocks.
    pub blocks: usize,
    /// Bytes of all blocks that were ever allocated under it, and of what others grew by.
    pub allocated_bytes: usize,
    /// How many were ever allocated under it.
    pub allocated_blocks: usize,
}

impl fmt::Display for TagStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20} {:>14} bytes in {:>10} blocks", self.name, self.bytes, self.blocks)
    }
}

impl Tag {
    /// A tag of this name. Costs nothing until it is used.
    pub const fn new(name: &'static str) -> Tag {
        Tag { name, number: AtomicU8::new(UNKNOWN) }
    }

    /// The tag's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs `f`; what it allocates by a [`TaggedAlloc`] on this thread is counted under this tag.
    ///
    /// Nests: the innermost tag counts. In an `async` function wrap each poll, not the `await`.
    pub fn with<R>(&self, f: impl FnOnce() -> R) -> R {
        global::with(self.number(), f)
    }

    /// What is out under this tag.
    pub fn stats(&self) -> TagStats {
        TagStats { name: self.name, ..sum(self.number()) }
    }

    #[inline(always)]
    fn number(&self) -> u8 {
        // Relaxed: the name that belongs to it is read by others only, from `NAMES`.
        match self.number.load(Ordering::Relaxed) {
            UNKNOWN => self.register(),
            number => number,
        }
    }

    /// Finds the name's number, or gives it one. For want of memory, or of numbers, it stays untagged for good, so that
    /// what is freed is taken from where it was added.
    #[cold]
    fn register(&self) -> u8 {
        let named = || (UNTAGGED + 1..TAGS as u8).find(|&number| self.takes(&NAMES[number as usize]));
        let number = if self.name == UNTAGGED_NAME { UNTAGGED } else { named().unwrap_or(UNTAGGED) };
        // Relaxed: several threads may come here, and the first one's answer stands for all.
        match self.number.compare_exchange(UNKNOWN, number, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => number,
            Err(first) => first,
        }
    }

    /// Whether an entry is this name's, or has become it.
    fn takes(&self, entry: &AtomicPtr<&'static str>) -> bool {
        // SAFETY: names live for ever. Acquire, here and below: paired with the release, after the name was written.
        let mut named = unsafe { entry.load(Ordering::Acquire).as_ref() };
        if named.is_none() {
            let Some(name) = META.alloc(size_of::<&'static str>(), align_of::<&'static str>()) else { return false };
            let name = name.cast::<&'static str>();
            // SAFETY: fresh memory of this size. One that another thread anticipates is wasted.
            named = unsafe {
                name.write(self.name);
                match entry.compare_exchange(null_mut(), name.as_ptr(), Ordering::Release, Ordering::Acquire) {
                    Ok(_) => Some(name.as_ref()),
                    Err(first) => first.as_ref(),
                }
            };
        }
        named == Some(&self.name)
    }
}

/// What is out under each tag that has been used, in the order in which they were first used; `untagged` comes first, and
/// stays at 0 in a program without a [`TaggedAlloc`].
pub fn stats() -> impl Iterator<Item = TagStats> {
    let named = NAMES.iter().enumerate().skip(1).map_while(|(number, name)| {
        // SAFETY: names live for ever. Acquire: as in `takes`.
        let name = unsafe { name.load(Ordering::Acquire).as_ref() }?;
        Some(TagStats { name, ..sum(number as u8) })
    });
    core::iter::once(sum(UNTAGGED)).chain(named)
}

static HEAP: PcpAlloc = PcpAlloc::new();

// SAFETY: the heap's own blocks; counting them touches none.
unsafe impl GlobalAlloc for Tag {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligation.
        let block = unsafe { HEAP.alloc(layout) };
        if !block.is_null() {
            self.allocated(usable_size(layout));
        }
        block
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligation.
        let block = unsafe { HEAP.alloc_zeroed(layout) };
        if !block.is_null() {
            self.allocated(usable_size(layout));
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.freed(usable_size(layout));
        // SAFETY: the caller's obligation.
        unsafe { HEAP.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's obligation: the new size and the alignment make a layout.
        unsafe {
            let new = HEAP.realloc(block, layout, new_size);
            if !new.is_null() {
                let resized = Layout::from_size_align_unchecked(new_size, layout.align());
                self.resized(usable_size(layout), usable_size(resized));
            }
            new
        }
    }
}

impl Tag {
    /// A block of so many bytes has been allocated under this tag.
    #[inline(always)]
    pub(crate) fn allocated(&self, bytes: usize) {
        count(self.number(), Side::Allocated, bytes, 1);
    }

    /// One has been freed.
    #[inline(always)]
    pub(crate) fn freed(&self, bytes: usize) {
        count(self.number(), Side::Freed, bytes, 1);
    }

    /// One of `old` bytes has `new` now.
    #[inline(always)]
    pub(crate) fn resized(&self, old: usize, new: usize) {
        count_resized(self.number(), old, new);
    }
}
