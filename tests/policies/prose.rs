//! What the documents say exists.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use super::tree::{self, manifest_value};
use super::{assert_none, tree::root};

/// The documents: Markdown anywhere, and what continuous integration runs.
fn documents() -> Vec<(PathBuf, String)> {
    let paths = tree::files("", &[".md", "run"]).into_iter();
    // Measured with a command that is told there, on a machine that was what it was.
    let paths = paths.filter(|path| !path.components().any(|part| part.as_os_str() == "results"));
    paths.map(|path| (path.clone(), tree::read(&path))).collect()
}

/// Everything wrong in the documents, by a check of one text.
fn in_documents(check: impl Fn(&Path, &str) -> Vec<String>) -> Vec<String> {
    // A published package has the documents, but not all that they speak of.
    if root().join("Cargo.toml.orig").exists() {
        return Vec::new();
    }
    let documents = documents();
    assert!(documents.len() > 10);
    let each = |(path, text): &(PathBuf, String)| -> Vec<String> {
        check(path, text).into_iter().map(|wrong| format!("{}: {wrong}", path.display())).collect()
    };
    documents.iter().flat_map(each).collect()
}

/// Text between single backticks, line by line, outside of blocks.
fn spans(text: &str) -> Vec<&str> {
    let mut block = false;
    let mut spans = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            block = !block;
        } else if !block {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

/// What is wrong with the `cargo` commands and scripts in a text.
fn wrong_commands(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for line in text.lines() {
        for command in line.split('`').flat_map(|piece| piece.split(" && ")) {
            let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches(['"', '\'', ','])).collect();
            if let Some(at) = words.iter().position(|word| *word == "cargo") {
                wrong.extend(wrong_cargo(&words[at..]).map(|problem| format!("`{}`: {problem}", command.trim())));
            }
            if let Some(at) = words.iter().position(|word| ["bash", "sh"].contains(word))
                && let Some(script) = words.get(at + 1).filter(|script| script.ends_with(".sh"))
                && !root().join(script).exists()
            {
                wrong.push(format!("`{}`: no {script}", command.trim()));
            }
        }
    }
    wrong
}

/// What is wrong with a `cargo` command.
fn wrong_cargo(words: &[&str]) -> Option<String> {
    let words: Vec<&str> = words.iter().copied().take_while(|word| *word != "--").collect();
    let values = |option: &'static str| {
        words.windows(2).filter(move |pair| pair[0] == option).map(|pair| pair[1]).collect::<Vec<_>>()
    };
    // `cargo fuzz` has its package in a place of its own.
    let usual = if words.contains(&"fuzz") { "fuzz/Cargo.toml" } else { "Cargo.toml" };
    let manifest_path = values("--manifest-path").first().copied().unwrap_or(usual);
    let Some(folder) = Path::new(manifest_path).parent().filter(|_| root().join(manifest_path).exists()) else {
        return Some(format!("no {manifest_path}"));
    };
    let manifest = tree::read(manifest_path);
    for feature in values("--features").iter().flat_map(|features| features.split(',')) {
        // As a program says it that has the crate for a dependency.
        let feature = feature.strip_prefix("pcpalloc/").unwrap_or(feature);
        let has = |line: &str| line.split('=').next().is_some_and(|name| name.trim() == feature);
        if !manifest.lines().any(has) {
            return Some(format!("no feature {feature}"));
        }
    }
    for (option, below) in
        [("--test", "tests"), ("--example", "examples"), ("--bench", "benches"), ("--bin", "src/bin")]
    {
        let below = folder.join(below);
        let names: HashSet<String> = tree::files(below.to_str().expect("a path in UTF-8"), &[".rs"])
            .iter()
            .filter_map(|path| path.strip_prefix(&below).ok())
            .filter(|path| path.components().count() == 1 || path.ends_with("main.rs"))
            .filter_map(|path| Some(path.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned()))
            .chain(
                manifest.lines().filter_map(|line| Some(line.strip_prefix("name = \"")?.trim_end_matches('"').into())),
            )
            .collect();
        for value in values(option) {
            let found = match value.strip_suffix('*') {
                Some(start) => names.iter().any(|name| name.starts_with(start)),
                None => names.contains(value) || value == "NAME",
            };
            if !found {
                return Some(format!("no {option} {value}"));
            }
        }
    }
    None
}

#[test]
fn commands_can_be_run() {
    assert_none(in_documents(|_, text| wrong_commands(text)));
}

