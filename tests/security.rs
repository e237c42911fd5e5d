//! Attacks on the heap, each in a process of its own, by default and with every protection: what comes of them is the
//! table in `docs/hardening.md`.
//!
//! The attacks are those that the `security` programs of mimalloc-bench describe
//! (<https://github.com/daanx/mimalloc-bench/tree/master/bench/security>), by the same names where they have one, and a
//! few that are usual besides: overwritten links of free lists, free blocks whose place can be foretold.
//!
//! An attack ends in one of four ways:
//!
//! | | |
//! | --- | --- |
//! | found | the process is ended, at the latest when the memory is about to be used again |
//! | harmless | it goes on, and what the attack is after is not to be had; every invariant of the heap holds |
//! | unnoticed | it goes on; the heap is whole, but the program's own data may not be |
//! | works | it goes on, and two owners have one block, or an owner has what is not a block, or an old secret |
//!
//! Red if the table says anything else. To write it anew: `PCPALLOC_WRITE_TABLE=1 cargo test --test security`.
//! Controls, made by hand: without the test of `LIVE` in `take_back` (`src/checked/mod.rs`) the double frees of small
//! blocks are harmless at best; without `inspect` no write after a free is found; without `quarantine::put` blocks are
//! used again at once; with `take` for `take_any` (`src/slab/bulk.rs`) places can be foretold; without `raise`
//! (`src/slab/guard.rs`) an overflow out of a slab is unnoticed.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::alloc::GlobalAlloc;
use std::collections::BTreeSet;
use std::hint::black_box;

use common::block::{free, layout, take};
use common::child::{self, Child};
use common::kernel::Kernel;
use common::{HEAP, KIB, MIB, PAGE, cpus, on_cpu, on_threads};
use pcpalloc::debug::{self, Level};
use pcpalloc::{Drain, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// In a slab (of a class that the program itself hardly uses), a run of a class, a run without.
const SIZES: [usize; 3] = [200, 64 * KIB, MIB];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Harmless,
    Unnoticed,
    Works,
}
use Verdict::{Harmless, Unnoticed, Works};

#[inline(never)]
fn write(at: *mut u8, byte: u8) {
    // SAFETY: as in `free`. Volatile, so that it is done.
    unsafe { at.write_volatile(byte) }
}

#[inline(never)]
fn read(at: *mut u8) -> u8 {
    // SAFETY: as in `free`.
    unsafe { at.read_volatile() }
}

fn fill(block: *mut u8, size: usize, byte: u8) {
    (0..size).for_each(|n| write(block.wrapping_add(n), byte));
}

/// Whether what is allocated from now on overlaps itself or what is held, or is no block.
fn owners(size: usize, held: &[*mut u8]) -> Verdict {
    let count = if size < PAGE { 512 } else { 12 };
    let mut starts: BTreeSet<usize> = held.iter().map(|&block| block as usize).collect();
    // All of a small program's heap lies in one zone, and zones in multiples of their size.
    let zone = |block: usize| block >> 30;
    let home = zone(take(8) as usize);
    for _ in 0..count {
        let block = take(size) as usize;
        if zone(block) != home {
            return Works;
        }
        let before = starts.range(..=block).next_back().is_some_and(|&other| other + size > block);
        let behind = starts.range(block..).next().is_some_and(|&other| block + size > other);
        if before || behind || !block.is_multiple_of(8) {
            return Works;
        }
        starts.insert(block);
    }
    whole(Harmless)
}

/// The verdict, if the heap is whole.
fn whole(verdict: Verdict) -> Verdict {
    match debug::check(Level::Blocks) {
        Ok(_) => verdict,
        Err(_) => Works,
    }
}

/// Goes on for as long as it takes until what was freed is used again, or looked at.
fn churn(size: usize) {
    for _ in 0..(8 * MIB / size).clamp(64, 8192) {
        free(take(size), size);
    }
}

fn beyond(size: usize, distance: isize) -> Verdict {
    // The last byte of the zone may be in the highest.
    let blocks: [*mut u8; 5] = std::array::from_fn(|_| take(size));
    let block = if distance > 0 { blocks.into_iter().min() } else { blocks.into_iter().max() }.expect("there are five");
    let at = if distance > 0 { block.wrapping_add(size - 1) } else { block }.wrapping_offset(distance);
    write(at, read(at) ^ b'A');
    free(block, size);
    churn(size);
    Unnoticed
}

