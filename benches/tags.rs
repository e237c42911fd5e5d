//! What tags cost: an allocation and a free with and without, by turns in one run: `cargo bench --bench tags [rounds]`.
//!
//! Each figure is the median over rounds of nanoseconds per pair; the last column is the median of the ratios of a round
//! to the plain row's of the same round.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::time::Instant;

use pcpalloc::PcpAlloc;
use pcpalloc::tag::{Tag, TaggedAlloc};

#[global_allocator]
static PLAIN: PcpAlloc = PcpAlloc::new();
static TAG: Tag = Tag::new("bench");
static TAGGED: TaggedAlloc = TaggedAlloc::new();

const PAIRS: u32 = 2_000_000;

/// Nanoseconds per pair of an allocation of 64 bytes, less one, which leaves room for a tag, and a free; a few blocks are
/// held meanwhile, so that it is not always the same. The size is a constant, as in most programs.
fn pairs(heap: &impl GlobalAlloc) -> f64 {
    let layout = Layout::new::<[u8; 63]>();
    let mut held = [const { std::ptr::null_mut::<u8>() }; 16];
    let began = Instant::now();
    for n in 0..PAIRS {
        let place = &mut held[n as usize % 16];
        // SAFETY: the size is not zero; what is in the place was allocated with this layout, and is replaced.
        unsafe {
            if !place.is_null() {
                heap.dealloc(*place, layout);
            }
            *place = black_box(heap.alloc(layout));
            place.write(1);
        }
    }
    let took = began.elapsed();
    // SAFETY: as above.
    held.iter().for_each(|&block| unsafe { heap.dealloc(block, layout) });
    took.as_nanos() as f64 / f64::from(PAIRS)
}

/// A row's name, and what measures it.
type Row = (&'static str, fn() -> f64);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(15);
    let rows: [Row; 4] = [
        ("PcpAlloc", || pairs(&PLAIN)),
        ("Tag", || pairs(&TAG)),
        ("TaggedAlloc, no tag", || pairs(&TAGGED)),
        ("TaggedAlloc, in a tag", || TAG.with(|| pairs(&TAGGED))),
    ];
    let mut taken = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        for (times, (_, row)) in taken.iter_mut().zip(rows) {
            times.push(row());
        }
    }
    println!("{:<24}{:>10}{:>10}", "", "ns a pair", "ratio");
    for (times, (name, _)) in taken.iter().zip(rows) {
        let ratios = times.iter().zip(&taken[0]).map(|(time, plain)| time / plain).collect();
        println!("{name:<24}{:>10.2}{:>10.2}", median(times.clone()), median(ratios));
    }
}
