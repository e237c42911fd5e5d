//! What it costs to free a block without its size: `cargo bench --features capi --bench capi`.
//!
//! The same blocks are allocated by `malloc` and freed by Rust's `dealloc`, which knows the class, by `free`, which
//! looks for it in the tag of the block's page, and by `free_sized`, which compares the two. All of them are calls of
//! functions that are not inlined. `benches/programs` has `free` beside those of other allocators.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pcpalloc::PcpAlloc;

static HEAP: PcpAlloc = PcpAlloc::new();

/// Blocks that are freed in a row, of sizes from 16 to 511 bytes.
const BATCH: usize = 400;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn free(block: *mut c_void);
    fn free_sized(block: *mut c_void, size: usize);
}

#[inline(never)]
unsafe extern "C" fn dealloc(block: *mut c_void, size: usize) {
    // SAFETY: the caller passes a block of `malloc` for more than 8 bytes, which are aligned to 16 and of the class
    // that this layout has.
    unsafe { HEAP.dealloc(block.cast(), Layout::from_size_align_unchecked(size, 16)) }
}

unsafe extern "C" fn unsized_free(block: *mut c_void, _size: usize) {
    // SAFETY: the caller's obligation.
    unsafe { free(block) }
}

type Free = unsafe extern "C" fn(*mut c_void, usize);

/// The time that freeing takes, of so many batches.
fn free_batches(sizes: &[usize], batches: u64, with: Free) -> Duration {
    let mut blocks = vec![std::ptr::null_mut(); sizes.len()];
    let mut time = Duration::ZERO;
    for _ in 0..batches {
        for (block, &size) in blocks.iter_mut().zip(sizes) {
            // SAFETY: a call without preconditions; the block is large enough for its first byte.
            unsafe {
                *block = malloc(black_box(size));
                block.cast::<u8>().write(1);
            }
        }
        let start = Instant::now();
        for (&block, &size) in blocks.iter().zip(sizes) {
            // SAFETY: each block was allocated above with this size, and is freed once.
            unsafe { black_box(with)(block, size) }
        }
        time += start.elapsed();
    }
    time
}

fn frees(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("free");
    let mut seed = 1usize;
    let sizes: Vec<usize> = (0..BATCH)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            16 + (seed >> 40) % 496
        })
        .collect();
    group.throughput(criterion::Throughput::Elements(BATCH as u64));
    for (name, with) in [("dealloc", dealloc as Free), ("free", unsized_free), ("free_sized", free_sized)] {
        group.bench_function(name, |bencher| bencher.iter_custom(|batches| free_batches(&sizes, batches, with)));
    }
    group.finish();
}

criterion_group!(benches, frees);
criterion_main!(benches);
