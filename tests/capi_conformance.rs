//! C's functions by the word of C23, POSIX and, where these leave a choice, glibc.

#![cfg(all(feature = "capi", not(any(loom, pcpalloc_twin))))]

mod capi_common;
mod common;

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use capi_common::{CBlock, c, errno, exercise, is_zero, set_errno};
use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::{HEAP, KIB, MIB, PAGE, on_threads, scaled};
use libc::{EINVAL, ENOMEM};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const PTRDIFF_MAX: usize = isize::MAX as usize;

/// Sizes around every border between layers: classes, runs with and without one, mappings.
fn sizes() -> impl Iterator<Item = usize> {
    let borders = [KIB, 32 * KIB, 256 * KIB, 4 * MIB].into_iter().flat_map(|border| border - 17..border + 18);
    (0..=600).chain(borders).chain([3000, 100_000, MIB, 5 * MIB, 9 * MIB + 1])
}

/// Red if the test's own functions are not the process's: leave `no_mangle` out before `malloc` (`src/capi/exports.rs`).
#[test]
fn the_whole_process_has_one_malloc() {
    // SAFETY: the names are C strings, and the default scope is always valid; `strdup` copies one.
    let (found, copy) = unsafe {
        (libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr()), libc::strdup(c"a string of some length".as_ptr()))
    };
    assert_eq!(found, libc::malloc as *mut c_void);
    assert_eq!(c::malloc_usable_size(copy.cast()), 32, "what the C library allocates is the heap's");
    c::free(copy.cast());
}

/// Red as [`the_whole_process_has_one_malloc`].
#[test]
fn c_and_rust_have_one_heap() {
    const NAME: &str = "c_and_rust_have_one_heap";
    child::body(NAME, |_| {
        for size in [10 * KIB, 7 * MIB] {
            let before = HEAP.stats().in_use;
            let block = CBlock::adopt(c::malloc(size), size, 16, 1);
            let with_block = HEAP.stats().in_use;
            assert!((size..size + 6 * KIB).contains(&(with_block - before)), "{before}, {with_block}");
            block.free();
            assert_eq!(HEAP.stats().in_use, before);
        }
    });
    Child::new(NAME, "").run().succeeded();
}

/// Red if a class that is no multiple of 16 serves a larger request: in `SMALL_OF_C` (`src/size_class.rs`), do not round.
#[test]
fn every_size_is_aligned_and_all_of_it_can_be_used() {
    let mut blocks: Vec<CBlock> = Vec::new();
    for (seed, size) in sizes().enumerate() {
        blocks.push(CBlock::adopt(c::malloc(size), size, 1, seed as u64));
        blocks.push(CBlock::adopt(c::calloc(1, size), size, 1, !seed as u64));
    }
    blocks.iter().for_each(CBlock::check);
    // A block of its usable size needs nothing else.
    for mut block in blocks {
        let (start, usable) = (block.start(), block.usable());
        block.resize(usable);
        assert_eq!((block.start(), block.usable()), (start, usable));
        block.free();
    }
}

/// Blocks that are freed have been written to, so that zeros are no accident.
///
/// Red if `calloc` (`src/capi/exports.rs`) passes `false` for `zeroed`.
#[test]
fn calloc_gives_zeros() {
    for size in sizes() {
        (0..3).for_each(|seed| CBlock::adopt(c::malloc(size), size, 1, seed).free());
        for (count, each) in [(size, 1), (1, size), (size.div_ceil(7), 7)] {
            let block = c::calloc(count, each);
            assert!(!block.is_null());
            // SAFETY: the block is that large, and initialised if it is zeroed.
            let bytes = unsafe { std::slice::from_raw_parts(block.cast::<u8>(), count * each) };
            assert!(is_zero(bytes), "{count} times {each}");
            c::free(block);
        }
    }
}

