//! The files that profiles are written as, against the rules of their formats and by readers that are not ours.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod profile_common;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::FileExt;

use pcpalloc::PcpAlloc;
use pcpalloc::profile::{self, Options, Profile, View};
use profile_common::{Read_, run};
use serde_json::Value;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn profile_of_a_program() -> (Profile, impl Sized) {
    let _alone = profile_common::alone();
    profile::start(&Options::new().interval(32 << 10)).expect("it can be observed");
    let (_, held) = run(1);
    let profile = profile::snapshot();
    profile::stop();
    (profile, held)
}

/// What `profile.proto` says of a valid profile, and what `pprof` checks of one (`profile/profile.go`, `CheckValid`).
///
/// Red if the first function gets the id 0 (`Numbers::of` in `src/profile/proto.rs`), or if a function's name is given for
/// the linker's (`Writer::function`).
#[test]
fn pprof_reads_it() {
    let (profile, _held) = profile_of_a_program();
    let read = Read_::of(&profile);
    let file = &read.0;
    assert_eq!(read.string(0), "");
    let types: Vec<_> = file.sample_type.iter().map(|value| (read.string(value.ty), read.string(value.unit))).collect();
    let columns = ["alloc", "inuse", "deferred", "peak"];
    let expected: Vec<_> =
        columns.iter().flat_map(|c| [(format!("{c}_objects"), "count"), (format!("{c}_space"), "bytes")]).collect();
    assert!(types.iter().copied().eq(expected.iter().map(|(name, unit)| (name.as_str(), *unit))), "{types:?}");
    assert_eq!(read.string(file.default_sample_type), "inuse_space");
    let period = file.period_type.as_ref().expect("there is one");
    assert_eq!((read.string(period.ty), read.string(period.unit), file.period), ("space", "bytes", 32 << 10));
    assert!(file.time_nanos > 1_600_000_000_000_000_000 && file.duration_nanos > 0);

    let ids = |ids: Vec<u64>| {
        let set: BTreeSet<u64> = ids.iter().copied().collect();
        assert!(set.len() == ids.len() && !set.contains(&0), "ids are unique and not 0");
        set
    };
    let functions = ids(file.function.iter().map(|function| function.id).collect());
    let locations = ids(file.location.iter().map(|location| location.id).collect());
    let mappings = ids(file.mapping.iter().map(|mapping| mapping.id).collect());
    let mut mangled = 0;
    for function in &file.function {
        assert!(!read.string(function.name).is_empty() && (function.filename as usize) < file.string_table.len());
        // Else pprof cuts what is in brackets out of it, as of a name of C++ (`internal/symbolizer`, `Demangle`).
        let (name, system) = (read.string(function.name), read.string(function.system_name));
        assert!(name != system || !name.contains('<'), "{name}");
        mangled += (system.starts_with("_ZN") || system.starts_with("_R")) as usize;
    }
    assert!(mangled > file.function.len() / 2, "{mangled} of {} have the linker's name", file.function.len());
    let mut in_mappings = 0;
    for location in &file.location {
        assert!(location.line.iter().all(|line| functions.contains(&line.function_id)));
        if location.mapping_id != 0 {
            assert!(mappings.contains(&location.mapping_id));
            let mapping = &file.mapping[location.mapping_id as usize - 1];
            assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
            in_mappings += 1;
        }
    }
    assert_eq!(in_mappings, file.location.len(), "all code is in a file");
    for sample in &file.sample {
        assert_eq!(sample.value.len(), file.sample_type.len());
        assert!(!sample.location_id.is_empty() && sample.location_id.iter().all(|id| locations.contains(id)));
        assert!(sample.value.iter().all(|&value| value >= 0));
        assert_eq!(read.string(sample.label[0].key), "bytes");
    }
    // The program is the first mapping, with the id that its file says it has.
    let program = &file.mapping[0];
    let exe = std::env::current_exe().expect("a path");
    assert_eq!(read.string(program.filename), exe.to_str().expect("a path of letters"));
    let id = read.string(program.build_id);
    let bytes = std::fs::read(&exe).expect("the program's file");
    let raw: Vec<u8> = (0..id.len() / 2).map(|n| u8::from_str_radix(&id[2 * n..2 * n + 2], 16).expect("hex")).collect();
    assert!(raw.is_empty() || bytes.windows(raw.len()).any(|window| window == raw), "{id}");
    let _ = std::fs::File::open(&exe).map(|file| file.read_at(&mut [0; 4], 0));

    // Functions of this crate's inside are not on it, those of the program are, called by whom they are called by.
    let sample = file.sample.iter().find(|sample| read.functions(sample)[0].contains("profile_common::take"));
    let stack = read.functions(sample.expect("a block was sampled"));
    let at = |name: &str| stack.iter().position(|function| function.contains(name));
    assert!(stack.iter().all(|function| !function.starts_with("pcpalloc::")), "{stack:#?}");
    assert!(at("take").expect("is there") < at("known_").expect("is there"), "{stack:#?}");
    let lined = file.location.iter().flat_map(|location| &location.line).filter(|line| line.line > 0).count();
    assert!(lined > file.location.len() / 2, "most have lines");
}

