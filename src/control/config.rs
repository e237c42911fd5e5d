//! Settings: in the static, in the environment, at run time.

use core::ffi::CStr;
use core::fmt;
use core::sync::atomic::Ordering;

use super::watch::{self, Cgroup};
use crate::sys::{self, Message};
use crate::zone::{HugePages, MARKS, resident};

/// A setting that cannot be: says which and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError(&'static str);

impl ConfigError {
    pub(crate) const fn new(what: &'static str) -> ConfigError {
        ConfigError(what)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for ConfigError {}

/// Marks over the heap's *free resident* memory: what the process holds and nobody uses. In bytes.
///
/// Memory in per-CPU stacks is not part of it ([`Stats::percpu_cached`](crate::Stats::percpu_cached)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// A reserve: while there is less, allocation takes untouched memory before it takes from this.
    pub min: usize,
    /// While there is less, the worker gives memory to free pages until there is `high`, so that a program which
    /// sets this pays no page faults. 0 for never.
    pub low: usize,
    /// More than this is given back to the system within a fraction of a second, whether it is in use now and
    /// then or not. 0 follows the heap's size: an eighth of what is resident, but at least 32 MiB. Where
    /// `low` is 0, what has not been used for a second is given back in any case, down to `min`.
    pub high: usize,
}

impl Watermarks {
    const fn check(&self) -> Result<(), ConfigError> {
        if self.min > self.low && self.low != 0 {
            return Err(ConfigError("watermarks: min is above low"));
        }
        if self.high != 0 && (self.low > self.high || self.min > self.high) {
            return Err(ConfigError("watermarks: low (or min) is above high"));
        }
        if self.low != 0 && self.high == 0 {
            return Err(ConfigError("watermarks: low is set, so high must be: that is how far memory is populated"));
        }
        Ok(())
    }
}

/// How the heap starts out. Const, so that it can be part of the static.
///
/// ```
/// use pcpalloc::{Config, PcpAlloc};
///
/// #[global_allocator]
/// static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().limit(512 << 20));
///
/// fn main() {
///     let list = vec![1, 2, 3];
///     assert_eq!(GLOBAL.limit(), Some(512 << 20));
/// #   drop(list);
/// }
/// ```
///
/// The environment variable `PCPALLOC_CONF` overrides it, setting by setting:
/// `PCPALLOC_CONF="limit:2g,min:0,low:8m,high:64m,thp:never,worker:off,cgroup:on,pressure:on"`. Sizes take `k`, `m`,
/// `g`; `cgroup` also takes a directory. What cannot be understood is reported on standard error and left as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    limit: Option<usize>,
    watermarks: Watermarks,
    thp: HugePages,
    worker: bool,
    cgroup: Cgroup,
    pressure: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config::new()
    }
}

impl Config {
    /// No limit, watermarks that follow the heap's size, huge pages where they cost little, a worker when there
    /// is something to give back, and nothing outside the process watched.
    pub const fn new() -> Self {
        Config {
            limit: None,
            watermarks: Watermarks { min: 0, low: 0, high: 0 },
            thp: HugePages::Auto,
            worker: true,
            cgroup: Cgroup::Off,
            pressure: false,
        }
    }

    /// Most bytes that the heap may have resident; see [`PcpAlloc::set_limit`](crate::PcpAlloc::set_limit).
    pub const fn limit(mut self, bytes: usize) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Marks over free resident memory.
    ///
    /// # Panics
    /// If they contradict each other: at compile time, in a static.
    pub const fn watermarks(mut self, marks: Watermarks) -> Self {
        assert!(marks.check().is_ok(), "watermarks contradict each other: min <= low <= high");
        self.watermarks = marks;
        self
    }

    /// Whether to ask the system for transparent huge pages. `cargo bench --bench settings` measures what they are
    /// worth on a machine; see [`HugePages`].
    pub const fn thp(mut self, thp: HugePages) -> Self {
        self.thp = thp;
        self
    }

    /// Whether a thread may be started that gives memory back and populates it. Without, a thread that frees
    /// gives back what exceeds [`Watermarks::high`], and an idle process keeps what it has.
    pub const fn worker(mut self, worker: bool) -> Self {
        self.worker = worker;
        self
    }

