//! Memory for bookkeeping: taken from the system in chunks, handed out front to back, never given back.

use core::ptr::NonNull;

use crate::lock::Lock;
use crate::sys;

const CHUNK: usize = 256 << 10;

/// The process's bookkeeping memory.
pub(crate) static META: Meta = Meta { chunk: Lock::new(Chunk { start: 0, end: 0, mapped: 0, large: 0 }) };

pub(crate) struct Meta {
    chunk: Lock<Chunk>,
}

struct Chunk {
    start: usize,
    end: usize,
    /// Bytes of all chunks.
    mapped: usize,
    /// Bytes of allocations as large as a chunk.
    large: usize,
}

impl Meta {
    /// `size` bytes that read as zero, aligned to `align` (at most a page), valid for ever.
    pub(crate) fn alloc(&self, size: usize, align: usize) -> Option<NonNull<u8>> {
        let mut chunk = self.chunk.lock();
        let mut start = sys::round_up(chunk.start, align)?;
        if chunk.start == 0 || size > chunk.end.saturating_sub(start) {
            // The lock is held across this system call: it is one for hundreds of allocations, all of them
            // on paths that wait for system calls anyway.
            let len = sys::round_up(size.max(CHUNK), sys::page_size())?;
            start = sys::addr(sys::map(len)?);
            chunk.mapped += len;
            if size >= CHUNK {
                // By itself: what is left of the current chunk stays in use.
                chunk.large += len;
                return NonNull::new(start as *mut u8);
            }
            chunk.end = start + len;
        }
        chunk.start = start + size;
        NonNull::new(start as *mut u8)
    }

    /// Locks or unlocks for `fork`.
    pub(crate) fn fork_lock(&self, acquire: bool) {
        if acquire { self.chunk.acquire() } else { self.chunk.release() }
    }

    /// What has happened to the lock.
    #[cfg(feature = "debug")]
    pub(crate) fn lock_counts(&self) -> crate::lock::counted::LockCounts {
        self.chunk.counts()
    }

    /// Bytes that are resident, by estimate: most of a large allocation is never touched.
    pub(crate) fn resident_estimate(&self) -> usize {
        let chunk = self.chunk.lock();
        chunk.mapped - chunk.large - (chunk.end - chunk.start) + chunk.large / 16
    }

    /// Bytes handed out, an upper bound of the memory behind them.
    pub(crate) fn bytes(&self) -> usize {
        let chunk = self.chunk.lock();
        chunk.mapped - (chunk.end - chunk.start)
    }
}
