//! Whole programs under the allocator that was chosen, one a process: what each took of time, processor, memory, page
//! faults and context switches, as a line of JSON.
//!
//! ```text
//! workloads [--smoke] [--rest] [--list] ROW
//! ```
//!
//! The work is the same in every run, whatever the threads do in which order: counts are fixed, numbers come from fixed
//! seeds, and what has been computed is condensed into a checksum that every allocator must arrive at. A row's time
//! includes the freeing of all it has allocated, and neither the start of the process nor the preparation of its input.
//! With `--rest` the process then sleeps for a second, and says what is still resident.
//!
//! The classics among allocator benchmarks are written anew from what has been published about them: each says what it
//! does, and numbers cannot be compared with those of the originals.

mod alloc_test;
#[path = "../../allocator.rs"]
mod allocator;
mod bignum;
mod cache;
mod channels;
mod compiler;
mod cubes;
mod glibc;
mod graphs;
mod json;
mod larson;
mod lru;
mod maps;
mod mstress;
#[path = "../micro/object.rs"]
mod object;
mod patterns;
#[path = "../../../../../examples/index/search/peak.rs"]
mod peak;
mod pool;
mod refcounted;
#[path = "../../row.rs"]
mod row;
mod rptest;
mod service;
mod smartheap;
mod sorting;
mod source;
mod table;
mod text;
mod usage;
mod vectors;
mod xmalloc;

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use usage::Watch;

/// A program that can be measured: returns its checksum, and makes what it needs beforehand before it calls
/// [`Watch::begin`].
pub type Row = row::Row<fn(&Scale, &mut Watch) -> u64>;

/// How much work there is.
pub struct Scale(usize);

impl Scale {
    /// A number of steps: all of them, or a few with `--smoke`.
    pub fn of(&self, steps: usize) -> usize {
        steps.div_ceil(self.0)
    }
}

/// Steps with `--smoke` are fewer by this factor.
const SMOKE: usize = 50;

const FAMILIES: &[&[Row]] = &[
    larson::ROWS,
    mstress::ROWS,
    rptest::ROWS,
    xmalloc::ROWS,
    smartheap::ROWS,
    alloc_test::ROWS,
    cache::ROWS,
    bignum::ROWS,
    cubes::ROWS,
    glibc::ROWS,
    refcounted::ROWS,
    json::ROWS,
    source::ROWS,
    patterns::ROWS,
    service::ROWS,
    sorting::ROWS,
    channels::ROWS,
    maps::ROWS,
    text::ROWS,
    graphs::ROWS,
    lru::ROWS,
    compiler::ROWS,
    pool::ROWS,
    vectors::ROWS,
    table::ROWS,
];

/// Adds a value to a checksum in which the order counts.
pub fn mix(sum: u64, value: u64) -> u64 {
    (sum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Adds bytes to a checksum in which the order counts.
pub fn mix_bytes(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(mix(sum, bytes.len() as u64), |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum, u64::from_le_bytes(word))
    })
}

fn main() -> ExitCode {
    let rows: Vec<&Row> = FAMILIES.iter().copied().flatten().collect();
    let (row, [smoke, rest]) = match row::chosen("workloads", &rows, ["--smoke", "--rest"]) {
        Ok(chosen) => chosen,
        Err(status) => return status,
    };
    let mut watch = Watch::new();
    let checksum = (row.run)(&Scale(if smoke { SMOKE } else { 1 }), &mut watch);
    let used = watch.stop();
    let peak_kib = peak::resident_kib();
    let rest_kib = rest.then(|| {
        std::thread::sleep(Duration::from_millis(if smoke { 10 } else { 1000 }));
        usage::resident_kib()
    });
    let line = json!({
        "row": row.name,
        "allocator": allocator::NAME,
        "mode": allocator::mode(),
        "checksum": format!("{checksum:016x}"),
        "ms": used.wall.as_secs_f64() * 1e3,
        "cpu_ms": used.cpu.as_secs_f64() * 1e3,
        "faults": used.faults,
        "voluntary": used.voluntary,
        "involuntary": used.involuntary,
        "peak_kib": peak_kib,
        "rest_kib": rest_kib,
    });
    println!("{line}");
    ExitCode::SUCCESS
}
