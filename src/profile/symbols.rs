//! Names for addresses, found when a profile is written.

use core::ffi::c_void;
use std::collections::HashMap;
use std::rc::Rc;

/// A function at a place in the source. What was inlined into one address has a frame each, the innermost first.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) address: usize,
    /// Whether it is the innermost one of its address: where, in a stack, the frames of a return address begin.
    pub(super) innermost: bool,
    pub(super) name: String,
    /// The name as the linker has it.
    pub(super) symbol: String,
    pub(super) file: String,
    pub(super) line: u32,
    pub(super) column: u32,
    /// Whether there was a symbol.
    pub(super) known: bool,
}

/// What has been looked up.
pub(super) struct Symbols {
    frames: HashMap<usize, Rc<[Rc<Frame>]>>,
    /// Where the sources of this crate and of the unwinder lie, as debug information says it.
    inside: Vec<String>,
}

/// Functions of the allocator, and of what calls it for everybody: the innermost frames of every stack.
const INSIDE: [&str; 8] = [
    "pcpalloc::",
    "<pcpalloc::",
    "backtrace::",
    "__rust_alloc",
    "__rust_realloc",
    "__rustc::",
    "alloc::alloc::",
    "<alloc::alloc::",
];
/// The same of C.
const INSIDE_C: [&str; 7] =
    ["malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign", "memalign", "reallocarray"];

/// Line tables alone have functions by their last name, without a path. Then files tell where a frame is.
const ALLOC_FILE: &str = "/library/alloc/src/alloc.rs";
const CORE_FILES: &str = "/library/core/src/";

fn is_of_core(frame: &Frame) -> bool {
    frame.name.starts_with("core::") || frame.name.starts_with("<core::") || frame.file.contains(CORE_FILES)
}

/// The directory that a function's source is in, without `end`, the rest of the path. None without debug information, or
/// if it says no more than a name that any program's sources may have.
fn directory_of(function: *mut c_void, end: &str) -> Option<String> {
    let mut file = None;
    // `backtrace` takes an address for one that a call returns to. What is inlined there comes before the function itself.
    backtrace::resolve(function.wrapping_byte_add(1), |symbol| {
        file = symbol.filename().and_then(|file| Some(file.to_str()?.to_string()))
    });
    let directory = file?.strip_suffix(end)?.to_string();
    directory.strip_suffix("/src/").is_some_and(|parent| !parent.is_empty() && parent != ".").then_some(directory)
}

impl Symbols {
    pub(super) fn new() -> Symbols {
        let own = directory_of(resolve as *mut c_void, "profile/symbols.rs");
        let unwinder = directory_of(backtrace::clear_symbol_cache as *mut c_void, "symbolize/mod.rs");
        Symbols { frames: HashMap::new(), inside: [own, unwinder].into_iter().flatten().collect() }
    }

    fn is_inside(&self, frame: &Frame) -> bool {
        let name = frame.name.as_str();
        INSIDE.iter().any(|prefix| name.starts_with(prefix))
            || INSIDE_C.contains(&name)
            || frame.file.ends_with(ALLOC_FILE)
            || self.inside.iter().any(|directory| frame.file.starts_with(directory.as_str()))
    }

    /// The frames at a return address.
    pub(super) fn at(&mut self, address: usize) -> Rc<[Rc<Frame>]> {
        self.frames.entry(address).or_insert_with(|| resolve(address)).clone()
    }

    /// The frames of a stack without those of the allocator, the innermost first; at least one.
    pub(super) fn stack(&mut self, addresses: &[usize]) -> Vec<Rc<Frame>> {
        let mut frames: Vec<_> = addresses.iter().flat_map(|&address| self.at(address).to_vec()).collect();
        // What the allocator calls of `core` is inside, too, if the allocator called it.
        let near = frames.iter().take_while(|frame| self.is_inside(frame) || is_of_core(frame)).count();
        let inside = frames[..near].iter().rposition(|frame| self.is_inside(frame)).map_or(0, |last| last + 1);
        if inside < frames.len() {
            frames.drain(..inside);
        }
        if frames.is_empty() {
            frames.push(Rc::new(unknown(0)));
        }
        frames
    }
}

