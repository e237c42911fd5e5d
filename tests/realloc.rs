//! Blocks that change their size: across every border between layers, in place and not.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use common::child::{self, Child};
use common::{Block, KIB, MIB, PAGE, Random, scaled};
use pcpalloc::PcpAlloc;
use proptest::prelude::*;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Sizes around the borders: between classes, slabs and runs (32 KiB), classes and runs without one (256 KiB), runs
/// and mappings (4 MiB).
const SIZES: [usize; 23] = [
    1,
    8,
    9,
    64,
    65,
    129,
    1024,
    1025,
    PAGE,
    PAGE + 1,
    32 * KIB - 1,
    32 * KIB,
    32 * KIB + 1,
    36 * KIB,
    41 * KIB,
    256 * KIB,
    256 * KIB + 1,
    300 * KIB,
    MIB,
    4 * MIB,
    4 * MIB + 1,
    4 * MIB + 5000,
    6 * MIB,
];

fn block(size: usize, align: usize) -> Block {
    Block::new(size, align, (size + align) as u64).expect("there is memory")
}

fn resize(block: &mut Block, size: usize) {
    assert!(block.resize(size), "there is memory");
}

/// Red if contents are lost: in `realloc_slow` (`src/alloc.rs`), copy one byte less.
#[test]
fn from_every_size_to_every_size() {
    for align in [1, 16, PAGE] {
        for from in SIZES {
            for to in SIZES {
                resize(&mut block(from, align), to);
            }
        }
    }
}

/// Red if a block loses its alignment: in `large::resize`, let mappings aligned beyond a page move.
#[test]
fn up_and_down_at_every_alignment() {
    for shift in 0..=20 {
        let mut chain = block(1, 1 << shift);
        for size in SIZES.iter().chain(SIZES.iter().rev()).chain(&[9 * MIB, 5 * MIB, 40 * MIB, 1]) {
            resize(&mut chain, *size);
        }
    }
}

/// Where runs lie side by side, so that growing in place takes only what is free.
///
/// Red if a run grows over its neighbour: in `Buddy::extend` (`src/zone/buddy.rs`), do not look for `TAG_FREE`.
#[test]
fn runs_among_neighbours() {
    let mut random = Random::new(3);
    let mut runs: Vec<Block> = (0..60).map(|_| block((9 + random.below(300)) * PAGE, 8)).collect();
    for _ in 0..scaled(3000) {
        let index = random.below(runs.len());
        let pages = runs[index].size() / PAGE;
        match random.below(3) {
            0 => resize(&mut runs[index], (pages + random.below(20)) * PAGE),
            1 => resize(&mut runs[index], (pages - random.below(pages / 2)).max(9) * PAGE),
            _ => runs[index] = block((9 + random.below(300)) * PAGE, 8),
        }
    }
}

/// In a process where next to nothing else happens, what lies behind a run is free.
///
/// Red if runs never grow in place: in `realloc_slow` (`src/alloc.rs`), do not call `large::resize`.
#[test]
fn runs_change_in_place() {
    const NAME: &str = "runs_change_in_place";
    child::body(NAME, |_| {
        let (mut run, mut in_place, mut steps) = (block(33 * KIB, 8), 0, 0);
        while run.size() < 4 * MIB {
            let start = run.range().start;
            let size = run.size();
            resize(&mut run, size + 9 * PAGE);
            steps += 1;
            in_place += (run.range().start == start) as usize;
        }
        assert!(2 * in_place > steps, "most steps are in place: {in_place} of {steps}");
        resize(&mut run, 4 * MIB);
        let start = run.range().start;
        while run.size() > 33 * KIB {
            let size = run.size();
            resize(&mut run, (size - 7 * PAGE).max(33 * KIB));
            assert_eq!(run.range().start, start, "a run shrinks in place");
        }
    });
    Child::new(NAME, "").run().succeeded();
}

/// Red if contents are lost on the way: see the tests above.
#[test]
fn a_vector_grows_to_256_mebibytes_and_shrinks() {
    const WORDS: usize = 256 * MIB / 8;
    let word = |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // A page of words at a time: compared and copied whole, so that the test is about the heap.
    let page = |number: usize| -> [u64; 512] { std::array::from_fn(|n| word(number) ^ n as u64) };
    let mut words: Vec<u64> = Vec::new();
    for number in 0..WORDS / 512 {
        words.extend_from_slice(&page(number));
    }
    let check = |words: &[u64]| {
        for (number, found) in words.chunks(512).enumerate() {
            assert!(*found == page(number)[..found.len()], "page {number} of the vector");
        }
    };
    check(&words);
    let mut left = WORDS;
    while left > 0 {
        left /= 5;
        words.truncate(left);
        words.shrink_to_fit();
        check(&words);
    }
}

/// A size that is anything, or near a border.
fn any_size() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 1..2 * KIB,
        3 => 1..70 * KIB,
        2 => 1..600 * KIB,
        2 => (prop::sample::select(SIZES.to_vec()), 0..3usize).prop_map(|(size, off)| (size + off - 1).max(1)),
        1 => 1..8 * MIB,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: scaled(60) as u32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Red as above; the chain that fails is made as short as it can be.
    #[test]
    fn random_chains(
        shifts in prop::collection::vec(0..17u32, 6),
        steps in prop::collection::vec((0..6usize, any_size()), 1..60),
    ) {
        let mut chains: Vec<Block> = shifts.iter().map(|shift| block(1, 1 << shift)).collect();
        for (index, size) in steps {
            resize(&mut chains[index], size);
        }
    }
}
