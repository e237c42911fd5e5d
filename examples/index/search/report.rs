//! What was indexed, what was found, and what it took.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub struct Report {
    pub root: PathBuf,
    pub threads: usize,
    pub files: usize,
    pub documents: usize,
    pub bytes: u64,
    pub words: usize,
    pub postings: usize,
    pub index_time: Duration,
    pub index_checksum: u64,
    pub queries: usize,
    pub hits: usize,
    pub query_time: Duration,
    pub query_checksum: u64,
    pub peak_kib: Option<u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / 1e6;
        let (index_s, query_s) = (self.index_time.as_secs_f64(), self.query_time.as_secs_f64());
        writeln!(f, "{}, {} threads", self.root.display(), self.threads)?;
        writeln!(f, "text      {} files as {} documents, {megabytes:.1} MB", self.files, self.documents)?;
        writeln!(f, "index     {} distinct words, {} postings", self.words, self.postings)?;
        writeln!(
            f,
            "          {index_s:.2} s, {:.1} MB/s, checksum {:016x}",
            megabytes / index_s,
            self.index_checksum
        )?;
        writeln!(f, "queries   {} with {} hits", self.queries, self.hits)?;
        writeln!(
            f,
            "          {query_s:.2} s, {:.0} a second, checksum {:016x}",
            self.queries as f64 / query_s,
            self.query_checksum
        )?;
        match self.peak_kib {
            Some(kib) => write!(f, "peak RSS  {} MiB", kib >> 10),
            None => write!(f, "peak RSS  unknown: /proc/self/status cannot be read"),
        }
    }
}
