//! One snapshot of where the memory is, derived from what the layers know; nothing is counted on fast paths.

use core::fmt;
use core::sync::atomic::Ordering;

use crate::percpu::{self, Mode, ModeReason};
use crate::size_class::{CLASS, block_size};
use crate::slab::shard::Division;
use crate::slab::{counts_on, transfer};
use crate::zone::{COUNTERS, META, mapping, mapping_cache, nodes};
use crate::{checked, heap, nolock, sys};

/// Where the heap's memory is, at one moment; all sizes in bytes.
///
/// The parts are read one after the other while the program runs on, so they agree to within what was
/// allocated and freed meanwhile. `resident` is the sum of in use, cached, free and metadata. Counters count from the start of the
/// process, and are not reset.
///
/// Its `Display` is for people, nine lines; [`Stats::write_prometheus`] for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Blocks the program holds, rounded up to their size class or to pages.
    #[doc(alias = "stats.allocated")]
    pub in_use: usize,
    /// Of these, bytes that wait for a grace period in the default domain of [`rcu`](crate::rcu). (What a
    /// [`call`](crate::rcu::call) will free is not known, and not counted.)
    pub deferred: usize,
    /// Free blocks in per-CPU (or per-thread) stacks and in batches on their way between CPUs.
    pub percpu_cached: usize,
    /// Free memory behind that: pages of zones and blocks of slabs which have been used and not given back
    /// to the system, what is left over at the end of slabs, and freed mappings that are kept.
    pub free_resident: usize,
    /// The allocator's own tables that have memory behind them.
    #[doc(alias = "stats.metadata")]
    pub metadata: usize,
    /// The sum of `in_use`, `percpu_cached`, `free_resident` and `metadata`.
    #[doc(alias = "stats.resident")]
    pub resident: usize,
    /// Address space made readable and writable, resident or not.
    #[doc(alias = "stats.mapped")]
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
    /// Blocks of less than a cache line that had come to another CPU with their thread and, freed there, went back to where
    /// their neighbours are in use. Every CPU looks for such now and then.
    pub sent_home: usize,
    /// Blocks that [`PcpAlloc::try_alloc_nolock`](crate::PcpAlloc::try_alloc_nolock) handed out.
    pub nolock_hits: usize,
    /// Times it found nothing.
    pub nolock_misses: usize,
    /// Times it found only what it may not take.
    pub nolock_refusals: usize,
    /// Blocks that wait on the list of those which a nolock free had no room for; not in `percpu_cached`.
    pub nolock_deferred: usize,
    /// Times a zone was made larger.
    pub growths: usize,
    /// Bytes given memory ahead of use, in one call where faults would have taken one a page.
    pub populated: usize,
    /// Bytes given back to the system.
    pub released: usize,
    /// How threads find their stacks.
    pub mode: Mode,
    /// Why they find them that way.
    pub mode_reason: ModeReason,
    /// Groups of CPUs on a node that have slabs of their own: [`Config::shards`](crate::Config::shards).
    pub shards: usize,
    /// The same for blocks of up to two cache lines.
    pub small_shards: usize,
    /// Whether the kernel has the fence by which any thread stops the stacks of another CPU (`membarrier`, Linux 5.10).
    /// Without, a drain empties the caller's own CPU and says of the others that it could not reach them.
    pub cpu_fence: bool,
}

pub(crate) fn stats() -> Stats {
    let mut stats = Stats {
        in_use: 0,
        deferred: super::deferred::deferred_bytes(),
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
        sent_home: 0,
        nolock_hits: 0,
        nolock_misses: 0,
        nolock_refusals: 0,
        nolock_deferred: nolock::deferred(),
        growths: COUNTERS.growths.load(Ordering::Relaxed),
        populated: COUNTERS.populated.load(Ordering::Relaxed),
        released: COUNTERS.released.load(Ordering::Relaxed),
        mode: percpu::mode(),
        mode_reason: percpu::mode_reason(),
        shards: Division::Large.per_node(),
        small_shards: Division::Small.per_node(),
        cpu_fence: percpu::fence_available(),
    };
    if !heap::is_up() {
        return stats;
    }
    let mut out = mapping_cache::in_use();
    stats.committed = mapping_cache::MAPPED.load(Ordering::Relaxed);
    stats.free_resident = mapping_cache::resident_bytes();
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
            let counts = counts_on(number, class);
            out += counts.out * block_size(class);
            stats.free_resident += counts.idle_bytes(class);
            stats.free_resident += counts.slabs * fixed.slack();
        }
    }
    stats.percpu_cached = percpu::cached_bytes() + transfer::bytes() + checked::quarantined_bytes();
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
        stats.sent_home += counters.sent_home.load(Ordering::Relaxed);
        stats.nolock_hits += counters.nolock_hits.load(Ordering::Relaxed);
        stats.nolock_misses += counters.nolock_misses.load(Ordering::Relaxed);
        stats.nolock_refusals += counters.nolock_refusals.load(Ordering::Relaxed);
    }
    // Asked last, so that it covers every region seen above, whoever makes others meanwhile.
    stats.metadata += META.bytes() - spanned;
    stats.resident = stats.in_use + stats.percpu_cached + stats.free_resident + stats.metadata;
    stats
}

/// Bytes for people.
pub(crate) struct Size(pub(crate) usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            n if n < 10 << 10 => (n, "B"),
            n if n < 10 << 20 => (n >> 10, "KiB"),
            n => (n >> 20, "MiB"),
        };
        // To the right, without a string to hold it.
        let len = number.checked_ilog10().unwrap_or(0) as usize + 2 + unit.len();
        write!(f, "{:pad$}{number} {unit}", "", pad = f.width().unwrap_or(0).saturating_sub(len))
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
        let (mappings, deferred) = (self.mappings, Size(self.deferred));
        writeln!(
            f,
            "  in use       {:>10}  {mappings} blocks are mappings of their own, {deferred} deferred",
            Size(in_use)
        )?;
        writeln!(f, "  cached       {:>10}", Size(percpu_cached))?;
        writeln!(f, "  free         {:>10}", Size(free_resident))?;
        writeln!(f, "  metadata     {:>10}", Size(metadata))?;
        let fence = if self.cpu_fence { "" } else { "; no fence for other CPUs" };
        let Stats { shards, small_shards, sent_home, .. } = *self;
        writeln!(f, "mode           {}: {}{fence}", self.mode.name(), self.mode_reason)?;
        write!(f, "shards         {shards} on a node, {small_shards} of blocks up to 128 bytes; ")?;
        writeln!(f, "{sent_home} blocks sent home")?;
        writeln!(f, "slow paths     {} refills, {} flushes, {} drains", self.refills, self.flushes, self.drains)?;
        let (populated, released) = (Size(self.populated), Size(self.released));
        writeln!(f, "the system     {} growths, {populated} populated, {released} given back", self.growths)?;
        let Stats { nolock_hits, nolock_misses, nolock_refusals, nolock_deferred, .. } = *self;
        write!(f, "nolock         {nolock_hits} hits, {nolock_misses} misses, {nolock_refusals} refusals, ")?;
        write!(f, "{nolock_deferred} deferred")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stand_in_a_column() {
        for (bytes, text) in
            [(0, "       0 B"), (816, "     816 B"), (66 << 10, "    66 KiB"), (12345 << 20, " 12345 MiB")]
        {
            assert_eq!(format!("{:>10}", Size(bytes)), text);
        }
        assert_eq!(Size(10 << 10).to_string(), "10 KiB");
    }
}