fn unknown(address: usize) -> Frame {
    let name = format!("{address:#x}");
    Frame {
        address,
        innermost: true,
        symbol: name.clone(),
        name,
        file: String::new(),
        line: 0,
        column: 0,
        known: false,
    }
}

fn resolve(address: usize) -> Rc<[Rc<Frame>]> {
    let mut frames = Vec::new();
    // `backtrace` looks at the instruction before, which is the call.
    backtrace::resolve(address as *mut c_void, |symbol| {
        let Some(name) = symbol.name() else { return };
        frames.push(Rc::new(Frame {
            address,
            innermost: frames.is_empty(),
            // Without the hash at its end.
            name: format!("{name:#}"),
            symbol: name.as_str().unwrap_or_default().to_string(),
            file: symbol.filename().map(|file| file.display().to_string()).unwrap_or_default(),
            line: symbol.lineno().unwrap_or(0),
            column: symbol.colno().unwrap_or(0),
            known: true,
        }));
    });
    if frames.is_empty() {
        frames.push(Rc::new(unknown(address)));
    }
    frames.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stack of these names and files as it is shown. An address each; two frames in one would be no different.
    fn shown(symbols: &mut Symbols, frames: &[(&str, String)]) -> Vec<String> {
        for (address, (name, file)) in frames.iter().enumerate() {
            let frame = Frame { name: name.to_string(), file: file.clone(), known: true, ..unknown(address) };
            symbols.frames.insert(address, [Rc::new(frame)].into());
        }
        let addresses: Vec<usize> = (0..frames.len()).collect();
        symbols.stack(&addresses).iter().map(|frame| frame.name.clone()).collect()
    }

    /// The second is red if files are not looked at.
    #[test]
    fn the_allocators_frames_are_left_out_by_name_or_by_file() {
        let mut symbols = Symbols { frames: HashMap::new(), inside: vec!["/a/pcpalloc/src/".to_string()] };
        let nowhere = String::new;
        let names = [
            ("pcpalloc::profile::unwind::walk", nowhere()),
            ("core::option::Option<T>::map", nowhere()),
            ("__rust_alloc", nowhere()),
            ("core::iter::adapters::map", nowhere()),
            ("program::main", nowhere()),
        ];
        assert_eq!(shown(&mut symbols, &names), ["core::iter::adapters::map", "program::main"]);
        let library = |file: &str| format!("/rustc/0123/library/{file}");
        let line_tables_alone = [
            ("walk", "/a/pcpalloc/src/profile/unwind.rs".to_string()),
            ("map", library("core/src/option.rs")),
            ("alloc_impl", library("alloc/src/alloc.rs")),
            ("map", library("core/src/iter/adapters/map.rs")),
            ("walk", "/a/program/src/main.rs".to_string()),
        ];
        assert_eq!(shown(&mut symbols, &line_tables_alone), ["map", "walk"]);
    }

    /// Where there is debug information it says where the sources are.
    #[test]
    #[cfg(not(miri))]
    fn debug_information_says_where_the_sources_are() {
        let mut known = false;
        let here = debug_information_says_where_the_sources_are as *mut c_void;
        backtrace::resolve(here.wrapping_byte_add(1), |symbol| known |= symbol.filename().is_some());
        let inside = Symbols::new().inside;
        assert_eq!(inside.len(), if known { 2 } else { 0 }, "{inside:?}");
        for (directory, file) in inside.iter().zip(["profile/symbols.rs", "symbolize/mod.rs"]) {
            assert!(std::path::Path::new(directory).join(file).is_file(), "{directory}");
        }
        // What any program's sources may be called says nothing.
        assert_eq!(directory_of(resolve as *mut c_void, "src/profile/symbols.rs"), None);
        assert_eq!(directory_of(core::ptr::null_mut(), "profile/symbols.rs"), None);
    }
}
