//! The profiler's figures against those of a program of which everything is known.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;
mod profile_common;

use std::alloc::Layout;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::model::{Holder, Oracle};
use common::{HEAP, MIB, cpus, on_cpu, on_threads, scaled};
use pcpalloc::debug::failures::{self, Call};
use pcpalloc::debug::{Level, check, is_guarded};
use pcpalloc::profile::{self, Options, StartError, Unwinder, View};
use pcpalloc::{Drain, PcpAlloc, rcu};
use profile_common::{Held, Read_, alone, bounds, deviations, run};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Compares what a profile says of a site with what is known; how far the estimate is off at most, of what it may be.
fn compare(name: &str, seen: &HashMap<usize, (f64, f64)>, exact: &HashMap<usize, u64>, interval: usize) -> f64 {
    let mut worst = 0f64;
    for (&size, &count) in exact {
        let (objects, bytes) = seen.get(&size).copied().unwrap_or_default();
        let (least, most) = bounds(count, size, interval);
        let exact = count as f64;
        worst = worst.max((objects - exact) / (most - exact)).max((exact - objects) / (exact - least));
        let said = || format!("{name}: {count} blocks of {size}, {objects} seen; {least} to {most} are likely");
        assert!((least..=most).contains(&objects), "{}", said());
        assert!((least..=most).contains(&(bytes / size as f64)), "{bytes} bytes seen, {}", said());
    }
    for size in seen.keys() {
        assert!(exact.contains_key(size) || seen[size].0 == 0.0, "{name} has no blocks of {size}: {:?}", seen[size]);
    }
    worst
}

const ESTIMATES: &str = "estimates_agree_with_what_is_known";

/// Several sites, sizes from 16 bytes to 1 MiB, pairs and what stays, resizes, two threads; per CPU and per thread.
///
/// Red if a sample stands for one block (`weight` in `Book::sampled`, `src/profile/record.rs`, 1.0); if frees are not
/// told (`freed_observed` in `src/observe/mod.rs`, false); if marks are not put (`push` in `src/percpu/observed.rs`, no
/// `decide`).
#[test]
fn estimates_agree_with_what_is_known() {
    child::body(ESTIMATES, |argument| {
        let interval: usize = argument.parse().expect("a number");
        profile::start(&Options::new().interval(interval)).expect("it can be observed");
        let (exact, held) = run(scaled(1));
        let read = Read_::of(&profile::snapshot());
        let mut worst = 0f64;
        for (name, exact) in &exact {
            worst = worst.max(compare(name, &read.site(name, View::Allocated), &exact.allocated, interval));
            worst = worst.max(compare(name, &read.site(name, View::Live), &exact.live, interval));
        }
        drop(held);
        let read = Read_::of(&profile::snapshot());
        for (name, exact) in &exact {
            compare(name, &read.site(name, View::Live), &HashMap::new(), interval);
            // What was held at most was held when everything was done, or earlier by what came and went.
            compare(name, &read.site(name, View::Allocated), &exact.allocated, interval);
        }
        profile::stop();
        let after = profile::snapshot();
        assert_eq!(after.lost(), 0);
        check(Level::Blocks).expect("everything adds up");
        say("worst", worst);
    });
    for kernel in Kernel::MODES {
        for interval in [16 << 10, 512 << 10] {
            let outcome = Child::new(ESTIMATES, &interval.to_string()).kernel(kernel).run().succeeded();
            println!("{kernel:?}, {interval}: off by {} of what chance allows at most", outcome.value("worst"));
        }
    }
}

