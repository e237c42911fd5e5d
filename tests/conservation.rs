//! Tokens and blocks through the stacks while everything happens at once, in sections that take their time: none is
//! lost, none is there twice.
//!
//! Sections last nanoseconds, so whatever is wrong with them a storm alone hardly ever hits. Here every section of
//! the program pauses before each of its instructions (`rseq_common/delay.rs`), which makes microseconds of them; each
//! fault below is then noticed within a fraction of a second.

#![cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(loom, pcpalloc_twin))))]

mod common;
mod rseq_common;

use core::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use common::block::layout;
use common::child::{self, Child, say};
use common::kernel::Kernel;
use common::model::{Holder, Oracle};
use common::{HEAP, KIB, Random, cpus, move_thread, on_threads, scaled, thread_number};
use pcpalloc::debug::trial::{self, Found, Stack, Stacks, Stop};
use pcpalloc::debug::{Level, check, observing};
use pcpalloc::{Drain, rcu};
use rseq_common::delay::{Fault, slow_down};
use rseq_common::sections;
use rseq_common::storm::Storm;

const CLASS: usize = 5;
/// Tokens, and the room in an array: all of them fit into one.
const TOKENS: usize = 120;
const ROOM: usize = TOKENS + 8;
/// Tokens that nolock allocation leaves on a stack.
const FLOOR: usize = 2;
const STACKS: [Stack; 2] = [Stack::Class(CLASS), Stack::Deferred];

/// Whether somebody holds the token of this number.
static HELD: [AtomicBool; TOKENS + 1] = [const { AtomicBool::new(false) }; TOKENS + 1];
static TWICE: AtomicUsize = AtomicUsize::new(0);
static ABOVE_FLOOR: AtomicUsize = AtomicUsize::new(0);
static OPERATIONS: AtomicUsize = AtomicUsize::new(0);
static ABORTED: AtomicUsize = AtomicUsize::new(0);
/// The CPUs there are; a thread that has been moved sees but one.
static CPUS: OnceLock<Vec<usize>> = OnceLock::new();
/// What a handler could not put back.
static LEFT: [AtomicUsize; TOKENS] = [const { AtomicUsize::new(0) }; TOKENS];

/// A token's word is 16 times its number: as for addresses of blocks, small numbers mean other things.
fn held(token: usize) -> Option<&'static AtomicBool> {
    HELD.get(token / 16).filter(|_| token > 0 && token.is_multiple_of(16))
}

/// A token was found: whether it is the finder's. Async-signal-safe.
fn found(token: usize) -> bool {
    let new = held(token).is_some_and(|held| !held.swap(true, Ordering::Relaxed));
    if !new {
        TWICE.fetch_add(1, Ordering::Relaxed);
    }
    new
}

/// Puts a token back by `put`; whether it went.
fn give(token: usize, put: impl FnOnce(usize) -> bool) -> bool {
    HELD[token / 16].store(false, Ordering::Relaxed);
    let gone = put(token);
    if !gone && HELD[token / 16].swap(true, Ordering::Relaxed) {
        TWICE.fetch_add(1, Ordering::Relaxed);
    }
    gone
}

/// Takes a token as nolock allocation does, and puts it back.
extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    let Found::Word(token) = trial::pop_above_floor(CLASS) else { return };
    ABOVE_FLOOR.fetch_add(1, Ordering::Relaxed);
    if found(token) && !(0..4).any(|_| give(token, |token| trial::push_batch(CLASS, &[token]) == 1)) {
        let free = |slot: &&AtomicUsize| slot.compare_exchange(0, token, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        assert!(LEFT.iter().any(|slot| free(&slot)), "there is room for every token");
    }
}

fn handle(signal: c_int, handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) {
    // SAFETY: the structure is initialised before use, and the handler is of the type that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, core::ptr::null_mut()), 0);
    }
}