type Attack = (&'static str, fn(usize) -> Verdict);

const ATTACKS: [Attack; 29] = [
    ("double_free", |size| {
        let p = take(size);
        free(p, size);
        free(p, size);
        owners(size, &[])
    }),
    ("double_free_delayed", |size| {
        let p = take(size);
        free(p, size);
        (0..1024).for_each(|_| free(take(size), size));
        free(p, size);
        owners(size, &[])
    }),
    ("double_free_interleaved", |size| {
        let (p, q) = (take(size), take(size));
        free(p, size);
        free(q, size);
        free(p, size);
        owners(size, &[])
    }),
    ("double_free_reuse", |size| {
        let p = take(size);
        free(p, size);
        free(p, size);
        churn(size);
        owners(size, &[])
    }),
    ("double_free_single_reuse", |size| {
        let p = take(size);
        free(p, size);
        let q = take(size);
        free(p, size);
        free(q, size);
        owners(size, &[])
    }),
    ("double_free_by_two_threads", |size| {
        let p = take(size).expose_provenance();
        let cpus = cpus();
        for cpu in [cpus[0], cpus[cpus.len() - 1]] {
            on_cpu(cpu, || free(std::ptr::with_exposed_provenance_mut(p), size));
        }
        owners(size, &[])
    }),
    ("double_free_seen_by_a_drain", |size| {
        let p = take(size);
        free(p, size);
        free(p, size);
        HEAP.drain(Drain::All);
        owners(size, &[])
    }),
    ("delete_type_size_mismatch", |size| {
        let p = take(size);
        let _neighbours = [take(size), take(size)];
        free(p, 2 * size);
        if (0..64).any(|_| take(2 * size) == p) { Works } else { whole(Harmless) }
    }),
    ("invalid_free", |size| {
        free(std::ptr::without_provenance_mut(1), size);
        owners(size, &[])
    }),
    ("invalid_free_close", |size| {
        let neighbours: Vec<*mut u8> = (0..4).map(|_| take(size)).collect();
        let p = take(size);
        free(p.wrapping_add(4 * KIB), size);
        owners(size, &[&neighbours[..], &[p]].concat())
    }),
    ("invalid_free_far", |size| {
        let p = take(size);
        free(p.wrapping_add(1 << 30), size);
        owners(size, &[p])
    }),
    ("invalid_free_stack", |size| {
        let mut bytes = [0u64; 64];
        free(bytes.as_mut_ptr().cast(), size);
        owners(size, &[bytes.as_mut_ptr().cast()])
    }),
    ("invalid_free_unaligned", |size| {
        let p = take(size);
        free(p.wrapping_add(1), size);
        owners(size, &[p])
    }),
    ("invalid_free_unaligned_multiple", |size| {
        let p = take(size);
        free(p.wrapping_add(8), size);
        owners(size, &[p])
    }),
    ("malloc_reuse", |size| {
        let p = take(size);
        free(p, size);
        if take(size) == p { Works } else { whole(Harmless) }
    }),
    ("malloc_reuse_downsize", |size| {
        let p = take(size);
        free(p, size);
        if take(size / 2) == p { Works } else { whole(Harmless) }
    }),
    ("realloc_reuse", |size| {
        let p = take(size);
        // SAFETY: a block of this layout, used no more.
        let q = unsafe { HEAP.realloc(p, layout(size, 8), 32 * size) };
        if q != p && take(size) == p { Works } else { whole(Harmless) }
    }),
    ("write_after_free", |size| {
        let p = take(size);
        free(p, size);
        fill(p, size.min(PAGE), b'A');
        owners(size, &[])
    }),
    ("write_after_free_reuse", |size| {
        let p = take(size);
        free(p, size);
        fill(p, size.min(PAGE), b'A');
        churn(size);
        owners(size, &[])
    }),
    ("free_list_partial_overwrite", |size| {
        let blocks: Vec<*mut u8> = (0..16).map(|_| take(size)).collect();
        blocks.iter().for_each(|&block| free(block, size));
        // The lower bytes of what would be a link.
        blocks.iter().for_each(|&block| write(block, 0x40));
        blocks.iter().for_each(|&block| write(block.wrapping_add(8), 0x40));
        churn(size);
        owners(size, &[])
    }),
    ("free_list_overwrite", |size| {
        let mut victim = [0u64; 64];
        let p = take(size);
        free(p, size);
        for word in 0..8 {
            // SAFETY: as in `free`.
            unsafe { p.cast::<*mut u8>().add(word).write_volatile(victim.as_mut_ptr().cast()) };
        }
        churn(size);
        owners(size, &[victim.as_mut_ptr().cast()])
    }),
    ("zero_after_free", |size| {
        let p = take(size);
        fill(p, size, b'A');
        free(p, size);
        if (0..size).any(|n| read(p.wrapping_add(n)) == b'A') { Works } else { whole(Harmless) }
    }),
    ("zero_on_malloc", |size| {
        let blocks: Vec<*mut u8> = (0..(4 * MIB / size).clamp(4, 4096)).map(|_| take(size)).collect();
        for &block in &blocks {
            fill(block, size, b'A');
        }
        blocks.iter().for_each(|&block| free(block, size));
        let p = take(size);
        if (0..size).any(|n| read(p.wrapping_add(n)) == b'A') { Works } else { whole(Harmless) }
    }),
    ("foretold_place", |size| {
        // The next block comes right behind the last, time and again.
        let blocks: Vec<usize> = (0..64).map(|_| take(size) as usize).collect();
        let block_size = HEAP.usable_size(layout(size, 8));
        let next = blocks.windows(2).filter(|pair| pair[1] == pair[0] + block_size).count();
        if next > 32 { Works } else { whole(Harmless) }
    }),
    ("one_byte_overflow", |size| beyond(size, 1)),
    ("one_byte_underflow", |size| beyond(size, -1)),
    ("overflow_out_of_the_slab", |size| {
        // From every block of a class that is rarely used, as far as two slabs reach.
        let p = take(size);
        (0..64 * KIB).for_each(|n| write(p.wrapping_add(size + n), 0));
        Unnoticed
    }),
    ("executable_heap", |size| {
        let p = take(size);
        fill(p, 1, 0xc3);
        // SAFETY: none: a return, where nothing may be executed.
        unsafe { std::mem::transmute::<*mut u8, extern "C" fn()>(p)() };
        Works
    }),
    ("impossibly_large_malloc", |size| {
        let most = isize::MAX as usize & !7;
        // SAFETY: the size is not 0.
        let p = unsafe { HEAP.alloc(layout(most - size, 8)) };
        if black_box(p).is_null() { whole(Harmless) } else { Works }
    }),
];

/// What came of an attack, and whether it was as it should be found: by a line that says so, or a bad access.
fn outcome(attack: &str, size: usize, settings: &str, kernel: Kernel) -> &'static str {
    const NAME: &str = "attacks_end_as_the_table_says";
    let outcome = Child::new(NAME, &format!("{attack} {size}")).settings(settings).kernel(kernel).run();
    let said = outcome.stdout.lines().find_map(|line| line.strip_prefix("verdict: "));
    match (outcome.signal(), said) {
        (None, Some("Harmless")) => "harmless",
        (None, Some("Unnoticed")) => "unnoticed",
        (None, Some("Works")) => "works",
        (Some(libc::SIGSEGV), None) => "found",
        (Some(libc::SIGABRT), None) if outcome.stderr.starts_with("pcpalloc: ") => "found",
        _ => panic!("{attack} of {size} bytes with {settings:?}, {kernel:?}: {outcome:#?}"),
    }
}

