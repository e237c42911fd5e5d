//! What every file of code keeps to.

use std::collections::HashMap;

use quote::ToTokens;
use syn::visit::Visit;

use super::{assert_none, tree};

/// Most lines of a file.
const LINES_MAX: usize = 600;

/// Files that may be longer, and why.
const LONGER: &[(&str, &str)] = &[("src/lib.rs", "the public surface: three lines in four are documentation")];

fn too_long(path: &str, lines: usize, longer: &[(&str, &str)]) -> Option<String> {
    match longer.iter().find(|(excepted, _)| *excepted == path) {
        Some(_) if lines <= LINES_MAX => Some(format!("{path}: {lines} lines, needs no exception")),
        None if lines > LINES_MAX => Some(format!("{path}: {lines} lines; cut it up, or say here why not")),
        _ => None,
    }
}

#[test]
fn no_file_is_long_without_a_reason() {
    let files = tree::files("", &[".rs", ".py", ".sh", ".c"]);
    assert!(files.len() > 100);
    let wrong = files
        .iter()
        .filter_map(|path| too_long(path.to_str().expect("a path in UTF-8"), tree::read(path).lines().count(), LONGER));
    assert_none(wrong.collect());
    // Controls.
    assert!(too_long("a.rs", LINES_MAX + 1, &[]).is_some());
    assert!(too_long("a.rs", LINES_MAX, &[("a.rs", "tables")]).is_some());
    assert!(too_long("a.rs", LINES_MAX + 1, &[("a.rs", "tables")]).is_none());
}

/// Lines with a mark of work that is not done.
fn unfinished(text: &str) -> Vec<usize> {
    // In pieces, so that they are not found here.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let macros = [concat!("to", "do!"), concat!("unimple", "mented!")];
    let is_word = |piece: &str| words.contains(&piece);
    let marked = |line: &str| {
        line.split(|c: char| !c.is_alphanumeric()).any(is_word) || macros.iter().any(|name| line.contains(name))
    };
    text.lines().enumerate().filter(|(_, line)| marked(line)).map(|(number, _)| number + 1).collect()
}

#[test]
fn nothing_is_marked_as_unfinished() {
    let files = tree::files("", &[".rs", ".md", ".toml", ".sh", ".py", ".c", "run"]);
    let wrong = files.iter().flat_map(|path| {
        unfinished(&tree::read(path)).into_iter().map(move |line| format!("{}:{line}", path.display()))
    });
    assert_none(wrong.collect());
    // Controls.
    assert_eq!(unfinished(concat!("a\n// TO", "DO: b\n", "unimple", "mented!()\nMETHOD")), [2, 3]);
}

/// Whether a package's manifest, or the workspace's where that says what holds, does not ask for proofs.
fn without_proofs(manifest: &str, workspace: &str) -> bool {
    let lints = if manifest.contains("[lints]\nworkspace = true\n") { workspace } else { manifest };
    !lints.contains("undocumented_unsafe_blocks = \"deny\"")
}

#[test]
fn proofs_are_asked_for_everywhere() {
    let packages = tree::files("", &["Cargo.toml"]);
    let workspace = tree::read("Cargo.toml");
    let wrong = packages.iter().filter(|path| without_proofs(&tree::read(path), &workspace));
    let wrong = wrong.map(|path| format!("{}: does not deny clippy::undocumented_unsafe_blocks", path.display()));
    // In pieces, so that it is not found here.
    let lint = concat!("clippy::undocumented_", "unsafe_blocks)]");
    let allowed = tree::files("", &[".rs"]).into_iter().filter(|path| tree::read(path).contains(lint));
    assert_none(wrong.chain(allowed.map(|path| format!("{}: turns the lint off", path.display()))).collect());
    // Controls.
    assert!(without_proofs("[lints.clippy]\n", &workspace));
    assert!(without_proofs(&workspace, "[lints]\nworkspace = true\n"));
}

/// The functions of a file: their documentation, whether they make a section, and what they mention.
#[derive(Default)]
struct Functions(HashMap<String, Function>);

#[derive(Default)]
struct Function {
    docs: String,
    is_section: bool,
    mentions: Vec<String>,
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let docs = item.attrs.iter().filter(|attribute| attribute.path().is_ident("doc"));
        let docs = docs.map(|attribute| attribute.to_token_stream().to_string()).collect();
        let text = item.block.to_token_stream().to_string();
        let mentions = text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect();
        let is_section = text.contains("enter !");
        self.0.insert(item.sig.ident.to_string(), Function { docs, is_section, mentions });
    }
}

/// Sections for which neither the function nor one that calls it has pseudo-code.
fn without_pseudo_code(file: &syn::File) -> Vec<String> {
    let mut functions = Functions::default();
    functions.visit_file(file);
    let explained = |name: &String| {
        let by = |other: &Function| other.docs.contains("```text");
        by(&functions.0[name]) || functions.0.values().any(|other| by(other) && other.mentions.contains(name))
    };
    let sections = functions.0.iter().filter(|(_, function)| function.is_section).map(|(name, _)| name);
    sections.filter(|name| !explained(name)).cloned().collect()
}

#[test]
fn sections_have_pseudo_code() {
    let mut sections = 0;
    let mut wrong = Vec::new();
    for (path, file) in tree::sources() {
        let mut functions = Functions::default();
        functions.visit_file(&file);
        sections += functions.0.values().filter(|function| function.is_section).count();
        wrong.extend(without_pseudo_code(&file).iter().map(|name| format!("{}: {name}", path.display())));
    }
    assert_none(wrong);
    assert!(sections >= 6, "sections are found: {sections}");
    // Controls.
    let check = |code: &str| without_pseudo_code(&syn::parse_file(code).expect("a program")).len();
    assert_eq!(check("fn a() { asm!(enter!(), \"\") }"), 1);
    assert_eq!(check("/// ```text\n/// x\n/// ```\nfn a() { b() }\nfn b() { asm!(enter!(), \"\") }"), 0);
}
