//! The buddy allocator against a naive oracle: one byte a page that says who holds it.

use super::*;
use crate::zone::Descriptor;
use core::sync::atomic::AtomicU8;
use proptest::prelude::*;

const PAGES: u32 = 3 << MAX_ORDER;
/// As in a zone, the first pages are not the buddy's.
const FIRST: u32 = 37;

struct World {
    buddy: Buddy,
    held: Vec<(Range<u32>, u32)>,
    owner: Vec<bool>,
    touched: Vec<bool>,
    /// The least that was free and warm since the buddy was last asked.
    least: u32,
    _tables: (Vec<Descriptor>, Vec<AtomicU8>, Vec<u64>),
}

impl World {
    fn new(end: u32) -> World {
        // SAFETY: all-zero bytes are a valid descriptor, which is made of integers.
        let mut descriptors: Vec<Descriptor> = (0..end.max(PAGES)).map(|_| unsafe { core::mem::zeroed() }).collect();
        let tags: Vec<AtomicU8> = (0..end.max(PAGES)).map(|_| AtomicU8::new(0)).collect();
        let mut warm = vec![0u64; end.max(PAGES) as usize / 64];
        // SAFETY: the tables cover all pages up to `end`, are zero, and live in the same struct as the buddy; moving
        // a Vec does not move its contents.
        let pages = unsafe { Pages::new(descriptors.as_mut_ptr(), tags.as_ptr(), warm.as_mut_ptr()) };
        let mut buddy = Buddy::new(pages);
        buddy.add(FIRST..end);
        let (owner, touched) = (vec![false; PAGES as usize], vec![false; PAGES as usize]);
        World { buddy, held: Vec::new(), owner, touched, least: 0, _tables: (descriptors, tags, warm) }
    }

    fn hold(&mut self, pages: Range<u32>, warm: u32, tag: u32) {
        let mut expected = 0;
        for page in pages.clone() {
            assert!((FIRST..self.buddy.end).contains(&page));
            assert!(!core::mem::replace(&mut self.owner[page as usize], true), "page {page} is held twice");
            expected += self.touched[page as usize] as u32;
        }
        assert_eq!(warm, expected, "warm pages of {pages:?}");
        self.held.push((pages, tag));
    }

    fn alloc(&mut self, count: u32, align: u32) {
        let order = align.max(count.next_power_of_two().trailing_zeros());
        match self.buddy.alloc(count, align, if count.is_multiple_of(2) { Purpose::Slab(1) } else { Purpose::Large }) {
            Some(taken) => {
                assert_eq!(taken.page % (1 << align), 0);
                self.hold(taken.page..taken.page + count, taken.warm, 1);
            }
            None => {
                let fits = (0..self.buddy.end >> order).any(|block| {
                    let start = block << order;
                    start >= FIRST && (start..start + (1 << order)).all(|p| !self.owner[p as usize])
                });
                assert!(!fits, "refused {count} pages although an aligned block of order {order} is free");
            }
        }
    }

    fn free(&mut self, nth: usize, touched: u32) {
        if self.held.is_empty() {
            return;
        }
        let (pages, _) = self.held.swap_remove(nth % self.held.len());
        let touched = touched.min(pages.end - pages.start);
        for page in pages.clone() {
            self.owner[page as usize] = false;
            self.touched[page as usize] |= page < pages.start + touched;
        }
        self.buddy.free(pages, touched);
    }

    fn extend(&mut self, nth: usize, more: u32) {
        if self.held.is_empty() {
            return;
        }
        let nth = nth % self.held.len();
        let run = self.held[nth].0.clone();
        let end = run.end + more;
        let possible = end <= self.buddy.end && (run.end..end).all(|p| !self.owner[p as usize]);
        let warm = self.buddy.extend(run.clone(), end);
        assert_eq!(warm.is_some(), possible);
        if let Some(warm) = warm {
            self.held.swap_remove(nth);
            for page in run.clone() {
                self.owner[page as usize] = false;
            }
            let old = run.clone().filter(|&p| self.touched[p as usize]).count() as u32;
            self.hold(run.start..end, warm + old, 1);
        }
    }

    fn ask(&mut self) {
        assert_eq!(self.buddy.take_least_warm(), self.least, "the least that was free since last asked");
        self.least = self.buddy.free_warm_pages();
    }

    fn cool(&mut self, least: u32) {
        if let Some((block, warm)) = self.buddy.take_warm(least, 40) {
            assert!(warm <= 40);
            assert!(block.clone().all(|p| !self.owner[p as usize]));
            assert!(block.clone().any(|p| self.touched[p as usize]));
            block.clone().for_each(|p| self.touched[p as usize] = false);
            self.buddy.return_cold(block, true);
        }
    }

