//! Setting the allocator and asking it where the memory is: `cargo run --release --example hello`.

use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

fn main() {
    let words: Vec<String> = (0..100_000).map(|n| format!("word {n}")).collect();
    println!("{} words\n{}", words.len(), GLOBAL.stats());
}
