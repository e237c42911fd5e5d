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

/// Classes that have empty slabs in a shard.
fn classes_with(shard: usize) -> impl Iterator<Item = usize> {
    (0..CLASSES).filter(move |&class| empty::are_there(shard, class))
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
    let all = || shards_of(node).flat_map(|shard| classes_with(shard).map(move |class| (shard, class)));
    let from_hand = all().filter(|&(_, class)| class >= hand);
    for (shard, class) in from_hand.chain(all().filter(|&(_, class)| class < hand)) {
        bytes += retire_some(shard, class, |_| (wanted - bytes).div_ceil(slab_bytes(&CLASS[class])));
        if bytes >= wanted {
            HAND.store(class, Ordering::Relaxed);
            break;
        }
    }
    bytes > 0
}

/// Retires all empty slabs; returns their bytes.
pub(crate) fn retire_all() -> usize {
    shards().flat_map(|shard| classes_with(shard).map(move |class| retire_some(shard, class, |all| all))).sum()
}

/// Retires those that nobody has needed since this was last called; returns their bytes.
pub(crate) fn retire_unused() -> usize {
    let mut bytes = 0;
    for shard in shards() {
        // Of a class that has none the fewest were none.
        for class in classes_with(shard) {
            let least = central(shard, class).take_least_empty();
            if least > 0 {
                bytes += retire_some(shard, class, |_| least);
            }
        }
    }
    bytes
}
