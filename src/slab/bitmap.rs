//! One slab: a header and a bitmap over the blocks of a run. Arithmetic only; the caller holds the lock.

use core::ptr::null_mut;

use crate::size_class::{Class, DESCRIPTOR, PAGE, SLAB_HEADER};

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
    pub(super) carved: u16,
    /// Bit n: the n-th stretch of the run (`holes.rs`) has been given back to the system. All blocks that reach into it
    /// are free.
    pub(super) holes: u16,
    /// No word of the bitmap before this one has a bit set.
    hint: u8,
    backing: Backing,
}

const _: () = assert!(size_of::<Slab>() == SLAB_HEADER);
// `hint` may be one more than the last word's number.
const _: () = assert!((DESCRIPTOR << 4) / 8 <= u8::MAX as usize);

/// How much memory was behind a run when it became a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Backing {
    /// None.
    Cold,
    /// Some.
    Warm,
    /// It was given memory in full just then.
    Populated,
}

/// What was wrong with a block given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misuse {
    /// The address is not that of a block.
    NotABlock,
    /// The block is free already.
    DoubleFree,
}

impl Slab {
    /// Makes a slab of `class`, all blocks free.
    ///
    /// # Safety
    /// `at` is aligned to 8 and valid for writes of the header and of one bit per block, for as long as
    /// the slab is used.
    pub(crate) unsafe fn init(at: *mut Slab, class: &Class, backing: Backing) {
        // SAFETY: the caller's obligation; the bitmap follows the header.
        unsafe {
            let words = (class.blocks as usize).div_ceil(64);
            at.cast::<u8>().add(SLAB_HEADER).cast::<u64>().write_bytes(0, words);
            at.write(Slab {
                next: null_mut(),
                prev: null_mut(),
                free: class.blocks,
                carved: 0,
                holes: 0,
                hint: 0,
                backing,
            });
        }
    }

    /// A word of the bitmap.
    fn word(&mut self, index: usize) -> &mut u64 {
        // SAFETY: `init` made sure of a bit for every block, and callers pass words that hold one. The
        // pointer comes from the header's own, which by `init`'s contract is valid for the bitmap too.
        unsafe { &mut *(self as *mut Slab).cast::<u8>().add(SLAB_HEADER).cast::<u64>().add(index) }
    }

    /// Whether a block came back and is free.
    pub(super) fn is_free(&mut self, block: usize) -> bool {
        *self.word(block / 64) & 1 << (block % 64) != 0
    }

    /// Makes a carved block free.
    pub(super) fn set_free(&mut self, block: usize) {
        *self.word(block / 64) |= 1 << (block % 64);
        self.free += 1;
        self.hint = self.hint.min((block / 64) as u8);
    }

    /// Makes a block that is free count as handed out.
    pub(super) fn clear_free(&mut self, block: usize) {
        *self.word(block / 64) &= !(1 << (block % 64));
        self.free -= 1;
    }

    pub(crate) fn free_blocks(&self) -> usize {
        self.free as usize
    }

    /// Blocks that have no memory behind them yet.
    pub(crate) fn untouched(&self, class: &Class) -> usize {
        if self.backing == Backing::Cold { (class.blocks - self.carved) as usize } else { 0 }
    }

    /// Pages from the first one on that have memory behind them, but for holes, whether they had it before or not.
    pub(crate) fn touched_pages(&self, class: &Class) -> usize {
        if self.backing == Backing::Populated {
            class.pages as usize
        } else {
            (self.carved as usize * class.size as usize).div_ceil(PAGE)
        }
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
            let first = bits.trailing_zeros().min(63) as usize;
            let row = bits >> first;
            if row & row.wrapping_add(1) == 0 {
                // All lie side by side, and there is no bit to look for.
                let count = (row.trailing_ones() as usize).min(wanted - taken);
                for (n, place) in out[taken..][..count].iter_mut().enumerate() {
                    *place = start + (index * 64 + first + n) * size;
                }
                taken += count;
                // Of a row of 64, none is left over: a shift by as many would leave them all.
                bits = row.checked_shr(count as u32).unwrap_or(0).checked_shl((first + count) as u32).unwrap_or(0);
            }
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
        self.hint = index as u8;
        let carved = self.carved as usize;
        for (n, place) in out[taken..wanted].iter_mut().enumerate() {
            *place = start + (carved + n) * size;
        }
        self.carved += (wanted - taken) as u16;
        self.free -= wanted as u16;
        if self.holes != 0 {
            self.fill_holes(class, start, &out[..wanted]);
        }
        wanted
    }

