//! What the rows allocate, and the numbers that choose it.

use std::hint::black_box;

/// A block of a size that the compiler does not know, with a tag in its first eight bytes.
pub struct Object(Vec<u8>);

impl Object {
    /// `size` is at least 8.
    #[inline(always)]
    pub fn new(size: usize, tag: u64) -> Self {
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(&tag.to_ne_bytes());
        // As far as the compiler knows, what is in the block is read and changed here.
        black_box(bytes.as_mut_ptr());
        Object(bytes)
    }

    /// 0 if the object is as it was made with this tag.
    #[inline(always)]
    pub fn difference(&self, tag: u64) -> u64 {
        self.0.first_chunk().map_or(u64::MAX, |bytes| u64::from_ne_bytes(*bytes) ^ tag)
    }
}

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(0x9e37_79b9_7f4a_7c15 ^ seed)
    }

    #[inline(always)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// So many sizes of 8 to 511 bytes; every doubling is as likely as the next.
    pub fn sizes(&mut self, count: usize) -> Vec<usize> {
        let mut size = || {
            let doubling = 8 << (self.next() % 6);
            doubling + self.next() as usize % doubling
        };
        (0..count).map(|_| size()).collect()
    }
}
