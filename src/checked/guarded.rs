//! Sampled allocations, each alone on a page between pages that cannot be touched.
//!
//! ```text
//! | no access | block        | no access |        block | no access | freed, no access | no access | …
//! ```
//!
//! A block lies at the start of its page or at its end, by chance; a page that was freed is used again last of all.
//! Whatever touches what it must not ends in a signal, whose handler (`fault.rs`) says who allocated the block and who
//! freed it. (M. Morehouse and others, GWP-ASan, <https://llvm.org/docs/GwpAsan.html>; the kernel's KFENCE.)

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use super::fault::{self, Wrong};
use crate::lock::Lock;
use crate::observe::{self, Client, Rate, Role};
use crate::size_class::{PAGE, block_size, is_run_class};
use crate::slab::{class_of_tag, tag_at};
use crate::zone::META;
use crate::{random, sys};

/// Blocks that there are at most.
pub(super) const SLOTS: usize = 256;
/// Places kept of a stack.
pub(super) const FRAMES: usize = 24;

pub(super) const UNUSED: u8 = 0;
/// Handed out, or about to be.
pub(super) const LIVE: u8 = 1;
/// Freed where no lock may be taken.
const DEFERRED: u8 = 2;
/// Freed, or about to be.
pub(super) const FREED: u8 = 3;

/// What is known of a page. Relaxed where nothing else is said: the handler of a signal reads while others write, and
/// reports what it finds.
pub(super) struct Slot {
    pub(super) state: AtomicU8,
    pub(super) class: AtomicU8,
    pub(super) address: AtomicUsize,
    pub(super) allocated: Trace,
    pub(super) freed: Trace,
}

/// Where something was done, and by which thread.
pub(super) struct Trace {
    pub(super) thread: AtomicU32,
    pub(super) len: AtomicU32,
    pub(super) frames: [AtomicUsize; FRAMES],
}

impl Trace {
    fn record(&self) {
        let mut frames = [0; FRAMES];
        let len = sys::stack_trace(&mut frames);
        self.thread.store(sys::thread_id(), Ordering::Relaxed);
        frames.iter().zip(&self.frames).for_each(|(&frame, place)| place.store(frame, Ordering::Relaxed));
        self.len.store(len as u32, Ordering::Relaxed);
    }
}

/// One allocation in so many; 0 for none. Relaxed: a setting.
static ONE_IN: AtomicU32 = AtomicU32::new(0);
/// Blocks that were freed where nothing could be done about it. Relaxed: a hint.
static DEFERRALS: AtomicUsize = AtomicUsize::new(0);

/// What is told of the blocks that are due.
struct Pool;
static POOL: &dyn Client = &Pool;

impl Client for Pool {
    fn sampled(&self, block: *mut u8, size: usize, _chance: f64) -> *mut u8 {
        // By the tag, since a block of no class may be aligned to more than a page.
        let class = NonNull::new(block).and_then(tag_at).and_then(|(_, _, tag)| class_of_tag(tag));
        match class.filter(|&class| fits(class, size, sys::page_size())) {
            Some(class) => alloc(class).map_or(block, NonNull::as_ptr),
            None => block,
        }
    }

    fn freed(&self, block: *mut u8, nolock: bool) -> bool {
        let address = block as usize;
        if !owns(address) {
            return false;
        }
        if nolock {
            end_life(address, DEFERRED);
            DEFERRALS.fetch_add(1, Ordering::Relaxed);
        } else {
            let number = end_life(address, FREED);
            if let Some(slot) = slot(number) {
                slot.freed.record();
            }
            bury(number);
            settle();
        }
        true
    }

    fn owns(&self, block: *mut u8) -> bool {
        owns(block as usize)
    }
}

/// Whether a block of `size` bytes can be guarded: on one page of the system's, and in a slab otherwise. Where pages are
/// larger than runs are, a run stays a run, which is resized where it lies and read as zero without anybody asking who
/// made it.
fn fits(class: usize, size: usize, page_size: usize) -> bool {
    !is_run_class(class) && size <= page_size
}

/// Has frees on a page of the system's be told, wherever on it the block lies: notes are of the heap's pages, which may be
/// smaller.
fn note(page: *mut u8, page_size: usize) {
    (0..page_size).step_by(PAGE).for_each(|offset| observe::note(page.wrapping_add(offset)));
}

/// Samples that are let go while nobody handles bad accesses yet: Rust's runtime is about to, for stacks that overflow,
/// and would not do so after us.
const EARLY: usize = 64;

