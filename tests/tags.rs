//! Memory by tag: what is out under each, exactly, across threads, resizes and deferred frees.
//!
//! Each test has tags of its own, so that they do not meet.
#![cfg(not(miri))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::mpsc;

use allocator_api2::vec::Vec as VecIn;
use common::child::{Child, body, say};
use common::{KIB, MIB, Random, on_threads, scaled};
use pcpalloc::rcu;
use pcpalloc::tag::{self, Tag, TaggedAlloc};

#[global_allocator]
static GLOBAL: TaggedAlloc = TaggedAlloc::new();

fn usable(size: usize, align: usize) -> usize {
    GLOBAL.heap().usable_size(Layout::from_size_align(size, align).expect("a layout"))
}

/// What is out under a tag, as a pair.
fn out(tag: &Tag) -> (usize, usize) {
    let stats = tag.stats();
    (stats.bytes, stats.blocks)
}

/// A block that any thread may hold.
struct Held(*mut u8, Layout);
// SAFETY: plain memory, used by whoever holds it.
unsafe impl Send for Held {}

/// Four threads allocate, resize, and hand half of their blocks on; whoever gets one frees it, which is more than it
/// allocated at times. At the end of each round the figures are those of a model, to the byte.
///
/// Red if `realloc` does not count the difference, or if `thread_exit` has the next thread begin at 0.
#[test]
fn handles_count_exactly_across_threads() {
    const THREADS: usize = 4;
    static TAG: Tag = Tag::new("exact");
    for round in 0..scaled(20) {
        let (channels, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Held>()).unzip();
        let (results, held) = mpsc::channel();
        let threads: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(n, receiver)| {
                let (channels, results) = (channels.clone(), results.clone());
                move || {
                    let mut random = Random::new((round * THREADS + n) as u64);
                    let mut mine = Vec::new();
                    for _ in 0..400 {
                        let layout = Layout::from_size_align(random.size().min(MIB), random.align()).expect("a layout");
                        // SAFETY: the sizes are not zero; each block is given back once, as what it is then.
                        unsafe {
                            let block = match random.below(2) {
                                0 => TAG.alloc(layout),
                                _ => TAG.alloc_zeroed(layout),
                            };
                            assert!(!block.is_null());
                            let mut block = Held(block, layout);
                            if random.below(3) == 0 {
                                let size = random.size().min(MIB);
                                let resized = TAG.realloc(block.0, layout, size);
                                assert!(!resized.is_null());
                                block = Held(resized, Layout::from_size_align(size, layout.align()).expect("a layout"));
                            }
                            match random.below(4) {
                                0 => mine.push(block),
                                1 => TAG.dealloc(block.0, block.1),
                                _ => drop(channels[random.below(THREADS)].send(block)),
                            }
                        }
                        while let Ok(other) = receiver.try_recv() {
                            // SAFETY: nobody else has it any more.
                            unsafe { TAG.dealloc(other.0, other.1) };
                        }
                    }
                    drop(channels);
                    mine.extend(receiver);
                    mine.into_iter().for_each(|block| results.send(block).expect("somebody listens"));
                }
            })
            .collect();
        // Or nobody would ever hear that no more blocks come.
        drop((channels, results));
        on_threads(threads);
        let held: Vec<Held> = held.into_iter().collect();
        let bytes = held.iter().map(|block| GLOBAL.heap().usable_size(block.1)).sum();
        assert_eq!(out(&TAG), (bytes, held.len()));
        // SAFETY: as above.
        held.into_iter().for_each(|block| unsafe { TAG.dealloc(block.0, block.1) });
        assert_eq!(out(&TAG), (0, 0));
    }
}

/// As the allocator of collections, through every method of `Allocator`.
#[test]
fn collections_count_under_their_handle() {
    let tag = Tag::new("collections");
    let mut vector: VecIn<u64, &Tag> = VecIn::new_in(&tag);
    assert_eq!(out(&tag), (0, 0));
    (0..1000u64).for_each(|n| vector.push(n));
    assert_eq!(out(&tag), (usable(vector.capacity() * 8, 8), 1));
    vector.reserve_exact(100_000);
    assert_eq!(out(&tag), (usable(vector.capacity() * 8, 8), 1));
    vector.shrink_to_fit();
    assert_eq!(out(&tag), (usable(8000, 8), 1));
    let copy = vector.clone();
    assert_eq!(out(&tag), (2 * usable(8000, 8), 2));
    vector.truncate(0);
    vector.shrink_to_fit();
    drop(copy);
    assert_eq!(out(&tag), (0, 0));
    // A tag is its name.
    let again: VecIn<u8, Tag> = VecIn::with_capacity_in(100, Tag::new("collections"));
    assert_eq!(out(&tag), (usable(100, 1), 1));
    drop(again);
}

