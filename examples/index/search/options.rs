//! The command line, and what can go wrong.

use std::ffi::OsString;
use std::path::PathBuf;
use std::{env, fmt, io};

/// What to index, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// A directory, or one file.
    pub root: PathBuf,
    pub threads: usize,
    /// Bytes up to which the documents are repeated.
    pub repeat_to: u64,
    pub queries: usize,
}

impl Options {
    pub const USAGE: &str = "\
usage: index [PATH] [--threads N] [--repeat-to MB] [--queries N]

  PATH            a directory of text, or one file; by default the sources that cargo has unpacked
  --threads N     threads for indexing and for queries (default 8)
  --repeat-to MB  less text than this is indexed several times, as further documents (default 100)
  --queries N     number of queries (default 20000)";

    /// Reads the arguments after the program's name; `None` if they ask for help.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Options>, Error> {
        let (mut root, mut threads, mut megabytes, mut queries) = (None, 8, 100, 20_000);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("-h" | "--help") => return Ok(None),
                Some("--threads") => threads = number("--threads", args.next(), 1..=1024)?,
                Some("--repeat-to") => megabytes = number("--repeat-to", args.next(), 0..=1_000_000)?,
                Some("--queries") => queries = number("--queries", args.next(), 0..=1_000_000_000)?,
                Some(flag) if flag.starts_with('-') => return Err(Error::Usage(format!("unknown option {flag}"))),
                _ if root.is_some() => return Err(Error::Usage("more than one path".into())),
                _ => root = Some(PathBuf::from(arg)),
            }
        }
        Ok(Some(Options {
            root: root.unwrap_or_else(default_root),
            threads,
            repeat_to: megabytes as u64 * 1_000_000,
            queries,
        }))
    }
}

fn number(flag: &str, value: Option<OsString>, range: std::ops::RangeInclusive<usize>) -> Result<usize, Error> {
    let value = value.unwrap_or_default();
    match value.to_str().and_then(|text| text.parse().ok()) {
        Some(n) if range.contains(&n) => Ok(n),
        _ => Err(Error::Usage(format!("{flag} needs a number from {} to {}", range.start(), range.end()))),
    }
}

/// The sources that cargo has unpacked on this machine, or else this package's own directory.
fn default_root() -> PathBuf {
    let cargo_home = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    cargo_home
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .map(|home| home.join("registry/src"))
        .filter(|sources| sources.is_dir())
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
}

#[derive(Debug)]
pub enum Error {
    Usage(String),
    /// A file or directory that cannot be read.
    Unreadable(PathBuf, io::Error),
    NoText(PathBuf),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(what) => write!(f, "{what}\n\n{}", Options::USAGE),
            Error::Unreadable(path, why) => write!(f, "cannot read {}: {why}", path.display()),
            Error::NoText(path) => write!(f, "no text files in {}", path.display()),
        }
    }
}
