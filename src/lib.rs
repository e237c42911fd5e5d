//! draft
#![cfg_attr(loom, allow(dead_code))]

#[cfg(not(loom))]
mod alloc;
#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
mod large;
#[cfg(not(loom))]
mod lock;
#[cfg(not(loom))]
mod percpu;
mod size_class;
#[cfg(not(loom))]
mod slab;
mod sync;
#[cfg(not(loom))]
mod sys;
mod tagged_stack;
#[cfg(not(loom))]
mod zone;

/// x
#[derive(Debug)]
pub struct PcpAlloc {
    _p: (),
}
impl PcpAlloc {
    /// x
    pub const fn new() -> Self {
        PcpAlloc { _p: () }
    }
}
