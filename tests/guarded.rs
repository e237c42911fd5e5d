//! Sampled allocations between pages that cannot be touched: what is wrong is named, with the places where the block
//! was allocated and freed. In processes of their own, which it ends.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use common::block::layout;
use common::child::{self, Child, Outcome, in_a_fork, say};
use common::kernel::Kernel;
use common::{Block, HEAP, KIB, PAGE};
use pcpalloc::debug;
use pcpalloc::{Config, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().guarded_sampling(10));

const SIZE: usize = 48;

/// A guarded block for which `fits`, or any block if none is guarded.
#[inline(never)]
fn allocated_here(fits: impl Fn(usize) -> bool) -> *mut u8 {
    for _ in 0..20_000 {
        // SAFETY: the size is not 0.
        let block = unsafe { HEAP.alloc(layout(SIZE, 8)) };
        if debug::is_guarded(block) && fits(block as usize) {
            say("block", format!("{block:p}"));
            return block;
        }
        freed_here(block);
    }
    say("block", "not guarded");
    // SAFETY: as above.
    unsafe { HEAP.alloc(layout(SIZE, 8)) }
}

#[inline(never)]
fn freed_here(block: *mut u8) {
    // SAFETY: a block of this layout, or a mistake that is to be found.
    unsafe { HEAP.dealloc(block, layout(SIZE, 8)) }
    std::hint::black_box(());
}

#[inline(never)]
fn accessed_here(at: *mut u8) {
    // SAFETY: none: the mistake that is to be found.
    unsafe { at.write_volatile(at.read_volatile() ^ 1) }
    std::hint::black_box(());
}

fn at_the_end(block: usize) -> bool {
    (block + SIZE).is_multiple_of(PAGE)
}

fn at_the_start(block: usize) -> bool {
    block.is_multiple_of(PAGE)
}

