//! A program under the `dhat` crate, in two ways.
//!
//! ```text
//! cargo run --release --features capi --example dhat                 # dhat counts, pcpalloc serves
//! cargo run --release --example dhat                                 # dhat in place of pcpalloc
//! ```
//!
//! `dhat::Alloc` is a global allocator that counts every block and asks `System` for it. With the feature `capi` what
//! `System` asks, C's `malloc`, is pcpalloc: the program keeps its allocator while it is counted. Without, `System` is the
//! C library's heap, and the profile the same, since dhat counts requests; that is how dhat is commonly used.
//!
//! `CARGO_PROFILE_RELEASE_DEBUG=limited` before either has the profile say lines, and the functions that were inlined.
//!
//! An argument names the file (`dhat-heap.json`). Open it with <https://nnethercote.github.io/dh_view/dh_view.html>, or
//! valgrind's own copy.

use std::collections::HashMap;

#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

/// How often every word stands in a text.
fn count_words(text: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for word in text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    counts
}

fn main() {
    let file = std::env::args().nth(1).unwrap_or("dhat-heap.json".into());
    if file.starts_with('-') {
        eprintln!("usage: dhat [FILE]");
        std::process::exit(2);
    }
    let profiler = dhat::Profiler::builder().file_name(file).build();

    let text = include_str!("../src/README.md").repeat(20);
    let counts = count_words(&text);
    let mut most: Vec<_> = counts.iter().collect();
    most.sort_by_key(|&(word, &count)| (usize::MAX - count, word));
    most.iter().take(5).for_each(|(word, count)| println!("{count:>6} {word}"));

    let counted = dhat::HeapStats::get();
    println!("dhat counts {} bytes in {} blocks now", counted.curr_bytes, counted.curr_blocks);
    let served = pcpalloc::PcpAlloc::new().stats();
    if cfg!(feature = "capi") {
        // More than dhat says: dhat's own tables are served as well, and blocks are rounded up to their classes.
        println!("pcpalloc has {} bytes in use", served.in_use);
        assert!(served.in_use >= counted.curr_bytes);
    } else {
        println!("pcpalloc has {} bytes in use: the C library's heap serves this program", served.in_use);
    }
    drop(profiler);
}
