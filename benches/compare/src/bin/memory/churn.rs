//! Memory that is replaced while much of it stays.

use std::sync::Mutex;
use std::thread;

use crate::object::{Object, Random};
use crate::{Rest, Row};

pub const ROWS: &[Row] = &[
    Row {
        name: "size_shift",
        what: "64 MiB of objects, replaced at random by larger ones, from 16 bytes to 16 KiB and back to 100 bytes",
        run: size_shift,
    },
    Row {
        name: "grow_shrink",
        what: "data sets of 2 MiB in objects of up to 500 bytes, 16 KB or 0.5 MB, built by threads: from 48 MiB to \
               192 MiB and back, four times; at rest 48 MiB are alive",
        run: grow_shrink,
    },
    Row {
        name: "larson",
        what: "4 threads that replace 20,000 objects of 8 to 511 bytes each and pass them on when they end, 40 times",
        run: larson,
    },
];

/// An object that is looked at once more when it goes.
struct Checked {
    object: Object,
    tag: u64,
}

impl Drop for Checked {
    fn drop(&mut self) {
        assert_eq!(self.object.difference(self.tag), 0, "an object has changed");
    }
}

fn size_shift(divisor: usize, rest: &mut Rest) {
    rest.begin();
    let mut tag = 0;
    let live = shift((64 << 20) / divisor, |size| {
        tag += 1;
        Checked { object: Object::new(size, tag), tag }
    });
    rest.done();
    drop(live);
    rest.rest();
}

/// Replaces blocks by larger ones; returns those that are alive at the end, with their sizes.
fn shift<Block>(budget: usize, mut new: impl FnMut(usize) -> Block) -> Vec<(Block, usize)> {
    const SIZES: [usize; 9] = [16, 48, 100, 260, 700, 1800, 5000, 16_000, 100];
    let mut random = Random::new(0);
    let mut live: Vec<(Block, usize)> = Vec::new();
    let mut bytes = 0;
    for size in SIZES {
        // Half of what is live gives way to the new size, then all of the rest but a tenth.
        for share in [2, 10] {
            while live.len() > 1 && bytes > budget / share {
                let (_, size) = live.swap_remove(random.next() as usize % live.len());
                bytes -= size;
            }
            while bytes + size <= budget {
                let size = size + random.next() as usize % (size / 4 + 1);
                live.push((new(size), size));
                bytes += size;
            }
        }
    }
    live
}

/// Objects that live and die together.
struct DataSet(Vec<(Object, u64)>);

impl DataSet {
    fn new(number: u64, bytes: usize) -> DataSet {
        let mut random = Random::new(number + 1);
        let most = [500, 16_000, 500_000][number as usize % 3];
        let (mut set, mut scratch, mut total) = (DataSet(Vec::new()), Vec::new(), 0);
        while total < bytes {
            let size = 16 + random.next() as usize % most;
            let mut object = Object::new(size, number);
            object.fill();
            // A third is for the time being.
            if random.next().is_multiple_of(3) {
                scratch.push(object);
                scratch.truncate(50);
            } else {
                set.0.push((object, number));
                total += size;
            }
        }
        set
    }
}

impl Drop for DataSet {
    fn drop(&mut self) {
        assert!(self.0.iter().all(|(object, number)| object.difference(*number) == 0), "an object has changed");
    }
}

/// Runs `f` for each item, on four threads at a time that handle four each.
fn with_threads<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync) {
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let parcels: Vec<Vec<T>> = (0..4).map(|_| items.by_ref().take(4).collect()).collect();
        thread::scope(|scope| {
            for parcel in parcels {
                scope.spawn(|| parcel.into_iter().for_each(&f));
            }
        });
    }
}

fn grow_shrink(divisor: usize, rest: &mut Rest) {
    let bytes = (2 << 20) / divisor;
    let mut live: Vec<DataSet> = Vec::new();
    let mut number = 0;
    rest.begin();
    for _ in 0..4 {
        let built = Mutex::new(Vec::new());
        let more = 96 - live.len() as u64;
        with_threads((number..number + more).collect(), |number| {
            let set = DataSet::new(number, bytes);
            built.lock().expect("no thread has panicked").push(set);
        });
        number += more;
        live.append(&mut built.into_inner().expect("no thread has panicked"));
        // Every fourth stays.
        let (stay, go): (Vec<_>, Vec<_>) = live.drain(..).enumerate().partition(|(n, _)| n % 4 == 0);
        live.extend(stay.into_iter().map(|(_, set)| set));
        with_threads(go, drop);
    }
    rest.rest();
}

