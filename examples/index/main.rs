//! A search engine in memory, on this allocator: an inverted index over a directory of text, built and queried
//! by many threads.
//!
//! ```text
//! cargo run --release --example index [PATH] [--threads N] [--repeat-to MB] [--queries N]
//! ```
//!
//! Every distinct word of every document is a string of its own, first in a map of that document, then in a map
//! of its thread, and at last in the index, so blocks of many sizes are allocated on one thread and freed on
//! another. The two checksums do not depend on how threads were scheduled, nor on the allocator: `search/`
//! knows neither.

mod search;

use std::process::ExitCode;

use pcpalloc::PcpAlloc;
use search::Options;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", Options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error),
    };
    let (report, index) = match search::run(&options) {
        Ok(done) => done,
        Err(error) => return fail(&error),
    };
    println!("{report}\n\nThe heap with the index:\n{}", GLOBAL.stats());
    drop(index);
    let released = GLOBAL.trim().released;
    println!("\nThe heap without it, after trim() gave back {} MiB:\n{}", released >> 20, GLOBAL.stats());
    ExitCode::SUCCESS
}

fn fail(error: &search::Error) -> ExitCode {
    eprintln!("index: {error}");
    ExitCode::from(2)
}
