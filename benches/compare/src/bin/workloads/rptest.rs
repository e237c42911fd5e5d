//! Threads with tables of blocks that give each other blocks to free (after the benchmark of rpmalloc).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use crate::object::{Object, Random};
use crate::usage::Watch;
use crate::{Row, Scale};

pub const ROWS: &[Row] = &[
    Row {
        name: "rptest_2t",
        what: "2 threads with 1,000 blocks each of 8 to 16,000 bytes, small ones more often: 100 are replaced, then 200 \
               new ones are given to whoever frees next, 10,000 times in all",
        run: |scale, watch| rptest(2, scale, watch),
    },
    Row { name: "rptest_16t", what: "as rptest_2t, on 16 threads", run: |scale, watch| rptest(16, scale, watch) },
];

const BLOCKS: usize = 1000;
const REPLACED: usize = 100;
const GIVEN: usize = 200;
const TOTAL: usize = 10_000;

type Block = (Object, u64);

/// A block of a size whose logarithm is evenly distributed.
fn block(random: &mut Random) -> Block {
    let bits = random.next();
    let doubling = 8 << (bits % 11);
    let size = (doubling + (bits >> 20) as usize % doubling).min(16_000);
    let mut object = Object::new(size, bits);
    if bits >> 60 == 0 {
        object.fill();
    }
    (object, bits)
}

fn rptest(threads: usize, scale: &Scale, watch: &mut Watch) -> u64 {
    let given: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());
    let freed = AtomicU64::new(0);
    let free = |blocks: Vec<Block>| {
        let sum = blocks.into_iter().fold(0u64, |sum, (object, tag)| {
            assert_eq!(object.difference(tag), 0, "a block has changed");
            sum.wrapping_add(tag)
        });
        freed.fetch_add(sum, Relaxed);
    };
    watch.begin();
    thread::scope(|scope| {
        for number in 0..threads {
            let (given, free) = (&given, &free);
            scope.spawn(move || {
                let mut random = Random::new(number as u64 + 1);
                let mut blocks: Vec<Block> = (0..BLOCKS).map(|_| block(&mut random)).collect();
                for turn in 0..scale.of(TOTAL) / threads {
                    let mut old = Vec::with_capacity(REPLACED);
                    for n in 0..REPLACED {
                        let at = (turn * REPLACED + n * 7) % BLOCKS;
                        old.push(std::mem::replace(&mut blocks[at], block(&mut random)));
                    }
                    free(old);
                    let batch = (0..GIVEN).map(|_| block(&mut random)).collect();
                    let taken = {
                        let mut given = given.lock().expect("no thread has panicked");
                        given.push(batch);
                        // One stays for another thread, if there is one.
                        (given.len() >= threads).then(|| given.swap_remove(0))
                    };
                    taken.into_iter().for_each(free);
                }
                free(blocks);
            });
        }
    });
    given.into_inner().expect("no thread has panicked").into_iter().for_each(free);
    freed.into_inner()
}
