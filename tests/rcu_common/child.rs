//! Tests that need a process of their own: the same binary, started again with a role to play.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output};

const ROLE: &str = "PCPALLOC_TEST_ROLE";

/// The role this process was started to play, if it is a child.
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Starts this binary again for the test `name` in `role`, after `prepare`.
///
/// `prepare` is run in the forked child and may do only what is async-signal-safe.
pub fn run(name: &str, role: &str, prepare: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    // SAFETY: as the caller promises.
    unsafe { command.pre_exec(prepare) };
    command.output().expect("a child")
}

/// As [`run`], without preparation.
pub fn run_plain(name: &str, role: &str) -> Output {
    run(name, role, || Ok(()))
}

/// As [`run`], in a process that has no rseq: stacks belong to threads.
pub fn run_without_rseq(name: &str, role: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    // SAFETY: installing a filter is two system calls.
    unsafe { command.pre_exec(super::filter::refuse_rseq) };
    command.output().expect("a child")
}

/// Standard error and output together, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{:?}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn assert_passed(output: &Output) {
    let ran = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && ran, "{}", text(output));
}

pub fn was_killed_by(output: &Output, signal: i32) -> bool {
    output.status.signal() == Some(signal)
}
