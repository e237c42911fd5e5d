//! What each protection of `Hardening` does, by itself, in processes of their own; and that the heap stays what it is.
//!
//! Controls are named at each test; what attacks come to is in `tests/security.rs`.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;
use std::collections::BTreeSet;
use std::ptr::NonNull;

use common::block::{free, layout, take};
use common::child::{self, Child, Outcome, in_a_fork, say};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, MIB, PAGE, cpus, on_cpu, on_threads, workload};
use pcpalloc::debug::{self, Level};
use pcpalloc::{Config, Drain, Hardening, PcpAlloc, rcu};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().hardened(Hardening::CHECKED));

const SIZE: usize = 64;

fn read(at: *const u8) -> u8 {
    // SAFETY: memory of the heap, freed or not; volatile, and nothing is concluded but what the byte is.
    unsafe { at.read_volatile() }
}

fn write(at: *mut u8, byte: u8) {
    // SAFETY: as in `read`: the mistake that is to be found.
    unsafe { at.write_volatile(byte) }
}

fn ended_by(outcome: &Outcome, message: &str) {
    assert_eq!(outcome.signal(), Some(libc::SIGABRT), "{outcome:#?}");
    let line = format!("pcpalloc: {message} (address {})\n", outcome.value("address"));
    assert_eq!(outcome.stderr, line, "{outcome:#?}");
}

/// Nolock allocation, from stacks and from a reserve that is kept full.
fn nolock() {
    let layout = layout(100, 8);
    HEAP.charge_nolock(layout, 4).expect("there is memory");
    for round in 0..200usize {
        let blocks: Vec<NonNull<u8>> = (0..4).filter_map(|_| HEAP.try_alloc_nolock(layout)).collect();
        assert!(blocks.len() == 4 || round > 0, "what is charged is there");
        // SAFETY: blocks of this layout, used no more.
        blocks.into_iter().for_each(|block| unsafe { HEAP.free_nolock(block, layout) });
        drop((0..40).map(|n| Block::new(100, 8, n)).collect::<Vec<_>>());
    }
}

/// Blocks past the stacks, of a slab, of a run with a class and of one without, freed by every way.
fn on_node() {
    for size in [24, SIZE, 1000, 40 * KIB, 200 * KIB, MIB, 5 * MIB] {
        for round in 0..6 {
            let layout = layout(size, 8);
            let block = HEAP.alloc_on_node(layout, 0).expect("there is memory");
            // SAFETY: a block of this layout, written to and freed once, before anybody else knows of it.
            unsafe {
                block.write_bytes(round, size);
                match round % 3 {
                    0 => HEAP.dealloc(block.as_ptr(), layout),
                    1 => HEAP.free_nolock(block, layout),
                    _ => rcu::free(block, layout),
                }
            }
        }
    }
    rcu::barrier();
}

/// Frees after grace periods, small and large, from several threads.
fn deferred() {
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for n in 0..2000 {
                    let size = [24, 1000, 40 * KIB][n % 3];
                    let block = NonNull::new(take(size)).expect("there is memory");
                    // SAFETY: a block of this layout that nobody else knows.
                    unsafe { rcu::free(block, layout(size, 8)) };
                }
                let _reading = rcu::read_lock();
                rcu::retire(Box::new([1u64; 9]));
            });
        }
    });
    rcu::barrier();
    assert_eq!(rcu::stats().pending_pointers, 0);
}

const SETTINGS: [(&str, bool); 8] = [
    ("hardened:random+guard", true),
    ("hardened:zero", true),
    ("hardened:poison", true),
    ("hardened:quarantine", true),
    ("hardened:1", true),
    ("hardened:1", false),
    ("hardened:0,guard:1/20", true),
    ("hardened:1,guard:1/3", false),
];

