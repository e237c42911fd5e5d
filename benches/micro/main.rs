//! pcpalloc beside the system allocator: `cargo bench --bench micro`.
//!
//! `benches/peers` has the same rows beside jemalloc and mimalloc, and `benches/compare` more allocators, each as the
//! global one of a process.

mod rows;

use std::alloc::System;

use criterion::{Criterion, criterion_group, criterion_main};
use pcpalloc::PcpAlloc;
use rows::rows;

fn micro(c: &mut Criterion) {
    let mut group = c.benchmark_group("micro");
    rows(&mut group, "pcpalloc", &PcpAlloc::new());
    rows(&mut group, "system", &System);
    group.finish();
}

criterion_group!(benches, micro);
criterion_main!(benches);
