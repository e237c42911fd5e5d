//! Where there are no restartable sequences: every operation misses, and the slow path uses per-thread stacks.

use super::Mode;
use super::region::Region;

#[inline(always)]
pub(super) fn pop(_class: usize) -> *mut u8 {
    core::ptr::null_mut()
}

pub(super) fn pop_reserve(_class: usize) -> *mut u8 {
    core::ptr::null_mut()
}

#[inline(always)]
pub(super) unsafe fn push(_class: usize, _block: usize) -> bool {
    false
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub(super) enum AboveFloor {
    Block(usize),
    Empty,
    Floor,
    Aborted,
}

pub(super) fn pop_above_floor(_class: usize) -> AboveFloor {
    AboveFloor::Empty
}

pub(super) fn pop_batch(_class: usize, _out: &mut [usize]) -> usize {
    0
}

pub(super) unsafe fn push_batch(_class: usize, _blocks: &[usize]) -> usize {
    0
}

pub(super) unsafe fn push_reserve(_class: usize, _blocks: &[usize]) -> usize {
    0
}

pub(super) fn stop_here(_cpu: usize) -> bool {
    false
}

pub(super) fn stop_reserves_here(_cpu: usize) -> bool {
    false
}

pub(super) fn stop_reserves(_cpu: usize, _region: &Region) -> bool {
    false
}

pub(super) fn stop(_cpu: usize, _region: &Region) -> bool {
    false
}

pub(super) fn start(_cpu: usize, _region: &Region) {}

pub(super) fn start_reserves(_cpu: usize, _region: &Region) {}

pub(super) fn cpu() -> Option<usize> {
    None
}

pub(super) fn init() -> Mode {
    Mode::PerThread
}

pub(super) fn register() -> bool {
    false
}