/// Red if `allocate` (`src/capi/mod.rs`) returns null for 0.
#[test]
fn nothing_is_a_block_too() {
    let blocks: Vec<_> =
        (0..100).flat_map(|_| [c::malloc(0), c::calloc(0, 5), c::calloc(5, 0), c::memalign(64, 0)]).collect();
    let mut different = blocks.clone();
    different.sort();
    different.dedup();
    assert!(different.len() == blocks.len() && different.iter().all(|block| !block.is_null()));
    blocks.into_iter().for_each(c::free);
    c::free(null_mut());
    c::cfree(null_mut());
    c::free_sized(null_mut(), 5);
    c::free_aligned_sized(null_mut(), 64, 5);
    assert_eq!(c::malloc_usable_size(null_mut()), 0);
}

/// As glibc's `tst-malloc-too-large` has it.
///
/// Red, line by line, if `layout_of` (`src/capi/mod.rs`) or a `checked_mul` (`src/capi/exports.rs`) is left out.
#[test]
fn too_much_is_refused() {
    let refused = |what: &str, block: *mut c_void| {
        assert!(block.is_null() && errno() == ENOMEM, "{what}: {block:?}, {}", errno());
        set_errno(0);
    };
    set_errno(0);
    let kept = CBlock::adopt(c::malloc(48), 48, 1, 1);
    for size in [PTRDIFF_MAX + 1, usize::MAX - 100 * KIB, usize::MAX - 15, usize::MAX] {
        refused("malloc", c::malloc(size));
        refused("calloc", c::calloc(1, size));
        refused("calloc", c::calloc(size, 1));
        refused("realloc", c::realloc(kept.start(), size));
        refused("realloc of nothing", c::realloc(null_mut(), size));
        refused("reallocarray", c::reallocarray(kept.start(), size, 1));
        refused("aligned_alloc", c::aligned_alloc(64, size));
        refused("memalign", c::memalign(PAGE, size));
        refused("valloc", c::valloc(size));
        refused("pvalloc", c::pvalloc(size));
        let mut out = kept.start();
        assert_eq!(c::posix_memalign(&mut out, 64, size), ENOMEM);
        assert_eq!((out, errno()), (kept.start(), 0), "posix_memalign leaves both alone");
    }
    // No such address space, though the number is allowed.
    refused("malloc", c::malloc(PTRDIFF_MAX));
    refused("memalign", c::memalign(1 << 62, 1));
    refused("memalign", c::memalign(PAGE, PTRDIFF_MAX - 5));
    // Products that wrap around to little, and ones that do not wrap but are too large.
    for (count, size) in
        [(1 << 32, 1 << 32), (1 << 33, (1 << 31) + 1), (usize::MAX / 2, 3), (3, usize::MAX / 2), (2, 1 << 62)]
    {
        refused("calloc", c::calloc(count, size));
        refused("reallocarray", c::reallocarray(kept.start(), count, size));
        refused("reallocarray of nothing", c::reallocarray(null_mut(), count, size));
    }
    kept.free();
}

/// Red if `resize` (`src/capi/mod.rs`) leaves its case for 0 out.
#[test]
fn realloc_by_its_edges() {
    // Nothing at first, nothing in the end. (glibc's `tst-realloc`.)
    let mut block = CBlock::adopt(c::realloc(null_mut(), 100), 100, 1, 1);
    for size in [1, 9, 200, 24, 4000, 100_000, 33_000, 300_000, 40_000, 5 * MIB, 9 * MIB, 4 * MIB + 1, MIB, 12, 1] {
        block.resize(size);
    }
    set_errno(77);
    assert!(c::realloc(block.release(), 0).is_null());
    assert_eq!(errno(), 77, "which is no failure");
    let empty = c::realloc(null_mut(), 0);
    assert!(!empty.is_null());
    assert!(c::realloc(empty, 0).is_null());
    // From every border to every other.
    for from in [1, 16, 1000, 32 * KIB, 32 * KIB + 1, 256 * KIB, 256 * KIB + 1, 4 * MIB, 4 * MIB + 1] {
        for to in [1, 17, 1024, 32 * KIB, 40 * KIB, 256 * KIB, 300 * KIB, 4 * MIB, 6 * MIB] {
            let mut block = CBlock::adopt(c::malloc(from), from, 1, from as u64);
            block.resize(to);
            block.free();
            let mut aligned = CBlock::adopt(c::memalign(16 * KIB, from), from, 16 * KIB, to as u64);
            aligned.resize(to);
            aligned.free();
        }
    }
    let block = c::reallocarray(null_mut(), 10, 10);
    CBlock::adopt(c::reallocarray(block, 100, 100), 10_000, 1, 2).free();
}

