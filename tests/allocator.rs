//! `Allocator` on the heap's handles: collections that use it, blocks that stay where they are, every resize against a
//! model; sizes that are promised; memory nodes.
//!
//! `RUSTC_BOOTSTRAP=1 cargo test --manifest-path tests/units/Cargo.toml --features nightly --test allocator` runs the
//! same against the standard library's trait.
#![cfg(not(miri))]
#![cfg_attr(feature = "nightly", feature(allocator_api))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ptr::NonNull;

use common::{HEAP, KIB, MIB, Random, scaled};
use pcpalloc::rcu::Heap;
use pcpalloc::{NodeError, PcpAlloc};

#[cfg(not(feature = "nightly"))]
use allocator_api2::{alloc::Allocator, boxed::Box, vec::Vec};
#[cfg(feature = "nightly")]
use std::alloc::Allocator;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

#[test]
fn collections_take_their_memory_from_a_handle() {
    let vector: Vec<u64, &PcpAlloc> = {
        let mut vector = Vec::new_in(&HEAP);
        (0..10_000).for_each(|n| vector.push(n * n));
        vector
    };
    assert_eq!(size_of::<Vec<u8, Heap>>(), size_of::<std::vec::Vec<u8>>());
    let copy: Vec<u64, Heap> = {
        let mut copy = Vec::with_capacity_in(3, Heap);
        copy.extend_from_slice(&vector);
        copy.shrink_to_fit();
        copy
    };
    assert_eq!(&vector[..], &copy[..]);
    let boxed = Box::new_in([7u8; 100], PcpAlloc::new());
    assert_eq!(boxed.iter().map(|&n| n as usize).sum::<usize>(), 700);
    let none: Box<[u64], Heap> = Vec::new_in(Heap).into_boxed_slice();
    assert!(none.is_empty());
}

#[test]
fn hash_maps_do() {
    let mut map: hashbrown::HashMap<u64, u64, hashbrown::DefaultHashBuilder, hashbrown_heap::Handle> =
        hashbrown::HashMap::with_hasher_in(Default::default(), hashbrown_heap::HANDLE);
    for n in 0..20_000u64 {
        map.insert(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n);
    }
    assert!((0..20_000u64).all(|n| map[&n.wrapping_mul(0x9e37_79b9_7f4a_7c15)] == n));
    let copy = map.clone();
    map.retain(|_, n| *n % 3 == 0);
    map.shrink_to_fit();
    assert_eq!((map.len(), copy.len()), (6667, 20_000));
}

/// hashbrown knows allocator-api2's trait, whichever the rest of this file is about.
mod hashbrown_heap {
    pub type Handle = pcpalloc::rcu::Heap;
    pub const HANDLE: Handle = pcpalloc::rcu::Heap;
}

/// Whether every byte is `fill`; by comparing the slice with itself, a byte on, which is quick in a debug build, too.
fn all_are(bytes: &[u8], fill: u8) -> bool {
    bytes.first().is_none_or(|&first| first == fill && bytes[1..] == bytes[..bytes.len() - 1])
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a layout")
}

/// Growth that needs no copy: within a class; of a run into free pages behind it; of a mapping, by its page tables. In a
/// process of its own, since the pages behind a run are anyone's, and residency is the whole process's.
///
/// Red if `resize` in `src/allocator.rs` takes the way by `allocate` and `copy` each time.
#[test]
fn growth_stays_in_place_where_it_can() {
    const NAME: &str = "growth_stays_in_place_where_it_can";
    common::child::body(NAME, |_| grows_in_place());
    common::child::Child::new(NAME, "").run().succeeded();
}