fn attack_as_told(argument: &str) {
    let (name, size) = argument.split_once(' ').expect("an attack and a size");
    let (_, attack) = ATTACKS.iter().find(|(known, _)| *known == name).expect("the attack is one of ours");
    let size = size.parse().expect("a size");
    // Every CPU has slabs of the smallest blocks from the start, whichever it was that the process began on.
    for cpu in cpus() {
        on_cpu(cpu, || drop([8, 16, 24, 32, 40, 48].map(|size| black_box(vec![0u8; size]))));
    }
    // On one CPU, so that what is freed and what is allocated meet on one stack.
    on_cpu(cpus()[0], || {
        let line = format!("\nverdict: {:?}\n", attack(size));
        // SAFETY: the buffer is valid. Whatever was done to the heap, nothing else uses it.
        unsafe {
            libc::write(libc::STDOUT_FILENO, line.as_ptr().cast(), line.len());
            libc::_exit(0);
        }
    });
}

const BEGIN: &str = "<!-- table: cargo test --test security -->\n";
const END: &str = "<!-- end -->\n";

#[test]
fn attacks_end_as_the_table_says() {
    child::body("attacks_end_as_the_table_says", attack_as_told);
    let mut rows = vec![String::new(); ATTACKS.len()];
    // Two at a time: processes that mostly start and end.
    let (front, back) = rows.split_at_mut(ATTACKS.len() / 2);
    on_threads([(front, 0), (back, ATTACKS.len() / 2)].map(|(rows, from)| {
        move || {
            for (row, (attack, _)) in rows.iter_mut().zip(&ATTACKS[from..]) {
                let columns = [("", Kernel::Whole), ("hardened:1", Kernel::Whole)].map(|(settings, kernel)| {
                    let all = SIZES.map(|size| outcome(attack, size, settings, kernel));
                    if all.iter().all(|one| *one == all[0]) { all[0].into() } else { all.join(", ") }
                });
                *row = format!("| `{attack}` | {} |\n", columns.join(" | "));
            }
        }
    }));
    let table = format!(
        "| attack on blocks of 200 bytes, 64 KiB, 1 MiB | by default | `hardened:1` |\n| --- | --- | --- |\n{}",
        rows.concat()
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hardening.md");
    let text = std::fs::read_to_string(path).expect("docs/hardening.md is there");
    let (head, rest) = text.split_once(BEGIN).expect("the table begins");
    let (written, tail) = rest.split_once(END).expect("the table ends");
    if std::env::var_os("PCPALLOC_WRITE_TABLE").is_some() {
        std::fs::write(path, [head, BEGIN, &table, END, tail].concat()).expect("the table is written");
    } else {
        assert_eq!(table, written, "what came of the attacks, and what docs/hardening.md says");
    }
}

/// A heap whose stacks belong to threads is hardened just as well.
#[test]
fn attacks_without_rseq_end_no_better() {
    const WORSE: [&str; 2] = ["works", "unnoticed"];
    for (attack, _) in ATTACKS.iter().step_by(3) {
        let whole = outcome(attack, SIZES[0], "hardened:1", Kernel::Whole);
        let without = outcome(attack, SIZES[0], "hardened:1", Kernel::WithoutRseq(libc::ENOSYS));
        assert!(whole == without || !WORSE.contains(&without), "{attack}: {whole}, but without rseq {without}");
    }
}
