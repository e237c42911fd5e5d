//! What the crate's own tests see of its inside; no part of what is promised to stay.

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(pcpalloc_twin, miri))))]
pub use crate::percpu::trial;
#[cfg(not(any(pcpalloc_twin, miri)))]
pub use crate::sys::failures;

pub use crate::observe::count as observing;

pub use crate::lock::counted::LockCounts;

use core::sync::atomic::Ordering;

use crate::size_class::{CLASS, CLASSES, PAGE};
use crate::slab::shard::shards_of;
use crate::slab::{central, class_of_tag, counts_on, is_out, transfer};
use crate::tagged_stack::RETRIES;
use crate::zone::{META, TAG_RUN, mapping_cache, nodes};
use crate::{Config, heap, percpu, sys};

/// What `PCPALLOC_CONF` makes of the default settings, and how many of its settings are left out.
pub fn configured_by(conf: &'static core::ffi::CStr) -> (Config, usize) {
    let (mut config, mut problems) = (Config::new(), 0);
    config.override_by(conf, |_| problems += 1);
    (config, problems)
}

/// Has huge pages pass for quick ones, whatever they take, so that mappings which grow get them.
pub fn assume_quick_huge_pages() {
    crate::zone::assume_quick();
}

/// The memory nodes in the order in which memory is asked of them where `node` gives none.
pub fn nodes_from(node: usize) -> Vec<usize> {
    crate::zone::nodes_from(node).collect()
}

/// Bytes of address space in the stacks of one CPU.
pub const STACKS_BYTES: usize = percpu::REGION_BYTES;

/// What happens on slow paths and is shared by CPUs, as often as it has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shared {
    /// The lock of each CPU's stacks.
    pub stacks: LockCounts,
    /// The lock of each class's slabs.
    pub slabs: LockCounts,
    /// The lock of each zone's pages.
    pub zones: LockCounts,
    /// The lock under which a zone grows.
    pub growth: LockCounts,
    /// The lock of the memory for tables.
    pub tables: LockCounts,
    /// Batches put among those on their way from CPU to CPU, and taken: an exchange each.
    pub transfers: u64,
    /// Empty batches taken and put back: an exchange each, all of one word.
    pub spares: u64,
    /// Exchanges that came too late and were tried again.
    pub retries: u64,
}

/// Counts of all locks on slow paths, without taking one.
pub fn shared() -> Shared {
    let sum = |a: LockCounts, b: LockCounts| LockCounts {
        taken: a.taken + b.taken,
        contended: a.contended + b.contended,
        waited: a.waited + b.waited,
    };
    let mut shared = Shared::default();
    if !heap::is_up() {
        return shared;
    }
    for region in percpu::regions() {
        shared.stacks = sum(shared.stacks, region.lock_counts());
    }
    for (number, node) in nodes().iter().enumerate() {
        for class in 0..CLASSES {
            for shard in shards_of(number, class) {
                shared.slabs = sum(shared.slabs, central(shard, class).lock_counts());
            }
        }
        for zone in node.zones() {
            let [pages, growth] = zone.lock_counts();
            shared.zones = sum(shared.zones, pages);
            shared.growth = sum(shared.growth, growth);
        }
    }
    shared.tables = META.lock_counts();
    (shared.transfers, shared.spares) = transfer::changes();
    shared.retries = RETRIES.load(Ordering::Relaxed);
    shared
}

/// Bytes that one CPU more may cost, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuBytes {
    /// The headers of all stacks, and what is known about them.
    pub headers: usize,
    /// The arrays of stacks that are small.
    pub small_arrays: usize,
    /// Address space for the arrays of stacks that have grown.
    pub large_arrays: usize,
    /// Free blocks on all stacks together, at most.
    pub stacked_blocks: usize,
    /// Free blocks on their way between CPUs, at most.
    pub transferred_blocks: usize,
}

/// What one CPU more may cost.
pub const CPU_BYTES: CpuBytes = CpuBytes {
    headers: percpu::CPU_BYTES[0],
    small_arrays: percpu::CPU_BYTES[1],
    large_arrays: percpu::CPU_BYTES[2],
    stacked_blocks: percpu::CPU_BYTES[3],
    transferred_blocks: transfer::TRANSFER_BYTES_PER_CPU[0] + transfer::TRANSFER_BYTES_PER_CPU[1],
};

/// How thoroughly to check, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Counters against each other: microseconds.
    Counters,
    /// Every page of every zone, every list, every stack: some milliseconds for a gigabyte.
    Lists,
    /// Every cached block against its slab, and whether it is cached twice: 100 ns a block besides.
    Blocks,
}

/// Where all of the heap's usable address space is, in bytes. The first is the sum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Made usable.
    pub committed: usize,
    /// The tables of zones.
    pub tables: usize,
    /// Free pages.
    pub free: usize,
    /// Pages of slabs, and those that guard them.
    pub slabs: usize,
    /// Runs that are one block.
    pub runs: usize,
    /// Blocks that are mappings of their own, and freed ones that are kept.
    pub mappings: usize,
}

