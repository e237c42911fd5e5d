//! One slab against models of it.

use super::*;
use crate::size_class::{CLASS, CLASSES};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn memory(class: &Class) -> Vec<u64> {
    vec![u64::MAX; class.pages as usize * 8]
}

/// Every set of blocks of every small slab: given back, it is what is taken next, in ascending order.
#[test]
fn every_set_of_blocks_comes_back_in_order() {
    let mut sets = 0;
    for class in CLASS.iter().filter(|class| !class.is_run() && class.blocks <= 10) {
        let (start, size, blocks) = (0x10_0000, class.size as usize, class.blocks as usize);
        let mut memory = memory(class);
        let slab = memory.as_mut_ptr().cast::<Slab>();
        // SAFETY: as below.
        let slab = unsafe {
            Slab::init(slab, class, Backing::Cold);
            &mut *slab
        };
        let mut out = [0; 10];
        assert_eq!(slab.take(class, start, &mut out), blocks);
        for set in 0..1usize << blocks {
            let expected: Vec<usize> =
                (0..blocks).filter(|block| set >> block & 1 != 0).map(|b| start + b * size).collect();
            for &address in expected.iter().rev() {
                assert_eq!(slab.give(class, start, &[address]), Ok(1));
            }
            assert_eq!(slab.free_blocks(), expected.len());
            let taken = slab.take(class, start, &mut out);
            assert_eq!(out[..taken], expected);
            sets += 1;
        }
    }
    assert!(sets > 100, "{sets}");
}

/// Gives back as many as can be, in as many calls as it takes; how many, and what is wrong with the next.
fn give_all(slab: &mut Slab, class: &Class, start: usize, blocks: &[usize]) -> (usize, Option<(usize, Misuse)>) {
    let before = slab.free_blocks();
    let mut given = 0;
    while given < blocks.len() {
        match slab.give_rows(class, start, &blocks[given..]) {
            Ok(more) => given += more,
            Err(wrong) => return (slab.free_blocks() - before, Some(wrong)),
        }
    }
    assert_eq!(slab.free_blocks() - before, given);
    (given, None)
}

/// A row of blocks, upwards or downwards, of which one is free already or is none, goes back as far as that one.
///
/// Red if `give_group` does not look at the bits, nor at `carved`, or if `lowest_of_group` looks at the ends alone.
#[test]
fn a_row_goes_back_as_far_as_it_is_in_use() {
    let mut rows = 0;
    for class in CLASS.iter().filter(|class| class.blocks >= 100) {
        let (start, size) = (0x10_0000, class.size as usize);
        let mut memory = memory(class);
        let slab = memory.as_mut_ptr().cast::<Slab>();
        for (first, len, bad, free, down) in (0..64).step_by(7).flat_map(|first| {
            let bad = (0..40).flat_map(|bad| [(bad, true), (bad, false)]);
            bad.flat_map(move |(bad, free)| [(first, 36, bad, free, true), (first, 36, bad, free, false)])
        }) {
            // SAFETY: as below.
            let slab = unsafe {
                Slab::init(slab, class, Backing::Cold);
                &mut *slab
            };
            let mut out = [0; 100];
            // Those behind them have never been handed out.
            assert_eq!(slab.take(class, start, &mut out[..first + len]), first + len);
            let mut row: Vec<usize> = (first..first + len).map(|block| start + block * size).collect();
            if down {
                row.reverse();
            } else {
                row.extend((first + len..first + 40).map(|block| start + block * size));
            }
            let mut wrong = if down { None } else { Some((row[len], Misuse::NotABlock)) };
            let (mut given, mut back) = (len, len);
            if bad < len && free {
                assert_eq!(slab.give(class, start, &[row[bad]]), Ok(1));
                (wrong, given, back) = (Some((row[bad], Misuse::DoubleFree)), bad, bad + 1);
            } else if bad < len {
                row[bad] += 1;
                (wrong, given, back) = (Some((row[bad], Misuse::NotABlock)), bad, bad);
            }
            let result = give_all(slab, class, start, &row);
            assert_eq!(result, (given, wrong), "{first} {bad} {free} {down}");
            let outside = class.blocks as usize - first - len;
            assert_eq!(slab.free_blocks(), outside + back);
            let mut taken = [0; 100];
            let n = slab.take(class, start, &mut taken[..back]);
            let mut those = row[..bad.min(len)].to_vec();
            those.extend((bad < len && free).then(|| row[bad]));
            those.sort_unstable();
            assert_eq!((n, &taken[..n]), (back, &those[..]), "{first} {bad} {free} {down}");
            rows += 1;
        }
    }
    assert!(rows > 10_000, "{rows}");
}

