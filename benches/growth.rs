//! What a block that grows to 256 MiB takes by page faults, and how much less if the system is asked for memory ahead: `cargo
//! bench --bench growth [rounds]`.
//!
//! No allocator takes part: a mapping doubles from 256 KiB on by `mremap`, as one of this crate's does, and is written to. What
//! is left of the time with all of it populated is what no allocator can do without, as long as pages are small.

use std::time::Instant;

const FIRST: usize = 256 << 10;
const LAST: usize = 256 << 20;
const WORD: usize = size_of::<u64>();

/// Parts of what the mapping has grown by that are given memory at once, in hundredths.
const POPULATED: [usize; 4] = [0, 25, 50, 100];

/// Milliseconds to grow and write.
fn grow(populated: usize) -> f64 {
    let began = Instant::now();
    let (mut len, mut written) = (FIRST, 0);
    // SAFETY: a mapping of its own, which nobody else knows of; each word that is written lies within its `len` bytes, and what
    // is populated between those it had before and the ones it has.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mut start = libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        loop {
            assert_ne!(start, libc::MAP_FAILED, "the system has memory");
            while written < len / WORD {
                start.cast::<u64>().add(written).write_volatile(written as u64);
                written += 1;
            }
            if len == LAST {
                break;
            }
            start = libc::mremap(start, len, 2 * len, libc::MREMAP_MAYMOVE);
            if populated > 0 && start != libc::MAP_FAILED {
                // A refusal (Linux before 5.14) leaves it to page faults.
                libc::madvise(start.byte_add(len), (len / 100 * populated) & !4095, libc::MADV_POPULATE_WRITE);
            }
            len *= 2;
        }
        let took = began.elapsed();
        libc::munmap(start, len);
        took.as_secs_f64() * 1e3
    }
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(9);
    let mut times = POPULATED.map(|_| Vec::new());
    for round in 0..rounds {
        for at in 0..POPULATED.len() {
            let at = (at + round) % POPULATED.len();
            times[at].push(grow(POPULATED[at]));
        }
    }
    println!("Medians of {rounds} rounds:\n\n| populated, % | ms |\n| --: | --: |");
    for (populated, times) in POPULATED.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("| {populated} | {:.1} |", times[times.len() / 2]);
    }
}