type Mistake = (&'static str, &'static str, &'static str, fn());

/// A name, the first words of the report, where the address is, and the mistake.
const MISTAKES: [Mistake; 8] = [
    ("overflow", "overflow: a read at", "0 bytes behind the end of", || {
        accessed_here(allocated_here(at_the_end).wrapping_add(SIZE))
    }),
    ("overflow-far", "overflow: a read at", "100 bytes behind the end of", || {
        accessed_here(allocated_here(at_the_end).wrapping_add(SIZE + 100))
    }),
    ("underflow", "underflow: a read at", "1 bytes in front of", || {
        accessed_here(allocated_here(at_the_start).wrapping_sub(1))
    }),
    ("use-after-free", "use after free: a read at", "5 bytes into", || {
        let block = allocated_here(|_| true);
        freed_here(block);
        accessed_here(block.wrapping_add(5));
    }),
    ("use-after-free-much-later", "use after free: a read at", "5 bytes into", || {
        let block = allocated_here(|_| true);
        freed_here(block);
        drop((0..400).map(|n| Block::new(SIZE, 8, n)).collect::<Vec<_>>());
        accessed_here(block.wrapping_add(5));
    }),
    ("double-free", "a block was freed twice", "0 bytes into", || {
        let block = allocated_here(|_| true);
        freed_here(block);
        freed_here(block);
    }),
    ("double-free-nolock", "a block was freed twice", "0 bytes into", || {
        let block = allocated_here(|_| true);
        // SAFETY: a block of this layout, used no more but for the mistake.
        unsafe { HEAP.free_nolock(NonNull::new_unchecked(block), layout(SIZE, 8)) };
        freed_here(block);
    }),
    ("middle", "a pointer into the middle of a block was freed", "16 bytes into", || {
        freed_here(allocated_here(|_| true).wrapping_add(16))
    }),
];

/// Where this program's file is mapped, of which reports name places by distance.
fn start_of_program() -> usize {
    let own = std::env::current_exe().expect("the program knows its path");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the system says what is mapped");
    let first = maps.lines().find(|line| line.ends_with(own.to_str().expect("a path"))).expect("the program is mapped");
    usize::from_str_radix(first.split_once('-').expect("a range").0, 16).expect("an address")
}

/// The functions on a part of the report's lines, by this program's symbols.
fn functions(outcome: &Outcome, part: &str, exact: bool) -> String {
    let start = start_of_program();
    let lines = outcome.stderr.lines().skip_while(|line| !line.trim_start().starts_with(part)).skip(1);
    let mut names = String::new();
    for line in lines.take_while(|line| line.starts_with("    ")) {
        let Some((_, distance)) = line.rsplit_once("+0x") else { continue };
        let distance = usize::from_str_radix(distance, 16).expect("a distance");
        // A return address is behind the call.
        let at = start + distance - usize::from(!exact);
        backtrace::resolve(at as *mut c_void, |symbol| names.extend(symbol.name().map(|name| format!("{name}\n"))));
    }
    names
}

/// Red if a freed page is not forbidden (`bury` in `src/checked/guarded.rs`), if traces are not recorded, or if the
/// handler is not installed.
#[test]
fn mistakes_are_named_with_their_places() {
    const NAME: &str = "mistakes_are_named_with_their_places";
    child::body(NAME, |name| {
        let (.., make) = MISTAKES.iter().find(|mistake| mistake.0 == name).expect("the mistake is one of ours");
        make();
    });
    for (name, what, place, _) in MISTAKES {
        for kernel in [Kernel::Whole, Kernel::WithoutRseq(libc::ENOSYS)] {
            let outcome = Child::new(NAME, name).kernel(kernel).run();
            let first = outcome.stderr.lines().next().unwrap_or("");
            assert!(first.starts_with(&format!("pcpalloc: {what}")), "{name}: {outcome:#?}");
            let block = format!(", {place} a block of {SIZE} bytes at {}", outcome.value("block"));
            assert!(first.ends_with(&block), "{name}: {block}, {outcome:#?}");
            assert!(functions(&outcome, "allocated", false).contains("allocated_here"), "{name}: {outcome:#?}");
            let freed = name.contains("after-free") || name == "double-free";
            assert_eq!(functions(&outcome, "freed by", false).contains("freed_here"), freed, "{name}: {outcome:#?}");
            if what.contains("at") && what.contains(": a read") {
                assert!(functions(&outcome, "the access", true).contains("accessed_here"), "{name}: {outcome:#?}");
                assert_eq!(outcome.signal(), Some(libc::SIGSEGV), "{name}: {outcome:#?}");
            } else {
                assert!(functions(&outcome, "freed now", false).contains("guarded"), "{name}: {outcome:#?}");
                assert_eq!(outcome.signal(), Some(libc::SIGABRT), "{name}: {outcome:#?}");
            }
        }
    }
    // Without sampling the accesses are as unnoticed as ever.
    for name in ["overflow", "underflow", "use-after-free", "double-free"] {
        let outcome = Child::new(NAME, name).settings("guard:off").run().succeeded();
        assert_eq!((outcome.value("block"), outcome.stderr.as_str()), ("not guarded", ""), "{name}");
    }
}

extern "C" fn own_handler(_: libc::c_int) {
    let line = b"\nown handler: called\n";
    // SAFETY: the buffer is valid; leaving like this is allowed in a handler.
    unsafe {
        libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(7);
    }
}

/// Whoever handled bad accesses before does so afterwards; and what lies elsewhere is not ours to report.
///
/// Red if `enter` (`src/sys/fault.rs`) calls nobody, or reports without asking where the address is.
#[test]
fn other_handlers_are_called_and_other_faults_left_alone() {
    const NAME: &str = "other_handlers_are_called_and_other_faults_left_alone";
    child::body(NAME, |argument| {
        if debug::has_guards() {
            return say("too early", "yes");
        }
        if argument.contains("handler") {
            // SAFETY: the function has the type that is asked for.
            unsafe { libc::signal(libc::SIGSEGV, own_handler as *const () as libc::sighandler_t) };
        }
        let block = (0..1000).map(|_| allocated_here(|_| true)).find(|&block| debug::is_guarded(block));
        let block = block.expect("a sample in twenty million");
        freed_here(block);
        if argument.contains("elsewhere") {
            accessed_here(std::ptr::without_provenance_mut(16));
        }
        accessed_here(block);
    });
    // So rarely that a sample hardly ever comes before the child's own handler does.
    let run = |argument| {
        let mut runs = (0..8).map(|_| Child::new(NAME, argument).settings("guard:1/50000").run());
        runs.find(|outcome| !outcome.stdout.contains("too early")).expect("a sample at the right time")
    };
    let outcome = run("handler");
    assert!(outcome.stderr.starts_with("pcpalloc: use after free"), "{outcome:#?}");
    assert_eq!((outcome.value("own handler"), outcome.status.code()), ("called", Some(7)), "{outcome:#?}");
    let outcome = run("handler elsewhere");
    assert_eq!((outcome.value("own handler"), outcome.stderr.as_str()), ("called", ""), "{outcome:#?}");
    let outcome = run("elsewhere");
    assert_eq!((outcome.signal(), outcome.stderr.as_str()), (Some(libc::SIGSEGV), ""), "{outcome:#?}");
}

/// Where there never was a block, none was freed.
///
/// Red if whatever is forbidden counts as freed: in `report_access` (`src/checked/fault.rs`), leave
/// `.filter(|slot| distance(slot, fault.address).is_some())` out.
#[test]
fn an_access_where_no_block_has_been_is_wild() {
    const NAME: &str = "an_access_where_no_block_has_been_is_wild";
    child::body(NAME, |_| {
        // A block of the first half, and a place of the second, which a pool that has given few blocks has not used.
        accessed_here(allocated_here(|_| true).wrapping_add(256 * PAGE));
    });
    let outcome = Child::new(NAME, "").settings("guard:1/500").run();
    assert_eq!(outcome.signal(), Some(libc::SIGSEGV), "{outcome:#?}");
    assert!(outcome.stderr.starts_with("pcpalloc: wild access: a read at "), "{outcome:#?}");
    assert!(!outcome.stderr.contains("by thread") && !outcome.stderr.contains("a block of"), "{outcome:#?}");
}

/// A handler that asked to be called once (`SA_RESETHAND`) and returns is called once: then the access ends the process.
///
/// Red if it is called whenever the access is tried again: in `enter` (`src/sys/fault.rs`), change
/// `flags & libc::SA_RESETHAND != 0` to `false`.
#[test]
fn a_handler_that_asked_to_be_called_once_is() {
    const NAME: &str = "a_handler_that_asked_to_be_called_once_is";
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn once(_: libc::c_int) {
        let line = b"\nonce: called\n";
        // SAFETY: the buffer is valid; leaving like this is allowed in a handler.
        unsafe {
            libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len());
            if CALLS.fetch_add(1, Ordering::Relaxed) > 0 {
                libc::_exit(7);
            }
        }
    }
    child::body(NAME, |_| {
        if debug::has_guards() {
            return say("too early", "yes");
        }
        // SAFETY: the structure is valid when zero; the function has the type that is asked for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = once as *const () as usize;
            action.sa_flags = libc::SA_RESETHAND;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
        }
        let block = (0..1000).map(|_| allocated_here(|_| true)).find(|&block| debug::is_guarded(block));
        let block = block.expect("a sample in twenty million");
        freed_here(block);
        accessed_here(block);
    });
    let mut runs = (0..8).map(|_| Child::new(NAME, "").settings("guard:1/50000").run());
    let outcome = runs.find(|outcome| !outcome.stdout.contains("too early")).expect("a sample at the right time");
    assert!(outcome.stderr.starts_with("pcpalloc: use after free"), "{outcome:#?}");
    assert_eq!(outcome.stdout.matches("once: called").count(), 1, "{outcome:#?}");
    assert_eq!(outcome.signal(), Some(libc::SIGSEGV), "{outcome:#?}");
}

