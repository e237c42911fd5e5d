//! Random numbers that a program's behaviour does not give away.
//!
//! SipHash-1-3 (J.-P. Aumasson, D. Bernstein, INDOCRYPT 2012) of a counter, under a key from the system: no lock, and
//! from outputs that somebody sees neither the key nor other outputs are to be had.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sys;

// Relaxed throughout: a number made of an old key and a new counter is as random as any other.
static KEY: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Takes a new key from the system. Called before the first number is drawn, and in the child of a `fork`, which would
/// otherwise draw its parent's numbers.
pub(crate) fn init() {
    let key = sys::random_key();
    KEY.iter().zip(key).for_each(|(word, part)| word.store(part, Ordering::Relaxed));
}

/// 64 random bits. Some nanoseconds.
pub(crate) fn word() -> u64 {
    let [k0, k1] = [0, 1].map(|n: usize| KEY[n].load(Ordering::Relaxed));
    siphash_1_3(k0, k1, COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A random number below `n`, which is not 0.
pub(crate) fn below(n: usize) -> usize {
    ((u128::from(word()) * n as u128) >> 64) as usize
}

/// SipHash with one round for every word and three at the end, of a message of one word.
fn siphash_1_3(k0: u64, k1: u64, message: u64) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    // The last word has the length of the message in its upper byte.
    for word in [message, 8 << 56] {
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    (0..3).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::Hasher;

    /// The standard library's hasher is SipHash-1-3 with a key of zeros.
    #[test]
    fn the_hash_is_siphash() {
        for message in [0, 1, 7, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write(&message.to_le_bytes());
            assert_eq!(siphash_1_3(0, 0, message), hasher.finish());
        }
        assert_ne!(siphash_1_3(1, 0, 5), siphash_1_3(0, 0, 5));
    }

    #[test]
    fn numbers_stay_below_and_reach_everywhere() {
        init();
        let mut seen = [0; 10];
        (0..1000).for_each(|_| seen[below(10)] += 1);
        assert!(seen.iter().all(|&times| times > 40), "{seen:?}");
    }
}
