//! The program of `examples/index` under the allocator that was chosen; its results as a line of JSON.

#[path = "../allocator.rs"]
mod allocator;
#[path = "../../../../examples/index/search/mod.rs"]
mod search;

use std::process::ExitCode;

use search::Options;
use serde_json::json;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", Options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error),
    };
    let report = match search::run(&options) {
        Ok((report, _)) => report,
        Err(error) => return fail(&error),
    };
    let line = json!({
        "row": "index",
        "allocator": allocator::NAME,
        "mode": allocator::mode(),
        "root": report.root.to_string_lossy(),
        "threads": report.threads,
        "files": report.files,
        "documents": report.documents,
        "bytes": report.bytes,
        "words": report.words,
        "postings": report.postings,
        "queries": report.queries,
        "hits": report.hits,
        "index_s": report.index_time.as_secs_f64(),
        "query_s": report.query_time.as_secs_f64(),
        "peak_kib": report.peak_kib,
        "index_checksum": format!("{:016x}", report.index_checksum),
        "query_checksum": format!("{:016x}", report.query_checksum),
    });
    println!("{line}");
    ExitCode::SUCCESS
}

fn fail(error: &search::Error) -> ExitCode {
    eprintln!("index: {error}");
    ExitCode::from(2)
}
