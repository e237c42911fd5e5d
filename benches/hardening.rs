//! What each protection costs here: `cargo bench --bench hardening [rounds]`.
//!
//! Each setting is `PCPALLOC_CONF` of processes of its own, which take turns; the tables have medians: the first times,
//! the second times over the default's, both of one process after the other.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const CHILD: &str = "PCPALLOC_BENCH_CHILD";

/// Settings; the first is what the others are compared with.
const SETTINGS: [&str; 11] = [
    "",
    "hardened:random",
    "hardened:guard",
    "hardened:checked",
    "hardened:checked+zero",
    "hardened:checked+poison",
    "hardened:checked+quarantine",
    "hardened:1",
    "guard:1/50000",
    "guard:1/5000",
    "guard:1/500",
];

/// What a child says, in this order.
const COLUMNS: [&str; 6] = [
    "Box<u64>, ns a pair",
    "batches of 400 mixed sizes, ns a block",
    "1 KiB pairs, ns",
    "maps and strings, ms",
    "boxes to another thread, ns each",
    "peak RSS, MiB",
];

fn nanoseconds(operations: u32, f: impl FnOnce()) -> f64 {
    let began = Instant::now();
    f();
    began.elapsed().as_secs_f64() * 1e9 / f64::from(operations)
}

fn pairs(count: u32) -> f64 {
    nanoseconds(count, || (0..u64::from(count)).for_each(|n| drop(black_box(Box::new(n)))))
}

fn larger_pairs(count: u32) -> f64 {
    nanoseconds(count, || (0..count).for_each(|_| drop(black_box(Vec::<u8>::with_capacity(1024)))))
}

fn batches(rounds: u32) -> f64 {
    const BLOCKS: u32 = 400;
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(BLOCKS as usize);
    nanoseconds(rounds * BLOCKS, || {
        for _ in 0..rounds {
            held.extend((0..BLOCKS as usize).map(|n| Vec::with_capacity(8 + n * 37 % 505)));
            black_box(&mut held).clear();
        }
    })
}

fn maps() -> f64 {
    let began = Instant::now();
    for round in 0..8 {
        let map: HashMap<String, Vec<String>> = (0..8000u32)
            .map(|n| (format!("key {round} {n}"), (0..n % 5).map(|m| "value ".repeat(1 + m as usize)).collect()))
            .collect();
        black_box(map.values().flatten().map(String::len).sum::<usize>());
    }
    began.elapsed().as_secs_f64() * 1e3
}

fn messages(count: u32) -> f64 {
    nanoseconds(count, || {
        let (sender, receiver) = mpsc::sync_channel::<Box<[u64; 8]>>(256);
        let reader = std::thread::spawn(move || receiver.iter().map(|message| message[3]).sum::<u64>());
        (0..u64::from(count)).for_each(|n| sender.send(Box::new([n; 8])).expect("the reader is there"));
        drop(sender);
        black_box(reader.join().expect("the reader ends"));
    })
}

fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn child() {
    pairs(100_000);
    let numbers = [pairs(3_000_000), batches(4000), larger_pairs(1_000_000), maps(), messages(400_000), peak()];
    println!("{}", numbers.map(|number| number.to_string()).join(" "));
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let rounds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(9);
    let own = std::env::current_exe().expect("the program knows its path");
    let mut runs: Vec<Vec<Vec<f64>>> = vec![Vec::new(); SETTINGS.len()];
    for _ in 0..rounds {
        for (setting, runs) in SETTINGS.iter().zip(&mut runs) {
            let output =
                Command::new(&own).env(CHILD, "").env("PCPALLOC_CONF", setting).output().expect("a child runs");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            let numbers = String::from_utf8_lossy(&output.stdout);
            runs.push(numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect());
        }
    }
    let name = |setting: &str| if setting.is_empty() { "default".to_string() } else { format!("`{setting}`") };
    let head = format!("| {} |\n| --- |{}", COLUMNS.join(" | "), " --: |".repeat(COLUMNS.len()));
    println!("| setting {head}");
    for (setting, own) in SETTINGS.iter().zip(&runs) {
        let medians = (0..COLUMNS.len()).map(|n| format!("{:.1}", median(own.iter().map(|run| run[n]).collect())));
        println!("| {} | {} |", name(setting), medians.collect::<Vec<_>>().join(" | "));
    }
    println!("\n| over the default {head}");
    for (setting, own) in SETTINGS.iter().zip(&runs).skip(1) {
        let ratios = (0..COLUMNS.len())
            .map(|n| format!("{:.2}", median(own.iter().zip(&runs[0]).map(|(run, base)| run[n] / base[n]).collect())));
        println!("| {} | {} |", name(setting), ratios.collect::<Vec<_>>().join(" | "));
    }
}
