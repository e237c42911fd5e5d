//! What the profiler costs: the same work with and without it, in turns, in one process.
//!
//! ```text
//! cargo bench --features profile --bench profile [-- --rounds N --interval BYTES --frame-pointers --micro]
//! ```
//!
//! *index* is the whole of `examples/index` over the repository's sources: reading, building, querying, two threads. The
//! micro rows do nothing but allocate and free, so they say what the detour of a free costs, and not what a program pays.
//! For each row the medians, and the medians of the ratios of neighbours: of the time that passed, with its quartiles, and
//! of what both threads used of their CPUs.

#[path = "../examples/index/search/mod.rs"]
#[allow(dead_code)]
mod search;

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::time::Instant;

use pcpalloc::PcpAlloc;
use pcpalloc::profile::{self, Options, Unwinder, View};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn index() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let args = [path, "--threads", "2", "--repeat-to", "96", "--queries", "4000"].map(Into::into);
    let options = search::Options::parse(args).ok().flatten().expect("options");
    let Ok((report, index)) = search::run(&options) else { panic!("the sources can be read") };
    black_box((report.to_string(), index));
}

/// Blocks of a size, one after the other or a batch at a time.
fn blocks(size: usize, batch: usize, count: usize) {
    let layout = Layout::from_size_align(size, 8).expect("a layout");
    let mut held = [std::ptr::null_mut(); 256];
    for _ in 0..count / batch {
        // SAFETY: the size is not zero; each block is freed once, with its layout.
        unsafe {
            held[..batch].iter_mut().for_each(|block| *block = black_box(alloc(layout)));
            held[..batch].iter().for_each(|&block| dealloc(block, layout));
        }
    }
}

/// What the process has used of its CPUs.
fn cpu_seconds() -> f64 {
    // SAFETY: all-zero bytes are a valid rusage, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &mut usage), 0);
        usage
    };
    [usage.ru_utime, usage.ru_stime].iter().map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6).sum()
}

/// How long it took, and how much of the CPUs.
fn seconds(work: &dyn Fn()) -> [f64; 2] {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work();
    [start.elapsed().as_secs_f64(), cpu_seconds() - cpu]
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|n| values[(values.len() - 1) * n / 4])
}

fn main() {
    let (mut rounds, mut options, mut micro) = (9, Options::new(), false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number");
        match arg.as_str() {
            "--rounds" => rounds = number(),
            "--interval" => options = options.interval(number()),
            "--frame-pointers" => options = options.unwinder(Unwinder::FramePointers),
            "--micro" => micro = true,
            _ => {}
        }
    }
    type Row = (&'static str, Box<dyn Fn()>, usize);
    let mut rows: Vec<Row> = Vec::new();
    if !micro {
        rows.push(("index", Box::new(index), 0));
    }
    for (name, size, batch) in [
        ("64 B, pairs", 64, 1),
        ("64 B, batches of 256", 64, 256),
        ("1 KiB, pairs", 1024, 1),
        ("64 KiB, pairs", 65_536, 1),
    ] {
        let count = if size > 4096 { 400_000 } else { 8_000_000 };
        rows.push((name, Box::new(move || blocks(size, batch, count)), count));
    }
    println!(
        "{:<22} {:>11} {:>11} {:>22} {:>8} {:>9} {:>10}",
        "", "without", "with", "ratio (quartiles)", "CPU", "samples", "bytes/s"
    );
    for (name, work, count) in &rows {
        work();
        let (mut without, mut with, mut ratios, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut samples, mut bytes) = (0, 0);
        for round in 0..rounds {
            let mut pair = [[0.0; 2]; 2];
            for turn in 0..2 {
                let profiled = (turn + round) % 2 == 1;
                if profiled {
                    profile::start(&options).expect("it can be observed");
                }
                pair[profiled as usize] = seconds(work);
                if profiled {
                    profile::stop();
                    let seen = profile::snapshot();
                    samples = seen.sites().map(|site| site.samples()).sum();
                    bytes = seen.total(View::Allocated).bytes;
                }
            }
            without.push(pair[0][0]);
            with.push(pair[1][0]);
            ratios.push(pair[1][0] / pair[0][0]);
            cpu.push(pair[1][1] / pair[0][1]);
        }
        let ([_, off, _], [_, on, _], [low, ratio, high]) = (quartiles(without), quartiles(with), quartiles(ratios));
        let time = |t: f64| match count {
            0 => format!("{:.1} ms", t * 1e3),
            n => format!("{:.2} ns", t * 1e9 / *n as f64),
        };
        let rate = format!("{:.1} G", bytes as f64 / on / 1e9);
        let range = format!("{ratio:.3} ({low:.3}–{high:.3})");
        let [_, cpu, _] = quartiles(cpu);
        println!("{name:<22} {:>11} {:>11} {range:>22} {cpu:>8.3} {samples:>9} {rate:>10}", time(off), time(on));
    }
}
