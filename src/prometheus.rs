//! Everything that the heap says of itself, in Prometheus' text format.
//!
//! Names begin with `pcpalloc_`; sizes are in bytes, times in seconds; what only grows ends in `_total`. Labels are
//! numbers of nodes, zones and CPUs, block sizes, marks and names of tags.

use core::fmt::{self, Arguments, Display, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::percpu::{self, Mode, Region};
use crate::rcu;
use crate::size_class::{CLASS, CLASSES, PAGE, block_size};
use crate::slab::counts_on;
use crate::tag::{self, TagStats};
use crate::zone::{COUNTERS, Zone, nodes};
use crate::{Latencies, PcpAlloc, SlowPath, Stats, heap};

/// Metrics, what they are, and how each is read off something that there are several of.
type Fields<T, const N: usize> = [(&'static str, &'static str, fn(T) -> usize); N];

/// Writes metrics, each under its header.
struct Text<'a, W>(&'a mut W);

impl<W: Write> Text<'_, W> {
    fn header(&mut self, name: &str, help: &str) -> fmt::Result {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        writeln!(self.0, "# HELP pcpalloc_{name} {help}\n# TYPE pcpalloc_{name} {kind}")
    }

    /// A metric of one value.
    fn single(&mut self, name: &str, help: &str, value: impl Display) -> fmt::Result {
        self.header(name, help)?;
        writeln!(self.0, "pcpalloc_{name} {value}")
    }

    fn row(&mut self, name: &str, labels: Arguments, value: impl Display) -> fmt::Result {
        writeln!(self.0, "pcpalloc_{name}{{{labels}}} {value}")
    }
}

impl Stats {
    /// Writes the snapshot in Prometheus' text format, metrics named `pcpalloc_…`; allocates nothing itself.
    ///
    /// [`PcpAlloc::write_prometheus`] writes this and the parts that it is made of.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_prometheus(&self, out: &mut impl Write) -> fmt::Result {
        let mut text = Text(out);
        let rows = [
            ("in_use_bytes", "Blocks the program holds.", self.in_use),
            ("deferred_bytes", "Bytes of blocks that wait for a grace period; part of what is in use.", self.deferred),
            ("percpu_cached_bytes", "Free blocks in per-CPU stacks and batches.", self.percpu_cached),
            ("free_resident_bytes", "Free memory not given back to the system.", self.free_resident),
            ("metadata_bytes", "The allocator's own tables.", self.metadata),
            (
                "resident_bytes",
                "Blocks in use, free ones that are cached, free memory and tables, together.",
                self.resident,
            ),
            ("committed_bytes", "Address space made usable.", self.committed),
            ("mappings", "Blocks that are mappings of their own.", self.mappings),
            ("zones", "Zones.", self.zones),
            ("nolock_deferred", "Blocks on the nolock free list.", self.nolock_deferred),
            ("refills_total", "Empty stacks filled.", self.refills),
            ("flushes_total", "Full stacks halved.", self.flushes),
            ("drains_total", "CPUs drained.", self.drains),
            ("sent_home_total", "Small blocks freed on another CPU and given back to their own.", self.sent_home),
            ("nolock_hits_total", "Nolock allocations served.", self.nolock_hits),
            ("nolock_misses_total", "Nolock allocations that found nothing.", self.nolock_misses),
            ("nolock_refusals_total", "Nolock allocations refused by the floor.", self.nolock_refusals),
        ];
        rows.iter().try_for_each(|(name, help, value)| text.single(name, help, value))?;
        text.header("shards", "Groups of CPUs on a node that have slabs of their own.")?;
        for (blocks, shards) in [("large", self.shards), ("small", self.small_shards)] {
            text.row("shards", format_args!("blocks=\"{blocks}\""), shards)?;
        }
        text.header("mode_info", "How threads find their stacks, and why.")?;
        let (mode, reason, fence) = (self.mode.name(), self.mode_reason, self.cpu_fence);
        text.row("mode_info", format_args!("mode=\"{mode}\",reason=\"{reason}\",cpu_fence=\"{fence}\""), 1)
    }
}

impl PcpAlloc {
    /// Writes everything there is to know in Prometheus' text format: [`PcpAlloc::stats`], marks and limit, zones, size
    /// classes, CPUs, the default domain of [`rcu`], [`tag`]s, and
    /// the histograms of [`PcpAlloc::latencies`] if there are any.
    ///
    /// Takes every lock of the allocator once or twice, one after the other: under a millisecond on a small machine.
    /// Allocates nothing itself; what a `String` takes to grow is in the figures. Some 10 KiB of text.
    ///
    /// ```
    /// let mut text = String::new();
    /// pcpalloc::PcpAlloc::new().write_prometheus(&mut text)?;
    /// assert!(text.contains("# TYPE pcpalloc_in_use_bytes gauge"));
    /// # Ok::<(), std::fmt::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of the writer.
    #[doc(alias = "metrics")]
    pub fn write_prometheus(&self, out: &mut impl Write) -> fmt::Result {
        self.stats().write_prometheus(out)?;
        if !heap::is_up() {
            return Ok(());
        }
        let text = &mut Text(out);
        self.write_marks(text)?;
        write_counters(text)?;
        write_zones(text)?;
        write_classes(text)?;
        write_cpus(text)?;
        write_rcu(text)?;
        write_tags(text)?;
        write_latencies(text, &self.latencies())
    }