    /// Gives memory to a block that has none, or too little.
    fn heat(&mut self, what: Heat) {
        let block = match what {
            Heat::Unit(order) => {
                let unit = self.buddy.take_cold_unit(order);
                let untouched = |start: u32| (start..start + (1 << order)).all(|p| !self.touched[p as usize]);
                match &unit {
                    Some(unit) => assert!(unit.end - unit.start == 1 << order && untouched(unit.start)),
                    None => assert!(self.buddy.cold[order as usize..].iter().all(|list| list.blocks == 0)),
                }
                unit
            }
            Heat::At(order, nth) => {
                let page = (nth % ((self.owner.len() as u32) >> order)) << order;
                let unit = self.buddy.take_cold_at(page, order);
                let free = |p: u32| !self.owner[p as usize] && !self.touched[p as usize];
                let is_there = page >= FIRST && page + (1 << order) <= self.buddy.end;
                let expected = is_there && (page..page + (1 << order)).all(free);
                assert_eq!(unit, expected.then_some(page..page + (1 << order)));
                unit
            }
            Heat::Cold(most) => {
                let small = self.buddy.cold[..=most as usize].iter().any(|list| list.blocks > 0);
                let block = self.buddy.take_cold(most);
                if let Some(block) = &block {
                    assert_eq!(block.end - block.start <= 1 << most, small);
                    assert!(block.clone().all(|p| !self.touched[p as usize]));
                }
                assert!(block.is_some() || self.buddy.cold.iter().all(|list| list.blocks == 0));
                block
            }
            Heat::Partly => self.buddy.take_partly_warm().map(|(block, warm)| {
                let touched = block.clone().filter(|&p| self.touched[p as usize]).count() as u32;
                assert!(warm == touched && 0 < warm && warm < block.end - block.start);
                block
            }),
        };
        if let Some(block) = block {
            assert!(block.clone().all(|p| !self.owner[p as usize]));
            block.clone().for_each(|p| self.touched[p as usize] = true);
            self.buddy.free(block.clone(), block.end - block.start);
        }
    }
}

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Alloc(count, align) => self.alloc(count, align),
            Step::Free(nth, touched) => self.free(nth, touched),
            Step::Extend(nth, more) => self.extend(nth, more),
            Step::Cool(least) => self.cool(least),
            Step::Ask => self.ask(),
            Step::Heat(what) => self.heat(what),
        }
        // As many as `check` counts below.
        self.least = self.least.min(self.buddy.free_warm_pages());
        assert_eq!(self.buddy.check(FIRST), Ok(()));
    }

    /// Frees everything; all of it is free then.
    fn finish(&mut self, end: u32) {
        while !self.held.is_empty() {
            self.free(0, 0);
        }
        assert_eq!(self.buddy.check(FIRST), Ok(()));
        assert_eq!(self.buddy.free_pages(), end - FIRST);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(u32, u32),
    Free(usize, u32),
    Extend(usize, u32),
    Cool(u32),
    Ask,
    Heat(Heat),
}

