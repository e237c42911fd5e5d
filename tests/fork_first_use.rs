//! Processes made by `fork` while another thread uses the heap for the first time: it is no global allocator here, so
//! that happens when the program has several threads.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::{Block, HEAP};

/// Forks while another thread brings the heap up.
const FORKS: usize = 30;
/// Seconds after which such a process is taken to hang.
const PATIENCE: u32 = 20;

/// Takes and frees some blocks; whether the heap is up, with stacks that have something.
fn use_heap() -> bool {
    drop((1..60).map(|n| Block::new(n * n, 8, n as u64).expect("there is memory")).collect::<Vec<_>>());
    HEAP.stats().percpu_cached > 0
}

/// Runs `f` in a process of its own, without waiting for it; that ends with 0 if `f` answers yes.
fn forked(f: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the new process runs `f`, and leaves by `_exit` without touching anything of the threads it lacks.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                libc::alarm(PATIENCE);
                libc::_exit(if f() { 0 } else { 1 })
            }
            process => process,
        }
    }
}

fn waited_for(process: libc::pid_t) -> libc::c_int {
    let mut status = -1;
    // SAFETY: `status` is valid for the write.
    while unsafe { libc::waitpid(process, &mut status, 0) } != process {}
    status
}

/// A process made in the middle of that finds the heap up, or not begun; either way it can use it, and so can processes of
/// its own.
///
/// Red if handlers come after the heap: in `bring_up` (`src/heap.rs`), call `register_for_fork` when the heap is up. Red
/// if they do not wait: in `before_fork` (`src/heap.rs`), return at once while the heap is not up.
#[test]
fn forks_while_the_heap_comes_up() {
    const NAME: &str = "forks_while_the_heap_comes_up";
    child::body(NAME, |_| {
        let go = &AtomicBool::new(false);
        let processes: Vec<_> = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    while !go.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    use_heap();
                });
            }
            go.store(true, Ordering::Release);
            let in_each = || use_heap() && waited_for(forked(use_heap)) == 0;
            (0..FORKS).map(|_| forked(in_each)).collect()
        });
        say("ended", processes.into_iter().filter(|&process| waited_for(process) == 0).count());
        assert!(use_heap());
    });
    for kernel in Kernel::MODES.into_iter().chain([Kernel::Whole; 5]) {
        let outcome = Child::new(NAME, "").kernel(kernel).run().succeeded();
        assert_eq!(outcome.number("ended"), FORKS, "processes had a heap and came to their end");
    }
}