/// Start of the pool; 0 before there is one, `usize::MAX` if there can be none.
static BASE: AtomicUsize = AtomicUsize::new(0);
static TABLE: AtomicPtr<Slot> = AtomicPtr::new(null_mut());
static FREE: Lock<Free> = Lock::new(Free { early: 0, unused: 0, ring: [0; SLOTS], first: 0, len: 0 });

/// Slots that can be had: those never used, then those freed longest ago.
struct Free {
    /// Samples that were due before there was a pool.
    early: usize,
    unused: usize,
    ring: [u16; SLOTS],
    first: usize,
    len: usize,
}

impl Free {
    fn take(&mut self) -> Option<usize> {
        if self.unused < SLOTS {
            self.unused += 1;
            return Some(self.unused - 1);
        }
        if self.len == 0 {
            return None;
        }
        let slot = self.ring[self.first] as usize;
        self.first = (self.first + 1) % SLOTS;
        self.len -= 1;
        Some(slot)
    }

    fn give(&mut self, slot: usize) {
        self.ring[(self.first + self.len) % SLOTS] = slot as u16;
        self.len += 1;
    }
}

/// Has one allocation in `one_in`, which is not 0, guarded from now on.
pub(super) fn start(one_in: u32) {
    ONE_IN.store(one_in, Ordering::Relaxed);
    if observe::start(Role::Guard, &POOL, Rate::Blocks(one_in as usize)).is_err() {
        sys::report(
            b"pcpalloc: no allocation is guarded: the system has no membarrier, without which frees go unseen\n",
        );
    }
}

pub(super) fn is_as(one_in: u32) -> bool {
    ONE_IN.load(Ordering::Relaxed) == one_in
}

pub(super) fn fork_lock(acquire: bool) {
    if acquire { FREE.acquire() } else { FREE.release() }
}

fn bytes() -> usize {
    (2 * SLOTS + 1) * sys::page_size()
}

/// Whether an address lies in the pool.
#[inline]
pub(crate) fn owns(address: usize) -> bool {
    // Acquire, paired with the release in `create`: whoever has a pointer into the pool finds its table.
    let base = BASE.load(Ordering::Acquire);
    base != 0 && address.wrapping_sub(base) < bytes()
}

/// The page's number in the pool, odd for those of slots. The address lies in the pool.
pub(super) fn page_of(address: usize) -> usize {
    (address - BASE.load(Ordering::Acquire)) / sys::page_size()
}

pub(super) fn slot(number: usize) -> Option<&'static Slot> {
    // Acquire, paired with the release in `create`. SAFETY: the table has SLOTS entries, all valid when zero, and lives
    // for ever.
    let table = unsafe { TABLE.load(Ordering::Acquire).as_ref()? };
    // SAFETY: as above.
    (number < SLOTS).then(|| unsafe { &*core::ptr::from_ref(table).add(number) })
}

fn page_at(number: usize) -> NonNull<u8> {
    let address = BASE.load(Ordering::Acquire) + (2 * number + 1) * sys::page_size();
    // SAFETY: in the pool, so not null.
    unsafe { NonNull::new_unchecked(address as *mut u8) }
}

#[cold]
fn alloc(class: usize) -> Option<NonNull<u8>> {
    let number = {
        let mut free = FREE.lock();
        if BASE.load(Ordering::Relaxed) == 0 {
            free.early += 1;
            if free.early < EARLY && !sys::has_fault_handler() {
                return None;
            }
            create();
        }
        if TABLE.load(Ordering::Relaxed).is_null() {
            return None;
        }
        free.take()
    };
    let Some(number) = number else {
        // Perhaps there is one next time.
        settle();
        return None;
    };
    let (page, size) = (page_at(number), block_size(class));
    // SAFETY: the slot's page is this thread's.
    if !unsafe { sys::permit(page, sys::page_size()) } {
        FREE.lock().give(number);
        return None;
    }
    // Either end is aligned to whatever the class is: its blocks' size is a multiple of that.
    let offset = if random::word() & 1 == 0 { 0 } else { sys::page_size() - size };
    // SAFETY: inside the page.
    let block = unsafe { page.add(offset) };
    let slot = slot(number)?;
    if slot.state.load(Ordering::Relaxed) == UNUSED {
        // For ever: a block that is freed twice is this module's to report.
        note(page.as_ptr(), sys::page_size());
    }
    slot.class.store(class as u8, Ordering::Relaxed);
    slot.address.store(sys::addr(block), Ordering::Relaxed);
    slot.freed.len.store(0, Ordering::Relaxed);
    slot.allocated.record();
    // Release, paired with the acquire in `end_life`: who frees the block finds what is known of it.
    slot.state.store(LIVE, Ordering::Release);
    Some(block)
}