/// Calls itself from one place, so often, and then takes a block.
#[inline(never)]
fn known_recursion(depth: usize, held: &mut Vec<Vec<u8>>) {
    if depth > 1 {
        known_recursion(depth - 1, held);
    } else {
        held.push(vec![1; 1 << 20]);
    }
    // Not a jump.
    std::hint::black_box(&held);
}

/// A stack has as many frames in one format as in the other, however often a function has called itself from one place.
///
/// Red if its calls are one: in `write` (`src/profile/proto.rs`), change `chunk_by(|_, next| !next.innermost)` to
/// `chunk_by(|a, b| a.address == b.address)`.
#[test]
fn every_call_of_a_recursion_is_a_frame() {
    let alone = profile_common::alone();
    profile::start(&Options::new().interval(1)).expect("it can be observed");
    let mut held = Vec::with_capacity(3);
    for depth in [9, 2, 5] {
        known_recursion(depth, &mut held);
    }
    let profile = profile::snapshot();
    profile::stop();
    drop(alone);
    let calls = |stack: &[&str]| stack.iter().filter(|function| function.contains("known_recursion")).count();

    let mut folded = Vec::new();
    profile.write_folded(View::Live, &mut folded).expect("a vector takes everything");
    let folded = String::from_utf8(folded).expect("text");
    let of_folded: BTreeSet<(usize, usize)> = folded
        .lines()
        .map(|line| line.rsplit_once(' ').expect("two parts").0.split(';').collect::<Vec<_>>())
        .map(|stack| (calls(&stack), stack.len()))
        .filter(|&(calls, _)| calls > 0)
        .collect();
    let read = Read_::of(&profile);
    let of_pprof: BTreeSet<(usize, usize)> = read
        .0
        .sample
        .iter()
        .map(|sample| read.functions(sample))
        .map(|stack| (calls(&stack), stack.len()))
        .filter(|&(calls, _)| calls > 0)
        .collect();
    assert_eq!(of_folded.iter().map(|stack| stack.0).collect::<Vec<_>>(), [2, 5, 9], "{folded}");
    assert_eq!(of_pprof, of_folded, "{folded}");
}

