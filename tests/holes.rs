//! Pages that lie free between blocks in use go back to the system, and come again where they are needed.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::memory::{self, anonymous, resident};
use common::{HEAP, KIB, MIB, PAGE, Random, child};
use pcpalloc::PcpAlloc;
use pcpalloc::debug::{Level, check};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const SIZES: [usize; 5] = [64, 200, 1000, 3000, 9000];

fn block(size: usize, number: usize) -> Box<[u8]> {
    let mut block = vec![number as u8; size].into_boxed_slice();
    block[size - 1] = (number >> 8) as u8;
    block
}

fn is_whole(block: &[u8], number: usize) -> bool {
    let (last, rest) = block.split_last().expect("a byte at least");
    rest.iter().all(|byte| *byte == number as u8) && *last == (number >> 8) as u8
}

/// 24 MiB of each size; returns those that stay: 2 KiB or one object in 20 KiB, so that hardly a slab is empty and most
/// of its pages are.
fn fragment() -> Vec<(usize, Box<[u8]>)> {
    let mut stay = Vec::new();
    for size in SIZES {
        let objects: Vec<Box<[u8]>> = (0..24 * MIB / size).map(|number| block(size, number)).collect();
        let cluster = (2 * KIB / size).max(1);
        let kept = objects.into_iter().enumerate().filter(|(number, _)| (number / cluster).is_multiple_of(10));
        stay.extend(kept);
    }
    stay
}

/// The pages that an object lies in.
fn pages_of(object: &[u8]) -> std::ops::RangeInclusive<usize> {
    let range = object.as_ptr_range();
    range.start as usize / PAGE..=(range.end as usize - 1) / PAGE
}

fn assert_whole(objects: &[(usize, Box<[u8]>)]) {
    for (number, object) in objects {
        assert!(is_whole(object, *number), "object {number} of {} bytes has changed", object.len());
    }
}

