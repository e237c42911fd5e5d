//! How many instructions the fast paths have, against the counts in `fast_path.txt`: a path that has become longer is
//! seen without a clock.
//!
//! Counted is the shortest way through the machine code of this program from a function's first instruction to its
//! return, without the return itself, with the function's frame (2 of `Box::new`), calls and jumps followed; for what
//! takes or gives a block, the shortest of those that pass a section's commit. So the test is of an optimised program:
//!
//! ```text
//! cargo test --release --test fast_path
//! PCPALLOC_RECORD=1 cargo test --release --test fast_path     # after a change that is meant
//! ```
//!
//! Sections are the same whatever compiles them, so their lengths must be what they were. What is around them is
//! the compiler's: with another than that of the counts, two instructions more are let pass.
//!
//! Control: a `nop` in `pop`, before its commit, fails all that allocates; one more load in `PcpAlloc::realloc` fails
//! `realloc`.
//!
//! `PCPALLOC_LISTING=FILE` writes the instructions of these ways to a file, without what the linker decides: the same
//! source makes the same listing, whatever else is in the program. `bash tests/fast_path.sh` compares those of programs with
//! and without features.

#![cfg(all(target_arch = "x86_64", not(debug_assertions), not(any(loom, pcpalloc_twin))))]

mod common;
mod rseq_common;

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hint::black_box;
use std::process::Command;
use std::ptr::NonNull;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use pcpalloc::{PcpAlloc, rcu};
use rseq_common::sections;

#[global_allocator]
static HEAP: PcpAlloc = PcpAlloc::new();

