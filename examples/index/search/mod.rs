//! The search engine: find documents, index them, query the index. Allocates as any program does and knows no
//! allocator.

mod corpus;
mod hash;
mod index;
mod options;
mod parallel;
mod peak;
mod progress;
mod query;
mod report;
mod tokens;

use std::time::Instant;

pub use index::Index;
pub use options::{Error, Options};
pub use report::Report;

use corpus::Corpus;

/// Indexes what the options name and queries the index; returns it, so that its memory can still be looked at.
pub fn run(options: &Options) -> Result<(Report, Index), Error> {
    let corpus = Corpus::find(&options.root, options.repeat_to)?;
    let start = Instant::now();
    let index = Index::build(&corpus, options.threads)?;
    let index_time = start.elapsed();

    let queries = query::workload(&index, options.queries);
    let start = Instant::now();
    let answers = query::run_all(&index, &corpus, &queries, options.threads);
    let query_time = start.elapsed();

    let report = Report {
        root: options.root.clone(),
        threads: options.threads,
        files: corpus.files(),
        documents: corpus.documents(),
        bytes: corpus.bytes(),
        words: index.words(),
        postings: index.postings(),
        index_time,
        index_checksum: index.checksum(),
        queries: queries.len(),
        hits: answers.hits,
        query_time,
        query_checksum: answers.checksum,
        peak_kib: peak::resident_kib(),
    };
    Ok((report, index))
}
