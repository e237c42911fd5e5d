//! What a hardened heap does with each block: between the routing above and the stacks below.
//!
//! ```text
//! alloc:  a block; still overwritten as it was left?           // ZERO, POISON
//!         mark it as handed out
//! free:   the heap's, of this class, handed out?               // CHECKED
//!         mark it as free, overwrite it                        // ZERO, POISON
//!         let it wait; free the block that waited longest      // quarantine.rs
//! ```
//!
//! The marks are two bits a block in a table of the zone's (`zone/shadow.rs`), so a block that is freed twice is found
//! at once, in whatever layer it lies. Nothing here happens on the fast path, which stays as it is: a heap that checks
//! has its stacks hidden from that, so every operation comes to the slow path, and here (`percpu/hidden.rs`).
//!
//! Blocks that are guarded by chance (`guarded.rs`) need no such thing: they are a client of `observe`.

mod fault;
mod guarded;
mod quarantine;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::hardening::{self, Hardening};
use crate::percpu;
use crate::size_class::{CLASS, PAGE, block_size};
use crate::slab::{MIDDLE, TWICE, zone_of};
use crate::sys;
use crate::zone::{FILLED, LIVE, Zone, mapping_cache};

#[cfg(feature = "capi")]
pub(crate) use guarded::class_at as guarded_class_at;
#[cfg(feature = "debug")]
pub(crate) use guarded::is_made as has_guards;
#[cfg(any(feature = "capi", feature = "debug"))]
pub(crate) use guarded::owns as is_guarded;
pub(crate) use quarantine::bytes as quarantined_bytes;

/// Whether operations come here. Relaxed throughout: set before the heap is announced to be up, and never changed.
static ON: AtomicBool = AtomicBool::new(false);

/// What a byte of a poisoned block is.
const POISON: u8 = 0xdf;

/// Puts protections in force. Called once, before anything is allocated.
pub(crate) fn init(hardening: Hardening) {
    if sys::tools::look() {
        percpu::hide_stacks();
        mapping_cache::disable();
    }
    if hardening == Hardening::NONE {
        return;
    }
    mapping_cache::disable();
    crate::random::init();
    hardening::init(hardening);
    if hardening::any(Hardening::CHECKED) {
        ON.store(true, Ordering::Relaxed);
        percpu::hide_stacks();
    }
}

/// Has one allocation in `one_in` guarded; none for 0. Called once, when the machine has been learnt.
pub(crate) fn sample(one_in: u32) {
    if one_in > 0 {
        crate::random::init();
        guarded::start(one_in);
    }
}

/// Whether this is what was put in force.
pub(crate) fn is_as(hardening: Hardening, one_in: u32) -> bool {
    hardening::active().contains(hardening) && guarded::is_as(one_in)
}

/// Whether operations come here.
#[inline]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

pub(crate) fn fork_lock(acquire: bool) {
    guarded::fork_lock(acquire);
    quarantine::fork_lock(acquire);
}

/// In the child of a `fork`, which must not draw its parent's random numbers.
pub(crate) fn after_fork() {
    if hardening::active() != Hardening::NONE || !guarded::is_as(0) {
        crate::random::init();
    }
}

/// Frees all blocks that wait; whether there were any.
pub(crate) fn release_waiting() -> bool {
    is_on() && quarantine::flush()
}

/// Asks for memory past the stacks; if there is none, again when what lies in those has been brought together, and then when
/// what waits has been, too.
pub(crate) fn insist<T>(ask: impl Fn() -> Option<T>) -> Option<T> {
    let again = || {
        percpu::reclaim();
        ask()
    };
    ask().or_else(again).or_else(|| if release_waiting() { again() } else { None })
}

/// Frees a block of a class.
///
/// # Safety
/// `block` is a block of `class` that nobody uses, or a mistake that is to be found.
pub(crate) unsafe fn free(class: usize, block: *mut u8) {
    if let Some(block) = NonNull::new(block) {
        take_back(class, block);
    }
    if hardening::any(Hardening::QUARANTINE) {
        quarantine::put(class, block as usize);
    } else {
        // SAFETY: the caller's obligation, as far as could be checked.
        unsafe { percpu::free_slow(class, block) };
    }
}