/// What valgrind's viewer asserts when it loads a file (`dhat/dh_view.js`) and its documentation says of fields
/// (`dhat/dh_main.c`, "File format").
///
/// Red if a frame's number is off by one.
#[test]
fn the_viewer_of_dhat_reads_it() {
    let (profile, _held) = profile_of_a_program();
    let mut file = Vec::new();
    profile.write_dhat(&mut file).expect("a vector takes everything");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    assert_eq!(file["dhatFileVersion"], 2);
    for (field, value) in [("mode", "rust-heap"), ("verb", "Allocated"), ("tu", "µs"), ("Mtu", "s")] {
        assert_eq!(file[field], value);
    }
    assert_eq!((file["bklt"].as_bool(), file["bkacc"].as_bool()), (Some(true), Some(false)));
    assert!(file["tuth"].is_u64() && file["pid"] == std::process::id() && file["cmd"].is_string());
    let number = |value: &Value, field: &str| value[field].as_u64().unwrap_or_else(|| panic!("{field} in {value}"));
    let (end, peak) = (number(&file, "te"), number(&file, "tg"));
    assert!(peak <= end);
    let frames: Vec<&str> =
        file["ftbl"].as_array().expect("frames").iter().map(|f| f.as_str().expect("text")).collect();
    assert_eq!(frames[0], "[root]");
    assert_eq!(frames.iter().collect::<BTreeSet<_>>().len(), frames.len());
    assert!(frames[1..].iter().all(|frame| frame.starts_with("0x") && frame.contains(": ")));
    let mut sums: HashMap<&str, u64> = HashMap::new();
    let mut stacks = BTreeSet::new();
    let points = file["pps"].as_array().expect("points");
    for point in points {
        let [tb, tbk, tl, mb, mbk, gb, gbk, eb, ebk] =
            ["tb", "tbk", "tl", "mb", "mbk", "gb", "gbk", "eb", "ebk"].map(|field| number(point, field));
        assert!(tb >= mb && mb >= gb && mb >= eb && tbk >= mbk && tbk >= gbk && tbk >= ebk, "{point}");
        assert!(tl <= tbk * (end + 1) + end, "nothing lives longer than the program: {point}");
        let stack: Vec<u64> =
            point["fs"].as_array().expect("frames").iter().map(|n| n.as_u64().expect("number")).collect();
        assert!(!stack.is_empty() && stack.iter().all(|&n| n > 0 && (n as usize) < frames.len()));
        stacks.insert(stack);
        for (field, value) in [("tb", tb), ("gb", gb), ("eb", eb)] {
            *sums.entry(field).or_default() += value;
        }
    }
    assert!(points.len() > 7 && stacks.len() == points.len(), "a stack is one point");
    let near = |field, view| {
        let total = profile.total(view).bytes;
        assert!(sums[field].abs_diff(total) < 2000 + total / 1000, "{field}: {} and {total}", sums[field]);
    };
    near("tb", View::Allocated);
    near("gb", View::Peak);
    near("eb", View::Live);
}

/// A profile that has ended says the same whenever it is read: how long it took, and how long blocks lived that it did not see
/// freed.
///
/// Red if its clock goes on: in `end` (`src/profile/record.rs`), leave `book.ended = Some(book.now());` out.
#[test]
fn time_stands_still_when_a_profile_has_ended() {
    let _alone = profile_common::alone();
    profile::start(&Options::new().interval(32 << 10)).expect("it can be observed");
    let (_, held) = run(1);
    profile::stop();
    let read = || {
        let (profile, mut dhat) = (profile::snapshot(), Vec::new());
        profile.write_dhat(&mut dhat).expect("a vector takes everything");
        (Read_::of(&profile).0.duration_nanos, String::from_utf8(dhat).expect("text"))
    };
    let before = read();
    std::thread::sleep(std::time::Duration::from_millis(5));
    let after = read();
    assert!(before.0 > 0 && before.0 == after.0, "{} and {} ns", before.0, after.0);
    assert!(before.1 == after.1, "lifetimes have not changed");
    drop(held);
}

#[test]
fn folded_stacks_are_what_flame_graphs_are_made_of() {
    let (profile, _held) = profile_of_a_program();
    let mut lines = Vec::new();
    profile.write_folded(View::Live, &mut lines).expect("a vector takes everything");
    let lines = String::from_utf8(lines).expect("text");
    let mut sum = 0;
    for line in lines.lines() {
        let (stack, bytes) = line.rsplit_once(' ').expect("two parts");
        assert!(!stack.is_empty());
        sum += bytes.parse::<u64>().expect("a number");
    }
    let live = profile.total(View::Live).bytes;
    assert!(sum.abs_diff(live) < 1000 + live / 1000, "{sum} and {live}");
    let mut picture = Vec::new();
    let mut options = inferno::flamegraph::Options::default();
    inferno::flamegraph::from_lines(&mut options, lines.lines(), &mut picture).expect("a flame graph");
    let picture = String::from_utf8(picture).expect("text");
    assert!(picture.contains("</svg>") && picture.contains("known_huge"));
}