/// Checks the whole heap; what is wrong, or where everything is.
///
/// Nobody else may use the heap meanwhile. The heap's own worker may, so what does not add up is looked at again.
///
/// # Errors
/// The fact that does not hold.
pub fn check(level: Level) -> Result<Totals, &'static str> {
    if !heap::is_up() {
        return Ok(Totals::default());
    }
    let mut outcome = check_once(level);
    for _ in 0..100 {
        if outcome.is_ok() {
            break;
        }
        std::thread::sleep(core::time::Duration::from_millis(2));
        outcome = check_once(level);
    }
    outcome
}

fn check_once(level: Level) -> Result<Totals, &'static str> {
    let mut totals = Totals::default();
    for (number, node) in nodes().iter().enumerate() {
        let mut slab_pages = [0usize; CLASSES];
        let (mut run_blocks, mut run_pages) = ([0usize; CLASSES], 0);
        let (mut free, mut used) = (0, 0);
        for zone in node.zones() {
            zone.check(level >= Level::Lists, |tag, pages| match class_of_tag(tag) {
                Some(class) if CLASS[class].is_run() => run_blocks[class] += 1,
                Some(class) => slab_pages[class] += pages as usize,
                None if tag == TAG_RUN => run_pages += pages as usize,
                None => {}
            })?;
            let (managed, (zone_free, _)) = (zone.managed_pages() as usize, zone.free_pages());
            free += zone_free as usize;
            used += managed - zone_free as usize;
            totals.committed += zone.committed_bytes();
            totals.tables += zone.committed_bytes() - managed * PAGE;
        }
        let (mut slabs, mut runs) = (0, node.run_bytes.load(Ordering::Relaxed) / PAGE);
        if level >= Level::Lists && runs != run_pages {
            return Err("runs are as large as counted");
        }
        for (class, fixed) in CLASS.iter().enumerate() {
            let counts = counts_on(number, class);
            if fixed.is_run() {
                runs += counts.out * fixed.pages as usize;
                if level >= Level::Lists && counts.out != run_blocks[class] {
                    return Err("there are as many runs of a class as counted");
                }
                continue;
            }
            slabs += counts.slabs * (fixed.pages as usize + crate::slab::guard_pages());
            if level >= Level::Lists {
                for shard in shards_of(number, class) {
                    central(shard, class).check(shard, class)?;
                }
                if counts.slabs * fixed.pages as usize != slab_pages[class] {
                    return Err("there are as many slabs of a class as counted");
                }
            }
        }
        if used != slabs + runs {
            return Err("every page that is not free belongs to a slab or a run");
        }
        totals.free += free * PAGE;
        totals.slabs += slabs * PAGE;
        totals.runs += runs * PAGE;
    }
    totals.mappings = mapping_cache::MAPPED.load(Ordering::Relaxed);
    totals.committed += totals.mappings;
    if totals.committed != totals.tables + totals.free + totals.slabs + totals.runs + totals.mappings {
        return Err("the total of all states is what is committed");
    }
    if level >= Level::Lists {
        check_stacks(level >= Level::Blocks)?;
    }
    Ok(totals)
}

/// The stacks of all regions, and with `blocks` whether what is on them belongs there, once.
fn check_stacks(blocks: bool) -> Result<(), &'static str> {
    let mut count = 0;
    let mut strays = 0;
    for region in percpu::regions() {
        region.check(|class, block| {
            count += 1;
            strays += (blocks && !is_out(class, block)) as usize;
        })?;
    }
    if strays > 0 {
        return Err("a cached block is one that its slab has handed out");
    }
    if !blocks || count == 0 {
        return Ok(());
    }
    // Memory from the system, since the heap is what is looked at.
    let len = sys::round_up(count * size_of::<usize>(), sys::page_size()).ok_or("so many blocks")?;
    let Some(memory) = sys::map(len) else { return Ok(()) };
    // SAFETY: the mapping is as long, zeroed, aligned to a page and nobody else's.
    let seen = unsafe { core::slice::from_raw_parts_mut(memory.cast::<usize>().as_ptr(), count) };
    let mut at = 0;
    let mut outcome = Ok(());
    for region in percpu::regions() {
        outcome = outcome.and(region.check(|_, block| {
            if let Some(slot) = seen.get_mut(at) {
                *slot = block;
                at += 1;
            }
        }));
    }
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1] && pair[0] != 0) {
        outcome = Err("no block is cached twice");
    }
    // SAFETY: the mapping was made above, and the slice is not used any more.
    unsafe { sys::unmap(memory, len) };
    outcome
}

/// Whether a block is one of the sampled ones, that are guarded on both sides.
pub fn is_guarded(block: *const u8) -> bool {
    crate::checked::is_guarded(block as usize)
}

/// Whether there are guarded blocks already, and bad accesses are reported.
pub fn has_guards() -> bool {
    crate::checked::has_guards()
}