/// Small blocks, of which few are sampled and each stands for many: with so many samples that a fortieth more or less in
/// what they stand for is seen, the sums of all views, in objects and bytes, are within five standard deviations of what is
/// exact, which is a fortieth of the bytes that were allocated.
///
/// Red if what a sample stands for is 4 % too much (`weight` in `Book::sampled`, `src/profile/record.rs`).
#[test]
fn sums_of_small_blocks_are_not_biased() {
    const SIZES: [usize; 4] = [16, 48, 112, 320];
    #[inline(never)]
    fn known_small_blocks(rounds: u64, held: &mut Vec<Held>) {
        for n in 0..rounds {
            for size in SIZES {
                let layout = Layout::from_size_align(size, 8).expect("a layout");
                // SAFETY: the layout's size is not zero; the block is nobody else's, and has no destructor.
                unsafe {
                    let block = NonNull::new(std::alloc::alloc(layout)).expect("there is memory");
                    match n % 8 {
                        0 => held.push(Held(block.as_ptr(), layout)),
                        1 => rcu::free(block, layout),
                        _ => std::alloc::dealloc(block.as_ptr(), layout),
                    }
                }
            }
        }
    }
    let _alone = alone();
    rcu::barrier();
    let (interval, rounds) = (1 << 10, 8 * 10_000);
    profile::start(&Options::new().interval(interval)).expect("it can be observed");
    let mut held = Vec::with_capacity(rounds as usize / 2);
    let guard = rcu::read_lock();
    known_small_blocks(rounds, &mut held);
    let read = Read_::of(&profile::snapshot());
    let exact = |blocks: u64| SIZES.map(|size| (size, blocks)).into_iter().collect::<HashMap<_, _>>();
    // Without the pages of pointers that deferring brings.
    let of_sizes = |read: &Read_, view| {
        let mut seen = read.site("known_small_blocks", view);
        seen.retain(|size, _| SIZES.contains(size));
        seen
    };
    let check = |read: &Read_, view, blocks: u64| {
        let seen = of_sizes(read, view);
        let (objects, bytes) = seen.values().fold((0.0, 0.0), |sum, &(o, b)| (sum.0 + o, sum.1 + b));
        let known = SIZES.map(|size| (size as u64 * blocks) as f64);
        let (by_count, by_bytes) = deviations(&exact(blocks), interval);
        let off = [(objects - 4.0 * blocks as f64) / by_count, (bytes - known.iter().sum::<f64>()) / by_bytes];
        println!("{view:?}: off by {:.2} and {:.2} standard deviations", off[0], off[1]);
        assert!(off.iter().all(|z| z.abs() < 5.0), "{view:?}: {objects} objects, {bytes} bytes, {known:?}: {off:?}");
    };
    check(&read, View::Allocated, rounds);
    check(&read, View::Live, rounds / 8);
    check(&read, View::Deferred, rounds / 8);
    check(&read, View::Peak, rounds / 4);
    drop(guard);
    rcu::drain();
    drop(held);
    let read = Read_::of(&profile::snapshot());
    profile::stop();
    for view in [View::Live, View::Deferred] {
        let left = of_sizes(&read, view);
        assert!(left.values().all(|&(objects, _)| objects == 0.0), "{view:?}: {left:?}");
    }
    check(&read, View::Allocated, rounds);
}

/// Blocks that were freed before a profile began are sampled like others, and what was decided about them at one interval
/// stands for nothing at another.
///
/// Red if stacks stay as they are: leave `decide_anew();` out in `start` (`src/observe/mod.rs`), or in `stop` there, where what
/// the profiler is due is then guarded.
#[test]
fn what_lies_on_stacks_is_decided_about_anew() {
    const NAME: &str = "what_lies_on_stacks_is_decided_about_anew";
    const BLOCKS: u64 = 16;
    fn take(held: &mut Vec<Held>) {
        // A size that nobody else asks for.
        let layout = Layout::from_size_align(700, 8).expect("a layout");
        // SAFETY: the layout's size is not zero.
        held.extend((0..BLOCKS).map(|_| Held(unsafe { std::alloc::alloc(layout) }, layout)));
    }
    child::body(NAME, |_| {
        on_cpu(cpus()[0], || {
            let mut held = Vec::with_capacity(BLOCKS as usize);
            let allocated = || {
                let profile = profile::snapshot();
                assert_eq!(profile.lost(), 0);
                let sites = profile.sites().filter(|site| site.size() == 704);
                sites.map(|site| site.total(View::Allocated).objects).sum::<u64>()
            };
            take(&mut held);
            held.clear();
            profile::start(&Options::new().interval(1)).expect("it can be observed");
            take(&mut held);
            assert_eq!(allocated(), BLOCKS, "each is sampled, and stands for itself");
            held.clear();
            profile::start(&Options::new().interval(1 << 40)).expect("it runs already");
            take(&mut held);
            assert_eq!(allocated(), BLOCKS, "none is sampled");
            held.clear();
            profile::start(&Options::new().interval(1)).expect("it runs already");
            take(&mut held);
            assert_eq!(allocated(), 2 * BLOCKS, "each is sampled again");
            held.clear();
            profile::stop();
            take(&mut held);
            assert!(held.iter().all(|block| !is_guarded(block.0)), "nor is what was due for somebody who has stopped");
        });
    });
    for kernel in Kernel::MODES {
        for settings in ["", "guard:1/1000000000"] {
            Child::new(NAME, "").kernel(kernel).settings(settings).run().succeeded();
        }
    }
}

