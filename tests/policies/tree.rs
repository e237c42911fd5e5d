//! The repository's files.

use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files below a folder whose names end with one of these, by path from the root, sorted.
pub fn files(below: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.expect("a folder's entry")) {
            let (path, name) = (entry.path(), entry.file_name().into_string().expect("a name in UTF-8"));
            if entry.file_type().expect("a type").is_dir() {
                if !["target", ".git", "corpus"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The sources of the crate, parsed, without what is compiled for tests only.
pub fn sources() -> Vec<(PathBuf, syn::File)> {
    let parse = |path: PathBuf| {
        let mut file = syn::parse_file(&read(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.items.retain(|item| !is_for_tests(item));
        (path, file)
    };
    files("src", &[".rs"]).into_iter().filter(|path| !path.ends_with("tests.rs")).map(parse).collect()
}

fn is_for_tests(item: &syn::Item) -> bool {
    let syn::Item::Mod(module) = item else { return false };
    module.attrs.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// A value from a `Cargo.toml`: what stands in quotes behind `key =`.
pub fn manifest_value(manifest: &str, key: &str) -> String {
    let line = manifest.lines().find(|line| line.split('=').next().is_some_and(|name| name.trim() == key));
    let value = line.and_then(|line| line.split('"').nth(1));
    value.unwrap_or_else(|| panic!("Cargo.toml has {key}")).to_owned()
}
