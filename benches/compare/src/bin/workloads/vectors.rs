//! Vectors that grow and shrink.

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[
    Row {
        name: "vec_many",
        what: "2,000 vectors that grow by turns, one number at a time, and now and then are cut to a quarter and fitted; 60 \
               million numbers",
        run: many,
    },
    Row {
        name: "vec_large",
        what: "16 buffers that grow by parts of up to 64 KiB to some 6 MiB, one after another in turn, and are then \
               shrunk to fit or begun anew; 1 GB written",
        run: large,
    },
];

fn many(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut random = Random::new(0);
    let mut vectors: Vec<Vec<u64>> = (0..2000).map(|_| Vec::new()).collect();
    let mut sum = 0;
    for _ in 0..scale.of(60_000_000) / 10 {
        let bits = random.next();
        // Some much more often than others.
        let at = ((bits as u32 as usize % 2000) * ((bits >> 32) as usize & 0x3ff)) >> 10;
        let vector = &mut vectors[at];
        (0..10).for_each(|n| vector.push(bits ^ n));
        if bits >> 50 < vector.len() as u64 {
            sum = mix(sum, vector[vector.len() / 2]);
            vector.truncate(vector.len() / 4);
            vector.shrink_to_fit();
        }
    }
    vectors.iter().fold(sum, |sum, vector| mix(sum, vector.len() as u64))
}

fn large(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut random = Random::new(0);
    let mut buffers: Vec<Vec<u8>> = (0..16).map(|_| Vec::new()).collect();
    let (mut sum, mut written) = (0, 0);
    while written < scale.of(1_000_000_000) {
        let bits = random.next();
        let buffer = &mut buffers[bits as usize % 16];
        let part = (bits >> 8) as usize % 65_536 + 1;
        buffer.resize(buffer.len() + part, bits as u8);
        written += part;
        if buffer.len() > 6 << 20 {
            sum = mix(sum, u64::from(buffer[buffer.len() / 2]) ^ buffer.len() as u64);
            match bits >> 40 & 3 {
                0 => {
                    buffer.truncate(1 << 20);
                    buffer.shrink_to_fit();
                }
                1 => buffer.clear(),
                _ => *buffer = Vec::new(),
            }
        }
    }
    buffers.iter().fold(sum, |sum, buffer| mix(sum, buffer.len() as u64))
}
