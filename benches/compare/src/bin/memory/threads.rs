//! Many threads.

use std::sync::Barrier;
use std::thread;

use crate::object::{Object, Random};
use crate::{Rest, Row};

pub const ROWS: &[Row] = &[
    Row {
        name: "idle_threads",
        what: "512 threads that have each allocated and freed 1,000 objects of 8 to 511 bytes, and wait",
        run: |divisor, rest| threads(512, 1000, 0, divisor, rest),
    },
    Row {
        name: "busy_threads",
        what: "16 threads that each hold 50,000 objects of 8 to 511 bytes, all at once; they have ended at rest",
        run: |divisor, rest| threads(16, 0, 50_000, divisor, rest),
    },
];

/// So many threads that allocate and free some objects, then hold some, then wait for one another.
///
/// They rest while they wait if they hold nothing, else after they have ended.
fn threads(count: usize, used: usize, held: usize, divisor: usize, rest: &mut Rest) {
    let sizes = Random::new(0).sizes(4096);
    let together = Barrier::new(count + 1);
    let objects = |n: usize| -> Vec<Object> {
        (0..n / divisor).map(|tag| Object::new(sizes[tag % sizes.len()], tag as u64)).collect()
    };
    let check = |objects: Vec<Object>| {
        let wrong = objects.iter().zip(0..).fold(0, |wrong, (object, tag)| wrong | object.difference(tag));
        assert_eq!(wrong, 0, "an object has changed");
    };
    rest.begin();
    thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                check(objects(used));
                let held = objects(held);
                together.wait();
                together.wait();
                check(held);
            });
        }
        together.wait();
        if held == 0 {
            rest.rest();
        }
        together.wait();
    });
    if held != 0 {
        rest.rest();
    }
}
