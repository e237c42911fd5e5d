//! Builds the programs once for each allocator, runs them in turn, and writes down and draws what came out.
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml --bin compare -- --help
//! ```
//!
//! Every row runs in a process of its own, so that no row inherits the heap of another. In each round every allocator runs
//! once, and in as many rounds as there are allocators each has another one before it (`order.rs`). What is reported is the
//! median over the rounds: a machine that is disturbed for a while disturbs all of them.

mod chance;
mod distance;
mod machine;
mod options;
mod order;
mod plot;
mod suite;
mod table;
mod variant;

use std::path::Path;
use std::process::ExitCode;

use options::{Options, Suite};

/// This package's directory.
const HOME: &str = env!("CARGO_MANIFEST_DIR");

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", Options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("compare: {error}\n\n{}", Options::USAGE);
            return ExitCode::from(2);
        }
    };
    match compare(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Has this thread, and what it starts from now on, run on one CPU only; says on which.
fn keep_to_one_cpu() -> Result<String, String> {
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    // Interrupts come to the first more often than to the last.
    match cpus.last() {
        Some(&cpu) if core_affinity::set_for_current(cpu) => Ok(format!("number {}", cpu.id)),
        _ => Err("the system does not let this thread choose its CPU".into()),
    }
}

fn compare(options: &Options) -> Result<(), String> {
    let (variants, skipped) = variant::build_all(&options.allocators, options.smoke)?;
    let mut machine = machine::describe();
    if options.one_cpu {
        machine.push(("on one CPU", keep_to_one_cpu()?));
    }
    for suite in &options.suites {
        let results = match suite {
            Suite::Micro => suite::micro(options, &variants)?,
            Suite::Index => suite::index(options, &variants)?,
            Suite::Memory => suite::memory(options, &variants)?,
            Suite::Workloads => suite::workloads(options, &variants)?,
            Suite::Latency => suite::latency(options, &variants)?,
        };
        let mut machine = machine.clone();
        machine.extend(distance::take_seen().map(|seen| ("a line between two CPUs and back", seen)));
        let page = table::page(options, suite, &machine, &results, &skipped);
        println!("{page}");
        let directory = Path::new(HOME).join(if options.smoke { "target/smoke" } else { "results" });
        let name = options.file_name(suite);
        let write = |ending: &str, text: String| {
            let path = directory.join(format!("{name}{ending}"));
            std::fs::create_dir_all(&directory)
                .and_then(|()| std::fs::write(&path, text))
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            eprintln!("wrote {}", path.display());
            Ok::<(), String>(())
        };
        write(".md", page)?;
        write(".json", table::json(options, suite, &machine, &results, &skipped))?;
        if *suite == Suite::Workloads {
            for (kind, picture) in plot::pictures(&results)? {
                write(&format!("-{kind}.svg"), picture)?;
            }
        }
    }
    Ok(())
}