    fn write_marks(&self, text: &mut Text<impl Write>) -> fmt::Result {
        let marks = self.watermarks();
        text.header("watermark_bytes", "Marks over free resident memory.")?;
        for (mark, bytes) in [("min", marks.min), ("low", marks.low), ("high", marks.high)] {
            text.row("watermark_bytes", format_args!("mark=\"{mark}\""), bytes)?;
        }
        match self.limit() {
            Some(limit) => text.single("limit_bytes", "Most that may be resident.", limit),
            None => Ok(()),
        }
    }
}

fn write_counters(text: &mut Text<impl Write>) -> fmt::Result {
    let rows = [
        ("zone_growths_total", "Times a zone was made larger.", &COUNTERS.growths),
        ("populated_bytes_total", "Memory given to free pages ahead of use.", &COUNTERS.populated),
        ("released_bytes_total", "Memory given back to the system.", &COUNTERS.released),
        ("refaulted_bytes_total", "Memory above a mark that was given back and taken again soon.", &COUNTERS.refaulted),
        ("stalls_total", "Times everything cached was brought together, nothing else being left.", &COUNTERS.stalls),
        ("reliefs_total", "Times free memory was given back because memory was short.", &COUNTERS.reliefs),
    ];
    // Relaxed: statistics.
    rows.iter().try_for_each(|(name, help, count)| text.single(name, help, count.load(Ordering::Relaxed)))
}

fn write_zones(text: &mut Text<impl Write>) -> fmt::Result {
    let fields: Fields<&'static Zone, 4> = [
        ("zone_spanned_bytes", "Address space of a zone.", |zone| zone.spanned_pages() as usize * PAGE),
        ("zone_committed_bytes", "What of a zone's address space has been made usable.", |zone| zone.committed_bytes()),
        ("zone_free_bytes", "Free pages.", |zone| zone.free_pages().0 as usize * PAGE),
        ("zone_free_resident_bytes", "Free pages with memory behind them.", |zone| zone.free_warm_bytes()),
    ];
    for (name, help, field) in fields {
        text.header(name, help)?;
        for (node, zones) in nodes().iter().enumerate() {
            for (index, zone) in zones.zones().enumerate() {
                text.row(name, format_args!("node=\"{node}\",zone=\"{index}\""), field(zone))?;
            }
        }
    }
    Ok(())
}

/// Classes that have anything; a block on a CPU's stack counts as active, as in `/proc/slabinfo`.
fn write_classes(text: &mut Text<impl Write>) -> fmt::Result {
    let counts = |class| {
        let of_nodes = (0..nodes().len()).map(move |node| counts_on(node, class));
        of_nodes.fold((0, 0, 0), |sum, counts| {
            let slabs = if CLASS[class].is_run() { counts.out } else { counts.slabs };
            (sum.0 + counts.out, sum.1 + counts.free, sum.2 + slabs)
        })
    };
    let fields: Fields<(usize, usize, usize), 3> = [
        ("class_active_blocks", "Blocks that slabs have handed out, those on stacks included.", |counts| counts.0),
        ("class_free_blocks", "Free blocks in slabs.", |counts| counts.1),
        ("class_slabs", "Runs of pages.", |counts| counts.2),
    ];
    for (name, help, field) in fields {
        text.header(name, help)?;
        for class in 0..CLASSES {
            let counts = counts(class);
            if counts.2 > 0 {
                text.row(name, format_args!("size=\"{}\"", block_size(class)), field(counts))?;
            }
        }
    }
    Ok(())
}

