//! What the test programs share.
//!
//! Every test program has [`pcpalloc::PcpAlloc`] as its global allocator, so whatever it does is served by the heap
//! under test; [`Block`] calls the heap directly besides, to ask for layouts that collections never ask for.
//!
//! `PCPALLOC_TEST_SCALE` multiplies the number of rounds (1 unless set; fractions are allowed).

// Every program uses a part of this.
#![allow(dead_code)]

pub mod block;
pub mod cgroup;
pub mod child;
pub mod kernel;
pub mod memory;
pub mod model;
pub mod namespace;
pub mod workload;

pub use block::Block;

use std::sync::LazyLock;

use pcpalloc::PcpAlloc;

/// A handle on the heap, the same heap that the program's global allocator speaks of.
pub static HEAP: PcpAlloc = PcpAlloc::new();

pub const KIB: usize = 1 << 10;
pub const MIB: usize = 1 << 20;
pub const PAGE: usize = 4096;

static SCALE: LazyLock<f64> = LazyLock::new(|| match std::env::var("PCPALLOC_TEST_SCALE") {
    Ok(text) => text.parse().expect("PCPALLOC_TEST_SCALE is a number"),
    Err(_) => 1.0,
});

/// `rounds` times `PCPALLOC_TEST_SCALE`, at least 1.
pub fn scaled(rounds: usize) -> usize {
    ((rounds as f64 * *SCALE) as usize).max(1)
}

/// Pseudo-random numbers: SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    /// A size from 1 byte to 6 MiB, mostly small: as programs ask, and over every layer of the heap.
    pub fn size(&mut self) -> usize {
        let most = match self.below(100) {
            0..60 => 128,
            60..85 => 4 * KIB,
            85..95 => 64 * KIB,
            95..99 => 512 * KIB,
            _ => 6 * MIB,
        };
        1 + self.below(most)
    }

    /// An alignment from 1 byte to 64 KiB, mostly small.
    pub fn align(&mut self) -> usize {
        1 << if self.below(8) == 0 { self.below(17) } else { self.below(5) }
    }
}

/// Runs each function on a thread of its own, and returns when all threads have ended, their destructors included.
pub fn on_threads<F: FnOnce() + Send>(functions: impl IntoIterator<Item = F>) {
    std::thread::scope(|scope| {
        let threads: Vec<_> = functions.into_iter().map(|f| scope.spawn(f)).collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        results.into_iter().for_each(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
}

/// Runs `f` on a thread that runs on `cpu` only, and returns what it returns.
pub fn on_cpu<R: Send>(cpu: usize, f: impl FnOnce() -> R + Send) -> R {
    let mut result = None;
    on_threads([|| {
        assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "CPU {cpu} can be had");
        result = Some(f());
    }]);
    result.expect("the function has returned")
}

/// The CPUs this process may use, at least one.
pub fn cpus() -> Vec<usize> {
    let cpus: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    assert!(!cpus.is_empty(), "the system says which CPUs there are");
    cpus
}

/// Has the kernel move a thread of this process, given by its number, to `cpu`; at once, if it is running elsewhere.
pub fn move_thread(thread: libc::pid_t, cpu: usize) {
    // SAFETY: a set of CPUs is an array of words, valid when zero; `cpu`, a number the system gave, lies in it. The
    // call reads the set. It fails for a thread that has ended, which is then where it should be.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// The kernel's number of the calling thread.
pub fn thread_number() -> libc::pid_t {
    // SAFETY: gettid has no preconditions.
    unsafe { libc::gettid() }
}
