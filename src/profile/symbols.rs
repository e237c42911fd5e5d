//! Names for addresses, found when a profile is written.

use core::ffi::c_void;
use std::collections::HashMap;
use std::rc::Rc;

/// A function at a place in the source. What was inlined into one address has a frame each, the innermost first.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) address: usize,
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
pub(super) struct Symbols(HashMap<usize, Rc<[Rc<Frame>]>>);

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

fn is_inside(name: &str) -> bool {
    INSIDE.iter().any(|prefix| name.starts_with(prefix)) || INSIDE_C.contains(&name)
}

fn is_of_core(name: &str) -> bool {
    name.starts_with("core::") || name.starts_with("<core::")
}

impl Symbols {
    pub(super) fn new() -> Symbols {
        Symbols(HashMap::new())
    }

    /// The frames at a return address.
    pub(super) fn at(&mut self, address: usize) -> Rc<[Rc<Frame>]> {
        self.0.entry(address).or_insert_with(|| resolve(address)).clone()
    }

    /// The frames of a stack without those of the allocator, the innermost first; at least one.
    pub(super) fn stack(&mut self, addresses: &[usize]) -> Vec<Rc<Frame>> {
        let mut frames: Vec<_> = addresses.iter().flat_map(|&address| self.at(address).to_vec()).collect();
        // What the allocator calls of `core` is inside, too, if the allocator called it.
        let near = frames.iter().take_while(|frame| is_inside(&frame.name) || is_of_core(&frame.name)).count();
        let inside = frames[..near].iter().rposition(|frame| is_inside(&frame.name)).map_or(0, |last| last + 1);
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
    Frame { address, symbol: name.clone(), name, file: String::new(), line: 0, column: 0, known: false }
}

fn resolve(address: usize) -> Rc<[Rc<Frame>]> {
    let mut frames = Vec::new();
    // The call is before the address to which it returns.
    backtrace::resolve(address.wrapping_sub(1) as *mut c_void, |symbol| {
        let Some(name) = symbol.name() else { return };
        frames.push(Rc::new(Frame {
            address,
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