/// A block that is made a little smaller stays; one that is made much smaller gives the rest back.
///
/// Red if `resize` (`src/capi/mod.rs`) keeps whatever fits.
#[test]
fn memory_that_realloc_gives_up_is_free() {
    for size in [800, 30_000, 200_000, 3 * MIB, 20 * MIB] {
        let block = c::realloc(c::malloc(size), size - size / 8);
        assert!(c::malloc_usable_size(block) >= size - size / 8);
        let block = c::realloc(block, size / 4);
        assert!(c::malloc_usable_size(block) < size / 2, "{size}");
        c::free(block);
    }
    const NAME: &str = "memory_that_realloc_gives_up_is_free";
    child::body(NAME, |_| {
        let before = HEAP.stats().in_use;
        let blocks: Vec<_> = [3 * MIB, 20 * MIB].map(|size| c::realloc(c::malloc(size), size / 4)).into();
        assert!(HEAP.stats().in_use < before + 6 * MIB);
        blocks.into_iter().for_each(|block| assert!(c::realloc(block, 0).is_null()));
        assert!(HEAP.stats().in_use < before + 64 * KIB, "a size of 0 frees");
    });
    Child::new(NAME, "").run().succeeded();
}

/// Red if `aligned` (`src/capi/exports.rs`) takes `malloc` for whatever is small.
#[test]
fn alignments() {
    let aligned = |block: *mut c_void, align: usize, size: usize| {
        assert!(!block.is_null() && block.addr().is_multiple_of(align), "{block:?}, {align}");
        CBlock::adopt(block, size, align, 3)
    };
    let mut all = Vec::new();
    for align in (0..=23).map(|shift| 1usize << shift) {
        for size in [0, 1, 8, 9, 100, align / 2, align, align + 1, 3 * align] {
            all.push(aligned(c::memalign(align, size), align, size));
            all.push(aligned(c::aligned_alloc(align, size), align, size));
            if align >= 8 {
                let mut out = null_mut();
                assert_eq!(c::posix_memalign(&mut out, align, size), 0);
                all.push(aligned(out, align, size));
            }
        }
        all.drain(..).for_each(CBlock::free);
    }
    // Any alignment is rounded up by `memalign`, and is an error elsewhere.
    aligned(c::memalign(48, 10), 64, 10).free();
    aligned(c::memalign(0, 10), 1, 10).free();
    aligned(c::memalign(PAGE - 1, 10), PAGE, 10).free();
    for align in [0, 3, 24, PAGE + 8, usize::MAX] {
        set_errno(0);
        assert!(c::aligned_alloc(align, 64).is_null() && errno() == EINVAL, "{align}");
    }
    set_errno(0);
    assert!(c::memalign(usize::MAX / 2 + 2, 64).is_null() && errno() == EINVAL);
    set_errno(7);
    for align in [0, 1, 2, 4, 12, 24, 8 + PAGE] {
        let mut out = 5 as *mut c_void;
        assert_eq!(c::posix_memalign(&mut out, align, 64), EINVAL, "{align}");
        assert_eq!((out.addr(), errno()), (5, 7));
    }
    aligned(c::valloc(10), PAGE, 10).free();
    for (size, whole) in [(0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)] {
        aligned(c::pvalloc(size), PAGE, whole).free();
    }
    c::free_aligned_sized(aligned(c::aligned_alloc(256, 512), 256, 512).release(), 256, 512);
    c::free_sized(aligned(c::malloc(24), 16, 24).release(), 24);
    c::cfree(aligned(c::malloc(24), 16, 24).release());
}

/// Red if `sys::keep_errno` leaves `errno` as it finds it.
#[test]
fn free_keeps_errno() {
    for size in sizes() {
        let block = c::malloc(size);
        set_errno(4711);
        c::free(block);
        assert_eq!(errno(), 4711, "{size}");
    }
}

