//! Imports go downwards: from layer to layer, and from file to file within a folder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;

use super::{assert_none, tree};

/// Imports that do not go downwards: who, what, and why it has to be.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/heap.rs", "control", "puts the settings in force, and has the worker forgotten in a child"),
    ("src/alloc.rs", "lib", "implements `GlobalAlloc` for the handle"),
    ("src/mempool.rs", "lib", "its error is the handle's"),
    ("src/capi/mod.rs", "lib", "has a handle of its own"),
    ("src/allocator.rs", "lib", "implements `Allocator` for the handle"),
    ("src/prometheus.rs", "lib", "is what the handle writes"),
    ("src/tag/mod.rs", "lib", "has a handle of its own"),
    ("src/tag/global.rs", "lib", "wraps the handle"),
    ("src/node.rs", "lib", "brings the heap up with the handle's settings"),
    ("src/rcu/source.rs", "lib", "implements `BlockSource` for the handle"),
    ("src/heap.rs", "profile", "starts the profiler that the settings ask for"),
    ("src/control/config.rs", "profile", "hands on what the settings ask for"),
    ("src/observe/count.rs", "heap", "who observes brings the heap up"),
    ("src/observe/count.rs", "control", "brings the heap up with the settings there are"),
    ("src/percpu/trial.rs", "heap", "is an entrance of the tests, and brings the heap up"),
    ("src/percpu/trial.rs", "control", "brings the heap up with the settings there are"),
];

/// Imports of a file beside it that go upwards: who, what, and why it has to be. Without them the files of a folder can be
/// put in an order, the façade (`mod.rs`) first, in which imports go downwards only.
const UPWARD: &[(&str, &str, &str)] = &[
    ("src/checked/guarded.rs", "fault", "has the handler installed that tells its own faults from others"),
    ("src/percpu/area.rs", "rseq", "has its address computed by instructions of the processor"),
    ("src/percpu/region.rs", "observed", "has room for the countdown of samples"),
    ("src/percpu/regions.rs", "observed", "has a new region observed as all others are"),
    ("src/percpu/stacks.rs", "observed", "puts marks on stacks, and finds blocks between them"),
    ("src/profile/snapshot.rs", "dhat", "is written as a file"),
    ("src/profile/snapshot.rs", "proto", "is written as a file"),
    ("src/rcu/cookie.rs", "default", "may be of the default domain"),
    ("src/rcu/core.rs", "reclaimer", "has it started when something waits"),
    ("src/rcu/core.rs", "work", "has the batch in it"),
    ("src/rcu/defer.rs", "work", "helps with it when there is no page, or too much waits"),
    ("src/rcu/fork.rs", "default", "is for that domain as for all others"),
    ("src/rcu/reader.rs", "default", "reads in that domain"),
    ("src/rcu/reclaimer.rs", "default", "is started for that domain where nobody else knows of it"),
    ("src/zone/bell.rs", "node", "has what is too much given back where nobody comes"),
    ("src/zone/marks.rs", "node", "adds up what is resident"),
    ("src/zone/reservation.rs", "shadow", "leaves room for it"),
];

/// The layers, topmost first, each by the names of the modules in it.
fn layers(map: &str) -> Vec<Vec<String>> {
    let rows = map.lines().filter_map(|line| line.strip_prefix("| | `"));
    rows.map(|row| {
        let cell = row.split('|').next().unwrap_or_default();
        // What is in brackets says where a module lies.
        let cell = cell.split('(').next().unwrap_or_default();
        let names = cell.split([',', '`', ' ']).map(|name| name.trim_end_matches(".rs").trim_end_matches('/'));
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    })
    .collect()
}

fn position(layers: &[Vec<String>], module: &str) -> Option<usize> {
    layers.iter().position(|layer| layer.iter().any(|name| name == module))
}

/// The module of the map that a file belongs to: by its own name, or else by the folder.
fn module_of(layers: &[Vec<String>], path: &Path) -> String {
    let below = path.strip_prefix("src").expect("a source");
    let stem = below.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let first = below.components().next().expect("a path").as_os_str().to_str().expect("a name");
    let first = first.trim_end_matches(".rs");
    let in_rcu = first == "rcu" && stem == "epoch" && position(layers, stem).is_some();
    if in_rcu { stem.to_owned() } else { first.to_owned() }
}

