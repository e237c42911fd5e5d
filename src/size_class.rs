//! Size classes: which block serves a request, and how the blocks of a class lie in memory. All const.
//!
//! Classes are multiples of 8 up to 64 bytes but for 56, then eight to every doubling up to 256 KiB:
//!
//! ```text
//! 8 16 24 32 40 48 64 | 72 80 … 128 | 144 160 … 256 | … | 144 KiB 160 KiB … 256 KiB
//! ```
//!
//! Blocks of 56 bytes side by side would lie in two cache lines each, three of four, and a program that writes to one on one
//! CPU and to its neighbour on another would have both wait. In blocks of 64 they have a line to themselves.
//!
//! A request wastes at most 1/9 of its block above 64 bytes and 4.1 % on average over uniform sizes (the
//! tests compute both). Blocks up to [`SLAB_MAX`] share *slabs*, runs of pages cut into equal blocks; each
//! larger one is a run of its own.

/// log2 of [`PAGE`].
pub(crate) const PAGE_SHIFT: u32 = 12;

/// Bytes in a page of the heap. Runs are counted in these; the pages of the operating system, which may
/// be larger, matter only where memory is asked for or given back.
pub(crate) const PAGE: usize = 1 << PAGE_SHIFT;

/// Number of size classes.
pub(crate) const CLASSES: usize = 103;

/// The largest size served from a class.
pub(crate) const CLASS_MAX: usize = 256 << 10;

/// The largest size whose blocks share slabs.
pub(crate) const SLAB_MAX: usize = 32 << 10;

/// Most blocks moved between a stack and the layer behind it in one go, unless the stack is large.
pub(crate) const BATCH: usize = 63;
/// Most blocks moved in one go.
pub(crate) const BATCH_MAX: usize = 255;

/// Bytes in a cache line.
pub(crate) const LINE: usize = 64;
/// Cache lines over which small blocks are spread.
const SPREAD_LINES: usize = 8;

/// Bytes of bookkeeping per page; a slab's header and bitmap fill what belongs to its pages.
pub(crate) const DESCRIPTOR: usize = 64;

/// Bytes of a slab's header, before its bitmap.
pub(crate) const SLAB_HEADER: usize = 24;

/// The class for requests of `last + 1` bytes, `last < CLASS_MAX`.
///
/// Below 48 it is `last / 8`, below 64 the next.
#[inline(always)]
const fn class_of_last(last: usize) -> usize {
    match last {
        0..48 => last / 8,
        48..64 => 6,
        _ => class_of_last_doubling(last),
    }
}

/// The same where `last` is at least 64. In the doubling from `1 << e` on, a class is `1 << (e - 3)` bytes wide, so
/// `last >> (e - 3)` counts from 8 to 15; 7 classes are below 64, and 8 belong to each doubling from there on.
#[inline(always)]
const fn class_of_last_doubling(last: usize) -> usize {
    let e = 63 ^ (last as u64).leading_zeros();
    (last >> (e - 3)) + 8 * e as usize - 49
}

/// Sizes up to this find their class in [`SMALL`].
const SMALL_MAX: usize = 1024;

/// The class of every multiple of 8 up to [`SMALL_MAX`], one byte each.
///
/// Not for want of arithmetic: compilers turn the bit scan's result into a shift count in an 8-bit register,
/// whose dependence on its full register chains one allocation to the next, 10 cycles each. A constant size
/// needs neither; the load is folded.
static SMALL: [u8; SMALL_MAX / 8] = {
    let mut table = [0; SMALL_MAX / 8];
    let mut n = 0;
    while n < table.len() {
        table[n] = class_of_last(8 * n) as u8;
        n += 1;
    }
    table
};