#[derive(Clone, Copy, Debug)]
enum Heat {
    Partly,
    Cold(u32),
    Unit(u32),
    At(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u32..=40, 0u32..4).prop_map(|(n, a)| Step::Alloc(n, a)),
        1 => (1u32..=1 << MAX_ORDER, 0u32..=MAX_ORDER).prop_map(|(n, a)| Step::Alloc(n, a)),
        4 => (any::<usize>(), prop_oneof![0u32..=64, Just(1 << MAX_ORDER)]).prop_map(|(i, t)| Step::Free(i, t)),
        1 => (any::<usize>(), 1u32..200).prop_map(|(i, n)| Step::Extend(i, n)),
        1 => (0u32..4).prop_map(Step::Cool),
        1 => Just(Step::Ask),
        1 => Just(Step::Heat(Heat::Partly)),
        1 => (0u32..=MAX_ORDER).prop_map(|most| Step::Heat(Heat::Cold(most))),
        1 => (0u32..=MAX_ORDER).prop_map(|order| Step::Heat(Heat::Unit(order))),
        1 => (0u32..=MAX_ORDER, any::<u32>()).prop_map(|(order, nth)| Step::Heat(Heat::At(order, nth))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 200 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_steps_agree_with_the_oracle(steps in prop::collection::vec(step(), 1..200), end in FIRST + 1..=PAGES) {
        let mut world = World::new(end);
        steps.iter().for_each(|step| world.step(step));
        world.finish(end);
    }
}

/// All sequences of four steps out of ten on eleven pages, of which a block of 1, of 2 and of 8 are free at first.
///
/// Red if the pages behind a request are forgotten: in `Buddy::alloc`, drop `give_range`.
#[test]
#[cfg_attr(miri, ignore)]
fn every_short_sequence_agrees_with_the_oracle() {
    const END: u32 = 48;
    const STEPS: [Step; 10] = [
        Step::Alloc(1, 0),
        Step::Alloc(2, 1),
        Step::Alloc(3, 0),
        Step::Alloc(8, 3),
        Step::Free(0, 0),
        Step::Free(0, 1 << MAX_ORDER),
        Step::Free(1, 1),
        Step::Extend(0, 1),
        Step::Cool(0),
        Step::Heat(Heat::Partly),
    ];
    let mut sequences = 0;
    for number in 0..STEPS.len().pow(4) {
        let mut world = World::new(END);
        let mut digits = number;
        for _ in 0..4 {
            world.step(&STEPS[digits % STEPS.len()]);
            digits /= STEPS.len();
        }
        world.finish(END);
        sequences += 1;
    }
    assert_eq!(sequences, 10_000);
}

#[test]
fn warm_memory_is_used_again_first() {
    let mut world = World::new(PAGES);
    world.alloc(4, 2);
    let first = world.held[0].0.clone();
    world.free(0, 4);
    world.alloc(4, 2);
    assert_eq!(world.held[0].0, first);
}

/// A slab takes a block that is warm in full before one that is so in part and lies lower.
///
/// Red if `lowest` does not ask how many pages are warm.
#[test]
fn slabs_take_what_is_warm_in_full() {
    let mut world = World::new(PAGES);
    (0..8).for_each(|_| world.alloc(4, 2));
    let at = |world: &World, n: usize| world.held[n].0.start;
    let (low, high) = (at(&world, 2), at(&world, 5));
    assert!(low < high);
    world.free(2, 2);
    // The last has taken its place.
    assert_eq!(at(&world, 5), high);
    world.free(5, 4);
    world.alloc(4, 2);
    assert_eq!(world.held.last().unwrap().0.start, high);
    world.alloc(4, 2);
    assert_eq!(world.held.last().unwrap().0.start, low);
}

/// A run is put together from neighbours that are no buddies, before memory is taken that is cold.
///
/// Red if `across` (`search.rs`) finds nothing.
#[test]
fn neighbours_that_are_no_buddies_serve_together() {
    let mut world = World::new(PAGES);
    for _ in 0..8 {
        world.alloc(48, 0);
    }
    // The third and fourth in address order, across a border of 128 pages; what lies between them is free.
    world.held.sort_by_key(|(run, _)| run.start);
    let (third, fourth) = (world.held[2].0.clone(), world.held[3].0.clone());
    assert_ne!(third.start / 128, (fourth.end - 1) / 128, "they are no buddies");
    world.free(3, 48);
    world.free(2, 48);
    let room = third.start..fourth.end;
    // An odd number, which is what this world takes no slab of.
    world.alloc((room.end - room.start - 4) | 1, 0);
    let (run, _) = world.held.last().unwrap();
    assert!(room.start <= run.start && run.end <= room.end, "{run:?} is not in {room:?}");
    assert_eq!(world.buddy.check(FIRST), Ok(()));
}

#[test]
fn everything_merges_again() {
    let mut world = World::new(PAGES);
    let before = world.buddy.orders();
    for count in 1..200 {
        world.alloc(count % 17 + 1, 0);
    }
    while !world.held.is_empty() {
        world.free(7, 1);
    }
    assert_eq!(world.buddy.orders(), before);
    assert_eq!(world.buddy.check(FIRST), Ok(()));
}

/// Nine blocks of 32 KiB to 2 MiB at a time, tens of thousands one after the other, and what two CPUs keep of the smaller
/// ones: what has memory behind it stays near what was held. It is lower addresses first that does it, and stretches of
/// neighbours.
///
/// Positive control: look at one block only (`LOOKS` in `search.rs`), and it is four times as much; have `across` find
/// nothing, and it is 1.5 times.
#[test]
fn what_comes_and_goes_stays_together() {
    const KEPT_MAX: u32 = 64;
    let mut world = World::new(64 << MAX_ORDER);
    // Xorshift (G. Marsaglia, 2003).
    let mut state = 7919u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as u32
    };
    let mut live = std::collections::VecDeque::new();
    let mut kept = vec![[const { Vec::new() }; KEPT_MAX as usize + 1]; 2];
    let (mut cpu, mut held, mut most) = (0, 0, 0);
    for _ in 0..if cfg!(miri) { 200 } else { 20_000 } {
        if random().is_multiple_of(300) {
            cpu ^= 1;
        }
        let doubling = 8 << (random() % 6);
        let mut count = doubling + random() % doubling + 1;
        if count <= KEPT_MAX {
            // Eight classes to a doubling.
            count = count.next_multiple_of((count.next_power_of_two() / 16).max(1));
        }
        let run = match kept[cpu].get_mut(count as usize).and_then(Vec::pop) {
            Some(run) => run,
            None => {
                let taken = world.buddy.alloc(count, 0, Purpose::Large).expect("a zone of 256 MiB");
                taken.page..taken.page + count
            }
        };
        live.push_back(run);
        held += count;
        most = most.max(held);
        if live.len() > 8
            && let Some(run) = live.pop_front()
        {
            let count = run.end - run.start;
            held -= count;
            match kept[cpu].get_mut(count as usize) {
                Some(kept) if kept.len() < (KEPT_MAX / count).max(1) as usize => kept.push(run),
                _ => world.buddy.free(run, count),
            }
        }
    }
    let kept: u32 = kept.iter().flatten().flatten().map(|run: &Range<u32>| run.end - run.start).sum();
    let resident = world.buddy.resident_pages();
    assert!(resident * 10 < (most + kept) * 14, "{resident} pages for {most} and {kept}");
}

