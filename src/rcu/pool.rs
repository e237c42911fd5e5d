//! Where empty pages of pointers come from.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::BlockSource;
use super::page::{LAYOUT, PointerPage};
use crate::lock::Lock;

/// Pages that are not in use: recycled ones first, then from the source by its nolock path.
///
/// After a miss twice as many are kept, up to a cap; each quiet tick gives an eighth of the surplus back.
pub(super) struct Pool {
    spare: Lock<Spare>,
    /// Pages in use or spare. Relaxed: statistics, both.
    pub(super) pages: AtomicUsize,
    pub(super) misses: AtomicUsize,
}

struct Spare {
    first: *mut PointerPage,
    count: usize,
    target: usize,
}

// SAFETY: spare pages are nobody else's.
unsafe impl Send for Spare {}

const TARGET_MIN: usize = 4;
const TARGET_MAX: usize = 128;

impl Pool {
    pub(super) const fn new() -> Pool {
        Pool {
            spare: Lock::new(Spare { first: null_mut(), count: 0, target: TARGET_MIN }),
            pages: AtomicUsize::new(0),
            misses: AtomicUsize::new(0),
        }
    }

    /// # Safety
    /// `memory` is as [`LAYOUT`] says, and nobody else uses it.
    unsafe fn init(&self, memory: NonNull<u8>, ordinary: bool) -> NonNull<PointerPage> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's obligation.
        unsafe { PointerPage::init(memory, ordinary) }
    }

    /// An empty page, without waiting for anything.
    pub(super) fn get(&self, source: &dyn BlockSource) -> Option<NonNull<PointerPage>> {
        {
            let mut spare = self.spare.lock();
            if let Some(page) = NonNull::new(spare.first) {
                // SAFETY: spare pages are valid and nobody else's.
                spare.first = unsafe { page.as_ref().next };
                spare.count -= 1;
                return Some(page);
            }
        }
        if let Some(memory) = source.try_alloc_nolock(LAYOUT) {
            // SAFETY: the source has just given it, as it was asked for.
            return Some(unsafe { self.init(memory, false) });
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let mut spare = self.spare.lock();
        spare.target = (spare.target * 2).min(TARGET_MAX);
        None
    }

    /// An empty page from the ordinary allocation path of the heap, which may lock and map.
    pub(super) fn get_waiting(&self) -> Option<NonNull<PointerPage>> {
        // SAFETY: the layout's size is not zero, and what it gets is nobody else's.
        unsafe { NonNull::new(crate::alloc::alloc_block(LAYOUT)).map(|memory| self.init(memory, true)) }
    }

    /// Around a `fork`: the list is whole.
    pub(super) fn fork_lock(&self, acquire: bool) {
        if acquire { self.spare.acquire() } else { self.spare.release() }
    }

    /// Takes an empty page back.
    pub(super) fn put(&self, page: NonNull<PointerPage>, source: &dyn BlockSource) {
        {
            let mut spare = self.spare.lock();
            if spare.count < spare.target {
                // SAFETY: the caller gives up the page.
                unsafe { (*page.as_ptr()).next = spare.first };
                spare.first = page.as_ptr();
                spare.count += 1;
                return;
            }
        }
        self.release(page, source);
    }

    fn release(&self, page: NonNull<PointerPage>, source: &dyn BlockSource) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the page goes back to where it came from, with the layout it was asked for.
        unsafe {
            if page.as_ref().ordinary {
                crate::alloc::free_block(page.cast(), LAYOUT);
            } else {
                source.free_nolock(page.cast(), LAYOUT);
            }
        }
    }

    /// Nothing has happened for a while: keep less.
    pub(super) fn decay(&self, source: &dyn BlockSource) {
        {
            let mut spare = self.spare.lock();
            spare.target -= (spare.target - TARGET_MIN).div_ceil(8);
        }
        loop {
            let page = {
                let mut spare = self.spare.lock();
                if spare.count <= spare.target {
                    return;
                }
                let page = spare.first;
                // SAFETY: more than the target, so not empty.
                spare.first = unsafe { (*page).next };
                spare.count -= 1;
                page
            };
            if let Some(page) = NonNull::new(page) {
                self.release(page, source);
            }
        }
    }

    /// Gives every spare page back.
    pub(super) fn empty(&self, source: &dyn BlockSource) {
        let mut first = {
            let mut spare = self.spare.lock();
            spare.count = 0;
            core::mem::replace(&mut spare.first, null_mut())
        };
        while let Some(page) = NonNull::new(first) {
            // SAFETY: ours since the lock.
            first = unsafe { page.as_ref().next };
            self.release(page, source);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::alloc::Layout;

    /// Has no page, ever.
    struct Nothing;

    impl BlockSource for Nothing {
        fn try_alloc_nolock(&self, _: Layout) -> Option<NonNull<u8>> {
            None
        }

        unsafe fn free_nolock(&self, _: NonNull<u8>, _: Layout) {
            unreachable!("nothing came from here")
        }
    }

    /// What misses have had a pool keep goes by an eighth of the surplus with every quiet tick, and not at once.
    ///
    /// Red if it goes at once: in `decay`, lower the target anew for every page.
    #[test]
    fn a_reserve_decays_by_an_eighth() {
        let pool = Pool::new();
        (0..8).for_each(|_| assert!(pool.get(&Nothing).is_none()));
        let pages: Vec<_> = (0..TARGET_MAX).map(|_| pool.get_waiting().unwrap()).collect();
        pages.into_iter().for_each(|page| pool.put(page, &Nothing));
        let counts: Vec<_> = (0..40)
            .map(|_| {
                let count = pool.spare.lock().count;
                pool.decay(&Nothing);
                count
            })
            .collect();
        assert_eq!(counts[..4], [128, 112, 98, 86]);
        assert_eq!(counts[39], TARGET_MIN);
        assert_eq!(pool.pages.load(Ordering::Relaxed), TARGET_MIN);
        pool.empty(&Nothing);
    }
}