/// A signal that somebody sends is no bad access: it does what it would do without us, which is to end the process, or
/// nothing if the process wants it so. What is a bad access is reported afterwards, too.
///
/// Red if a signal that was sent is taken for an access that is tried again: in `enter` (`src/sys/fault.rs`), change
/// `libc::raise(signal);` to nothing; or if one that is ignored ends the process: there, change
/// `libc::SIG_IGN if by_a_program => {}` to nothing.
#[test]
fn a_signal_that_was_sent_does_what_it_would_do_without_us() {
    const NAME: &str = "a_signal_that_was_sent_does_what_it_would_do_without_us";
    child::body(NAME, |argument| {
        if debug::has_guards() {
            return say("too early", "yes");
        }
        let ignored = argument == "ignored";
        // SAFETY: neither is a function, and both may be asked for.
        unsafe { libc::signal(libc::SIGSEGV, if ignored { libc::SIG_IGN } else { libc::SIG_DFL }) };
        let block = (0..1000).map(|_| allocated_here(|_| true)).find(|&block| debug::is_guarded(block));
        let block = block.expect("a sample in twenty million");
        freed_here(block);
        // To the process, which any thread may take, and to this thread, which takes it before the call returns.
        // SAFETY: both are system calls without preconditions.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGSEGV);
            if ignored {
                libc::raise(libc::SIGSEGV);
            } else {
                // For whichever thread it is to have ended the process.
                std::thread::sleep(std::time::Duration::from_secs(20));
            }
        }
        say("survived", "yes");
        if ignored {
            accessed_here(block);
        }
    });
    let run = |argument| {
        let mut runs = (0..8).map(|_| Child::new(NAME, argument).settings("guard:1/50000").run());
        runs.find(|outcome| !outcome.stdout.contains("too early")).expect("a sample at the right time")
    };
    let outcome = run("deadly");
    assert_eq!((outcome.signal(), outcome.stderr.as_str()), (Some(libc::SIGSEGV), ""), "{outcome:#?}");
    assert!(!outcome.stdout.contains("survived"), "{outcome:#?}");
    let outcome = run("ignored");
    assert_eq!((outcome.signal(), outcome.value("survived")), (Some(libc::SIGSEGV), "yes"), "{outcome:#?}");
    assert!(outcome.stderr.starts_with("pcpalloc: use after free"), "{outcome:#?}");
}

