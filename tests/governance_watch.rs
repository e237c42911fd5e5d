//! The worker gives memory back when the control group's limits draw near, and when tasks stall for want of memory.

mod common;

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::cgroup::{LimitedGroup, join};
use common::memory::{anonymous, vmstat};
use common::{HEAP, KIB, MIB, child};
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Free memory that nothing but pressure makes the heap give back.
const KEPT: usize = 60 * MIB;
const MARKS: &str = "low:64m,high:96m";

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain: {what}; {}", HEAP.stats());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_kept() -> bool {
    HEAP.stats().free_resident >= KEPT
}

fn is_given_back() -> bool {
    HEAP.stats().free_resident < 4 * MIB
}

/// A directory that goes with this value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("pcpalloc-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory can be made");
        Directory(path)
    }

    fn write(&self, name: &str, text: impl ToString) {
        fs::write(self.0.join(name), text.to_string()).expect("a file can be written");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A directory with the files of a control group of version 1 or 2, which say what the test wants.
///
/// Positive control: have `Group::is_short` in `src/control/watch.rs` return false.
#[test]
fn the_limits_of_a_control_group_are_heeded() {
    const NAME: &str = "the_limits_of_a_control_group_are_heeded";
    child::body(NAME, |argument| {
        let (version, path) = argument.split_once(' ').unwrap();
        let (usage, limit, soft, easy) = match version {
            "2" => ("memory.current", "memory.max", "memory.high", "inactive_file"),
            _ => {
                ("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.soft_limit_in_bytes", "total_inactive_file")
            }
        };
        let set = |name: &str, bytes: usize| fs::write(Path::new(path).join(name), format!("{bytes}\n")).unwrap();
        until("memory is kept while there is enough", is_kept);
        set(usage, 950 * MIB);
        until("memory is given back near the limit", is_given_back);
        std::thread::sleep(Duration::from_secs(1));
        assert!(is_given_back(), "nothing is populated while memory is short");
        set(usage, 300 * MIB);
        until("memory is populated again", is_kept);
        set(soft, 310 * MIB);
        until("memory is given back near the soft limit", is_given_back);
        // Most of it is cache that the kernel drops for nothing.
        fs::write(Path::new(path).join("memory.stat"), format!("anon 7\n{easy} {}\n", 200 * MIB)).unwrap();
        until("memory is populated again", is_kept);
        set(limit, 90 * MIB);
        until("memory is given back near a limit that was lowered", is_given_back);
        child::say("reliefs", vmstat("relief"));
    });
    let directories = ["2", "1"].map(|version| {
        let directory = Directory::new(&format!("cgroup-v{version}"));
        match version {
            "2" => {
                directory.write("memory.current", 300 * MIB);
                directory.write("memory.max", 1000 * MIB);
                directory.write("memory.high", "max\n");
            }
            _ => {
                directory.write("memory.usage_in_bytes", 300 * MIB);
                directory.write("memory.limit_in_bytes", 1000 * MIB);
                directory.write("memory.soft_limit_in_bytes", 0x7fff_ffff_ffff_f000u64);
            }
        }
        (version, directory)
    });
    std::thread::scope(|scope| {
        for (version, directory) in &directories {
            scope.spawn(move || {
                let path = directory.0.to_str().expect("a path of plain letters");
                let outcome = child::Child::new(NAME, &format!("{version} {path}"))
                    .settings(&format!("cgroup:{path},{MARKS}"))
                    .run()
                    .succeeded();
                assert!(outcome.number("reliefs") >= 3, "{outcome:?}");
            });
        }
    });
}

/// Where nothing is cached and free but what lies between blocks in use, that is given back when memory is short, as it is at
/// no other time where the system has no call for many ranges.
///
/// Red if it is not looked at: in `relieve` (`src/control/pressure.rs`), leave `idle` out of the sum.
#[test]
fn what_lies_between_blocks_in_use_goes_back_near_the_limit() {
    const NAME: &str = "what_lies_between_blocks_in_use_goes_back_near_the_limit";
    child::body(NAME, |path| {
        let objects: Vec<Box<[u8; 1000]>> = (0..60_000).map(|n| Box::new([n as u8; 1000])).collect();
        let stay: Vec<_> = objects.into_iter().enumerate().filter(|(n, _)| n % 30 == 0).collect();
        // Until the worker has seen to all that it gives back by itself.
        std::thread::sleep(Duration::from_secs(5));
        let before = anonymous();
        fs::write(Path::new(path).join("memory.current"), "950\n").unwrap();
        until("pages between blocks are given back", || anonymous() + 20 * MIB < before);
        assert!(stay.iter().all(|(n, object)| object.iter().all(|&byte| byte == *n as u8)));
    });
    let directory = Directory::new("between");
    directory.write("memory.current", 300);
    directory.write("memory.max", 1000);
    let path = directory.0.to_str().expect("a path of plain letters");
    child::Child::new(NAME, path).settings(&format!("cgroup:{path},process_madvise:off")).run().succeeded();
}

/// A directory without such files, and the process's own group: nothing happens for want of them, and a process that
/// watches both starts and ends as usual.
#[test]
fn what_is_not_there_is_not_watched() {
    const NAME: &str = "what_is_not_there_is_not_watched";
    child::body(NAME, |_| {
        until("memory is kept", is_kept);
        std::thread::sleep(Duration::from_millis(1500));
        child::say("kept", HEAP.stats().free_resident);
        child::say("complaint", "none");
    });
    for settings in ["cgroup:/nonexistent,pressure:off", "cgroup:on,pressure:on"] {
        let outcome = child::Child::new(NAME, "").settings(&format!("{settings},{MARKS}")).run().succeeded();
        assert!(!outcome.stderr.contains("pcpalloc: "), "{outcome:?}");
        if settings.contains("nonexistent") {
            assert!(outcome.number("kept") >= KEPT, "{outcome:?}");
        }
    }
}

/// A child of a `fork` has a worker of its own that watches, and not the descriptor of its parent's, nor its parent's
/// parent's.
///
/// Red if it keeps them: in `after_fork` (`src/control/worker.rs`), leave the trigger alone.
#[test]
fn children_watch_with_one_descriptor() {
    const NAME: &str = "children_watch_with_one_descriptor";
    fn watch_and_fork(generations: u32) {
        let files = || {
            fs::read_dir("/proc/self/fd")
                .expect("/proc is mounted")
                .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        };
        let watched = || files().filter(|file| file.ends_with("pressure/memory")).count();
        // Its worker has started with a slow path.
        drop(vec![1u8; 5 * MIB]);
        until("pressure is watched", || watched() > 0);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(watched(), 1);
        if generations > 0 {
            assert_eq!(child::in_a_fork(|| watch_and_fork(generations - 1)), 0);
        }
    }
    child::body(NAME, |_| watch_and_fork(2));
    if fs::OpenOptions::new().write(true).open("/proc/pressure/memory").is_err() {
        println!("skipped: there is no pressure stall information here");
        return;
    }
    child::Child::new(NAME, "").settings("pressure:on").run().succeeded();
}

/// Real pressure: a control group with a limit that a program in it runs against, reading a file larger than the limit
/// over and over. Needs the right to make a control group (version 1 or 2); without it, says so.
///
/// Positive control: leave out `pressure:on`.
#[test]
fn stalls_for_want_of_memory_are_heeded() {
    const NAME: &str = "stalls_for_want_of_memory_are_heeded";
    child::body(NAME, |argument| match argument.split_once(' ') {
        None => {
            until("memory is kept while there is enough", is_kept);
            let reliefs = vmstat("relief");
            let pressed = stalls_come(|| vmstat("relief") > reliefs);
            child::say("stalls", if pressed { "heeded" } else { "too few" });
        }
        Some((group, file)) => thrash(Path::new(group), Path::new(file)),
    });
    let has_stalls = fs::OpenOptions::new().write(true).open("/proc/pressure/memory").is_ok();
    let Some(group) = LimitedGroup::new(24 * MIB).filter(|_| has_stalls) else {
        println!("skipped: this test may make no control group here, or there is no pressure stall information");
        return;
    };
    let directory = Directory::new("thrash");
    let argument = format!("{} {}", group.0.display(), directory.0.join("data").display());
    std::thread::scope(|scope| {
        let stalling = scope.spawn(|| child::Child::new(NAME, &argument).run().succeeded());
        let watching = child::Child::new(NAME, "").settings(&format!("pressure:on,{MARKS}")).run();
        // Whether that went well or not, the other child is to end. (It has made the file long ago.)
        let _ = fs::remove_file(directory.0.join("data"));
        let watching = watching.succeeded();
        if watching.value("stalls") != "heeded" {
            println!("skipped: the system never stalled for long enough: {watching:?}");
        }
        stalling.join().unwrap();
    });
}

/// Whether tasks stalled for want of memory so long that `heeded` became true. False is a system that does not stall, whose
/// disk is quick: the kernel's own account says that too little time was lost in every two seconds of a minute.
fn stalls_come(heeded: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    let mut accounts = VecDeque::new();
    let mut stalled_at = None;
    while !heeded() {
        let now = Instant::now();
        accounts.push_back((now, stalled()));
        while now - accounts[0].0 > Duration::from_secs(2) {
            accounts.pop_front();
        }
        // Half more than what the watcher asks for, since its windows begin elsewhere.
        if accounts.back().unwrap().1 - accounts[0].1 > Duration::from_millis(300) {
            stalled_at.get_or_insert(now);
        }
        let lasts = |since: Instant, seconds| now - since > Duration::from_secs(seconds);
        assert!(!stalled_at.is_some_and(|at| lasts(at, 20)), "tasks stalled, and nothing happened; {}", HEAP.stats());
        if stalled_at.is_none() && lasts(began, 60) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// How long some task has stalled for want of memory, since the system was started.
fn stalled() -> Duration {
    let text = fs::read_to_string("/proc/pressure/memory").expect("pressure stall information is there");
    let some = text.lines().find(|line| line.starts_with("some")).expect("a line for some");
    Duration::from_micros(some.rsplit('=').next().unwrap().parse().expect("a total"))
}

/// Moves into the group, writes a file larger than its limit, and reads it over and over from four places until it is
/// gone: every page has been reclaimed when its turn comes again.
fn thrash(group: &Path, file: &Path) {
    const SIZE: usize = 64 * MIB;
    join(group);
    // Written from here, so that its pages count here.
    let mut data = fs::File::create_new(file).expect("a file can be made");
    (0..SIZE / MIB).for_each(|_| data.write_all(&vec![7; MIB]).expect("a file can be written"));
    data.sync_all().expect("a file can be written");
    std::thread::scope(|scope| {
        for reader in 0..4 {
            scope.spawn(move || {
                let mut buffer = vec![0; 64 * KIB];
                while let Ok(mut data) = fs::File::open(file) {
                    data.seek(SeekFrom::Start((reader * SIZE / 4) as u64)).expect("a file has places");
                    while data.read(&mut buffer).expect("a file can be read") > 0 {}
                }
            });
        }
    });
}
