//! Random steps, and an oracle that knows which addresses are taken.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use super::{Block, MIB, Random};

/// The address ranges of all live blocks, by their start: what the heap must never hand out again.
///
/// A range is entered after the heap has handed it out and struck out before it is given back, so two that overlap
/// have been handed out at once, whatever the threads did in between. (Its own nodes come from the same heap.)
#[derive(Default)]
pub struct Oracle(Mutex<BTreeMap<usize, usize>>);

impl Oracle {
    pub fn enter(&self, range: Range<usize>) {
        let mut taken = self.0.lock().unwrap();
        if let Some((start, end)) = taken.range(..range.end).next_back() {
            assert!(*end <= range.start, "{range:x?} overlaps {:x?}, which is in use", start..end);
        }
        taken.insert(range.start, range.end);
    }

    pub fn strike(&self, range: Range<usize>) {
        assert_eq!(self.0.lock().unwrap().remove(&range.start), Some(range.end));
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
}

/// Blocks that a thread holds in the course of random steps.
pub struct Holder<'a> {
    oracle: &'a Oracle,
    blocks: Vec<Block>,
    bytes: usize,
    random: Random,
}

impl<'a> Holder<'a> {
    /// Most blocks and bytes held at once.
    const BLOCKS: usize = 600;
    const BYTES: usize = 48 * MIB;

    pub fn new(oracle: &'a Oracle, seed: u64) -> Self {
        Holder { oracle, blocks: Vec::new(), bytes: 0, random: Random::new(seed) }
    }

    /// Takes a block, resizes one or gives one back.
    pub fn step(&mut self) {
        let full = self.blocks.len() >= Self::BLOCKS || self.bytes >= Self::BYTES;
        match self.random.below(8) {
            0..4 if !full => self.take(),
            4 if !self.blocks.is_empty() => self.resize(),
            _ if !self.blocks.is_empty() => self.give_back(),
            _ => self.take(),
        }
    }

    fn take(&mut self) {
        let (size, align, seed) = (self.random.size(), self.random.align(), self.random.word());
        let make = if self.random.below(4) == 0 { Block::zeroed } else { Block::new };
        let block = make(size, align, seed).expect("there is memory");
        self.oracle.enter(block.range());
        self.bytes += size;
        self.blocks.push(block);
    }

    fn resize(&mut self) {
        let index = self.random.below(self.blocks.len());
        let block = &mut self.blocks[index];
        // To any size, or to one nearby, which may stay where it is.
        let size = match self.random.below(2) {
            0 => self.random.size(),
            _ => block.size() / 2 + 1 + self.random.below(block.size()),
        };
        self.bytes = self.bytes - block.size() + size;
        self.oracle.strike(block.range());
        assert!(block.resize(size), "there is memory");
        self.oracle.enter(block.range());
    }

    fn give_back(&mut self) {
        let block = self.blocks.swap_remove(self.random.below(self.blocks.len()));
        self.bytes -= block.size();
        self.oracle.strike(block.range());
    }

    /// Takes a block from this holder for another.
    pub fn part_with(&mut self) -> Option<Block> {
        let block = self.blocks.pop()?;
        self.bytes -= block.size();
        Some(block)
    }

    /// Takes over a block of another holder of the same oracle.
    pub fn take_over(&mut self, block: Block) {
        block.check();
        self.bytes += block.size();
        self.blocks.push(block);
    }
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        while !std::thread::panicking() && !self.blocks.is_empty() {
            self.give_back();
        }
    }
}
