//! The heap when the system gives no more memory: null, nothing lost, and all well again afterwards.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;
use std::ptr::null_mut;
use std::sync::Barrier;

use common::block::layout;
use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, MIB, Random, on_threads, scaled};
use pcpalloc::PcpAlloc;
use pcpalloc::debug::{Level, check};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Blocks that are linked through their own first bytes, so that holding them takes no memory.
struct Chain {
    last: *mut Link,
    blocks: usize,
    bytes: usize,
}

struct Link {
    previous: *mut Link,
    size: usize,
    /// The two others mixed with the block's address: differs if the block has been written to by somebody else.
    seal: usize,
}

impl Link {
    fn seal(link: *mut Link, previous: *mut Link, size: usize) -> usize {
        link.addr().rotate_left(20) ^ previous.addr() ^ size
    }
}

// SAFETY: the blocks are memory of the chain's owner alone, whatever thread that is on.
unsafe impl Send for Chain {}

impl Chain {
    const LEAST: usize = size_of::<Link>();

    fn new() -> Chain {
        Chain { last: null_mut(), blocks: 0, bytes: 0 }
    }

    /// Takes a block of at least [`Chain::LEAST`] bytes; false if the heap gives none.
    fn take(&mut self, size: usize, zeroed: bool) -> bool {
        let layout = layout(size, 8);
        // SAFETY: the size is not 0; the block is aligned for a link and large enough.
        unsafe {
            let link = if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) }.cast::<Link>();
            if link.is_null() {
                return false;
            }
            link.write(Link { previous: self.last, size, seal: Link::seal(link, self.last, size) });
            self.last = link;
        }
        self.blocks += 1;
        self.bytes += size;
        true
    }

    fn give_back(&mut self) -> bool {
        if self.last.is_null() {
            return false;
        }
        // SAFETY: a chain's links are blocks that `take` has written and nobody else has; this one goes.
        unsafe {
            let Link { previous, size, seal } = self.last.read();
            assert_eq!(seal, Link::seal(self.last, previous, size), "a block is its owner's alone");
            HEAP.dealloc(self.last.cast(), layout(size, 8));
            self.last = previous;
            self.blocks -= 1;
            self.bytes -= size;
        }
        true
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        while self.give_back() {}
    }
}

/// Limits this process to the address space it has, and `more` bytes.
fn limit_address_space(more: usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("the kernel says how large we are");
    let pages: usize = statm.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number of pages");
    // SAFETY: sysconf has no preconditions; setrlimit reads a limit that is valid for the call.
    let done = unsafe {
        let bytes = pages * libc::sysconf(libc::_SC_PAGESIZE) as usize + more;
        libc::setrlimit(libc::RLIMIT_AS, &libc::rlimit { rlim_cur: bytes as u64, rlim_max: bytes as u64 })
    };
    assert_eq!(done, 0);
}

/// What is asked for, by a name that a child is told.
fn size(kind: &str, random: &mut Random) -> usize {
    match kind {
        "small" => Chain::LEAST + random.below(8000),
        "runs" => 33 * KIB + random.below(3 * MIB),
        "mappings" => 4 * MIB + 1 + random.below(8 * MIB),
        _ => random.size().max(Chain::LEAST),
    }
}

/// The least that is asked for.
fn least(kind: &str) -> usize {
    match kind {
        "runs" => 33 * KIB,
        "mappings" => 4 * MIB + 1,
        _ => Chain::LEAST,
    }
}

/// Takes blocks until there are no more: when one is refused then smaller ones, down to the least, since how much was
/// had before the first refusal depends on where the holes are.
fn take_all(kind: &str, seed: u64) -> Chain {
    let (mut chain, mut random) = (Chain::new(), Random::new(seed));
    let (least, mut most) = (least(kind), usize::MAX);
    loop {
        let size = size(kind, &mut random).min(most);
        if !chain.take(size, random.below(4) == 0) {
            if size == least {
                return chain;
            }
            most = (size / 2).max(least);
        }
    }
}

/// A block that cannot grow any more stays as it is; returns whether growing was refused.
fn grow_until_refused(block: &mut Block) -> bool {
    (0..40).any(|_| !block.resize(block.size() * 2))
}

