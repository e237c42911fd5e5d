//! Runs the targets without a fuzzer: every input of the corpora, then random inputs from a seeded generator.
//!
//! ```text
//! drive [TARGET…] [--runs N] [--seed N]
//! ```
//!
//! Inputs run in child processes, a hundred in each, so that one that ends its process is found and named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use pcpalloc_fuzz::TARGETS;

const BATCH: u64 = 100;

/// SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
fn word(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The input of this number: up to 1 KiB, half of them short.
fn input(seed: u64, number: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ number;
    let most = if number.is_multiple_of(2) { 64 } else { 1024 };
    let len = word(&mut state) % most + 1;
    (0..len).map(|_| word(&mut state) as u8).collect()
}

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    files.sort();
    files
}

/// In a child: runs inputs `from..to`.
fn run(target: &str, seed: u64, from: u64, to: u64) {
    let (_, f) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    (from..to).for_each(|number| f(&input(seed, number)));
}

/// Whether a child that runs these inputs comes to a good end.
fn passes(target: &str, seed: u64, from: u64, to: u64, quiet: bool) -> bool {
    let mut command = Command::new(std::env::current_exe().expect("the program knows its path"));
    command.args(["--child", target]).args([seed, from, to].map(|n| n.to_string()));
    if quiet {
        command.stderr(std::process::Stdio::null());
    }
    command.status().expect("a child").success()
}

fn file_passes(target: &str, file: &Path) -> bool {
    let mut command = Command::new(std::env::current_exe().expect("the program knows its path"));
    command.args(["--file", target]).arg(file).status().expect("a child").success()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--child", target, seed, from, to] => {
            run(target, number(seed), number(from), number(to));
            return ExitCode::SUCCESS;
        }
        ["--file", target, file] => {
            let (_, f) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
            f(&fs::read(file).expect("the file can be read"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let value = |name: &str, otherwise| {
        let at = arguments.iter().position(|a| a == name);
        at.and_then(|at| arguments.get(at + 1)).map_or(otherwise, |text| number(text))
    };
    let (runs, seed) = (value("--runs", 200), value("--seed", 1));
    let mut failed = false;
    for (target, _) in TARGETS {
        if arguments.iter().any(|a| TARGETS.iter().any(|(name, _)| name == a)) && !arguments.iter().any(|a| a == target)
        {
            continue;
        }
        let begun = Instant::now();
        let files = corpus(target);
        for file in &files {
            if !file_passes(target, file) {
                println!("{target}: fails on {}", file.display());
                failed = true;
            }
        }
        for from in (0..runs).step_by(BATCH as usize) {
            let to = (from + BATCH).min(runs);
            if passes(target, seed, from, to, true) {
                continue;
            }
            failed = true;
            // By itself, or only after those before it.
            match (from..to).find(|&n| !passes(target, seed, n, n + 1, true)) {
                Some(n) => {
                    println!(
                        "{target}: fails on input {n} of seed {seed}; repeat: drive --child {target} {seed} {n} {}",
                        n + 1
                    );
                    passes(target, seed, n, n + 1, false);
                }
                None => {
                    println!("{target}: fails on inputs {from} to {to} of seed {seed} one after the other");
                    passes(target, seed, from, to, false);
                }
            }
            break;
        }
        println!("{target}: {} of the corpus, {runs} at random with seed {seed}, {:?}", files.len(), begun.elapsed());
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