/// Marks a block as handed out; ends the process if it has been written to since it was freed.
///
/// The block comes from the layers below and is the caller's.
pub(crate) fn hand_out(class: usize, block: NonNull<u8>) {
    if !hardening::any(Hardening::CHECKED) {
        return;
    }
    let address = sys::addr(block);
    // SAFETY: blocks of classes lie in zones.
    let zone = unsafe { Zone::of(address) };
    let before = zone.mark(address, LIVE);
    if before & LIVE != 0 {
        sys::die("a block that is in use was about to be handed out again", address);
    }
    if before & FILLED != 0 {
        zone.unmark(address, FILLED);
        inspect(class, address);
    }
}

/// Checks and overwrites a block that is given back; ends the process if it is not one that can be.
pub(crate) fn take_back(class: usize, block: NonNull<u8>) {
    if !hardening::any(Hardening::CHECKED) {
        return;
    }
    let address = sys::addr(block);
    let (zone, page) = zone_of(address, class);
    let fixed = &CLASS[class];
    let first = if fixed.is_run() { page } else { page & !((1 << fixed.order) - 1) };
    let offset = address - sys::addr(zone.address_of(first));
    if if fixed.is_run() { !offset.is_multiple_of(PAGE) } else { !offset.is_multiple_of(block_size(class)) } {
        sys::die(MIDDLE, address);
    }
    if zone.unmark(address, LIVE) & LIVE == 0 {
        sys::die(TWICE, address);
    }
    if let Some(byte) = pattern() {
        // SAFETY: the block is as large, was handed out, and its owner has given it up.
        unsafe { block.write_bytes(byte, block_size(class)) };
        zone.mark(address, FILLED);
    }
}

/// Has what a free block holds not looked at: a lower layer is about to write to it.
pub(crate) fn disregard(block: NonNull<u8>) {
    if hardening::any(Hardening::CHECKED) {
        // SAFETY: blocks of classes lie in zones.
        unsafe { Zone::of(sys::addr(block)) }.unmark(sys::addr(block), FILLED);
    }
}

/// A block that is a run becomes, where it lies, one of a class, or of none any more.
pub(crate) fn resized(zone: &Zone, block: NonNull<u8>, has_class: bool) {
    if has_class {
        zone.mark(sys::addr(block), LIVE);
    } else {
        zone.unmark(sys::addr(block), LIVE);
    }
}

/// Overwrites a run that no class serves, which is about to be freed.
///
/// # Safety
/// The run is as long, and nobody uses it any more.
pub(crate) unsafe fn scrub(block: NonNull<u8>, bytes: usize) {
    if let Some(byte) = pattern() {
        // SAFETY: the caller's obligation.
        unsafe { block.write_bytes(byte, bytes) };
    }
}

/// What free blocks are overwritten with, if they are.
fn pattern() -> Option<u8> {
    match hardening::active() {
        // Which would see it as a use after the free, and finds all others itself.
        _ if sys::tools::are_present() => None,
        all if all.contains(Hardening::ZERO) => Some(0),
        all if all.contains(Hardening::POISON) => Some(POISON),
        _ => None,
    }
}

/// Ends the process if a free block is not as it was left.
fn inspect(class: usize, address: usize) {
    let Some(byte) = pattern() else { return };
    let expected = u64::from_ne_bytes([byte; 8]);
    // SAFETY: the block is this large, aligned to 8, nobody's, and has been written to in full. (A bug that writes to
    // it meanwhile is what this is to find: words are read one by one, and nothing is concluded from them but that.)
    let intact = unsafe {
        let words = address as *const u64;
        (0..block_size(class) / 8).all(|n| words.add(n).read_volatile() == expected)
    };
    if !intact {
        sys::die("memory was written to after it was freed", address);
    }
}
