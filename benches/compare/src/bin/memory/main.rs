//! What programs take of memory under the allocator that was chosen: each row's time, the most that was resident,
//! and what is resident after three seconds of rest, as a line of JSON.
//!
//! ```text
//! memory [--smoke] [--list] ROW
//! ```
//!
//! A row is a process and runs once, as programs do: what it needs it gets from the system within the time measured.
//! Every object is written when it is allocated and checked when it is freed; a wrong one ends the program.

#[path = "../../allocator.rs"]
mod allocator;
mod bursts;
mod churn;
#[path = "../micro/object.rs"]
mod object;
#[path = "../../../../../examples/index/search/peak.rs"]
mod peak;
#[path = "../../row.rs"]
mod row;
mod threads;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

/// A program that can be measured: runs on a scale of 1 / `divisor`. What it leaves alive is alive while the process rests.
pub type Row = row::Row<fn(divisor: usize, rest: &mut Rest)>;

/// Takes the time, and has the process rest.
pub struct Rest {
    began: Instant,
    time: Option<Duration>,
    resident_kib: Option<u64>,
    length: Duration,
}

impl Rest {
    /// The time starts here, if not at the start of the row.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// The time ends here, if not before the rest.
    pub fn done(&mut self) {
        self.time.get_or_insert(self.began.elapsed());
    }

    /// Does nothing for a while, and notes what is resident then. Once in every row.
    pub fn rest(&mut self) {
        self.done();
        std::thread::sleep(self.length);
        self.resident_kib = resident_kib();
    }
}

/// What is resident now, counted page by page.
fn resident_kib() -> Option<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

const SMOKE: usize = 100;

fn main() -> ExitCode {
    let rows: Vec<&Row> = bursts::ROWS.iter().chain(churn::ROWS).chain(threads::ROWS).collect();
    let (row, [smoke]) = match row::chosen("memory", &rows, ["--smoke"]) {
        Ok(chosen) => chosen,
        Err(status) => return status,
    };
    let length = Duration::from_millis(if smoke { 30 } else { 3000 });
    let mut rest = Rest { began: Instant::now(), time: None, resident_kib: None, length };
    (row.run)(if smoke { SMOKE } else { 1 }, &mut rest);
    let line = json!({
        "row": row.name,
        "allocator": allocator::NAME,
        "mode": allocator::mode(),
        "ms": rest.time.map(|time| time.as_secs_f64() * 1e3),
        "peak_kib": peak::resident_kib(),
        "rest_kib": rest.resident_kib,
    });
    println!("{line}");
    ExitCode::SUCCESS
}
