//! Maps that change.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix, mix_bytes};

pub const ROWS: &[Row] = &[
    Row {
        name: "btree",
        what: "a BTreeMap from numbers to vectors of up to 64 bytes, which grows to 100,000 entries and is changed 2 \
               million times, then emptied from the front",
        run: btree,
    },
    Row {
        name: "hash",
        what: "a HashMap from strings to strings, which grows to some 60,000 entries and is changed 2 million times",
        run: hash,
    },
];

fn btree(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut random = Random::new(0);
    let mut map: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut sum = 0;
    for _ in 0..scale.of(2_000_000) {
        let bits = random.next();
        let key = bits % 200_000;
        if bits >> 32 & 1 == 0 {
            map.insert(key, vec![bits as u8; (bits >> 40) as usize & 63]);
        } else if let Some(value) = map.remove(&key) {
            sum = mix(sum, value.len() as u64);
        }
    }
    while let Some((key, value)) = map.pop_first() {
        sum = mix(sum, key ^ value.last().copied().map_or(0, u64::from));
    }
    sum
}

/// FNV-1a, so that entries lie in the same order in every run.
#[derive(Default)]
struct Fnv(u64);

impl std::hash::Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes
            .iter()
            .fold(self.0 ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
}

fn hash(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut random = Random::new(0);
    let mut map: HashMap<String, String, BuildHasherDefault<Fnv>> = HashMap::default();
    let mut sum = 0;
    for _ in 0..scale.of(2_000_000) {
        let bits = random.next();
        let key = format!("key-{:x}", bits % 120_000);
        if bits >> 32 & 1 == 0 {
            map.entry(key).or_default().push_str(&"more of it "[..(bits >> 40) as usize % 11]);
        } else if let Some(value) = map.remove(&key) {
            sum = mix(sum, value.len() as u64);
        }
    }
    map.into_iter().fold(sum, |sum, (key, value)| mix_bytes(mix_bytes(sum, key.as_bytes()), value.as_bytes()))
}