fn grows_in_place() {
    // Within a class, and to what has been handed out from the start.
    // SAFETY: each block is grown and given back by the layout it has.
    unsafe {
        let block = Heap.allocate(layout(65, 1)).expect("memory");
        assert_eq!(block.len(), 72);
        let grown = Heap.grow(block.cast(), layout(65, 1), layout(72, 1)).expect("memory");
        assert_eq!(grown, block);
        // The same block serves where more alignment is asked for, since every block of its class has that.
        let aligned = Heap.grow(grown.cast(), layout(72, 1), layout(72, 8)).expect("memory");
        assert_eq!(aligned, block);
        let shrunk = Heap.shrink(aligned.cast(), layout(72, 8), layout(66, 2)).expect("memory");
        assert_eq!(shrunk, block);
        Heap.deallocate(shrunk.cast(), layout(66, 2));
    }
    // A run, which grows into pages that were its own before.
    // SAFETY: as above.
    unsafe {
        let block = Heap.allocate(layout(2 * MIB, 8)).expect("memory");
        let shrunk = Heap.shrink(block.cast(), layout(2 * MIB, 8), layout(MIB, 8)).expect("memory");
        assert_eq!((shrunk.cast::<u8>(), shrunk.len()), (block.cast(), MIB));
        let grown = Heap.grow(shrunk.cast(), layout(MIB, 8), layout(3 * MIB / 2, 8)).expect("memory");
        assert_eq!((grown.cast::<u8>(), grown.len()), (block.cast(), 3 * MIB / 2));
        Heap.deallocate(grown.cast(), layout(3 * MIB / 2, 8));
    }
    // A mapping: 256 MiB grow to 512 MiB, of which two pages have been touched. A copy would touch all.
    // SAFETY: as above; both bytes lie in the block.
    unsafe {
        let block = Heap.allocate(layout(256 * MIB, 8)).expect("memory").cast::<u8>();
        block.write(1);
        block.add(256 * MIB - 1).write(2);
        let before = common::memory::resident();
        let grown = Heap.grow_zeroed(block, layout(256 * MIB, 8), layout(512 * MIB, 8)).expect("memory").cast::<u8>();
        let more = common::memory::resident().saturating_sub(before);
        // A quarter of what it grew by is populated ahead.
        assert!(more < 80 * MIB, "{more} bytes were touched");
        assert_eq!((grown.read(), grown.add(256 * MIB - 1).read(), grown.add(512 * MIB - 1).read()), (1, 2, 0));
        Heap.deallocate(grown, layout(512 * MIB, 8));
    }
}

/// One block and what is in it: the first `size` bytes are `fill`.
struct Held {
    block: NonNull<u8>,
    layout: Layout,
    fill: u8,
}

impl Held {
    /// Fills all that was handed out, and forgets about what was not asked for.
    fn new(block: NonNull<[u8]>, layout: Layout, fill: u8) -> Held {
        assert!(block.len() >= layout.size() && block.cast::<u8>().as_ptr().addr().is_multiple_of(layout.align()));
        // SAFETY: the block was handed out with this length.
        unsafe { block.cast::<u8>().write_bytes(fill, block.len()) };
        Held { block: block.cast(), layout, fill }
    }

    fn check(&self, block: NonNull<[u8]>, kept: usize) {
        // SAFETY: as above.
        let bytes = unsafe { block.as_ref() };
        assert!(all_are(&bytes[..kept], self.fill), "contents are kept");
    }
}

/// Sizes on both sides of every border between kinds of blocks, 0 among them.
fn size(random: &mut Random) -> usize {
    const BORDERS: [usize; 8] = [0, 64, 1024, 32 * KIB, 256 * KIB, MIB, 4 * MIB, 5 * MIB];
    match random.below(3) {
        0 => (BORDERS[random.below(8)] + random.below(3)).saturating_sub(1),
        _ if random.below(20) == 0 => random.below(6 * MIB),
        _ => {
            let most = 1 << (4 + random.below(15));
            random.below(most)
        }
    }
}

/// Every way to resize, between all kinds of blocks, with alignments that change, by any handle; contents, zeroes and
/// lengths checked. Then nothing is in use that was not before.
///
/// Red if `grow_zeroed` zeroes from the old block's usable end on, or takes a run for a mapping; if `stays` compares
/// sizes alone.
#[test]
fn every_resize_keeps_its_contents() {
    let mut random = Random::new(5);
    for _ in 0..scaled(2000) {
        let align =
            |random: &mut Random| if random.below(50) == 0 { 1 << random.below(17) } else { 1 << random.below(6) };
        let first = layout(size(&mut random), align(&mut random));
        let block = if random.below(2) == 0 { Heap.allocate(first) } else { HEAP.allocate_zeroed(first) };
        let mut held = Held::new(block.expect("memory"), first, random.word() as u8);
        for _ in 0..random.below(5) {
            let new = layout(size(&mut random), align(&mut random));
            // Any size up to what was handed out stands for the block.
            let room = HEAP.usable_size(held.layout).max(held.layout.size());
            let fits = held.layout.size() != 0 && random.below(3) == 0;
            let old = if fits { layout(room, held.layout.align()) } else { held.layout };
            // SAFETY: the block is of this layout, or one that fits, and of the heap that all handles lead to.
            let resized = unsafe {
                if new.size() >= old.size() && random.below(2) == 0 {
                    let block = HEAP.grow_zeroed(held.block, old, new).expect("memory");
                    assert!(all_are(&block.as_ref()[old.size()..], 0), "{old:?} {new:?}");
                    block
                } else if new.size() >= old.size() {
                    Heap.grow(held.block, old, new).expect("memory")
                } else {
                    PcpAlloc::new().shrink(held.block, old, new).expect("memory")
                }
            };
            held.check(resized, old.size().min(new.size()));
            held = Held::new(resized, new, random.word() as u8);
        }
        // SAFETY: the layout it has now.
        unsafe { Heap.deallocate(held.block, held.layout) };
    }
}