/// Bytes of a signal stack that a report may take beyond what the kernel needs for the signal: Rust gives threads 8 KiB in
/// all, and the kernel's part is half of that with AVX-512.
const REPORT_STACK: usize = 3 * KIB + KIB / 2;
const PAINT: u8 = 0xa5;
static SIGNAL_STACK: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
const SIGNAL_STACK_LEN: usize = 64 * KIB;

extern "C" fn measuring_handler(_: libc::c_int) {
    // SAFETY: the stack is the one that this handler runs on; what lies below it is nobody's.
    let untouched = unsafe {
        let stack = SIGNAL_STACK.load(Ordering::Relaxed);
        (0..SIGNAL_STACK_LEN).take_while(|&n| stack.add(n).read_volatile() == PAINT).count()
    };
    let mut line = *b"\nused: 00000\n";
    let mut used = SIGNAL_STACK_LEN - untouched;
    for digit in line[7..12].iter_mut().rev() {
        *digit = b'0' + (used % 10) as u8;
        used /= 10;
    }
    // SAFETY: the buffer is valid; leaving like this is allowed in a handler.
    unsafe {
        libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(7);
    }
}

/// A report has room on the signal stacks that Rust gives to threads, in a program that is not optimised, too.
///
/// Red if the buffers are on the stack: have `FileRoom::each_line_of` (`src/sys/fault.rs`) copy its two.
#[test]
fn a_report_takes_little_of_a_signal_stack() {
    const NAME: &str = "a_report_takes_little_of_a_signal_stack";
    child::body(NAME, |_| {
        let stack = Box::leak(vec![PAINT; SIGNAL_STACK_LEN].into_boxed_slice()).as_mut_ptr();
        SIGNAL_STACK.store(stack, Ordering::Relaxed);
        let stack = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: SIGNAL_STACK_LEN };
        // SAFETY: the stack is nobody else's and lives on; both structures are valid.
        unsafe {
            assert_eq!(libc::sigaltstack(&stack, std::ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = measuring_handler as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()), 0);
        }
        let block = (0..1000).map(|_| allocated_here(|_| true)).find(|&block| debug::is_guarded(block));
        freed_here(block.expect("a sample in twenty million"));
        accessed_here(block.unwrap());
    });
    // So seldom that nothing is guarded before this handler is the one that was there first.
    let outcome = Child::new(NAME, "").settings("guard:1/500000").run();
    assert!(outcome.stderr.contains("freed by thread"), "{outcome:#?}");
    // SAFETY: reads a number that the kernel has given to the process.
    let kernel = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    let used = outcome.number("used");
    println!("{used} bytes, {kernel} of them for the kernel");
    assert!(used <= kernel.max(libc::MINSIGSTKSZ) + REPORT_STACK, "{used} bytes, {kernel} of them for the kernel");
}

/// About as many as asked for; none of more than a page; in a forked process, too.
///
/// Red if the pool is told of another rate than is asked for (`start` in `src/checked/guarded.rs`), or takes what is too
/// large for a page.
#[test]
fn samples_are_as_frequent_as_asked_for() {
    const NAME: &str = "samples_are_as_frequent_as_asked_for";
    fn sampled(size: usize, count: usize) -> usize {
        let take = |n| Block::new(size, 8, n as u64).expect("there is memory");
        (0..count).filter(|&n| debug::is_guarded(take(n).range().start as *const u8)).count()
    }
    child::body(NAME, |_| {
        say("small", sampled(SIZE, 40_000));
        say("page", sampled(4 * KIB, 4000));
        // SAFETY: a system call without preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        say("larger", sampled(page + 1, 4000));
        assert_eq!(in_a_fork(|| assert!(sampled(SIZE, 4000) > 10)), 0);
    });
    let outcome = Child::new(NAME, "").settings("guard:1/40").run().succeeded();
    assert!((800..1250).contains(&outcome.number("small")), "{outcome:#?}");
    assert!((50..160).contains(&outcome.number("page")), "{outcome:#?}");
    assert_eq!(outcome.number("larger"), 0);
}
