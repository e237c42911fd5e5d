//! Small loops under the allocator that was chosen, each row with its time per operation as a line of JSON.
//!
//! ```text
//! micro [--smoke] [--list] [ROW…]
//! ```
//!
//! Every object is written when it is allocated and checked when it is freed; a wrong one ends the program.
//! A row's time is that of the fastest of five passes, without their preparation, after one for warming up: what
//! a machine that does other things adds to the rest is not the allocator's.

#[path = "../../allocator.rs"]
mod allocator;
mod large;
mod object;
#[path = "../../../../../examples/index/search/peak.rs"]
mod peak;
mod small;
mod threads;

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

/// A loop that can be timed.
pub struct Row {
    name: &'static str,
    /// What one operation is.
    operation: &'static str,
    /// Operations in a pass.
    operations: u64,
    /// Does so many operations, or a few more, and says how many and what they took.
    run: fn(u64) -> (u64, Duration),
}

const PASSES: usize = 5;

/// Operations in a pass with `--smoke` are fewer by this factor.
const SMOKE: u64 = 1000;

fn main() -> ExitCode {
    let rows: Vec<&Row> = small::ROWS.iter().chain(large::ROWS).chain(threads::ROWS).collect();
    let (mut smoke, mut wanted) = (false, Vec::new());
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--smoke" => smoke = true,
            "--list" => {
                rows.iter().for_each(|row| println!("{}", json!({ "row": row.name, "operation": row.operation })));
                return ExitCode::SUCCESS;
            }
            name if rows.iter().any(|row| row.name == name) => wanted.push(arg),
            _ => {
                let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
                eprintln!("micro: no row {arg}; there are {}\nusage: micro [--smoke] [--list] [ROW…]", names.join(" "));
                return ExitCode::from(2);
            }
        }
    }
    for row in rows {
        if wanted.is_empty() || wanted.iter().any(|name| name == row.name) {
            let operations = if smoke { row.operations.div_ceil(SMOKE) } else { row.operations };
            let pass = || {
                let (done, time) = (row.run)(operations);
                time.as_nanos() as f64 / done as f64
            };
            pass();
            let ns_per_op = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
            let line = json!({
                "row": row.name,
                "allocator": allocator::NAME,
                "mode": allocator::mode(),
                "operations": operations,
                "ns_per_op": ns_per_op,
                "peak_kib": peak::resident_kib(),
            });
            println!("{line}");
        }
    }
    ExitCode::SUCCESS
}