/// The class for a request of `size` bytes aligned to `align`, or `None` if no class serves it (`size` is
/// 0 or beyond [`CLASS_MAX`], or `align` beyond a page).
///
/// A size that is a multiple of `align` gets a class whose size is one, too: classes within a doubling are
/// a power of two apart, so rounding up to a class keeps every factor of two the request had, or gives it
/// a larger one. Blocks start at multiples of the class size in a run aligned to a page.
#[inline(always)]
pub(crate) fn class_of(size: usize, align: usize) -> Option<usize> {
    let last = if align <= 8 {
        size.wrapping_sub(1)
    } else {
        // `Layout` promises that this does not overflow. Size 0 gives usize::MAX, which no class serves.
        (size.wrapping_add(align - 1) & !(align - 1)).wrapping_sub(1)
    };
    if align > PAGE {
        None
    } else if last < SMALL_MAX {
        Some(SMALL[last / 8] as usize)
    } else if last < CLASS_MAX {
        Some(class_of_last_doubling(last))
    } else {
        None
    }
}

/// The class of every multiple of 8 up to [`SMALL_MAX`], from 0 on, for requests of C: aligned to 16 bytes if they are
/// for more than 8, and 8 bytes for 0.
#[cfg(feature = "capi")]
static SMALL_OF_C: [u8; SMALL_MAX / 8 + 1] = {
    let mut table = [0; SMALL_MAX / 8 + 1];
    let mut n = 2;
    while n < table.len() {
        table[n] = class_of_last((8 * n).next_multiple_of(16) - 1) as u8;
        n += 1;
    }
    table
};

/// The class for a request of C, which states no alignment: blocks for more than 8 bytes are aligned to 16. `None`
/// beyond [`CLASS_MAX`].
#[cfg(feature = "capi")]
#[inline(always)]
pub(crate) fn class_of_c(size: usize) -> Option<usize> {
    if size <= SMALL_MAX {
        Some(SMALL_OF_C[size.div_ceil(8)] as usize)
    } else if size <= CLASS_MAX {
        // From 128 bytes on every class is a multiple of 16.
        Some(class_of_last_doubling(size - 1))
    } else {
        None
    }
}

/// Whether blocks of the class are runs of their own: told from the number alone, which may be constant.
#[inline(always)]
pub(crate) const fn is_run_class(class: usize) -> bool {
    class > class_of_last(SLAB_MAX - 1)
}

/// What is fixed about a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Class {
    /// Bytes in a block.
    pub size: u32,
    /// Blocks in a run; 1 above [`SLAB_MAX`].
    pub blocks: u16,
    /// Pages in a run.
    pub pages: u16,
    /// A run is aligned to `1 << order` pages.
    pub order: u8,
    /// Most blocks to move in one go, of a stack that is not large and of one that is.
    pub batch: u8,
    pub batch_max: u8,
    /// Capacity of a CPU's stack when the class is first used there.
    pub capacity: u16,
    /// Most that the capacity may grow to.
    pub capacity_max: u16,
    /// Blocks that begin in a cache line, and lines over which blocks that are handed out one after the other are
    /// spread: 1 for both where no two blocks begin in a line.
    pub blocks_in_line: u8,
    pub spread_lines: u8,
    /// ceil(2^32 / size): turns an offset in a slab into a block number by a multiplication.
    reciprocal: u32,
}

impl Class {
    /// Number of the block that holds byte `offset` of the run.
    ///
    /// Exact for slabs: with r = ceil(2^32 / size), `offset * (r * size - 2^32) < 2^17 * 2^15 = 2^32`.
    #[inline(always)]
    pub(crate) const fn block_at(&self, offset: usize) -> usize {
        ((offset as u64 * self.reciprocal as u64) >> 32) as usize
    }

    /// Number of the block that begins at byte `offset` of the run, if one does.
    ///
    /// With r as above and e = r * size - 2^32, `offset = n * size + m` has the product `n * 2^32 + n * e + m * r`. Its lower half is
    /// `n * e`, less than r, where m is 0, and at least r where it is not, since `(n + 1) * e` is less than r. (D. Lemire and others,
    /// "Faster remainder by direct computation", 2019. The test below looks at every offset.)
    #[inline(always)]
    pub(crate) const fn block_that_begins_at(&self, offset: usize) -> Option<usize> {
        let product = offset as u64 * self.reciprocal as u64;
        if (product as u32) < self.reciprocal { Some((product >> 32) as usize) } else { None }
    }

