//! What the tests of the profiler share: a program of which everything is known, and a reader of its profiles.

// Every program uses a part of this.
#![allow(dead_code)]

use std::alloc::{Layout, alloc, dealloc, realloc};
use std::collections::HashMap;
use std::hint::black_box;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pcpalloc::PcpAlloc;
use pcpalloc::profile::{Profile, View};
use prost::Message;

/// What the generator of `prost` makes of Google's `profile.proto`.
#[allow(missing_docs, clippy::all)]
#[rustfmt::skip]
pub mod perftools {
    include!("perftools.profiles.rs");
}

/// There is one profiler in a process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block of the program.
pub struct Held(pub *mut u8, pub Layout);

// SAFETY: a block is its holder's alone.
unsafe impl Send for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { dealloc(self.0, self.1) }
    }
}

fn take(size: usize) -> Held {
    let layout = Layout::from_size_align(size, 8).expect("a layout");
    // SAFETY: the size is not zero.
    let block = black_box(unsafe { alloc(layout) });
    assert!(!block.is_null(), "there is memory");
    Held(block, layout)
}

/// Sites by name, and what each allocates: blocks that stay, of a size.
macro_rules! sites {
    ($($name:ident)*) => {
        $(#[inline(never)]
        fn $name(count: usize, size: usize, stay: bool, held: &mut Vec<Held>) {
            for _ in 0..count {
                let block = take(size);
                if stay {
                    held.push(block);
                }
            }
        })*
    };
}

sites! { known_tiny known_small known_page known_large known_huge known_pairs known_large_pairs }

/// A vector that grows by doubling: every step is a resize, from 64 bytes to 512 KiB.
#[inline(never)]
fn known_growth(count: usize) {
    for _ in 0..count {
        let mut layout = Layout::from_size_align(64, 8).expect("a layout");
        // SAFETY: the block is resized and freed with the layout that it has.
        unsafe {
            let mut block = black_box(alloc(layout));
            while layout.size() < 512 << 10 {
                block = black_box(realloc(block, layout, 2 * layout.size()));
                layout = Layout::from_size_align_unchecked(2 * layout.size(), 8);
            }
            dealloc(block, layout);
        }
    }
}

/// What a site has allocated and still holds, by size of blocks.
#[derive(Clone, Debug, Default)]
pub struct Exact {
    pub allocated: HashMap<usize, u64>,
    pub live: HashMap<usize, u64>,
}

/// Runs the program: what it did, and what it holds.
pub fn run(rounds: usize) -> (HashMap<&'static str, Exact>, Vec<Held>) {
    let mut held = Vec::with_capacity(100_000 * rounds);
    let mut exact: HashMap<&'static str, Exact> = HashMap::new();
    let mut note = |name, size: usize, count: usize, stay: bool| {
        let size = PcpAlloc::new().usable_size(Layout::from_size_align(size, 8).expect("a layout"));
        let exact = exact.entry(name).or_default();
        *exact.allocated.entry(size).or_default() += count as u64;
        if stay {
            *exact.live.entry(size).or_default() += count as u64;
        }
    };
    type Place = fn(usize, usize, bool, &mut Vec<Held>);
    let places: [(&str, Place, usize, usize, bool); 7] = [
        ("known_tiny", known_tiny, 30_000, 16, true),
        ("known_small", known_small, 10_000, 100, true),
        ("known_page", known_page, 600, 4000, true),
        ("known_large", known_large, 60, 70_000, true),
        ("known_huge", known_huge, 12, 1 << 20, true),
        ("known_pairs", known_pairs, 40_000, 250, false),
        ("known_large_pairs", known_large_pairs, 400, 200_000, false),
    ];
    for (name, _, count, size, stay) in places {
        note(name, size, count * rounds, stay);
    }
    let mut size = 64;
    while size <= 512 << 10 {
        note("known_growth", size, 40 * rounds, false);
        size *= 2;
    }
    // Half of it by a thread of its own, which frees nothing of what stays.
    let mut others = Vec::with_capacity(50_000 * rounds);
    std::thread::scope(|scope| {
        let others = &mut others;
        scope.spawn(move || {
            for (_, place, count, size, stay) in places {
                place(count * rounds / 2, size, stay, others);
            }
            known_growth(20 * rounds);
        });
        for (_, place, count, size, stay) in places {
            place(count * rounds - count * rounds / 2, size, stay, &mut held);
        }
        known_growth(40 * rounds - 20 * rounds);
    });
    held.append(&mut others);
    (exact, held)
}