/// Large runs of one length that come and go are parked from the second on; those of other lengths are merged at once, and
/// have the parked ones merged.
///
/// Red if `comes_again` is true always, or never.
#[test]
fn large_runs_are_parked_that_come_again() {
    let mut world = World::new(PAGES);
    let mut comes_and_goes = |pages: u32| {
        world.alloc(pages, 0);
        world.free(0, pages);
        world.buddy.parked.orders() != 0
    };
    assert!(!comes_and_goes(101));
    assert!(comes_and_goes(101) && comes_and_goes(101));
    assert!(!comes_and_goes(151));
    assert!((0..20).all(|n| !comes_and_goes(201 + 2 * n)));
    assert!(comes_and_goes(239));
}

/// While there is no more warm memory than the reserve, runs take cold memory, as long as there is any: neither what is
/// parked, nor what is free in front of it.
///
/// Red if `alloc` takes what is parked without asking `spares_warm`, or if `free_from` goes over warm blocks all the same.
#[test]
fn a_reserve_is_left_alone_while_there_is_cold_memory() {
    let takes_cold = |mut world: World, pages: u32| {
        world.buddy.reserve = 1 << MAX_ORDER;
        world.alloc(pages, 0);
        let run = world.held.last().unwrap().0.clone();
        assert_eq!(world.buddy.check(FIRST), Ok(()));
        !run.into_iter().any(|page| world.touched[page as usize])
    };
    let mut world = World::new(PAGES);
    for _ in 0..2 {
        world.alloc(101, 0);
        world.free(0, 101);
    }
    assert!(world.buddy.parked.orders() != 0);
    assert!(takes_cold(world, 101));
    let mut world = World::new(PAGES);
    world.alloc(41, 0);
    world.free(0, 41);
    assert!(takes_cold(world, 11));
}

/// Eight large runs of any length, each replaced in turn, in 32 sequences of chance: at most 4 % more memory is touched
/// than by first fit, which may put a run at any page.
///
/// Red if `take_low` takes the block alone, if `take_warmest` does where the block is not warm in full, if `warm_around`
/// goes on behind the block before it looks in front of it, or if `comes_again` is true always.
#[test]
fn large_runs_lie_close_together() {
    const LIVE: usize = 8;
    let (mut resident, mut by_first_fit) = (0, 0);
    for seed in 1..=32u64 {
        let mut world = World::new(2 * PAGES);
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut live: [Option<Range<u32>>; LIVE] = [const { None }; LIVE];
        // What first fit does with the same.
        let (mut fitted, mut reach) = (live.clone(), 0);
        for turn in 0..3000 {
            let doubling = 8 << (next() % 6);
            let count = doubling + next() as u32 % doubling;
            let taken = world.buddy.alloc(count, 0, Purpose::Large).unwrap();
            let old = live[turn % LIVE].replace(taken.page..taken.page + count);
            if let Some(old) = old {
                let touched = old.end - old.start;
                world.buddy.free(old, touched);
            }
            let ends = fitted.iter().flatten().map(|run| run.end).chain([0]);
            let free =
                |start: &u32| fitted.iter().flatten().all(|run| run.end <= *start || *start + count <= run.start);
            let start = ends.filter(free).min().unwrap();
            fitted[turn % LIVE] = Some(start..start + count);
            reach = reach.max(start + count);
        }
        resident += world.buddy.resident_pages();
        by_first_fit += reach;
    }
    assert!(resident <= by_first_fit + by_first_fit / 25, "{resident} pages, {by_first_fit} by first fit");
}