    /// Whether the worker watches the memory limits of the process's control group, and of those above it: while
    /// one has used 15/16 of `memory.max` or `memory.high` (version 1: `memory.limit_in_bytes`,
    /// `memory.soft_limit_in_bytes`), inactive file pages not counted, everything cached and free is given back and
    /// nothing is populated. Looks once a second, at the places where control groups are mounted by convention.
    ///
    /// These limits are others' too, so they never make allocation answer null; [`Config::limit`] does.
    pub const fn cgroup(mut self, watch: bool) -> Self {
        self.cgroup = if watch { Cgroup::Own } else { Cgroup::Off };
        self
    }

    /// As [`Config::cgroup`], for the group in this directory alone. A path longer than 500 bytes watches nothing.
    pub const fn cgroup_at(mut self, directory: &'static str) -> Self {
        self.cgroup = Cgroup::At(directory.as_bytes());
        self
    }

    /// Whether the worker watches pressure stall information: when tasks have waited for memory a tenth of two
    /// seconds (in the group of [`Config::cgroup`] if that has a `memory.pressure`, else on the machine), everything
    /// cached and free is given back. Where the kernel has no PSI, or refuses, nothing is watched.
    #[doc(alias = "psi")]
    pub const fn pressure(mut self, watch: bool) -> Self {
        self.pressure = watch;
        self
    }

    /// Puts the settings in force. Called once, when the heap comes up.
    pub(crate) fn apply(mut self) {
        if let Some(conf) = sys::environment(c"PCPALLOC_CONF") {
            self.override_by(conf, |problem| sys::report(problem.as_bytes()));
        }
        MARKS.limit.store(self.limit.unwrap_or(usize::MAX), Ordering::Relaxed);
        store_watermarks(self.watermarks);
        MARKS.huge_pages.store(self.thp as u8, Ordering::Relaxed);
        super::worker::init(self.worker, watch::init(self.cgroup, self.pressure));
    }

    /// Takes over what `conf` sets; has what it cannot reported, in a line each.
    pub(crate) fn override_by(&mut self, conf: &'static CStr, mut report: impl FnMut(&Message)) {
        for setting in conf.to_bytes().split(|&b| b == b',').filter(|s| !s.is_empty()) {
            let before = *self;
            let mut halves = setting.splitn(2, |&b| b == b':');
            let (name, value) = (halves.next().unwrap_or(b""), halves.next().unwrap_or(b""));
            let problem = self.set(name, value).and_then(|()| self.watermarks.check().map_err(|e| e.0)).err();
            if let Some(problem) = problem {
                *self = before;
                let mut line = Message::new();
                let shown = core::str::from_utf8(setting).unwrap_or("?");
                line.text("pcpalloc: PCPALLOC_CONF: \"").text(shown).text("\" is left out: ").text(problem).text("\n");
                report(&line);
            }
        }
    }