/// The stacks of a CPU with two arrays for each, of which one is in use.
struct Place {
    stacks: Stacks,
    arrays: Mutex<[[&'static mut [usize; ROOM + 1]; 2]; 2]>,
}

impl Place {
    fn new(cpu: usize) -> Place {
        let array = || Box::leak(Box::new([0usize; ROOM + 1]));
        let place = Place {
            stacks: Stacks::of_cpu(cpu).expect("memory"),
            arrays: Mutex::new([[array(), array()], [array(), array()]]),
        };
        for (stack, arrays) in STACKS.into_iter().zip(place.arrays.lock().unwrap().iter_mut()) {
            // SAFETY: nobody operates on the stacks yet; the array has a 0 in front and room for the rest.
            unsafe { place.stacks.install(stack, arrays[0].as_mut_ptr().add(1), 0, ROOM) };
        }
        place.stacks.set_floor(CLASS, place.arrays.lock().unwrap()[0][0].as_mut_ptr(), 1 + FLOOR);
        place
    }

    /// Moves the class's stack to its other array, with another capacity.
    fn resize(&self, how: Stop, random: &mut Random) -> bool {
        // Before the CPU is stopped, and after.
        let mut arrays = self.arrays.lock().unwrap();
        let moved = self.stacks.stopped(how, || {
            let [from, to] = &mut arrays[0];
            let (top, _) = self.stacks.ends(STACKS[0]);
            let base = from.as_ptr() as usize + 8;
            let len = (top as usize).wrapping_sub(base) / 8;
            if len > ROOM {
                // A fault has been at work. Nothing is moved, and the count at the end says so.
                return false;
            }
            to[1..=len].copy_from_slice(&from[1..=len]);
            from[1..].fill(usize::MAX >> 1);
            // SAFETY: the CPU is stopped; the array has a 0 in front and room for all tokens.
            unsafe { self.stacks.install(STACKS[0], to.as_mut_ptr().add(1), len, len + random.below(ROOM - len)) };
            self.stacks.set_floor(CLASS, to.as_mut_ptr(), 1 + FLOOR);
            true
        });
        if moved == Some(true) {
            arrays[0].swap(0, 1);
        }
        moved == Some(true)
    }

    /// Takes everything.
    fn drain(&self, how: Stop, held: &mut Vec<usize>) -> bool {
        let mut out = [0; ROOM];
        let taken = self.stacks.stopped(how, || {
            let mut taken = 0;
            for stack in STACKS {
                // SAFETY: the CPU is stopped.
                taken += unsafe { self.stacks.pop_batch(stack, &mut out[taken..]) };
            }
            taken
        });
        let taken = taken.inspect(|&taken| held.extend(out[..taken].iter().filter(|&&token| found(token))));
        taken.is_some()
    }
}

/// One operation by a thread that holds some tokens.
fn operate(held: &mut Vec<usize>, random: &mut Random) {
    let mut miss = false;
    match random.below(9) {
        0 | 1 => match trial::pop(CLASS) {
            0 => miss = true,
            token => held.extend(Some(token).filter(|&token| found(token))),
        },
        2 | 3 => {
            if let Some(token) = held.pop()
                && !give(token, |token| trial::push(CLASS, token))
            {
                held.push(token);
                miss = true;
            }
        }
        4 => {
            let mut out = [0; 7];
            let taken = trial::pop_batch(CLASS, &mut out);
            held.extend(out[..taken].iter().filter(|&&token| found(token)));
        }
        5 | 6 => {
            let count = held.len().min(random.below(8));
            let batch = held.split_off(held.len() - count);
            batch.iter().for_each(|&token| HELD[token / 16].store(false, Ordering::Relaxed));
            let put = trial::push_batch(CLASS, &batch);
            held.extend(batch[put..].iter().filter(|&&token| found(token)));
        }
        7 => {
            if let Some(token) = held.pop()
                && !give(token, trial::push_deferred)
            {
                held.push(token);
            }
        }
        _ => match trial::pop_above_floor(CLASS) {
            Found::Word(token) => held.extend(Some(token).filter(|&token| found(token))),
            Found::Aborted => miss = true,
            _ => {}
        },
    }
    OPERATIONS.fetch_add(1, Ordering::Relaxed);
    ABORTED.fetch_add(miss as usize, Ordering::Relaxed);
}

/// What is broken on purpose.
#[derive(Clone, Copy)]
struct Broken {
    drain: Stop,
    resize: Stop,
    fault: Fault,
}

const WHOLE: Broken = Broken { drain: Stop::Fence, resize: Stop::Here, fault: Fault { late: 0, long: false } };

/// Goes on elsewhere, now and then.
fn change_cpus() {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    if turn.is_multiple_of(3) {
        let cpus = CPUS.get().expect("set at the start");
        move_thread(thread_number(), cpus[turn / 3 % cpus.len()]);
    }
}

/// Faults by name, and the kernel on which each does harm.
fn broken(name: &str) -> (Broken, Kernel) {
    let late = |late| Broken { fault: Fault { late, long: false }, ..WHOLE };
    match name {
        "whole" => (WHOLE, Kernel::Whole),
        "no fence" => (Broken { drain: Stop::NoFence, ..WHOLE }, Kernel::Whole),
        "a failed fence is ignored" => (Broken { drain: Stop::Ignored, ..WHOLE }, Kernel::WithoutFence(libc::EPERM)),
        "a look instead of a section" => (Broken { resize: Stop::Looked(change_cpus), ..WHOLE }, Kernel::Whole),
        "late" => (late(2), Kernel::Whole),
        "long" => (Broken { fault: Fault { late: 0, long: true }, ..WHOLE }, Kernel::Whole),
        _ => panic!("{name}"),
    }
}

/// In every other turn sections take their time everywhere, in the others for long in one place that follows from
/// the turn. The shortest, which stop a CPU, are rare, so they take longer: between their look and their store.
fn slow_everything_down(fault: Fault, turn: u64) {
    let mut random = Random::new(turn);
    for section in sections() {
        let place = random.below(section.instructions.len());
        match turn % 2 {
            _ if section.instructions.len() < 6 => {
                let place = section.instructions.len() - 1 - turn as usize % 3;
                slow_down(&section, |number| if number == place { 2000 } else { 1 }, fault)
            }
            0 => slow_down(&section, |_| 15, fault),
            _ => slow_down(&section, |number| if number == place { 100 } else { 1 }, fault),
        }
    }
}

/// Puts the tokens in, lets everybody loose on them, and counts them.
fn tokens(broken: Broken, turn: u64, rounds: usize) {
    const WORKERS: usize = 6;
    assert!(trial::bring_up(), "this machine has rseq");
    slow_everything_down(broken.fault, turn);
    handle(libc::SIGUSR1, on_signal);
    let places: Vec<Place> = CPUS.get_or_init(cpus).iter().copied().map(Place::new).collect();
    // The one who resizes needs to be on a CPU to do so, and is to be moved from there.
    let (storm, unrest) = (Storm::default(), Storm::default());
    let [drains, resizes, exits] = [const { AtomicUsize::new(0) }; 3];
    let pool = Mutex::new((1..=TOKENS).map(|number| 16 * number).collect::<Vec<_>>());
    HELD[1..].iter().for_each(|held| held.store(true, Ordering::Relaxed));
    std::thread::scope(|scope| {
        let (storm, unrest, places, pool) = (&storm, &unrest, &places, &pool);
        let (drains, resizes, exits) = (&drains, &resizes, &exits);
        for seed in 0..3 {
            scope.spawn(move || storm.moves(seed));
        }
        scope.spawn(move || unrest.moves(11));
        scope.spawn(move || storm.signals(12, libc::SIGUSR1));
        scope.spawn(move || storm.fences(13));
        for seed in 0..2 {
            scope.spawn(move || {
                assert!(trial::bring_up(), "threads have rseq");
                let _exposed = storm.expose();
                let (mut held, mut random) = (Vec::with_capacity(TOKENS), Random::new(40 + seed));
                while !storm.is_over() {
                    let place = &places[random.below(places.len())];
                    if place.drain(broken.drain, &mut held) {
                        drains.fetch_add(1, Ordering::Relaxed);
                    }
                    (0..random.below(40)).for_each(|_| operate(&mut held, &mut random));
                }
                pool.lock().unwrap().append(&mut held);
            });
        }
        scope.spawn(move || {
            assert!(trial::bring_up(), "threads have rseq");
            let _exposed = unrest.expose();
            let mut random = Random::new(50);
            while !storm.is_over() {
                if places[random.below(places.len())].resize(broken.resize, &mut random) {
                    resizes.fetch_add(1, Ordering::Relaxed);
                }
                if random.below(20) == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let workers: Vec<_> = (0..WORKERS)
            .map(|seed| {
                scope.spawn(move || {
                    // Threads end, and others follow them.
                    for life in 0..10 {
                        on_threads([|| {
                            assert!(trial::bring_up(), "threads have rseq");
                            let _exposed = storm.expose();
                            let mut random = Random::new((100 * life + seed) as u64);
                            let mut held = {
                                let mut pool = pool.lock().unwrap();
                                let rest = pool.len() - pool.len() / 2;
                                pool.split_off(rest)
                            };
                            held.reserve(TOKENS);
                            (0..rounds / 10 / WORKERS).for_each(|_| operate(&mut held, &mut random));
                            pool.lock().unwrap().append(&mut held);
                        }]);
                        exits.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        storm.end();
        unrest.end();
        ends.into_iter().for_each(|end| end.unwrap());
    });
    // Everybody is gone: what is in the stacks, in somebody's hands, and what handlers left.
    let mut all = pool.into_inner().unwrap();
    let mut out = [0; 2 * ROOM];
    for place in &places {
        for stack in STACKS {
            // SAFETY: nobody else is there.
            let taken = unsafe { place.stacks.pop_batch(stack, &mut out) };
            all.extend(out[..taken].iter().filter(|&&token| found(token)));
        }
    }
    all.extend(LEFT.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|&token| token != 0));
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    say("lost", TOKENS - all.len());
    say("twice", TWICE.load(Ordering::Relaxed) + count - all.len());
    say("above the floor", ABOVE_FLOOR.load(Ordering::Relaxed));
    say("operations", OPERATIONS.load(Ordering::Relaxed));
    let counts = [&drains, &resizes, &exits, &storm.moves, &storm.signals, &storm.fences, &ABORTED];
    let [drains, resizes, exits, moves, signals, fences, missed] = counts.map(|count| count.load(Ordering::Relaxed));
    say("drains", drains);
    say("resizes", resizes);
    say(
        "report",
        format!(
            "{moves} moves, {signals} signals, {fences} fences, {drains} drains, {resizes} resizes, \
             {exits} thread exits, {missed} misses and aborts"
        ),
    );
}

const TOKEN_TEST: &str = "tokens_are_conserved";

fn run_tokens(name: &str, turn: usize) -> child::Outcome {
    Child::new(TOKEN_TEST, &format!("{name}/{turn}")).kernel(broken(name).1).run()
}

/// What a child is told: a name and the number of its turn.
fn name_and_turn(argument: &str) -> (&str, u64) {
    let (name, turn) = argument.split_once('/').expect("two parts");
    (name, turn.parse().expect("a number"))
}

/// Red with each of the faults in `faults_lose_tokens`. Red if a drain does not fence: in `stop_in`
/// (`src/percpu/table.rs`), return true instead of calling `fence_cpu`.
#[test]
fn tokens_are_conserved() {
    child::body(TOKEN_TEST, |argument| {
        let (name, turn) = name_and_turn(argument);
        tokens(broken(name).0, turn, 120_000);
    });
    let mut above_floor = 0;
    // On many CPUs each has few tokens, fewer above its floor, and its turn to be resized comes seldom.
    let many = cpus().len() > 16;
    for turn in 0..scaled(8) {
        let outcome = run_tokens("whole", turn).succeeded();
        println!("{} operations on {TOKENS} tokens: {}", outcome.value("operations"), outcome.value("report"));
        assert_eq!((outcome.number("lost"), outcome.number("twice")), (0, 0), "{outcome:#?}");
        above_floor += outcome.number("above the floor");
        assert!(outcome.number("drains") > 50 && outcome.number("resizes") > if many { 0 } else { 10 }, "{outcome:#?}");
    }
    println!("handlers took {above_floor} tokens");
    // In a single turn that is luck.
    assert!(above_floor > if many || scaled(8) == 1 { 0 } else { 5 * scaled(8).min(8) });
}

/// What the test above can see: each fault loses tokens or hands them out twice, or ends the process.
#[test]
fn faults_lose_tokens() {
    if cpus().len() < 2 {
        return println!("skipped: what is wrong here does no harm on a single CPU");
    }
    for name in ["no fence", "a failed fence is ignored", "a look instead of a section", "late", "long"] {
        // Each is a matter of luck; most take a turn or two.
        let seen = (0..200).find_map(|turn| {
            let outcome = run_tokens(name, 2 * turn);
            if let Some(signal) = outcome.signal() {
                return Some(format!("ended by signal {signal} in turn {turn}"));
            }
            let outcome = outcome.succeeded();
            let (lost, twice) = (outcome.number("lost"), outcome.number("twice"));
            println!("{name}: {}", outcome.value("report"));
            (lost + twice > 0).then(|| format!("{lost} lost, {twice} twice in turn {turn}"))
        });
        println!("{name}: {}", seen.as_deref().unwrap_or("not seen"));
        assert!(seen.is_some(), "{name} is seen");
    }
}

/// What handlers allocate while the heap is interrupted.
extern "C" fn allocate(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    static CORRUPT: AtomicBool = AtomicBool::new(false);
    let layout = layout(128, 8);
    if let Some(block) = HEAP.try_alloc_nolock(layout) {
        // SAFETY: ours, and as large.
        unsafe {
            block.as_ptr().write_bytes(0x5a, 128);
            if std::slice::from_raw_parts(block.as_ptr(), 128).iter().any(|&byte| byte != 0x5a) {
                CORRUPT.store(true, Ordering::Relaxed);
            }
            HEAP.free_nolock(block, layout);
        }
    }
    if CORRUPT.load(Ordering::Relaxed) {
        std::process::abort();
    }
}

/// The same of blocks, with everything that a program does to its heap.
fn blocks(fault: Fault, turn: u64, steps: usize, deferring: bool, observed: bool) {
    const THREADS: u64 = 5;
    HEAP.stats();
    assert!(trial::bring_up(), "this machine has rseq");
    slow_everything_down(fault, turn);
    handle(libc::SIGUSR1, allocate);
    let in_use = || {
        rcu::barrier();
        HEAP.drain(Drain::All);
        drop(common::Block::new(24, 8, 1));
        HEAP.drain(Drain::All);
        HEAP.stats().in_use
    };
    let before = in_use();
    let (oracle, storm) = (Oracle::default(), Storm::default());
    let handed_over = Mutex::new(Vec::new());
    let (drains, switches) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (oracle, storm, handed_over, drains, switches) = (&oracle, &storm, &handed_over, &drains, &switches);
        scope.spawn(move || storm.moves(1));
        scope.spawn(move || storm.signals(2, libc::SIGUSR1));
        scope.spawn(move || storm.fences(3));
        scope.spawn(move || {
            let mut random = Random::new(5);
            while observed && !storm.is_over() {
                // Down to every block, and then all of them at every step.
                let started = observing::start(1 << random.below(20));
                std::thread::sleep(std::time::Duration::from_micros(random.below(2000) as u64));
                if started && random.below(2) == 0 {
                    observing::stop();
                }
                switches.fetch_add(started as usize, Ordering::Relaxed);
            }
            observing::stop();
        });
        scope.spawn(move || {
            let (cpus, mut random) = (cpus(), Random::new(4));
            while !storm.is_over() {
                match random.below(20) {
                    0 => _ = HEAP.trim(),
                    1 => _ = HEAP.drain(Drain::All),
                    _ => _ = HEAP.drain(Drain::Cpu(cpus[random.below(cpus.len())])),
                }
                drains.fetch_add(1, Ordering::Relaxed);
            }
        });
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| {
                scope.spawn(move || {
                    for life in 0..5 {
                        on_threads([|| {
                            let _exposed = storm.expose();
                            let mut holder = Holder::new(oracle, 10 * seed + life);
                            for step in 0..steps / 5 / THREADS as usize {
                                holder.step();
                                if step % 16 == 0 {
                                    let other: Option<common::Block> = handed_over.lock().unwrap().pop();
                                    other.into_iter().for_each(|block| holder.take_over(block));
                                    let mine = holder.part_with();
                                    handed_over.lock().unwrap().extend(mine);
                                }
                                if step % 8 == 0 && deferring {
                                    rcu::retire(Box::new([step; 9]));
                                    let layout = layout(200, 8);
                                    if let Some(block) = HEAP.try_alloc_nolock(layout) {
                                        // SAFETY: ours, and nobody else knows it.
                                        unsafe { rcu::free(block, layout) };
                                    }
                                }
                            }
                        }]);
                    }
                })
            })
            .collect();
        let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        storm.end();
        ends.into_iter().for_each(|end| end.unwrap());
    });
    // Those that nobody took over are still in the oracle: through a holder they leave it.
    let mut last = Holder::new(&oracle, 0);
    handed_over.into_inner().unwrap().into_iter().for_each(|block| last.take_over(block));
    drop(last);
    assert!(oracle.is_empty());
    let after = in_use();
    check(Level::Blocks).expect("everything adds up");
    say("steps", steps);
    say("drains", drains.load(Ordering::Relaxed));
    say("switches", switches.load(Ordering::Relaxed));
    let counted = observing::counted();
    say("observed", format!("{counted:?}"));
    assert_eq!((counted.twice, counted.lost), (0, 0), "no block is handed out while it is in use");
    assert!(counted.freed <= counted.sampled && counted.sampled > 0 || !observed, "{counted:?}");
    assert!(after.abs_diff(before) < 64 * KIB, "{before} bytes were in use, and {after} are now:\n{}", HEAP.stats());
}

const BLOCK_TEST: &str = "blocks_are_conserved";

/// Red if a section starts two instructions late, which the test sees to itself with `PCPALLOC_TEST_SCALE=10`: on a busy
/// machine it takes tens of turns. Red with each of these, too:
/// `stop_in` without its fence, `drain_cpu` going on after a failed `stop` (on a kernel without the fence), and
/// `stop_here_in` with its `cmp` and `jne` before label 4 (`src/percpu/x86_64.rs`, `drain.rs`).
#[test]
fn blocks_are_conserved() {
    child::body(BLOCK_TEST, |argument| match name_and_turn(argument) {
        ("late", turn) => blocks(Fault { late: 2, long: false }, turn, 12_000, true, false),
        ("whole", turn) => blocks(Fault::default(), turn, 12_000, true, false),
        ("observed", turn) => blocks(Fault::default(), turn, 12_000, true, true),
        // What waits on a CPU that cannot be fenced stays there.
        (_, turn) => blocks(Fault::default(), turn, 12_000, false, false),
    });
    for (kernel, name) in [
        (Kernel::Whole, "whole"),
        (Kernel::Whole, "observed"),
        (Kernel::LibcWithoutRseq, "whole"),
        (Kernel::LibcWithoutRseq, "observed"),
        (Kernel::WithoutFence(libc::EPERM), "without deferring"),
    ] {
        for turn in 0..scaled(2) {
            let outcome = Child::new(BLOCK_TEST, &format!("{name}/{turn}")).kernel(kernel).run().succeeded();
            println!("{kernel:?}: {} steps during {} drains", outcome.value("steps"), outcome.value("drains"));
            println!("  observed {} times: {}", outcome.value("switches"), outcome.value("observed"));
        }
    }
    if scaled(1) < 10 {
        return println!("late sections: not tried without PCPALLOC_TEST_SCALE=10");
    }
    let ended = (0..200).find(|turn| !Child::new(BLOCK_TEST, &format!("late/{}", 2 * turn)).run().status.success());
    println!("late: noticed in turn {ended:?}");
    assert!(ended.is_some(), "sections that start late are noticed");
}
