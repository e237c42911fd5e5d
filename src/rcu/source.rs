//! Where pages of pointers come from.

use core::alloc::Layout;
use core::ptr::NonNull;
use std::sync::Arc;

use crate::{PcpAlloc, nolock};

/// Where pages of pointers come from: the hook by which a deferred free gets its memory without waiting.
///
/// When it has none, a domain takes a page by the ordinary path (unless [`BlockSource::may_allocate`] forbids
/// it), and at last waits for a grace period to free a single block.
///
/// The domain writes to what it gets. An implementation must hand out memory that is valid for the layout and
/// that nobody else uses until it comes back, exactly as a global allocator must. It is trusted with that as one is: what
/// comes of an implementation that hands out anything else is undefined behaviour, although its author need not have written
/// `unsafe` anywhere.
///
/// A source outlives every borrow (`'static`): the domain's reclaimer is a thread that gives pages back after the domain itself
/// was dropped. So a source borrows from statics only; what is to be shared goes into an [`Arc`], which is a source if what is
/// in it is.
///
/// ```
/// use pcpalloc::mempool::Pool;
/// use pcpalloc::rcu::{BlockSource, Domain};
/// use std::alloc::Layout;
/// use std::ptr::NonNull;
///
/// /// A domain's own reserve of pages: its frees never go to the system for memory.
/// struct Reserve(Pool);
///
/// impl BlockSource for Reserve {
///     fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
///         let fits = layout.size() <= self.0.layout().size() && layout.align() <= self.0.layout().align();
///         if fits { self.0.alloc() } else { None }
///     }
///
///     unsafe fn free_nolock(&self, ptr: NonNull<u8>, _: Layout) {
///         // SAFETY: from `try_alloc_nolock`, hence from the pool.
///         unsafe { self.0.free(ptr) }
///     }
///
///     fn may_allocate(&self) -> bool {
///         false
///     }
/// }
///
/// let pool = Pool::new(Layout::from_size_align(4096, 4096).unwrap(), 16)?;
/// let domain = Domain::new(Reserve(pool));
/// domain.retire(Box::new([0u8; 100]));
/// domain.barrier();
/// # Ok::<(), pcpalloc::AllocError>(())
/// ```
pub trait BlockSource: Send + Sync + 'static {
    /// Memory, if it is to be had without a lock, a system call or a wait.
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// Takes memory back.
    ///
    /// # Safety
    /// `ptr` came from [`BlockSource::try_alloc_nolock`] with this layout and is not used any more.
    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout);

    /// Whether a page may also come from the ordinary allocation path, which may lock and map memory.
    fn may_allocate(&self) -> bool {
        true
    }
}

/// The heap's own nolock path: where the default domain's pages come from, and most others' should.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl BlockSource for Heap {
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        nolock::alloc(layout)
    }

    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { nolock::free(ptr, layout) }
    }
}

/// As [`Heap`]: a handle is on the same.
impl BlockSource for PcpAlloc {
    fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
        nolock::alloc(layout)
    }

    unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's obligation.
        unsafe { nolock::free(ptr, layout) }
    }
}

/// A pointer to a source is that source.
macro_rules! by_pointer {
    ($($pointer:ty),*) => {$(
        impl<S: BlockSource + ?Sized> BlockSource for $pointer {
            fn try_alloc_nolock(&self, layout: Layout) -> Option<NonNull<u8>> {
                (**self).try_alloc_nolock(layout)
            }

            unsafe fn free_nolock(&self, ptr: NonNull<u8>, layout: Layout) {
                // SAFETY: the caller's obligation, and it came from the same source.
                unsafe { (**self).free_nolock(ptr, layout) }
            }

            fn may_allocate(&self) -> bool {
                (**self).may_allocate()
            }
        }
    )*};
}

by_pointer!(&'static S, Arc<S>, Box<S>);
