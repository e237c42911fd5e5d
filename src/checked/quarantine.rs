//! Freed blocks that wait before they can be used again: first in, first out, by CPU.
//!
//! Who keeps a pointer to freed memory finds it unused for as long, instead of in the hands of the next who allocates.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::hardening::{self, Hardening};
use crate::lock::Lock;
use crate::percpu;
use crate::size_class::block_size;
use crate::zone::{FILLED, META, Zone};

/// Bytes that wait on a CPU, with the last block.
const BYTES: usize = 1 << 20;
/// Blocks that wait on a CPU.
const BLOCKS: usize = 4096;
/// Rings; CPUs with larger numbers share them.
const RINGS: usize = 64;

/// In a ring's words: where the number of the class starts. Addresses of user space end before.
const CLASS_SHIFT: u32 = 48;

/// Bytes in all rings. Relaxed throughout: a statistic.
static WAITING: AtomicUsize = AtomicUsize::new(0);

#[repr(align(64))]
struct Slot(Lock<Ring>);
static ALL: [Slot; RINGS] = [const { Slot(Lock::new(Ring { words: null_mut(), first: 0, len: 0, bytes: 0 })) }; RINGS];

/// The blocks that wait on a CPU, each address with its class.
struct Ring {
    /// Room for [`BLOCKS`] words; null before the first.
    words: *mut usize,
    first: usize,
    len: usize,
    bytes: usize,
}

// SAFETY: the words are the ring's own, and live for ever.
unsafe impl Send for Ring {}

impl Ring {
    /// Adds a block; false if there is no room for one.
    fn push(&mut self, word: usize) -> bool {
        if self.words.is_null() {
            let Some(words) = META.alloc(BLOCKS * size_of::<usize>(), align_of::<usize>()) else { return false };
            self.words = words.cast().as_ptr();
        }
        if self.len == BLOCKS {
            return false;
        }
        // SAFETY: the index is below BLOCKS.
        unsafe { self.words.add((self.first + self.len) % BLOCKS).write(word) };
        self.len += 1;
        self.bytes += block_size(word >> CLASS_SHIFT);
        true
    }

    /// Takes the block that has waited longest.
    fn pop(&mut self) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        // SAFETY: the index is below BLOCKS, and the word was written by `push`.
        let word = unsafe { self.words.add(self.first).read() };
        self.first = (self.first + 1) % BLOCKS;
        self.len -= 1;
        self.bytes -= block_size(word >> CLASS_SHIFT);
        Some(word)
    }
}

/// Bytes of blocks that wait.
pub(crate) fn bytes() -> usize {
    WAITING.load(Ordering::Relaxed)
}

/// Has a block wait, and frees those that have waited long enough.
pub(super) fn put(class: usize, address: usize) {
    const AT_ONCE: usize = 8;
    let ring = &ALL[percpu::cpu_here() % RINGS].0;
    let word = address | class << CLASS_SHIFT;
    let mut put = false;
    loop {
        let (mut due, mut count, mut more) = ([0; AT_ONCE], 0, false);
        {
            let mut ring = ring.lock();
            let before = ring.bytes;
            if !put {
                if ring.len == BLOCKS {
                    due[0] = ring.pop().unwrap_or(0);
                    count = 1;
                }
                put = ring.push(word);
                if !put {
                    // No memory for the ring: the block does not wait.
                    (due[0], count, put) = (word, 1, true);
                }
            }
            while ring.bytes > BYTES {
                if count == AT_ONCE {
                    more = true;
                    break;
                }
                due[count] = ring.pop().unwrap_or(0);
                count += 1;
            }
            // Wraps where more leaves than comes.
            WAITING.fetch_add(ring.bytes.wrapping_sub(before), Ordering::Relaxed);
        }
        due[..count].iter().for_each(|&word| release(word));
        if !more {
            return;
        }
    }
}

/// Frees every block that waits; whether there were any.
pub(super) fn flush() -> bool {
    let mut any = false;
    for Slot(ring) in &ALL {
        loop {
            let word = {
                let mut ring = ring.lock();
                let before = ring.bytes;
                let word = ring.pop();
                WAITING.fetch_sub(before - ring.bytes, Ordering::Relaxed);
                word
            };
            let Some(word) = word else { break };
            release(word);
            any = true;
        }
    }
    any
}

/// Frees a block that has waited; ends the process if it was written to meanwhile.
fn release(word: usize) {
    let (class, address) = (word >> CLASS_SHIFT, word & ((1 << CLASS_SHIFT) - 1));
    // SAFETY: a block of a class that was found to lie in a zone.
    let zone = unsafe { Zone::of(address) };
    // Looked at now in any case: a block that is a run of its own goes back to its zone, and is never looked at again.
    if zone.unmark(address, 0) & FILLED != 0 {
        super::inspect(class, address);
    }
    // SAFETY: `put` was given a block of this class that nobody uses.
    unsafe { percpu::free_slow(class, address as *mut u8) };
}

pub(super) fn fork_lock(acquire: bool) {
    if !hardening::any(Hardening::QUARANTINE) {
        return;
    }
    for Slot(ring) in &ALL {
        if acquire { ring.acquire() } else { ring.release() }
    }
}

/// Only the address is kept in a ring's word.
const _: () = assert!(crate::size_class::CLASSES < 1 << (usize::BITS - CLASS_SHIFT));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_first_in_first_out_and_counts_its_bytes() {
        let mut ring = Ring { words: null_mut(), first: BLOCKS - 2, len: 0, bytes: 0 };
        for n in 1..=BLOCKS {
            assert!(ring.push((n * 8) | 3 << CLASS_SHIFT));
        }
        assert!(!ring.push(8) && ring.bytes == BLOCKS * block_size(3));
        for n in 1..=BLOCKS {
            assert_eq!(ring.pop(), Some((n * 8) | 3 << CLASS_SHIFT));
        }
        assert_eq!((ring.pop(), ring.bytes), (None, 0));
    }
}
