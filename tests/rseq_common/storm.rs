//! Threads that make life hard for others: move them from CPU to CPU, interrupt them, fence them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::super::common::{Random, cpus, move_thread, thread_number};

/// Threads that a storm is over, and what it did to them.
#[derive(Default)]
pub struct Storm {
    threads: Mutex<Vec<libc::pid_t>>,
    done: AtomicBool,
    pub moves: AtomicUsize,
    pub signals: AtomicUsize,
    pub fences: AtomicUsize,
}

/// Ends a thread's part in a storm.
pub struct Exposed<'a>(&'a Storm);

impl Drop for Exposed<'_> {
    fn drop(&mut self) {
        let thread = thread_number();
        self.0.threads.lock().unwrap().retain(|other| *other != thread);
    }
}

impl Storm {
    /// Exposes the calling thread.
    pub fn expose(&self) -> Exposed<'_> {
        self.threads.lock().unwrap().push(thread_number());
        Exposed(self)
    }

    pub fn is_over(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Calls `f` with some exposed thread, who does not end meanwhile, until the storm is over.
    ///
    /// Whoever wakes up interrupts somebody, wherever that is: so one sleeps often, for as short as can be.
    fn each(&self, seed: u64, mut f: impl FnMut(libc::pid_t, &mut Random)) {
        let mut random = Random::new(seed);
        // SAFETY: no memory is involved.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        while !self.is_over() {
            {
                let threads = self.threads.lock().unwrap();
                if !threads.is_empty() {
                    f(threads[random.below(threads.len())], &mut random);
                }
            }
            std::thread::sleep(std::time::Duration::from_micros(random.below(30) as u64));
        }
    }

    /// Moves threads about.
    pub fn moves(&self, seed: u64) {
        let cpus = cpus();
        self.each(seed, |thread, random| {
            move_thread(thread, cpus[random.below(cpus.len())]);
            self.moves.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Sends them a signal.
    pub fn signals(&self, seed: u64, signal: libc::c_int) {
        self.each(seed, |thread, _| {
            // SAFETY: no memory is involved.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
            self.signals.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Aborts whatever section is running, on all CPUs.
    pub fn fences(&self, seed: u64) {
        const PRIVATE_EXPEDITED_RSEQ: libc::c_int = 1 << 7;
        self.each(seed, |_, _| {
            // SAFETY: no memory is involved. Where it is refused, there are no fences.
            unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED_RSEQ, 0, 0) };
            self.fences.fetch_add(1, Ordering::Relaxed);
        });
    }
}
