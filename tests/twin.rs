//! The whole allocator over the twin of the system layer, which makes no system calls: for sanitizers, and for Miri.
//!
//! Compiled with `--cfg pcpalloc_twin` only; `tests/asan.sh` does that. The allocator is called directly and is not
//! the program's global allocator: its zones are blocks of `std`'s `System`, which the sanitizer watches over.

#![cfg(all(pcpalloc_twin, not(loom)))]

mod common;

use std::sync::Mutex;

use common::block::layout;
use common::model::{Holder, Oracle};
use common::{Block, HEAP, KIB, MIB, on_threads, scaled, workload};
use pcpalloc::debug::{Level, check};
use pcpalloc::{Drain, Mode};

/// One test at a time, so that each can account for all there is.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `f` on a thread that ends, and looks at whether the heap then holds what it held before.
fn accounted(f: impl FnOnce() + Send) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let before = HEAP.stats();
    on_threads([f]);
    check(Level::Blocks).expect("everything adds up");
    let after = HEAP.stats();
    assert_eq!(after.in_use, before.in_use, "{before}\n{after}");
    assert_eq!((after.mappings, after.mode), (before.mappings, Mode::PerThread));
}

/// Red if any of what `tests/common/workload.rs` compares is wrong.
#[test]
fn a_little_of_everything() {
    accounted(workload::run);
}

/// Red if a run or a mapping is shorter than its block: in `Class::new` (`src/size_class.rs`), take one page less for
/// classes above `SLAB_MAX`; in `mapping::alloc` (`src/zone/mapping.rs`), leave the header out of the length.
#[test]
fn sizes_on_both_sides_of_every_border() {
    accounted(|| {
        let mut size = 1;
        while size <= 6 * MIB {
            let usable = HEAP.usable_size(layout(size, 1));
            let live: Vec<Block> = [size, usable, usable + 1]
                .into_iter()
                .flat_map(|size| [1, 64, 4 * KIB, 32 * KIB].map(|align| (size, align)))
                .flat_map(|(size, align)| [Block::new(size, align, 1), Block::zeroed(size, align, 2)])
                .map(|block| block.expect("there is memory"))
                .collect();
            drop(live);
            size = if size < 256 * KIB { usable + 1 } else { size * 5 / 4 };
        }
    });
}

/// Red if two blocks overlap: in `Slab::take` (`src/slab/bitmap.rs`), leave the bits of the blocks taken set.
#[test]
fn random_steps_by_several_threads() {
    accounted(|| {
        let oracle = Oracle::default();
        on_threads((0..4).map(|seed| {
            let oracle = &oracle;
            move || {
                let mut holder = Holder::new(oracle, seed);
                for step in 0..scaled(1500) {
                    holder.step();
                    if step % 500 == 499 {
                        HEAP.trim();
                    }
                }
            }
        }));
        assert!(oracle.is_empty());
    });
}

/// Red if an ending thread keeps what it has cached: in `thread_exit` (`src/percpu/thread.rs`), do not call
/// `give_back`.
#[test]
fn threads_leave_nothing_behind() {
    accounted(|| {
        HEAP.drain(Drain::All);
        let before = HEAP.stats().percpu_cached;
        for _ in 0..scaled(20) {
            std::thread::spawn(|| drop((1..200).map(|n| Block::new(10 * n, 8, 3)).collect::<Vec<_>>())).join().unwrap();
        }
        HEAP.drain(Drain::All);
        assert_eq!(HEAP.stats().percpu_cached, before);
        let trimmed = HEAP.trim();
        assert_eq!(trimmed.unreachable_cpus, 0);
        assert!(HEAP.stats().free_resident <= 64 * KIB, "what is free has been given back: {}", HEAP.stats());
    });
}