/// What `usable_size` and `good_size` promise, against blocks: all of it can be written to beside its neighbours, and
/// asking for it gets no other kind of block.
///
/// Red if `usable_size` is a word more: neighbours lose their bytes.
#[test]
fn usable_and_good_sizes_are_true() {
    let mut random = Random::new(9);
    let mut held = std::vec::Vec::new();
    for n in 0..scaled(2000) {
        let asked = layout(random.size().min(MIB), random.align());
        let usable = GLOBAL.usable_size(asked);
        assert!(usable >= asked.size());
        // SAFETY: the size is not zero; the block is given back once, below.
        let block = NonNull::new(unsafe { GLOBAL.alloc(asked) }).expect("memory");
        // SAFETY: so long is the block, if it is true.
        unsafe { block.write_bytes(n as u8, usable) };
        held.push((block, asked, usable, n as u8));
        assert_eq!(GLOBAL.usable_size(layout(usable, asked.align())), usable);
        let good = GLOBAL.good_size(asked.size());
        assert!(good >= asked.size() && GLOBAL.good_size(good) == good);
    }
    for (block, asked, usable, fill) in held {
        // SAFETY: as above.
        unsafe {
            let bytes = NonNull::slice_from_raw_parts(block, usable);
            assert!(all_are(bytes.as_ref(), fill), "{asked:?}");
            GLOBAL.dealloc(block.as_ptr(), asked);
        }
    }
    assert_eq!(GLOBAL.good_size(0), GLOBAL.good_size(1));
    assert_eq!(GLOBAL.good_size(usize::MAX), usize::MAX);
}

/// The memory node of a page that has been touched, by the kernel; `None` where it does not say.
fn node_of(block: NonNull<u8>) -> Option<usize> {
    const MPOL_F_NODE: usize = 1;
    const MPOL_F_ADDR: usize = 2;
    let mut node: libc::c_int = -1;
    // SAFETY: the call writes the node's number and looks at the address's page.
    let done =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut node, 0, 0, block.as_ptr(), MPOL_F_NODE | MPOL_F_ADDR) };
    (done == 0).then_some(node as usize)
}

/// Blocks of every kind from node 0; none from a node that there is not, nothing allocated for it.
///
/// Red if `src/node.rs` does not look whether there is such a node.
#[test]
fn nodes_give_their_memory_and_absent_ones_none() {
    for size in [8, 1000, 20 * KIB, 100 * KIB, MIB, 5 * MIB] {
        let asked = layout(size, 64);
        for take in [PcpAlloc::alloc_on_node, PcpAlloc::alloc_on_node_only] {
            let block = take(&GLOBAL, asked, 0).expect("node 0 has memory");
            assert!(block.as_ptr().addr().is_multiple_of(64));
            // SAFETY: the block is ours, so large, and given back as what it was asked for.
            unsafe {
                block.write_bytes(3, size);
                assert!(node_of(block).is_none_or(|node| node == 0), "{size}");
                GLOBAL.dealloc(block.as_ptr(), asked);
            }
            for absent in [63, 1 << 20, usize::MAX] {
                assert_eq!(take(&GLOBAL, asked, absent), Err(NodeError::Absent));
            }
        }
    }
    assert_eq!(NodeError::Absent.to_string(), "the machine has no such memory node");
}

/// At a limit a node says that it has no more, and has some again afterwards.
#[test]
fn nodes_run_out() {
    common::child::body("nodes_run_out", |_| {
        let asked = layout(MIB, 8);
        let blocks: std::vec::Vec<_> = std::iter::from_fn(|| {
            // One at a time, so that what `Vec` asks for does not meet the limit first.
            let block = GLOBAL.alloc_on_node_only(asked, 0);
            (block != Err(NodeError::OutOfMemory)).then(|| block.expect("node 0 has memory"))
        })
        .take(1000)
        .collect();
        assert!((20..64).contains(&blocks.len()), "{}", blocks.len());
        for block in blocks {
            // SAFETY: given back as what it was asked for.
            unsafe { GLOBAL.dealloc(block.as_ptr(), asked) };
        }
        GLOBAL.alloc_on_node(asked, 0).expect("there is memory again");
    });
    common::child::Child::new("nodes_run_out", "").settings("limit:64m").run().succeeded();
}