    /// Bytes of a run that no block uses.
    pub(crate) const fn slack(&self) -> usize {
        self.pages as usize * PAGE - self.blocks as usize * self.size as usize
    }

    /// Whether blocks of this class are runs of their own.
    #[inline(always)]
    pub(crate) const fn is_run(&self) -> bool {
        self.blocks == 1
    }

    /// Whether two blocks may lie in the pair of cache lines that a processor fetches together.
    #[inline(always)]
    pub(crate) const fn is_small(&self) -> bool {
        self.size as usize <= 2 * LINE
    }

    /// Whether a block may lie in a cache line with others: whoever writes to one then disturbs those who use them.
    #[inline(always)]
    pub(crate) const fn shares_lines(&self) -> bool {
        self.blocks_in_line > 1
    }

    const fn new(index: usize) -> Class {
        let size = match index {
            0..6 => 8 * (index + 1),
            6 => 64,
            // The doubling from 64 on begins with 7.
            _ => ((index + 1) % 8 + 9) << ((index + 1) / 8 + 2),
        };
        let (order, pages, blocks) = if size > SLAB_MAX {
            let pages = size / PAGE;
            (pages.next_power_of_two().trailing_zeros(), pages, 1)
        } else {
            slab_shape(size)
        };
        let in_line = if size < LINE { LINE.div_ceil(size) } else { 1 };
        let spread = if in_line == 1 { 1 } else { clamp(BATCH / in_line, 1, SPREAD_LINES) };
        let first = clamp((16 << 10) / size, if size > SLAB_MAX { 1 } else { 4 }, 32);
        Class {
            size: size as u32,
            blocks: blocks as u16,
            pages: pages as u16,
            order: order as u8,
            batch: clamp((32 << 10) / size, if size > SLAB_MAX { 1 } else { 2 }, BATCH) as u8,
            batch_max: clamp((32 << 10) / size, if size > SLAB_MAX { 1 } else { 2 }, BATCH_MAX) as u8,
            // A refill is half of it.
            capacity: clamp(first, if in_line > 1 { 2 * spread * in_line } else { 1 }, usize::MAX) as u16,
            capacity_max: clamp((256 << 10) / size, 1, 2048) as u16,
            blocks_in_line: in_line as u8,
            spread_lines: spread as u8,
            reciprocal: (1u64 << 32).div_ceil(size as u64) as u32,
        }
    }
}

const fn clamp(n: usize, low: usize, high: usize) -> usize {
    if n < low {
        low
    } else if n > high {
        high
    } else {
        n
    }
}

/// Order, pages and blocks of the smallest run that wastes at most 1/32 of itself and holds enough blocks.
///
/// A run is the first `pages` of an aligned stretch of `1 << order`: pages that no block would use are not
/// part of it. The bitmap has to fit into the descriptors of the run's pages, which costs the 8-byte class
/// 2.3 % of its blocks and no other class any.
const fn slab_shape(size: usize) -> (u32, usize, usize) {
    let enough = if size <= 4096 { 8 } else { 4 };
    let mut order = if size == 8 { 4 } else { 2 };
    loop {
        let mut blocks = (PAGE << order) / size;
        let bits = 8 * ((DESCRIPTOR << order) - SLAB_HEADER);
        if blocks > bits {
            blocks = bits;
        }
        let pages = (blocks * size).div_ceil(PAGE);
        let waste = pages * PAGE - blocks * size;
        if blocks >= enough && waste * 32 <= pages * PAGE {
            return (order, pages, blocks);
        }
        order += 1;
    }
}

/// All classes, by index.
pub(crate) static CLASS: [Class; CLASSES] = {
    let mut table = [Class::new(0); CLASSES];
    let mut index = 1;
    while index < CLASSES {
        table[index] = Class::new(index);
        index += 1;
    }
    table
};

