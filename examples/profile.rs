//! Where the memory of a program goes, by the profiler of its allocator: a cross-reference of Rust sources.
//!
//! ```text
//! cargo run --release --features profile --example profile [OUTPUT] [SOURCES] [--interval BYTES] [--rounds N]
//! ```
//!
//! Parses every file under SOURCES (`src`) with `syn`, on two threads, and keeps for every identifier where it stands.
//! Writes to OUTPUT (`target/profile`):
//!
//! | file | for |
//! | --- | --- |
//! | `profile.pb.gz` | `go tool pprof -http=: target/profile/profile.pb.gz`, Speedscope, Pyroscope, … |
//! | `dhat.json` | `dh_view.html` of valgrind |
//! | `live.svg`, `peak.svg`, `allocated.svg` | a browser |

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use inferno::flamegraph::Palette;
use inferno::flamegraph::color::MultiPalette;
use pcpalloc::PcpAlloc;
use pcpalloc::profile::{self, Options, Profile, View};
use syn::visit::Visit;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Where identifiers stand: file and line.
#[derive(Default)]
struct CrossReference {
    places: BTreeMap<String, Vec<(PathBuf, usize)>>,
}

impl CrossReference {
    fn merge(&mut self, other: CrossReference) {
        for (name, mut places) in other.places {
            self.places.entry(name).or_default().append(&mut places);
        }
    }
}

struct Visitor<'a> {
    file: &'a Path,
    found: CrossReference,
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_ident(&mut self, ident: &'ast proc_macro2::Ident) {
        let place = (self.file.to_path_buf(), ident.span().start().line);
        self.found.places.entry(ident.to_string()).or_default().push(place);
    }
}

fn read_file(path: &Path) -> Result<CrossReference, Box<dyn Error + Send + Sync>> {
    let text = fs::read_to_string(path)?;
    let tree = syn::parse_file(&text)?;
    let mut visitor = Visitor { file: path, found: CrossReference::default() };
    visitor.visit_file(&tree);
    Ok(visitor.found)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Reads all files, half of them on each of two threads.
fn cross_reference(files: &[PathBuf]) -> Result<CrossReference, Box<dyn Error + Send + Sync>> {
    let index = Mutex::new(CrossReference::default());
    std::thread::scope(|scope| {
        let index = &index;
        let threads: Vec<_> = files
            .chunks(files.len().div_ceil(2).max(1))
            .map(|files| {
                scope.spawn(move || {
                    for file in files {
                        let found = read_file(file)?;
                        index.lock().unwrap().merge(found);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
    .map(|()| index.into_inner().unwrap())
}

fn write_flame_graph(profile: &Profile, view: View, path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut lines = Vec::new();
    profile.write_folded(view, &mut lines)?;
    let mut options = inferno::flamegraph::Options::default();
    options.title = match view {
        View::Live => "Memory in use",
        View::Deferred => "Memory that waits for a grace period",
        View::Peak => "Memory in use at the peak",
        View::Allocated => "Memory allocated, freed or not",
    }
    .to_string();
    let mib = profile.total(view).bytes as f64 / (1 << 20) as f64;
    options.subtitle = Some(format!("about {mib:.1} MiB, from a sample in {} KiB", profile.interval() >> 10));
    options.count_name = "bytes".to_string();
    // Orange is the standard library, blue whatever else is Rust, yellow C; a function has the same shade in every picture.
    options.colors = Palette::Multi(MultiPalette::Rust);
    options.deterministic = true;
    options.min_width = 0.2;
    inferno::flamegraph::from_reader(&mut options, &lines[..], fs::File::create(path)?)?;
    Ok(())
}

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("profile: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut paths, mut interval, mut rounds) = (Vec::new(), 64 << 10, 4);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).ok_or(format!("{arg} takes a number"));
        match arg.as_str() {
            "--interval" => interval = number()?,
            "--rounds" => rounds = number()?,
            _ if arg.starts_with('-') => {
                return Err("usage: profile [OUTPUT] [SOURCES] [--interval BYTES] [--rounds N]".into());
            }
            _ => paths.push(PathBuf::from(arg)),
        }
    }
    let mut paths = paths.into_iter();
    let output = paths.next().unwrap_or("target/profile".into());
    let mut files = Vec::new();
    let directory = paths.next().unwrap_or("src".into());
    sources(&directory, &mut files).map_err(|error| format!("{}: {error}", directory.display()))?;
    files.sort_unstable();

    profile::start(&Options::new().interval(interval))?;
    let mut index = CrossReference::default();
    for _ in 0..rounds {
        index.merge(cross_reference(&files)?);
    }
    let profile = profile::snapshot();
    profile::stop();

    fs::create_dir_all(&output)?;
    profile.write_pprof(fs::File::create(output.join("profile.pb.gz"))?)?;
    profile.write_dhat(std::io::BufWriter::new(fs::File::create(output.join("dhat.json"))?))?;
    for (view, name) in [(View::Live, "live"), (View::Peak, "peak"), (View::Allocated, "allocated")] {
        write_flame_graph(&profile, view, &output.join(format!("{name}.svg")))?;
        let total = profile.total(view);
        println!("{name:<10} {:>10} KiB in {:>9} blocks", total.bytes >> 10, total.objects);
    }
    let places: usize = index.places.values().map(Vec::len).sum();
    println!("{} identifiers at {places} places in {} files", index.places.len(), files.len());
    println!("{} samples had no room; the files are in {}", profile.lost(), output.display());
    Ok(())
}
