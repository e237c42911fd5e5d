//! A program whose global allocator is one of its own around the heap, as such are written that count or check: each block
//! has a header in front.
#![cfg(not(miri))]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicIsize, Ordering};

use pcpalloc::PcpAlloc;
use pcpalloc::rcu::{self, Domain, Heap, RcuCell};

static HEAP: PcpAlloc = PcpAlloc::new();

/// What a block has in front of it says its size.
struct Headed;

/// Blocks that are out.
static OUT: AtomicIsize = AtomicIsize::new(0);

fn with_header(layout: Layout) -> (Layout, usize) {
    let header = layout.align().max(16);
    (Layout::from_size_align(layout.size() + header, header).expect("a layout"), header)
}

// SAFETY: blocks are the heap's, from behind the header on, which is a multiple of the alignment.
unsafe impl GlobalAlloc for Headed {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (whole, header) = with_header(layout);
        // SAFETY: the size is not zero; the header is part of the block, and as long as a word at least.
        unsafe {
            let block = HEAP.alloc(whole);
            if block.is_null() {
                return block;
            }
            OUT.fetch_add(1, Ordering::Relaxed);
            block.cast::<usize>().write(layout.size());
            block.add(header)
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (whole, header) = with_header(layout);
        // SAFETY: from `alloc`, with this layout.
        unsafe {
            let block = block.sub(header);
            if block.cast::<usize>().read() != layout.size() {
                std::process::abort();
            }
            OUT.fetch_sub(1, Ordering::Relaxed);
            HEAP.dealloc(block, whole);
        }
    }
}

#[global_allocator]
static GLOBAL: Headed = Headed;

/// Retires values of a size, by every way there is, while others of the same size are in use.
fn retire_many<const WORDS: usize>() {
    let domain = Domain::new(Heap);
    let count = ((1 << 21) / WORDS).clamp(100, 2000);
    let live: Vec<Box<[usize; WORDS]>> = (0..count).map(|n| Box::new([n; WORDS])).collect();
    let round = || {
        let out = OUT.load(Ordering::Relaxed);
        let cell = RcuCell::new([1; WORDS]);
        for n in 0..count {
            rcu::retire(Box::new([n; WORDS]));
            domain.retire(Box::new([n; WORDS]));
            cell.replace([n; WORDS]);
        }
        drop(cell);
        rcu::barrier();
        domain.barrier();
        OUT.load(Ordering::Relaxed) - out
    };
    // What tables need that are there from now on.
    round();
    assert_eq!(round(), 0, "every block comes back by the way it went");
    let new: Vec<Box<[usize; WORDS]>> = (0..2 * count).map(|n| Box::new([!n; WORDS])).collect();
    assert!(live.iter().enumerate().all(|(n, value)| **value == [n; WORDS]), "a value in use was overwritten");
    assert!(new.iter().enumerate().all(|(n, value)| **value == [!n; WORDS]), "two blocks overlap");
}

/// Values without a destructor go back through the program's allocator if their blocks are not just what their layouts ask
/// of the heap: a block of another class, one of the same class that begins elsewhere, a run.
///
/// Red if they are freed as such: in `is_place_of` (`src/slab/tags.rs`), leave either condition out.
#[test]
fn blocks_with_headers_go_back_where_they_came_from() {
    // No thread whose own blocks come and go meanwhile.
    rcu::set_reclaimer(false);
    // 48 bytes in a block of 64; 1120 in one of the same class; 40 000, a run; 300 000, which no class serves, and of which
    // an unoptimised program has many copies on its stack.
    let all = || {
        retire_many::<6>();
        retire_many::<140>();
        retire_many::<5000>();
        retire_many::<37_500>();
    };
    std::thread::Builder::new().stack_size(64 << 20).spawn(all).expect("a thread").join().expect("all is well");
}
