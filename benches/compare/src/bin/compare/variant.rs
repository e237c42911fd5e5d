//! The programs, built for each allocator.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::Value;

use crate::HOME;

/// The programs with one allocator.
pub struct Variant {
    pub name: &'static str,
    directory: PathBuf,
}

/// An allocator that could not be built, and why.
pub struct Skipped {
    pub name: &'static str,
    pub reason: String,
}

/// Builds a variant for every allocator, each into a target directory of its own, so that none disturbs what
/// cargo has built of another. The first must be built; any other that cannot be is left out.
pub fn build_all(names: &[&'static str], smoke: bool) -> Result<(Vec<Variant>, Vec<Skipped>), String> {
    let (mut variants, mut skipped) = (Vec::new(), Vec::new());
    for name in names {
        match build(name, smoke) {
            Ok(variant) => variants.push(variant),
            Err(reason) if variants.is_empty() => return Err(format!("cannot build {name}:\n{reason}")),
            Err(reason) => {
                eprintln!("skipping {name}:\n{reason}");
                skipped.push(Skipped { name, reason });
            }
        }
    }
    Ok((variants, skipped))
}

/// How the name of our allocator ends where it has huge pages for all of its memory.
const THP: &str = "-thp";

/// All that are built for each allocator.
const PROGRAMS: [&str; 5] = ["micro", "index", "memory", "workloads", "latency"];

fn build(name: &'static str, smoke: bool) -> Result<Variant, String> {
    eprintln!("building {name}");
    let feature = name.strip_suffix(THP).unwrap_or(name);
    let target = Path::new(HOME).join(if smoke { "target/smoke-variants" } else { "target/variants" }).join(feature);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Whether everything works can be seen without waiting for the optimiser.
    if smoke {
        let quick = [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("OPT_LEVEL", "1")];
        command.envs(quick.map(|(name, value)| (format!("CARGO_PROFILE_RELEASE_{name}"), value)));
    }
    let output = command
        .args(["build", "--release", "--quiet", "--no-default-features"])
        .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
        .args(["--features", &format!("{feature},workloads")])
        .arg("--manifest-path")
        .arg(Path::new(HOME).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        // Debug information would have some allocators compiled without optimisation.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if output.status.success() {
        let directory = target.join("release");
        for program in PROGRAMS {
            forget(&directory.join(program)).map_err(|error| format!("cannot have {program} read anew: {error}"))?;
        }
        return Ok(Variant { name, directory });
    }
    let lines: Vec<String> = String::from_utf8_lossy(&output.stderr).lines().map(String::from).collect();
    Err(lines[lines.len().saturating_sub(15)..].join("\n"))
}

/// Has the system read a program from its file again. What a linker has just written it holds in larger pieces than what
/// it has read, and maps whole pieces: the programs that were built last would have up to half a megabyte more resident.
fn forget(program: &Path) -> io::Result<()> {
    let file = File::open(program)?;
    file.sync_all()?;
    Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

impl Variant {
    /// Runs one of the programs; returns the lines of JSON that it printed.
    pub fn run(&self, program: &str, args: &[String]) -> Result<Vec<Value>, String> {
        let failed = |why: String| format!("{program} {} with {}: {why}", args.join(" "), self.name);
        let mut command = Command::new(self.directory.join(program));
        command.args(args);
        // It keeps blocks by CPU only if it may register for restartable sequences itself, before glibc does.
        if self.name == "tcmalloc" {
            command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
        }
        if self.name.ends_with(THP) {
            command.env("PCPALLOC_CONF", "thp:always");
        }
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr))));
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        stdout.lines().map(|line| serde_json::from_str(line).map_err(|error| failed(error.to_string()))).collect()
    }
}
