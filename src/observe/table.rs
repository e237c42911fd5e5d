//! Addresses that somebody wants to hear of again, each with a word of his: a bounded table without locks.
//!
//! An address belongs to whoever has the block, so nobody else inserts, finds or removes it meanwhile; what threads share
//! are the places of a bucket. An address lies in one of two buckets, and one that finds both full is refused.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

const PLACES: usize = 8;

/// Two lines of cache: a look at all addresses of a bucket is a look at one.
#[repr(C, align(64))]
struct Bucket {
    /// 0 for a free place, [`TAKEN`] for one that is being filled.
    addresses: [AtomicUsize; PLACES],
    words: [AtomicUsize; PLACES],
}

const TAKEN: usize = 2;
/// In an address, which is a multiple of 8: removed, but not by its word's owner.
const LEFT: usize = 1;

pub(crate) struct Table {
    buckets: NonNull<Bucket>,
    bits: u32,
}

// SAFETY: buckets are made of atomics.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    /// Bytes of memory for a table of `1 << bits` buckets, which can hold eight addresses each.
    pub(crate) const fn bytes(bits: u32) -> usize {
        size_of::<Bucket>() << bits
    }

    /// A table in memory that reads as zero.
    ///
    /// # Safety
    /// The memory has [`Table::bytes`] for these `bits`, is aligned to 64 bytes, and nobody else's for ever.
    pub(crate) const unsafe fn new(memory: NonNull<u8>, bits: u32) -> Table {
        Table { buckets: memory.cast(), bits }
    }

    /// The two places an address may be in.
    fn buckets(&self, address: usize) -> [&Bucket; 2] {
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4); blocks are 8 bytes apart at least.
        let hash = (address as u64 >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let first = (hash >> 32) as usize & ((1 << self.bits) - 1);
        let second = first ^ (((hash as usize >> 8) | 1) & ((1 << self.bits) - 1));
        // SAFETY: both are less than the number of buckets, which live for ever.
        unsafe { [self.buckets.add(first).as_ref(), self.buckets.add(second).as_ref()] }
    }

    /// Remembers an address, not there yet; false if there is no room.
    pub(crate) fn insert(&self, address: usize, word: usize) -> bool {
        for bucket in self.buckets(address) {
            for (place, found) in bucket.addresses.iter().enumerate() {
                if found.load(Ordering::Relaxed) != 0 {
                    continue;
                }
                // Acquire, paired with the release in `take`: whoever had the place has read its word.
                if found.compare_exchange(0, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    bucket.words[place].store(word, Ordering::Relaxed);
                    // Release, paired with the acquire in `each` and `find`: with the address its word is seen.
                    found.store(address, Ordering::Release);
                    return true;
                }
            }
        }
        false
    }

    fn find(&self, address: usize) -> Option<(&AtomicUsize, &AtomicUsize)> {
        self.buckets(address).into_iter().find_map(|bucket| {
            // Acquire, paired with the release in `insert`.
            let place = bucket.addresses.iter().position(|found| found.load(Ordering::Acquire) == address)?;
            Some((&bucket.addresses[place], &bucket.words[place]))
        })
    }

    /// The word of an address.
    pub(crate) fn get(&self, address: usize) -> Option<usize> {
        Some(self.find(address)?.1.load(Ordering::Relaxed))
    }

    /// Sets bits in the word of an address; what it was.
    pub(crate) fn set(&self, address: usize, bits: usize) -> Option<usize> {
        Some(self.find(address)?.1.fetch_or(bits, Ordering::Relaxed))
    }

    /// Forgets an address; its word.
    pub(crate) fn remove(&self, address: usize) -> Option<usize> {
        let (found, word) = self.find(address)?;
        Some(Self::take(found, word))
    }

    fn take(found: &AtomicUsize, word: &AtomicUsize) -> usize {
        let word = word.load(Ordering::Relaxed);
        // Release, paired with the acquire in `insert`.
        found.store(0, Ordering::Release);
        word
    }

    /// Forgets an address, whose word stays until it is taken by [`Table::sweep`].
    pub(crate) fn leave(&self, address: usize) -> bool {
        // Release, paired with the acquire in `each`.
        self.find(address).map(|(found, _)| found.store(address | LEFT, Ordering::Release)).is_some()
    }

    /// Takes the words that were left. One thread at a time.
    pub(crate) fn sweep(&self, mut each: impl FnMut(usize, usize)) {
        self.each(|found, address, word| {
            if address & LEFT != 0 {
                each(address & !LEFT, Self::take(found, word));
            }
        });
    }

    /// The words of all addresses.
    pub(crate) fn words(&self, mut each: impl FnMut(usize)) {
        self.each(|_, address, word| {
            if address & LEFT == 0 {
                each(word.load(Ordering::Relaxed));
            }
        });
    }

    /// Forgets everything; `each` is told of what was not left. Whoever has a block meanwhile may still insert or remove it.
    pub(crate) fn clear(&self, mut each: impl FnMut(usize)) {
        self.each(|found, address, _| {
            if address & LEFT == 0 {
                each(address);
            }
            // Relaxed: nobody reads the word. Fails if the owner was first.
            let _ = found.compare_exchange(address, 0, Ordering::Relaxed, Ordering::Relaxed);
        });
    }

    fn each(&self, mut each: impl FnMut(&AtomicUsize, usize, &AtomicUsize)) {
        for bucket in 0..1usize << self.bits {
            // SAFETY: less than the number of buckets.
            let bucket = unsafe { self.buckets.add(bucket).as_ref() };
            for (found, word) in bucket.addresses.iter().zip(&bucket.words) {
                // Acquire, paired with the releases in `insert` and `leave`.
                let address = found.load(Ordering::Acquire);
                if address != 0 && address != TAKEN {
                    each(found, address, word);
                }
            }
        }
    }
}