/// Control: every kind of name, spelled wrong.
#[test]
fn a_command_that_cannot_be_run_is_seen() {
    for command in [
        "cargo test --test polices",
        "`cargo run --release --example indexes -- src`",
        "cargo bench --bench micros",
        "cargo run --manifest-path bench/Cargo.toml",
        "cargo run --manifest-path benches/compare/Cargo.toml --bin compares",
        "RUSTFLAGS=x cargo build --features api --examples",
        "bash tests/asans.sh",
    ] {
        assert_eq!(wrong_commands(command).len(), 1, "{command}");
    }
}

/// Paths in backticks, and targets of links, that are not there.
fn missing_paths(document: &Path, text: &str) -> Vec<String> {
    let folder = document.parent().expect("a document is in a folder");
    let tops = ["src/", "tests/", "benches/", "examples/", "fuzz/", "docs/", ".ci/"];
    let paths = spans(text).into_iter().filter(|span| tops.iter().any(|top| span.starts_with(top)));
    let paths = paths.map(|path| path.trim_end_matches('/')).filter(|path| !path.contains(['*', ' ', '<', '{']));
    let missing = paths.filter(|path| !root().join(path).exists()).map(|path| format!("no {path}"));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.filter(|target| !target.contains("::") && !target.starts_with(['#', 'h']));
    let broken = targets.filter(|target| !root().join(folder).join(target).exists());
    missing.chain(broken.map(|target| format!("a link to {target}, which is not there"))).collect()
}

#[test]
fn paths_and_links_lead_somewhere() {
    assert_none(in_documents(missing_paths));
    // Controls.
    let check = |text| missing_paths(Path::new("README.md"), text).len();
    assert_eq!(check("`src/alloc.rs`, [the source](src/README.md), [a type](crate::Stats), `examples/`"), 0);
    assert_eq!((check("`src/allot.rs`"), check("[the source](source/README.md)")), (1, 1));
}

/// Names in backticks of a text about the sources that do not occur in them.
fn unknown_names(text: &str, sources: &str, files: &HashSet<String>) -> Vec<String> {
    let words: HashSet<&str> = sources.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let known = |span: &&str| {
        let last = span.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if span.ends_with(".rs") || span.ends_with('/') {
            return files.contains(last);
        }
        !span.chars().all(is_name) || span.split("::").all(|word| word.is_empty() || words.contains(word))
    };
    spans(text).into_iter().filter(|span| !known(span)).map(|span| format!("`{span}` is nothing in src")).collect()
}

#[test]
fn the_map_of_the_sources_names_what_is_there() {
    let (paths, mut sources) = (tree::files("src", &[".rs"]), String::new());
    let mut files = HashSet::new();
    for path in &paths {
        sources += &tree::read(path);
        files.extend(path.iter().map(|part| part.to_str().expect("a path in UTF-8").to_owned()));
    }
    assert_none(unknown_names(&tree::read("src/README.md"), &sources, &files));
    // Controls.
    let check = |text| unknown_names(text, &sources, &files).len();
    assert_eq!(check("`percpu::alloc_slow` in `slow.rs`, `slab/central.rs`, `zone/`, `top - 1`"), 0);
    assert_eq!((check("`alloc_slowly`"), check("`percpu/fast.rs`"), check("`zones/`")), (1, 1, 1));
}

/// Names that a text puts into a file of the sources, `name` (`src/file.rs`), and that do not occur there.
fn misplaced_names(text: &str) -> Vec<String> {
    // Comments are broken anywhere.
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!']).trim());
    let text = lines.collect::<Vec<_>>().join(" ");
    let pieces: Vec<&str> = text.split('`').collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let named = pieces.windows(3).filter(|piece| piece[1] == " (" && piece[2].ends_with(".rs"));
    let named = named.filter(|piece| piece[2].starts_with("src/") && piece[0].chars().all(|c| is_word(c) || c == ':'));
    let missing = named.filter(|piece| {
        let name = piece[0].rsplit(':').next().unwrap_or_default();
        !root().join(piece[2]).exists() || !tree::read(piece[2]).split(|c| !is_word(c)).any(|word| word == name)
    });
    missing.map(|piece| format!("no `{}` in {}", piece[0], piece[2])).collect()
}

/// Above all what a test says is to be changed to see it red.
#[test]
fn names_are_where_they_are_said_to_be() {
    // But for the controls below.
    let paths = tree::files("", &[".rs", ".md"]).into_iter().filter(|path| !path.ends_with("policies/prose.rs"));
    let in_file = |path: PathBuf| {
        let wrong = misplaced_names(&tree::read(&path)).into_iter();
        wrong.map(|wrong| format!("{}: {wrong}", path.display())).collect::<Vec<_>>()
    };
    assert_none(paths.flat_map(in_file).collect());
    // Controls.
    let check = |text| misplaced_names(text).len();
    assert_eq!(check("/// in `stop_in`\n/// (`src/percpu/table.rs`), and in `alloc::free_large` (`src/alloc.rs`)"), 0);
    assert_eq!((check("in `stop_in` (`src/alloc.rs`)"), check("in `stop_in`\n//! (`src/no.rs`)")), (1, 1));
}

