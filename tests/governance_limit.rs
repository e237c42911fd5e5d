//! At a limit the program gets null and goes on; what it frees can be had again, and given back.

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::memory::{anonymous, vmstat};
use common::{HEAP, KIB, MIB, child};
use pcpalloc::{PcpAlloc, rcu};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const ROOM: usize = 64 * MIB;

/// Blocks of the heap, freed when this is dropped.
struct Blocks {
    layout: Layout,
    blocks: Vec<*mut u8>,
}

// SAFETY: the blocks are plain memory, and this is the only handle on them.
unsafe impl Send for Blocks {}

impl Blocks {
    /// None yet; the list of them is resident in full.
    fn room_for(size: usize, bytes: usize) -> Blocks {
        let mut blocks = vec![std::ptr::dangling_mut(); bytes / size];
        blocks.clear();
        Blocks { layout: Layout::from_size_align(size, 8).unwrap(), blocks }
    }

    fn all(size: usize, bytes: usize) -> Blocks {
        let mut blocks = Self::room_for(size, bytes);
        blocks.take_all();
        blocks
    }

    /// As many as there are to be had, but no more than there is room for; each is written in full.
    fn take_all(&mut self) {
        while self.blocks.len() < self.blocks.capacity() {
            // SAFETY: the size is not zero, and the block is as large as it.
            unsafe {
                let block = HEAP.alloc(self.layout);
                if block.is_null() {
                    break;
                }
                block.write_bytes(1, self.layout.size());
                self.blocks.push(block);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.blocks.len() * self.layout.size()
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for block in self.blocks.drain(..) {
            // SAFETY: it came from the heap with this layout, and goes here.
            unsafe { HEAP.dealloc(block, self.layout) }
        }
    }
}

/// Has so many threads ask for 512 MiB under a limit that leaves 64, and free them; returns how many bytes they had
/// together, and how much more was resident. The limit stays.
///
/// Nothing but the threads' own blocks is allocated at the limit: what `std` needs to start a thread, for one, ends the
/// program if it is not to be had.
fn at_the_limit(size: usize, threads: usize) -> (usize, usize) {
    let step = Barrier::new(threads + 1);
    let had = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // A list of its own, made before the limit is set.
                let mut blocks = Blocks::room_for(size, 512 * MIB / threads);
                step.wait();
                step.wait();
                blocks.take_all();
                had.fetch_add(blocks.bytes(), Ordering::Relaxed);
                step.wait();
                step.wait();
                drop(blocks);
            });
        }
        step.wait();
        HEAP.trim();
        let before = anonymous();
        HEAP.set_limit(Some(HEAP.stats().resident + ROOM)).unwrap();
        step.wait();
        step.wait();
        let grown = anonymous() - before;
        step.wait();
        (had.load(Ordering::Relaxed), grown)
    })
}

/// What `trim` says it gave back is what the kernel got. A turn in which the worker gave something back, too, says
/// nothing, so there are five.
fn trim_tells_the_truth(size: usize) {
    let mut last = String::new();
    let agreed = (0..5).any(|_| {
        drop(Blocks::all(size, 32 * MIB));
        let (counted, before) = (HEAP.stats().released, anonymous());
        let said = HEAP.trim().released;
        let seen = before.saturating_sub(anonymous());
        let counted = HEAP.stats().released - counted;
        last = format!("trim says {} KiB, all {}, the kernel {}", said / KIB, counted / KIB, seen / KIB);
        // What the allocator's own tables give back, a 64th, is not counted.
        said == counted && said.abs_diff(seen) < MIB + seen / 32
    });
    assert!(agreed, "{size} bytes: {last}");
}

/// 512 MiB are asked for under a limit that leaves 64: by one thread and by four, in small blocks and in large ones.
///
/// Positive control: have `Marks::admits` in `src/zone/marks.rs` return true, and all 512 MiB are had.
#[test]
fn a_limit_holds_and_what_is_freed_is_had_again() {
    const NAME: &str = "a_limit_holds_and_what_is_freed_is_had_again";
    child::body(NAME, |_| {
        for (size, threads) in [(500, 1), (4 * KIB, 4), (100 * KIB, 4), (3 * MIB, 1), (8 * MIB, 1), (300, 4)] {
            let (had, grown) = at_the_limit(size, threads);
            println!("\n{size} bytes, {threads} threads: {} KiB had, {} KiB resident", had / KIB, grown / KIB);
            assert!(grown < ROOM + 2 * MIB, "{size} bytes: {} KiB resident", grown / KIB);
            assert!((40 * MIB..66 * MIB).contains(&had), "{size} bytes: {} KiB had", had / KIB);
            // At once, and as much as before, or nearly.
            let again = Blocks::all(size, 32 * MIB);
            assert!(again.bytes() > 31 * MIB - size, "{size} bytes: {} KiB had again", again.bytes() / KIB);
            drop(again);
            trim_tells_the_truth(size);
            HEAP.set_limit(None).unwrap();
        }
        child::say("stalls", vmstat("allocstall"));
    });
    // With huge pages more is resident than was touched, which neither the limit nor the report can know.
    let outcome = child::Child::new(NAME, "").settings("thp:never").run().succeeded();
    outcome.stdout.lines().filter(|line| line.contains(" had, ")).for_each(|line| println!("{line}"));
    assert!(outcome.number("stalls") > 0, "the limit was met: {outcome:?}");
}

