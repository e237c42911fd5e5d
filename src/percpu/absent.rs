//! Where there are no restartable sequences: every operation misses, and the slow path uses per-thread stacks.

use super::region::{AboveFloor, Region};
use crate::sys;

#[inline(always)]
pub(super) fn pop(_class: usize) -> *mut u8 {
    core::ptr::null_mut()
}

pub(super) fn pop_slow(_class: usize) -> *mut u8 {
    core::ptr::null_mut()
}

pub(super) fn pop_reserve(_class: usize) -> *mut u8 {
    core::ptr::null_mut()
}

#[inline(always)]
pub(super) unsafe fn push(_class: usize, _block: usize) -> bool {
    false
}

pub(super) unsafe fn push_observed(_class: usize, _block: usize) -> bool {
    false
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

pub(super) const SECTIONS: bool = false;

pub(super) fn adopt(_offset: isize) -> bool {
    false
}

pub(super) fn register() -> Result<(), i32> {
    Err(sys::ENOSYS)
}