/// Settings of `PCPALLOC_CONF` in a text that the crate does not take.
fn wrong_settings(text: &str) -> Vec<String> {
    let examples = text.split("PCPALLOC_CONF=").skip(1).filter_map(|rest| {
        let (quoted, rest) = rest.strip_prefix('"').map_or((false, rest), |rest| (true, rest));
        rest.split(|c: char| c == '"' || !quoted && (c.is_whitespace() || c == '`')).next()
    });
    let refused = |example: &&str| {
        let conf = CString::new(*example).expect("no zero in a text");
        // Settings keep what is in the environment, which lives for ever.
        pcpalloc::debug::configured_by(Box::leak(conf.into_boxed_c_str())).1 > 0
    };
    // The profiler's settings are taken where it is built.
    let is_built = |example: &&str| cfg!(feature = "profile") || !example.contains("profile");
    let examples = examples.filter(|example| !example.contains("name:value")).filter(is_built);
    examples.filter(refused).map(|example| format!("PCPALLOC_CONF={example} is refused")).collect()
}

#[test]
fn settings_are_taken() {
    assert_none(in_documents(|_, text| wrong_settings(text)));
    // The table of settings.
    let tuning = tree::read("src/guide/tuning.md");
    let rows: Vec<&str> = tuning.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let is_built = |row: &&str| row.contains(':') && (cfg!(feature = "profile") || !row.starts_with("profile"));
    let rows: Vec<&str> = rows.into_iter().filter(is_built).collect();
    assert_none(wrong_settings(&format!("PCPALLOC_CONF={}", rows.join(","))));
    let message = tree::read("src/control/config.rs");
    let names =
        message.split("\"there are ").nth(1).and_then(|rest| rest.split('"').next()).expect("a list of settings");
    let names: HashSet<&str> = names.split_whitespace().collect();
    let mut named: HashSet<&str> = rows.iter().filter_map(|row| row.split(':').next()).collect();
    for setting in ["profile", "profile_to"] {
        named.extend(tuning.contains(&format!("\n| `{setting}:")).then_some(setting));
    }
    assert_eq!(named, names);
    // Controls.
    assert_eq!(wrong_settings("PCPALLOC_CONF=\"limit:2g,high:64m\" and PCPALLOC_CONF=thp:never`").len(), 0);
    assert_eq!(wrong_settings("PCPALLOC_CONF=\"limits:2g\" and PCPALLOC_CONF=thp:no").len(), 2);
}

/// Versions of this crate, and of Rust, in a text that are not those of the manifest.
fn wrong_versions(text: &str, manifest: &str) -> Vec<String> {
    let (version, rust) = (manifest_value(manifest, "version"), manifest_value(manifest, "rust-version"));
    let mut wrong = Vec::new();
    for line in text.lines() {
        if let Some(dependency) = line.trim_start_matches(['+', ' ']).strip_prefix("pcpalloc = ") {
            let named = dependency.trim_start_matches("{ version = ").split('"').nth(1).unwrap_or_default();
            if !version.starts_with(named) || named.is_empty() {
                wrong.push(format!("{line}: the version is {version}"));
            }
        }
        for (at, _) in line.match_indices("1.").filter(|_| line.contains("Rust ") || line.contains("MSRV")) {
            let named: String = line[at..].chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            let named = named.trim_end_matches('.');
            if named.len() == rust.len() && named != rust {
                wrong.push(format!("{line}: the oldest Rust is {rust}"));
            }
        }
    }
    wrong
}

#[test]
fn versions_are_those_of_the_manifest() {
    let manifest = tree::read("Cargo.toml");
    assert_none(in_documents(|_, text| wrong_versions(text, &manifest)));
    // Controls.
    let manifest = "version = \"0.3.1\"\nrust-version = \"1.88\"\n";
    let check = |text| wrong_versions(text, manifest).len();
    assert_eq!(check("pcpalloc = \"0.3\"\nMSRV 1.88; needs a Rust toolchain (1.88 or later)"), 0);
    assert_eq!((check("pcpalloc = \"0.2\""), check("+pcpalloc = { version = \"1\" }")), (1, 1));
    assert_eq!((check("MSRV 1.89"), check("a Rust toolchain (1.90 or later)")), (1, 1));
}
