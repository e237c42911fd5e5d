//! Where and with what the results were measured.

use std::fs;
use std::process::Command;

use crate::HOME;

/// The last commit to the crate's source, and whether it has been changed since.
fn commit() -> Option<String> {
    let git = |args: &[&str]| output("git", &[&["-C", HOME], args, &["--", "../../src", "../../Cargo.toml"]].concat());
    let changes = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    Some(git(&["log", "-1", "--format=%h"])? + if changes { " and changes" } else { "" })
}

/// Pairs of a name and what is to be said, in the order in which they are printed. What cannot be found out
/// is left out.
pub fn describe() -> Vec<(&'static str, String)> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = field(&cpuinfo, "model name").map(|model| {
        let count = std::thread::available_parallelism().map_or(0, |count| count.get());
        let sizes = field(&cpuinfo, "cache size").map_or(String::new(), |size| format!(", cache {size}"));
        format!("{model}, {count} CPUs{sizes}")
    });
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|info| {
        let kib: u64 = field(&info, "MemTotal")?.split_whitespace().next()?.parse().ok()?;
        Some(format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)))
    });
    let pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    let facts = [
        ("date", output("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("cpu", cpu),
        ("memory", memory),
        ("kernel", output("uname", &["-srm"])),
        ("transparent huge pages", pages.map(|text| text.trim().into())),
        ("libc", output("getconf", &["GNU_LIBC_VERSION"])),
        ("rustc", output("rustc", &["--version"])),
        ("cc", output("cc", &["--version"])),
        ("pcpalloc", commit()),
        ("peers", peers()),
        ("load before", fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().into())),
    ];
    facts.into_iter().filter_map(|(name, fact)| Some((name, fact?))).collect()
}

/// The value in the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let (_, value) = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim().into())
}

/// The first line that a program prints.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(String::from)
}

/// The crates behind the features, with their versions as locked.
fn peers() -> Option<String> {
    let lock = fs::read_to_string(format!("{HOME}/Cargo.lock")).ok()?;
    let version = |name: &str| {
        let (_, package) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(format!("{name} {}", package.split('"').next()?))
    };
    let names = ["tikv-jemalloc-sys", "libmimalloc-sys", "snmalloc-sys", "rpmalloc-sys", "libtcmalloc-sys"];
    Some(names.into_iter().filter_map(version).collect::<Vec<_>>().join(", "))
}