fn larson(divisor: usize, rest: &mut Rest) {
    const LIVE: usize = 20_000;
    let sizes = Random::new(0).sizes(4096);
    let fresh = |seed: u64| -> Vec<Object> {
        (0..LIVE).map(|n| Object::new(sizes[(n + seed as usize) % sizes.len()], n as u64)).collect()
    };
    let check = |objects: &[Object]| {
        let wrong = objects.iter().zip(0..).fold(0, |wrong, (object, tag)| wrong | object.difference(tag));
        assert_eq!(wrong, 0, "an object has changed");
    };
    rest.begin();
    let mut heirlooms: Vec<Vec<Object>> = (0..4).map(fresh).collect();
    for generation in 0..40usize.div_ceil(divisor) as u64 {
        thread::scope(|scope| {
            for (thread, objects) in heirlooms.iter_mut().enumerate() {
                let sizes = &sizes;
                scope.spawn(move || {
                    let mut random = Random::new(generation * 4 + thread as u64);
                    for _ in 0..LIVE {
                        let random = random.next();
                        let slot = random as u32 as usize % LIVE;
                        let size = sizes[(random >> 40) as usize % sizes.len()];
                        assert_eq!(objects[slot].difference(slot as u64), 0, "an object has changed");
                        objects[slot] = Object::new(size, slot as u64);
                    }
                });
            }
        });
    }
    heirlooms.iter().for_each(|objects| check(objects));
    drop(heirlooms);
    rest.rest();
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, HashMap};
    use std::rc::Rc;

    use super::*;

    const PAGE: usize = 4096;

    /// An allocator that wastes nothing but what follows from pages that hold blocks of one size: a block is where the
    /// lowest free one was, a size is rounded up to a word, and a page goes back as soon as no block begins in it (nothing
    /// else of a block is touched in `size_shift`).
    #[derive(Default)]
    struct Segregated {
        sizes: HashMap<usize, Blocks>,
        pages: usize,
        peak: usize,
        live: usize,
        most: usize,
    }

    #[derive(Default)]
    struct Blocks {
        free: BinaryHeap<Reverse<usize>>,
        made: usize,
        in_page: HashMap<usize, usize>,
    }

    struct Block {
        of: Rc<RefCell<Segregated>>,
        size: usize,
        number: usize,
    }

    impl Block {
        fn new(of: &Rc<RefCell<Segregated>>, size: usize) -> Block {
            let size = size.next_multiple_of(8);
            let mut all = of.borrow_mut();
            let blocks = all.sizes.entry(size).or_default();
            let number = blocks.free.pop().map_or(blocks.made, |lowest| lowest.0);
            blocks.made = blocks.made.max(number + 1);
            let in_page = blocks.in_page.entry(number * size / PAGE).or_default();
            *in_page += 1;
            let touched = (*in_page == 1) as usize;
            all.pages += touched;
            all.live += 1;
            all.most = all.most.max(all.live);
            // The program's list of its blocks, 32 bytes for each, which is never shortened.
            all.peak = all.peak.max(all.pages * PAGE + all.most * 32);
            Block { of: of.clone(), size, number }
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            let mut all = self.of.borrow_mut();
            let blocks = all.sizes.get_mut(&self.size).expect("the block's size");
            blocks.free.push(Reverse(self.number));
            let in_page = blocks.in_page.get_mut(&(self.number * self.size / PAGE)).expect("the block's page");
            *in_page -= 1;
            let left = (*in_page == 0) as usize;
            all.pages -= left;
            all.live -= 1;
        }
    }

    /// What `size_shift` costs an allocator whose pages hold one size each even so: a quarter more than one that joins free
    /// neighbours of different sizes, as glibc does with its 232 MiB.
    ///
    /// (The same comes out if the highest free block is taken instead of the lowest. Other choices were not tried.)
    ///
    /// Red if sizes are rounded up to powers of two.
    #[test]
    fn pages_of_one_size_need_290_mib() {
        let all = Rc::new(RefCell::new(Segregated::default()));
        drop(shift(64 << 20, |size| Block::new(&all, size)));
        let all = all.borrow();
        println!("{} MiB", all.peak >> 20);
        assert_eq!((all.pages, all.live), (0, 0));
        assert!((285..295).contains(&(all.peak >> 20)), "{}", all.peak >> 20);
    }
}
