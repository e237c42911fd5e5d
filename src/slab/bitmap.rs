//! One slab: a header and a bitmap over the blocks of a run. Arithmetic only; the caller holds the lock.

use core::ptr::null_mut;

use crate::size_class::{Class, PAGE, SLAB_HEADER};

/// The header of a slab. The bitmap follows: a set bit is a block that was handed out once and is free.
///
/// Blocks are handed out lowest address first: those that came back, then, from `carved` on, those never
/// used so far, which have no bits yet.
#[repr(C)]
pub(crate) struct Slab {
    /// Links of the list of slabs with free blocks, while on it.
    pub(super) next: *mut Slab,
    pub(super) prev: *mut Slab,
    /// Free blocks, carved or not.
    free: u16,
    /// Blocks from this number on have never been handed out.
    carved: u16,
    /// No word of the bitmap before this one has a bit set.
    hint: u16,
    /// Whether the run had no memory behind it when it became a slab.
    cold: bool,
    /// Whether it was given memory in full then.
    populated: bool,
}

const _: () = assert!(size_of::<Slab>() == SLAB_HEADER);

/// What was wrong with a block given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// The address is not that of a block.
    NotABlock,
    /// The block is free already.
    DoubleFree,
}

impl Slab {
    /// Makes a slab of `class`, all blocks free; its run has no memory behind it, or just got it, or some of it has.
    ///
    /// # Safety
    /// `at` is aligned to 8 and valid for writes of the header and of one bit per block, for as long as
    /// the slab is used.
    pub(crate) unsafe fn init(at: *mut Slab, class: &Class, cold: bool, populated: bool) {
        // SAFETY: the caller's obligation; the bitmap follows the header.
        unsafe {
            let words = (class.blocks as usize).div_ceil(64);
            at.cast::<u8>().add(SLAB_HEADER).cast::<u64>().write_bytes(0, words);
            at.write(Slab {
                next: null_mut(),
                prev: null_mut(),
                free: class.blocks,
                carved: 0,
                hint: 0,
                cold,
                populated,
            });
        }
    }

    /// A word of the bitmap.
    fn word(&mut self, index: usize) -> &mut u64 {
        // SAFETY: `init` made sure of a bit for every block, and callers pass words that hold one. The
        // pointer comes from the header's own, which by `init`'s contract is valid for the bitmap too.
        unsafe { &mut *(self as *mut Slab).cast::<u8>().add(SLAB_HEADER).cast::<u64>().add(index) }
    }

    pub(crate) fn free_blocks(&self) -> usize {
        self.free as usize
    }

    /// Blocks that have no memory behind them yet.
    pub(crate) fn untouched(&self, class: &Class) -> usize {
        if self.cold { (class.blocks - self.carved) as usize } else { 0 }
    }

    /// Pages from the first one on that have memory behind them, whether they had it before or not.
    pub(crate) fn touched_pages(&self, class: &Class) -> usize {
        if self.populated { class.pages as usize } else { (self.carved as usize * class.size as usize).div_ceil(PAGE) }
    }

    /// Fills `out` with addresses of free blocks, lowest first; returns how many there were.
    pub(crate) fn take(&mut self, class: &Class, start: usize, out: &mut [usize]) -> usize {
        let size = class.size as usize;
        let wanted = out.len().min(self.free as usize);
        let mut taken = 0;
        let words = (self.carved as usize).div_ceil(64);
        let mut index = self.hint as usize;
        while taken < wanted && index < words {
            let word = self.word(index);
            let mut bits = *word;
            while bits != 0 && taken < wanted {
                out[taken] = start + (index * 64 + bits.trailing_zeros() as usize) * size;
                bits &= bits - 1;
                taken += 1;
            }
            *word = bits;
            if bits == 0 {
                index += 1;
            }
        }
        self.hint = index as u16;
        while taken < wanted {
            out[taken] = start + self.carved as usize * size;
            self.carved += 1;
            taken += 1;
        }
        self.free -= taken as u16;
        taken
    }

    /// Gives back the block at `offset` bytes from the start of the run.
    #[inline]
    pub(crate) fn give(&mut self, class: &Class, offset: usize) -> Result<(), Misuse> {
        let block = class.block_at(offset);
        if block * class.size as usize != offset || block >= self.carved as usize {
            return Err(Misuse::NotABlock);
        }
        let word = self.word(block / 64);
        let bit = 1 << (block % 64);
        if *word & bit != 0 {
            return Err(Misuse::DoubleFree);
        }
        *word |= bit;
        self.free += 1;
        self.hint = self.hint.min((block / 64) as u16);
        Ok(())
    }
}

