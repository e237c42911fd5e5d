//! `PCPALLOC_CONF` against a second reading of what the documentation says.

use std::ffi::{CStr, CString};

use pcpalloc::debug::configured_by;
use pcpalloc::{Config, HugePages, Watermarks};

/// Settings as the documentation has them.
#[derive(Clone, Copy)]
struct Expected {
    limit: Option<usize>,
    marks: Watermarks,
    thp: HugePages,
    worker: bool,
    cgroup: bool,
    pressure: bool,
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

fn makes_sense(marks: &Watermarks) -> bool {
    let Watermarks { min, low, high } = *marks;
    let ordered = (low == 0 || min <= low) && (high == 0 || (low <= high && min <= high));
    ordered && (low == 0 || high > 0)
}

impl Expected {
    fn set(mut self, name: &str, value: &str) -> Option<Expected> {
        match (name, value) {
            ("limit", "none") => self.limit = None,
            ("limit", value) => self.limit = Some(size(value)?),
            ("min", value) => self.marks.min = size(value)?,
            ("low", value) => {
                self.marks.low = size(value)?;
                self.marks.high = self.marks.high.max(self.marks.low);
            }
            ("high", value) => self.marks.high = size(value)?,
            ("thp", "auto") => self.thp = HugePages::Auto,
            ("thp", "always") => self.thp = HugePages::Always,
            ("thp", "never") => self.thp = HugePages::Never,
            ("worker", "on") => self.worker = true,
            ("worker", "off") => self.worker = false,
            ("cgroup", "on") => self.cgroup = true,
            ("cgroup", "off") => self.cgroup = false,
            ("pressure", "on") => self.pressure = true,
            ("pressure", "off") => self.pressure = false,
            _ => return None,
        }
        makes_sense(&self.marks).then_some(self)
    }
}

/// The words that settings are made of, for inputs that would never spell them.
const WORDS: [&str; 26] = [
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
];

const NAMES: [&str; 9] = ["limit", "min", "low", "high", "thp", "worker", "speed", "cgroup", "pressure"];
const UNITS: [&str; 8] = ["", "k", "m", "g", "K", "M", "G", "kb"];

/// Settings that are well-formed, most of them: two bytes each.
fn settings(input: &[u8]) -> String {
    let setting = |pair: &[u8]| {
        let (name, value) = (pair[0] as usize, pair[1] as usize);
        let value = match name % 9 {
            4 => ["auto", "always", "never", "on"][value % 4].to_owned(),
            5 | 7 | 8 => ["on", "off", "auto", ""][value % 4].to_owned(),
            _ => format!("{}{}", value / 8 * (1 + name / 9), UNITS[value % 8]),
        };
        format!("{}:{value},", NAMES[name % 9])
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
        marks: Watermarks { min: 0, low: 0, high: 0 },
        thp: HugePages::Auto,
        worker: true,
        cgroup: false,
        pressure: false,
    };
    let mut wrong = 0;
    for setting in text.split(',').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once(':').unwrap_or((setting, ""));
        match expected.set(name, value) {
            Some(set) => expected = set,
            None => wrong += 1,
        }
    }
    let mut config = Config::new().watermarks(expected.marks).thp(expected.thp).worker(expected.worker);
    config = config.cgroup(expected.cgroup).pressure(expected.pressure);
    if let Some(limit) = expected.limit {
        config = config.limit(limit);
    }
    assert_eq!((found, left_out), (config, wrong), "{text:?}");
    // SAFETY: as above.
    drop(unsafe { CString::from_raw(conf) });
}