/// A small batch is what both its beginning and its middle are, and what is in between counts as runs. A large one is in rows if
/// most places are, and in runs if all are.
///
/// Red if a place of a small one is not looked at, if rows count in one direction alone, or if every place of a large one has to be
/// in rows, or one need not be in runs.
#[test]
fn a_batch_is_arranged_as_the_places_looked_at() {
    let class = &CLASS[3];
    let (size, stretch) = (class.size as usize, PAGE << class.order);
    let row: Vec<usize> = (0..64).map(|n| stretch + n * size).collect();
    let runs: Vec<usize> = (0..64).map(|n| stretch + 3 * n * size).collect();
    let scattered: Vec<usize> = (1..65).map(|n| n * stretch).collect();
    let half = |one: &[usize], other: &[usize]| [&one[..8], &other[..8]].concat();
    for len in [16, 64] {
        assert_eq!(arrangement(class, &row[..len]), Arrangement::Rows);
        assert_eq!(arrangement(class, &row[..len].iter().rev().copied().collect::<Vec<_>>()), Arrangement::Rows);
        assert_eq!(arrangement(class, &runs[..len]), Arrangement::Runs);
        assert_eq!(arrangement(class, &scattered[..len]), Arrangement::Scattered);
    }
    for (one, other) in [(&row, &runs), (&row, &scattered), (&runs, &scattered)] {
        assert_eq!(arrangement(class, &half(one, other)), Arrangement::Runs);
        assert_eq!(arrangement(class, &half(other, one)), Arrangement::Runs);
    }
    for few in [&row[..0], &row[..1], &row[..2], &row[..7], &scattered[..1]] {
        assert_eq!(arrangement(class, few), Arrangement::Runs, "{few:x?}");
    }
    let with = |most: &[usize], few: &[usize], places: &[usize]| {
        let mut batch = most.to_vec();
        places.iter().for_each(|&at| batch[at..at + 2].copy_from_slice(&few[at..at + 2]));
        arrangement(class, &batch)
    };
    for at in (0..64).step_by(8) {
        assert_eq!(with(&row, &scattered, &[at]), Arrangement::Rows, "{at}");
        assert_eq!(with(&row, &runs, &[at, (at + 24) % 64]), Arrangement::Runs, "{at}");
        assert_eq!(with(&row, &scattered, &[at, (at + 24) % 64]), Arrangement::Scattered, "{at}");
        assert_eq!(with(&runs, &scattered, &[at]), Arrangement::Scattered, "{at}");
    }
}

