//! Parts of a test that have a process of their own: this program, started again.
//!
//! ```text
//! #[test]
//! fn name() {
//!     child::body("name", |argument| …);                   // in the child: runs, and the process ends
//!     let outcome = Child::new("name", "argument").run();   // in the parent
//! }
//! ```

use std::fmt::{self, Display};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{UnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, ExitStatus};

use super::kernel::{Kernel, Refusal};
use super::namespace::{self, Mount};

const ARGUMENT: &str = "PCPALLOC_TEST_CHILD";
/// What to start this program by, where the kernel does not do so by itself: an emulator and its arguments.
const RUNNER: &str = "PCPALLOC_TEST_RUNNER";
/// Last line of a child that came to its end, so that one that did nothing is not taken for one that succeeded.
const COMPLETED: &str = "completed: yes";
/// Seconds after which a child is taken to hang; the kernel then ends it by SIGALRM.
pub const WATCHDOG: u32 = 300;

/// In a child started for this test, runs `f` with the child's argument and ends the process.
pub fn body(test: &str, f: impl FnOnce(&str)) {
    if let Some(argument) =
        std::env::var(ARGUMENT).ok().as_deref().and_then(|v| v.strip_prefix(test)?.strip_prefix(' '))
    {
        f(argument);
        println!("\n{COMPLETED}");
        std::process::exit(0);
    }
}

/// Says something for the parent to read with [`Outcome::value`], on a line of its own: the test harness leaves one
/// unfinished.
pub fn say(key: &str, value: impl Display) {
    println!("\n{key}: {value}");
}

/// A child process to be.
pub struct Child {
    command: Command,
}

impl Child {
    /// This program once more, to run the [`body`] of `test` with `argument`.
    pub fn new(test: &str, argument: &str) -> Child {
        Child::of(&std::env::current_exe().expect("the program knows its path"), test, argument)
    }

    /// The same of a copy of this program.
    pub fn of(program: &Path, test: &str, argument: &str) -> Child {
        let mut command = match std::env::var(RUNNER) {
            Ok(runner) => {
                let mut words = runner.split_whitespace();
                let mut command = Command::new(words.next().expect("an emulator"));
                command.args(words).arg(program);
                command
            }
            Err(_) => Command::new(program),
        };
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(ARGUMENT, format!("{test} {argument}"));
        limit(&mut command, libc::RLIMIT_CORE as libc::c_int, 0);
        // SAFETY: alarm is a system call without preconditions.
        unsafe {
            command.pre_exec(|| {
                libc::alarm(WATCHDOG);
                Ok(())
            })
        };
        Child { command }
    }

    /// Has it run on a kernel with parts missing.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        kernel.apply(&mut self.command);
        self
    }

    /// Gives it an environment variable.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it this many bytes of address space, from its first instruction on.
    pub fn address_space(mut self, bytes: usize) -> Self {
        limit(&mut self.command, libc::RLIMIT_AS as libc::c_int, bytes);
        self
    }

    /// Gives it this many bytes of private memory that it may write to, which is what strict overcommit counts.
    pub fn data(mut self, bytes: usize) -> Self {
        limit(&mut self.command, libc::RLIMIT_DATA as libc::c_int, bytes);
        self
    }

    /// Has these system calls refused.
    pub fn refuse(mut self, refusals: impl IntoIterator<Item = Refusal>) -> Self {
        for refusal in refusals {
            // SAFETY: `install` makes two system calls and allocates nothing.
            unsafe { self.command.pre_exec(move || refusal.install()) };
        }
        self
    }

    /// Has it see something else where these files are; see [`namespace::is_possible`](super::namespace::is_possible).
    pub fn mount(mut self, mounts: impl IntoIterator<Item = Mount>) -> Self {
        let mounts: Vec<Mount> = mounts.into_iter().collect();
        // SAFETY: `enter` makes system calls only and allocates nothing.
        unsafe { self.command.pre_exec(move || namespace::enter(&mounts)) };
        self
    }

    /// Gives its heap these settings, as a user would: `PCPALLOC_CONF`.
    pub fn settings(mut self, settings: &str) -> Self {
        self.command.env("PCPALLOC_CONF", settings);
        self
    }

    /// Has it run as another user.
    pub fn user(mut self, user: u32) -> Self {
        self.command.uid(user);
        self
    }

    /// Runs it and waits for its end.
    pub fn run(mut self) -> Outcome {
        let output = self.command.output().expect("the child starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

fn limit(command: &mut Command, resource: libc::c_int, value: usize) {
    let value = value as libc::rlim_t;
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: setrlimit is a system call that reads the limit, which the closure owns.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource as _, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
}

/// How a child ended and what it said.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// For people: what the child said is text of several lines.
impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (stream, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            text.lines().filter(|line| !line.is_empty()).try_for_each(|line| writeln!(f, "  {stream}: {line}"))?;
        }
        Ok(())
    }
}

impl Outcome {
    /// Fails the test unless the child's body came to its end.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        let completed = self.stdout.lines().any(|line| line == COMPLETED);
        assert!(self.status.success() && completed, "the child came to its end: {self:#?}");
        self
    }

    /// What the child said under this key.
    #[track_caller]
    pub fn value(&self, key: &str) -> &str {
        let said = self.stdout.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        said.unwrap_or_else(|| panic!("the child said {key}: {self:#?}"))
    }

    /// A number that the child said under this key.
    #[track_caller]
    pub fn number(&self, key: &str) -> usize {
        self.value(key).parse().unwrap_or_else(|_| panic!("{key} is a number: {self:#?}"))
    }

    /// The signal that ended the child.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// Seconds after which a forked process is taken to hang; the kernel then ends it by SIGALRM.
const FORK_WATCHDOG: u32 = 60;

/// Runs `f` in a process made by `fork`, and returns how that ended: 0 if `f` returned.
pub fn in_a_fork(f: impl FnOnce() + UnwindSafe) -> libc::c_int {
    // SAFETY: the new process runs `f`, which uses the heap and threads of its own, both of which are what is to be
    // shown to work there, and leaves by `_exit` without touching anything of the threads it lacks; `status` is valid
    // for the write.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                libc::alarm(FORK_WATCHDOG);
                libc::_exit(if catch_unwind(f).is_ok() { 0 } else { 1 })
            }
            process => {
                let mut status = -1;
                while libc::waitpid(process, &mut status, 0) != process {}
                status
            }
        }
    }
}