/// Red if `Book::change` does not note what was held (`site.at_peak`), or a new peak leaves its clock as it was.
#[test]
fn the_peak_is_what_was_held_then() {
    #[inline(never)]
    fn known_before(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| vec![1; 1000]).collect()
    }
    #[inline(never)]
    fn known_after(count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| vec![2; 1000]).collect()
    }
    let _alone = alone();
    let interval = 8 << 10;
    profile::start(&Options::new().interval(interval)).expect("it can be observed");
    let mut before = known_before(8000);
    before.truncate(3000);
    let after = known_after(4000);
    let read = Read_::of(&profile::snapshot());
    profile::stop();
    let exact = |count| HashMap::from([(1024, count)]);
    let of_size = |name, view| {
        let site = read.site(name, view);
        HashMap::from([(1024, site.get(&1024).copied().unwrap_or_default())])
    };
    compare("before, peak", &of_size("known_before", View::Peak), &exact(8000), interval);
    compare("before, now", &of_size("known_before", View::Live), &exact(3000), interval);
    compare("after, peak", &of_size("known_after", View::Peak), &exact(0), interval);
    compare("after, now", &of_size("known_after", View::Live), &exact(4000), interval);
    drop((before, after));
}

/// Red if a page that is sealed does not say so (`PointerPage::of_array` in `src/rcu/page.rs`, without `note_deferred`),
/// or if pages that still fill are not looked at (`snapshot` and `stop` in `src/profile/mod.rs`, without `observe_waiting`).
#[test]
fn what_waits_for_a_grace_period_is_shown_as_such() {
    #[inline(never)]
    fn known_deferred(count: usize, layout: Layout) {
        for _ in 0..count {
            // SAFETY: the layout's size is not zero; the block is nobody else's, and has no destructor.
            unsafe {
                let block = NonNull::new(std::alloc::alloc(layout)).expect("there is memory");
                rcu::free(block, layout);
            }
        }
    }
    let _alone = alone();
    rcu::barrier();
    let interval = 4 << 10;
    profile::start(&Options::new().interval(interval)).expect("it can be observed");
    let sizes = [(1000, 1024, 4000), (100_000, 106_496, 40)];
    let guard = rcu::read_lock();
    for (size, _, count) in sizes {
        known_deferred(count, Layout::from_size_align(size, 8).expect("a layout"));
    }
    let exact: HashMap<usize, u64> = sizes.iter().map(|&(_, size, count)| (size, count as u64)).collect();
    let read = Read_::of(&profile::snapshot());
    let known = |read: &Read_, view| {
        let mut site = read.site("known_deferred", view);
        site.retain(|size, _| exact.contains_key(size));
        site
    };
    compare("waiting", &known(&read, View::Deferred), &exact, interval);
    compare("in use", &known(&read, View::Live), &HashMap::new(), interval);
    drop(guard);
    rcu::drain();
    let read = Read_::of(&profile::snapshot());
    compare("after", &known(&read, View::Deferred), &HashMap::new(), interval);
    compare("allocated", &known(&read, View::Allocated), &exact, interval);
    profile::stop();

    // Fewer than a page of pointers has room for, read when the profile has ended.
    profile::start(&Options::new().interval(1 << 10)).expect("it can be observed");
    let guard = rcu::read_lock();
    known_deferred(400, Layout::from_size_align(1000, 8).expect("a layout"));
    profile::stop();
    let read = Read_::of(&profile::snapshot());
    drop(guard);
    compare("waiting, and stopped", &known(&read, View::Deferred), &HashMap::from([(1024, 400)]), 1 << 10);
}

