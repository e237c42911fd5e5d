//! The heap in the kernel's words: what `/proc/zoneinfo`, `/proc/buddyinfo`, `/proc/slabinfo` and `/proc/vmstat`
//! say of the machine, of this process's heap, with the same field names where the thing is the same.
//!
//! Each type is a view: it reads the heap while it is being printed, one lock at a time, and allocates nothing.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::heap;
use crate::percpu;
use crate::size_class::{BATCH, CLASS, CLASSES, PAGE, block_size};
use crate::slab::counts_on;
use crate::zone::{COUNTERS, MARKS, mapping_cache, nodes};

/// Zones with their marks, and the stacks of every CPU, as `/proc/zoneinfo`. In pages of 4 KiB; `batch` is that of stacks that
/// have not grown. A view: [`PcpAlloc::zoneinfo`](crate::PcpAlloc::zoneinfo).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ZoneInfo;

/// Free blocks by order, as `/proc/buddyinfo`. A view: [`PcpAlloc::buddyinfo`](crate::PcpAlloc::buddyinfo).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BuddyInfo;

/// Slabs by size class, as `/proc/slabinfo`. Blocks in per-CPU stacks count as active. A view:
/// [`PcpAlloc::slabinfo`](crate::PcpAlloc::slabinfo).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SlabInfo;

/// Counters, as `/proc/vmstat`. In pages of 4 KiB, or events. A view: [`PcpAlloc::vmstat`](crate::PcpAlloc::vmstat).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct VmStat;

impl fmt::Display for ZoneInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |bytes: usize| bytes / PAGE;
        for (number, node) in nodes().iter().enumerate() {
            for (index, zone) in node.zones().enumerate() {
                let (free, warm) = zone.free_pages();
                writeln!(f, "Node {number}, zone {index:>8}")?;
                writeln!(f, "  pages free     {free}")?;
                writeln!(f, "        min      {}", mark(MARKS.min.load(Ordering::Relaxed)))?;
                writeln!(f, "        low      {}", mark(MARKS.low.load(Ordering::Relaxed)))?;
                writeln!(f, "        high     {}", mark(MARKS.high_now()))?;
                writeln!(f, "        spanned  {}", zone.spanned_pages())?;
                writeln!(f, "        present  {}", zone.committed_bytes() / PAGE)?;
                writeln!(f, "        managed  {}", zone.managed_pages())?;
                writeln!(f, "      nr_free_pages {free}")?;
                writeln!(f, "      nr_free_resident {warm}")?;
                writeln!(f, "  start_pfn:         {}", zone.base() / PAGE)?;
            }
            if number == 0 {
                writeln!(f, "  pagesets")?;
                writeln!(f, "    mode: {} ({})", percpu::mode().name(), percpu::mode_reason())?;
                for (cpu, region) in percpu::cpu_regions() {
                    let (count, high) = region.blocks();
                    writeln!(f, "    cpu: {cpu}")?;
                    writeln!(f, "              count: {count}")?;
                    writeln!(f, "              high:  {high}")?;
                    writeln!(f, "              batch: {BATCH}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for BuddyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, node) in nodes().iter().enumerate() {
            for (index, zone) in node.zones().enumerate() {
                write!(f, "Node {number}, zone {index:>8}")?;
                for blocks in zone.free_blocks() {
                    write!(f, " {blocks:>6}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for SlabInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "slabinfo - version: 2.1")?;
        writeln!(
            f,
            "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> \
             <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>"
        )?;
        for class in (0..CLASSES).rev() {
            let (mut active, mut free, mut slabs, mut empty) = (0, 0, 0, 0);
            for node in 0..nodes().len() {
                let counts = counts_on(node, class);
                active += counts.out;
                free += counts.free;
                empty += counts.empty;
                slabs += if CLASS[class].is_run() { counts.out } else { counts.slabs };
            }
            if slabs > 0 {
                let fixed = &CLASS[class];
                writeln!(
                    f,
                    "{:<17} {active:>6} {:>6} {:>6} {:>4} {:>4} : tunables {:>4} {:>4}    0 : slabdata {:>6} \
                     {slabs:>6}      0",
                    Name(class),
                    active + free,
                    block_size(class),
                    fixed.blocks,
                    fixed.pages,
                    fixed.capacity_max,
                    fixed.batch,
                    slabs - empty,
                )?;
            }
        }
        Ok(())
    }
}

/// `kmalloc`'s way to name a size.
struct Name(usize);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = block_size(self.0);
        // Padded as a whole, without a string to hold it.
        let (number, unit) = if size.is_multiple_of(1024) { (size / 1024, "k") } else { (size, "") };
        let digits = number.ilog10() as usize + 1 + unit.len();
        write!(f, "alloc-{number}{unit}{:pad$}", "", pad = f.width().unwrap_or(0).saturating_sub(6 + digits))
    }
}

impl fmt::Display for VmStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !heap::is_up() {
            return Ok(());
        }
        let stats = super::stats();
        let (mut free, mut slab) = (0, 0);
        for (number, node) in nodes().iter().enumerate() {
            free += node.zones().map(|zone| zone.free_pages().0 as usize).sum::<usize>();
            slab += (0..CLASSES)
                .filter(|&class| !CLASS[class].is_run())
                .map(|class| counts_on(number, class).slabs * CLASS[class].pages as usize)
                .sum::<usize>();
        }
        // Relaxed: statistics.
        let count = |counter: &core::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
        let rows = [
            ("nr_free_pages", free),
            ("nr_free_resident", stats.free_resident / PAGE),
            ("nr_slab_unreclaimable", slab),
            ("nr_mapped", mapping_cache::in_use() / PAGE),
            ("nr_mapped_free", mapping_cache::bytes() / PAGE),
            ("pcp_refill", stats.refills),
            ("pcp_flush", stats.flushes),
            ("pcp_drain", stats.drains),
            ("pcp_sent_home", stats.sent_home),
            ("nolock_hit", stats.nolock_hits),
            ("nolock_miss", stats.nolock_misses),
            ("nolock_floor", stats.nolock_refusals),
            ("zone_grow", count(&COUNTERS.growths)),
            ("pgpopulate", count(&COUNTERS.populated) / PAGE),
            ("mapping_reuse", count(&COUNTERS.reused)),
            ("pgrelease", count(&COUNTERS.released) / PAGE),
            ("workingset_refault", count(&COUNTERS.refaulted) / PAGE),
            ("allocstall", count(&COUNTERS.stalls)),
            ("relief", count(&COUNTERS.reliefs)),
        ];
        rows.iter().try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
    }
}
