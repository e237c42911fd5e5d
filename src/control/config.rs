//! Settings: in the static, in the environment, at run time.

use core::ffi::CStr;
use core::sync::atomic::Ordering;

use super::error::ConfigError;
use super::watch::{self, Cgroup};
use super::watermarks::{self, MARK_NAMES, Watermarks};
use crate::hardening::Hardening;
use crate::percpu::Rseq;
use crate::slab::shard::Shards;
use crate::sys::{self, Message};
use crate::zone::{HugePages, MARKS, resident};

/// The least limit: what the heap of a program that does little comes to before it has said a word, with room to spare. Less
/// would have the standard library end the process on its way to `main`.
const LEAST_LIMIT: usize = 4 << 20;

/// How the heap starts out. Const, so that it can be part of the static. [`guide::tuning`](crate::guide::tuning) says what
/// to set when.
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
/// `PCPALLOC_CONF="limit:2g,min:0,low:8m,high:64m,thp:never,worker:off,cgroup:on,pressure:on,profile:512k"`. Sizes take
/// `k`, `m`, `g`; `cgroup` also takes a directory; `profile`, and `profile_to`, a path, take the feature `profile`; `latency`, `leaks`,
/// `stats`, `membarrier` and `process_madvise` are on or off; `rseq` is `auto`, `libc` or `off`; `shards` is `auto`, `one` or `cpu`. `hardened:1` is all of [`Hardening::ALL`],
/// `hardened:random+guard` some by name; `guard:1/5000` samples one allocation in 5000. What cannot be understood is
/// reported on standard error and left as it was. Marks are compared when all of them are read, in whatever order they stand:
/// two that contradict each other are both left out. A `low` where no `high` is set, here or there, is the high mark, too.
/// A program that has rights which its user has not (set-user-ID, file capabilities) does not hear it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias("malloc_conf", "MALLOC_CONF", "mallopt", "mi_option_set"))]
pub struct Config {
    limit: Option<usize>,
    watermarks: Watermarks,
    thp: HugePages,
    worker: bool,
    cgroup: Cgroup,
    pressure: bool,
    hardening: Hardening,
    /// One allocation in so many is guarded; 0 for none.
    guarded: u32,
    /// Bytes from sample to sample; 0 for none.
    profile: usize,
    profile_to: Option<&'static [u8]>,
    latency: bool,
    leaks: bool,
    stats: bool,
    pub(crate) rseq: Rseq,
    pub(crate) membarrier: bool,
    pub(crate) shards: Shards,
    process_madvise: bool,
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
            hardening: Hardening::NONE,
            guarded: 0,
            profile: 0,
            profile_to: None,
            latency: false,
            leaks: false,
            stats: false,
            rseq: Rseq::Auto,
            shards: Shards::Auto,
            membarrier: true,
            process_madvise: true,
        }
    }

    /// Most bytes that the heap may have resident; none unless set. See
    /// [`PcpAlloc::set_limit`](crate::PcpAlloc::set_limit).
    ///
    /// 4 MiB at least, without which not even the standard library comes to `main`. A limit below becomes 4 MiB when the
    /// heap comes up, and a line on standard error says so; below that, `limit` in `PCPALLOC_CONF` is left out.
    #[doc(alias = "memory_limit")]
    pub const fn limit(mut self, bytes: usize) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Marks over free resident memory, in bytes.
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
    #[doc(alias("transparent_hugepage", "MADV_HUGEPAGE", "mi_option_allow_thp"))]
    pub const fn thp(mut self, thp: HugePages) -> Self {
        self.thp = thp;
        self
    }

    /// Whether a thread may be started that gives memory back and populates it. Without, a thread that frees
    /// gives back what exceeds [`Watermarks::high`], and an idle process keeps what it has.
    ///
    /// The thread is called `pcpalloc`, has every signal blocked, starts when there is a megabyte to look after, and
    /// sleeps without a timeout while there is not.
    #[doc(alias("background_thread", "kswapd"))]
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
    ///
    /// ```
    /// use pcpalloc::{Config, PcpAlloc};
    ///
    /// static IN_A_CONTAINER: PcpAlloc = PcpAlloc::with_config(Config::new().limit(900 << 20).cgroup(true).pressure(true));
    /// # IN_A_CONTAINER.stats();
    /// ```
    #[doc(alias = "memcg")]
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

    /// Protections beyond what the layout gives for nothing; see [`Hardening`]. They are chosen before the heap hands
    /// out its first block: with feature `capi`, where C asks for memory before any static can say so, by
    /// `PCPALLOC_CONF` alone.
    ///
    /// # Panics
    /// If they contradict each other: at compile time, in a static.
    #[doc(alias("MI_SECURE", "junk", "init_on_free"))]
    pub const fn hardened(mut self, hardening: Hardening) -> Self {
        assert!(!hardening.is_contradictory(), "freed memory is either zeroed or poisoned");
        self.hardening = hardening;
        self
    }

    /// Serves one allocation in `one_in`, of those up to a page, from a pool where pages that cannot be touched lie on
    /// both sides of each block, and the block itself cannot be once it is freed. An access that is out of bounds, or
    /// comes after the free, then ends the process with the place of that access, of the allocation and of the free. 0
    /// for none.
    ///
    /// The idea is GWP-ASan's (<https://llvm.org/docs/GwpAsan.html>): too rare to cost much, and over many processes
    /// often enough. Frees take the slow path meanwhile, where they find out whether they are of such a block; off, it
    /// costs nothing. Chosen when [`Config::hardened`] is. Where the system has no `membarrier`, nothing is guarded.
    #[doc(alias("gwp_asan", "kfence", "MIMALLOC_GUARDED_SAMPLE_RATE"))]
    pub const fn guarded_sampling(mut self, one_in: u32) -> Self {
        self.guarded = one_in;
        self
    }

    /// Has the heap profiled from the start, by a sample in so many bytes on average; see
    /// [`profile::start`](crate::profile::start).
    #[cfg(feature = "profile")]
    #[doc(alias = "lg_prof_sample")]
    pub const fn profile(mut self, interval: usize) -> Self {
        self.profile = interval;
        self
    }

    /// Has the profile written to a file when the process exits, and the heap profiled from the start, by a sample in
    /// 512 KiB unless [`Config::profile`] says otherwise.
    ///
    /// The path's end says how: `.json` for DHAT's viewer, `.folded` for flame graphs (of the peak), anything else
    /// for pprof, gzipped. `%p` in it becomes the process's number; without, children of a `fork` write nothing. A line on
    /// standard error names the file, or says why there is none. When there is none at all, as for [`Config::leaks`].
    #[cfg(feature = "profile")]
    #[doc(alias("prof_final", "prof_prefix"))]
    pub const fn profile_to(mut self, path: &'static str) -> Self {
        self.profile_to = Some(path.as_bytes());
        self
    }

    /// Whether to measure how long slow paths take; see [`PcpAlloc::latencies`](crate::PcpAlloc::latencies).
    pub const fn latency(mut self, measure: bool) -> Self {
        self.latency = measure;
        self
    }

    /// Whether the process says on standard error, when it exits, what is still in use; see
    /// [`PcpAlloc::leaks`](crate::PcpAlloc::leaks).
    ///
    /// Not in a process that is ended by a signal, by `_exit` or by an abort.
    #[doc(alias = "prof_leak")]
    pub const fn leaks(mut self, report: bool) -> Self {
        self.leaks = report;
        self
    }

    /// Whether the process says on standard error, when it exits, how its memory stands: [`Stats`](crate::Stats), and with
    /// [`Config::latency`] what slow paths took. When and where not, as for [`Config::leaks`]: a program that
    /// closes standard error before it ends, as those of coreutils do, prints neither.
    #[doc(alias("stats_print", "MIMALLOC_SHOW_STATS"))]
    pub const fn stats(mut self, report: bool) -> Self {
        self.stats = report;
        self
    }

    /// Which rseq area the heap may use, for sandboxes that end a process for registering one. Chosen when the heap
    /// comes up, by whoever allocates first; [`Stats::mode_reason`](crate::Stats::mode_reason) says what came of it.
    pub const fn rseq(mut self, rseq: Rseq) -> Self {
        self.rseq = rseq;
        self
    }

    /// Whether the kernel may be asked for fences (`membarrier`), for sandboxes that end a process for it. Without
    /// them a drain reaches the caller's own CPU only, readers of [`rcu`](crate::rcu) pay for a fence each, and where
    /// stacks belong to CPUs nothing can be guarded by sample, nor profiled. (An [`rcu::Domain`](crate::rcu::Domain) that is
    /// used before anything has been allocated asks all the same.)
    pub const fn membarrier(mut self, use_it: bool) -> Self {
        self.membarrier = use_it;
        self
    }

    /// Which CPUs share slabs. Chosen when the heap comes up, by whoever allocates first.
    pub const fn shards(mut self, shards: Shards) -> Self {
        self.shards = shards;
        self
    }

    /// Whether the kernel may be asked to take back many ranges of memory at once (`process_madvise`, Linux 6.14), for
    /// sandboxes that end a process for a call they do not know. Without, pages between blocks in use go back one call
    /// and one fence of all CPUs at a time, and therefore near a limit and in a [`trim`](crate::PcpAlloc::trim) only.
    pub const fn process_madvise(mut self, use_it: bool) -> Self {
        self.process_madvise = use_it;
        self
    }

    /// With what `PCPALLOC_CONF` overrides; problems with that are reported on standard error, but for those that have been
    /// where the default settings came first.
    pub(crate) fn with_environment(mut self, after_default: bool) -> Config {
        if let Some(conf) = sys::environment(c"PCPALLOC_CONF") {
            self.override_by(conf, |problem| {
                let problem = problem.as_bytes();
                let mut known = false;
                if after_default {
                    Config::new().override_by(conf, |before| known |= before.as_bytes() == problem);
                }
                if !known {
                    sys::report(problem);
                }
            });
        }
        if self.limit.is_some_and(|limit| limit < LEAST_LIMIT) {
            self.limit = Some(LEAST_LIMIT);
            sys::report(b"pcpalloc: Config::limit: less than 4 MiB, so it is 4 MiB\n");
        }
        self
    }

    pub(crate) fn hardening(&self) -> Hardening {
        self.hardening
    }

    /// One allocation in so many is guarded; 0 for none.
    pub(crate) fn guarded(&self) -> u32 {
        self.guarded
    }

    /// Puts the settings in force, but for those of `checked` and `percpu`, which come up with them. Called once, when
    /// the heap comes up.
    pub(crate) fn apply(self) {
        MARKS.limit.store(self.limit.unwrap_or(usize::MAX), Ordering::Relaxed);
        watermarks::store(self.watermarks);
        MARKS.huge_pages.store(self.thp as u8, Ordering::Relaxed);
        if !self.process_madvise {
            sys::release_one_by_one();
        }
        #[cfg(feature = "profile")]
        crate::profile::want(self.profile, self.profile_to);
        crate::latency::set(self.latency);
        super::at_exit::want(self.stats, self.leaks);
        super::worker::init(self.worker, watch::init(self.cgroup, self.pressure));
    }

    /// Takes over what `conf` sets; has what it cannot reported, in a line each.
    pub(crate) fn override_by(&mut self, conf: &'static CStr, mut report: impl FnMut(&Message)) {
        let before = self.watermarks;
        // Marks are looked at together, when all are known: their order says nothing.
        let mut marks: [Option<(&[u8], usize)>; 3] = [None; 3];
        let mut leave_out = |setting: &[u8], problem| {
            let mut line = Message::new();
            let (shown, more) = shown(setting);
            line.text("pcpalloc: PCPALLOC_CONF: \"").text(shown).text(more);
            line.text("\" is left out: ").text(problem).text("\n");
            report(&line);
        };
        for setting in conf.to_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|s| !s.is_empty()) {
            let mut halves = setting.splitn(2, |&b| b == b':');
            let (name, Some(value)) = (halves.next().unwrap_or(b""), halves.next()) else {
                leave_out(setting, "a setting is name:value");
                continue;
            };
            let done = match MARK_NAMES.iter().position(|mark| *mark == name) {
                Some(mark) => size(value).ok_or(NO_SIZE).map(|bytes| marks[mark] = Some((setting, bytes))),
                None => self.set(name, value),
            };
            if let Err(problem) = done {
                leave_out(setting, problem);
            }
        }
        // Each time round leaves out a mark that was given: those before agree with each other.
        loop {
            self.watermarks = before.overridden(&marks);
            let Some((problem, two)) = self.watermarks.contradiction() else { return };
            for mark in two {
                if let Some((setting, _)) = marks[mark].take() {
                    leave_out(setting, problem);
                }
            }
        }
    }

    fn set(&mut self, name: &[u8], value: &'static [u8]) -> Result<(), &'static str> {
        let size = || size(value).ok_or(NO_SIZE);
        match name {
            b"limit" if value == b"none" => self.limit = None,
            b"limit" => match size()? {
                limit if limit < LEAST_LIMIT => return Err("a limit is 4m at least"),
                limit => self.limit = Some(limit),
            },
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
            b"profile" | b"profile_to" if !cfg!(feature = "profile") => {
                return Err("this program was built without the feature `profile`");
            }
            b"profile" => self.profile = if value == b"off" { 0 } else { size()? },
            b"profile_to" if value.is_empty() => return Err("profile_to is a path"),
            b"profile_to" => self.profile_to = Some(value),
            b"latency" => self.latency = switch(value).ok_or("latency is on or off")?,
            b"leaks" => self.leaks = switch(value).ok_or("leaks is on or off")?,
            b"stats" => self.stats = switch(value).ok_or("stats is on or off")?,
            b"hardened" => {
                let named = "hardened is 1, 0, or random, guard, zero or poison, quarantine and checked, joined by +";
                self.hardening = Hardening::parse(value).filter(|all| !all.is_contradictory()).ok_or(named)?;
            }
            b"guard" => self.guarded = one_in(value).ok_or("guard is 1/n or off")?,
            b"rseq" => {
                self.rseq = match value {
                    b"auto" => Rseq::Auto,
                    b"libc" => Rseq::Libc,
                    b"off" => Rseq::Off,
                    _ => return Err("rseq is auto, libc or off"),
                }
            }
            b"shards" => {
                self.shards = match value {
                    b"auto" => Shards::Auto,
                    b"one" => Shards::One,
                    b"cpu" => Shards::Cpu,
                    _ => return Err("shards is auto, one or cpu"),
                }
            }
            b"membarrier" => self.membarrier = switch(value).ok_or("membarrier is on or off")?,
            b"process_madvise" => self.process_madvise = switch(value).ok_or("process_madvise is on or off")?,
            _ => {
                return Err(
                    "there are limit min low high thp worker cgroup pressure profile profile_to latency leaks stats hardened guard rseq membarrier shards process_madvise",
                );
            }
        }
        Ok(())
    }
}

/// So much of a setting as leaves a line room for any problem, and what stands for the rest.
fn shown(setting: &[u8]) -> (&str, &'static str) {
    const MOST: usize = 32;
    let text = core::str::from_utf8(setting).unwrap_or("?");
    match (0..=MOST).rev().find(|&end| text.is_char_boundary(end)) {
        Some(end) if text.len() > MOST => (&text[..end], "..."),
        _ => (text, ""),
    }
}

const NO_SIZE: &str = "a size is a number, with k, m or g behind it if you like";

fn switch(value: &[u8]) -> Option<bool> {
    match value {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

/// `1/5000`, `off`.
fn one_in(text: &[u8]) -> Option<u32> {
    if text == b"off" {
        return Some(0);
    }
    let digits = text.strip_prefix(b"1/")?;
    let number = core::str::from_utf8(digits).ok()?.parse().ok()?;
    (number > 0 && digits[0].is_ascii_digit()).then_some(number)
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
        return Err(ConfigError::new("the limit is below what is in use now"));
    }
    MARKS.limit.store(limit, Ordering::Relaxed);
    if resident() > limit {
        super::trim();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
