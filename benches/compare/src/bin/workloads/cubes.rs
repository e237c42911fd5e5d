//! Boolean functions as lists of cubes (after the loops of the logic minimiser `espresso`).

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[Row {
    name: "cubes",
    what: "the complements of random covers of 40 cubes in 24 variables, by Shannon expansion, and whether cover and \
           complement together are a tautology; a cube is a boxed slice, a cover a list of them; 6 covers",
    run: complements,
}];

const VARIABLES: usize = 24;
const WORDS: usize = VARIABLES.div_ceil(32);

/// Two bits for each variable: whether it may be 0, and whether it may be 1.
type Cube = Box<[u64]>;
type Cover = Vec<Cube>;

fn universe() -> Cube {
    let mut cube = vec![0; WORDS].into_boxed_slice();
    (0..VARIABLES).for_each(|variable| set(&mut cube, variable, 3));
    cube
}

fn literal(cube: &[u64], variable: usize) -> u64 {
    cube[variable / 32] >> (variable % 32 * 2) & 3
}

fn set(cube: &mut [u64], variable: usize, literal: u64) {
    let shift = variable % 32 * 2;
    let word = &mut cube[variable / 32];
    *word = *word & !(3 << shift) | literal << shift;
}

/// The cover where a variable has a value, with the variable free.
fn cofactor(cover: &[Cube], variable: usize, value: u64) -> Cover {
    let cubes = cover.iter().filter(|cube| literal(cube, variable) & value != 0);
    cubes
        .map(|cube| {
            let mut cube = cube.clone();
            set(&mut cube, variable, 3);
            cube
        })
        .collect()
}

/// The variable that most cubes care about, if any does.
fn most_bound(cover: &[Cube]) -> Option<usize> {
    let bound = |variable: &usize| cover.iter().filter(|cube| literal(cube, *variable) != 3).count();
    (0..VARIABLES).max_by_key(bound).filter(|variable| bound(variable) > 0)
}

/// Leaves out cubes that others contain.
fn minimal(mut cover: Cover) -> Cover {
    cover.sort_unstable();
    cover.dedup();
    let contained = |cube: &Cube, at: usize| {
        let by = |other: &Cube| cube.iter().zip(other).all(|(cube, other)| cube & !other == 0);
        cover.iter().enumerate().any(|(n, other)| n != at && by(other))
    };
    let stays: Vec<bool> = cover.iter().enumerate().map(|(at, cube)| !contained(cube, at)).collect();
    let mut stays = stays.into_iter();
    cover.retain(|_| stays.next() == Some(true));
    cover
}

fn complement(cover: &[Cube]) -> Cover {
    if cover.is_empty() {
        return vec![universe()];
    }
    let Some(variable) = most_bound(cover) else { return Cover::new() };
    if let [cube] = cover {
        let bound = (0..VARIABLES).filter(|variable| literal(cube, *variable) != 3);
        return bound
            .map(|variable| {
                let mut opposite = universe();
                set(&mut opposite, variable, 3 ^ literal(cube, variable));
                opposite
            })
            .collect();
    }
    let mut halves: Cover = Cover::new();
    for value in [1, 2] {
        for mut cube in complement(&cofactor(cover, variable, value)) {
            set(&mut cube, variable, value);
            halves.push(cube);
        }
    }
    // Cubes that differ in this variable alone are one.
    halves.sort_unstable_by_key(|cube| {
        let mut cube = cube.clone();
        set(&mut cube, variable, 3);
        cube
    });
    halves.dedup_by(|cube, before| {
        let mut both = before.clone();
        set(&mut both, variable, literal(cube, variable) | literal(before, variable));
        let same = |cube: &Cube| (0..VARIABLES).all(|v| v == variable || literal(cube, v) == literal(&both, v));
        let one = same(cube) && literal(&both, variable) == 3;
        if one {
            *before = both;
        }
        one
    });
    if halves.len() < 64 { minimal(halves) } else { halves }
}

fn tautology(cover: &[Cube]) -> bool {
    match most_bound(cover) {
        None => !cover.is_empty(),
        Some(variable) => [1, 2].iter().all(|value| {
            let half = cofactor(cover, variable, *value);
            half.iter().any(|cube| (0..VARIABLES).all(|variable| literal(cube, variable) == 3)) || tautology(&half)
        }),
    }
}

fn complements(scale: &Scale, watch: &mut Watch) -> u64 {
    let mut random = Random::new(0);
    watch.begin();
    let mut sum = 0;
    for _ in 0..scale.of(6) {
        let mut cover: Cover = (0..40)
            .map(|_| {
                let mut cube = universe();
                for variable in 0..VARIABLES {
                    if let bound @ (1 | 2) = random.next() % 8 {
                        set(&mut cube, variable, bound);
                    }
                }
                cube
            })
            .collect();
        let rest = complement(&cover);
        sum = rest.iter().flatten().fold(mix(sum, rest.len() as u64), |sum, word| mix(sum, *word));
        cover.extend(rest);
        assert!(tautology(&cover), "a function and its complement are everything");
    }
    sum
}
