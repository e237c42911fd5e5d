//! `profile.proto`, gzipped (github.com/google/pprof, `proto/profile.proto`). The few kinds of fields it has are written
//! by hand: a schema compiler would be the larger part of the crate's dependencies.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::record::ONE;
use super::snapshot::{Profile, View};
use super::symbols::{Frame, Symbols};

/// The views in the order of their columns, two each: objects and bytes.
const VIEWS: [(View, &str); 4] =
    [(View::Allocated, "alloc"), (View::Live, "inuse"), (View::Deferred, "deferred"), (View::Peak, "peak")];

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number; 0 is what an absent one is.
    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, f: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        f(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn numbers(&mut self, field: u64, values: impl IntoIterator<Item = u64>) {
        self.message(field, |packed| values.into_iter().for_each(|value| packed.varint(value)));
    }
}

/// Things that have numbers: strings from 0, others from 1.
struct Numbers<K>(HashMap<K, u64>);

impl<K: std::hash::Hash + Eq> Numbers<K> {
    /// The number of a thing, and whether it is new.
    fn of(&mut self, key: K, first: u64) -> (u64, bool) {
        let next = self.0.len() as u64 + first;
        let number = *self.0.entry(key).or_insert(next);
        (number, number == next && self.0.len() as u64 + first > next)
    }
}

struct Writer {
    out: Message,
    strings: Numbers<String>,
    table: Vec<String>,
    functions: Numbers<(u64, u64)>,
    /// By address, and by how many of the functions inlined there are left out.
    locations: Numbers<(usize, usize)>,
    mappings: Vec<Mapping>,
}

/// A file in the program's memory.
struct Mapping {
    start: usize,
    end: usize,
    offset: u64,
    file: String,
    named: bool,
    unnamed: bool,
}

impl Writer {
    fn string(&mut self, text: &str) -> u64 {
        let (number, new) = self.strings.of(text.to_string(), 0);
        if new {
            self.table.push(text.to_string());
        }
        number
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let (name, file) = (self.string(&frame.name), self.string(&frame.file));
        let (number, new) = self.functions.of((name, file), 1);
        if new {
            // pprof takes a name that is the same as the system's for one of C++, and cuts what stands in brackets out of it,
            // which of `<Vec<T> as Clone>::clone` leaves `::clone`.
            let system =
                self.string(if frame.symbol == frame.name && frame.name.contains('<') { "" } else { &frame.symbol });
            self.out.message(5, |function| {
                function.number(1, number);
                function.number(2, name);
                function.number(3, system);
                function.number(4, file);
            });
        }
        number
    }

    /// The location of these frames, which are of one address.
    fn location(&mut self, address: usize, left_out: usize, frames: &[std::rc::Rc<Frame>]) -> u64 {
        let (number, new) = self.locations.of((address, left_out), 1);
        if !new {
            return number;
        }
        let known = frames.iter().all(|frame| frame.known);
        let mapping = self.mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&address));
        if let Some(mapping) = mapping.and_then(|at| self.mappings.get_mut(at)) {
            mapping.named |= known;
            mapping.unnamed |= !known;
        }
        let lines: Vec<(u64, u64)> = if known {
            frames.iter().map(|frame| (self.function(frame), frame.line as u64)).collect()
        } else {
            Vec::new()
        };
        self.out.message(4, |location| {
            location.number(1, number);
            location.number(2, mapping.map_or(0, |at| at as u64 + 1));
            // As for every profile of stacks, the address is that of the call and not of what follows it.
            location.number(3, address as u64 - 1);
            for (function, line) in lines {
                location.message(4, |entry| {
                    entry.number(1, function);
                    entry.number(2, line);
                });
            }
        });
        number
    }
}

