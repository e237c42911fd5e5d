//! Every section of the heap where it was compiled in, reached as a program reaches it, and interrupted before every
//! one of its instructions: the fast paths in their callers, the slow paths' own, deferral, charges, exchanges.
//!
//! Which operation comes to which section is found out by trying. The blocks' contents are compared, and the heap
//! holds afterwards what it held before. `rseq_boundaries.rs` looks at what is on the stacks themselves.

#![cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(loom, pcpalloc_twin))))]

mod common;
mod rseq_common;

use std::alloc::GlobalAlloc;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use common::block::layout;
use common::child::{self, Child, say};
use common::kernel::{self, Kernel};
use common::{Block, HEAP, KIB, cpus, move_thread, on_cpu, thread_number};
use pcpalloc::debug::{Level, check, observing, trial};

use pcpalloc::rcu::{self, RcuHead};
use pcpalloc::{Config, Drain, Mode, PcpAlloc};
use rseq_common::trap::{Interrupted, interrupt, interrupt_after};
use rseq_common::{Section, sections};

const SIZE: usize = 96;
const RUN: usize = 64 * KIB;

#[inline(never)]
fn block(size: usize) -> Block {
    Block::new(size, 8, size as u64).expect("there is memory")
}

/// What a program does, by name; each comes to some of the sections.
type Scenario = (&'static str, fn());

const SCENARIOS: [Scenario; 16] = [
    ("take what another path gave back", || {
        // SAFETY: ours, and not used.
        [raw(SIZE), raw(SIZE)].into_iter().for_each(|block| unsafe { HEAP.dealloc(block.as_ptr(), layout(SIZE, 8)) });
        drop(block(SIZE));
    }),
    ("take and give back", || {
        drop([block(SIZE), block(SIZE)]);
        drop([block(SIZE), block(SIZE)]);
    }),
    ("take zeroed", || {
        for size in [SIZE, RUN, SIZE, RUN] {
            drop(block(size));
            drop(Block::zeroed(size, 8, 1).expect("there is memory"));
        }
    }),
    ("resize", || {
        let mut block = block(SIZE);
        [10 * SIZE, RUN, 5 * RUN, SIZE, 1].into_iter().for_each(|size| assert!(block.resize(size)));
    }),
    ("run empty, run full", || drop((0..150).map(|_| block(SIZE)).collect::<Vec<_>>())),
    ("take the last of a drained CPU", || {
        HEAP.drain(Drain::All);
        drop(block(SIZE));
    }),
    ("grow", || {
        // Runs of a size that is used for nothing else, whose stacks still have their first capacity.
        let size = GROWING.with(|growing| growing.borrow_mut().next().expect("a class"));
        for _ in 0..12 {
            drop((0..200).map(|_| block(size)).collect::<Vec<_>>());
        }
    }),
    ("nolock", || {
        (0..8).for_each(|_| nolock(SIZE));
        // Above the floor, whatever the stack has grown to.
        drop((0..400).map(|_| block(SIZE)).collect::<Vec<_>>());
        (0..8).for_each(|_| nolock(SIZE));
    }),
    ("nolock, charged", || {
        HEAP.charge_nolock(layout(5 * SIZE, 8), 6).expect("a charge");
        HEAP.drain(Drain::All);
        (0..20).for_each(|_| nolock(5 * SIZE));
        // The next slow path sees to what was taken.
        let taken: Vec<_> = (0..3).filter_map(|_| HEAP.try_alloc_nolock(layout(5 * SIZE, 8))).collect();
        HEAP.drain(Drain::All);
        drop(block(5 * SIZE));
        // SAFETY: ours, and not used.
        taken.into_iter().for_each(|block| unsafe { HEAP.free_nolock(block, layout(5 * SIZE, 8)) });
        HEAP.charge_nolock(layout(5 * SIZE, 8), 0).expect("a charge");
    }),
    ("defer", || {
        // More than a page of pointers.
        for _ in 0..600 {
            // SAFETY: a block that nobody else knows.
            unsafe { rcu::free(raw(64), layout(64, 8)) };
        }
        rcu::barrier();
    }),
    ("defer, nolock", || {
        // SAFETY: a block that nobody else knows. It makes room for the next.
        unsafe { rcu::free(raw(64), layout(64, 8)) };
        for size in [64, 2 * RUN] {
            let object = raw(size);
            // SAFETY: a block that nobody else knows, large enough for the head.
            unsafe {
                let head = object.cast::<RcuHead>();
                head.write(RcuHead::new());
                rcu::free_nolock(head, object, layout(size, 8));
            }
        }
        rcu::barrier();
    }),
    ("call, nolock", || {
        // SAFETY: called once, with a block from `raw`.
        unsafe fn give_back(head: NonNull<RcuHead>) {
            // SAFETY: as above.
            unsafe { HEAP.dealloc(head.cast().as_ptr(), layout(64, 8)) };
        }
        // SAFETY: a block that nobody else knows. It makes room for the next.
        unsafe { rcu::free(raw(64), layout(64, 8)) };
        // While somebody reads they add up, and the last of them go into a page.
        let guard = rcu::read_lock();
        for _ in 0..80 {
            let head = raw(64).cast::<RcuHead>();
            // SAFETY: a block that nobody else knows, large enough for the head.
            unsafe {
                head.write(RcuHead::new());
                rcu::call(head, give_back);
            }
        }
        drop(guard);
        rcu::barrier();
    }),
    ("defer what is large", || {
        // One of the notes that it takes is at hand.
        [16, 24, 32, 40, 48, 56, 64].into_iter().for_each(|size| drop(block(size)));
        // SAFETY: a block that nobody else knows.
        unsafe { rcu::free(raw(2 * RUN), layout(2 * RUN, 8)) };
        rcu::barrier();
    }),
    ("more than a stack may hold", || drop((0..3000).map(|_| block(8 * SIZE)).collect::<Vec<_>>())),
    ("free while somebody observes", || {
        assert!(observing::start(1 << 40), "frees can be seen here");
        // The second finds room on the stack in any case.
        drop([block(SIZE), block(SIZE)]);
        observing::stop();
    }),
    ("settle", || {
        // More than the stack has room for, so that some wait for a slow path.
        let blocks: Vec<_> = (0..150).map(|_| raw(SIZE)).collect();
        // SAFETY: ours, and not used.
        blocks.into_iter().for_each(|block| unsafe { HEAP.free_nolock(block, layout(SIZE, 8)) });
        drop((0..300).map(|_| block(SIZE)).collect::<Vec<_>>());
    }),
];

thread_local! {
    static GROWING: RefCell<Box<dyn Iterator<Item = usize>>> =
        RefCell::new(Box::new([1000, 1250, 1500, 1750, 2000, 700, 800, 900, 600, 500, 400, 350, 300, 250, 200].into_iter().cycle()));
}

fn raw(size: usize) -> NonNull<u8> {
    // SAFETY: no size here is 0.
    NonNull::new(unsafe { HEAP.alloc(layout(size, 8)) }).expect("there is memory")
}

/// A nolock allocation, written to and given back, if there is anything at hand.
fn nolock(size: usize) {
    let layout = layout(size, 8);
    if let Some(block) = HEAP.try_alloc_nolock(layout) {
        // SAFETY: ours, and as large.
        unsafe {
            block.as_ptr().write_bytes(0xa5, size);
            let bytes = std::slice::from_raw_parts(block.as_ptr(), size);
            assert!(bytes.iter().all(|&byte| byte == 0xa5));
            HEAP.free_nolock(block, layout);
        }
    }
}

/// What handlers do.
const HANDLERS: [fn(); 3] = [
    || {},
    || nolock(SIZE),
    || {
        nolock(5 * SIZE);
        nolock(64);
        nolock(RUN);
    },
];

fn go_to(cpu: usize) {
    move_thread(thread_number(), cpu);
    while trial::cpu() != Some(cpu) {
        std::thread::yield_now();
    }
}

/// What is held, with nothing cached.
fn in_use() -> usize {
    rcu::barrier();
    HEAP.drain(Drain::All);
    // What nolock frees could not place.
    drop(block(24));
    HEAP.drain(Drain::All);
    HEAP.stats().in_use
}

#[derive(Default)]
struct Tally {
    reached: usize,
    boundaries: usize,
    aborts: usize,
    /// Sections that no scenario comes to, and those of which not every instruction is come to.
    missing: Vec<String>,
    partly: Vec<String>,
}

/// Where the section starts that takes a block from a stack which has one, for `block`.
fn fast_pop(sections: &[Section]) -> usize {
    let mut kept = Vec::with_capacity(sections.len());
    let found = sections.iter().find(|section| {
        drop([block(SIZE), block(SIZE)]);
        interrupt(section.armed, &mut || (), || kept.push(block(SIZE))).1 != Interrupted::Not
    });
    found.expect("there is one").armed
}

/// The function that a section was compiled into, without the hash behind its name.
fn name(section: &Section) -> String {
    let mut name = String::from("?");
    backtrace::resolve(section.start as *mut std::ffi::c_void, |symbol| {
        name = symbol.name().map_or_else(|| name.clone(), |name| name.to_string());
    });
    match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 => name.to_owned(),
        _ => name,
    }
}

