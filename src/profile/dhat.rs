//! DHAT's JSON, version 2 (valgrind, `dhat/dh_main.c`, "File format").

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{self, Write};

use super::record::ONE;
use super::snapshot::{Profile, View};
use super::symbols::Symbols;

/// What a program point is made of, in weights: bytes and blocks.
#[derive(Default)]
struct Point {
    total: (u128, u128),
    lifetimes: u128,
    most: (u128, u128),
    peak: (u128, u128),
    end: (u128, u128),
}

impl Point {
    fn add(&mut self, other: &Point) {
        let add = |sum: &mut (u128, u128), more: (u128, u128)| *sum = (sum.0 + more.0, sum.1 + more.1);
        add(&mut self.total, other.total);
        add(&mut self.most, other.most);
        add(&mut self.peak, other.peak);
        add(&mut self.end, other.end);
        self.lifetimes += other.lifetimes;
    }
}

pub(super) fn write(profile: &Profile, mut out: impl Write) -> io::Result<()> {
    let mut stacks: BTreeMap<usize, Point> = BTreeMap::new();
    for site in profile.sites() {
        let size = site.size() as u128;
        let point = stacks.entry(site.stack()).or_default();
        let add = |(bytes, blocks): &mut (u128, u128), weight: u64| {
            *bytes += weight as u128 * size;
            *blocks += weight as u128;
        };
        add(&mut point.total, site.weight(View::Allocated));
        add(&mut point.peak, site.weight(View::Peak));
        add(&mut point.end, site.weight(View::Live) + site.weight(View::Deferred));
        point.lifetimes += site.lifetimes();
        let held = &profile.copy.stacks[site.stack()];
        point.most = (held.most_bytes, held.most as u128);
    }
    let (mut symbols, mut names) = (Symbols::new(), vec!["[root]".to_string()]);
    let mut numbers: HashMap<String, usize> = HashMap::new();
    // Stacks that differ only inside the allocator are one point, which held no more at a time than they did by themselves.
    let mut points: BTreeMap<Vec<usize>, Point> = BTreeMap::new();
    for (stack, point) in stacks {
        let frames = symbols.stack(profile.frames_of(stack));
        let frames = frames.iter().map(|frame| {
            let mut text = format!("{:#x}: {}", frame.address, frame.name);
            if !frame.file.is_empty() {
                let _ = write!(text, " ({}:{}:{})", frame.file, frame.line, frame.column);
            }
            *numbers.entry(text).or_insert_with_key(|text| {
                names.push(text.clone());
                names.len() - 1
            })
        });
        points.entry(frames.collect()).or_default().add(&point);
    }
    let command: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    writeln!(out, "{{\"dhatFileVersion\":2,\"mode\":\"rust-heap\",\"verb\":\"Allocated\",")?;
    writeln!(out, " \"bklt\":true,\"bkacc\":false,\"tu\":\"µs\",\"Mtu\":\"s\",\"tuth\":10,")?;
    writeln!(out, " \"cmd\":{},\"pid\":{},", quoted(&command.join(" ")), std::process::id())?;
    writeln!(out, " \"te\":{},\"tg\":{},", profile.copy.now, profile.copy.peak_at)?;
    write!(out, " \"pps\":[")?;
    let one = ONE as u128;
    let mut first = true;
    for (frames, point) in points {
        let (bytes, blocks) = (point.total.0 / one, point.total.1 / one);
        if blocks == 0 {
            continue;
        }
        let frames: Vec<_> = frames.iter().map(usize::to_string).collect();
        write!(out, "{}\n  {{\"tb\":{bytes},\"tbk\":{blocks},", if first { "" } else { "," })?;
        write!(out, "\"tl\":{},", point.lifetimes / one)?;
        write!(out, "\"mb\":{},\"mbk\":{},", point.most.0 / one, point.most.1 / one)?;
        write!(out, "\"gb\":{},\"gbk\":{},", point.peak.0 / one, point.peak.1 / one)?;
        write!(out, "\"eb\":{},\"ebk\":{},", point.end.0 / one, point.end.1 / one)?;
        write!(out, "\"fs\":[{}]}}", frames.join(","))?;
        first = false;
    }
    write!(out, "],\n \"ftbl\":[")?;
    for (number, name) in names.iter().enumerate() {
        write!(out, "{}\n  {}", if number == 0 { "" } else { "," }, quoted(name))?;
    }
    writeln!(out, "]}}")
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c < ' ' => _ = write!(quoted, "\\u{:04x}", c as u32),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
