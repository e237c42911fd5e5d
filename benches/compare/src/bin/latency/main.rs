//! How long single allocations and deallocations take under the allocator that was chosen, as a line of JSON with
//! quantiles in nanoseconds.
//!
//! ```text
//! latency [--smoke] [--list] ROW
//! ```
//!
//! Each operation is timed by the processor's time-stamp counter, with fences so that nothing else is done meanwhile.
//! What the reading itself takes, the least that two readings in succession differ by, is subtracted from each time.
//! A block is written to outside of what is timed, so a page fault counts only where the allocator takes it. The
//! longest times are mostly the kernel's: a thread that is interrupted within an operation.

#[path = "../../allocator.rs"]
mod allocator;
mod clock;
#[path = "../micro/object.rs"]
#[allow(dead_code, reason = "the numbers alone")]
mod object;

use std::alloc::{Layout, alloc, dealloc};
use std::hint::black_box;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::thread;

use clock::Clock;
use hdrhistogram::Histogram;
use object::Random;
use serde_json::json;

struct Row {
    name: &'static str,
    what: &'static str,
    threads: usize,
    /// Half of the blocks are freed by another thread than the one that allocated them.
    exchanged: bool,
}

const ROWS: [Row; 4] = [
    Row {
        name: "churn_1t",
        what: "random ones of 100,000 live blocks of 8 to 511 bytes, one in 64 up to 32 KiB, are replaced; 8 million times",
        threads: 1,
        exchanged: false,
    },
    Row {
        name: "churn_2t",
        what: "as churn_1t, on 2 threads, each with half of the blocks",
        threads: 2,
        exchanged: false,
    },
    Row { name: "churn_16t", what: "as churn_1t, on 16 threads", threads: 16, exchanged: false },
    Row {
        name: "exchange_2t",
        what: "as churn_2t, the two threads taking each other's blocks every 50,000 replacements",
        threads: 2,
        exchanged: true,
    },
];

const BLOCKS: usize = 100_000;
const OPERATIONS: usize = 8_000_000;
const TURN: usize = 50_000;
const SMOKE: usize = 100;

/// A block and how it was allocated.
struct Block(NonNull<u8>, Layout);

// SAFETY: the only handle on a block of plain memory.
unsafe impl Send for Block {}

/// Ticks that operations took.
struct Times {
    alloc: Histogram<u64>,
    dealloc: Histogram<u64>,
}

impl Times {
    fn new() -> Times {
        let histogram = || Histogram::new_with_max(1 << 40, 3).expect("bounds that a histogram can have");
        Times { alloc: histogram(), dealloc: histogram() }
    }

    fn block(&mut self, clock: &Clock, random: &mut Random) -> Block {
        let bits = random.next();
        let most: u32 = if bits & 63 == 0 { 12 } else { 6 };
        let doubling = 8usize << ((bits >> 8) as u32 % most);
        let size = doubling + (bits >> 32) as usize % doubling;
        let layout = black_box(Layout::from_size_align(size, 8).expect("a size that can be allocated"));
        // SAFETY: the size is not zero.
        let (block, ticks) = clock.time(|| unsafe { alloc(layout) });
        let block = NonNull::new(block).expect("out of memory");
        // SAFETY: the block is ours and at least this large.
        unsafe { block.write_bytes(bits as u8, size.min(512)) };
        self.alloc.saturating_record(ticks);
        Block(block, layout)
    }

    fn free(&mut self, clock: &Clock, block: Block) {
        // SAFETY: it was allocated with this layout, and the handle ends here.
        let ((), ticks) = clock.time(|| unsafe { dealloc(block.0.as_ptr(), block.1) });
        self.dealloc.saturating_record(ticks);
    }
}

fn run(row: &Row, clock: &Clock, divisor: usize) -> Times {
    let each = OPERATIONS / divisor / row.threads;
    let barrier = Barrier::new(row.threads);
    let shelves: Vec<std::sync::Mutex<Vec<Block>>> = (0..row.threads).map(|_| Default::default()).collect();
    let mut all = Times::new();
    let work = |number: usize| {
        let mut random = Random::new(number as u64 + 1);
        // What fills the table is not counted.
        let mut filling = Times::new();
        let blocks = (0..BLOCKS / row.threads).map(|_| filling.block(clock, &mut random));
        let mut blocks: Vec<Block> = blocks.collect();
        drop(filling);
        let mut times = Times::new();
        barrier.wait();
        for turn in 1..=each {
            let at = random.next() as usize % blocks.len();
            let block = times.block(clock, &mut random);
            let old = std::mem::replace(&mut blocks[at], block);
            times.free(clock, old);
            if row.exchanged && turn % TURN == 0 {
                let shelf = |number: usize| shelves[number].lock().expect("no thread has panicked");
                *shelf(number) = std::mem::take(&mut blocks);
                barrier.wait();
                blocks = std::mem::take(&mut *shelf((number + 1) % row.threads));
                barrier.wait();
            }
        }
        let mut emptying = Times::new();
        blocks.into_iter().for_each(|block| emptying.free(clock, block));
        times
    };
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..row.threads).map(|number| scope.spawn(move || work(number))).collect();
        for thread in threads {
            let times = thread.join().expect("a thread");
            all.alloc.add(times.alloc).expect("bounds that are the same");
            all.dealloc.add(times.dealloc).expect("bounds that are the same");
        }
    });
    all
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["--list"] {
        ROWS.iter().for_each(|row| println!("{}", json!({ "row": row.name, "operation": row.what })));
        return ExitCode::SUCCESS;
    }
    let smoke = args.iter().position(|arg| arg == "--smoke").map(|at| args.remove(at)).is_some();
    let row = match args.as_slice() {
        [name] => ROWS.iter().find(|row| row.name == name),
        _ => None,
    };
    let Some(row) = row else {
        eprintln!("usage: latency [--smoke] [--list] ROW");
        return ExitCode::from(2);
    };
    let clock = Clock::new();
    let times = run(row, &clock, if smoke { SMOKE } else { 1 });
    let mut line = json!({
        "row": row.name,
        "allocator": allocator::NAME,
        "mode": allocator::mode(),
        "operations": times.alloc.len(),
        "subtracted_ns": clock.ns(clock.overhead),
    });
    for (name, histogram) in [("alloc", &times.alloc), ("dealloc", &times.dealloc)] {
        for (quantile, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)] {
            line[format!("{name}_{quantile}")] = clock.ns(histogram.value_at_quantile(share)).into();
        }
    }
    println!("{line}");
    ExitCode::SUCCESS
}
