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
        let (size, carved, stretch) = (class.size as usize, self.carved as usize, PAGE << class.order);
        let (mut hint, mut given) = (self.hint as usize, 0);
        let mut result = Ok(());
        for &address in blocks {
            let offset = address.wrapping_sub(start);
            if offset >= stretch {
                break;
            }
            let block = class.block_at(offset);
            if block * size != offset || block >= carved {
                result = Err((address, Misuse::NotABlock));
                break;
            }
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

    /// As [`Slab::give`]; blocks `in_order`, of which most lie side by side, [`GROUP`] at a time as far as they do. If the first
    /// ones do not, as many go back by themselves.
    #[inline(always)]
    pub(crate) fn give_back(
        &mut self,
        class: &Class,
        start: usize,
        blocks: &[usize],
        in_order: bool,
    ) -> Result<usize, (usize, Misuse)> {
        let mut given = 0;
        if in_order {
            while let Some(lowest) = lowest_of_group(&blocks[given..], class.size as usize)
                && self.give_group(class, lowest.wrapping_sub(start))
            {
                given += GROUP;
            }
        }
        if given > 0 {
            return Ok(given);
        }
        self.give(class, start, if in_order { &blocks[..blocks.len().min(GROUP)] } else { blocks })
    }

    /// Gives back [`GROUP`] blocks from `offset` on, if all are in use and have their bits in one word; whether they are.
    ///
    /// To change the bits of a word one by one would take as long as it takes from a store to the next load, each time.
    #[inline(always)]
    fn give_group(&mut self, class: &Class, offset: usize) -> bool {
        if offset >= PAGE << class.order {
            return false;
        }
        let block = class.block_at(offset);
        let (index, first) = (block / 64, block % 64);
        if block * class.size as usize != offset || block + GROUP > self.carved as usize || first + GROUP > 64 {
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
const GROUP: usize = 8;

/// Whether blocks that come one after the other lie side by side, by a look at two places: so most do or few.
#[inline(always)]
pub(crate) fn are_in_order(class: &Class, blocks: &[usize]) -> bool {
    let size = class.size as usize;
    let side_by_side = |n: usize| {
        let pair = blocks.get(n..n + 2);
        pair.is_some_and(|pair| pair[0].wrapping_sub(pair[1]) == size || pair[1].wrapping_sub(pair[0]) == size)
    };
    blocks.len() >= GROUP && side_by_side(0) && side_by_side(blocks.len() / 2)
}

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
                Slab::init(slab, class, Backing::Cold);
                &mut *slab
            };
            let mut out = [0; 10];
            assert_eq!(slab.take(class, start, &mut out), blocks);
            for set in 0..1usize << blocks {
                let expected: Vec<usize> =
                    (0..blocks).filter(|block| set >> block & 1 != 0).map(|b| start + b * size).collect();
                for &address in expected.iter().rev() {
                    assert_eq!(slab.give(class, start, &[address]), Ok(1));
                }
                assert_eq!(slab.free_blocks(), expected.len());
                let taken = slab.take(class, start, &mut out);
                assert_eq!(out[..taken], expected);
                sets += 1;
            }
        }
        assert!(sets > 100, "{sets}");
    }

    /// Gives back as many as can be, in as many calls as it takes; how many, and what is wrong with the next.
    fn give_all(slab: &mut Slab, class: &Class, start: usize, blocks: &[usize]) -> (usize, Option<(usize, Misuse)>) {
        let before = slab.free_blocks();
        let mut given = 0;
        while given < blocks.len() {
            match slab.give_back(class, start, &blocks[given..], true) {
                Ok(more) => given += more,
                Err(wrong) => return (slab.free_blocks() - before, Some(wrong)),
            }
        }
        assert_eq!(slab.free_blocks() - before, given);
        (given, None)
    }

    /// A row of blocks, upwards or downwards, of which one is free already or is none, goes back as far as that one.
    ///
    /// Red if `give_group` does not look at the bits, nor at `carved`, or if `lowest_of_group` looks at the ends alone.
    #[test]
    fn a_row_goes_back_as_far_as_it_is_in_use() {
        let mut rows = 0;
        for class in CLASS.iter().filter(|class| class.blocks >= 100) {
            let (start, size) = (0x10_0000, class.size as usize);
            let mut memory = memory(class);
            let slab = memory.as_mut_ptr().cast::<Slab>();
            for (first, len, bad, free, down) in (0..64).step_by(7).flat_map(|first| {
                let bad = (0..40).flat_map(|bad| [(bad, true), (bad, false)]);
                bad.flat_map(move |(bad, free)| [(first, 36, bad, free, true), (first, 36, bad, free, false)])
            }) {
                // SAFETY: as below.
                let slab = unsafe {
                    Slab::init(slab, class, Backing::Cold);
                    &mut *slab
                };
                let mut out = [0; 100];
                // Those behind them have never been handed out.
                assert_eq!(slab.take(class, start, &mut out[..first + len]), first + len);
                let mut row: Vec<usize> = (first..first + len).map(|block| start + block * size).collect();
                if down {
                    row.reverse();
                } else {
                    row.extend((first + len..first + 40).map(|block| start + block * size));
                }
                let mut wrong = if down { None } else { Some((row[len], Misuse::NotABlock)) };
                let (mut given, mut back) = (len, len);
                if bad < len && free {
                    assert_eq!(slab.give(class, start, &[row[bad]]), Ok(1));
                    (wrong, given, back) = (Some((row[bad], Misuse::DoubleFree)), bad, bad + 1);
                } else if bad < len {
                    row[bad] += 1;
                    (wrong, given, back) = (Some((row[bad], Misuse::NotABlock)), bad, bad);
                }
                let result = give_all(slab, class, start, &row);
                assert_eq!(result, (given, wrong), "{first} {bad} {free} {down}");
                let outside = class.blocks as usize - first - len;
                assert_eq!(slab.free_blocks(), outside + back);
                let mut taken = [0; 100];
                let n = slab.take(class, start, &mut taken[..back]);
                let mut those = row[..bad.min(len)].to_vec();
                those.extend((bad < len && free).then(|| row[bad]));
                those.sort_unstable();
                assert_eq!((n, &taken[..n]), (back, &those[..]), "{first} {bad} {free} {down}");
                rows += 1;
            }
        }
        assert!(rows > 10_000, "{rows}");
    }

    /// Any order, but every block once; and over many slabs each block comes first about equally often.
    ///
    /// Red if the number of set bits in front is counted from the next word, or the bit is left set.
    #[test]
    fn random_order_is_fair_and_complete() {
        for class in CLASS.iter().filter(|class| !class.is_run()).step_by(7) {
            let (start, size, blocks) = (0x10_0000, class.size as usize, class.blocks as usize);
            let mut memory = memory(class);
            let slab = memory.as_mut_ptr().cast::<Slab>();
            let mut first = vec![0; blocks];
            let mut seed = 1u64;
            let mut rounds = 0;
            while rounds < 40 * blocks.min(50) {
                // SAFETY: as below.
                let slab = unsafe {
                    Slab::init(slab, class, Backing::Cold);
                    &mut *slab
                };
                slab.carve_all(class);
                let mut out = vec![0; blocks + 1];
                let random = std::cell::Cell::new(seed);
                let taken = slab.take_any(class, start, &mut out, |n| {
                    random.set(random.get().wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
                    ((u128::from(random.get()) * n as u128) >> 64) as usize
                });
                seed = random.get();
                assert_eq!((taken, slab.free_blocks()), (blocks, 0));
                first[(out[0] - start) / size] += 1;
                let distinct: BTreeSet<usize> = out[..blocks].iter().map(|address| (address - start) / size).collect();
                assert!(distinct.len() == blocks && *distinct.last().unwrap() == blocks - 1);
                rounds += 1;
            }
            let half: usize = first[..blocks / 2].iter().sum();
            let expected = rounds * (blocks / 2) / blocks;
            assert!(half.abs_diff(expected) * 4 < rounds, "{half} of {rounds} in the lower half");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a set of free block numbers.
        ///
        /// Red if `give` forgets `hint`, goes on behind a block of another run, or does not look at the bit.
        #[test]
        fn random_steps_agree_with_a_set(index in 0..CLASSES, steps in prop::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
            let class = &CLASS[index];
            prop_assume!(!class.is_run());
            let (start, size) = (0x10_0000, class.size as usize);
            let mut memory = memory(class);
            let slab = memory.as_mut_ptr().cast::<Slab>();
            // SAFETY: 64 bytes for every page hold the header and the bitmap, as the class tests show.
            let slab = unsafe {
                Slab::init(slab, class, Backing::Cold);
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
                    let count = n % held.len().min(63) + 1;
                    let mut together: Vec<usize> = Vec::new();
                    if n >> 20 & 1 == 0 {
                        together.extend((0..count).map(|_| held.swap_remove(n / 64 % held.len())));
                    } else {
                        // Neighbours, as far as there are.
                        held.sort_unstable();
                        let first = n / 64 % (held.len() - count + 1);
                        together.extend(held.drain(first..first + count));
                    }
                    if n >> 21 & 1 == 0 {
                        together.reverse();
                    }
                    free.extend(together.iter().map(|address| (address - start) / size));
                    // All of them, those before one of another run, or those before one that is wrong.
                    let (last, others) = together.split_last().unwrap();
                    let stretch = PAGE << class.order;
                    let result = match n % 4 {
                        0 => slab.give(class, start, &together),
                        1 => {
                            let elsewhere = start.wrapping_add(if n % 8 < 4 { stretch } else { stretch.wrapping_neg() });
                            slab.give(class, start, &[&together[..], &[elsewhere, together[0]]].concat())
                        }
                        2 => {
                            let twice = [others, &[*last, together[0], *last]].concat();
                            prop_assert_eq!(slab.give(class, start, &twice), Err((together[0], Misuse::DoubleFree)));
                            Ok(together.len())
                        }
                        _ => {
                            let middle = [others, &[*last + 1, *last]].concat();
                            prop_assert_eq!(slab.give(class, start, &middle), Err((*last + 1, Misuse::NotABlock)));
                            slab.give(class, start, &[*last]).map(|given| others.len() + given)
                        }
                    };
                    prop_assert_eq!(result, Ok(together.len()));
                }
                prop_assert_eq!(slab.free_blocks(), free.len());
            }
            let beyond = start + slab.carved as usize * size;
            let is_of_the_run = beyond < start + (PAGE << class.order);
            let refused = if is_of_the_run { Err((beyond, Misuse::NotABlock)) } else { Ok(0) };
            prop_assert_eq!(slab.give(class, start, &[beyond]), refused);
        }
    }
}
