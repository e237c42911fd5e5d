//! C's functions as a C program calls them, and blocks that know what is in them.

// Every program uses a part of this.
#![allow(dead_code)]

use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::ptr::null_mut;

use crate::common::Random;

/// By the names that the linker knows. What a call returns passes through `black_box`, so that the compiler, which knows
/// these names as well, drops no pair of calls.
pub mod c {
    use super::*;

    mod names {
        use super::*;
        unsafe extern "C" {
            pub fn malloc(size: usize) -> *mut c_void;
            pub fn calloc(count: usize, size: usize) -> *mut c_void;
            pub fn realloc(block: *mut c_void, size: usize) -> *mut c_void;
            pub fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
            pub fn free(block: *mut c_void);
            pub fn cfree(block: *mut c_void);
            pub fn free_sized(block: *mut c_void, size: usize);
            pub fn free_aligned_sized(block: *mut c_void, align: usize, size: usize);
            pub fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int;
            pub fn aligned_alloc(align: usize, size: usize) -> *mut c_void;
            pub fn memalign(align: usize, size: usize) -> *mut c_void;
            pub fn valloc(size: usize) -> *mut c_void;
            pub fn pvalloc(size: usize) -> *mut c_void;
            pub fn malloc_usable_size(block: *mut c_void) -> usize;
            pub fn malloc_trim(keep: usize) -> c_int;
            pub fn malloc_stats();
        }
    }

    macro_rules! calls {
        ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
            $(pub fn $name($($argument: $type),*) -> $result {
                // SAFETY: the tests pass blocks that they hold and do not use them again, or break that on purpose in
                // a process that is to end.
                black_box(unsafe { names::$name($(black_box($argument)),*) })
            })*
        };
    }

    calls! {
        malloc(size: usize) -> *mut c_void;
        calloc(count: usize, size: usize) -> *mut c_void;
        realloc(block: *mut c_void, size: usize) -> *mut c_void;
        reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
        free(block: *mut c_void) -> ();
        cfree(block: *mut c_void) -> ();
        free_sized(block: *mut c_void, size: usize) -> ();
        free_aligned_sized(block: *mut c_void, align: usize, size: usize) -> ();
        posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int;
        aligned_alloc(align: usize, size: usize) -> *mut c_void;
        memalign(align: usize, size: usize) -> *mut c_void;
        valloc(size: usize) -> *mut c_void;
        pvalloc(size: usize) -> *mut c_void;
        malloc_usable_size(block: *mut c_void) -> usize;
        malloc_trim(keep: usize) -> c_int;
        malloc_stats() -> ();
    }
}

pub fn errno() -> i32 {
    // SAFETY: errno is valid in every thread.
    unsafe { *libc::__errno_location() }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|&first| first == 0) && bytes.get(1..).is_none_or(|rest| *rest == bytes[..rest.len()])
}

pub fn set_errno(code: i32) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = code }
}

/// A block of C's, filled to its last usable byte with what follows from its seed.
#[derive(Debug)]
pub struct CBlock {
    start: *mut c_void,
    size: usize,
    usable: usize,
    seed: u64,
}

// SAFETY: a block is memory of its owner's alone, whatever thread that is on.
unsafe impl Send for CBlock {}

impl CBlock {
    /// Takes over a block of `size` bytes, which is not null.
    #[track_caller]
    pub fn adopt(start: *mut c_void, size: usize, align: usize, seed: u64) -> CBlock {
        assert!(!start.is_null(), "a block of {size} bytes is to be had");
        let align = if size > 8 { align.max(16) } else { align.max(8) };
        assert!(start.addr().is_multiple_of(align), "{start:?} of {size} bytes is aligned to {align}");
        let usable = c::malloc_usable_size(start);
        assert!(usable >= size, "{usable} bytes of {size} may be used");
        let mut block = CBlock { start, size, usable, seed };
        block.fill();
        block
    }

    /// A block by any of the functions that make one, chosen by `random`.
    pub fn any(random: &mut Random) -> CBlock {
        let (size, seed) = (random.size() - 1, random.word());
        let align = 1 << random.below(14);
        match random.below(6) {
            0 => {
                let block = c::calloc(size.div_ceil(8), 8);
                // SAFETY: the block is that large and initialised.
                let bytes = unsafe { std::slice::from_raw_parts(block.cast::<u8>(), size) };
                assert!(is_zero(bytes), "calloc gives zeros");
                CBlock::adopt(block, size, 1, seed)
            }
            1 => CBlock::adopt(c::aligned_alloc(align, size), size, align, seed),
            2 => {
                let mut block = null_mut();
                assert_eq!(c::posix_memalign(&mut block, align.max(8), size), 0);
                CBlock::adopt(block, size, align, seed)
            }
            _ => CBlock::adopt(c::malloc(size), size, 1, seed),
        }
    }

    fn byte(&self, at: usize) -> u8 {
        ((self.seed as usize).wrapping_add(at.wrapping_mul(0x9e37_79b9)) >> 11) as u8
    }

    /// Where a block is looked at: everywhere if it is small, else at both ends and some places between.
    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let end = self.usable;
        let ends = 48.min(end);
        let between = (ends..end).step_by((end / 64).max(1));
        (0..ends).chain(between).chain(end.saturating_sub(48).max(ends)..end)
    }

    fn fill(&mut self) {
        // Through a plain pointer: what may be used is more than what was asked for.
        // SAFETY: all places are below the usable size, of a block that is this value's.
        self.places().for_each(|at| unsafe { self.start.cast::<u8>().add(at).write(self.byte(at)) });
    }

    #[track_caller]
    pub fn check(&self) {
        self.check_to(self.usable);
    }

    #[track_caller]
    fn check_to(&self, end: usize) {
        for at in self.places().filter(|&at| at < end) {
            // SAFETY: as in `fill`.
            let found = unsafe { self.start.cast::<u8>().add(at).read() };
            assert_eq!(found, self.byte(at), "byte {at} of {self:?}");
        }
    }

    pub fn start(&self) -> *mut c_void {
        self.start
    }

    pub fn usable(&self) -> usize {
        self.usable
    }

    /// Resizes the block and compares what it had with what it has.
    #[track_caller]
    pub fn resize(&mut self, size: usize) {
        assert!(size > 0);
        self.start = c::realloc(self.start, size);
        assert!(!self.start.is_null());
        self.check_to(self.size.min(size));
        *self = CBlock::adopt(self.start, size, 1, self.seed);
    }

    /// Checks the block and leaves it to the caller.
    #[track_caller]
    pub fn release(self) -> *mut c_void {
        self.check();
        self.start
    }

    /// Checks and frees it.
    #[track_caller]
    pub fn free(self) {
        c::free(self.release());
    }
}

/// Takes, resizes and frees blocks of all kinds.
pub fn exercise(seed: u64, rounds: usize) {
    let mut random = Random::new(seed);
    let mut blocks: Vec<CBlock> = Vec::new();
    for _ in 0..rounds {
        match random.below(4) {
            0 | 1 => blocks.push(CBlock::any(&mut random)),
            2 if !blocks.is_empty() => {
                let index = random.below(blocks.len());
                blocks[index].resize(random.size());
            }
            _ if !blocks.is_empty() => blocks.swap_remove(random.below(blocks.len())).free(),
            _ => {}
        }
        if blocks.len() > 60 {
            blocks.drain(..30).for_each(CBlock::free);
        }
    }
    blocks.into_iter().for_each(CBlock::free);
}
