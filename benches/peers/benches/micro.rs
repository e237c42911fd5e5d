//! The rows of `benches/micro` beside jemalloc and mimalloc, in one process.

#[path = "../../micro/rows.rs"]
mod rows;

use std::alloc::System;

use criterion::{Criterion, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use pcpalloc::PcpAlloc;
use rows::rows;
use tikv_jemallocator::Jemalloc;

fn micro(c: &mut Criterion) {
    let mut group = c.benchmark_group("micro");
    rows(&mut group, "pcpalloc", &PcpAlloc::new());
    rows(&mut group, "jemalloc", &Jemalloc);
    rows(&mut group, "mimalloc", &MiMalloc);
    rows(&mut group, "system", &System);
    group.finish();
}

criterion_group!(benches, micro);
criterion_main!(benches);