/// Every way in and out of the heap, with every protection, and afterwards everything is where it is said to be.
///
/// Red if a block comes or goes by a way on which it is not looked at: `hand_out` left out in `nolock::alloc`,
/// `take_back` in `nolock::free`, `hand_out` in `node::alloc_from`, `resized` in `large::resize_kind`, the look at what was freed in `add`
/// (`src/rcu/gather.rs`); if what is known of a run's blocks outlives it (`forget_marks` left out in `alloc_runs`); if a
/// slab's guard page goes back to its zone as it is (`lower` left out).
#[test]
fn the_heap_stays_what_it_is() {
    const NAME: &str = "the_heap_stays_what_it_is";
    child::body(NAME, |_| {
        workload::run();
        nolock();
        on_node();
        deferred();
        HEAP.drain(Drain::All);
        assert_eq!(in_a_fork(|| drop((1..3000).map(|n| Block::new(n, 8, n as u64)).collect::<Vec<_>>())), 0);
        HEAP.trim();
        // Over all the addresses at which there were slabs: what guarded them has gone.
        drop((0..24).map(|n| Block::new(MIB, 8, n)).collect::<Vec<_>>());
        drop((0..24).map(|n| Block::new(200 * KIB, 8, n)).collect::<Vec<_>>());
        debug::check(Level::Blocks).expect("every invariant holds");
    });
    let run = |settings: &[(&str, bool)]| {
        for &(settings, rseq) in settings {
            let kernel = if rseq { Kernel::Whole } else { Kernel::WithoutRseq(libc::ENOSYS) };
            let child =
                Child::new(NAME, "").settings(settings).kernel(kernel).environment("PCPALLOC_TEST_SCALE", "0.05");
            child.run().succeeded();
        }
    };
    let (some, others) = SETTINGS.split_at(4);
    on_threads([some, others].map(|settings| move || run(settings)));
}

/// Red if `take` is called for `take_any` (`src/slab/bulk.rs`), or the key is not random (`src/random.rs`).
#[test]
fn random_is_another_order_every_time() {
    const NAME: &str = "random_is_another_order_every_time";
    child::body(NAME, |_| {
        // A size that nobody else asks for.
        let blocks: Vec<usize> = (0..24).map(|_| take(856) as usize).collect();
        let first = blocks.iter().min().expect("there are some");
        say("order", blocks.iter().map(|block| format!("{}.", (block - first) / 896)).collect::<String>());
        say("rising", blocks.windows(2).filter(|pair| pair[0] < pair[1]).count());
    });
    let orders: BTreeSet<String> = (0..4)
        .map(|_| {
            let outcome = Child::new(NAME, "").settings("hardened:random").run().succeeded();
            assert!(outcome.number("rising") < 23, "{outcome:#?}");
            outcome.value("order").to_string()
        })
        .collect();
    assert_eq!(orders.len(), 4, "{orders:?}");
    assert_eq!(Child::new(NAME, "").settings("hardened:0").run().succeeded().number("rising"), 23);
}

/// Red if `raise` (`src/slab/guard.rs`) guards nothing, or is not called.
#[test]
fn guard_stops_what_leaves_a_slab() {
    const NAME: &str = "guard_stops_what_leaves_a_slab";
    child::body(NAME, |_| {
        // A slab of a size that nobody else asks for, up to its end and one byte further.
        let first = (0..8).map(|_| take(904)).min().expect("there are some");
        let mut end = first.wrapping_add(16 * KIB).map_addr(|address| address & !(16 * KIB - 1));
        say("slab", format!("{first:p} to {end:p}"));
        write(end.wrapping_sub(1), 1);
        say("inside", "nothing happens");
        end = std::hint::black_box(end);
        write(end, 1);
    });
    let outcome = Child::new(NAME, "").settings("hardened:guard").run();
    assert_eq!(outcome.value("inside"), "nothing happens");
    assert_eq!(outcome.signal(), Some(libc::SIGSEGV), "{outcome:#?}");
    Child::new(NAME, "").settings("hardened:0").run().succeeded();
}

/// Red if blocks are not overwritten in `take_back`, or `inspect` (both in `src/checked/mod.rs`) looks at nothing, or
/// at fewer words.
#[test]
fn what_is_freed_is_overwritten_and_looked_at() {
    const NAME: &str = "what_is_freed_is_overwritten_and_looked_at";
    child::body(NAME, |argument| {
        let (byte, size) = argument.split_once(' ').expect("a byte and a size");
        let (byte, size) = (byte.parse::<u8>().expect("a byte"), size.parse::<usize>().expect("a size"));
        on_cpu(cpus()[0], || {
            let block = take(size);
            (0..size).for_each(|n| write(block.wrapping_add(n), b'A'));
            free(block, size);
            assert!((0..size).all(|n| read(block.wrapping_add(n)) == byte));
            say("overwritten", "yes");
            say("address", format!("{block:p}"));
            write(block.wrapping_add(size - 1), b'B');
            assert_eq!(take(size), block, "what was freed last comes first");
        });
    });
    for (option, byte) in [("zero", 0), ("poison", 0xdf)] {
        for size in [8, SIZE, 4 * KIB, 40 * KIB] {
            let outcome = Child::new(NAME, &format!("{byte} {size}")).settings(&format!("hardened:{option}")).run();
            assert_eq!(outcome.value("overwritten"), "yes");
            ended_by(&outcome, "memory was written to after it was freed");
        }
    }
}