fn every_site(scenarios: &[Scenario], tally: &mut Tally) {
    let mut comes_by: BTreeMap<usize, Vec<&Scenario>> = BTreeMap::new();
    let sections = sections();
    let fast = fast_pop(&sections);
    for (number, section) in sections.iter().enumerate() {
        assert_eq!(section.fault(), None, "{section:x?}");
        for scenario in scenarios {
            in_use();
            if interrupt(section.armed, &mut || (), scenario.1).1 != Interrupted::Not {
                comes_by.entry(number).or_default().push(scenario);
            }
        }
    }
    for (number, section) in sections.iter().enumerate() {
        let name = name(section);
        let Some(scenarios) = comes_by.get(&number) else {
            // What has brought the heap up runs once. The sections by themselves are in the program where its linker keeps
            // what is named in `__rseq_cs`, and are nobody's here.
            if !name.ends_with("::alone") && !name.contains("::percpu::trial::") {
                tally.missing.push(name);
            }
            continue;
        };
        tally.reached += 1;
        let mut reached = 0;
        for instruction in &section.instructions {
            let mut arrivals = 0;
            // What a slow path finds all the same it finds after the fast path was aborted.
            for first in [None, Some(fast)] {
                for scenario in scenarios.iter().take(4) {
                    for handler in HANDLERS {
                        let before = in_use();
                        let (_, interrupted) = interrupt_after(first, instruction.at, &mut || handler(), scenario.1);
                        match interrupted {
                            Interrupted::Not => break,
                            Interrupted::GoesOn => {
                                panic!("{name} is not aborted at {:#x} of {section:x?}", instruction.at)
                            }
                            Interrupted::At(address) => assert_eq!(address, section.abort),
                        }
                        arrivals += 1;
                        check(Level::Lists).expect("everything adds up");
                        let after = in_use();
                        assert_eq!(after, before, "{name}, {}: nothing is lost, nothing is twice", scenario.0);
                    }
                }
                if arrivals > 0 {
                    break;
                }
            }
            tally.aborts += arrivals;
            reached += (arrivals > 0) as usize;
        }
        let all = section.instructions.len();
        if reached < all {
            tally.partly.push(format!("{name}: {reached} of {all}"));
        }
        check(Level::Blocks).expect("everything adds up");
        tally.boundaries += reached;
        println!("{name}: {reached} boundaries, by {:?}", scenarios.iter().map(|s| s.0).collect::<Vec<_>>());
    }
}