/// Near the limit the worker has grace periods expedited, drains and gives back: a program that defers frees while it
/// sits at its limit gets null for milliseconds, not until somebody takes care of it.
///
/// Positive control: have `relieve` in `src/control/pressure.rs` return at once; the free memory stays.
#[test]
fn near_the_limit_memory_is_given_back() {
    const NAME: &str = "near_the_limit_memory_is_given_back";
    child::body(NAME, |_| {
        let layout = Layout::from_size_align(64 * KIB, 8).unwrap();
        // Kept by the marks, whoever used it last.
        let keep = pcpalloc::Watermarks { min: 0, low: 48 * MIB, high: 96 * MIB };
        let pinned = Blocks::all(64 * KIB, 64 * MIB);
        drop(Blocks::all(64 * KIB, 64 * MIB));
        HEAP.set_watermarks(keep).unwrap();
        std::thread::sleep(Duration::from_millis(2500));
        let kept = HEAP.stats().free_resident;
        assert!(kept > 40 * MIB, "{} KiB are kept without a limit", kept / KIB);
        for _ in 0..100 {
            // SAFETY: a block of the heap, which nobody else uses.
            unsafe { rcu::free(std::ptr::NonNull::new(HEAP.alloc(layout)).unwrap(), layout) };
        }
        // Above what is resident, so that it is not reached, by less than a sixteenth.
        HEAP.set_limit(Some(HEAP.stats().resident + 5 * MIB)).unwrap();
        let began = Instant::now();
        while HEAP.stats().free_resident > 8 * MIB {
            assert!(began.elapsed() < Duration::from_secs(30), "near the limit: {}", HEAP.stats());
            std::thread::sleep(Duration::from_millis(50));
        }
        child::say("ms", began.elapsed().as_millis());
        drop(pinned);
    });
    let outcome = child::Child::new(NAME, "").run().succeeded();
    println!("given back after {} ms", outcome.number("ms"));
}

/// A large block grows by what is free elsewhere, though there is no room for a second one beside it: by `realloc`, by a
/// collection's allocator, zeroed, and, with feature `capi`, by C's `realloc`; at the limit, and where address space is short.
///
/// Red if the block is not looked at again when what was cached has gone back: in `realloc_slow` (`src/alloc.rs`), in
/// `grow_zeroed` (`src/allocator.rs`) and in `resize_slow` (`src/capi/mod.rs`), return null where there is no second block.
#[test]
fn a_block_grows_where_there_is_no_room_for_two() {
    use allocator_api2::alloc::Allocator;
    use std::ptr::NonNull;
    const NAME: &str = "a_block_grows_where_there_is_no_room_for_two";
    child::body(NAME, |case| {
        let (what, by) = case.split_once(' ').unwrap();
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        let (old, new) = (layout(48 * MIB), layout(80 * MIB));
        // SAFETY: no size is 0; blocks are written within their size; the old block is not used after it has grown.
        unsafe {
            let block = match by {
                "C" => libc::malloc(old.size()).cast(),
                _ => HEAP.alloc(old),
            };
            let block = NonNull::new(block).expect("there is memory");
            block.write_bytes(7, old.size());
            if what == "limit" {
                drop(Blocks::all(MIB, 40 * MIB));
                assert!(HEAP.stats().free_resident > 38 * MIB, "{}", HEAP.stats());
                HEAP.set_limit(Some(HEAP.stats().resident + 8 * MIB)).unwrap();
            } else {
                drop(Blocks::all(40 * MIB, 40 * MIB));
                let mapped = std::fs::read_to_string("/proc/self/statm").unwrap();
                let mapped = mapped.split(' ').next().unwrap().parse::<usize>().unwrap() * 4 * KIB;
                let limit = libc::rlimit { rlim_cur: (mapped + 8 * MIB) as u64, rlim_max: libc::RLIM_INFINITY };
                assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &limit), 0);
            }
            let grown = match by {
                "zeroed" => {
                    HEAP.grow_zeroed(block, old, new).map_or(std::ptr::null_mut(), |grown| grown.as_ptr().cast())
                }
                "C" => libc::realloc(block.as_ptr().cast(), new.size()).cast::<u8>(),
                _ => HEAP.realloc(block.as_ptr(), old, new.size()),
            };
            assert!(!grown.is_null(), "{case}: {}", HEAP.stats());
            assert!((0..old.size()).step_by(KIB).all(|at| grown.add(at).read() == 7), "{case}: what it held is there");
            assert!(by != "zeroed" || (old.size()..new.size()).step_by(KIB).all(|at| grown.add(at).read() == 0));
        }
    });
    for what in ["limit", "space"] {
        for by in ["realloc", "zeroed", "C"] {
            if by != "C" || cfg!(feature = "capi") {
                child::Child::new(NAME, &format!("{what} {by}")).settings("worker:off,high:512m").run().succeeded();
            }
        }
    }
}