/// What a module re-exports, to whomever, and from where.
fn reexports(module: &syn::File) -> HashMap<String, String> {
    fn walk(tree: &syn::UseTree, from: Option<&str>, found: &mut HashMap<String, String>) {
        match tree {
            syn::UseTree::Path(path) => {
                let name = path.ident.to_string();
                walk(&path.tree, Some(from.unwrap_or(&name)), found);
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, from, found)),
            syn::UseTree::Name(name) => {
                found.insert(name.ident.to_string(), from.unwrap_or_default().to_owned());
            }
            // Neither a module's own nor the public surface, which has a test of its own.
            syn::UseTree::Rename(_) | syn::UseTree::Glob(_) => {}
        }
    }
    let mut found = HashMap::new();
    for item in &module.items {
        match item {
            syn::Item::Use(item) if !matches!(item.vis, syn::Visibility::Inherited) => {
                walk(&item.tree, None, &mut found)
            }
            syn::Item::Struct(syn::ItemStruct { ident, .. }) | syn::Item::Enum(syn::ItemEnum { ident, .. }) => {
                found.insert(ident.to_string(), "lib".to_owned());
            }
            _ => {}
        }
    }
    found
}

/// The names that follow `prefix::` anywhere in these tokens, but for `pub(in crate::…)`.
fn names_behind(prefix: &[&str], tokens: TokenStream, names: &mut BTreeSet<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.to_string() == text);
    let leads = |at: usize, part: &str| is(at, part) && is(at + 1, ":") && is(at + 2, ":");
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            names_behind(prefix, group.stream(), names);
        }
        let found = prefix.iter().enumerate().all(|(n, part)| leads(at + 3 * n, part));
        if found && !(at > 0 && is(at - 1, "in")) {
            match &tokens[at + 3 * prefix.len()] {
                TokenTree::Group(group) => {
                    let mut first = true;
                    for token in group.stream() {
                        if first {
                            names.insert(token.to_string());
                        }
                        first = token.to_string() == ",";
                    }
                }
                name => {
                    names.insert(name.to_string());
                }
            }
        }
    }
}

/// What is wrong with the imports of these files.
fn upward(map: &str, sources: &[(PathBuf, syn::File)]) -> Vec<String> {
    let layers = layers(map);
    let lib = &sources.iter().find(|(path, _)| path.ends_with("lib.rs")).expect("there is a lib.rs").1;
    let homes = reexports(lib);
    let (mut wrong, mut used) = (Vec::new(), Vec::new());
    for (path, file) in sources {
        let own = module_of(&layers, path);
        if own == "lib" {
            continue;
        }
        let Some(level) = position(&layers, &own) else {
            wrong.push(format!("{}: no layer in src/README.md", path.display()));
            continue;
        };
        let mut names = BTreeSet::new();
        names_behind(&["crate"], file.to_token_stream(), &mut names);
        for name in names {
            let module = homes.get(&name).map_or(name.as_str(), String::as_str);
            let exception = EXCEPTIONS.iter().find(|(who, what, _)| path == Path::new(who) && *what == module);
            used.extend(exception);
            match position(&layers, module) {
                None => wrong.push(format!("{}: crate::{name} is in no layer", path.display())),
                Some(target) if target < level && exception.is_none() => {
                    wrong.push(format!("{}: crate::{name} is above it, in {module}", path.display()));
                }
                Some(_) => {}
            }
        }
    }
    let unused = EXCEPTIONS.iter().filter(|exception| !used.contains(exception));
    wrong.extend(unused.map(|(who, what, _)| format!("{who}: the exception for {what} is not needed")));
    wrong
}

#[test]
fn imports_go_downwards() {
    let (map, mut sources) = (tree::read("src/README.md"), tree::sources());
    assert_none(upward(&map, &sources));
    // Controls: a file of `zone` that asks `percpu`, in a path, in a group, and through a re-export.
    for code in ["use crate::percpu::Mode;", "use crate::{sys, percpu::pop};", "fn f() -> crate::Mode { f() }"] {
        sources.push(("src/zone/wrong.rs".into(), syn::parse_file(code).expect("a program")));
        let wrong = upward(&map, &sources);
        assert!(matches!(&wrong[..], [line] if line.contains("src/zone/wrong.rs")), "{code}: {wrong:?}");
        sources.pop();
    }
}

/// What the files of a folder import of each other: each by the name of its module.
type Beside = BTreeMap<String, BTreeSet<String>>;

fn beside(folder: &Path, sources: &[(PathBuf, syn::File)]) -> Beside {
    let facade = &sources.iter().find(|(path, _)| *path == folder.join("mod.rs")).expect("a façade").1;
    let homes = reexports(facade);
    // Modules whose files have names of their own, by file.
    let mut renamed = HashMap::new();
    for item in &facade.items {
        if let syn::Item::Mod(item) = item {
            for text in item.attrs.iter().flat_map(|attribute| literals(attribute.to_token_stream())) {
                renamed.insert(folder.join(text), item.ident.to_string());
            }
        }
    }
    let text_of = |name: &std::ffi::OsStr| name.to_str().expect("UTF-8").to_owned();
    let own_name = text_of(folder.file_name().expect("a name"));
    let mut imports = Beside::new();
    for (path, file) in sources.iter().filter(|(path, _)| path.parent() == Some(folder) && !path.ends_with("mod.rs")) {
        let stem = || text_of(path.file_stem().expect("a name"));
        let names = imports.entry(renamed.get(path).cloned().unwrap_or_else(stem)).or_default();
        names_behind(&["super"], file.to_token_stream(), names);
        names_behind(&["crate", &own_name], file.to_token_stream(), names);
    }
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    for (own, names) in &mut imports {
        let module = |name| if modules.contains(&name) { Some(name) } else { homes.get(&name).cloned() };
        *names = std::mem::take(names).into_iter().filter_map(module).collect();
        names.retain(|name| modules.contains(name) && name != own);
    }
    imports
}

