//! `examples/preload.rs` under programs that were never built with it.

#![cfg(all(feature = "capi", not(any(loom, pcpalloc_twin))))]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use common::kernel::Kernel;
use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// The library, beside this program: `cargo test` makes it; `cargo test --test capi_preload` does not, so it is made
/// here.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = std::env::current_exe().expect("the program knows its path");
    let profile = program.ancestors().nth(2).expect("programs lie in target/…/deps");
    let path = profile.join("examples/libpreload.so");
    if !path.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--features", "capi", "--example", "preload"]);
        cargo.arg("--target-dir").arg(profile.parent().expect("the profile's folder lies in the target folder"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().is_ok_and(|status| status.success()));
    }
    assert!(path.exists(), "{} is there", path.display());
    path
});

/// Whether the program is there; says so if it is not.
fn there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !found {
        println!("skipped: there is no {program} on this machine");
    }
    found
}

fn run(program: &str, arguments: &[&str], settings: Option<&str>, kernel: Kernel) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C");
    if let Some(settings) = settings {
        command.env("LD_PRELOAD", &*LIBRARY).env("PCPALLOC_CONF", settings);
        kernel.apply(&mut command);
    }
    command.output().expect("the program starts")
}

/// Runs a program without the library and with it, on every kernel, and compares all it says.
///
/// Each test that does nothing else is red if the library is not there: in [`run`], do not set `LD_PRELOAD`.
fn same(program: &str, arguments: &[&str]) {
    if !there(program) {
        return;
    }
    let expected = run(program, arguments, None, Kernel::Whole);
    assert!(expected.status.success(), "{program}: {expected:?}");
    for kernel in Kernel::MODES {
        // A setting that is not understood is reported, so that the report shows the library to be there.
        let found = run(program, arguments, Some("preloaded:yes"), kernel);
        let said = String::from_utf8_lossy(&found.stderr);
        let (reports, others): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("pcpalloc: "));
        assert!(
            !reports.is_empty() && reports.iter().all(|line| line.contains("\"preloaded:yes\"")),
            "{program}: {said}"
        );
        let expected_others = String::from_utf8_lossy(&expected.stderr);
        assert_eq!(found.status, expected.status, "{program}, {kernel:?}: {said}");
        assert_eq!(found.stdout, expected.stdout, "{program}, {kernel:?}");
        assert_eq!(others, expected_others.lines().collect::<Vec<_>>(), "{program}, {kernel:?}");
    }
}

#[test]
fn ls() {
    same("ls", &["-lR", "--time-style=+", concat!(env!("CARGO_MANIFEST_DIR"), "/src")]);
}

/// Shells make their processes by `fork` or `vfork`, and put strings together in between.
#[test]
fn sh() {
    let script = r#"
        i=0; all=
        while [ $i -lt 40 ]; do
            all="$all $(echo $i | sed s/1/one/) $(ls -d /)"; i=$((i + 1))
            (: subshell; x="$all$all$all"; echo ${#x}) | cat
        done
        cat <<END
$all
END
        exec env printf '%s\n' "$all""#;
    same("sh", &["-c", script]);
    same("bash", &["-c", script]);
}

#[test]
fn sort() {
    same("sort", &["--parallel=2", "-S", "1M", concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")]);
}

#[test]
fn cargo_and_rustc() {
    same("cargo", &["--version"]);
    same(
        "cargo",
        &[
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ],
    );
}

/// A program that allocates without this crate, and says how many threads it has after a burst of memory.
const BURST: &str = r#"
    use std::hint::black_box;
    fn threads() -> String {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap().trim().to_string()
    }
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4 / 1024
    }
    fn main() {
        let many = std::env::args().any(|a| a == "threads");
        let work = || {
            let kept: Vec<Vec<u8>> = (0..100_000).map(|n| black_box(vec![n as u8; 1000])).collect();
            assert!(kept.iter().enumerate().all(|(n, v)| v[999] == n as u8));
        };
        work();
        if many {
            std::thread::scope(|s| { s.spawn(work); s.spawn(work); });
            work();
        }
        let until = std::time::Instant::now() + std::time::Duration::from_secs(if many { 8 } else { 0 });
        while std::time::Instant::now() < until && resident() > 30 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        println!("{} {}", threads(), resident());
    }"#;

/// A program of one thread stays one, and gives back what exceeds the mark when it frees; one of several gets a worker,
/// which gives back all of it.
///
/// Red if the worker is started for the former: in `start_if_due` (`src/control/worker.rs`), do not ask
/// `is_single_threaded`; or not for the latter: do not call it in `alloc_class_slow` (`src/alloc.rs`).
#[test]
fn a_worker_comes_where_there_are_threads_already() {
    if !there("rustc") {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("burst.rs"), folder.join("burst"));
    std::fs::write(&source, BURST).expect("the folder is ours");
    let path = |path: &Path| path.to_str().expect("a path of this crate").to_string();
    let compiled =
        run("rustc", &["-O", "--edition=2024", "-o", &path(&program), &path(&source)], Some(""), Kernel::Whole);
    assert!(compiled.status.success() && compiled.stderr.is_empty(), "{compiled:?}");
    for kernel in Kernel::MODES {
        for (argument, threads, most) in [("", 1, 60), ("threads", 2, 40)] {
            let said = run(&path(&program), &[argument], Some(""), kernel);
            let text = String::from_utf8_lossy(&said.stdout);
            let numbers: Vec<usize> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
            assert!(numbers[0] == threads && numbers[1] < most, "{argument}, {kernel:?}: {numbers:?} threads and MiB");
        }
    }
}