/// Makes the pool, or finds that there can be none. The lock of `FREE` is held.
fn create() {
    let made = sys::reserve(bytes(), sys::page_size()).zip(META.alloc(SLOTS * size_of::<Slot>(), align_of::<Slot>()));
    let Some((base, table)) = made else { return BASE.store(usize::MAX, Ordering::Relaxed) };
    fault::install();
    // Release, both, paired with the acquires in `slot` and `owns`.
    TABLE.store(table.cast().as_ptr(), Ordering::Release);
    BASE.store(sys::addr(base), Ordering::Release);
}

/// Whether there is a pool already.
#[cfg(feature = "debug")]
pub(crate) fn is_made() -> bool {
    BASE.load(Ordering::Relaxed) != 0
}

/// The class of the block at this address, if it is one of the pool's, in use or not.
#[cfg_attr(not(feature = "capi"), allow(dead_code))]
pub(crate) fn class_at(address: usize) -> Option<usize> {
    if !owns(address) {
        return None;
    }
    let slot = slot(page_of(address) / 2)?;
    (slot.state.load(Ordering::Relaxed) != UNUSED).then(|| slot.class.load(Ordering::Relaxed) as usize)
}

/// Takes a block from its owner, to be in another state; ends the process if it is none that can be freed.
fn end_life(address: usize, next: u8) -> usize {
    let page = page_of(address);
    let number = page / 2;
    let Some(slot) = slot(number).filter(|_| page % 2 == 1) else { fault::bad_free(Wrong::NotABlock, address, None) };
    if slot.address.load(Ordering::Relaxed) != address {
        fault::bad_free(Wrong::NotABlock, address, Some(slot));
    }
    // Acquire, paired with the release in `alloc`; of two frees at once one finds the state changed.
    if slot.state.compare_exchange(LIVE, next, Ordering::Acquire, Ordering::Relaxed).is_err() {
        fault::bad_free(Wrong::Twice, address, Some(slot));
    }
    number
}

/// Forbids the page of a block that has been freed, and lets it be used again, last of all.
fn bury(number: usize) {
    // SAFETY: the block has been given up, and nothing else is on its page. If the system refuses, a use after the free
    // is not found, no more.
    unsafe { sys::forbid(page_at(number), sys::page_size()) };
    FREE.lock().give(number);
}

/// Buries the blocks for which it could not be done when they were freed.
fn settle() {
    if DEFERRALS.load(Ordering::Relaxed) == 0 {
        return;
    }
    for number in 0..SLOTS {
        // Acquire: as in `end_life`.
        if slot(number).is_some_and(|slot| {
            slot.state.compare_exchange(DEFERRED, FREED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        }) {
            DEFERRALS.fetch_sub(1, Ordering::Relaxed);
            bury(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::class_of;

    #[test]
    fn what_was_freed_last_is_used_last() {
        let mut free = Free { early: 0, unused: 0, ring: [0; SLOTS], first: 0, len: 0 };
        assert!((0..SLOTS).all(|n| free.take() == Some(n)));
        assert_eq!(free.take(), None);
        for slot in [7, 3, 9] {
            free.give(slot);
        }
        assert_eq!([free.take(), free.take(), free.take(), free.take()], [Some(7), Some(3), Some(9), None]);
    }

    /// Where the system's pages are larger than the heap's, a block may lie on any of the heap's pages in one of them.
    ///
    /// Red if one of them is noted: in `note` (`src/checked/guarded.rs`), change `step_by(PAGE)` to `step_by(page_size)`.
    #[test]
    fn frees_are_told_wherever_on_a_large_page_the_block_lies() {
        const LARGE: usize = 64 << 10;
        // Nobody's memory: notes are by address.
        let page = core::ptr::without_provenance_mut::<u8>(0x1234_5670_0000);
        note(page, LARGE);
        assert!((0..LARGE).step_by(PAGE).all(|offset| observe::is_noted(page.wrapping_add(offset))));
        (0..LARGE).step_by(PAGE).for_each(|offset| observe::forget(page.wrapping_add(offset)));
    }

    /// Red if a run is guarded: in `fits` (`src/checked/guarded.rs`), change `!is_run_class(class) &&` to nothing.
    #[test]
    fn runs_are_not_guarded_on_large_pages_either() {
        let class = |size| class_of(size, 8).expect("a class serves it");
        for page_size in [4 << 10, 16 << 10, 64 << 10] {
            for size in [48, 4 << 10, 16 << 10, 32 << 10] {
                assert_eq!(fits(class(size), size, page_size), size <= page_size, "{size} of {page_size}");
            }
            assert!(!fits(class(36 << 10), 36 << 10, page_size), "a run of {page_size}");
        }
    }
}
