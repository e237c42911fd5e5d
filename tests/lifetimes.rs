//! The heap at the edges of a thread's and of the process's life, in every mode.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::child::{self, Child};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, MIB, on_threads};
use pcpalloc::{Drain, PcpAlloc, Stats};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Blocks of several classes and runs, and for every tenth seed a mapping; compared when they are dropped.
fn some_of_everything(seed: u64) -> Vec<Block> {
    let sizes = [1, 8, 24, 100, 1000, 5000, 30 * KIB, 100 * KIB, 300 * KIB];
    let mapping = seed.is_multiple_of(10).then_some(5 * MIB);
    sizes.into_iter().chain(mapping).map(|size| Block::new(size, 8, seed).expect("there is memory")).collect()
}

/// Takes, compares and frees blocks.
fn exercise(seed: u64) {
    let first = some_of_everything(seed);
    let second = some_of_everything(seed + 1);
    drop(first);
    drop(second);
}

/// Starts a child for this test in every mode.
fn in_every_mode(test: &str, check: impl Fn(&child::Outcome)) {
    for kernel in Kernel::MODES {
        check(&Child::new(test, "").kernel(kernel).run().succeeded());
    }
}

/// Writes a line without the standard library, whose buffers may be gone.
fn write_line(line: &str) {
    // SAFETY: the bytes are valid for the call.
    let written = unsafe { libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len()) };
    assert_eq!(written, line.len() as isize);
}

// ---- before main

/// What the static constructor took, and how the heap stood then.
static BEFORE_MAIN: Mutex<Option<(Vec<Block>, Stats)>> = Mutex::new(None);

extern "C" fn before_main() {
    let blocks = some_of_everything(40);
    exercise(50);
    let stats = HEAP.stats();
    *BEFORE_MAIN.lock().unwrap() = Some((blocks, stats));
}

// SAFETY: the section holds addresses of functions that the loader calls before `main`, on a running thread with the
// C library ready; that is what this is.
#[unsafe(link_section = ".init_array")]
#[used]
static CONSTRUCTOR: extern "C" fn() = before_main;

/// Red if the first request does not bring the heap up: in `alloc_class_slow` and `alloc_large` (`src/alloc.rs`), do
/// not call `heap::ensure_up`.
#[test]
fn blocks_taken_before_main_are_kept() {
    const NAME: &str = "blocks_taken_before_main_are_kept";
    child::body(NAME, |number| {
        let (blocks, then) = BEFORE_MAIN.lock().unwrap().take().expect("the constructor has run");
        assert!(then.in_use >= 5 * MIB, "the constructor's blocks are accounted for: {then}");
        assert_eq!((then.mode, then.mappings), (HEAP.stats().mode, 1), "{then}");
        Kernel::MODES[number.parse::<usize>().unwrap()].assert_mode();
        blocks.iter().for_each(Block::check);
        drop(blocks);
        let now = HEAP.stats();
        assert!(now.in_use < MIB && now.mappings == 0, "{now}");
    });
    for (number, kernel) in Kernel::MODES.into_iter().enumerate() {
        Child::new(NAME, &number.to_string()).kernel(kernel).run().succeeded();
    }
}

// ---- when threads end

/// How many destructors have run to their end.
static RUN: AtomicUsize = AtomicUsize::new(0);

/// Holds blocks, and when its thread ends frees them and exercises the heap.
struct Keeper(Vec<Block>, u64);

impl Keeper {
    fn new(seed: u64) -> Keeper {
        Keeper(some_of_everything(seed), seed)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.clear();
        exercise(self.1);
        RUN.fetch_add(1, Ordering::Relaxed);
    }
}

/// When its thread ends, touches a thread-local value for the first time, which then has a destructor of its own to
/// run.
struct Late;

impl Drop for Late {
    fn drop(&mut self) {
        AFTERWARDS.with_borrow_mut(|keeper| *keeper = Some(Keeper::new(70)));
        RUN.fetch_add(1, Ordering::Relaxed);
    }
}

thread_local! {
    static EARLY: RefCell<Option<Keeper>> = const { RefCell::new(None) };
    static AFTERWARDS: RefCell<Option<Keeper>> = const { RefCell::new(None) };
    static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
}

/// A pthread key whose destructor frees the value, exercises the heap, and asks to be called again twice, each time
/// with a new block.
struct Key(libc::pthread_key_t);