/// Starts, stops, other intervals, snapshots and files, while others allocate: every block stays whole, everything adds
/// up, and a profile never says that more is in use than was allocated.
#[test]
fn blocks_are_conserved_while_it_is_switched() {
    let _alone = alone();
    let in_use = || {
        rcu::barrier();
        HEAP.drain(Drain::All);
        HEAP.stats().in_use
    };
    // What is made once.
    profile::start(&Options::new()).expect("it can be observed");
    profile::snapshot().write_pprof(std::io::sink()).expect("a sink takes everything");
    profile::stop();
    let before = in_use();
    let (oracle, over) = (Oracle::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (oracle, over) = (&oracle, &over);
        let switches = scope.spawn(move || {
            let (mut random, mut switches) = (common::Random::new(7), 0);
            while !over.load(Ordering::Relaxed) {
                let unwinder = [Unwinder::Tables, Unwinder::FramePointers][random.below(2)];
                let options = Options::new().interval(1 << (6 + random.below(14))).unwinder(unwinder).depth(24);
                profile::start(&options).expect("it can be observed");
                std::thread::sleep(Duration::from_micros(random.below(3000) as u64));
                let seen = profile::snapshot();
                assert!(seen.total(View::Live).bytes <= seen.total(View::Allocated).bytes);
                if random.below(3) == 0 {
                    profile::stop();
                }
                switches += 1;
            }
            profile::stop();
            switches
        });
        on_threads((0..3).map(|seed| {
            move || {
                let mut holder = Holder::new(oracle, 70 + seed);
                for step in 0..scaled(6000) {
                    holder.step();
                    if step % 8 == 0 {
                        rcu::retire(Box::new([step; 9]));
                    }
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        println!("switched {} times", switches.join().expect("no panic"));
    });
    assert!(oracle.is_empty());
    let after = in_use();
    check(Level::Blocks).expect("everything adds up");
    assert!(after.abs_diff(before) < MIB / 4, "{before} bytes were in use, and {after} are now");
}

/// Red if `skip_marks` (`src/percpu/observed.rs`) takes none off.
#[test]
fn drains_take_what_lies_below_marks() {
    let _alone = alone();
    let drained = || {
        HEAP.drain(Drain::All);
        HEAP.stats().percpu_cached
    };
    profile::start(&Options::new().interval(1)).expect("it can be observed");
    for size in [24, 200, 3000, 40_000] {
        let layout = Layout::from_size_align(size, 8).expect("a layout");
        let block = || common::Block::new(size, 8, 1).expect("there is memory");
        let cached = || {
            on_cpu(cpus()[0], || {
                // One at a time, for the largest are kept only if they come and go on a CPU.
                (0..20).for_each(|_| drop(block()));
                let blocks: Vec<_> = (0..20).map(|_| block()).collect();
                drop(blocks);
                HEAP.stats().percpu_cached
            })
        };
        // Whether one of the largest is kept depends on what else goes on, so this is looked at more than once, too.
        let cached = (0..10).map(|_| cached()).max().expect("ten looks");
        // The reclaimer, the worker and the test harness free things, too, so what is left is looked at more than once.
        let left = (0..10).map(|_| drained()).min().expect("ten looks");
        assert!(cached >= PcpAlloc::new().usable_size(layout) && left < 4096, "{cached} were cached, {left} are left");
        check(Level::Blocks).expect("everything adds up");
    }
    profile::stop();
}

/// More samples than there is room for: the program goes on, and the profile says how many it lacks.
#[test]
fn storage_is_bounded() {
    let _alone = alone();
    let metadata = HEAP.stats().metadata;
    profile::start(&Options::new().interval(1)).expect("it can be observed");
    let boxes: Vec<Box<u64>> = (0..100_000).map(Box::new).collect();
    let seen = profile::snapshot();
    profile::stop();
    assert!(boxes.iter().enumerate().all(|(n, value)| **value == n as u64));
    let live = seen.total(View::Live);
    println!("{} lost, {live:?}", seen.lost());
    assert!(seen.lost() > 20_000 && live.objects > 50_000 && live.objects <= 65_536 + 100);
    assert!(seen.lost() as i64 + live.objects as i64 - 100_000 > -100);
    assert!(HEAP.stats().metadata < metadata + 12 * MIB);
}

const ENVIRONMENT: &str = "the_environment_starts_it";

#[test]
fn the_environment_starts_it() {
    child::body(ENVIRONMENT, |_| {
        let boxes: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 4096]).collect();
        say("interval", profile::interval().unwrap_or(0));
        say("live", profile::snapshot().total(View::Live).bytes / boxes.len() as u64);
    });
    let run = |conf| Child::new(ENVIRONMENT, "").settings(conf).run().succeeded();
    let outcome = run("profile:8k");
    assert_eq!(outcome.value("interval"), "8192");
    assert!((3500..6000).contains(&outcome.number("live")), "{outcome:#?}");
    assert_eq!(run("thp:never").value("interval"), "0");
    assert!(run("profile:much").stderr.contains("profile:much"));
}

const AT_EXIT: &str = "the_file_is_written_at_exit";

/// One file a process, in the format of its name; none by a child that would write over its parent's.
///
/// Red if `in_process` (`src/profile/at_exit.rs`) forgets which process asked, or `want` that a path asks for a profile; if
/// `write` there takes its copy before it has stopped, which is then in the copy.
#[test]
fn the_file_is_written_at_exit() {
    child::body(AT_EXIT, |_| {
        let blocks: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 4096]).collect();
        std::mem::forget(blocks);
        // SAFETY: the new process leaves at once, by the C library's `exit`, which is what is to be seen; `status` is valid
        // for the write.
        unsafe {
            let process = libc::fork();
            if process == 0 {
                libc::exit(0);
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(process, &mut status, 0), process);
            assert_eq!(status, 0, "how the child ended");
            say("processes", format!("{} {process}", std::process::id()));
        }
    });
    let directory = std::env::temp_dir().join(format!("pcpalloc-at-exit-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory for temporary files");
    let run = |settings: &str, name: &str| {
        let path = directory.join(name).display().to_string();
        let outcome = Child::new(AT_EXIT, "").settings(&format!("{settings}profile_to:{path}")).run().succeeded();
        let files: Vec<_> = outcome
            .value("processes")
            .split(' ')
            .map(|process| path.replace("%p", process))
            .map(|path| (std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}: {outcome:#?}")), path))
            .collect();
        (outcome, files)
    };
    let lines = |stderr: &str| stderr.lines().filter(|line| line.starts_with("pcpalloc: profile: written to ")).count();

    let (outcome, files) = run("profile:64k,", "heap.%p.pb.gz");
    assert_eq!(lines(&outcome.stderr), 2, "{outcome:#?}");
    assert_ne!(files[0].1, files[1].1);
    for (file, path) in files {
        let read = Read_::of_file(&file);
        assert_eq!(read.0.period, 64 << 10, "{path}");
        let live: f64 = read.site("collect", View::Live).values().map(|(_, bytes)| bytes).sum();
        assert!((6e6..11e6).contains(&live), "{path}: {live}");
    }
    let (outcome, files) = run("", "heap.json");
    assert_eq!(lines(&outcome.stderr), 1, "by the one that was asked: {outcome:#?}");
    let file: serde_json::Value = serde_json::from_slice(&files[0].0).expect("JSON");
    assert_eq!(file["dhatFileVersion"], 2);
    let (_, files) = run("profile:1k,", "heap.folded");
    let text = String::from_utf8(files[0].0.clone()).expect("text");
    assert!(text.contains("collect") && !text.contains("snapshot"), "the profiler's own memory: {text}");
    assert!(text.lines().all(|line| line.rsplit_once(' ').is_some_and(|(_, bytes)| bytes.parse::<u64>().is_ok())));

    let nowhere = Child::new(AT_EXIT, "").settings("profile_to:/nowhere/heap.json").run().succeeded();
    assert!(nowhere.stderr.contains("profile: not written to /nowhere/heap.json: No such file"), "{nowhere:#?}");
    let long = Child::new(AT_EXIT, "").settings(&format!("profile_to:/{}", "a".repeat(512))).run().succeeded();
    assert!(long.stderr.contains("profile: will not be written: the path is too long"), "{long:#?}");
    let nothing = Child::new(AT_EXIT, "").settings("profile_to:").run().succeeded();
    assert!(nothing.stderr.contains("\"profile_to:\" is left out"), "{nothing:#?}");
    std::fs::remove_dir_all(directory).expect("the files");
}

/// A start that is refused leaves what the profile before it has recorded.
///
/// Red if the book is begun before it is known that frees can be seen: in `start` (`src/profile/mod.rs`), move
/// `record::begin();` in front of `observe::start`.
#[test]
fn a_start_that_is_refused_changes_nothing() {
    const NAME: &str = "a_start_that_is_refused_changes_nothing";
    child::body(NAME, |_| {
        profile::start(&Options::new().interval(4096)).expect("it can be observed");
        let kept: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 10_000]).collect();
        profile::stop();
        let before = profile::snapshot();
        assert!(before.total(View::Live).bytes > MIB as u64 / 2, "{before:?}");
        failures::fail(Call::Fence as u32, 0, usize::MAX);
        let refused = profile::start(&Options::new().interval(64));
        failures::fail(0, 0, 0);
        assert_eq!((refused, profile::interval()), (Err(StartError::Unobservable), None));
        let after = profile::snapshot();
        assert_eq!((after.total(View::Live), after.interval()), (before.total(View::Live), 4096));
        profile::start(&Options::new()).expect("it can be observed again");
        drop(kept);
    });
    Child::new(NAME, "").run().succeeded();
}
