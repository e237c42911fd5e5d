//! A value that readers see whole while writers replace it; no `unsafe` for either.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::default::{default_domain, reads};
use super::linked::{Linked, is_plain, retire_linked};
use super::{Heap, ReadGuard, free, read_lock};

/// A value that is read in sections and replaced as a whole.
///
/// Reading is a load. A value that was replaced is dropped after a grace period, by the reclaimer's thread, most of the time.
/// Replacing allocates a box for the new value, defers the old one's drop, and may wait, and drop other values, as
/// [`retire`](super::retire) does.
///
/// ```
/// use pcpalloc::rcu::{self, RcuCell};
///
/// let config = RcuCell::new(String::from("v1"));
/// {
///     let guard = rcu::read_lock();
///     let seen = config.read(&guard);
///     config.replace(String::from("v2"));
///     assert_eq!(seen, "v1"); // what the section has seen stays
/// }
/// assert_eq!(config.read(&rcu::read_lock()), "v2");
/// config.update(|old| format!("{old}, revised"));
/// assert_eq!(config.read(&rcu::read_lock()), "v2, revised");
/// ```
#[doc(alias = "ArcSwap")]
#[doc(alias = "rcu_dereference")]
#[doc(alias = "rcu_assign_pointer")]
pub struct RcuCell<T> {
    value: AtomicPtr<Linked<T>>,
    _owns: PhantomData<T>,
}

impl<T: Send + Sync + 'static> RcuCell<T> {
    /// A cell that holds `value`.
    pub fn new(value: T) -> Self {
        RcuCell { value: AtomicPtr::new(boxed(value)), _owns: PhantomData }
    }

    /// The value, which stays as it is for as long as the section lasts.
    #[inline]
    pub fn read<'g>(&'g self, _guard: &'g ReadGuard) -> &'g T {
        // Acquire, paired with the releases below: the value is complete.
        // SAFETY: the value was current inside the section, so it is not dropped before the section ends, and
        // the reference borrows the guard. While the cell is borrowed it is not dropped.
        unsafe { &(*self.value.load(Ordering::Acquire)).value }
    }

    /// Replaces the value; the old one is dropped when no section is left that may see it.
    #[doc(alias = "store")]
    pub fn replace(&self, value: T) {
        let new = boxed(value);
        // Release, paired with the acquire in `read`; acquire, for the old value to be dropped.
        let old = self.value.swap(new, Ordering::AcqRel);
        // SAFETY: the old value came from a box and was just unlinked, by this thread alone.
        unsafe { retire(old) };
    }

    /// Replaces the value by what `f` makes of it; `f` runs again if another writer came first. It runs inside a section,
    /// so nothing in it may wait for a grace period.
    #[doc(alias = "rcu")]
    pub fn update(&self, f: impl Fn(&T) -> T) {
        let guard = read_lock();
        let mut old = self.value.load(Ordering::Acquire);
        loop {
            // SAFETY: as in `read`.
            let new = boxed(f(unsafe { &(*old).value }));
            // The old value cannot come back while we are in a section, so equal means unchanged. Orderings
            // as in `replace`.
            match self.value.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => {
                    // SAFETY: never published.
                    drop(unsafe { Box::from_raw(new) });
                    old = now;
                }
            }
        }
        drop(guard);
        // SAFETY: as in `replace`.
        unsafe { retire(old) };
    }

    /// The value, for the cell's only owner.
    pub fn get_mut(&mut self) -> &mut T {
        // SAFETY: `&mut self`: no reader borrows the cell.
        unsafe { &mut (**self.value.get_mut()).value }
    }

    /// The value, out of the cell.
    pub fn into_inner(self) -> T {
        let mut this = core::mem::ManuallyDrop::new(self);
        // SAFETY: no reader borrows the cell, and it is not dropped.
        unsafe { Box::from_raw(*this.value.get_mut()) }.value
    }
}

impl<T> Drop for RcuCell<T> {
    fn drop(&mut self) {
        // SAFETY: no reader borrows the cell, so none sees the value.
        drop(unsafe { Box::from_raw(*self.value.get_mut()) });
    }
}

impl<T: Send + Sync + Default + 'static> Default for RcuCell<T> {
    fn default() -> Self {
        RcuCell::new(T::default())
    }
}

impl<T: Send + Sync + fmt::Debug + 'static> fmt::Debug for RcuCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RcuCell").field(self.read(&read_lock())).finish()
    }
}

fn boxed<T>(value: T) -> *mut Linked<T> {
    Box::into_raw(Box::new(Linked::new(value)))
}

/// Has a value dropped after a grace period.
///
/// # Safety
/// It came from [`boxed`], is unlinked, and nobody else drops it.
unsafe fn retire<T: Send + 'static>(value: *mut Linked<T>) {
    // SAFETY: the caller's obligation; boxes are not null. A plain value is a block of the heap of this layout.
    unsafe {
        let value = NonNull::new_unchecked(value);
        if is_plain(value) {
            free(value.cast(), Layout::new::<Linked<T>>());
        } else {
            retire_linked(default_domain(), value, 0, &Heap, reads());
        }
    }
}