struct Value {
    key: libc::pthread_key_t,
    rounds_left: u32,
    keeper: Keeper,
}

impl Key {
    fn new() -> Key {
        let mut key = 0;
        // SAFETY: `key` is valid for the write, and the destructor takes what `set` stores.
        assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(destroy)) }, 0);
        Key(key)
    }

    fn set(&self) {
        store(Box::new(Value { key: self.0, rounds_left: 2, keeper: Keeper::new(90) }));
    }
}

fn store(value: Box<Value>) {
    let key = value.key;
    // SAFETY: the key is one that `Key::new` made, and no key is ever deleted.
    assert_eq!(unsafe { libc::pthread_setspecific(key, Box::into_raw(value).cast::<c_void>()) }, 0);
}

extern "C" fn destroy(value: *mut c_void) {
    // SAFETY: `store` made the pointer from a box, and the key no longer holds it.
    let value = unsafe { Box::from_raw(value.cast::<Value>()) };
    let (key, rounds_left) = (value.key, value.rounds_left);
    drop(value.keeper);
    if rounds_left > 0 {
        let keeper = Keeper::new(100 + rounds_left as u64);
        store(Box::new(Value { key, rounds_left: rounds_left - 1, keeper }));
    }
}

/// Destructors of the language and of the C library, before and after those of the heap itself, that take and free
/// blocks; threads that follow, which get what the ended ones left.
///
/// Red if an ending thread goes on with stacks that it has given up: in `thread_exit` (`src/percpu/thread.rs`), leave
/// `REGION` as it is.
#[test]
fn destructors_of_threads() {
    const NAME: &str = "destructors_of_threads";
    // Three thread-local values, `Late` one of them, and the key's value three times over.
    const DESTRUCTORS: usize = 6;
    child::body(NAME, |_| {
        let keys = [Key::new(), Key::new()];
        let wave = |threads: u64| {
            let before = RUN.load(Ordering::Relaxed);
            on_threads((0..threads).map(|number| {
                let key = keys[number as usize % 2].0;
                move || {
                    // Some threads use the heap first and some arm the destructors first.
                    if number.is_multiple_of(3) {
                        exercise(number);
                    }
                    LATE.set(Some(Late));
                    Key(key).set();
                    EARLY.set(Some(Keeper::new(number)));
                    exercise(number);
                }
            }));
            assert_eq!(RUN.load(Ordering::Relaxed) - before, threads as usize * DESTRUCTORS);
        };
        exercise(1);
        HEAP.drain(Drain::All);
        let start = HEAP.stats();
        (0..common::scaled(4)).for_each(|_| wave(16));
        HEAP.drain(Drain::All);
        let end = HEAP.stats();
        assert!(end.in_use < start.in_use + 64 * KIB, "threads leave nothing behind:\n{start}\n{end}");
        // In per-thread mode the test harness's thread has what it had.
        assert!(end.percpu_cached <= start.percpu_cached, "nor in stacks:\n{start}\n{end}");
    });
    in_every_mode(NAME, |_| ());
}

// ---- when the process ends

extern "C" fn at_exit() {
    exercise(200);
    let words: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    write_line(&format!("\nat exit: {}\n", words.concat().len()));
}

extern "C" fn after_main() {
    // Runs in every process of this program; only those that have a use for it look for the line.
    exercise(300);
    if std::env::args().any(|argument| argument == "process_exit") {
        write_line("after main: done\n");
    }
}

// SAFETY: the section holds addresses of functions that the loader calls when the process exits, on the thread that
// exits it; that is what this is.
#[unsafe(link_section = ".fini_array")]
#[used]
static DESTRUCTOR: extern "C" fn() = after_main;

/// Red if the heap is taken down before its users: in `heap::bring_up` (`src/heap.rs`), have `atexit` call a function
/// that unmaps the zones.
#[test]
fn process_exit() {
    const NAME: &str = "process_exit";
    child::body(NAME, |_| {
        // SAFETY: the function takes no argument and lives as long as the program.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        // The main thread's own values are dropped on the way out or not at all; a thread that runs on meanwhile
        // keeps the heap busy.
        EARLY.set(Some(Keeper::new(5)));
        std::thread::spawn(|| {
            loop {
                exercise(7);
            }
        });
        exercise(6);
    });
    in_every_mode(NAME, |outcome| {
        assert_eq!(outcome.number("at exit"), 10 + 90 * 2);
        assert_eq!(outcome.value("after main"), "done");
    });
}
