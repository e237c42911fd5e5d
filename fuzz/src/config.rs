//! `PCPALLOC_CONF` against a second reading of what the documentation says.

use std::ffi::{CStr, CString};

use pcpalloc::debug::configured_by;
use pcpalloc::{Config, Hardening, HugePages, Rseq, Watermarks};

/// Settings as the documentation has them.
#[derive(Clone, Copy)]
struct Expected {
    limit: Option<usize>,
    thp: HugePages,
    worker: bool,
    cgroup: bool,
    pressure: bool,
    latency: bool,
    leaks: bool,
    stats: bool,
    hardening: Hardening,
    guarded: u32,
    rseq: Rseq,
    membarrier: bool,
    process_madvise: bool,
}

fn size(text: &str) -> Option<usize> {
    let unit = match text.chars().last()?.to_ascii_lowercase() {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        _ => 0,
    };
    let digits = if unit > 0 { &text[..text.len() - 1] } else { text };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<usize>().ok()?.checked_mul(1 << unit)
}

fn hardening(text: &str) -> Option<Hardening> {
    let named = |name: &str| match name {
        "random" => Some(Hardening::RANDOM),
        "guard" => Some(Hardening::GUARD),
        "zero" => Some(Hardening::ZERO),
        "poison" => Some(Hardening::POISON),
        "quarantine" => Some(Hardening::QUARANTINE),
        "checked" => Some(Hardening::CHECKED),
        _ => None,
    };
    let chosen = match text {
        "1" | "on" => Hardening::ALL,
        "0" | "off" => Hardening::NONE,
        names => names.split('+').try_fold(Hardening::NONE, |all, name| Some(all.with(named(name)?)))?,
    };
    (!chosen.contains(Hardening::ZERO) || !chosen.contains(Hardening::POISON)).then_some(chosen)
}

/// Marks as given, by name, and how many are left out since they contradict each other: two at a time, until none do.
fn marks(mut given: [Option<usize>; 3]) -> (Watermarks, usize) {
    let mut left_out = 0;
    loop {
        let [min, low, high] = given.map(|mark| mark.unwrap_or(0));
        let high = if given[2].is_none() { low } else { high };
        let wrong: [usize; 2] = match () {
            () if low > 0 && min > low => [0, 1],
            () if low > 0 && low > high => [1, 2],
            () if high > 0 && min > high => [0, 2],
            () => return (Watermarks { min, low, high }, left_out),
        };
        left_out += wrong.iter().filter(|&&mark| given[mark].take().is_some()).count();
    }
}

impl Expected {
    fn set(mut self, name: &str, value: &str) -> Option<Expected> {
        match (name, value) {
            ("limit", "none") => self.limit = None,
            ("limit", value) => self.limit = Some(size(value).filter(|&limit| limit >= 4 << 20)?),
            ("thp", "auto") => self.thp = HugePages::Auto,
            ("thp", "always") => self.thp = HugePages::Always,
            ("thp", "never") => self.thp = HugePages::Never,
            ("worker", "on") => self.worker = true,
            ("worker", "off") => self.worker = false,
            ("cgroup", "on") => self.cgroup = true,
            ("cgroup", "off") => self.cgroup = false,
            ("pressure", "on") => self.pressure = true,
            ("pressure", "off") => self.pressure = false,
            ("latency", "on") => self.latency = true,
            ("latency", "off") => self.latency = false,
            ("leaks", "on") => self.leaks = true,
            ("leaks", "off") => self.leaks = false,
            ("stats", "on") => self.stats = true,
            ("stats", "off") => self.stats = false,
            ("hardened", value) => self.hardening = hardening(value)?,
            ("guard", "off") => self.guarded = 0,
            ("guard", value) => {
                let digits = value.strip_prefix("1/")?;
                let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
                self.guarded = Some(number).filter(|&number| number > 0)?;
            }
            ("rseq", "auto") => self.rseq = Rseq::Auto,
            ("rseq", "libc") => self.rseq = Rseq::Libc,
            ("rseq", "off") => self.rseq = Rseq::Off,
            ("membarrier", "on") => self.membarrier = true,
            ("membarrier", "off") => self.membarrier = false,
            ("process_madvise", "on") => self.process_madvise = true,
            ("process_madvise", "off") => self.process_madvise = false,
            _ => return None,
        }
        Some(self)
    }
}

