//! A server's connections (after Larson and Krishnan, "Memory Allocation for Long-Running Server Applications", 1998).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, Scope};

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

macro_rules! row {
    ($name:literal, $lanes:literal) => {
        Row {
            name: $name,
            what: concat!(
                $lanes,
                " lanes: a thread replaces random ones of its 4,000 objects of 8 to 511 bytes, 20,000 times, then starts \
                 another that goes on with them, and ends; 24 million replacements in all"
            ),
            run: |scale, watch| larson($lanes, scale, watch),
        }
    };
}

pub const ROWS: &[Row] =
    &[row!("larson_1t", 1), row!("larson_2t", 2), row!("larson_4t", 4), row!("larson_8t", 8), row!("larson_16t", 16)];

const OBJECTS: usize = 4000;
const REPLACEMENTS: usize = 20_000;
const TOTAL: usize = 24_000_000;

/// What one thread leaves to the next.
struct Lane {
    objects: Vec<(Object, u64)>,
    random: Random,
    lives: usize,
}

fn larson(lanes: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    let sizes = Random::new(0).sizes(4096);
    let freed = AtomicU64::new(0);
    watch.begin();
    thread::scope(|scope| {
        for number in 0..lanes {
            let mut random = Random::new(number as u64 + 1);
            let objects = (0..OBJECTS)
                .map(|_| {
                    let (size, tag) = (sizes[random.next() as usize % sizes.len()], random.next());
                    (Object::new(size, tag), tag)
                })
                .collect();
            let lives = scale.of(TOTAL / REPLACEMENTS).div_ceil(lanes);
            live(scope, Lane { objects, random, lives }, &sizes, &freed);
        }
    });
    freed.into_inner()
}

fn live<'scope>(scope: &'scope Scope<'scope, '_>, mut lane: Lane, sizes: &'scope [usize], freed: &'scope AtomicU64) {
    scope.spawn(move || {
        let mut sum = 0u64;
        for _ in 0..REPLACEMENTS {
            let random = lane.random.next();
            let slot = &mut lane.objects[random as u32 as usize % OBJECTS];
            assert_eq!(slot.0.difference(slot.1), 0, "an object has changed");
            sum = sum.wrapping_add(slot.1);
            *slot = (Object::new(sizes[(random >> 40) as usize % sizes.len()], random), random);
        }
        freed.fetch_add(sum, Relaxed);
        lane.lives -= 1;
        if lane.lives > 0 {
            live(scope, lane, sizes, freed);
        }
    });
}
