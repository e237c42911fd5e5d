//! A block of the heap that knows what is in it.

use std::alloc::{GlobalAlloc, Layout};
use std::ops::Range;
use std::ptr::NonNull;

use super::{HEAP, Random};

/// Length of the reference bytes: prime, so that contents repeat at no distance that blocks lie apart.
const LEN: usize = 65_521;

/// Random bytes that the contents of all blocks are taken from.
static REFERENCE: [u8; LEN] = {
    let mut random = Random::new(1);
    let mut bytes = [0; LEN];
    let (mut at, mut word) = (0, 0);
    while at < LEN {
        word = if at.is_multiple_of(8) { random.word() } else { word >> 8 };
        bytes[at] = word as u8;
        at += 1;
    }
    bytes
};

static ZEROS: [u8; LEN] = [0; LEN];

/// Layout of a block; both arguments are the test's own and fit together.
pub fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("size and alignment make a layout")
}

/// A block aligned to 8, as a pointer, for programs that misuse it.
#[inline(never)]
pub fn take(size: usize) -> *mut u8 {
    // SAFETY: no test asks for a size of 0.
    let block = unsafe { HEAP.alloc(layout(size, 8)) };
    assert!(!block.is_null());
    block
}

/// Frees what [`take`] gave, or what is a mistake: then in a process that is there for it, and ends.
#[inline(never)]
pub fn free(block: *mut u8, size: usize) {
    // SAFETY: a block that was taken with this size; where it is none, that the heap has defined answers is what the test
    // is to show, and nothing else in the process depends on them.
    unsafe { HEAP.dealloc(block, layout(size, 8)) }
}

/// A block of the heap, full of bytes that follow from its seed.
///
/// Two blocks that overlap, and a block that lost or swapped bytes when it was moved, differ from what they should
/// hold in 255 of 256 bytes. The contents are compared whenever a block is resized or dropped.
#[derive(Debug)]
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
    seed: u64,
}

// SAFETY: a block is memory of its owner's alone, whatever thread that is on.
unsafe impl Send for Block {}

impl Block {
    /// A block with its contents; `None` if the heap gives none.
    pub fn new(size: usize, align: usize, seed: u64) -> Option<Block> {
        let layout = layout(size, align);
        assert!(size > 0);
        // SAFETY: the size is not 0.
        Self::adopt(unsafe { HEAP.alloc(layout) }, layout, seed)
    }

    /// The same from `alloc_zeroed`, after a look at whether it is zero.
    pub fn zeroed(size: usize, align: usize, seed: u64) -> Option<Block> {
        let layout = layout(size, align);
        assert!(size > 0);
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { HEAP.alloc_zeroed(layout) })?;
        for at in (0..size).step_by(LEN) {
            let len = LEN.min(size - at);
            // SAFETY: `at + len` is at most the block's size, and a zeroed block is initialised.
            let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr().add(at), len) };
            assert!(*bytes == ZEROS[..len], "a zeroed block of {size} bytes at {start:?} reads as zero");
        }
        Self::adopt(start.as_ptr(), layout, seed)
    }

    fn adopt(start: *mut u8, layout: Layout, seed: u64) -> Option<Block> {
        let start = NonNull::new(start)?;
        let mut block = Block { start, layout, seed };
        block.assert_aligned();
        block.fill(0);
        Some(block)
    }

    fn assert_aligned(&self) {
        let (start, layout) = (self.start, self.layout);
        assert!(start.addr().get().is_multiple_of(layout.align()), "{start:?} is aligned for {layout:?}");
    }

    pub fn size(&self) -> usize {
        self.layout.size()
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The addresses the block covers.
    pub fn range(&self) -> Range<usize> {
        let start = self.start.addr().get();
        start..start + self.size()
    }

    /// Calls `f` with the pieces of a range of the contents: where each is and what belongs there.
    fn pieces(&self, range: Range<usize>, mut f: impl FnMut(*mut u8, &[u8])) {
        assert!(range.end <= self.size());
        let phase = Random::new(self.seed).below(LEN);
        let mut at = range.start;
        while at < range.end {
            let first = (phase + at) % LEN;
            let piece = &REFERENCE[first..LEN.min(first + range.end - at)];
            // SAFETY: `at` is smaller than the block's size.
            f(unsafe { self.start.as_ptr().add(at) }, piece);
            at += piece.len();
        }
    }

    fn fill(&mut self, from: usize) {
        // SAFETY: each piece lies inside the block, which is this value's alone, and outside the reference.
        self.pieces(from..self.size(), |at, piece| unsafe { at.copy_from_nonoverlapping(piece.as_ptr(), piece.len()) });
    }

    /// Compares the contents with what they should be.
    pub fn check(&self) {
        self.check_to(self.size());
    }

    fn check_to(&self, end: usize) {
        self.pieces(0..end, |at, piece| {
            // SAFETY: each piece lies inside the block, the part of it that has been filled.
            let found = unsafe { std::slice::from_raw_parts(at, piece.len()) };
            assert!(found == piece, "{:?} at {:?} holds what was written to it", self.layout, self.start);
        });
    }

    /// Resizes the block, whose contents are compared afterwards; false if the heap refuses, and the block is as it
    /// was.
    pub fn resize(&mut self, size: usize) -> bool {
        assert!(size > 0);
        let grown_from = self.size().min(size);
        let new = layout(size, self.layout.align());
        // SAFETY: the block came from the heap with this layout; the new size is not 0 and makes a layout.
        let moved = unsafe { HEAP.realloc(self.start.as_ptr(), self.layout, size) };
        let Some(start) = NonNull::new(moved) else {
            self.check();
            return false;
        };
        (self.start, self.layout) = (start, new);
        self.assert_aligned();
        self.check_to(grown_from);
        self.fill(grown_from);
        true
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
        // SAFETY: the block came from the heap with this layout, and goes with this value.
        unsafe { HEAP.dealloc(self.start.as_ptr(), self.layout) }
    }
}
