//! For the crate's own tests: a client that counts, and knows which blocks it was told of.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::table::Table;
use super::{Client, Rate, Role, forget, note};
use crate::lock::Lock;
use crate::zone::META;
use crate::{Config, heap};

const BITS: u32 = 13;

struct Count;
static COUNT: &dyn Client = &Count;
static TABLE: Lock<Option<Table>> = Lock::new(None);

/// What the client has been told. Relaxed throughout: statistics.
static SAMPLED: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);
static DEFERRED: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicUsize = AtomicUsize::new(0);
static TWICE: AtomicUsize = AtomicUsize::new(0);

/// What a client has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Blocks that were sampled, and their bytes.
    pub sampled: usize,
    /// See `sampled`.
    pub bytes: usize,
    /// Of these, blocks of which it was told that they are free.
    pub freed: usize,
    /// Of these, blocks of which it was told that they wait for a grace period.
    pub deferred: usize,
    /// Of these, blocks for which there was no room.
    pub lost: usize,
    /// Blocks that were sampled while they were in use.
    pub twice: usize,
}

fn table() -> Option<&'static Table> {
    // SAFETY: set once, before anybody is told anything, and never changed; the lock guards the setting.
    unsafe { TABLE.value_of_held().as_ref() }
}

impl Client for Count {
    fn sampled(&self, block: *mut u8, size: usize, _: f64) -> *mut u8 {
        let Some(table) = table() else { return block };
        SAMPLED.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(size, Ordering::Relaxed);
        if table.get(block as usize).is_some() {
            TWICE.fetch_add(1, Ordering::Relaxed);
        } else if table.insert(block as usize, size) {
            note(block);
        } else {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        block
    }

    fn freed(&self, block: *mut u8, _: bool) -> bool {
        if table().and_then(|table| table.remove(block as usize)).is_some() {
            forget(block);
            FREED.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    fn deferred(&self, block: *mut u8) {
        if table().and_then(|table| table.get(block as usize)).is_some() {
            DEFERRED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Has a block in `mean` bytes counted; false if that cannot be done here.
pub fn start(mean: usize) -> bool {
    heap::ensure_up(&Config::new());
    {
        let mut table = TABLE.lock();
        if table.is_none() {
            let Some(memory) = META.alloc(Table::bytes(BITS), 64) else { return false };
            // SAFETY: META's memory reads as zero, is aligned as asked and nobody else's.
            *table = Some(unsafe { Table::new(memory, BITS) });
        }
    }
    super::start(Role::Profiler, &COUNT, Rate::Bytes(mean)).is_ok()
}

/// Counts no more, and forgets what is still in use.
pub fn stop() {
    super::stop(Role::Profiler);
    if let Some(table) = table() {
        table.clear(|address| forget(address as *mut u8));
    }
}

/// What has been counted since the process began.
pub fn counted() -> Counted {
    let load = |n: &AtomicUsize| n.load(Ordering::Relaxed);
    Counted {
        sampled: load(&SAMPLED),
        bytes: load(&BYTES),
        freed: load(&FREED),
        deferred: load(&DEFERRED),
        lost: load(&LOST),
        twice: load(&TWICE),
    }
}