/// Any order, but every block once; and over many slabs each block comes first about equally often.
///
/// Red if the number of set bits in front is counted from the next word, or the bit is left set.
#[test]
fn random_order_is_fair_and_complete() {
    for class in CLASS.iter().filter(|class| !class.is_run()).step_by(7) {
        let (start, size, blocks) = (0x10_0000, class.size as usize, class.blocks as usize);
        let mut memory = memory(class);
        let slab = memory.as_mut_ptr().cast::<Slab>();
        let mut first = vec![0; blocks];
        let random = std::cell::Cell::new(1u64);
        let take = |out: &mut [usize]| {
            // SAFETY: as below.
            let slab = unsafe {
                Slab::init(slab, class, Backing::Cold);
                &mut *slab
            };
            slab.carve_all(class);
            let taken = slab.take_any(class, start, out, |n| {
                random.set(random.get().wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
                ((u128::from(random.get()) * n as u128) >> 64) as usize
            });
            assert_eq!(taken + slab.free_blocks(), blocks);
            taken
        };
        for _ in 0..20 {
            let mut out = vec![0; blocks + 1];
            assert_eq!(take(&mut out), blocks);
            let distinct: BTreeSet<usize> = out[..blocks].iter().map(|address| (address - start) / size).collect();
            assert!(distinct.len() == blocks && *distinct.last().unwrap() == blocks - 1);
        }
        let rounds = 40 * blocks.min(50);
        for _ in 0..rounds {
            let mut out = [0];
            assert_eq!(take(&mut out), 1);
            first[(out[0] - start) / size] += 1;
        }
        let half: usize = first[..blocks / 2].iter().sum();
        let expected = rounds * (blocks / 2) / blocks;
        assert!(half.abs_diff(expected) * 4 < rounds, "{half} of {rounds} in the lower half");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a set of free block numbers.
    ///
    /// Red if `give` or `give_one` forgets `hint`, `give` goes on behind a block of another run, or one does not look at the bit.
    #[test]
    fn random_steps_agree_with_a_set(index in 0..CLASSES, steps in prop::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
        let class = &CLASS[index];
        prop_assume!(!class.is_run());
        let (start, size) = (0x10_0000, class.size as usize);
        let mut memory = memory(class);
        let slab = memory.as_mut_ptr().cast::<Slab>();
        // SAFETY: 64 bytes for every page hold the header and the bitmap, as the class tests show.
        let slab = unsafe {
            Slab::init(slab, class, Backing::Cold);
            &mut *slab
        };
        let mut free: BTreeSet<usize> = (0..class.blocks as usize).collect();
        let mut held = Vec::new();
        for (take, n) in steps {
            if take {
                let mut out = vec![0; n % 70];
                let taken = slab.take(class, start, &mut out);
                prop_assert_eq!(taken, free.len().min(out.len()));
                for &address in &out[..taken] {
                    prop_assert_eq!(Some((address - start) / size), free.pop_first());
                    held.push(address);
                }
            } else if !held.is_empty() {
                let count = n % held.len().min(63) + 1;
                let mut together: Vec<usize> = Vec::new();
                if n >> 20 & 1 == 0 {
                    together.extend((0..count).map(|_| held.swap_remove(n / 64 % held.len())));
                } else {
                    // Neighbours, as far as there are.
                    held.sort_unstable();
                    let first = n / 64 % (held.len() - count + 1);
                    together.extend(held.drain(first..first + count));
                }
                if n >> 21 & 1 == 0 {
                    together.reverse();
                }
                free.extend(together.iter().map(|address| (address - start) / size));
                // All of them, those before one of another run, or those before one that is wrong.
                let (last, others) = together.split_last().unwrap();
                let stretch = PAGE << class.order;
                let result = match n % 5 {
                    0 => slab.give(class, start, &together),
                    4 => {
                        for &address in &together {
                            prop_assert_eq!(slab.give_one(class, address - start), Ok(()));
                            prop_assert_eq!(slab.give_one(class, address - start), Err(Misuse::DoubleFree));
                        }
                        prop_assert_eq!(slab.give_one(class, *last + 1 - start), Err(Misuse::NotABlock));
                        Ok(count)
                    }
                    1 => {
                        let elsewhere = start.wrapping_add(if n % 8 < 4 { stretch } else { stretch.wrapping_neg() });
                        slab.give(class, start, &[&together[..], &[elsewhere, together[0]]].concat())
                    }
                    2 => {
                        let twice = [others, &[*last, together[0], *last]].concat();
                        prop_assert_eq!(slab.give(class, start, &twice), Err((together[0], Misuse::DoubleFree)));
                        Ok(together.len())
                    }
                    _ => {
                        let middle = [others, &[*last + 1, *last]].concat();
                        prop_assert_eq!(slab.give(class, start, &middle), Err((*last + 1, Misuse::NotABlock)));
                        slab.give(class, start, &[*last]).map(|given| others.len() + given)
                    }
                };
                prop_assert_eq!(result, Ok(together.len()));
            }
            prop_assert_eq!(slab.free_blocks(), free.len());
        }
        let beyond = start + slab.carved as usize * size;
        let is_of_the_run = beyond < start + (PAGE << class.order);
        let refused = if is_of_the_run { Err((beyond, Misuse::NotABlock)) } else { Ok(0) };
        prop_assert_eq!(slab.give(class, start, &[beyond]), refused);
        if is_of_the_run {
            prop_assert_eq!(slab.give_one(class, beyond - start), Err(Misuse::NotABlock));
        }
    }
}
