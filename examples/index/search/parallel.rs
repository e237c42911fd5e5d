//! Sharing numbered pieces of work among threads.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Does `work` for every number below `pieces`, each on whichever of the threads is free. After a failure no
/// more pieces are started, and the failure is returned.
pub fn for_each<E: Send>(threads: usize, pieces: usize, work: impl Fn(usize) -> Result<(), E> + Sync) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            // Relaxed, here and below: the counter deals out numbers; no other memory depends on it.
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return Ok(());
            }
            if let Err(error) = work(piece) {
                next.store(pieces, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