fn alone(mode: Mode) {
    let heap = PcpAlloc::with_config(Config::new().worker(false));
    // SAFETY: the size is not 0; the block is given back. The heap comes up with these settings.
    unsafe {
        let layout = layout(8, 8);
        heap.dealloc(heap.alloc(layout), layout);
    }
    rcu::set_reclaimer(false);
    move_thread(thread_number(), cpus()[0]);
    assert_eq!(HEAP.stats().mode, mode);
}

/// Red if an operation takes what its section says although that was aborted: in `pop_batch`
/// (`src/percpu/x86_64.rs`), leave the count as it is on an abort. Red if what is not put is forgotten: in `refill`
/// (`src/percpu/slow.rs`), drop `others[put..]`.
#[test]
fn the_whole_heap_interrupted_anywhere() {
    const NAME: &str = "the_whole_heap_interrupted_anywhere";
    child::body(NAME, |_| {
        alone(if kernel::libc_has_registered() { Mode::LibcRseq } else { Mode::OwnRseq });
        let mut tally = Tally::default();
        every_site(&SCENARIOS, &mut tally);
        say("reached", tally.reached);
        say("boundaries", tally.boundaries);
        say("aborts", tally.aborts);
        // An optimised program has copies of sections in places that these scenarios do not come to.
        if cfg!(debug_assertions) && std::env::var_os("PCPALLOC_TEST_OPTIMISED").is_none() {
            assert_eq!(tally.missing, Vec::<String>::new(), "every section is come to");
            assert_eq!(tally.partly, Vec::<String>::new(), "every instruction is come to");
        }
        say("missing", tally.missing.len());
        say("partly", tally.partly.len());
    });
    for kernel in [Kernel::Whole, Kernel::LibcWithoutRseq] {
        let outcome = Child::new(NAME, "").kernel(kernel).run().succeeded();
        print!(
            "{}",
            outcome.stdout.lines().filter(|l| l.contains("by [")).map(|l| format!("{l}\n")).collect::<String>()
        );
        let [reached, boundaries, aborts] = ["reached", "boundaries", "aborts"].map(|key| outcome.number(key));
        let [missing, partly] = ["missing", "partly"].map(|key| outcome.number(key));
        println!("{kernel:?}: {reached} sections, {boundaries} boundaries, {aborts} aborts");
        println!("{kernel:?}: {missing} sections are not come to, {partly} not to their end");
        assert!(reached >= 12 && boundaries >= 110 && aborts > 2 * boundaries, "{outcome:#?}");
    }
}

