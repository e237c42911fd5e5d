//! A service that bursts and rests, and what it holds of memory meanwhile, under this allocator and others:
//! a picture of RSS over time.
//!
//! ```text
//! cargo run --release --example govern [-- [--to FILE.svg] [--with NAME=PROGRAM]…]
//! ```
//!
//! The program runs itself once for each allocator it knows, this crate's and the system's, and looks at the child's
//! RSS from outside. Programs named by `--with` are run likewise: the same service under other allocators, which
//! `benches/compare` builds (see its README). Takes half a minute each.

mod plot;
mod service;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use pcpalloc::{Drain, PcpAlloc, Watermarks};
use plot::Curve;
use service::Control;

/// In the environment of a child: which allocator it is to use.
const CHOICE: &str = "GOVERN_ALLOCATOR";

/// This crate's allocator or the system's, as the environment says when the first block is allocated.
struct Either {
    choice: AtomicU8,
}

#[global_allocator]
static GLOBAL: Either = Either { choice: AtomicU8::new(UNKNOWN) };
static PCPALLOC: PcpAlloc = PcpAlloc::new();

const UNKNOWN: u8 = 0;
const OURS: u8 = 1;
const SYSTEM: u8 = 2;

impl Either {
    fn is_ours(&self) -> bool {
        // Relaxed: whoever finds it unknown finds the same answer.
        match self.choice.load(Ordering::Relaxed) {
            UNKNOWN => {
                // SAFETY: the name is a C string, and so is the value if there is one; nobody changes the environment
                // before `main`.
                let system = unsafe {
                    let value = libc::getenv(c"GOVERN_ALLOCATOR".as_ptr());
                    !value.is_null() && std::ffi::CStr::from_ptr(value) == c"system"
                };
                self.choice.store(if system { SYSTEM } else { OURS }, Ordering::Relaxed);
                !system
            }
            choice => choice == OURS,
        }
    }
}

// SAFETY: one of two allocators, the same one for the life of the process.
unsafe impl GlobalAlloc for Either {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligation.
        unsafe { if self.is_ours() { PCPALLOC.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's obligation.
        unsafe { if self.is_ours() { PCPALLOC.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's obligation; the block came from the same allocator.
        unsafe {
            if self.is_ours() { PCPALLOC.realloc(block, layout, size) } else { System.realloc(block, layout, size) }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligation; the block came from the same allocator.
        unsafe { if self.is_ours() { PCPALLOC.dealloc(block, layout) } else { System.dealloc(block, layout) } }
    }
}

/// What the program in the picture does to its heap.
fn control(what: Control) -> bool {
    match what {
        Control::Marks => {
            let marks = Watermarks { min: 0, low: 64 << 20, high: 96 << 20 };
            PCPALLOC.set_watermarks(marks).expect("these marks do not contradict each other");
        }
        Control::NoMarks => {
            let marks = Watermarks { min: 0, low: 0, high: 0 };
            PCPALLOC.set_watermarks(marks).expect("no marks do not contradict each other");
        }
        Control::Drain => drop(PCPALLOC.drain(Drain::All)),
        Control::Trim => drop(PCPALLOC.trim()),
    }
    true
}

fn main() -> ExitCode {
    match std::env::var(CHOICE).as_deref() {
        Ok("pcpalloc") => service::run(control),
        Ok(_) => service::run(|_| false),
        Err(_) => {
            if let Err(error) = compare() {
                eprintln!("govern: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn compare() -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut programs = vec![("pcpalloc".to_string(), own.clone()), ("system".to_string(), own)];
    let mut to = PathBuf::from("target/govern.svg");
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().unwrap_or_default();
        match (arg.as_str(), value.split_once('=')) {
            ("--to", _) if value.is_empty() => return Err(format!("{arg} needs a value")),
            ("--to", _) => to = value.into(),
            ("--with", Some((name, program))) => programs.push((name.into(), program.into())),
            _ => return Err(format!("unknown: {arg} {value}\nusage: govern [--to FILE.svg] [--with NAME=PROGRAM]…")),
        }
    }
    let mut curves = Vec::new();
    for (name, program) in &programs {
        eprintln!("{name}");
        let curve = watch(name, program).map_err(|error| format!("{}: {error}", program.display()))?;
        let summary = curve.summary();
        println!("{name:10} peak {:4.0} MiB, in the end {:4.0} MiB", summary.0, summary.1);
        curves.push(curve);
    }
    plot::draw(&to, &curves).map_err(|error| format!("{}: {error}", to.display()))?;
    println!("{}", to.display());
    Ok(())
}

/// Runs a service and looks at it, twenty times a second.
fn watch(name: &str, program: &Path) -> std::io::Result<Curve> {
    let mut child = Command::new(program).env(CHOICE, name).stdout(Stdio::piped()).spawn()?;
    let statm = format!("/proc/{}/statm", child.id());
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as f64;
    let lines = BufReader::new(child.stdout.take().expect("the child's standard output is a pipe")).lines();
    let began = Instant::now();
    let mut curve = Curve { name: name.into(), ..Curve::default() };
    let mut last = Duration::ZERO;
    for line in lines {
        let (line, now) = (line?, began.elapsed());
        let seconds = now.as_secs_f64();
        match line.split_once(' ') {
            Some(("event", text)) => curve.events.push((seconds, text.into())),
            Some(("live", bytes)) => curve.live.push((seconds, bytes.parse().unwrap_or(0.0) / f64::from(1 << 20))),
            _ => {}
        }
        if now - last < Duration::from_millis(25) {
            continue;
        }
        last = now;
        let pages = std::fs::read_to_string(&statm).ok().and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
        curve.resident.extend(pages.map(|pages| (seconds, pages * page / f64::from(1 << 20))));
    }
    match child.wait()? {
        status if status.success() => Ok(curve),
        status => Err(std::io::Error::other(status.to_string())),
    }
}