/// What is allocated inside `with` is counted under its tag until it is freed, wherever that is; a byte of each block is
/// the tag's.
///
/// Red if `dealloc` takes what it frees from the tag in force.
#[test]
fn blocks_stay_with_the_tag_that_allocated_them() {
    let (outer, inner) = (Tag::new("outer"), Tag::new("inner"));
    let (mut first, second) = outer.with(|| {
        let first = vec![1u8; 100];
        let second = inner.with(|| vec![2u8; 1000]);
        (first, second)
    });
    assert_eq!(out(&outer), (usable(101, 1), 1));
    assert_eq!(out(&inner), (usable(1001, 1), 1));
    // Grown outside, and inside another's.
    first.reserve_exact(5000 - first.len());
    assert_eq!(out(&outer), (usable(5001, 1), 1));
    inner.with(|| first.shrink_to_fit());
    assert_eq!(out(&outer), (usable(101, 1), 1));
    on_threads([|| outer.with(|| drop(second))]);
    assert_eq!((out(&outer).1, out(&inner)), (1, (0, 0)));
    drop(first);
    assert_eq!(out(&outer), (0, 0));
    // A panic leaves the tag, too.
    let panic = std::panic::catch_unwind(|| outer.with(|| std::panic::resume_unwind(Box::new(()))));
    drop(panic);
    let unrelated = vec![1u8; 10];
    assert_eq!(out(&outer), (0, 0));
    drop(unrelated);
}

/// Threads by the hundred, one after the other and together, each of which leaves something behind.
#[test]
fn what_ended_threads_have_counted_stays() {
    const NAME: &str = "what_ended_threads_have_counted_stays";
    // In a process of its own: the tables are everybody's.
    body(NAME, |_| {
        static TAG: Tag = Tag::new("threads");
        let mut left: Vec<Vec<u8>> = Vec::new();
        let metadata = || GLOBAL.heap().stats().metadata;
        on_threads((0..8).map(|_| || drop(TAG.with(|| vec![0u8; 10]))));
        let before = metadata();
        for _ in 0..scaled(40) {
            let (sender, receiver) = mpsc::channel();
            on_threads((0..8).map(|_| {
                let sender = sender.clone();
                move || sender.send(TAG.with(|| vec![0u8; 300])).expect("somebody listens")
            }));
            drop(sender);
            left.extend(receiver);
            assert_eq!(out(&TAG), (left.len() * usable(301, 1), left.len()));
        }
        // Threads that come take over from those that went: hundreds of them have made no tables of their own.
        let more = metadata().saturating_sub(before);
        assert!(more < 128 * KIB, "{more} bytes of tables more");
        drop(left);
        assert_eq!(out(&TAG), (0, 0));
    });
    Child::new(NAME, "").run().succeeded();
}

/// What is retired counts until it is freed, plain values and others.
///
/// Red, by an abort, if `is_plain` in `src/rcu/linked.rs` does not ask whether boxes are exact.
#[test]
fn retired_boxes_count_until_they_are_freed() {
    let tag = Tag::new("retired");
    // What the domain and its reclaimer keep is allocated by whoever comes first.
    rcu::retire(Box::new(vec![0u8; 100]));
    rcu::barrier();
    let section = rcu::read_lock();
    for n in 0..800usize {
        tag.with(|| rcu::retire(Box::new([n as u64; 8])));
        tag.with(|| rcu::retire(Box::new(vec![n as u8; 100])));
    }
    assert!(tag.stats().blocks >= 3 * 800);
    drop(section);
    rcu::barrier();
    assert_eq!(out(&tag), (0, 0));
}

