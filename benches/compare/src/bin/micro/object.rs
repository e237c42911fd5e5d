//! What the rows allocate, and the numbers that choose it.

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::ptr::NonNull;

/// A block of a size that the compiler does not know, with a tag in its first eight bytes.
pub struct Object {
    block: NonNull<u64>,
    size: usize,
}

// SAFETY: an `Object` is the only handle on its block, which is plain memory.
unsafe impl Send for Object {}

impl Object {
    /// `size` is at least 8.
    #[inline(always)]
    pub fn new(size: usize, tag: u64) -> Self {
        assert!(size >= 8);
        let layout = Layout::from_size_align(size, 8).expect("a size that can be allocated");
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { alloc(layout) }).expect("out of memory").cast();
        // SAFETY: the block is ours, has at least eight bytes and is aligned for them.
        unsafe { block.write(tag) };
        // As far as the compiler knows, what is in the block is read and changed here.
        black_box(block.as_ptr());
        Object { block, size }
    }

    /// Writes to every byte behind the tag.
    #[allow(dead_code, reason = "not every program that has this module")]
    pub fn fill(&mut self) {
        // SAFETY: the block is this object's alone and has `size` bytes, at least 8.
        unsafe { self.block.as_ptr().add(1).cast::<u8>().write_bytes(0x5a, self.size - 8) };
    }

    /// 0 if the object is as it was made with this tag.
    #[inline(always)]
    pub fn difference(&self, tag: u64) -> u64 {
        // SAFETY: `new` wrote it, and the block is there as long as the object.
        unsafe { self.block.read() ^ tag }
    }
}

impl Drop for Object {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `new` made a layout of the same size and alignment and allocated the block with it; this object
        // is its only handle and ends here.
        unsafe { dealloc(self.block.as_ptr().cast(), Layout::from_size_align_unchecked(self.size, 8)) }
    }
}

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ seed)
    }

    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// So many sizes of 8 to 511 bytes; every doubling is as likely as the next.
    pub fn sizes(&mut self, count: usize) -> Vec<usize> {
        let mut size = || {
            let doubling = 8 << (self.next() % 6);
            doubling + self.next() as usize % doubling
        };
        (0..count).map(|_| size()).collect()
    }
}
