//! The ends of slabs: their runs go back to the zones.
//!
//! Slabs that become empty are retired at once if there are enough of them (`empty.rs`), the others
//!
//! ```text
//! when a class needs a run, or a program     as many as it takes, and the zones are asked again; what lies
//! a large one, and its zones would have      apart is of no use to a large run, so each time for twice as much
//! to take cold memory:
//! once a second:                             of each class as many as it never needed since (the worker)
//! when memory is short, in a trim:           all
//! ```
//!
//! So no memory is touched for the first time while an empty slab could give it.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::Slab;
use super::central::{central, run_of};
use super::empty::{self, slab_bytes};
use super::guard;
use super::shard::{shards, shards_of};
use crate::size_class::{CLASS, CLASSES, Class};
use crate::zone::HOLES;

/// Gives slabs that have no block in use, and are in no central, back to their zones.
pub(super) fn retire(class: &Class, mut emptied: *mut Slab) {
    while !emptied.is_null() {
        // SAFETY: these slabs were taken out of their central, so they are ours alone.
        let (next, touched, holes, bytes) = unsafe {
            let slab = &*emptied;
            (slab.next, slab.touched_pages(class), slab.hole_pages(class), slab.hole_bytes(class))
        };
        if bytes > 0 {
            HOLES.fetch_sub(bytes, Ordering::Relaxed);
        }
        let (zone, page) = run_of(emptied);
        // A guard page that cannot be taken down is left where it is.
        let guards = guard::pages() > 0 && guard::lower(zone, page + class.pages as u32);
        zone.free_slab(page, class.pages as u32 + guards as u32, touched as u32, holes);
        emptied = next;
    }
}

/// Retires empty slabs of a class, as many as `wanted` says of how many there are; returns their bytes.
fn retire_some(shard: usize, class: usize, wanted: impl FnOnce(usize) -> usize) -> usize {
    let fixed = &CLASS[class];
    let (slabs, count) = central(shard, class).take_empty(fixed, wanted);
    if count > 0 {
        retire(fixed, slabs);
    }
    count * slab_bytes(fixed)
}

/// Has a node's zones get runs back from empty slabs, so many bytes or all there are; whether there were any.
#[inline]
pub(crate) fn make_room(node: usize, wanted: usize) -> bool {
    empty::bytes() > 0 && make_room_now(node, wanted)
}

#[cold]
fn make_room_now(node: usize, wanted: usize) -> bool {
    /// The class whose turn it is. Relaxed: any will do.
    static HAND: AtomicUsize = AtomicUsize::new(0);

    let hand = HAND.load(Ordering::Relaxed);
    let mut bytes = 0;
    let shards = |class| shards_of(node, class).map(move |shard| (shard, class));
    let with_any =
        (hand..CLASSES).chain(0..hand).flat_map(shards).filter(|&(shard, class)| empty::are_there(shard, class));
    for (shard, class) in with_any {
        bytes += retire_some(shard, class, |_| (wanted - bytes).div_ceil(slab_bytes(&CLASS[class])));
        if bytes >= wanted {
            HAND.store(class, Ordering::Relaxed);
            break;
        }
    }
    bytes > 0
}

/// Shards and classes that have empty slabs.
fn all_with_any() -> impl Iterator<Item = (usize, usize)> {
    let all = (0..CLASSES).flat_map(|class| shards(class).map(move |shard| (shard, class)));
    all.filter(|&(shard, class)| empty::are_there(shard, class))
}

/// Retires all empty slabs; returns their bytes.
pub(crate) fn retire_all() -> usize {
    all_with_any().map(|(shard, class)| retire_some(shard, class, |all| all)).sum()
}

/// Retires those that nobody has needed since this was last called; returns their bytes.
pub(crate) fn retire_unused() -> usize {
    let mut bytes = 0;
    // Of a class that has none the fewest were none.
    for (shard, class) in all_with_any() {
        let least = central(shard, class).take_least_empty();
        if least > 0 {
            bytes += retire_some(shard, class, |_| least);
        }
    }
    bytes
}
