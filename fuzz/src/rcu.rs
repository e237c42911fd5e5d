//! Sequences of RCU operations: what a reader found stays alive for as long as it reads.

use std::ptr::NonNull;

use pcpalloc::rcu::{self, ReadGuard};
use pcpalloc::{Drain, PcpAlloc};

use crate::rcu_common::object::{Default, Object, Table, dispose, free_polled};
use crate::{Input, accounted, in_use};

/// A section, and what was found in it.
struct Reader {
    _guard: ReadGuard,
    found: Vec<(NonNull<Object>, u64)>,
}

/// Readers that nest, writers that replace and free in every way, and whoever makes progress, on one thread.
pub fn rcu(input: &[u8]) {
    rcu::barrier();
    let before = in_use();
    let mut input = Input(input);
    let table = Table::new();
    let mut readers: Vec<Reader> = Vec::new();
    let mut polled = Vec::new();
    while let (Some(step), Some(slot)) = (input.byte(), input.byte()) {
        match step % 10 {
            0 if readers.len() < 8 => readers.push(Reader { _guard: rcu::read_lock(), found: Vec::new() }),
            // In any order.
            1 if !readers.is_empty() => drop(readers.swap_remove(slot % readers.len())),
            2 | 3 => {
                if let Some(reader) = readers.last_mut() {
                    let object = table.get(slot);
                    // SAFETY: found in the table in a section that still lasts.
                    reader.found.push((object, unsafe { object.as_ref() }.look()));
                }
            }
            4..7 => {
                let old = table.replace(slot);
                // A box would go to the program's allocator, which is not this one; and some ways wait, which a reader
                // must not.
                let way =
                    if readers.is_empty() { [0, 1, 2, 5, 6, 7, 8][step / 10 % 7] } else { [0, 1, 2, 8][step / 10 % 4] };
                // SAFETY: just unlinked, by this thread alone; readers are in sections of the default domain.
                unsafe { dispose(&Default, old, way, &mut polled) };
            }
            7 => _ = rcu::poll_once(),
            8 if readers.is_empty() => match slot % 4 {
                0 => rcu::synchronize(),
                1 => rcu::synchronize_expedited(),
                2 => rcu::barrier(),
                _ => _ = rcu::drain(),
            },
            9 => _ = PcpAlloc::new().drain([Drain::Local, Drain::All][slot % 2]),
            _ => {}
        }
        for reader in &readers {
            for (object, stamp) in &reader.found {
                // SAFETY: found in a section that still lasts.
                assert_eq!(unsafe { object.as_ref() }.look(), *stamp, "an object is alive for as long as it is read");
            }
        }
    }
    drop(readers);
    rcu::synchronize();
    free_polled(&mut polled);
    assert!(polled.is_empty(), "a grace period is over");
    drop(table);
    rcu::barrier();
    assert_eq!(rcu::stats().pending_pointers, 0);
    // Some pages of pointers are kept for the next deferral.
    accounted(before);
}