/// The stacks of every CPU that has any; where threads have them, all together, as of no CPU.
fn write_cpus(text: &mut Text<impl Write>) -> fmt::Result {
    fn count(counter: &AtomicUsize) -> usize {
        // Relaxed: a statistic.
        counter.load(Ordering::Relaxed)
    }
    let fields: Fields<&'static Region, 10> = [
        ("cpu_cached_bytes", "Bytes of the blocks on a CPU's stacks.", |region| region.cached_now()),
        ("cpu_cached_blocks", "Blocks on a CPU's stacks, reserves aside.", |region| region.blocks().0),
        ("cpu_capacity_blocks", "Blocks that a CPU's stacks have room for.", |region| region.blocks().1),
        ("cpu_refills_total", "Allocations that found a stack empty.", |region| count(&region.counters().refills)),
        ("cpu_flushes_total", "Frees that found a stack full.", |region| count(&region.counters().flushes)),
        ("cpu_drains_total", "Times the stacks were drained.", |region| count(&region.counters().drains)),
        ("cpu_sent_home_total", "Small blocks freed here and given back to another CPU.", |region| {
            count(&region.counters().sent_home)
        }),
        ("cpu_nolock_hits_total", "Nolock allocations served.", |region| count(&region.counters().nolock_hits)),
        ("cpu_nolock_misses_total", "Nolock allocations that found nothing.", |region| {
            count(&region.counters().nolock_misses)
        }),
        ("cpu_nolock_refusals_total", "Nolock allocations refused by the floor.", |region| {
            count(&region.counters().nolock_refusals)
        }),
    ];
    for (name, help, field) in fields {
        text.header(name, help)?;
        if percpu::mode() == Mode::PerThread {
            text.row(name, format_args!("cpu=\"\""), percpu::regions().map(field).sum::<usize>())?;
        }
        for (cpu, region) in percpu::cpu_regions() {
            text.row(name, format_args!("cpu=\"{cpu}\""), field(region))?;
        }
    }
    Ok(())
}

/// A histogram for each slow path that has been measured.
fn write_latencies(text: &mut Text<impl Write>, latencies: &Latencies) -> fmt::Result {
    const NAME: &str = "pcpalloc_slow_path_seconds";
    let measured = || SlowPath::ALL.into_iter().filter(|&path| latencies.of(path).count() > 0);
    if measured().next().is_none() {
        return Ok(());
    }
    writeln!(text.0, "# HELP {NAME} What slow paths took.\n# TYPE {NAME} histogram")?;
    for path in measured() {
        let (histogram, path) = (latencies.of(path), path.name());
        let last = histogram.cumulative().count() - 1;
        for (bound, count) in histogram.cumulative().take(last) {
            writeln!(text.0, "{NAME}_bucket{{path=\"{path}\",le=\"{}\"}} {count}", bound.as_secs_f64())?;
        }
        // Of one reading, so that it agrees with the buckets.
        let (sum, count) = (histogram.total().as_secs_f64(), histogram.count());
        writeln!(text.0, "{NAME}_bucket{{path=\"{path}\",le=\"+Inf\"}} {count}")?;
        writeln!(text.0, "{NAME}_sum{{path=\"{path}\"}} {sum}\n{NAME}_count{{path=\"{path}\"}} {count}")?;
    }
    Ok(())
}

fn write_tags(text: &mut Text<impl Write>) -> fmt::Result {
    let fields: Fields<TagStats, 4> = [
        ("tag_bytes", "Bytes of the blocks that are out under a tag.", |tag| tag.bytes),
        ("tag_blocks", "Blocks that are out under a tag.", |tag| tag.blocks),
        ("tag_allocated_bytes_total", "Bytes allocated under a tag.", |tag| tag.allocated_bytes),
        ("tag_allocated_blocks_total", "Blocks allocated under a tag.", |tag| tag.allocated_blocks),
    ];
    for (name, help, field) in fields {
        text.header(name, help)?;
        for tag in tag::stats() {
            text.row(name, format_args!("tag=\"{}\"", Escaped(tag.name)), field(tag))?;
        }
    }
    Ok(())
}

/// A label's value, as the format wants it.
struct Escaped(&'static str);

impl Display for Escaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

fn write_rcu(text: &mut Text<impl Write>) -> fmt::Result {
    let (stats, marks) = (rcu::stats(), rcu::watermarks());
    text.header("rcu_watermark_bytes", "Marks over what waits for a grace period.")?;
    for (mark, bytes) in [("low", marks.low), ("high", marks.high)] {
        text.row("rcu_watermark_bytes", format_args!("mark=\"{mark}\""), bytes)?;
    }
    let rows = [
        ("rcu_pending", "Objects that wait for a grace period, or to be freed after it.", stats.pending_pointers),
        ("rcu_pending_bytes", "Bytes of what waits for a grace period.", stats.pending_bytes),
        ("rcu_pages", "Pages of pointers in use or spare.", stats.blocks),
        ("rcu_freed_total", "Blocks freed after a grace period.", stats.freed),
        ("rcu_called_total", "Calls made after a grace period.", stats.called),
        ("rcu_grace_periods_total", "Grace periods that have ended.", stats.grace_periods as usize),
        ("rcu_expedited_total", "Waits that were expedited.", stats.expedited as usize),
        ("rcu_waits_total", "Times a caller waited at the high mark.", stats.waits),
        ("rcu_fallbacks_total", "Times a page was not to be had without waiting.", stats.fallbacks),
        ("rcu_chained_total", "Objects chained through their own heads.", stats.chained),
        ("rcu_leaked_total", "Blocks lost for want of memory.", stats.leaked),
        ("rcu_stalls_total", "Times a reader held up a grace period for long.", stats.stalls as usize),
    ];
    rows.iter().try_for_each(|(name, help, value)| text.single(name, help, value))
}