/// A profile as a reader of pprof's format sees it.
pub struct Read_(pub perftools::Profile);

impl Read_ {
    pub fn of(profile: &Profile) -> Read_ {
        let mut file = Vec::new();
        profile.write_pprof(&mut file).expect("a vector takes everything");
        Read_::of_file(&file)
    }

    pub fn of_file(file: &[u8]) -> Read_ {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("gzip");
        Read_(perftools::Profile::decode(&bytes[..]).expect("the format"))
    }

    pub fn string(&self, number: i64) -> &str {
        &self.0.string_table[number as usize]
    }

    /// The functions of a sample, the innermost first.
    pub fn functions(&self, sample: &perftools::Sample) -> Vec<&str> {
        let location = |id: &u64| self.0.location.iter().find(|location| location.id == *id).expect("is there");
        let function = |id: u64| self.0.function.iter().find(|function| function.id == id).expect("is there");
        let lines = sample.location_id.iter().flat_map(|id| &location(id).line);
        lines.map(|line| self.string(function(line.function_id).name)).collect()
    }

    /// Objects and bytes of a view, by size, of the samples in which a function is called so.
    pub fn site(&self, name: &str, view: View) -> HashMap<usize, (f64, f64)> {
        let kind = match view {
            View::Allocated => "alloc",
            View::Live => "inuse",
            View::Deferred => "deferred",
            View::Peak => "peak",
        };
        let column = |what: &str| {
            let name = format!("{kind}_{what}");
            self.0.sample_type.iter().position(|value| self.string(value.ty) == name).expect("is there")
        };
        let (objects, bytes) = (column("objects"), column("space"));
        let mut found: HashMap<usize, (f64, f64)> = HashMap::new();
        for sample in &self.0.sample {
            if self.functions(sample).iter().any(|function| function.ends_with(name)) {
                let entry = found.entry(sample.label[0].num as usize).or_default();
                entry.0 += sample.value[objects] as f64;
                entry.1 += sample.value[bytes] as f64;
            }
        }
        found
    }
}

/// The standard deviations of what a profile says of these blocks altogether, by count and by bytes: of n blocks of which
/// each is sampled with probability p and then stands for 1/p, that is n (1 - p) / p, in squares.
pub fn deviations(exact: &HashMap<usize, u64>, interval: usize) -> (f64, f64) {
    let variance = |power: i32| -> f64 {
        let of_size = |(&size, &count): (&usize, &u64)| {
            let p = -(-(size as f64) / interval as f64).exp_m1();
            count as f64 * (size as f64).powi(power) * (1.0 - p) / p
        };
        exact.iter().map(of_size).sum()
    };
    (variance(0).sqrt(), variance(2).sqrt())
}

/// The least and the most that an estimate of `count` blocks of a size may be: the number of samples is binomial, and in
/// all but 10⁻⁹ of cases in here.
pub fn bounds(count: u64, size: usize, interval: usize) -> (f64, f64) {
    let p = -(-(size as f64) / interval as f64).exp_m1();
    let n = count as f64;
    // The logarithm of the probability of k samples, from that of k - 1.
    let mut log = n * (-p).ln_1p();
    let (mut sum, mut least, mut most) = (0.0, None, count);
    for k in 0..=count {
        sum += log.exp();
        if least.is_none() && sum > 5e-10 {
            least = Some(k);
        }
        if sum > 1.0 - 5e-10 {
            most = k;
            break;
        }
        log += ((n - k as f64) / (k as f64 + 1.0)).ln() + (p / (1.0 - p)).ln();
    }
    let rounding = 2.0 + n * 1e-4;
    (least.unwrap_or(count) as f64 / p - rounding, most as f64 / p + rounding)
}