/// The heap's own figures against the kernel's: once nothing is being given back, which is in one of them before it is in the other.
fn assert_figures_agree() {
    let start = Instant::now();
    loop {
        let (ours, kernel) = (HEAP.stats().resident, anonymous());
        // Stacks of threads and the C library's own data are in the kernel's figure alone.
        if ours.abs_diff(kernel) < kernel / 50 + MIB {
            return;
        }
        let (ours, kernel) = (ours / KIB, kernel / KIB);
        assert!(start.elapsed() < Duration::from_secs(2), "{ours} KiB by the heap, {kernel} KiB by the kernel");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Positive control: have `punch` in `src/slab/holes.rs` return at once, and three quarters of the memory stay.
#[test]
fn what_lies_between_blocks_in_use_goes_back_when_nobody_wants_it() {
    const NAME: &str = "what_lies_between_blocks_in_use_goes_back_when_nobody_wants_it";
    child::body(NAME, |_| {
        let start = resident();
        let stay = fragment();
        // A page with a byte in use stays, and of slabs never used in full what has not been used.
        let pages: BTreeSet<usize> = stay.iter().flat_map(|(_, object)| pages_of(object)).collect();
        let needed = start + pages.len() * PAGE + stay.capacity() * size_of::<(usize, Box<[u8]>)>();
        let (before, most) = (resident(), needed + needed / 4 + 4 * MIB);
        let (time, after) = memory::resident_below(most);
        println!(
            "{} KiB, after {time:.1?} {} KiB, of which {} KiB are needed",
            before / KIB,
            after / KIB,
            needed / KIB
        );
        assert!(after < most, "{} KiB where {} KiB are needed", after / KIB, needed / KIB);
        assert_whole(&stay);
        assert_figures_agree();
        assert!(check(Level::Lists).is_ok());
    });
    child::Child::new(NAME, "").run().succeeded();
}

/// Before the heap grows by a sixteenth, it makes holes, if as much lies idle in slabs: whatever the pages are of that it
/// grows by.
///
/// Red if it does not look: have `heap_grew` in `src/slab/holes.rs` return at once; or if it takes pages that have just been
/// given memory for old ones: leave `!ahead` out of `Node::alloc` in `src/zone/node.rs`.
#[test]
fn what_lies_idle_makes_room_for_growth() {
    const NAME: &str = "what_lies_idle_makes_room_for_growth";
    // SAFETY: no range of this process (-10001, Linux 6.14) is given up.
    if unsafe { libc::syscall(libc::SYS_process_madvise, -10001, std::ptr::null::<u8>(), 0, libc::MADV_DONTNEED, 0) }
        != 0
    {
        println!("skipped: the system takes no memory back at many places at once");
        return;
    }
    child::body(NAME, |_| {
        let fill = |size: usize| (0..48 * MIB / size).map(|number| block(size, number)).collect::<Vec<_>>();
        let stay: Vec<_> = fill(1000).into_iter().step_by(12).collect();
        let before = HEAP.stats();
        let more: Vec<_> = fill(3000);
        let after = HEAP.stats();
        let (grown, kept) = (after.in_use - before.in_use, after.resident - before.resident);
        assert!(kept < grown / 3 * 2, "grown by {} KiB, of which {} KiB are new", grown / KIB, kept / KIB);
        assert_figures_agree();
        drop((stay, more));
    });
    for settings in ["worker:off", "worker:off,thp:never"] {
        child::Child::new(NAME, "").settings(settings).run().succeeded();
    }
}

/// Says that it is over, also when it ends in a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Trims while other threads allocate and free in the same classes, whole batches at a time; then what stayed and what
/// came since is whole, and the figures agree.
///
/// Positive control: have `set_aside` and `put_back` in `src/slab/holes.rs` return 0 at once, and a block that was handed
/// out while its page was given back has lost its contents.
#[test]
fn holes_close_as_blocks_are_handed_out() {
    const NAME: &str = "holes_close_as_blocks_are_handed_out";
    child::body(NAME, |_| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let done = &done;
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    // Relaxed: nothing hangs on it.
                    while !done.load(Ordering::Relaxed) {
                        let size = SIZES[random.below(SIZES.len())];
                        let objects: Vec<(usize, Box<[u8]>)> =
                            (0..MIB / size).map(|number| (number, block(size, number))).collect();
                        assert_whole(&objects);
                    }
                });
            }
            let _done = Done(&done);
            let stay = fragment();
            let mut released = 0;
            for _ in 0..common::scaled(60) {
                released += HEAP.trim().released;
                let fresh: Vec<(usize, Box<[u8]>)> = SIZES
                    .iter()
                    .flat_map(|&size| (0..MIB / size).map(move |number| (number, block(size, number))))
                    .collect();
                assert_whole(&fresh);
            }
            assert_whole(&stay);
            assert!(released > 16 * MIB, "{} KiB were given back", released / KIB);
        });
        assert_figures_agree();
        assert!(check(Level::Blocks).is_ok());
    });
    child::Child::new(NAME, "").run().succeeded();
}

/// A heap that was large has had huge pages. What it has given back of them comes again as small ones, so that the heap
/// has no more memory than it counts.
///
/// Positive control: leave the advice to a unit as it is when it has its memory, in `populate_unit` in `src/zone/huge.rs`,
/// and the first block that comes to one brings two megabytes (in five runs of six: the clock decides which units are huge).
#[test]
fn what_was_a_huge_page_comes_again_as_small_ones() {
    const NAME: &str = "what_was_a_huge_page_comes_again_as_small_ones";
    child::body(NAME, |_| {
        let fill = |size: usize, bytes: usize| (0..bytes / size).map(|n| block(size, n)).collect::<Vec<_>>();
        // One block in five pages keeps the addresses up to 80 MiB. Behind them there are huge pages, where they are quick.
        let stay: Vec<_> = fill(1000, 80 * MIB).into_iter().step_by(20).collect();
        drop(fill(3000, 160 * MIB));
        HEAP.trim();
        let uncounted = || anonymous().saturating_sub(HEAP.stats().resident);
        let before = uncounted();
        let mut more = Vec::new();
        for step in 0..64 {
            more.push(fill(3000, MIB / 4));
            let now = uncounted();
            assert!(now < before + MIB, "step {step}: {} KiB uncounted, first {} KiB", now / KIB, before / KIB);
        }
        drop((stay, more));
    });
    child::Child::new(NAME, "").run().succeeded();
}
