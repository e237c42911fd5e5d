//! Sorting and grouping on several threads, with rayon.

use std::collections::BTreeMap;

use rayon::ThreadPoolBuilder;
use rayon::prelude::*;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix, mix_bytes};

pub const ROWS: &[Row] = &[Row {
    name: "rayon",
    what: "250,000 strings are made, sorted, transformed and grouped on 2 threads of rayon, twice",
    run: sort,
}];

fn sort(scale: &Scale, watch: &mut Watch) -> u64 {
    let pool = ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
    watch.begin();
    pool.install(|| {
        (0..2).fold(0, |sum, round| {
            let mut words: Vec<String> = (0..scale.of(250_000) as u64)
                .into_par_iter()
                .map(|number| {
                    let bits = Random::new((number + round) * 0x9e37_79b9).next();
                    format!(
                        "{:x}-{}",
                        bits % 100_000,
                        "abcdefghijklmnopqrstuvwxyz".get(..(bits >> 40) as usize % 26).unwrap_or("")
                    )
                })
                .collect();
            words.par_sort();
            let upper: Vec<String> = words.par_iter().map(|word| word.to_uppercase().replace('-', ": ")).collect();
            let groups = upper
                .par_chunks(5000)
                .map(|words| {
                    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
                    for word in words {
                        let (key, value) = word.split_once(": ").expect("a separator");
                        groups.entry(key).or_default().push(value);
                    }
                    groups
                })
                .reduce(BTreeMap::new, |mut all, groups| {
                    groups.into_iter().for_each(|(key, values)| all.entry(key).or_default().extend(values));
                    all
                });
            let sum = groups.values().fold(sum, |sum, values| mix(sum, values.len() as u64));
            words.iter().step_by(1000).fold(sum, |sum, word| mix_bytes(sum, word.as_bytes()))
        })
    })
}