/// Bytes in a block of the class.
#[inline(always)]
pub(crate) fn block_size(class: usize) -> usize {
    CLASS[class].size as usize
}

const _: () = assert!(class_of_last(CLASS_MAX - 1) == CLASSES - 1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The smallest class that is large enough, found by looking at each.
    fn oracle(size: usize, align: usize) -> Option<usize> {
        let rounded = size.checked_next_multiple_of(align)?;
        (0..CLASSES).find(|&c| block_size(c) >= rounded)
    }

    #[test]
    fn every_size_gets_the_smallest_class_that_holds_it() {
        for size in 1..=CLASS_MAX {
            assert_eq!(class_of(size, 1), oracle(size, 1), "size {size}");
        }
        assert_eq!(class_of(0, 1), None);
        assert_eq!(class_of(CLASS_MAX + 1, 1), None);
        assert_eq!(class_of(64, 2 * PAGE), None);
        assert_eq!(class_of(isize::MAX as usize, 8), None);
    }

    /// Red with a class of 56.
    #[test]
    fn blocks_of_most_of_a_line_have_one_to_themselves() {
        for size in 49..=LINE {
            assert_eq!(block_size(class_of(size, 1).unwrap()), LINE, "size {size}");
        }
    }

    #[cfg(feature = "capi")]
    #[test]
    fn c_gets_the_smallest_class_that_is_aligned() {
        assert_eq!(class_of_c(0), Some(0));
        for size in 1..=CLASS_MAX {
            assert_eq!(class_of_c(size), oracle(size, if size <= 8 { 8 } else { 16 }), "size {size}");
        }
        assert_eq!(class_of_c(CLASS_MAX + 1), None);
        assert_eq!(class_of_c(usize::MAX), None);
    }

    #[test]
    fn classes_ascend_and_waste_what_is_stated() {
        for c in 1..CLASSES {
            assert!(block_size(c) > block_size(c - 1));
        }
        let (mut sum, mut worst) = (0.0, 0.0f64);
        for size in 1..=CLASS_MAX {
            let block = block_size(class_of(size, 1).unwrap());
            let waste = (block - size) as f64 / block as f64;
            sum += waste;
            if size > 64 {
                worst = worst.max(waste);
            }
        }
        assert!(worst < 1.0 / 9.0, "worst {worst}");
        let mean = sum / CLASS_MAX as f64;
        assert!(mean < 0.045, "mean {mean}");
    }

    #[test]
    fn runs_hold_their_blocks_and_bitmaps() {
        for class in &CLASS {
            let (size, pages) = (class.size as usize, class.pages as usize);
            assert!(pages <= 1 << class.order);
            assert!(class.blocks as usize * size <= pages * PAGE);
            assert_eq!(class.is_run(), class.size as usize > SLAB_MAX);
            assert_eq!(class.is_run(), is_run_class(class_of(class.size as usize, 1).unwrap()));
            assert!(class.capacity <= class.capacity_max && class.batch <= class.batch_max);
            if !class.is_run() {
                let words = (class.blocks as usize).div_ceil(64);
                assert!(SLAB_HEADER + 8 * words <= pages * DESCRIPTOR, "bitmap of {size}");
                assert!((pages * PAGE - class.blocks as usize * size) * 32 <= pages * PAGE);
                assert!(pages * PAGE <= 1 << 17, "the proof of block_at");
                for offset in 0..PAGE << class.order {
                    assert_eq!(class.block_at(offset), offset / size);
                    let begins = offset.is_multiple_of(size).then_some(offset / size);
                    assert_eq!(class.block_that_begins_at(offset), begins);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn alignment_is_kept(size in 1usize..=CLASS_MAX, shift in 0u32..=PAGE_SHIFT) {
            let align = 1 << shift;
            match class_of(size, align) {
                Some(c) => {
                    prop_assert_eq!(block_size(c) % align, 0);
                    prop_assert_eq!(Some(c), oracle(size, align));
                }
                None => prop_assert!(size.next_multiple_of(align) > CLASS_MAX),
            }
        }
    }
}
