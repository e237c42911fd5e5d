//! Two copies of the allocator in one process: the program's, and that of a shared library that comes and goes.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::sync::Barrier;

use common::child::{self, Child};
use common::kernel::{self, Kernel};
use common::{Block, HEAP, KIB, MIB, PAGE, on_threads, scaled, workload};
use pcpalloc::{Mode, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// The library that `cargo test` and `cargo build --examples` make of `examples/plugin.rs`, beside this program.
/// (`cargo test --test dlopen` does not make it anew.)
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
    mode: extern "C" fn() -> u32,
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
                mode: std::mem::transmute::<*mut c_void, extern "C" fn() -> u32>(find(c"plugin_mode")),
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

/// Mappings of the library that this process has.
fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel says what is mapped");
    maps.lines().filter(|line| line.ends_with("/libplugin.so")).count()
}

/// What stays of a library that is closed: itself, once, with its heap, its destructors for threads and its handlers for
/// `fork`, which then still runs.
///
/// Red if a library that is closed takes along what the kernel or a thread still wants of it: in `heap::bring_up`
/// (`src/heap.rs`), do not call `sys::stay_loaded`. With feature `capi`, in `malloc_is_in` (`src/sys/c_library.rs`), say yes.
#[test]
fn a_library_comes_and_goes() {
    const NAME: &str = "a_library_comes_and_goes";
    child::body(NAME, |_| {
        let mut after_first = (0, 0);
        for round in 0..scaled(8) as u64 {
            let mine: Vec<Block> = (1..300).map(|n| Block::new(n * 40, 8, round).expect("there is memory")).collect();
            let plugin = Plugin::open();
            assert_eq!((plugin.work)(round), SUM);
            let (work, remember) = (plugin.work, plugin.remember);
            let (used, closed) = (Barrier::new(3), Barrier::new(3));
            std::thread::scope(|scope| {
                // Threads that have used the library when it is closed. Now and then one has something to drop there
                // when it ends; the C library itself sees to it that it can.
                for leaves_something in [false, round % 3 == 2] {
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
            // Its handlers are called.
            let status = child::in_a_fork(|| drop(Block::new(5000, 8, round)));
            assert_eq!(status, 0);
            if round == 0 {
                after_first = (address_space(), mappings());
            }
        }
        assert_eq!(after_first.1, mappings(), "it is there once, however often it came");
        assert!(mappings() > 0);
        assert!(address_space() < after_first.0 + 64 * MIB, "a library that comes again takes no more");
    });
    for kernel in Kernel::MODES {
        // One arena, for it is our address space that counts: each of the C library's takes 64 MiB, and threads that come
        // to it late one more.
        Child::new(NAME, "").kernel(kernel).environment("MALLOC_ARENA_MAX", "1").run().succeeded();
    }
}

/// Both copies work at once, in threads of both, and know nothing of each other. They share the C library's rseq area;
/// where there is none, the first to come has its own registered, and the second does without.
///
/// Red if the second takes the area of the first for its own: in `sys::register_rseq` (`src/sys/rseq.rs`), take
/// `EINVAL` for a success.
#[test]
fn two_heaps_in_one_process() {
    const NAME: &str = "two_heaps_in_one_process";
    child::body(NAME, |_| {
        let plugin = Plugin::open();
        assert_eq!((plugin.work)(1), SUM);
        let its_mode = if kernel::libc_has_registered() { Mode::LibcRseq } else { Mode::PerThread };
        assert_eq!((plugin.mode)(), its_mode as u32);
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