/// Red if a block goes past the quarantine, if that keeps what it should let go, or lets go of the newest.
#[test]
fn quarantine_is_first_in_first_out_and_bounded() {
    const NAME: &str = "quarantine_is_first_in_first_out_and_bounded";
    child::body(NAME, |argument| {
        let size: usize = argument.parse().expect("a size");
        on_cpu(cpus()[0], || {
            let block = take(size);
            free(block, size);
            let mut others = 0;
            while others < 20_000 {
                let other = take(size);
                if other == block {
                    break;
                }
                free(other, size);
                others += 1;
            }
            say("others", others);
            say("cached", HEAP.stats().percpu_cached);
        });
    });
    for (size, waits) in [(SIZE, 4096), (4 * KIB, 256), (128 * KIB, 8)] {
        let outcome = Child::new(NAME, &size.to_string()).settings("hardened:quarantine").run().succeeded();
        // What the thread and its stack free meanwhile counts, too; and the block is not the first on its stack.
        let others = outcome.number("others");
        assert!((waits * 9 / 10..=waits + 2048 + 64).contains(&others), "{size}: {outcome:#?}");
        assert!(outcome.number("cached") < cpus().len() * 2 * MIB, "{outcome:#?}");
    }
    assert_eq!(Child::new(NAME, "64").settings("hardened:0").run().succeeded().number("others"), 0);
}

/// What waits in quarantine is had by whoever finds nothing else, whatever the size: a run, a zeroed one, a block of a
/// node.
///
/// Red if it goes on waiting: in `insist` (`src/checked/mod.rs`), do not ask `release_waiting`.
#[test]
fn quarantine_ends_where_memory_does() {
    const NAME: &str = "quarantine_ends_where_memory_does";
    // Of which a few are a megabyte.
    const BLOCK: usize = 240 * KIB;
    child::body(NAME, |argument| {
        let layout = |size| std::alloc::Layout::from_size_align(size, 8).expect("a layout");
        let ask = || -> *mut u8 {
            // SAFETY: the sizes are not 0.
            unsafe {
                match argument {
                    "run" => HEAP.alloc(layout(BLOCK + 100 * KIB)),
                    "zeroed" => HEAP.alloc_zeroed(layout(BLOCK)),
                    _ => HEAP.alloc_on_node_only(layout(BLOCK), 0).map_or(std::ptr::null_mut(), |block| block.as_ptr()),
                }
            }
        };
        on_cpu(cpus()[0], || {
            let mut blocks = Vec::with_capacity(1000);
            loop {
                // SAFETY: as above.
                let block = unsafe { HEAP.alloc(layout(BLOCK)) };
                if block.is_null() {
                    break;
                }
                blocks.push(block);
            }
            say("blocks", blocks.len());
            assert!(ask().is_null(), "there is no more");
            // The last ones lie side by side, and all wait.
            for block in blocks.split_off(blocks.len() - 4) {
                // SAFETY: ours, and not used any more.
                unsafe { HEAP.dealloc(block, layout(BLOCK)) };
            }
            say("waits", HEAP.stats().percpu_cached);
            say("had", !ask().is_null());
        });
    });
    for request in ["run", "zeroed", "node"] {
        let outcome = Child::new(NAME, request).settings("hardened:quarantine,limit:32m,worker:off").run().succeeded();
        assert!(outcome.number("waits") >= 4 * BLOCK && outcome.number("blocks") > 50, "{outcome:#?}");
        assert_eq!(outcome.value("had"), "true", "{request}: {outcome:#?}");
    }
}

type Mistake = (&'static str, &'static str, fn());

const TWICE: &str = "a block was freed twice";
const MIDDLE: &str = "a pointer into the middle of a block was freed";
const WRONG_SIZE: &str = "a block was freed or resized with a size that cannot be its own";
const FOREIGN: &str = "a pointer that is not from this allocator was freed or resized";

fn misuse(pointer: *mut u8, size: usize) {
    say("address", format!("{pointer:p}"));
    free(pointer, size);
}

fn as_block(pointer: *mut u8) -> NonNull<u8> {
    say("address", format!("{pointer:p}"));
    NonNull::new(pointer).expect("not null")
}