/// Blocks made by one thread are checked, resized and freed by another.
///
/// Red if a block is freed as one of another class: in `release` (`src/capi/mod.rs`), push to `class + 1`.
#[test]
fn threads_exchange_blocks() {
    const NAME: &str = "threads_exchange_blocks";
    child::body(NAME, |_| exchange_blocks());
    Child::new(NAME, "").run().succeeded();
}

fn exchange_blocks() {
    let before = HEAP.stats().in_use;
    for round in 0..scaled(4) as u64 {
        let (sender, receiver) = std::sync::mpsc::sync_channel::<CBlock>(64);
        on_threads([
            Box::new(move || {
                let mut random = common::Random::new(round);
                (0..3000).for_each(|_| sender.send(CBlock::any(&mut random)).expect("the other thread runs"));
            }) as Box<dyn FnOnce() + Send>,
            Box::new(move || {
                for (number, mut block) in receiver.into_iter().enumerate() {
                    if number % 3 == 0 {
                        block.resize(1 + number % 5000);
                    }
                    block.free();
                }
            }),
            Box::new(move || exercise(round, 3000)),
        ]);
    }
    let after = HEAP.stats();
    assert!(after.in_use < before + MIB, "{before} before,\n{after}");
}

/// Red as [`threads_exchange_blocks`].
#[test]
fn every_mode_serves_c() {
    const NAME: &str = "every_mode_serves_c";
    child::body(NAME, |_| on_threads([1, 2, 3].map(|seed| move || exercise(seed, scaled(3000)))));
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// `struct mallinfo2` of glibc.
#[repr(C)]
struct Mallinfo2 {
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

unsafe extern "C" {
    fn mallinfo2() -> Mallinfo2;
}

/// Red if two fields of `Mallinfo2` (`src/capi/report.rs`) change places, or `trim` there releases nothing.
#[test]
fn the_heap_says_where_its_memory_is() {
    const NAME: &str = "the_heap_says_where_its_memory_is";
    child::body(NAME, |_| {
        // SAFETY: a function without preconditions.
        let info = || unsafe { mallinfo2() };
        let before = info();
        let (large, many) = (c::malloc(50 * MIB), (0..10_000).map(|_| c::malloc(1000)).collect::<Vec<_>>());
        let during = info();
        assert_eq!(during.hblks, before.hblks + 1);
        assert!(during.hblkhd >= before.hblkhd + 50 * MIB && during.hblkhd < before.hblkhd + 51 * MIB);
        assert!(during.uordblks >= before.uordblks + 10_000_000 && during.uordblks < before.uordblks + 12_000_000);
        assert!(during.arena >= during.uordblks && during.arena < during.uordblks + 8 * MIB);
        c::free(large);
        // SAFETY: each is as long as was asked for.
        many.iter().for_each(|&block| unsafe { block.cast::<u8>().write_bytes(1, 1000) });
        many.into_iter().for_each(c::free);
        let after = info();
        assert_eq!((after.hblks, after.ordblks + after.smblks + after.usmblks + after.fsmblks), (before.hblks, 1));
        assert!(after.fordblks >= before.fordblks + 9_000_000 && after.keepcost > 5_000_000);
        assert_eq!(c::malloc_trim(usize::MAX), 0, "all may be kept");
        assert_eq!(c::malloc_trim(4 * MIB), 1);
        let trimmed = info();
        // By whole free blocks, of up to 4 MiB.
        assert!(trimmed.keepcost < 8 * MIB && trimmed.keepcost > 2 * MIB, "{}", trimmed.keepcost);
        assert_eq!(c::malloc_trim(0), 1);
        assert!(info().keepcost < MIB);
        c::malloc_stats();
    });
    let outcome = Child::new(NAME, "").settings("worker:off").run().succeeded();
    assert!(outcome.stderr.contains("in use") && outcome.stderr.contains("metadata"), "{outcome:?}");
}

/// Whole pages that are free between blocks in use are free memory, too: nothing is left for a trim by Rust's word.
///
/// Red if they stay: in `trim` (`src/capi/report.rs`), leave `holes::punch_all()` out.
#[test]
fn a_trim_reaches_pages_between_blocks() {
    const NAME: &str = "a_trim_reaches_pages_between_blocks";
    child::body(NAME, |_| {
        let mut blocks: Vec<_> = (0..32 * KIB).map(|_| c::malloc(KIB)).collect();
        // SAFETY: each is as long as was asked for.
        blocks.iter().for_each(|&block| unsafe { block.cast::<u8>().write_bytes(1, KIB) });
        // A block in four pages stays.
        let mut number = 0;
        blocks.retain(|&block| {
            let stays = number % 16 == 0;
            number += 1;
            if !stays {
                c::free(block);
            }
            stays
        });
        assert_eq!(c::malloc_trim(usize::MAX), 0, "all may be kept");
        let before = HEAP.stats().free_resident;
        assert!(before > 20 * MIB, "{before}");
        assert_eq!(c::malloc_trim(0), 1);
        let (after, left) = (HEAP.stats().free_resident, HEAP.trim().released);
        assert!(
            after < before / 2 && left < MIB,
            "{before} bytes were free, {after} still are; {left} could have gone"
        );
        blocks.into_iter().for_each(c::free);
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// A limit makes C's functions fail, and nothing else.
///
/// Red if `refused` (`src/capi/mod.rs`) does not set `errno`.
#[test]
fn a_limit_is_no_more_memory() {
    const NAME: &str = "a_limit_is_no_more_memory";
    child::body(NAME, |_| {
        let mut blocks = Vec::with_capacity(100);
        set_errno(0);
        let refused = loop {
            let block = c::malloc(MIB);
            if block.is_null() {
                break errno();
            }
            // SAFETY: the block is that large.
            unsafe { block.cast::<u8>().write_bytes(1, MIB) };
            blocks.push(block);
        };
        assert_eq!((refused, (40..64).contains(&blocks.len())), (ENOMEM, true), "{}", blocks.len());
        assert!(c::calloc(10, MIB).is_null() && c::realloc(blocks[0], 10 * MIB).is_null());
        // SAFETY: a failed realloc leaves the block.
        assert_eq!(unsafe { blocks[0].cast::<u8>().read() }, 1);
        blocks.into_iter().for_each(c::free);
        CBlock::adopt(c::malloc(20 * MIB), 20 * MIB, 16, 1).free();
    });
    Child::new(NAME, "").settings("limit:64m").run().succeeded();
}

/// A pointer that is none of ours, in memory of its own.
fn foreign(len: usize) -> *mut c_void {
    // SAFETY: a new mapping.
    let start = unsafe {
        libc::mmap(null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert_ne!(start, libc::MAP_FAILED);
    // SAFETY: the mapping is that long.
    unsafe { start.cast::<u8>().write_bytes(b'x', len) };
    start
}

/// Red if what another heap has given is taken for a block, or ends the process: in `not_a_block` (`src/capi/mod.rs`),
/// call `die` for foreign pointers, or leave the report out.
#[test]
fn blocks_of_another_heap_are_left_alone() {
    const NAME: &str = "blocks_of_another_heap_are_left_alone";
    child::body(NAME, |_| {
        let memory = foreign(3 * PAGE);
        // SAFETY: offsets inside the mapping.
        let pointers = [0, 16, 40, PAGE, PAGE + 16, 2 * PAGE].map(|offset| unsafe { memory.byte_add(offset) });
        say("address", format!("{:p}", pointers[0]));
        for pointer in pointers {
            c::free(pointer);
            assert_eq!(c::malloc_usable_size(pointer), 0);
            set_errno(0);
            assert!(c::realloc(pointer, 100).is_null() && errno() == ENOMEM);
            c::free_sized(pointer, 100);
        }
        // SAFETY: the mapping is that long and initialised.
        let bytes = unsafe { std::slice::from_raw_parts(memory.cast::<u8>(), 3 * PAGE) };
        assert!(bytes.iter().all(|&byte| byte == b'x'));
        exercise(1, 1000);
    });
    for kernel in Kernel::MODES {
        let outcome = Child::new(NAME, "").kernel(kernel).run().succeeded();
        let line = format!(
            "pcpalloc: a pointer that is not from this allocator was freed or resized; it is left alone, and so will be \
             others (address {})\n",
            outcome.value("address")
        );
        assert_eq!(outcome.stderr, line, "one line for all of them");
    }
}

const NOT_IN_USE: &str = "a pointer that is not a block in use was freed (a double free, most likely)";

type Case = (&'static str, &'static str, fn() -> *mut c_void);

/// What is freed, and what is said of it. Red if `not_a_block` (`src/capi/mod.rs`) returns; the first case, if
/// `Slab::give` (`src/slab/bitmap.rs`) does not test the bit.
const CASES: [Case; 7] = [
    ("slab-twice", "a block was freed twice", || twice(64)),
    ("class-run-twice", NOT_IN_USE, || twice(64 * KIB)),
    ("run-twice", NOT_IN_USE, || twice(MIB)),
    ("mapping-twice", "a block was freed twice", || twice(5 * MIB)),
    ("later-page-of-run", NOT_IN_USE, || c::malloc(MIB).wrapping_byte_add(PAGE)),
    ("middle-of-run", "a pointer into the middle of a block was freed", || c::malloc(MIB).wrapping_byte_add(8)),
    ("nowhere", "a pointer to no memory was freed or resized (a double free, most likely)", || 4096 as *mut c_void),
];

fn twice(size: usize) -> *mut c_void {
    let _neighbours = [c::malloc(size), c::malloc(size)];
    let block = c::malloc(size);
    c::free(block);
    HEAP.drain(pcpalloc::Drain::All);
    block
}

#[test]
fn mistakes_end_the_process_with_one_line() {
    const NAME: &str = "mistakes_end_the_process_with_one_line";
    child::body(NAME, |name| {
        // On one CPU, which has by then what it needs to say an address, so that this does not come from where the block was.
        common::on_cpu(common::cpus()[0], || {
            let (.., pointer) = CASES.iter().find(|case| case.0 == name).expect("the case is one of ours");
            say("nothing", format!("{:p}", &raw const pointer));
            let pointer = pointer();
            say("address", format!("{pointer:p}"));
            c::free(pointer);
            HEAP.drain(pcpalloc::Drain::All);
            say("survived", "yes");
        });
    });
    for (name, message, _) in CASES {
        let outcome = Child::new(NAME, name).run();
        assert_eq!(outcome.signal(), Some(libc::SIGABRT), "{name}: {outcome:#?}");
        let line = format!("pcpalloc: {message} (address {})\n", outcome.value("address"));
        assert_eq!(outcome.stderr, line, "{name}: {outcome:#?}");
    }
}

/// Red if `free_sized` or `free_aligned_sized` (`src/capi/exports.rs`) looks at nothing.
#[test]
fn a_size_that_cannot_be_ends_the_process() {
    const NAME: &str = "a_size_that_cannot_be_ends_the_process";
    child::body(NAME, |case| match case {
        "size" => c::free_sized(c::malloc(100), 200),
        _ => c::free_aligned_sized(c::malloc(100).wrapping_byte_add(16), 4096, 100),
    });
    for (case, said) in [("size", "with a size that"), ("alignment", "with an alignment that")] {
        let outcome = Child::new(NAME, case).run();
        assert_eq!(outcome.signal(), Some(libc::SIGABRT), "{outcome:#?}");
        assert!(outcome.stderr.contains(said), "{outcome:#?}");
    }
}

/// What the C library allocates by itself are blocks like others. Red as [`the_whole_process_has_one_malloc`].
#[test]
fn the_c_library_allocates_here() {
    for _ in 0..scaled(200) {
        // SAFETY: the path is a C string; with no buffer the result is a block of the caller's. The directory is read
        // while it is open.
        unsafe {
            let path = libc::realpath(c"/usr/..//".as_ptr(), null_mut());
            assert_eq!(CStr::from_ptr(path), c"/");
            assert!(c::malloc_usable_size(path.cast()) >= 2);
            let directory = libc::opendir(path);
            assert!(c::malloc_usable_size(directory.cast()) > 1000);
            while !libc::readdir(directory).is_null() {}
            assert_eq!(libc::closedir(directory), 0);
            c::free(path.cast());
        }
    }
}
