//! Every size and every alignment: where blocks lie, and what they hold at first.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::collections::VecDeque;

use common::block::layout;
use common::child::{self, Child};
use common::{Block, HEAP, KIB, MIB, PAGE, scaled};
use pcpalloc::{PcpAlloc, rcu};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Blocks that are live at once, the oldest given up for the newest.
#[derive(Default)]
struct Window {
    blocks: VecDeque<Block>,
    bytes: usize,
}

impl Window {
    const BYTES: usize = 24 * MIB;

    fn push(&mut self, block: Block) {
        self.bytes += block.size();
        self.blocks.push_back(block);
        while self.bytes > Self::BYTES {
            self.bytes -= self.blocks.pop_front().map_or(0, |oldest| oldest.size());
        }
    }
}

fn every_size(align: usize) {
    for round in 0..scaled(1) {
        let mut window = Window::default();
        for size in 1..=70_000 {
            let block = Block::new(size, align, (size + round) as u64);
            window.push(block.expect("there is memory"));
        }
    }
}

/// Red if two blocks overlap: in `Slab::take` (`src/slab/bitmap.rs`), leave the bits of the blocks taken set.
#[test]
fn every_size_at_alignments_to_4() {
    [1, 2, 4].into_iter().for_each(every_size);
}

/// Red as above.
#[test]
fn every_size_at_alignments_8_and_16() {
    [8, 16].into_iter().for_each(every_size);
}

/// Red if a block is not aligned: in `class_of` (`src/size_class.rs`), do not round the size up to the alignment; in
/// `large::alloc`, ask for a run of order 0; in `mapping::alloc`, round up to a page only.
#[test]
fn every_alignment_to_a_gibibyte() {
    for shift in 0..=30 {
        let align = 1usize << shift;
        let mut sizes = vec![1, 7, 1000, 5 * MIB];
        if align <= MIB {
            sizes.extend([align, align + 1, 3 * align]);
            sizes.extend([32 * KIB, 256 * KIB, 4 * MIB].iter().flat_map(|border| [border - 1, *border, border + 1]));
        }
        if align > 1 {
            sizes.push(align.min(16 * MIB) - 1);
        }
        let live: Vec<Block> = sizes
            .iter()
            .flat_map(|&size| [Block::new(size, align, shift), Block::zeroed(size, align, !shift)])
            .flatten()
            .collect();
        assert_eq!(live.len(), 2 * sizes.len(), "there is memory for alignment {align}");
    }
}

/// Sizes on either side of every border between classes and between layers.
fn borders() -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut size = 1;
    while size <= 256 * KIB {
        let last = HEAP.usable_size(layout(size, 1));
        sizes.extend([size, last]);
        size = last + 1;
    }
    assert!((2 * 50..2 * 200).contains(&sizes.len()), "there are size classes, some to every doubling");
    sizes.extend([size, 300 * KIB, MIB, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 6 * MIB]);
    sizes
}

/// Red if old contents show through: in `alloc_zeroed` (`src/alloc.rs`), return the block without the `write_bytes`;
/// in `large::zero`, return at once; in `Buddy::free` (`src/zone/buddy.rs`), do not call `set_warm`.
#[test]
fn memory_that_was_dirty_reads_as_zero() {
    for size in borders() {
        // More than the stacks hold of a small size, so that blocks come back from slabs as well.
        let count = (128 * KIB / size).clamp(2, 600);
        for align in [1, PAGE] {
            let dirty: Vec<Dirty> = (0..count).map(|_| Dirty::new(layout(size, align), size)).collect();
            drop(dirty);
            let clean: Vec<_> =
                (0..count).map(|n| Block::zeroed(size, align, n as u64).expect("there is memory")).collect();
            drop(clean);
        }
    }
}

/// Runs of which some pages have been written to, others never, and others been given back to the system.
///
/// Red as above, and if `Zone::release_free` calls the pages cold without having called `sys::release`.
#[test]
fn memory_that_was_partly_dirty_reads_as_zero() {
    for size in [48 * KIB, 200 * KIB, 260 * KIB, MIB, 3 * MIB, 5 * MIB] {
        for round in 0..scaled(6) {
            let dirty: Vec<Dirty> =
                (1..7).map(|n| Dirty::new(layout(size, PAGE), size / 7 * n / (1 + round % 3))).collect();
            drop(dirty);
            if round % 2 == 1 {
                assert_eq!(HEAP.trim().unreachable_cpus, 0);
            }
            // Other sizes, so that runs begin elsewhere.
            let clean: Vec<_> = [size, size / 2, size - PAGE, size + PAGE, 2 * size]
                .iter()
                .map(|&size| Block::zeroed(size, 1, round as u64).expect("there is memory"))
                .collect();
            drop(clean);
        }
    }
}

/// A block of which the first bytes are 0xff and the others not touched.
struct Dirty {
    start: *mut u8,
    layout: Layout,
}

impl Dirty {
    fn new(layout: Layout, bytes: usize) -> Dirty {
        assert!((1..=layout.size()).contains(&bytes));
        // SAFETY: the size is not 0, and `bytes` is at most that.
        unsafe {
            let start = HEAP.alloc(layout);
            assert!(!start.is_null(), "there is memory");
            start.write_bytes(0xff, bytes);
            Dirty { start, layout }
        }
    }
}