const MISTAKES: [Mistake; 11] = [
    ("twice", TWICE, || {
        let block = take(SIZE);
        free(block, SIZE);
        misuse(block, SIZE);
    }),
    ("twice-much-later", TWICE, || {
        let block = take(SIZE);
        free(block, SIZE);
        let others: Vec<*mut u8> = (0..500).map(|_| take(2 * SIZE)).collect();
        others.into_iter().for_each(|other| free(other, 2 * SIZE));
        misuse(block, SIZE);
    }),
    ("twice-by-nolock", TWICE, || {
        let block = as_block(take(SIZE));
        // SAFETY: none the second time, on purpose.
        (0..2).for_each(|_| unsafe { HEAP.free_nolock(block, layout(SIZE, 8)) });
    }),
    ("twice-by-rcu", TWICE, || {
        let block = as_block(take(SIZE));
        // SAFETY: as above.
        (0..2).for_each(|_| unsafe { rcu::free(block, layout(SIZE, 8)) });
        rcu::barrier();
    }),
    ("by-rcu-and-at-once", TWICE, || {
        let block = as_block(take(SIZE));
        // SAFETY: as above.
        unsafe { rcu::free(block, layout(SIZE, 8)) };
        free(block.as_ptr(), SIZE);
        rcu::barrier();
    }),
    ("middle", MIDDLE, || misuse(take(SIZE).wrapping_add(8), SIZE)),
    ("unaligned", MIDDLE, || misuse(take(SIZE).wrapping_add(1), SIZE)),
    ("middle-of-run", MIDDLE, || misuse(take(64 * KIB).wrapping_add(8), 64 * KIB)),
    ("other-size", WRONG_SIZE, || misuse(take(SIZE), 2 * SIZE)),
    ("resized-with-other-size", WRONG_SIZE, || {
        let block = take(SIZE);
        say("address", format!("{block:p}"));
        // SAFETY: as above.
        unsafe { HEAP.realloc(block, layout(3 * SIZE, 8), 40 * SIZE) };
    }),
    ("foreign", FOREIGN, || {
        let mut bytes = [0u64; 16];
        misuse(bytes.as_mut_ptr().cast(), SIZE);
    }),
];

/// At once, and not when the block comes to its slab. The static asks for it, no environment.
///
/// Red, case by case, without the tests in `take_back` (`src/checked/mod.rs`), and all of them with a static that asks
/// for nothing.
#[test]
fn mistakes_are_found_at_once() {
    const NAME: &str = "mistakes_are_found_at_once";
    child::body(NAME, |name| {
        let (.., make) = MISTAKES.iter().find(|mistake| mistake.0 == name).expect("the mistake is one of ours");
        on_cpu(cpus()[0], make);
    });
    for (name, message, _) in MISTAKES {
        for kernel in [Kernel::Whole, Kernel::WithoutRseq(libc::ENOSYS)] {
            let outcome = Child::new(NAME, name).kernel(kernel).run();
            ended_by(&outcome, message);
        }
        // Nothing of the kind otherwise, before the block comes to its slab, or its zone.
        let outcome = Child::new(NAME, name).settings("hardened:0").run();
        let silent = outcome.status.success() || name.contains("rcu") || name == "middle-of-run";
        assert!(silent, "{name}: {outcome:#?}");
    }
    assert_eq!(PAGE % SIZE, 0);
}

/// A block of a given node is as good as any other to a heap that looks at every free, and a second free of it is found.
///
/// Red if such a block is not marked as handed out: in `alloc_from` (`src/node.rs`), leave out `checked::hand_out`.
#[test]
fn blocks_of_a_node_are_freed_once() {
    const NAME: &str = "blocks_of_a_node_are_freed_once";
    child::body(NAME, |frees| {
        on_node();
        let block = HEAP.alloc_on_node(layout(SIZE, 8), 0).expect("there is memory");
        let block = as_block(block.as_ptr()).as_ptr();
        (0..frees.parse::<usize>().unwrap()).for_each(|_| free(block, SIZE));
    });
    for settings in ["", "hardened:zero", "hardened:poison", "hardened:quarantine", "hardened:1"] {
        Child::new(NAME, "1").settings(settings).run().succeeded();
        ended_by(&Child::new(NAME, "2").settings(settings).run(), TWICE);
    }
}

/// What cannot be is said, and left out.
#[test]
fn contradictions_are_reported() {
    const NAME: &str = "contradictions_are_reported";
    child::body(NAME, |_| {});
    let outcome = Child::new(NAME, "").settings("hardened:zero+poison,guard:often").run().succeeded();
    assert_eq!(outcome.stderr.matches("is left out").count(), 2, "{outcome:#?}");
}
