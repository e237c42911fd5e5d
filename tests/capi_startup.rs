//! A C library that allocates while the heap is being brought up.

#![cfg(all(feature = "capi", target_env = "gnu", not(any(loom, pcpalloc_twin))))]

mod capi_common;
mod common;

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use capi_common::{c, exercise};
use common::child::{self, Child, in_a_fork};
use common::kernel::Kernel;
use common::{HEAP, on_threads};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// `dlsym` as it is for a name that is not there: what it says of that is a block. glibc before 2.35 is asked for names
/// that it does not have.
///
/// # Safety
/// As for `dlsym`.
#[unsafe(no_mangle)]
unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let blocks = [c::malloc(100), c::calloc(10, 1000), c::memalign(64, 5000), c::malloc(300_000), c::malloc(5 << 20)];
    // SAFETY: the caller's obligation; every glibc for this architecture has this version of the other name.
    let found = unsafe { libc::dlvsym(handle, name, c"GLIBC_2.2.5".as_ptr()) };
    // SAFETY: as above: those that came later.
    let found = if found.is_null() { unsafe { libc::dlvsym(handle, name, c"GLIBC_2.35".as_ptr()) } } else { found };
    // SAFETY: as above.
    let found = if found.is_null() { unsafe { libc::dlvsym(handle, name, c"GLIBC_2.32".as_ptr()) } } else { found };
    for block in blocks {
        assert!(!block.is_null());
        c::free(c::realloc(block, 700));
    }
    found
}

static REGISTRATIONS: AtomicUsize = AtomicUsize::new(0);

type Handler = Option<unsafe extern "C" fn()>;

unsafe extern "C" {
    fn __register_atfork(prepare: Handler, parent: Handler, child: Handler, library: *mut c_void) -> c_int;
}

/// `pthread_atfork` as it is when there are many handlers already: their table is a block.
///
/// # Safety
/// As for `pthread_atfork`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int {
    REGISTRATIONS.fetch_add(1, Ordering::Relaxed);
    let block = c::malloc(1000);
    assert!(!block.is_null());
    c::free(block);
    // SAFETY: the caller's obligation; the handlers are those of a program, which is not unloaded.
    unsafe { __register_atfork(prepare, parent, child, std::ptr::null_mut()) }
}

/// Hangs if a thread that brings the heap up waits for itself: in `heap::bring_up` (`src/heap.rs`), do not compare
/// `BRINGER`. Ends by a signal if what is allocated in the course of a registration for `fork` makes for another one: in
/// `register_for_fork` (`src/heap.rs`), change `if found == process` to `if false`.
#[test]
fn the_heap_comes_up_though_it_is_used_meanwhile() {
    const NAME: &str = "the_heap_comes_up_though_it_is_used_meanwhile";
    child::body(NAME, |kernel| {
        assert!(CALLS.load(Ordering::Relaxed) >= 2, "it was asked for names");
        assert_eq!(REGISTRATIONS.load(Ordering::Relaxed), 1, "handlers for a fork are there once");
        on_threads([1, 2].map(|seed| move || exercise(seed, 500)));
        assert_eq!(in_a_fork(|| exercise(3, 500)), 0);
        let mode = HEAP.stats().mode;
        assert_eq!(format!("{mode:?}"), kernel);
    });
    for (kernel, mode) in [
        (Kernel::Whole, "LibcRseq"),
        (Kernel::LibcWithoutRseq, "OwnRseq"),
        (Kernel::WithoutRseq(libc::ENOSYS), "PerThread"),
    ] {
        // On another architecture, and without rseq in the C library, there are fewer modes.
        if common::kernel::libc_has_registered() {
            Child::new(NAME, mode).kernel(kernel).run().succeeded();
        }
    }
}
