//! What huge pages and populating ahead are worth here: `cargo bench --bench settings [rounds]`.
//!
//! Each setting is `PCPALLOC_CONF` of processes of its own, which take turns; the table has medians.

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const CHILD: &str = "PCPALLOC_BENCH_CHILD";

/// A setting, and what it is.
const SETTINGS: [(&str, &str); 5] = [
    ("thp:never", "no huge pages"),
    ("thp:auto", "huge pages where they come quickly, from 16 MiB on (the default)"),
    ("thp:always", "huge pages everywhere"),
    ("thp:never,low:600m,high:640m", "populated ahead, no huge pages"),
    ("thp:always,low:600m,high:640m", "populated ahead, huge pages"),
];

/// What a child says, in this order.
const COLUMNS: [&str; 5] =
    ["fill 512 MiB, ms", "page faults", "random reads, ns", "peak RSS, MiB", "small program, MiB"];

type Node = [u64; 8];

fn faults() -> i64 {
    // SAFETY: all-zero bytes are a valid rusage, and the call fills it in.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage.ru_minflt
    }
}

fn resident(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn child() {
    const NODES: usize = (512 << 20) / size_of::<Node>();
    // As much as a small program needs, and whatever the setting makes of it, which with a low mark takes a while.
    let few: Vec<Box<Node>> = (0..1000).map(|n| Box::new([n; 8])).collect();
    if GLOBAL.watermarks().low > 0 {
        let began = Instant::now();
        while GLOBAL.stats().free_resident < GLOBAL.watermarks().low && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let small = resident("VmRSS");
    drop(few);
    let mut nodes: Vec<Box<Node>> = Vec::with_capacity(NODES);
    // The list itself is not what is measured.
    for page in nodes.spare_capacity_mut().chunks_mut(512) {
        // SAFETY: one byte of room that holds no value yet.
        unsafe { page[0].as_mut_ptr().cast::<u8>().write_bytes(0, 1) };
    }
    let (began, before) = (Instant::now(), faults());
    nodes.extend((0..NODES as u64).map(|n| Box::new([n; 8])));
    let (fill, faulted) = (began.elapsed(), faults() - before);
    let (mut at, mut sum) = (1usize, 0u64);
    const READS: u32 = 4_000_000;
    let began = Instant::now();
    for _ in 0..READS {
        // The next address depends on what was read, as in a tree.
        at = (at.wrapping_mul(6364136223846793005).wrapping_add(nodes[at % NODES][3] as usize)) ^ (at >> 29);
        sum = sum.wrapping_add(at as u64);
    }
    black_box(sum);
    let read = began.elapsed().as_secs_f64() / f64::from(READS);
    println!("{} {faulted} {} {} {small}", fill.as_secs_f64() * 1e3, read * 1e9, resident("VmHWM"));
}

fn main() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let rounds = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(5);
    let own = std::env::current_exe().expect("the program knows its path");
    let mut runs: Vec<Vec<Vec<f64>>> = vec![Vec::new(); SETTINGS.len()];
    for _ in 0..rounds {
        for ((setting, _), runs) in SETTINGS.iter().zip(&mut runs) {
            let output =
                Command::new(&own).env(CHILD, "").env("PCPALLOC_CONF", setting).output().expect("a child runs");
            assert!(output.status.success(), "{output:?}");
            let numbers = String::from_utf8_lossy(&output.stdout);
            runs.push(numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect());
        }
    }
    println!("| setting | {} |\n| --- |{}", COLUMNS.join(" | "), " --: |".repeat(COLUMNS.len()));
    for ((setting, what), runs) in SETTINGS.iter().zip(&runs) {
        let medians = (0..COLUMNS.len()).map(|column| {
            let mut numbers: Vec<f64> = runs.iter().map(|run| run[column]).collect();
            numbers.sort_by(f64::total_cmp);
            format!("{:.1}", numbers[numbers.len() / 2])
        });
        println!("| `{setting}`: {what} | {} |", medians.collect::<Vec<_>>().join(" | "));
    }
}
