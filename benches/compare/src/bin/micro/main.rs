//! Small loops under the allocator that was chosen, each row with its time per operation as a line of JSON.
//!
//! ```text
//! micro [--smoke] [--list] [ROW…]
//! ```
//!
//! Every object is written when it is allocated and checked when it is freed; a wrong one ends the program.
//! Times are of one pass, without its preparation, after a tenth of it for warming up.

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
    /// Operations in a full pass.
    operations: u64,
    /// Does so many operations, or a few more, and says how many and what they took.
    run: fn(u64) -> (u64, Duration),
}

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
            let pass = if smoke { row.operations.div_ceil(SMOKE) } else { row.operations };
            (row.run)(pass.div_ceil(10));
            let (operations, time) = (row.run)(pass);
            let line = json!({
                "row": row.name,
                "allocator": allocator::NAME,
                "mode": allocator::mode(),
                "operations": operations,
                "ns_per_op": time.as_nanos() as f64 / operations as f64,
                "peak_kib": peak::resident_kib(),
            });
            println!("{line}");
        }
    }
    ExitCode::SUCCESS
}
