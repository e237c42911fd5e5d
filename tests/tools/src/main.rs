//! Uses memory of the heap as it should be used, or with one mistake: for tools that watch memory.
//!
//! `pcpalloc-tools sound|use-after-free|use-after-free-run|overflow|double-free`

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use pcpalloc::{PcpAlloc, rcu};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

#[inline(never)]
fn read(at: *const u8) -> u8 {
    // SAFETY: none: the mistake that is to be found.
    unsafe { at.read_volatile() }
}

fn take(size: usize) -> *mut u8 {
    // SAFETY: the size is not 0.
    let block = unsafe { GLOBAL.alloc(layout(size)) };
    assert!(!block.is_null());
    // SAFETY: the block is as large.
    unsafe { block.write_bytes(7, size) };
    block
}

fn free(block: *mut u8, size: usize) {
    // SAFETY: a block of this size, used no more, or the mistake that is to be found.
    unsafe { GLOBAL.dealloc(block, layout(size)) }
}

/// Every way in and out.
fn sound() {
    let mut texts: Vec<String> = (0..500).map(|n| "text ".repeat(n % 90)).collect();
    texts.retain(|text| text.len() % 3 != 0);
    for size in [1, 8, 100, 5000, 40 << 10, 200 << 10, 1 << 20, 5 << 20] {
        // SAFETY: the size is not 0; the block is as large, and freed once.
        unsafe {
            let mut block = GLOBAL.alloc_zeroed(layout(size));
            assert!((0..size).all(|n| block.add(n).read() == 0));
            for new in [size + size / 2, size / 2 + 1, size + 1] {
                let old = if new == size + size / 2 {
                    size
                } else if new == size / 2 + 1 {
                    size + size / 2
                } else {
                    size / 2 + 1
                };
                block = GLOBAL.realloc(block, layout(old), new);
                assert_eq!(read(block), 0);
            }
            GLOBAL.dealloc(block, layout(size + 1));
        }
    }
    for size in [1, 100, 40 << 10, 1 << 20, 5 << 20] {
        let block = GLOBAL.alloc_on_node(layout(size), 0).expect("there is memory").as_ptr();
        // SAFETY: the block is as large.
        unsafe { block.write_bytes(7, size) };
        free(block, size);
    }
    for (size, new) in
        [(100, 5000), (300 << 10, 400 << 10), (1 << 20, 3 << 20), (5 << 20, 6 << 20), (8 << 20, 32 << 20)]
    {
        // SAFETY: a block of one layout and then of the other, which is freed once; what is read lies in it.
        unsafe {
            let block = GLOBAL.allocate(layout(2 * new)).expect("there is memory").cast::<u8>();
            // One that has been longer may grow where it lies.
            let block = GLOBAL.shrink(block, layout(2 * new), layout(size)).expect("there is memory").cast::<u8>();
            block.write_bytes(7, size);
            let block = GLOBAL.grow_zeroed(block, layout(size), layout(new)).expect("there is memory").cast::<u8>();
            assert!((0..new).all(|n| block.add(n).read() == if n < size { 7 } else { 0 }));
            block.write_bytes(1, new);
            GLOBAL.deallocate(block, layout(new));
        }
    }
    let other = std::thread::spawn(move || texts.len());
    GLOBAL.charge_nolock(layout(64), 4).expect("there is memory");
    let blocks: Vec<NonNull<u8>> = (0..64).filter_map(|_| GLOBAL.try_alloc_nolock(layout(64))).collect();
    for block in blocks {
        // SAFETY: blocks of this layout; written to, and freed.
        unsafe {
            block.write_bytes(1, 64);
            GLOBAL.free_nolock(block, layout(64));
        }
    }
    for n in 0..2000usize {
        let block = NonNull::new(take(8 + n % 300)).expect("there is memory");
        // SAFETY: a block of this layout that nobody else knows.
        unsafe { rcu::free(block, layout(8 + n % 300)) };
    }
    rcu::barrier();
    assert!(other.join().expect("the thread ends") > 0);
    drop(black_box(vec![1u64; 300]));
    GLOBAL.trim();
    drop(black_box((0..300).map(|n| vec![n; n]).collect::<Vec<_>>()));
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("sound") => sound(),
        Some("use-after-free") => {
            let block = take(48);
            free(block, 48);
            black_box(read(block.wrapping_add(8)));
        }
        Some("use-after-free-run") => {
            let block = take(300 << 10);
            free(block, 300 << 10);
            black_box(read(block.wrapping_add(4096)));
        }
        Some("overflow") => {
            // A size of its own, of which no other block lies behind.
            let block = take(904);
            black_box(read(block.wrapping_add(960)));
        }
        Some("double-free") => {
            let block = take(48);
            free(block, 48);
            free(block, 48);
        }
        _ => std::process::exit(2),
    }
    println!("came to its end");
}
