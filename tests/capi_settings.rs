//! Settings that come after the heap: C asks for memory before a static of the program can say what it wants.

#![cfg(all(feature = "capi", not(any(loom, pcpalloc_twin, miri))))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::time::Duration;

use common::child::{self, Child};
use common::memory::{resident, resident_below};
use common::{HEAP, KIB, MIB};
use pcpalloc::{Config, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();
static LATE: PcpAlloc = PcpAlloc::with_config(Config::new().limit(8 << 30));
static WITHOUT_WORKER: PcpAlloc = PcpAlloc::with_config(Config::new().worker(false));

fn burst() {
    drop((0..20_000).map(|_| vec![1u8; 2000]).collect::<Vec<_>>());
}

fn workers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted").map(|task| task.unwrap().path());
    tasks.filter(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "pcpalloc\n")).count()
}

fn ask(heap: &PcpAlloc) {
    let layout = Layout::from_size_align(300 * KIB, 8).unwrap();
    // SAFETY: the size is not 0, and the block is freed once.
    unsafe {
        let block = heap.alloc(layout);
        assert!(!block.is_null(), "there is memory");
        heap.dealloc(block, layout);
    }
}

/// A worker that is there when settings come goes on giving memory back; one that is not wanted then goes.
///
/// Red if it is taken for absent: in `set_wanted` (`src/zone/bell.rs`), store `NOBODY` where one is wanted; or if it stays:
/// in `run` (`src/control/worker.rs`), do not ask whether it is unwanted.
#[test]
fn a_worker_outlives_settings_that_come_late() {
    const NAME: &str = "a_worker_outlives_settings_that_come_late";
    child::body(NAME, |argument| {
        // A program of one thread has no worker.
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        (0..20).for_each(|_| burst());
        let (_, bytes) = resident_below(16 * MIB);
        assert!(bytes < 16 * MIB, "{bytes} bytes are resident before; {}", HEAP.stats());
        // Until it sleeps.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(workers(), 1);
        if argument == "late" {
            ask(&LATE);
            assert_eq!(HEAP.limit(), Some(8 << 30));
            (0..20).for_each(|_| burst());
            assert!(resident() > 20 * MIB, "what was freed just now is still there");
            let (_, bytes) = resident_below(16 * MIB);
            assert!(bytes < 16 * MIB, "{bytes} bytes are resident; {}", HEAP.stats());
        } else {
            ask(&WITHOUT_WORKER);
            let began = std::time::Instant::now();
            while workers() > 0 && began.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(workers(), 0);
            (0..20).for_each(|_| burst());
            assert_eq!(workers(), 0);
        }
        drop(stop);
        let _ = thread.join().expect("it waits");
    });
    for argument in ["late", "without"] {
        Child::new(NAME, argument).run().succeeded();
    }
}

/// What is wrong with the environment is said once, though it is read once more when settings come.
///
/// Red if `replace_default` (`src/heap.rs`) reads it as if for the first time. (What contradicts a static's marks alone is
/// news, and red if it is held back.)
#[test]
fn what_is_wrong_is_said_once() {
    const NAME: &str = "what_is_wrong_is_said_once";
    static MARKED: PcpAlloc =
        PcpAlloc::with_config(Config::new().watermarks(pcpalloc::Watermarks { min: 0, low: MIB, high: 2 * MIB }));
    child::body(NAME, |_| ask(&MARKED));
    let outcome = Child::new(NAME, "").settings("limit:lots,low:4m").run().succeeded();
    assert_eq!(outcome.stderr.matches("\"limit:lots\" is left out").count(), 1, "{outcome:#?}");
    assert_eq!(outcome.stderr.matches("\"low:4m\" is left out").count(), 1, "{outcome:#?}");
}