    /// Has all blocks looked at as if they had been handed out before, so that [`Slab::take_any`] finds them.
    pub(crate) fn carve_all(&mut self, class: &Class) {
        let blocks = class.blocks as usize;
        for index in self.carved as usize / 64..blocks.div_ceil(64) {
            let (first, end) = ((self.carved as usize).max(index * 64), blocks.min(index * 64 + 64));
            *self.word(index) |= (u64::MAX >> (64 - (end - first))) << (first % 64);
        }
        self.carved = class.blocks;
    }

    /// As [`Slab::take`], but any blocks, each free one as likely as the others; `below` draws a number. All have
    /// been carved.
    pub(crate) fn take_any(
        &mut self,
        class: &Class,
        start: usize,
        out: &mut [usize],
        below: impl Fn(usize) -> usize,
    ) -> usize {
        debug_assert_eq!(self.carved, class.blocks);
        let wanted = out.len().min(self.free as usize);
        for place in &mut out[..wanted] {
            let mut skip = below(self.free as usize);
            let mut index = 0;
            // As many bits are set as blocks are free, so one is found.
            while let set = self.word(index).count_ones() as usize
                && skip >= set
            {
                skip -= set;
                index += 1;
            }
            let word = self.word(index);
            let bit = (0..skip).fold(*word, |bits, _| bits & (bits - 1)).trailing_zeros();
            *word &= !(1 << bit);
            self.free -= 1;
            *place = start + (index * 64 + bit as usize) * class.size as usize;
        }
        if self.holes != 0 {
            self.fill_holes(class, start, &out[..wanted]);
        }
        wanted
    }

    /// Gives back blocks, from the first on, that lie in the stretch of this run, which starts at `start`; returns how many
    /// do. The first that is none, or that is free already, is returned as an error; those before it are back then.
    #[inline(always)]
    pub(super) fn give(&mut self, class: &Class, start: usize, blocks: &[usize]) -> Result<usize, (usize, Misuse)> {
        let (carved, stretch) = (self.carved as usize, PAGE << class.order);
        let (mut hint, mut given) = (self.hint as usize, 0);
        let mut result = Ok(());
        for &address in blocks {
            let offset = address.wrapping_sub(start);
            if offset >= stretch {
                break;
            }
            let Some(block) = class.block_that_begins_at(offset).filter(|&block| block < carved) else {
                result = Err((address, Misuse::NotABlock));
                break;
            };
            let (index, bit) = (block / 64, 1 << (block % 64));
            let word = self.word(index);
            let bits = *word;
            if bits & bit != 0 {
                result = Err((address, Misuse::DoubleFree));
                break;
            }
            *word = bits | bit;
            hint = hint.min(index);
            given += 1;
        }
        self.hint = hint as u8;
        self.free += given as u16;
        result.map(|()| given)
    }

    /// Gives back the block at `offset` bytes from the start of the run.
    #[inline(always)]
    pub(super) fn give_one(&mut self, class: &Class, offset: usize) -> Result<(), Misuse> {
        let Some(block) = class.block_that_begins_at(offset) else { return Err(Misuse::NotABlock) };
        if block >= self.carved as usize {
            return Err(Misuse::NotABlock);
        }
        let bit = 1 << (block % 64);
        let word = self.word(block / 64);
        let bits = *word;
        if bits & bit != 0 {
            return Err(Misuse::DoubleFree);
        }
        *word = bits | bit;
        self.free += 1;
        // Kept up, the hint would be a load and a store that the next block's has to wait for: longer for each than a look at
        // words that are zero takes for all that are handed out together.
        self.hint = 0;
        Ok(())
    }