/// A thread is moved to another CPU right behind a section by which it has got a block without a lock, to one that has no
/// stacks so far: the block is the program's, and counted.
///
/// Red if it is lost: in `pop_nolock` (`src/percpu/nolock.rs`), return null where `region` is `None`, before looking at what
/// was found.
#[test]
fn a_block_comes_along_to_a_cpu_without_stacks() {
    const NAME: &str = "a_block_comes_along_to_a_cpu_without_stacks";
    child::body(NAME, |other| {
        let (here, other) = (cpus()[0], other.parse().expect("a CPU"));
        alone(if kernel::libc_has_registered() { Mode::LibcRseq } else { Mode::OwnRseq });
        drop((0..400).map(|_| block(SIZE)).collect::<Vec<_>>());
        let mut came = 0;
        for section in sections() {
            let hits = HEAP.stats().nolock_hits;
            let mut go = || {
                assert!(!trial::is_running(other).0, "nobody has used CPU {other} so far");
                go_to(other);
            };
            let (found, interrupted) = interrupt(section.end, &mut go, || HEAP.try_alloc_nolock(layout(SIZE, 8)));
            go_to(here);
            came += (interrupted != Interrupted::Not) as usize;
            assert_eq!(HEAP.stats().nolock_hits - hits, 1, "{}", name(&section));
            let found = found.expect("a block above the floor");
            // SAFETY: ours, and not used.
            unsafe { HEAP.free_nolock(found, layout(SIZE, 8)) };
        }
        say("came", came);
    });
    let cpus = cpus();
    if cpus.len() < 2 {
        return println!("skipped: there is one CPU");
    }
    for kernel in [Kernel::Whole, Kernel::LibcWithoutRseq] {
        // Its threads start where this one is.
        let run = || Child::new(NAME, &cpus[1].to_string()).kernel(kernel).run().succeeded();
        assert!(on_cpu(cpus[0], run).number("came") > 0);
    }
}

/// A thread is moved to another CPU right behind a section by which it has taken what was charged to the one where it was:
/// there it is made up for.
///
/// Red if the other CPU is looked at instead: in `pop_of_cpu` (`src/percpu/nolock.rs`), have only `region_here` want something
/// behind the pop.
#[test]
fn a_charge_is_made_up_for_where_it_was_taken() {
    const NAME: &str = "a_charge_is_made_up_for_where_it_was_taken";
    const CHARGE: usize = 6;
    child::body(NAME, |_| {
        let (here, other, layout) = (cpus()[0], cpus()[1], layout(5 * SIZE, 8));
        alone(if kernel::libc_has_registered() { Mode::LibcRseq } else { Mode::OwnRseq });
        HEAP.charge_nolock(layout, CHARGE).expect("a charge");
        // What comes by a slow path, of another class.
        let visit = || {
            for _ in 0..8 {
                HEAP.drain(Drain::All);
                drop(block(SIZE));
            }
        };
        let (mut came, mut taken) = (0, Vec::with_capacity(100));
        for section in sections() {
            visit();
            HEAP.drain(Drain::All);
            let (found, interrupted) = interrupt(section.end, &mut || go_to(other), || HEAP.try_alloc_nolock(layout));
            go_to(here);
            came += (interrupted != Interrupted::Not) as usize;
            taken.extend(found);
            visit();
            HEAP.drain(Drain::All);
            let before = taken.len();
            taken.extend(std::iter::from_fn(|| HEAP.try_alloc_nolock(layout)));
            assert_eq!(taken.len() - before, CHARGE, "{}", name(&section));
            // SAFETY: ours, and not used.
            taken.drain(..).for_each(|block| unsafe { HEAP.free_nolock(block, layout) });
        }
        say("came", came);
    });
    if cpus().len() < 2 {
        return println!("skipped: there is one CPU");
    }
    for kernel in [Kernel::Whole, Kernel::LibcWithoutRseq] {
        assert!(Child::new(NAME, "").kernel(kernel).run().succeeded().number("came") > 1);
    }
}