#[cfg(feature = "debug")]
impl Slab {
    /// Whether the header agrees with the bitmap.
    pub(crate) fn check(&mut self, class: &Class) -> Result<(), &'static str> {
        let mut bits = 0;
        for index in 0..(class.blocks as usize).div_ceil(64) {
            let word = *self.word(index);
            if index < self.hint as usize && word != 0 {
                return Err("no free block lies before a slab's hint");
            }
            let carved = (self.carved as usize).saturating_sub(64 * index).min(64);
            if carved < 64 && word >> carved != 0 {
                return Err("a block never handed out has no bit");
            }
            bits += word.count_ones() as usize;
        }
        let free = bits + (class.blocks - self.carved) as usize;
        if free == self.free as usize { Ok(()) } else { Err("a slab has as many free blocks as counted") }
    }

    /// Whether the block at `offset` bytes from the start of the run has been handed out.
    pub(crate) fn is_out(&mut self, class: &Class, offset: usize) -> bool {
        let block = class.block_at(offset);
        block * class.size as usize == offset
            && block < self.carved as usize
            && *self.word(block / 64) & (1 << (block % 64)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::{CLASS, CLASSES};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn memory(class: &Class) -> Vec<u64> {
        vec![u64::MAX; class.pages as usize * 8]
    }

    /// Every set of blocks of every small slab: given back, it is what is taken next, in ascending order.
    #[test]
    fn every_set_of_blocks_comes_back_in_order() {
        let mut sets = 0;
        for class in CLASS.iter().filter(|class| !class.is_run() && class.blocks <= 10) {
            let (start, size, blocks) = (0x10_0000, class.size as usize, class.blocks as usize);
            let mut memory = memory(class);
            let slab = memory.as_mut_ptr().cast::<Slab>();
            // SAFETY: as below.
            let slab = unsafe {
                Slab::init(slab, class, true, false);
                &mut *slab
            };
            let mut out = [0; 10];
            assert_eq!(slab.take(class, start, &mut out), blocks);
            for set in 0..1usize << blocks {
                let expected: Vec<usize> =
                    (0..blocks).filter(|block| set >> block & 1 != 0).map(|b| start + b * size).collect();
                for &address in expected.iter().rev() {
                    assert_eq!(slab.give(class, address - start), Ok(()));
                }
                assert_eq!(slab.free_blocks(), expected.len());
                let taken = slab.take(class, start, &mut out);
                assert_eq!(out[..taken], expected);
                sets += 1;
            }
        }
        assert!(sets > 100, "{sets}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a set of free block numbers.
        #[test]
        fn random_steps_agree_with_a_set(index in 0..CLASSES, steps in prop::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
            let class = &CLASS[index];
            prop_assume!(!class.is_run());
            let (start, size) = (0x10_0000, class.size as usize);
            let mut memory = memory(class);
            let slab = memory.as_mut_ptr().cast::<Slab>();
            // SAFETY: 64 bytes for every page hold the header and the bitmap, as the class tests show.
            let slab = unsafe {
                Slab::init(slab, class, true, false);
                &mut *slab
            };
            let mut free: BTreeSet<usize> = (0..class.blocks as usize).collect();
            let mut held = Vec::new();
            for (take, n) in steps {
                if take {
                    let mut out = vec![0; n % 70];
                    let taken = slab.take(class, start, &mut out);
                    prop_assert_eq!(taken, free.len().min(out.len()));
                    for &address in &out[..taken] {
                        prop_assert_eq!(Some((address - start) / size), free.pop_first());
                        held.push(address);
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(n % held.len());
                    prop_assert_eq!(slab.give(class, address - start), Ok(()));
                    prop_assert_eq!(slab.give(class, address - start), Err(Misuse::DoubleFree));
                    prop_assert_eq!(slab.give(class, address - start + 1), Err(Misuse::NotABlock));
                    free.insert((address - start) / size);
                }
                prop_assert_eq!(slab.free_blocks(), free.len());
            }
            let beyond = slab.carved as usize * size;
            prop_assert_eq!(slab.give(class, beyond), Err(Misuse::NotABlock));
        }
    }
}
