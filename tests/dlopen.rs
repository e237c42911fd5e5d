//! Two copies of the allocator in one process: the program's, and that of a shared library that comes and goes.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::sync::Barrier;

use common::child::{self, Child};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, MIB, PAGE, on_threads, scaled, workload};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// The library that `cargo test` and `cargo build --examples` make of `examples/plugin.rs`, beside this program.
fn path() -> PathBuf {
    let program = std::env::current_exe().expect("the program knows its path");
    let path = program.ancestors().nth(2).expect("programs lie in target/…/deps").join("examples/libplugin.so");
    assert!(path.exists(), "{} is there; `cargo build --examples` makes it", path.display());
    path
}

/// What the library's work comes to.
const SUM: u64 = 499_500;

/// A library that has been loaded.
struct Plugin {
    handle: *mut c_void,
    work: extern "C" fn(u64) -> u64,
    work_in_threads: extern "C" fn(u64) -> u64,
    remember: extern "C" fn(u64),
    in_use: extern "C" fn() -> usize,
}

impl Plugin {
    fn open() -> Plugin {
        let path = CString::new(path().into_os_string().into_encoded_bytes()).expect("a path has no zeros");
        // SAFETY: the path is a C string, and the library's constructors do nothing to this program. The functions
        // are those of `examples/plugin.rs`, of these types; they are called while the library is loaded.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            let find = |name: &CStr| {
                let function = libc::dlsym(handle, name.as_ptr());
                assert!(!function.is_null(), "{name:?} is there");
                function
            };
            Plugin {
                handle,
                work: std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> u64>(find(c"plugin_work")),
                work_in_threads: std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> u64>(find(
                    c"plugin_work_in_threads",
                )),
                remember: std::mem::transmute::<*mut c_void, extern "C" fn(u64)>(find(c"plugin_remember")),
                in_use: std::mem::transmute::<*mut c_void, extern "C" fn() -> usize>(find(c"plugin_in_use")),
            }
        }
    }

    /// Closes the library and has the kernel look at this thread before it runs a section of the program's own: one
    /// of the library's was the last.
    fn close(self) {
        // SAFETY: the handle is `dlopen`'s and goes with this value, and so do the functions.
        unsafe {
            assert_eq!(libc::dlclose(self.handle), 0);
            libc::usleep(1000);
        }
    }
}

/// Bytes of address space that this process has.
fn address_space() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the kernel says how large we are");
    let pages: usize = statm.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number of pages");
    pages * PAGE
}

/// Red if a library that is closed takes along what the kernel or a thread still wants of it: in `heap::bring_up`
/// (`src/heap.rs`), do not call `sys::stay_loaded`.
#[test]
fn a_library_comes_and_goes() {
    const NAME: &str = "a_library_comes_and_goes";
    child::body(NAME, |_| {
        let mut after_first = 0;
        for round in 0..scaled(8) as u64 {
            let mine: Vec<Block> = (1..300).map(|n| Block::new(n * 40, 8, round).expect("there is memory")).collect();
            let plugin = Plugin::open();
            assert_eq!((plugin.work)(round), SUM);
            let (work, remember) = (plugin.work, plugin.remember);
            let (used, closed) = (Barrier::new(3), Barrier::new(3));
            std::thread::scope(|scope| {
                // A thread that has used the library, and one that has also left something there, when it is closed.
                for leaves_something in [false, true] {
                    let (used, closed) = (&used, &closed);
                    scope.spawn(move || {
                        assert_eq!(work(round), SUM);
                        if leaves_something {
                            remember(round);
                        }
                        used.wait();
                        closed.wait();
                    });
                }
                used.wait();
                plugin.close();
                closed.wait();
            });
            drop(mine);
            if round == 0 {
                after_first = address_space();
            }
        }
        assert!(address_space() < after_first + 64 * MIB, "a library that comes again takes no more");
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// Both copies work at once, in threads of both, and know nothing of each other.
///
/// Red if they share what each must have for itself: in `src/percpu/x86_64.rs`, leave out `.hidden` and have the
/// sections find `__pcpalloc_0_1_rseq_delta` through the global offset table.
#[test]
fn two_heaps_in_one_process() {
    const NAME: &str = "two_heaps_in_one_process";
    child::body(NAME, |_| {
        let plugin = Plugin::open();
        assert_eq!((plugin.work)(1), SUM);
        let (mine, its) = (HEAP.stats().in_use, (plugin.in_use)());
        let in_library = plugin.work_in_threads;
        on_threads([0, 1, 2].map(|number| {
            move || match number {
                0 => workload::run(),
                _ => (0..scaled(4) as u64).for_each(|round| assert_eq!(in_library(3 + round), SUM)),
            }
        }));
        // Strings of this thread, some 32 bytes each.
        (0..1000).for_each(|seed| (plugin.remember)(seed));
        let (mine_now, its_now) = (HEAP.stats().in_use, (plugin.in_use)());
        assert!(mine_now < mine + 64 * KIB, "the program holds what it held: {mine}, {mine_now}");
        assert!(its_now > its + 200 * KIB && its_now < its + MIB, "the library holds the strings: {its}, {its_now}");
        plugin.close();
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}