    fn set(&mut self, name: &[u8], value: &'static [u8]) -> Result<(), &'static str> {
        let size = || size(value).ok_or("a size is a number, with k, m or g behind it if you like");
        match name {
            b"limit" => self.limit = if value == b"none" { None } else { Some(size()?) },
            b"min" => self.watermarks.min = size()?,
            // One at a time, so that neither order of the two contradicts the other meanwhile.
            b"low" => {
                self.watermarks.low = size()?;
                self.watermarks.high = self.watermarks.high.max(self.watermarks.low);
            }
            b"high" => self.watermarks.high = size()?,
            b"thp" => {
                self.thp = match value {
                    b"auto" => HugePages::Auto,
                    b"always" => HugePages::Always,
                    b"never" => HugePages::Never,
                    _ => return Err("thp is auto, always or never"),
                }
            }
            b"worker" => self.worker = switch(value).ok_or("worker is on or off")?,
            b"cgroup" => {
                self.cgroup = match (switch(value), value) {
                    (Some(true), _) => Cgroup::Own,
                    (Some(false), _) => Cgroup::Off,
                    (None, [b'/', ..]) => Cgroup::At(value),
                    _ => return Err("cgroup is on, off or a directory"),
                }
            }
            b"pressure" => self.pressure = switch(value).ok_or("pressure is on or off")?,
            _ => return Err("there are limit, min, low, high, thp, worker, cgroup and pressure"),
        }
        Ok(())
    }
}

fn switch(value: &[u8]) -> Option<bool> {
    match value {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

/// `64`, `512k`, `64m`, `2g`.
fn size(text: &[u8]) -> Option<usize> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let shift = match text[digits..].to_ascii_lowercase_first()? {
        0 => 0,
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        _ => return None,
    };
    if digits == 0 {
        return None;
    }
    let number = text[..digits].iter().try_fold(0usize, |n, d| n.checked_mul(10)?.checked_add((d - b'0') as usize))?;
    number.checked_mul(1 << shift)
}

trait Suffix {
    /// 0 for none, the letter in lower case for one, `None` for more.
    fn to_ascii_lowercase_first(&self) -> Option<u8>;
}

impl Suffix for [u8] {
    fn to_ascii_lowercase_first(&self) -> Option<u8> {
        match self {
            [] => Some(0),
            [letter] => Some(letter.to_ascii_lowercase()),
            _ => None,
        }
    }
}

fn store_watermarks(marks: Watermarks) {
    MARKS.min.store(marks.min, Ordering::Relaxed);
    MARKS.low.store(marks.low, Ordering::Relaxed);
    MARKS.high.store(marks.high, Ordering::Relaxed);
}

pub(crate) fn watermarks() -> Watermarks {
    Watermarks {
        min: MARKS.min.load(Ordering::Relaxed),
        low: MARKS.low.load(Ordering::Relaxed),
        high: MARKS.high_now(),
    }
}

pub(crate) fn set_watermarks(marks: Watermarks) -> Result<(), ConfigError> {
    marks.check()?;
    store_watermarks(marks);
    super::worker::call();
    Ok(())
}

pub(crate) fn limit() -> Option<usize> {
    Some(MARKS.limit.load(Ordering::Relaxed)).filter(|&limit| limit != usize::MAX)
}

pub(crate) fn set_limit(bytes: Option<usize>) -> Result<(), ConfigError> {
    let Some(limit) = bytes else {
        MARKS.limit.store(usize::MAX, Ordering::Relaxed);
        return Ok(());
    };
    let stats = super::stats();
    if limit < stats.in_use + stats.metadata {
        return Err(ConfigError("the limit is below what is in use now"));
    }
    MARKS.limit.store(limit, Ordering::Relaxed);
    if resident() > limit {
        super::trim();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size(b"0"), Some(0));
        assert_eq!(size(b"64"), Some(64));
        assert_eq!(size(b"512k"), Some(512 << 10));
        assert_eq!(size(b"64M"), Some(64 << 20));
        assert_eq!(size(b"2g"), Some(2 << 30));
        for wrong in [&b""[..], b"k", b"1kb", b"-1", b"1.5g", b"99999999999999999999", b"99999999999g"] {
            assert_eq!(size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_environment_overrides_setting_by_setting() {
        let mut config = Config::new().limit(1 << 20);
        config
            .override_by(c"limit:2g,high:64m,thp:never,worker:off,low:8m,cgroup:/a:b,pressure:on", |_| unreachable!());
        assert_eq!(config.limit, Some(2 << 30));
        assert_eq!(config.watermarks, Watermarks { min: 0, low: 8 << 20, high: 64 << 20 });
        assert_eq!((config.thp, config.worker), (HugePages::Never, false));
        assert_eq!((config.cgroup, config.pressure), (Cgroup::At(b"/a:b"), true));
    }

    #[test]
    fn what_cannot_be_is_left_out_and_the_rest_is_taken() {
        let mut config = Config::new();
        let mut problems = 0;
        let conf = c"limit:lots,speed:high,high:1m,min:2m,,thp,worker:off,cgroup:here,pressure";
        config.override_by(conf, |_| problems += 1);
        assert_eq!(problems, 6);
        assert_eq!(config.limit, None);
        assert_eq!(config.watermarks, Watermarks { min: 0, low: 0, high: 1 << 20 });
        assert_eq!((config.thp, config.worker), (HugePages::Auto, false));
        assert_eq!((config.cgroup, config.pressure), (Cgroup::Off, false));
    }

    #[test]
    fn contradictions_are_named() {
        let check = |min, low, high| Watermarks { min, low, high }.check();
        assert!(check(0, 0, 0).is_ok() && check(1, 2, 3).is_ok() && check(0, 0, 5).is_ok() && check(3, 0, 5).is_ok());
        assert!(check(0, 4, 3).is_err() && check(2, 1, 3).is_err() && check(0, 1, 0).is_err());
    }
}
