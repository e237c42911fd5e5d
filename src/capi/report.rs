//! The heap's figures in glibc's words.

use core::ffi::c_int;
use core::fmt::Write;

use crate::control::{self, Drain};
use crate::slab::{holes, retire};
use crate::sys;
use crate::zone::{free_resident, mapping_cache, release};

/// `struct mallinfo2` of glibc. In bytes, but for the two numbers of blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mallinfo2 {
    /// Memory of the zones and tables that is resident.
    arena: usize,
    /// 1: what is free is one heap.
    ordblks: usize,
    smblks: usize,
    /// Number of mappings.
    hblks: usize,
    /// Bytes in mappings.
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    /// In use, mappings aside.
    uordblks: usize,
    /// Free and resident.
    fordblks: usize,
    /// What a trim could give back.
    keepcost: usize,
}

/// `struct mallinfo` of glibc.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mallinfo([c_int; 10]);

pub(crate) fn mallinfo2() -> Mallinfo2 {
    let stats = control::stats();
    let mapped = mapping_cache::in_use();
    Mallinfo2 {
        arena: stats.resident.saturating_sub(mapped),
        ordblks: 1,
        smblks: 0,
        hblks: stats.mappings,
        hblkhd: mapped,
        usmblks: 0,
        fsmblks: 0,
        uordblks: stats.in_use.saturating_sub(mapped),
        fordblks: stats.percpu_cached + stats.free_resident,
        keepcost: stats.free_resident,
    }
}

pub(crate) fn mallinfo() -> Mallinfo {
    let all = mallinfo2();
    let Mallinfo2 { arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost } = all;
    let all = [arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost];
    Mallinfo(all.map(|value| c_int::try_from(value).unwrap_or(c_int::MAX)))
}

/// Drains all stacks and gives back what is free beyond `keep` bytes, pages between blocks in use last; 1 if that was
/// something.
pub(crate) fn trim(keep: usize) -> c_int {
    control::drain(Drain::All);
    retire::retire_all();
    let surplus = free_resident().saturating_sub(keep);
    let mut released = if surplus > 0 { release(surplus) } else { 0 };
    if control::stats().free_resident > keep {
        released += holes::punch_all();
    }
    (released > 0) as c_int
}

pub(crate) fn print() {
    // What cannot be written is lost.
    let _ = writeln!(sys::Stderr, "{}", control::stats());
}
