//! Memory that is filled and freed once.

use std::collections::BTreeMap;
use std::hint::black_box;

use crate::object::{Object, Random};
use crate::{Rest, Row};

pub const ROWS: &[Row] = &[
    Row {
        name: "small_program",
        what: "sorts and counts a few thousand words, as a command-line tool does",
        run: words,
    },
    Row { name: "fill_free", what: "1 GiB in objects of 8 to 511 bytes, filled and freed", run: fill_free },
    Row { name: "vec_256m", what: "a Vec<u64> pushed to until it has 256 MiB, and freed", run: growing_vec },
    Row { name: "blocks_2m", what: "64 blocks of 2 MiB, written and freed, four times", run: blocks },
    Row {
        name: "medium_loop",
        what: "blocks of 32 KiB to 2 MiB, eight at a time, written in every page and freed, 20,000 in all",
        run: medium_loop,
    },
];

fn words(divisor: usize, rest: &mut Rest) {
    let mut random = Random::new(0);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..4000 / divisor {
        let len = 3 + random.next() % 7;
        let word: String = (0..len).map(|_| char::from(b'a' + (random.next() % 26) as u8)).collect();
        *counts.entry(word).or_default() += 1;
    }
    let mut sorted: Vec<(&String, &usize)> = counts.iter().collect();
    sorted.sort_by_key(|(word, _)| (word.len(), *word));
    assert_eq!(sorted.iter().map(|(_, count)| **count).sum::<usize>(), 4000 / divisor, "a count has changed");
    rest.rest();
}

fn fill_free(divisor: usize, rest: &mut Rest) {
    let sizes = Random::new(0).sizes(4096);
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    let count = (1 << 30) / divisor / mean;
    let mut objects: Vec<Object> = Vec::with_capacity(count);
    rest.begin();
    objects.extend((0..count).map(|tag| filled(sizes[tag % sizes.len()], tag as u64)));
    let wrong = objects.drain(..).zip(0..).fold(0, |wrong, (object, tag)| wrong | object.difference(tag));
    drop(objects);
    rest.done();
    assert_eq!(wrong, 0, "an object has changed");
    rest.rest();
}

fn filled(size: usize, tag: u64) -> Object {
    let mut object = Object::new(size, tag);
    object.fill();
    object
}

fn growing_vec(divisor: usize, rest: &mut Rest) {
    let count = ((256 << 20) / 8 / divisor) as u64;
    rest.begin();
    let mut numbers: Vec<u64> = Vec::new();
    for number in 0..count {
        numbers.push(black_box(number));
    }
    rest.done();
    assert!(numbers.iter().copied().eq(0..count), "an element has changed");
    drop(numbers);
    rest.rest();
}

fn blocks(divisor: usize, rest: &mut Rest) {
    rest.begin();
    for turn in 0..4u8 {
        let blocks: Vec<Vec<u8>> = (0..64 / divisor.min(32)).map(|n| vec![n as u8 ^ turn; 2 << 20]).collect();
        assert!(blocks.iter().enumerate().all(|(n, block)| block[n * 4096] == n as u8 ^ turn), "a block has changed");
    }
    rest.rest();
}

fn medium_loop(divisor: usize, rest: &mut Rest) {
    let mut random = Random::new(0);
    let mut live: [Vec<u8>; 8] = Default::default();
    rest.begin();
    for turn in 0..20_000 / divisor {
        let doubling = (32 << 10) << (random.next() % 6);
        let mut block: Vec<u8> = Vec::with_capacity(doubling + random.next() as usize % doubling);
        for page in block.spare_capacity_mut().chunks_mut(4096) {
            page[0].write(turn as u8);
        }
        block.push(turn as u8);
        black_box(block.as_mut_ptr());
        let old = std::mem::replace(&mut live[turn % 8], block);
        assert!(old.first().is_none_or(|tag| *tag == turn.wrapping_sub(8) as u8), "a block has changed");
    }
    drop(live);
    rest.rest();
}