/// Every way that a global allocator is asked, at sizes that fill their class; contents are kept, and the tag, too.
#[test]
fn blocks_are_as_large_as_asked() {
    let tag = Tag::new("sizes");
    let mut random = Random::new(3);
    for size in [1, 7, 8, 63, 64, 4095, 4096, 32 * KIB, 256 * KIB, MIB, 4 * MIB, 5 * MIB] {
        let layout = Layout::from_size_align(size, random.align()).expect("a layout");
        // SAFETY: the block is as large as asked, and freed as what it was resized to.
        tag.with(|| unsafe {
            let block = GLOBAL.alloc_zeroed(layout);
            assert!(block.addr().is_multiple_of(layout.align()));
            assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == 0));
            block.write_bytes(0xff, size);
            let block = GLOBAL.realloc(block, layout, 2 * size);
            assert!(std::slice::from_raw_parts(block, size).iter().all(|&byte| byte == 0xff));
            block.write_bytes(0xff, 2 * size);
            assert_eq!(out(&tag), (usable(2 * size + 1, layout.align()), 1));
            GLOBAL.dealloc(block, Layout::from_size_align(2 * size, layout.align()).expect("a layout"));
        });
        assert_eq!(out(&tag), (0, 0));
    }
    // SAFETY: a layout without room for the byte: null, as for any other that cannot be had.
    assert!(unsafe { GLOBAL.alloc(Layout::from_size_align(isize::MAX as usize, 1).expect("a layout")) }.is_null());
}

#[test]
fn a_write_past_the_end_is_noticed() {
    body("a_write_past_the_end_is_noticed", |_| {
        let block = Box::into_raw(Box::new([0u8; 10]));
        // SAFETY: it is not: this is the mistake. The byte is in the block all the same.
        unsafe {
            block.cast::<u8>().add(10).write_volatile(0xff);
            drop(Box::from_raw(block));
        }
    });
    let outcome = Child::new("a_write_past_the_end_is_noticed", "").run();
    assert_eq!(outcome.signal(), Some(libc::SIGABRT), "{outcome:?}");
    assert!(outcome.stderr.contains("past its end"), "{outcome:?}");
}

/// Names beyond those that can be told apart are untagged, to the last block.
#[test]
fn names_run_out() {
    body("names_run_out", |_| {
        let names: Vec<&'static str> = (0..100).map(|n| &*format!("tag \"{n}\"\n").leak()).collect();
        let tags: Vec<Tag> = names.iter().map(|name| Tag::new(name)).collect();
        let vectors: Vec<VecIn<u8, &Tag>> = tags.iter().map(|tag| VecIn::with_capacity_in(1 << 20, tag)).collect();
        let named = tag::stats().filter(|tag| tag.bytes == MIB && tag.blocks == 1).count();
        let untagged = || tag::stats().next().expect("there is always one").bytes;
        assert_eq!(named, 63);
        let mut text = String::with_capacity(64 * KIB);
        GLOBAL.heap().write_prometheus(&mut text).expect("a string takes everything");
        assert!(text.contains("pcpalloc_tag_bytes{tag=\"tag \\\"7\\\"\\n\"} 1048576\n"), "{text}");
        let before = untagged();
        assert!(before >= 37 * MIB, "{before}");
        drop(vectors);
        say("less", before - untagged());
        assert_eq!(tag::stats().skip(1).map(|tag| tag.bytes + tag.blocks).sum::<usize>(), 0);
    });
    let less = Child::new("names_run_out", "").run().succeeded().number("less");
    assert!((37 * MIB..38 * MIB).contains(&less), "{less}");
}

/// What is out under no tag has a name, which a tag may be given, too: there is one line of it all the same.
///
/// Red if the tag is one of its own: in `register` (`src/tag/mod.rs`), change `self.name == UNTAGGED_NAME` to `false`.
#[test]
fn a_tag_called_untagged_is_none() {
    const NAME: &str = "a_tag_called_untagged_is_none";
    body(NAME, |_| {
        let tag = Tag::new("untagged");
        let untagged = || tag::stats().next().expect("there is always one");
        let before = untagged().bytes;
        let vector: VecIn<u8, &Tag> = VecIn::with_capacity_in(8 * MIB, &tag);
        assert!((8 * MIB..9 * MIB).contains(&(untagged().bytes - before)), "{}", untagged());
        assert!(tag.stats().bytes >= 8 * MIB && tag.stats().name == "untagged");
        let mut text = String::with_capacity(64 * KIB);
        GLOBAL.heap().write_prometheus(&mut text).expect("a string takes everything");
        let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(series("pcpalloc_tag_bytes{tag=\"untagged\"}"), 1, "{text}");
        drop(vector);
    });
    Child::new(NAME, "").run().succeeded();
}