pub(super) fn write(profile: &Profile, out: impl Write) -> io::Result<()> {
    let mut writer = Writer {
        out: Message::default(),
        strings: Numbers(HashMap::new()),
        table: Vec::new(),
        functions: Numbers(HashMap::new()),
        locations: Numbers(HashMap::new()),
        mappings: mappings(),
    };
    let mut symbols = Symbols::new();
    writer.string("");
    let (count, bytes, space) = (writer.string("count"), writer.string("bytes"), writer.string("space"));
    for (_, name) in VIEWS {
        for (kind, unit) in [("objects", count), ("space", bytes)] {
            let kind = writer.string(&format!("{name}_{kind}"));
            writer.out.message(1, |value| {
                value.number(1, kind);
                value.number(2, unit);
            });
        }
    }
    for site in profile.sites() {
        let frames = symbols.stack(site.frames());
        // Frames of one return address lie side by side, and some of the first may be left out. The next may be the same
        // address once more: a function that calls itself.
        let mut locations = Vec::new();
        for group in frames.chunk_by(|_, next| !next.innermost) {
            let address = group[0].address;
            if address != 0 {
                let left_out = symbols.at(address).len().saturating_sub(group.len());
                locations.push(writer.location(address, left_out, group));
            }
        }
        let size = site.size() as u128;
        let values = VIEWS.map(|(view, _)| {
            let weight = site.weight(view);
            [weight / ONE, (weight as u128 * size / ONE as u128) as u64]
        });
        writer.out.message(2, |sample| {
            sample.numbers(1, locations);
            sample.numbers(2, values.into_iter().flatten());
            sample.message(3, |label| {
                label.number(1, bytes);
                label.number(3, size as u64);
                label.number(4, bytes);
            });
        });
    }
    let described: Vec<_> = writer.mappings.iter().map(|m| (m.file.clone(), build_id(Path::new(&m.file)))).collect();
    for (number, (file, id)) in described.iter().enumerate() {
        let (file, id) = (writer.string(file), writer.string(id));
        let Mapping { start, end, offset, named, unnamed, .. } = writer.mappings[number];
        let resolved = (named && !unnamed) as u64;
        writer.out.message(3, |mapping| {
            mapping.number(1, number as u64 + 1);
            mapping.number(2, start as u64);
            mapping.number(3, end as u64);
            mapping.number(4, offset);
            mapping.number(5, file);
            mapping.number(6, id);
            (7..=10).for_each(|field| mapping.number(field, resolved));
        });
    }
    let comment = match profile.lost() {
        0 => None,
        lost => Some(writer.string(&format!("{lost} samples were lost for want of room"))),
    };
    let default = writer.string("inuse_space");
    writer.out.message(11, |period| {
        period.number(1, space);
        period.number(2, bytes);
    });
    writer.out.number(9, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64));
    writer.out.number(10, profile.copy.now * 1000);
    writer.out.number(12, profile.interval() as u64);
    writer.out.number(13, comment.unwrap_or(0));
    writer.out.number(14, default);
    for text in &writer.table {
        writer.out.bytes(6, text.as_bytes());
    }
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&writer.out.0)?;
    gzip.finish()?.flush()
}

/// The files whose code is in this process's memory, the program first. (proc_pid_maps(5).)
fn mappings() -> Vec<Mapping> {
    let text = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let mut mappings: Vec<Mapping> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(6, ' ');
            let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
            let file = fields.nth(2)?.trim();
            let (start, end) = range.split_once('-')?;
            let parse = |text| usize::from_str_radix(text, 16).ok();
            let code = rights.contains('x') && !file.is_empty();
            code.then_some(Mapping {
                start: parse(start)?,
                end: parse(end)?,
                offset: parse(offset)? as u64,
                file: file.to_string(),
                named: false,
                unnamed: false,
            })
        })
        .collect();
    mappings.sort_by_key(|mapping| Path::new(&mapping.file) != program);
    mappings
}

/// The build id of an ELF file in hexadecimal, or nothing. (ELF-64 object file format; the note is GNU's, type 3.)
fn build_id(file: &Path) -> String {
    find_build_id(file).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn find_build_id(file: &Path) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    if !file.is_absolute() {
        return None;
    }
    let file = std::fs::File::open(file).ok()?;
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let word = |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let half = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    let header = read(0, 64)?;
    if header[..4] != *b"\x7fELF" || header[4] != 2 {
        return None;
    }
    let (at, size) = (word(&header, 32)?, u16::from_ne_bytes([header[54], header[55]]) as usize);
    let segments = read(at, size * u16::from_ne_bytes([header[56], header[57]]) as usize)?;
    const NOTE: usize = 4;
    for segment in segments.chunks(size.max(56)).filter(|segment| half(segment, 0) == Some(NOTE)) {
        let notes = read(word(segment, 8)?, word(segment, 32)?.min(1 << 16) as usize)?;
        let mut rest = &notes[..];
        while let (Some(name), Some(value), Some(kind)) = (half(rest, 0), half(rest, 4), half(rest, 8)) {
            let start = 12 + name.next_multiple_of(4);
            let id = rest.get(start..start + value)?;
            if kind == 3 && rest.get(12..16) == Some(b"GNU\0") {
                return Some(id.to_vec());
            }
            rest = rest.get(start + value.next_multiple_of(4)..)?;
        }
    }
    None
}
