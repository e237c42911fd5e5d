//! C's functions before `main` and after it, while threads end, and around `fork`.

#![cfg(all(feature = "capi", not(any(loom, pcpalloc_twin))))]

mod capi_common;
mod common;

use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

use capi_common::{CBlock, c, exercise};
use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::{HEAP, KIB, MIB, on_threads, scaled};
use pcpalloc::{Config, PcpAlloc};

/// Settings that come after C has brought the heap up: see [`settings_of_the_static_come_after_c`].
#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().limit(LIMIT));

const LIMIT: usize = 3 << 30;

static EARLY: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

/// Runs before `main`, and before Rust's runtime.
extern "C" fn constructor() {
    let block = c::malloc(1000);
    // SAFETY: the block is that large.
    unsafe { block.cast::<u8>().write_bytes(0xe4, 1000) };
    EARLY.store(block, Ordering::Relaxed);
    c::free(c::realloc(c::calloc(3, 3000), 90_000));
}

/// Runs after `main`, in `exit`.
extern "C" fn destructor() {
    let block = c::realloc(EARLY.load(Ordering::Relaxed), 2000);
    // SAFETY: it was that large before.
    let kept = unsafe { std::slice::from_raw_parts(block.cast::<u8>(), 1000) }.iter().all(|&byte| byte == 0xe4);
    c::free(block);
    c::free(c::malloc(6 * MIB));
    let said: &[u8] = if kept { b"destructor: kept\n" } else { b"destructor: lost\n" };
    // SAFETY: the buffer is valid.
    unsafe { libc::write(libc::STDOUT_FILENO, said.as_ptr().cast(), said.len()) };
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;
#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;

/// Red if `realloc` copies nothing: in `resize_slow` (`src/capi/mod.rs`).
#[test]
fn constructors_and_destructors_have_a_heap() {
    const NAME: &str = "constructors_and_destructors_have_a_heap";
    child::body(NAME, |_| {
        assert!(!EARLY.load(Ordering::Relaxed).is_null(), "the constructor ran");
        extern "C" fn at_exit() {
            let block = c::malloc(300);
            assert!(!block.is_null());
            c::free(block);
            destructor_says(b"at exit: ran\n");
        }
        // SAFETY: the function takes no argument.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    });
    for kernel in Kernel::MODES {
        let outcome = Child::new(NAME, "").kernel(kernel).run().succeeded();
        assert_eq!((outcome.value("at exit"), outcome.value("destructor")), ("ran", "kept"), "{kernel:?}");
    }
}

fn destructor_says(line: &[u8]) {
    // SAFETY: the buffer is valid.
    unsafe { libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Red if `heap::replace_default` (`src/heap.rs`) puts nothing in force.
#[test]
fn settings_of_the_static_come_after_c() {
    const NAME: &str = "settings_of_the_static_come_after_c";
    child::body(NAME, |_| say("limit", HEAP.limit().expect("there is a limit")));
    assert_eq!(HEAP.limit(), Some(LIMIT), "the constructor asked for memory first, without settings");
    assert_eq!(Child::new(NAME, "").settings("limit:1g").run().succeeded().number("limit"), 1 << 30);
}

/// As glibc's `tst-malloc-thread-exit`: threads allocate in the destructors of their keys, in every round of these.
///
/// Red if a block that no stack has room for is lost: in `release_slow` (`src/capi/mod.rs`), do nothing.
#[test]
fn threads_end_in_destructors_that_allocate() {
    const NAME: &str = "threads_end_in_destructors_that_allocate";
    const KEYS: usize = 40;
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    static LAST_KEY: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn at_end(value: *mut c_void) {
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        exercise(value.addr() as u64, 10);
        c::free(value);
        let last = LAST_KEY.load(Ordering::Relaxed) as u32;
        // Once more, in the next round.
        // SAFETY: the key exists for ever.
        unsafe {
            if libc::pthread_getspecific(last).is_null() {
                libc::pthread_setspecific(last, c::malloc(100));
            }
        }
    }
    child::body(NAME, |_| {
        // More keys than the C library has room for in a thread without allocating.
        for _ in 0..KEYS {
            let mut key = 0;
            // SAFETY: `key` is valid for the write, and the destructor takes a block.
            assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(at_end)) }, 0);
            LAST_KEY.store(key as usize, Ordering::Relaxed);
        }
        let round = || {
            on_threads((0..4).map(|seed| {
                move || {
                    exercise(seed, 200);
                    for key in 0..KEYS {
                        let key = LAST_KEY.load(Ordering::Relaxed) - key;
                        // SAFETY: the key exists for ever.
                        assert_eq!(unsafe { libc::pthread_setspecific(key as u32, c::malloc(50 + key)) }, 0);
                    }
                }
            }));
        };
        round();
        let before = HEAP.stats().in_use;
        let rounds = scaled(20);
        (0..rounds).for_each(|_| round());
        // The C library gives up on destructors after four rounds, and then a block is lost for each thread.
        let lost = HEAP.stats().in_use.saturating_sub(before);
        assert!(lost <= rounds * 4 * 112 + 64 * KIB, "{lost}");
        assert!(ROUNDS.load(Ordering::Relaxed) >= rounds * 4 * KEYS);
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// Runs `f` in a process made by `fork`, and returns how that ended.
fn in_a_fork(f: impl FnOnce()) -> c_int {
    // SAFETY: the new process runs `f`, which uses the heap, as POSIX has it of no function and glibc of malloc, and
    // leaves without a look at what the parent was doing; `status` is valid for the write.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                libc::alarm(60);
                f();
                libc::_exit(0)
            }
            process => {
                let mut status = -1;
                while libc::waitpid(process, &mut status, 0) != process {}
                status
            }
        }
    }
}

/// As glibc's `tst-malloc-fork-deadlock`: processes are made while other threads allocate and use streams.
///
/// Red if a lock of the heap is not held across `fork`: in `heap::fork_locks` (`src/heap.rs`), leave the nodes
/// out.
#[test]
fn processes_are_made_while_threads_allocate() {
    const NAME: &str = "processes_are_made_while_threads_allocate";
    child::body(NAME, |_| {
        let done = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            for seed in 0..3 {
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        exercise(seed, 50);
                        // SAFETY: a stream without a file, closed at once.
                        unsafe { libc::fclose(libc::fopen(c"/dev/null".as_ptr(), c"r".as_ptr())) };
                    }
                });
            }
            for round in 0..scaled(60) as u64 {
                let inherited = CBlock::adopt(c::malloc(5000), 5000, 1, round);
                let status = in_a_fork(|| {
                    inherited.check();
                    exercise(round, 300);
                    c::free(inherited.start());
                    c::malloc_trim(0);
                    assert_eq!(in_a_fork(|| exercise(round + 1, 100)), 0, "a process of a process");
                });
                assert_eq!(status, 0, "round {round}: how it ended, as waitpid says");
                inherited.free();
            }
            done.store(true, Ordering::Relaxed);
        });
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}

