//! Misuse that the heap notices: the process ends by SIGABRT, with one line that says what was wrong and where.
//!
//! A block of a class goes to its CPU's stack without a look, so what is wrong with it is noticed when it goes on to
//! its slab: in a drain, when a stack is full, or (in per-thread mode) when its thread ends.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;

use common::block::{free, layout, take};
use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::{HEAP, KIB, MIB, PAGE, cpus, on_cpu};
use pcpalloc::{Drain, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const TWICE: &str = "a block was freed twice";
const NOT_IN_USE: &str = "a pointer that is not a block in use was freed (a double free, most likely)";
const FOREIGN: &str = "a pointer that is not from this allocator was freed or resized";
const WRONG_SIZE: &str = "a block was freed or resized with a size that cannot be its own";
const MIDDLE: &str = "a pointer into the middle of a block was freed";

/// Sizes that are served by slabs, by runs with and without a class, and by mappings.
const SLAB: usize = 64;
const CLASS_RUN: usize = 64 * KIB;
const RUN: usize = MIB;
const MAPPING: usize = 5 * MIB;

/// Frees what is no block of this size, after saying its address.
fn misuse(pointer: *mut u8, size: usize, align: usize) {
    say("address", format!("{pointer:p}"));
    // SAFETY: none. The contract is broken on purpose, in a process that is to end before the pointer is used: the
    // heap stores it in a stack, from which nothing is taken before the drain that follows, or looks at it at once.
    unsafe { HEAP.dealloc(pointer, layout(size, align)) }
}

/// Resizes what is no block of this size, as in [`misuse`].
fn misuse_by_resizing(pointer: *mut u8, size: usize, new: usize) {
    say("address", format!("{pointer:p}"));
    // SAFETY: none, as in `misuse`. Both sizes belong to layers that look at the pointer at once.
    unsafe { HEAP.realloc(pointer, layout(size, 8), new) };
}

fn twice(size: usize) {
    let _neighbours = [take(size), take(size)];
    let block = take(size);
    // What is needed to say an address is there then on this CPU, and does not come from where the block was.
    say("block", format!("{block:p}"));
    free(block, size);
    misuse(block, size, 8);
}

fn with_size(taken: usize, size: usize) {
    misuse(take(taken), size, 8);
}

fn inside(size: usize, offset: usize) {
    misuse(take(size).wrapping_add(offset), size, 8);
}

/// Memory of the system's, of which the first page cannot be read.
fn mapped() -> *mut u8 {
    // SAFETY: a new mapping, of which a part gets fewer rights.
    unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let start = libc::mmap(std::ptr::null_mut(), 4 * PAGE, rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        assert_eq!(libc::mprotect(start, PAGE, libc::PROT_NONE), 0);
        start.cast()
    }
}

/// Memory of the C library's heap, aligned to a page; where that is this heap, of the system's.
fn foreign() -> *mut u8 {
    if cfg!(feature = "capi") {
        return mapped().wrapping_add(PAGE);
    }
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the pointer is valid for the write, the alignment a power of two.
    assert_eq!(unsafe { libc::posix_memalign(&mut pointer, PAGE, 4 * PAGE) }, 0);
    pointer.cast()
}

fn on_the_stack(size: usize) {
    let mut bytes = [0u8; 64];
    misuse(bytes.as_mut_ptr(), size, 1);
    drain();
}

/// Freed by two threads, on different CPUs if there are.
fn twice_by_two_threads() {
    let _neighbours = [take(SLAB), take(SLAB)];
    let block = take(SLAB).expose_provenance();
    on_cpu(cpus()[0], || free(std::ptr::with_exposed_provenance_mut(block), SLAB));
    on_cpu(cpus()[cpus().len() - 1], || misuse(std::ptr::with_exposed_provenance_mut(block), SLAB, 8));
}

/// Freed twice among so many others that stacks and lanes overflow into slabs, without a drain.
fn twice_in_a_crowd() {
    let crowd: Vec<*mut u8> = (0..20_000).map(|_| take(SLAB)).collect();
    let (first, last) = crowd.split_at(10_000);
    first.iter().for_each(|&block| free(block, SLAB));
    misuse(first[first.len() - 1], SLAB, 8);
    last.iter().for_each(|&block| free(block, SLAB));
    say("the crowd is gone", "yes");
}

/// As [`twice_in_a_crowd`], and each in another slab than the one before it.
fn twice_in_a_scattered_crowd() {
    let crowd: Vec<*mut u8> = (0..20_000).map(|_| take(SLAB)).collect();
    let scattered = |n: usize| crowd[n * 7_919 % crowd.len()];
    (0..10_000).for_each(|n| free(scattered(n), SLAB));
    misuse(scattered(9_999), SLAB, 8);
    (10_000..20_000).for_each(|n| free(scattered(n), SLAB));
    say("the crowd is gone", "yes");
}

fn drain() {
    HEAP.drain(Drain::All);
}

type Case = (&'static str, &'static str, fn());

/// Red, case by case, if the look is left out: for `TWICE`, in `Slab::give` (`src/slab/bitmap.rs`), or in `give_one` in
/// the scattered crowd, the test of the bit; for `NOT_IN_USE`, `FOREIGN` and `WRONG_SIZE`, in `zone_of` and `expect_tag`
/// (`src/slab/tags.rs`), in `Finder::find` (`src/slab/bulk.rs`), in `run_at` (`src/large.rs`), and in `find` and `check`
/// (`src/zone/mapping.rs`); for `MIDDLE`, in `Slab::give`, `free_runs` and `run_at`.
const CASES: [Case; 38] = [
    ("slab-twice", TWICE, || twice(SLAB)),
    ("slab-twice-by-two-threads", TWICE, twice_by_two_threads),
    ("slab-twice-in-a-crowd", TWICE, twice_in_a_crowd),
    ("slab-twice-in-a-scattered-crowd", TWICE, twice_in_a_scattered_crowd),
    ("largest-slab-block-twice", TWICE, || twice(32 * KIB)),
    ("class-run-twice", NOT_IN_USE, || twice(CLASS_RUN)),
    ("run-twice", NOT_IN_USE, || twice(RUN)),
    // Its address is nothing any more.
    ("mapping-twice", TWICE, || twice(MAPPING)),
    ("stack-as-slab", FOREIGN, || on_the_stack(SLAB)),
    ("stack-as-class-run", FOREIGN, || on_the_stack(CLASS_RUN)),
    ("stack-as-run", FOREIGN, || on_the_stack(RUN)),
    ("stack-as-mapping", FOREIGN, || on_the_stack(MAPPING)),
    ("malloc-as-slab", FOREIGN, || misuse(foreign(), SLAB, 8)),
    ("malloc-as-class-run", FOREIGN, || misuse(foreign(), CLASS_RUN, 8)),
    ("malloc-as-run", FOREIGN, || misuse(foreign(), RUN, 8)),
    ("malloc-as-mapping", FOREIGN, || misuse(foreign().wrapping_add(PAGE), MAPPING, 8)),
    ("behind-an-unreadable-page-as-mapping", FOREIGN, || misuse(mapped().wrapping_add(PAGE), MAPPING, 8)),
    ("nowhere-as-mapping", FOREIGN, || misuse(std::ptr::without_provenance_mut(PAGE), MAPPING, 8)),
    ("beyond-user-space-as-slab", FOREIGN, || misuse(std::ptr::without_provenance_mut(usize::MAX - 63), SLAB, 8)),
    ("slab-as-other-slab", WRONG_SIZE, || with_size(SLAB, 2 * SLAB)),
    ("slab-with-other-alignment", WRONG_SIZE, || misuse(take(24), 24, 64)),
    ("slab-as-class-run", WRONG_SIZE, || with_size(SLAB, CLASS_RUN)),
    ("slab-as-run", WRONG_SIZE, || with_size(SLAB, RUN)),
    ("class-run-as-slab", WRONG_SIZE, || with_size(CLASS_RUN, SLAB)),
    ("class-run-as-other-class-run", WRONG_SIZE, || with_size(CLASS_RUN, 2 * CLASS_RUN)),
    ("class-run-as-run", WRONG_SIZE, || with_size(CLASS_RUN, RUN)),
    ("run-as-slab", WRONG_SIZE, || with_size(RUN, SLAB)),
    ("run-as-other-run", WRONG_SIZE, || with_size(RUN, RUN + PAGE)),
    ("run-as-mapping", WRONG_SIZE, || with_size(RUN, MAPPING)),
    ("mapping-as-other-mapping", WRONG_SIZE, || with_size(MAPPING, MAPPING + PAGE)),
    // A mapping lies in no zone, where blocks of these sizes do.
    ("mapping-as-run", FOREIGN, || with_size(MAPPING, RUN)),
    ("resize-with-other-size", WRONG_SIZE, || misuse_by_resizing(take(RUN), 2 * RUN, 3 * RUN)),
    ("resize-after-free", NOT_IN_USE, || {
        let run = take(RUN);
        say("block", format!("{run:p}"));
        free(run, RUN);
        misuse_by_resizing(run, RUN, 2 * RUN);
    }),
    ("middle-of-slab-block", MIDDLE, || inside(SLAB, 8)),
    ("middle-of-class-run", MIDDLE, || inside(CLASS_RUN, 8)),
    ("later-page-of-class-run", NOT_IN_USE, || inside(CLASS_RUN, PAGE)),
    ("later-page-of-run", NOT_IN_USE, || inside(RUN, PAGE)),
    ("middle-of-run", MIDDLE, || inside(RUN, 8)),
];

/// See [`CASES`].
#[test]
fn misuse_ends_the_process_with_one_line() {
    const NAME: &str = "misuse_ends_the_process_with_one_line";
    child::body(NAME, |name| {
        let (.., commit) = CASES.iter().find(|case| case.0 == name).expect("the case is one of ours");
        // On one CPU, so that both frees of a pair go to the same stack.
        on_cpu(cpus()[0], commit);
        drain();
        say("survived", "yes");
    });
    for (name, message, _) in CASES {
        for kernel in [Kernel::Whole, Kernel::WithoutRseq(libc::ENOSYS)] {
            let outcome = Child::new(NAME, name).kernel(kernel).run();
            assert_eq!(outcome.signal(), Some(libc::SIGABRT), "{name}, {kernel:?}: {outcome:#?}");
            let line = format!("pcpalloc: {message} (address {})\n", outcome.value("address"));
            assert_eq!(outcome.stderr, line, "{name}, {kernel:?}: {outcome:#?}");
            assert!(!outcome.stdout.contains("survived"));
        }
    }
}