    /// As [`Slab::give`], [`GROUP`] blocks at a time as far as they lie side by side. If the first ones do not, as many go back
    /// by themselves.
    #[inline(always)]
    pub(super) fn give_rows(
        &mut self,
        class: &Class,
        start: usize,
        blocks: &[usize],
    ) -> Result<usize, (usize, Misuse)> {
        let mut given = 0;
        while let Some(lowest) = lowest_of_group(&blocks[given..], class.size as usize)
            && self.give_group(class, lowest.wrapping_sub(start))
        {
            given += GROUP;
        }
        if given > 0 {
            return Ok(given);
        }
        self.give(class, start, &blocks[..blocks.len().min(GROUP)])
    }

    /// Gives back [`GROUP`] blocks from `offset` on, if all are in use and have their bits in one word; whether they are.
    ///
    /// To change the bits of a word one by one would take as long as it takes from a store to the next load, each time.
    #[inline(always)]
    fn give_group(&mut self, class: &Class, offset: usize) -> bool {
        if offset >= PAGE << class.order {
            return false;
        }
        let Some(block) = class.block_that_begins_at(offset) else { return false };
        let (index, first) = (block / 64, block % 64);
        if block + GROUP > self.carved as usize || first + GROUP > 64 {
            return false;
        }
        let set = ((1 << GROUP) - 1) << first;
        let word = self.word(index);
        if *word & set != 0 {
            return false;
        }
        *word |= set;
        self.hint = self.hint.min(index as u8);
        self.free += GROUP as u16;
        true
    }
}

/// So many blocks that lie side by side go back to their slab together.
pub(super) const GROUP: usize = 8;

/// How the blocks of a batch lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrangement {
    /// One beside the other, most of them.
    Rows,
    /// Several in a slab, one after the other.
    Runs,
    /// Each in another slab than the one before it, most of them.
    Scattered,
}

/// How the blocks of a batch lie, by a look at a few places: two, or [`LOOKS`] if there are many.
#[inline(always)]
pub(super) fn arrangement(class: &Class, blocks: &[usize]) -> Arrangement {
    let (size, stretch) = (class.size as usize, PAGE << class.order);
    if blocks.len() < GROUP {
        return Arrangement::Runs;
    }
    // As many as have to lie beside or with the next ones: of two places both for rows and one for runs, of more most and all.
    let (looks, in_rows, in_runs) = if blocks.len() < 8 * GROUP { (2, 2, 1) } else { (LOOKS, LOOKS - 1, LOOKS) };
    let (mut beside, mut together) = (0, 0);
    for look in 0..looks {
        let first = look * blocks.len() / looks;
        let (one, other) = (blocks[first], blocks[first + 1]);
        beside += usize::from(one.abs_diff(other) == size);
        together += usize::from((one ^ other) < stretch);
    }
    // What is taken for a group and is none costs as much as two blocks; a group costs less than one. And the processor does not
    // foresee where a run ends, which matters unless runs are long.
    if beside >= in_rows {
        Arrangement::Rows
    } else if together >= in_runs {
        Arrangement::Runs
    } else {
        Arrangement::Scattered
    }
}

/// How many places of a batch of many blocks are looked at.
const LOOKS: usize = 8;

/// The lowest of the first [`GROUP`] blocks, if each lies right behind the one before it, or each right before it.
#[inline(always)]
fn lowest_of_group(blocks: &[usize], size: usize) -> Option<usize> {
    let group: &[usize; GROUP] = blocks.first_chunk()?;
    let (first, last) = (group[0], group[GROUP - 1]);
    let step = if last.wrapping_sub(first) == (GROUP - 1) * size {
        size
    } else if first.wrapping_sub(last) == (GROUP - 1) * size {
        size.wrapping_neg()
    } else {
        return None;
    };
    let apart = group.windows(2).fold(0, |apart, pair| apart | (pair[1].wrapping_sub(pair[0]) ^ step));
    (apart == 0).then_some(first.min(last))
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
        class
            .block_that_begins_at(offset)
            .is_some_and(|block| block < self.carved as usize && *self.word(block / 64) & (1 << (block % 64)) == 0)
    }
}

#[cfg(test)]
mod tests;