/// A thread that is born and dies at once, many times, is nothing to the heap: what the C library allocates for it is
/// freed, by others and under the C library's own locks.
///
/// Red as the test before last.
#[test]
fn many_short_threads() {
    const NAME: &str = "many_short_threads";
    child::body(NAME, |_| {
        extern "C" fn body(_: *mut c_void) -> *mut c_void {
            c::malloc(40)
        }
        let round = || {
            for _ in 0..scaled(300) {
                let threads: Vec<libc::pthread_t> = (0..3)
                    .map(|_| {
                        let mut thread = 0;
                        // SAFETY: `thread` is valid for the write; the body takes nothing.
                        assert_eq!(unsafe { libc::pthread_create(&mut thread, null(), body, null_mut()) }, 0);
                        thread
                    })
                    .collect();
                for thread in threads {
                    let mut block = null_mut();
                    // SAFETY: a thread to wait for, once.
                    assert_eq!(unsafe { libc::pthread_join(thread, &mut block) }, 0);
                    c::free(block);
                }
            }
        };
        round();
        let before = HEAP.stats().in_use;
        round();
        std::thread::sleep(Duration::from_millis(5));
        let after = HEAP.stats().in_use;
        assert!(after < before + 16 * KIB, "{before}, {after}");
    });
    for kernel in Kernel::MODES {
        Child::new(NAME, "").kernel(kernel).run().succeeded();
    }
}