/// What is counted: a name, a function that does it and nothing else, whether it passes a commit.
type Path = (&'static str, usize, bool);

const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// A layout that the compiler does not know.
fn layout(size: usize, align: usize) -> Layout {
    // SAFETY: none of the functions here is called.
    unsafe { Layout::from_size_align_unchecked(size, align) }
}

fn box_new() -> Box<u64> {
    Box::new(7)
}

fn box_drop(value: Box<u64>) {
    drop(value);
}

fn any_alloc(size: usize, align: usize) -> *mut u8 {
    // SAFETY: not called, here and below.
    unsafe { alloc(layout(size, align)) }
}

fn any_dealloc(block: *mut u8, size: usize, align: usize) {
    // SAFETY: as above.
    unsafe { dealloc(block, layout(size, align)) }
}

fn zeroed() -> *mut u8 {
    // SAFETY: as above.
    unsafe { alloc_zeroed(LAYOUT) }
}

fn any_realloc(block: *mut u8, size: usize, new: usize) -> *mut u8 {
    // SAFETY: as above.
    unsafe { realloc(block, layout(size, 8), new) }
}

fn nolock() -> Option<NonNull<u8>> {
    HEAP.try_alloc_nolock(LAYOUT)
}

fn nolock_free(block: NonNull<u8>) {
    // SAFETY: as above.
    unsafe { HEAP.free_nolock(block, LAYOUT) }
}

fn deferred(block: NonNull<u8>) {
    // SAFETY: as above.
    unsafe { rcu::free(block, LAYOUT) }
}

fn lock() -> rcu::ReadGuard {
    rcu::read_lock()
}

fn section() {
    drop(rcu::read_lock());
}

fn paths() -> [Path; 11] {
    [
        ("Box::new(7u64)", box_new as *const () as usize, true),
        ("drop(Box<u64>)", box_drop as *const () as usize, true),
        ("alloc", any_alloc as *const () as usize, true),
        ("dealloc", any_dealloc as *const () as usize, true),
        ("alloc_zeroed of 64 bytes", zeroed as *const () as usize, true),
        ("realloc within a class", any_realloc as *const () as usize, false),
        ("try_alloc_nolock of 64 bytes", nolock as *const () as usize, true),
        ("free_nolock of 64 bytes", nolock_free as *const () as usize, true),
        ("rcu::free of 64 bytes", deferred as *const () as usize, true),
        ("rcu::read_lock", lock as *const () as usize, false),
        ("rcu::read_lock and drop", section as *const () as usize, false),
    ]
}

/// The instruction at an address.
fn decode(at: u64) -> Instruction {
    // SAFETY: code of this program, which more of the program follows: no instruction is longer.
    let code = unsafe { std::slice::from_raw_parts(at as *const u8, 15) };
    Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode()
}

/// Paths longer than this are not fast.
const MOST: usize = 200;
/// Calls within calls that are followed.
const DEPTH: usize = 3;

/// Where a way is: the next instruction, whether a commit was passed, where calls return to, and the addresses so far.
type Step = (u64, bool, Vec<u64>, Vec<u64>);

/// The instructions on the shortest way from a function's start to its return, and that; `commits` are the addresses
/// behind sections' last instructions, one of which has to be passed if `through`.
fn shortest(function: usize, commits: &HashSet<u64>, through: bool) -> Option<Vec<Instruction>> {
    let mut now: Vec<Step> = vec![(function as u64, !through, Vec::new(), Vec::new())];
    let mut seen = HashSet::new();
    for _ in 0..MOST {
        let mut next: Vec<Step> = Vec::new();
        for (at, mut passed, mut returns, mut way) in now {
            if !seen.insert((at, passed, returns.clone())) {
                continue;
            }
            let instruction = decode(at);
            let behind = instruction.next_ip();
            passed |= commits.contains(&behind) && stores(&instruction);
            way.push(at);
            match instruction.flow_control() {
                FlowControl::Next => next.push((behind, passed, returns, way)),
                FlowControl::UnconditionalBranch => {
                    next.push((instruction.near_branch_target(), passed, returns, way));
                }
                FlowControl::ConditionalBranch => {
                    next.push((instruction.near_branch_target(), passed, returns.clone(), way.clone()));
                    next.push((behind, passed, returns, way));
                }
                FlowControl::Call if returns.len() < DEPTH => {
                    returns.push(behind);
                    next.push((instruction.near_branch_target(), passed, returns, way));
                }
                FlowControl::Return => match returns.pop() {
                    Some(to) => next.push((to, passed, returns, way)),
                    None if passed => return Some(way.into_iter().map(decode).collect()),
                    None => {}
                },
                // Through a pointer, into the kernel, or nowhere.
                _ => {}
            }
        }
        now = next;
    }
    None
}

/// An instruction as the compiler and the sections have it, without what the linker and the layout of a function put in:
/// addresses, and of a jump which of its sides is the near one. So a jump is what holds where the way goes on at `next`.
fn listed(instruction: &Instruction, next: u64) -> String {
    if instruction.flow_control() == FlowControl::ConditionalBranch {
        let mut jump = *instruction;
        if next == jump.next_ip() {
            jump.negate_condition_code();
        }
        return format!("jump, {:?}", jump.condition_code());
    }
    let operands = (0..instruction.op_count()).map(|operand| match instruction.op_kind(operand) {
        OpKind::Register => format!("{:?}", instruction.op_register(operand)),
        OpKind::Memory if instruction.is_ip_rel_memory_operand() => "[a static]".into(),
        OpKind::Memory => {
            let (segment, base) = (instruction.memory_segment(), instruction.memory_base());
            let (index, scale) = (instruction.memory_index(), instruction.memory_index_scale());
            // A thread-local lies below the thread pointer, as far as the linker likes.
            let local = instruction.memory_displacement64() as i64;
            let at = if local < -8 && base != Register::RSP { "a thread-local".into() } else { local.to_string() };
            format!("{segment:?}:[{base:?}+{index:?}*{scale}+{at}]")
        }
        OpKind::NearBranch64 => "there".into(),
        _ => format!("{:#x}", instruction.immediate(operand)),
    });
    let operands: Vec<String> = operands.collect();
    format!("{:?} {}", instruction.mnemonic(), operands.join(", "))
}

fn stores(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory
}

/// What compiled the program, how long its sections are, and the counts by name.
fn read(text: &str) -> (&str, &str, BTreeMap<String, usize>) {
    let mut lines = text.lines();
    let [compiler, lengths] = [(); 2].map(|()| lines.next().expect("two lines before the counts"));
    let count = |line: &str| {
        let (name, count) = line.rsplit_once(": ").expect("a name and a count");
        (name.to_string(), count.parse().expect("a count"))
    };
    (compiler, lengths, lines.map(count).collect())
}

#[test]
fn no_path_is_longer() {
    let sections = sections();
    let commits: HashSet<u64> = sections.iter().map(|section| section.end as u64).collect();
    let output = Command::new("rustc").arg("--version").output().expect("rustc is there, having compiled this");
    let compiler = String::from_utf8(output.stdout).expect("rustc's version is text").trim().to_string();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut listing = String::new();
    for (name, function, through) in paths() {
        let found = shortest(black_box(function), &commits, through);
        let way = found.unwrap_or_else(|| panic!("{name}: no way of {MOST} instructions"));
        counts.insert(name.into(), way.len() - 1);
        let lines: String = way.windows(2).map(|pair| format!("    {}\n", listed(&pair[0], pair[1].ip()))).collect();
        listing += &format!("{name}: {}\n{lines}", way.len() - 1);
    }
    if let Some(file) = std::env::var_os("PCPALLOC_LISTING") {
        std::fs::write(file, &listing).expect("the listing can be written");
    }
    let lengths: BTreeSet<usize> = sections.iter().map(|s| s.instructions.len()).collect();
    let lengths = format!("sections of {lengths:?} instructions");
    println!("{compiler}\n{lengths}\n{counts:#?}");

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fast_path.txt");
    if std::env::var_os("PCPALLOC_RECORD").is_some() {
        let lines: String = counts.iter().map(|(name, count)| format!("{name}: {count}\n")).collect();
        std::fs::write(file, format!("{compiler}\n{lengths}\n{lines}")).expect("the counts can be written");
        return;
    }
    let text = std::fs::read_to_string(file).expect("there are counts");
    let (recorded_with, recorded_lengths, recorded) = read(&text);
    let slack = if recorded_with == compiler { 0 } else { 2 };
    let mut longer = Vec::new();
    if lengths != recorded_lengths {
        longer.push(format!("{lengths}, {recorded_lengths} before"));
    }
    for (name, count) in &counts {
        match recorded.get(name) {
            Some(before) if *count > before + slack => {
                longer.push(format!("{name}: {count} instructions, {before} before"))
            }
            Some(before) if *count < *before => {
                println!("{name} has become shorter, {count} instead of {before}: record it")
            }
            Some(_) => {}
            None => longer.push(format!("{name}: not in the record")),
        }
    }
    assert!(
        longer.is_empty(),
        "{}\nif that is meant: PCPALLOC_RECORD=1 cargo test --release --test fast_path",
        longer.join("\n")
    );
}