/// The texts in quotes among these tokens.
fn literals(tokens: TokenStream) -> Vec<String> {
    let each = tokens.into_iter().flat_map(|token| match token {
        TokenTree::Group(group) => literals(group.stream()),
        TokenTree::Literal(text) => vec![text.to_string().trim_matches('"').to_owned()],
        _ => Vec::new(),
    });
    each.collect()
}

/// The modules that import each other in circles, or lie between such circles: what is left after those have been taken
/// away, over and over, that import nothing of what is left or that nothing of it imports.
fn circles(mut imports: Beside) -> Vec<String> {
    loop {
        let left: BTreeSet<String> = imports.keys().cloned().collect();
        let wanted: BTreeSet<String> = imports.values().flatten().cloned().collect();
        imports.retain(|name, its| wanted.contains(name) && !its.is_disjoint(&left));
        if imports.len() == left.len() {
            return left.into_iter().collect();
        }
        imports.values_mut().for_each(|its| its.retain(|name| left.contains(name)));
    }
}

/// What is circular in a folder without these imports.
fn circular(folder: &Path, imports: &Beside, without: &[(&str, &str, &str)]) -> Vec<String> {
    let mut imports = imports.clone();
    for (who, what, _) in without {
        let names = imports.iter_mut().find(|(name, _)| folder.join(name).with_extension("rs") == Path::new(who));
        names.into_iter().for_each(|(_, names)| names.retain(|name| name != what));
    }
    circles(imports)
}

#[test]
fn files_of_a_folder_form_no_circle() {
    let mut sources = tree::sources();
    let folders = sources.iter().filter(|(path, _)| path.ends_with("mod.rs")).filter_map(|(path, _)| path.parent());
    let folders: Vec<(PathBuf, Beside)> = folders.map(|folder| (folder.to_owned(), beside(folder, &sources))).collect();
    for (folder, imports) in &folders {
        let wrong = circular(folder, imports, UPWARD);
        assert!(wrong.is_empty(), "{}: a circle in {wrong:?}", folder.display());
    }
    for n in 0..UPWARD.len() {
        let others = [&UPWARD[..n], &UPWARD[n + 1..]].concat();
        let needed = folders.iter().any(|(folder, imports)| !circular(folder, imports, &others).is_empty());
        assert!(needed, "the exception for {:?} is not needed", UPWARD[n]);
    }
    // Controls: the lowest file of `percpu` asks the highest, by its module, in a group, through the façade, from the root.
    let region = sources.iter().position(|(path, _)| path.ends_with("percpu/region.rs")).expect("a file");
    for code in [
        "use super::slow::x;",
        "use super::{rseq, slow::x};",
        "use super::free_slow;",
        "use crate::percpu::alloc_slow;",
    ] {
        sources[region].1.items.insert(0, syn::parse_str(code).expect("an item"));
        let folder = Path::new("src/percpu");
        let wrong = circular(folder, &beside(folder, &sources), UPWARD);
        assert!(["region", "slow"].iter().all(|name| wrong.iter().any(|found| found == name)), "{code}: {wrong:?}");
        sources[region].1.items.remove(0);
    }
}

/// Whether code names a crate that only `sys` may use.
fn names_the_system(file: &syn::File) -> bool {
    fn any(tokens: TokenStream) -> bool {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let leads = |at: usize| tokens.get(at + 1).is_some_and(|next| next.to_string() == ":");
        tokens.iter().enumerate().any(|(at, token)| match token {
            TokenTree::Group(group) => any(group.stream()),
            TokenTree::Ident(name) => (name == "libc" || name == "nix") && leads(at),
            _ => false,
        })
    }
    any(file.to_token_stream())
}

#[test]
fn system_calls_are_made_in_sys_only() {
    let outside = tree::sources().into_iter().filter(|(path, _)| !path.starts_with("src/sys"));
    let wrong = outside.filter(|(_, file)| names_the_system(file));
    assert_none(wrong.map(|(path, _)| format!("{}: libc or nix", path.display())).collect());
    // Control.
    assert!(names_the_system(&syn::parse_file("fn f() { g(unsafe { libc::getpid() }) }").expect("a program")));
}