/// The words that settings are made of, for inputs that would never spell them.
const WORDS: [&str; 43] = [
    "limit",
    "min",
    "low",
    "high",
    "thp",
    "worker",
    "cgroup",
    "pressure",
    ":",
    ":",
    ",",
    ",",
    "0",
    "1",
    "64",
    "4096",
    "18446744073709551615",
    "k",
    "m",
    "g",
    "G",
    "none",
    "auto",
    "always",
    "never",
    "off",
    "latency",
    "leaks",
    "hardened",
    "guard",
    "random",
    "zero",
    "poison",
    "quarantine",
    "checked",
    "+",
    "1/",
    "5000",
    "rseq",
    "libc",
    "membarrier",
    "stats",
    "process_madvise",
];

const NAMES: [&str; 17] = [
    "limit",
    "min",
    "low",
    "high",
    "thp",
    "worker",
    "speed",
    "cgroup",
    "pressure",
    "latency",
    "leaks",
    "hardened",
    "guard",
    "rseq",
    "membarrier",
    "stats",
    "process_madvise",
];
const PROTECTIONS: [&str; 10] =
    ["1", "0", "random", "guard+random", "zero", "zero+poison", "poison", "quarantine+checked", "on", "zero+"];
const UNITS: [&str; 8] = ["", "k", "m", "g", "K", "M", "G", "kb"];

/// Settings that are well-formed, most of them: two bytes each.
fn settings(input: &[u8]) -> String {
    let setting = |pair: &[u8]| {
        let (name, value) = (pair[0] as usize, pair[1] as usize);
        let value = match name % 17 {
            4 => ["auto", "always", "never", "on"][value % 4].to_owned(),
            5 | 7..=10 | 14..=16 => ["on", "off", "auto", ""][value % 4].to_owned(),
            11 => PROTECTIONS[value % 10].to_owned(),
            12 => format!("{}/{}", ["1", "1", "2", ""][value % 4], value / 4 % 9),
            13 => ["auto", "libc", "off", "on"][value % 4].to_owned(),
            _ => format!("{}{}", value / 8 * (1 + name / 17), UNITS[value % 8]),
        };
        format!("{}:{value},", NAMES[name % 17])
    };
    input.chunks_exact(2).map(setting).collect()
}

/// Any text, any sequence of words, and any sequence of settings set what a second reading of it sets.
pub fn config(input: &[u8]) {
    let (first, rest) = input.split_first().unwrap_or((&0, &[]));
    let text: Vec<u8> = match first % 3 {
        0 => rest.iter().flat_map(|byte| WORDS[*byte as usize % WORDS.len()].bytes()).collect(),
        1 => rest.iter().copied().filter(|byte| *byte != 0).collect(),
        _ => settings(rest).into_bytes(),
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    // The environment lasts for ever, and a setting may point into it.
    let conf = CString::new(text.as_str()).expect("no byte of it is 0").into_raw();
    // SAFETY: from `into_raw`, and given back below, after the last use of the settings.
    let (found, left_out) = configured_by(unsafe { CStr::from_ptr(conf) });
    let mut expected = Expected {
        limit: None,
        thp: HugePages::Auto,
        worker: true,
        cgroup: false,
        pressure: false,
        latency: false,
        leaks: false,
        stats: false,
        hardening: Hardening::NONE,
        guarded: 0,
        rseq: Rseq::Auto,
        membarrier: true,
        process_madvise: true,
    };
    let (mut wrong, mut given) = (0, [None; 3]);
    for setting in text.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once(':').unwrap_or((setting, ""));
        match ["min", "low", "high"].iter().position(|mark| *mark == name) {
            Some(mark) => match size(value) {
                Some(bytes) => given[mark] = Some(bytes),
                None => wrong += 1,
            },
            None => match expected.set(name, value) {
                Some(set) => expected = set,
                None => wrong += 1,
            },
        }
    }
    let (marks, contradictory) = marks(given);
    let wrong = wrong + contradictory;
    let mut config = Config::new().watermarks(marks).thp(expected.thp).worker(expected.worker);
    config = config.cgroup(expected.cgroup).pressure(expected.pressure);
    config = config.latency(expected.latency).leaks(expected.leaks).stats(expected.stats);
    config = config.hardened(expected.hardening).guarded_sampling(expected.guarded);
    config = config.rseq(expected.rseq).membarrier(expected.membarrier).process_madvise(expected.process_madvise);
    if let Some(limit) = expected.limit {
        config = config.limit(limit);
    }
    assert_eq!((found, left_out), (config, wrong), "{text:?}");
    // SAFETY: as above.
    drop(unsafe { CString::from_raw(conf) });
}
