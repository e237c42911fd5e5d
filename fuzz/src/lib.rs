//! What is fuzzed: each function takes any bytes for a sequence of steps, and panics over what is wrong.
//!
//! The blocks, the oracle and the objects are those of the tests.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/rcu_common/mod.rs"]
mod rcu_common;

mod config;
mod rcu;

pub use config::config;
pub use rcu::rcu;

use std::ptr::NonNull;

use common::block::layout;
use common::model::Oracle;
use common::{Block, HEAP, KIB, MIB};
use pcpalloc::Drain;
use pcpalloc::debug::{Level, check};

/// What is to be made of an input.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 4] =
    [("allocator", allocator), ("resize", resize), ("rcu", rcu), ("config", config)];

/// Numbers from an input, as long as there is any.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub(crate) fn byte(&mut self) -> Option<usize> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first as usize)
    }

    /// A size from 1 byte to 6 MiB: three bytes, of which the first says how large it may get.
    pub(crate) fn size(&mut self) -> Option<usize> {
        let (scale, high, low) = (self.byte()?, self.byte()?, self.byte()?);
        let most = [128, 4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, 300 * KIB, 300 * KIB, 6 * MIB][scale % 8];
        Some(1 + (high << 8 | low) * most / 65536)
    }

    /// An alignment from 1 byte to 64 KiB.
    pub(crate) fn align(&mut self) -> Option<usize> {
        Some(1 << (self.byte()? % 17))
    }
}

/// The heap adds up, and holds what it held before.
fn accounted(before: usize) {
    // What nolock frees had no room for is settled by the next slow path.
    HEAP.drain(Drain::All);
    check(Level::Blocks).expect("everything adds up");
    let after = HEAP.stats().in_use;
    assert!(after <= before + 64 * KIB, "{before} bytes were in use, and {after} are now");
}

/// Bytes in use with nothing cached.
fn in_use() -> usize {
    HEAP.drain(Drain::All);
    HEAP.stats().in_use
}

/// A block from the nolock path.
struct Nolock(NonNull<u8>, usize);

impl Drop for Nolock {
    fn drop(&mut self) {
        // SAFETY: from `try_alloc_nolock` with this layout, filled when it was taken.
        unsafe {
            let bytes = std::slice::from_raw_parts(self.0.as_ptr(), self.1);
            assert!(bytes.iter().all(|&byte| byte == self.1 as u8), "a nolock block is its owner's alone");
            HEAP.free_nolock(self.0, layout(self.1, 8));
        }
    }
}

/// Steps of every kind against an oracle that knows which addresses are taken.
pub fn allocator(input: &[u8]) {
    let mut input = Input(input);
    let before = in_use();
    let oracle = Oracle::default();
    let (mut blocks, mut nolock): (Vec<Block>, Vec<Nolock>) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    while let Some(step) = input.byte() {
        let pick = |blocks: &[Block], input: &mut Input| Some(input.byte()? % blocks.len().max(1));
        match step % 16 {
            0..7 => {
                let (Some(size), Some(align)) = (input.size(), input.align()) else { break };
                if bytes + size > 64 * MIB {
                    continue;
                }
                let make = if step.is_multiple_of(3) { Block::zeroed } else { Block::new };
                // Refused under a limit only.
                let Some(block) = make(size, align, step as u64) else {
                    assert!(HEAP.limit().is_some());
                    continue;
                };
                oracle.enter(block.range());
                bytes += size;
                blocks.push(block);
            }
            7..10 => {
                let Some(at) = pick(&blocks, &mut input) else { break };
                if !blocks.is_empty() {
                    let block = blocks.swap_remove(at);
                    bytes -= block.size();
                    oracle.strike(block.range());
                }
            }
            10 => {
                let (Some(at), Some(size)) = (pick(&blocks, &mut input), input.size()) else { break };
                if let Some(block) = blocks.get_mut(at) {
                    let old = block.size();
                    oracle.strike(block.range());
                    assert!(block.resize(size) || HEAP.limit().is_some());
                    oracle.enter(block.range());
                    bytes = bytes - old + block.size();
                }
            }
            11 => {
                let Some(size) = input.size() else { break };
                if let Some(block) = HEAP.try_alloc_nolock(layout(size, 8)) {
                    let start = block.as_ptr() as usize;
                    oracle.enter(start..start + size);
                    oracle.strike(start..start + size);
                    // SAFETY: ours, and as large.
                    unsafe { block.as_ptr().write_bytes(size as u8, size) };
                    nolock.push(Nolock(block, size));
                }
            }
            12 => drop(nolock.pop()),
            13 => match input.byte() {
                Some(n) if n % 4 == 0 => _ = HEAP.trim(),
                Some(n) => _ = HEAP.drain([Drain::Local, Drain::All, Drain::Cpu(n)][n % 3]),
                None => break,
            },
            14 => {
                let (Some(size), Some(count)) = (input.size(), input.byte()) else { break };
                if size <= 4 * KIB {
                    _ = HEAP.charge_nolock(layout(size, 8), count % 20);
                    _ = HEAP.charge_nolock(layout(size, 8), 0);
                }
            }
            _ => {
                let Some(more) = input.byte() else { break };
                let stats = HEAP.stats();
                let limit = stats.in_use + stats.metadata + (more << 16);
                _ = HEAP.set_limit(if more % 2 == 0 { Some(limit) } else { None });
            }
        }
    }
    HEAP.set_limit(None).expect("no limit is never below what is in use");
    nolock.clear();
    while let Some(block) = blocks.pop() {
        oracle.strike(block.range());
    }
    assert!(oracle.is_empty());
    accounted(before);
}

/// A few blocks through sizes of all kinds, each with an alignment that it keeps.
pub fn resize(input: &[u8]) {
    let mut input = Input(input);
    let before = in_use();
    let mut blocks: [Option<Block>; 4] = [const { None }; 4];
    while let (Some(step), Some(size)) = (input.byte(), input.size()) {
        let slot = &mut blocks[step % 4];
        match slot {
            Some(block) => {
                // To a size of its own, or to one nearby, which may stay where it is.
                let near = (block.size() * (64 + step / 4) / 96).clamp(1, 6 * MIB);
                assert!(block.resize(if step >= 128 { size } else { near }), "there is memory");
            }
            None => {
                let Some(align) = input.align() else { break };
                *slot = Block::new(size, align, step as u64);
            }
        }
        if step == 255 {
            *slot = None;
        }
    }
    drop(blocks);
    accounted(before);
}
