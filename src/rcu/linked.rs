//! Values that are dropped after a grace period.

use core::alloc::Layout;
use core::ptr::NonNull;

use super::core::Core;
use super::{BlockSource, RcuHead};
use crate::size_class::class_of;
use crate::slab::is_place_of;

/// A value with room for what its deferred drop has to note, so that deferring it allocates nothing.
#[repr(C)]
pub(super) struct Linked<T> {
    head: RcuHead,
    pub(super) value: T,
}

impl<T> Linked<T> {
    pub(super) fn new(value: T) -> Linked<T> {
        Linked { head: RcuHead::new(), value }
    }
}

/// Whether what a box pointed to needs no more than to be freed: a value without a destructor, in a block of this heap of
/// just the class that is asked for a value of its layout.
///
/// Boxes come from the global allocator, which may be another, or put something in front of each, or behind. What no class
/// serves has a call made for it, which is a note as a deferred free of such a block has, too.
#[inline]
pub(super) fn is_plain<T>(value: NonNull<T>) -> bool {
    !core::mem::needs_drop::<T>()
        && class_of(size_of::<T>(), align_of::<T>()).is_some_and(|class| is_place_of(value.cast(), class))
        && crate::alloc::boxes_are_exact()
}

/// As [`super::retire`], on any domain.
pub(super) fn retire_on<T: Send + 'static>(core: &Core, value: Box<T>, source: &dyn BlockSource, reads: bool) {
    let value = NonNull::from(Box::leak(value));
    if is_plain(value) {
        // SAFETY: a block of the heap that nobody else frees, unlinked as the caller says.
        unsafe { core.free_slow(value.cast(), Layout::new::<T>(), source, reads) }
    } else {
        // SAFETY: leaked just now.
        retire_box(core, unsafe { Box::from_raw(value.as_ptr()) }, source, reads);
    }
}

/// Has a box dropped after a grace period, by a call.
pub(super) fn retire_box<T: Send + 'static>(core: &Core, value: Box<T>, source: &dyn BlockSource, reads: bool) {
    if size_of::<T>() == 0 && !core::mem::needs_drop::<T>() {
        return;
    }
    let linked = NonNull::from(Box::leak(Box::new(Linked::new(value))));
    // SAFETY: leaked just now, and nobody else knows it.
    unsafe { retire_linked(core, linked, size_of::<T>(), source, reads) };
}

/// Has a value dropped after a grace period, by a call that frees `more` bytes besides the value's own box.
///
/// # Safety
/// `value` came from a box, is unlinked, and nobody else drops it.
pub(super) unsafe fn retire_linked<T: Send + 'static>(
    core: &Core,
    value: NonNull<Linked<T>>,
    more: usize,
    source: &dyn BlockSource,
    reads: bool,
) {
    // SAFETY: the head is the first field of what came from a box, and the call is made once, when no reader is
    // left. A destructor that panics does not keep the box from being freed.
    let call = |head: NonNull<RcuHead>| drop(unsafe { Box::from_raw(head.cast::<Linked<T>>().as_ptr()) });
    // SAFETY: nobody else uses the head; `T: Send` may be dropped by another thread.
    unsafe { core.call(value.cast(), call, size_of::<Linked<T>>() + more, source, reads) };
}