fn exhaust(kind: &str) {
    // Everything that allocates on its own behalf has done so before.
    let mut small = Block::new(100, 8, 1).expect("there is memory");
    let mut run = Block::new(300 * KIB, 8, 2).expect("there is memory");
    let mut mapping = Block::new(5 * MIB, 8, 3).expect("there is memory");
    let before = HEAP.stats();
    let (mut taken, mut zones) = ([0; 2], 0);
    for round in 0..scaled(2).max(2) {
        let chain = take_all(kind, 0);
        taken[round % 2] = chain.bytes;
        zones = HEAP.stats().zones;
        if kind == "mixed" {
            let refused = [&mut small, &mut run, &mut mapping].map(grow_until_refused);
            assert_eq!(refused, [true; 3], "there is no memory left to grow into");
        }
        drop(chain);
        for (block, size) in [(&mut small, 100), (&mut run, 300 * KIB), (&mut mapping, 5 * MIB)] {
            assert!(block.resize(size), "there is memory again");
        }
        let after = HEAP.stats();
        assert!(after.in_use.abs_diff(before.in_use) < 64 * KIB, "nothing is lost:\n{before}\n{after}");
        assert_eq!(after.mappings, before.mappings);
    }
    assert!(10 * taken[1] > 9 * taken[0], "as much can be had again: {taken:?}");
    say("taken", taken[0]);
    say("zones", zones);
    say("mode", format!("{:?}", HEAP.stats().mode));
    // All of it is free: given back, it is no longer resident.
    let trimmed = HEAP.trim();
    let last = HEAP.stats();
    assert!(last.free_resident < 2 * MIB, "{trimmed:?}\n{last}");
    check(Level::Blocks).expect("everything adds up");
    let words: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
    assert_eq!(words.concat().len(), 10 + 90 * 2 + 900 * 3 + 9000 * 4);
}

const MODES: [Kernel; 2] = [Kernel::Whole, Kernel::WithoutRseq(libc::ENOSYS)];

/// With a zone of full size, and 200 MiB beyond it.
///
/// Red if running out is not an answer: in `large::alloc` (`src/large.rs`), take the address out of `None`. Red if
/// something is lost on the way: in `mapping::alloc` (`src/zone/mapping.rs`), count before mapping.
#[test]
fn until_there_is_no_more() {
    const NAME: &str = "until_there_is_no_more";
    child::body(NAME, |kind| {
        drop(Block::new(1, 1, 0));
        limit_address_space(200 * MIB);
        exhaust(kind);
    });
    for kind in ["runs", "mappings", "mixed"] {
        for kernel in if kind == "mixed" { &MODES[..] } else { &MODES[..1] } {
            let outcome = Child::new(NAME, kind).kernel(*kernel).run().succeeded();
            let least = if kind == "mappings" { 150 * MIB } else { 700 * MIB };
            assert!(outcome.number("taken") > least, "{kind}: {outcome:#?}");
        }
    }
}

/// With so little address space from the start that a zone of full size is refused.
///
/// Red if smaller zones are not tried: in `Zone::reserve` (`src/zone/reservation.rs`), give up after the first size.
#[test]
fn with_little_address_space() {
    const NAME: &str = "with_little_address_space";
    child::body(NAME, exhaust);
    for (kind, limit, least) in
        [("mixed", 200 * MIB, 100 * MIB), ("small", 300 * MIB, 120 * MIB), ("runs", 300 * MIB, 100 * MIB)]
    {
        for kernel in MODES {
            let outcome = Child::new(NAME, kind).address_space(limit).kernel(kernel).run().succeeded();
            assert!(outcome.number("taken") > least, "{kind}: {outcome:#?}");
            assert!(outcome.number("zones") > 1, "{kind}: {outcome:#?}");
        }
    }
}

/// Several threads run out at once: each gathers what the others' CPUs and its own have cached.
///
/// Red as above.
#[test]
fn by_several_threads_at_once() {
    const NAME: &str = "by_several_threads_at_once";
    const THREADS: usize = 4;
    child::body(NAME, |kind| {
        let before = HEAP.stats();
        let barrier = Barrier::new(THREADS);
        on_threads((0..THREADS).map(|seed| {
            let barrier = &barrier;
            move || {
                for round in 0..scaled(3) {
                    barrier.wait();
                    let mut chain = take_all(kind, (THREADS * round + seed) as u64);
                    // Some of it comes back while the others still ask.
                    for _ in 0..chain.blocks / 2 {
                        chain.give_back();
                    }
                    let more = take_all(kind, seed as u64);
                    drop(chain);
                    drop(more);
                }
            }
        }));
        let after = HEAP.stats();
        assert!(after.in_use.abs_diff(before.in_use) < 64 * KIB, "nothing is lost:\n{before}\n{after}");
    });
    for kernel in MODES {
        for kind in ["mixed", "runs"] {
            Child::new(NAME, kind).address_space(200 * MIB).kernel(kernel).run().succeeded();
        }
    }
}

/// What strict overcommit (`vm.overcommit_memory=2`) does to a process whose share is used up, done to this one alone: the
/// kernel refuses to make memory writable, reservations notwithstanding, and refuses nothing to programs that ask for
/// address space only.
///
/// Red if a refusal to commit is not an answer: in `sys::commit` (`src/sys/linux.rs`), return true; or if reservations
/// count: in `sys::reserve`, ask for pages that can be written to.
#[test]
fn with_strict_overcommit() {
    const NAME: &str = "with_strict_overcommit";
    child::body(NAME, exhaust);
    for (kind, limit, least) in
        [("mixed", 200 * MIB, 100 * MIB), ("small", 100 * MIB, 50 * MIB), ("runs", 200 * MIB, 100 * MIB)]
    {
        for kernel in MODES {
            let outcome = Child::new(NAME, kind).data(limit).kernel(kernel).run().succeeded();
            assert!(outcome.number("taken") > least, "{kind}: {outcome:#?}");
        }
    }
}
