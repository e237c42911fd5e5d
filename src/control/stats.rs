//! One snapshot of where the memory is, derived from what the layers know; nothing is counted on fast paths.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::percpu::{self, Mode};
use crate::size_class::{CLASS, block_size};
use crate::slab::{central, transfer};
use crate::zone::{META, mapping, nodes};
use crate::{heap, nolock, sys};

/// Where the heap's memory is, at one moment; all sizes in bytes.
///
/// The parts are read one after the other while the program runs on, so they agree to within what was
/// allocated and freed meanwhile. `resident` is the sum of the four before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Blocks the program holds, rounded up to their size class or to pages.
    pub in_use: usize,
    /// Free blocks in per-CPU (or per-thread) stacks and in batches on their way between CPUs.
    pub percpu_cached: usize,
    /// Free memory behind that: pages of zones and blocks of slabs which have been used and not given back
    /// to the system, and what is left over at the end of slabs.
    pub free_resident: usize,
    /// The allocator's own tables that have memory behind them.
    pub metadata: usize,
    /// All of the above.
    pub resident: usize,
    /// Address space made readable and writable, resident or not.
    pub committed: usize,
    /// Blocks that are mappings of their own, included in `in_use`.
    pub mappings: usize,
    /// Number of zones.
    pub zones: usize,
    /// Times a stack was empty and was filled from behind.
    pub refills: usize,
    /// Times a stack was full and half of it was moved behind.
    pub flushes: usize,
    /// Times a CPU's stacks were emptied by a drain.
    pub drains: usize,
    /// Blocks that [`PcpAlloc::try_alloc_nolock`](crate::PcpAlloc::try_alloc_nolock) handed out.
    pub nolock_hits: usize,
    /// Times it found nothing.
    pub nolock_misses: usize,
    /// Times it found only what it may not take.
    pub nolock_refusals: usize,
    /// Blocks that wait on the list of those which a nolock free had no room for; not in `percpu_cached`.
    pub nolock_deferred: usize,
    /// How threads find their stacks.
    pub mode: Mode,
}

pub(crate) fn stats() -> Stats {
    let mut stats = Stats {
        in_use: 0,
        percpu_cached: 0,
        free_resident: 0,
        metadata: 0,
        resident: 0,
        committed: 0,
        mappings: mapping::MAPPINGS.load(Ordering::Relaxed),
        zones: 0,
        refills: 0,
        flushes: 0,
        drains: 0,
        nolock_hits: 0,
        nolock_misses: 0,
        nolock_refusals: 0,
        nolock_deferred: nolock::deferred(),
        mode: percpu::mode(),
    };
    if !heap::is_up() {
        return stats;
    }
    let mapped = mapping::MAPPED.load(Ordering::Relaxed);
    let mut out = mapped;
    stats.committed = mapped;
    for (number, node) in nodes().iter().enumerate() {
        out += node.run_bytes.load(Ordering::Relaxed);
        for zone in node.zones() {
            stats.zones += 1;
            stats.committed += zone.committed_bytes();
            stats.free_resident += zone.free_warm_bytes();
            let (start, len) = zone.metadata();
            stats.metadata += sys::resident_bytes(start, len);
        }
        for (class, fixed) in CLASS.iter().enumerate() {
            let counts = central(number, class).counts();
            out += counts.out * block_size(class);
            stats.free_resident += (counts.free - counts.untouched) * block_size(class);
            stats.free_resident += counts.slabs * fixed.slack();
        }
    }
    stats.percpu_cached = percpu::cached_bytes() + transfer::bytes();
    stats.in_use = out.saturating_sub(stats.percpu_cached);
    let mut spanned = 0;
    for region in percpu::regions() {
        let (start, len) = region.memory();
        // Counted below as handed out by META, though most of a region is never touched.
        spanned += len;
        stats.metadata += sys::resident_bytes(start, len);
        let counters = region.counters();
        stats.refills += counters.refills.load(Ordering::Relaxed);
        stats.flushes += counters.flushes.load(Ordering::Relaxed);
        stats.drains += counters.drains.load(Ordering::Relaxed);
        stats.nolock_hits += counters.nolock_hits.load(Ordering::Relaxed);
        stats.nolock_misses += counters.nolock_misses.load(Ordering::Relaxed);
        stats.nolock_refusals += counters.nolock_refusals.load(Ordering::Relaxed);
    }
    // Asked last, so that it covers every region seen above, whoever makes others meanwhile.
    stats.metadata += META.bytes() - spanned;
    stats.resident = stats.in_use + stats.percpu_cached + stats.free_resident + stats.metadata;
    stats
}

impl Stats {
    /// Writes the snapshot in Prometheus' text format, metrics named `pcpalloc_…`; allocates nothing itself.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_prometheus(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let gauges = [
            ("in_use_bytes", "Blocks the program holds.", self.in_use),
            ("percpu_cached_bytes", "Free blocks in per-CPU stacks and batches.", self.percpu_cached),
            ("free_resident_bytes", "Free memory not given back to the system.", self.free_resident),
            ("metadata_bytes", "The allocator's own tables.", self.metadata),
            ("resident_bytes", "All of the above.", self.resident),
            ("committed_bytes", "Address space made usable.", self.committed),
            ("mappings", "Blocks that are mappings of their own.", self.mappings),
            ("zones", "Zones.", self.zones),
            ("nolock_deferred", "Blocks on the nolock free list.", self.nolock_deferred),
        ];
        let counters = [
            ("refills_total", "Empty stacks filled.", self.refills),
            ("flushes_total", "Full stacks halved.", self.flushes),
            ("drains_total", "CPUs drained.", self.drains),
            ("nolock_hits_total", "Nolock allocations served.", self.nolock_hits),
            ("nolock_misses_total", "Nolock allocations that found nothing.", self.nolock_misses),
            ("nolock_refusals_total", "Nolock allocations refused by the floor.", self.nolock_refusals),
        ];
        for (rows, kind) in [(&gauges[..], "gauge"), (&counters[..], "counter")] {
            for (name, help, value) in rows {
                writeln!(out, "# HELP pcpalloc_{name} {help}\n# TYPE pcpalloc_{name} {kind}\npcpalloc_{name} {value}")?;
            }
        }
        Ok(())
    }
}

/// Bytes for people.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n < 10 << 10 => write!(f, "{n} B"),
            n if n < 10 << 20 => write!(f, "{} KiB", n >> 10),
            n => write!(f, "{} MiB", n >> 20),
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { in_use, percpu_cached, free_resident, metadata, resident, .. } = *self;
        writeln!(
            f,
            "resident       {:>10}  of {} committed in {} zones",
            Size(resident),
            Size(self.committed),
            self.zones
        )?;
        writeln!(f, "  in use       {:>10}  {} blocks are mappings of their own", Size(in_use), self.mappings)?;
        writeln!(f, "  cached       {:>10}  {:?}", Size(percpu_cached), self.mode)?;
        writeln!(f, "  free         {:>10}", Size(free_resident))?;
        writeln!(f, "  metadata     {:>10}", Size(metadata))?;
        writeln!(f, "slow paths     {} refills, {} flushes, {} drains", self.refills, self.flushes, self.drains)?;
        let Stats { nolock_hits, nolock_misses, nolock_refusals, nolock_deferred, .. } = *self;
        write!(f, "nolock         {nolock_hits} hits, {nolock_misses} misses, {nolock_refusals} refusals, ")?;
        write!(f, "{nolock_deferred} deferred")
    }
}
