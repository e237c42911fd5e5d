//! Empty slabs: those of which no block is in use stay with their class for a while.
//!
//! A program that frees much and allocates as much again finds its slabs as they were: the zone has not merged their runs
//! and split them for others, no header and bitmap is made anew, and blocks come from where they came from before. (The
//! kernel's SLUB keeps `min_partial` slabs of each cache for that.) What lies in them counts as free, and `retire.rs` gives
//! it to whoever has a use for it.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering};

use super::Slab;
use super::shard::SHARDS;
use crate::size_class::{CLASSES, Class, PAGE};
use crate::zone::{BELL, MARKS, SPARE};

/// Most bytes of empty slabs.
const MAX: usize = 16 << 20;

/// Bytes of all empty slabs.
pub(crate) fn bytes() -> usize {
    SPARE.load(Ordering::Relaxed)
}

/// Which classes have empty slabs, by shard, a bit each: so that whoever wants one takes the lock of no class that has none.
///
/// A bit is written with the lock of the class's slabs held, when the first comes or the last goes. Relaxed throughout:
/// what is decided by it is decided again with the lock held.
static THERE: [There; SHARDS] = [const { There([const { AtomicU64::new(0) }; CLASSES.div_ceil(64)]) }; SHARDS];

/// Aligned so that two shards share no cache line.
#[repr(align(64))]
struct There([AtomicU64; CLASSES.div_ceil(64)]);

/// Notes that a class has empty slabs in a shard, or that it has none.
pub(super) fn note_there(shard: usize, class: usize, there: bool) {
    let word = &THERE[shard].0[class / 64];
    let bit = 1 << (class % 64);
    if there {
        word.fetch_or(bit, Ordering::Relaxed);
    } else {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Whether a class has empty slabs in a shard.
pub(super) fn are_there(shard: usize, class: usize) -> bool {
    THERE[shard].0[class / 64].load(Ordering::Relaxed) >> (class % 64) & 1 == 1
}

/// The bytes of a slab.
pub(super) fn slab_bytes(class: &Class) -> usize {
    class.pages as usize * PAGE
}

/// Whether one more may be kept. A high mark that is set leaves them a quarter of what it allows.
pub(super) fn admits(class: &Class) -> bool {
    // Relaxed: a setting.
    let most = match MARKS.high.load(Ordering::Relaxed) {
        0 => MAX,
        high => MAX.min(high / 4),
    };
    bytes() + slab_bytes(class) <= most
}

/// One more is kept.
pub(super) fn note(class: &Class) {
    SPARE.fetch_add(slab_bytes(class), Ordering::Relaxed);
}

/// So many fewer are.
pub(super) fn forget(class: &Class, slabs: usize) {
    SPARE.fetch_sub(slabs * slab_bytes(class), Ordering::Relaxed);
}

/// Calls the worker when there is enough for it to do. Half of what it takes otherwise: the zones may have the other half.
#[inline]
pub(super) fn ring() {
    BELL.freed(2 * bytes());
}

/// A list of slabs by their `next`, of which only one end is used. Whoever has the list alone refers to the slabs on it, as
/// [`Chain::push`] demands.
pub(super) struct Chain {
    first: *mut Slab,
    len: usize,
    /// The shortest it has been since that was last asked.
    least: usize,
}

impl Chain {
    pub(super) const fn new() -> Chain {
        Chain { first: null_mut(), len: 0, least: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The shortest it has been since this was last asked.
    pub(super) fn take_least(&mut self) -> usize {
        core::mem::replace(&mut self.least, self.len)
    }

    /// # Safety
    /// `slab` is a slab, in no list, that nobody refers to until it is off this one.
    pub(super) unsafe fn push(&mut self, slab: *mut Slab) {
        // SAFETY: the caller's obligation.
        unsafe { (*slab).next = self.first };
        self.first = slab;
        self.len += 1;
    }

    /// The slab that came last.
    pub(super) fn pop(&mut self) -> *mut Slab {
        let slab = self.first;
        // SAFETY: null, or a slab on the list, to which by the contract of `push` nobody else refers.
        if let Some(this) = unsafe { slab.as_ref() } {
            self.first = this.next;
            self.len -= 1;
            self.least = self.least.min(self.len);
        }
        slab
    }

    /// Cuts off what lies behind the `kept` that came last: the first of those, chained by `next`.
    pub(super) fn split_off(&mut self, kept: usize) -> *mut Slab {
        if kept >= self.len {
            return null_mut();
        }
        let mut link: *mut *mut Slab = &mut self.first;
        for _ in 0..kept {
            // SAFETY: the link is that of one of the first `kept` slabs, and the list has more, so it is not null; nobody
            // else refers to the slab, by the contract of `push`.
            link = unsafe { &raw mut (**link).next };
        }
        self.len = kept;
        self.least = self.least.min(kept);
        // SAFETY: the link is the list's head, which is borrowed for writing, or lies in a slab that nobody else refers to.
        unsafe { link.replace(null_mut()) }
    }

    /// All slabs of the list.
    #[cfg(feature = "debug")]
    pub(super) fn iter(&self) -> impl Iterator<Item = *mut Slab> {
        let following = |slab: *mut Slab| (!slab.is_null()).then_some(slab);
        // SAFETY: as in `pop`; the list is borrowed for as long as the iterator is there.
        core::iter::successors(following(self.first), move |&slab| following(unsafe { (*slab).next }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::CLASS;
    use crate::slab::bitmap::Backing;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a vector.
        ///
        /// Red if `pop` forgets `least`, or `split_off` walks one link less.
        #[test]
        fn a_chain_is_a_vector(steps in prop::collection::vec((0..4, 0usize..12), 1..100)) {
            let class = &CLASS[20];
            let mut memory: Vec<Vec<u64>> = (0..64).map(|_| vec![0; class.pages as usize * 8]).collect();
            let mut spare: Vec<*mut Slab> = memory.iter_mut().map(|words| words.as_mut_ptr().cast::<Slab>()).collect();
            let (mut chain, mut expected, mut least) = (Chain::new(), Vec::new(), 0);
            for (step, n) in steps {
                match step {
                    0 | 1 => {
                        let Some(slab) = spare.pop() else { continue };
                        // SAFETY: 64 bytes for every page hold the header and the bitmap, and `spare` has given it away.
                        unsafe {
                            Slab::init(slab, class, Backing::Warm);
                            chain.push(slab);
                        }
                        expected.push(slab);
                    }
                    2 => {
                        let slab = chain.pop();
                        prop_assert_eq!(slab, expected.pop().unwrap_or(null_mut()));
                        spare.extend((!slab.is_null()).then_some(slab));
                    }
                    _ => {
                        let mut cut = chain.split_off(n);
                        let behind: Vec<_> = expected.drain(..expected.len().saturating_sub(n)).collect();
                        for &slab in behind.iter().rev() {
                            prop_assert_eq!(cut, slab);
                            // SAFETY: one of ours.
                            cut = unsafe { (*slab).next };
                        }
                        prop_assert!(cut.is_null());
                        spare.extend(behind);
                    }
                }
                least = least.min(expected.len());
                prop_assert_eq!(chain.len(), expected.len());
                if n == 7 {
                    prop_assert_eq!(chain.take_least(), least);
                    least = expected.len();
                }
            }
        }
    }
}