impl Drop for Dirty {
    fn drop(&mut self) {
        // SAFETY: `new` took the block with this layout, and nobody else has it.
        unsafe { HEAP.dealloc(self.start, self.layout) }
    }
}

/// Red if a size of 0 has a class: in `class_of` (`src/size_class.rs`), map it to class 0, whose 8 bytes at other
/// alignments are not aligned.
#[test]
fn a_size_of_0_is_served() {
    for shift in 0..=26 {
        let empty = layout(0, 1 << shift);
        // SAFETY: the trait leaves a size of 0 to the allocator; this one takes it for 1 (`large::alloc`), so what
        // it returns may be resized and freed with the same layout.
        unsafe {
            let blocks = [HEAP.alloc(empty), HEAP.alloc(empty), HEAP.alloc_zeroed(empty)];
            for (n, block) in blocks.iter().enumerate() {
                assert!(!block.is_null() && block.addr().is_multiple_of(empty.align()));
                assert!(!blocks[..n].contains(block), "blocks of size 0 have addresses of their own");
            }
            HEAP.dealloc(blocks[0], empty);
            let grown = HEAP.realloc(blocks[1], empty, 100);
            assert!(!grown.is_null() && grown.addr().is_multiple_of(empty.align()));
            grown.write_bytes(1, 100);
            HEAP.dealloc(grown, layout(100, empty.align()));
            HEAP.dealloc(blocks[2], empty);
        }
    }
}

/// What a size of 0 gets on a node has room for what a deferred free notes in it, at every alignment.
///
/// Red if it has none: in `alloc_on` (`src/large.rs`), change `size.max(1)` to `size`.
#[test]
fn a_size_of_0_on_a_node_is_served() {
    const NAME: &str = "a_size_of_0_on_a_node_is_served";
    child::body(NAME, |_| {
        for shift in 0..=26 {
            let empty = layout(0, 1 << shift);
            for only in [false, true] {
                for way in 0..3 {
                    let block = if only { HEAP.alloc_on_node_only(empty, 0) } else { HEAP.alloc_on_node(empty, 0) };
                    let block = block.expect("there is memory");
                    assert!(block.addr().get().is_multiple_of(empty.align()));
                    assert!(HEAP.usable_size(empty) >= PAGE);
                    // SAFETY: a block of this layout, with room for as much, which nobody else knows, freed once.
                    unsafe {
                        block.write_bytes(1, HEAP.usable_size(empty));
                        match way {
                            0 => HEAP.dealloc(block.as_ptr(), empty),
                            1 => HEAP.free_nolock(block, empty),
                            _ => rcu::free(block, empty),
                        }
                    }
                }
            }
        }
        rcu::barrier();
        HEAP.trim();
        let stats = HEAP.stats();
        assert_eq!((stats.mappings, stats.deferred), (0, 0), "{stats}");
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// Red if a refusal is not an answer: in `large::alloc` (`src/large.rs`), take the address out of `None`.
#[test]
fn sizes_that_cannot_be_had_give_null() {
    for shift in 0..=40 {
        let align = 1usize << shift;
        let most = isize::MAX as usize - (align - 1);
        for size in [most, most - 1, most - PAGE, most / 2, 1 << 48] {
            let layout = layout(size, align);
            // SAFETY: the size is not 0.
            unsafe {
                assert!(HEAP.alloc(layout).is_null(), "{layout:?}");
                assert!(HEAP.alloc_zeroed(layout).is_null(), "{layout:?}");
            }
        }
    }
    for size in [1, 1000, 50 * KIB, 300 * KIB, 5 * MIB] {
        let mut block = Block::new(size, 8, 1).expect("there is memory");
        assert!(!block.resize(isize::MAX as usize - 7), "a block cannot grow that far");
        assert!(block.resize(size + 1), "a block that could not be resized is as it was");
    }
}

/// Red if the usable size is not what a block has: in `usable_size` (`src/alloc.rs`), return the size asked for; in
/// `large::usable_size`, one page more.
#[test]
fn usable_sizes_are_what_blocks_have() {
    for size in borders() {
        for align in [1, 8, 64, PAGE, 16 * PAGE] {
            let usable = HEAP.usable_size(layout(size, align));
            assert!(usable >= size && usable <= size.next_multiple_of(align.min(PAGE)) * 9 / 8 + PAGE);
            assert_eq!(HEAP.usable_size(layout(usable, align)), usable, "{size} aligned to {align}");
            let mut block = Block::new(size, align, 1).expect("there is memory");
            let start = block.range().start;
            if align > PAGE {
                continue;
            }
            // All of it can be had where the block lies; what is more lies elsewhere, if it is in a slab.
            assert!(block.resize(usable) && block.range().start == start, "{size} aligned to {align} has {usable}");
            if usable <= 32 * KIB {
                assert!(block.resize(usable + 1) && block.range().start != start, "{size} aligned to {align}");
            }
        }
    }
}
