//! What the heap says in Prometheus' words, read by a parser of another crate; how long slow paths take.
#![cfg(not(any(miri, pcpalloc_twin)))]

mod common;

use std::collections::HashMap;
use std::sync::Mutex;

use common::{HEAP, MIB, on_cpu};
use pcpalloc::{Drain, Mode, PcpAlloc, SlowPath, rcu};
use prometheus_parse::{Sample, Scrape, Value};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// One test at a time: they look at the heap's figures.
static ALONE: Mutex<()> = Mutex::new(());

fn scrape() -> (String, Vec<Sample>) {
    let mut text = String::with_capacity(64 << 10);
    HEAP.write_prometheus(&mut text).expect("a string takes everything");
    let samples = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("it can be read").samples;
    (text, samples)
}

fn number(sample: &Sample) -> f64 {
    match sample.value {
        Value::Counter(value) | Value::Gauge(value) => value,
        _ => panic!("{sample:?} is a number"),
    }
}

fn sum(samples: &[Sample], name: &str) -> f64 {
    let mut rows = samples.iter().filter(|sample| sample.metric == name).map(number).peekable();
    assert!(rows.peek().is_some(), "{name} is there");
    rows.sum()
}

/// Every row is understood, under its header and kind; the parts add up to the totals.
///
/// Red if a row's name is not its header's, or `write_cpus` leaves a CPU out.
#[test]
fn everything_is_written_so_that_others_can_read_it() {
    // In a process in which nobody has measured slow paths: the parser makes one sample of a histogram's rows.
    const TEST: &str = "everything_is_written_so_that_others_can_read_it";
    common::child::body(TEST, |_| everything_can_be_read());
    common::child::Child::new(TEST, "").run().succeeded();
}

fn everything_can_be_read() {
    let held: Vec<Vec<u8>> = (0..3000).map(|n| vec![1; 1 + n]).collect();
    common::cpus().into_iter().for_each(|cpu| on_cpu(cpu, || drop(vec![vec![0u8; 100]; 300])));
    rcu::retire(Box::new([1u64; 8]));
    rcu::barrier();
    let (text, samples) = scrape();
    let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(samples.len(), rows.len());
    assert_eq!(rows.iter().collect::<std::collections::HashSet<_>>().len(), rows.len(), "no row comes twice");
    let mut kinds = HashMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a kind");
        assert!(kinds.insert(name, kind).is_none(), "{name} has one header");
    }
    for sample in &samples {
        let name = sample.metric.as_str();
        assert!(name.starts_with("pcpalloc_"), "{name}");
        let counts = matches!(sample.value, Value::Counter(_));
        assert_eq!(kinds.get(name).copied(), Some(if counts { "counter" } else { "gauge" }), "{name}");
        assert_eq!(counts, name.ends_with("_total"), "{name}");
        assert!(number(sample) >= 0.0 && number(sample) < 1e15, "{sample:?}");
    }
    let of = |name: &str| sum(&samples, name);
    let parts = ["in_use_bytes", "percpu_cached_bytes", "free_resident_bytes", "metadata_bytes"];
    let parts: f64 = parts.iter().map(|part| of(&format!("pcpalloc_{part}"))).sum();
    assert_eq!(parts, of("pcpalloc_resident_bytes"));
    assert!(of("pcpalloc_in_use_bytes") >= held.iter().map(Vec::len).sum::<usize>() as f64);
    assert_eq!(of("pcpalloc_zone_committed_bytes"), of("pcpalloc_committed_bytes"));
    for (part, total) in [
        ("pcpalloc_cpu_refills_total", "pcpalloc_refills_total"),
        ("pcpalloc_cpu_drains_total", "pcpalloc_drains_total"),
    ] {
        assert!(of(total) > 0.0 || part.contains("drains"));
        // Read one after the other, while other threads may be at it.
        assert!((of(part) - of(total)).abs() <= 8.0, "{part}: {} of {}", of(part), of(total));
    }
    if HEAP.stats().mode != Mode::PerThread {
        let cpus = samples.iter().filter(|sample| sample.metric == "pcpalloc_cpu_cached_bytes").count();
        assert!(cpus >= common::cpus().len());
    }
    assert!(of("pcpalloc_rcu_grace_periods_total") > 0.0);
    assert!(samples.iter().any(|sample| sample.labels.get("mark") == Some("high")));
    assert!(HEAP.limit().is_none() && !text.contains("pcpalloc_limit_bytes"));
    drop(held);
}

/// A page of figures allocates nothing but what its string needs.
///
/// Red if `write_prometheus` keeps a block: leak a `Box` in it.
#[test]
fn writing_allocates_nothing() {
    struct Nowhere(usize);
    impl std::fmt::Write for Nowhere {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let _alone = ALONE.lock();
    HEAP.set_latency(true);
    HEAP.drain(Drain::All);
    HEAP.set_latency(false);
    let leaked = || {
        GLOBAL.leak_mark();
        let mut out = Nowhere(0);
        (0..10).for_each(|_| HEAP.write_prometheus(&mut out).expect("it takes everything"));
        assert!(out.0 > 10_000);
        GLOBAL.leaks().bytes()
    };
    // The harness starts the threads of other tests now and then, which allocate.
    assert!((0..20).any(|_| leaked() == 0), "{}", GLOBAL.leaks());
}

/// How often each slow path was measured.
fn counts() -> Vec<u64> {
    let latencies = HEAP.latencies();
    SlowPath::ALL.iter().map(|&path| latencies.of(path).count()).collect()
}

/// Takes every slow path.
fn take_all_slow_paths() {
    let held: Vec<Vec<u8>> = (0..60_000).map(|n| vec![1; 900 + n % 200]).collect();
    drop(held);
    HEAP.drain(Drain::All);
    HEAP.trim();
    rcu::synchronize();
    rcu::synchronize_expedited();
}

/// Each slow path is measured when that is asked for, and none otherwise; the histogram agrees with itself and with what
/// is exported.
///
/// Red if a timer is started for another path, or dropped where it is started.
#[test]
fn slow_paths_are_measured_on_request() {
    let _alone = ALONE.lock();
    HEAP.set_latency(false);
    let before = counts();
    take_all_slow_paths();
    assert_eq!(counts(), before, "nothing is measured unasked");
    let stats = HEAP.stats();
    HEAP.set_latency(true);
    // A mapping is no zone's: 300 MiB in small blocks have a zone grow, whatever is committed already.
    let held: Vec<Vec<u8>> = (0..300 << 8).map(|_| vec![1; 4096]).collect();
    drop(held);
    take_all_slow_paths();
    HEAP.set_latency(false);
    let (latencies, now) = (HEAP.latencies(), HEAP.stats());
    for (path, (before, after)) in SlowPath::ALL.iter().zip(before.iter().zip(counts())) {
        assert!(after > *before || now.mode == Mode::PerThread, "{path:?}: {latencies}");
        let histogram = latencies.of(*path);
        let bounds: Vec<_> = histogram.cumulative().collect();
        assert!(bounds.is_sorted() && bounds.last().is_some_and(|&(_, count)| count == histogram.count()));
        let (p50, p99) = (histogram.quantile(0.5), histogram.quantile(0.99));
        assert!(p50 <= p99 && p50 > std::time::Duration::ZERO);
        // The bounds of the buckets hold the total between them.
        let (mut least, mut most, mut seen) = (0.0, 0.0, 0);
        for (bound, count) in bounds {
            least += (count - seen) as f64 * bound.as_secs_f64() / 2.0;
            most += (count - seen) as f64 * bound.as_secs_f64();
            seen = count;
        }
        assert!((least..=most).contains(&histogram.total().as_secs_f64()), "{path:?}: {latencies}");
    }
    // Refills that were counted were measured, but for those under way when that began or ended, and those that found
    // nothing.
    let refills = (now.refills - stats.refills) as u64;
    let measured = latencies.of(SlowPath::Refill).count() - before[0];
    assert!(measured <= refills && measured + 8 >= refills, "{measured} of {refills}");
    let (text, samples) = scrape();
    let exported = samples.iter().filter(|sample| sample.metric == "pcpalloc_slow_path_seconds").count();
    assert_eq!(exported, SlowPath::ALL.len(), "{text}");
    for sample in samples.iter().filter(|sample| sample.metric == "pcpalloc_slow_path_seconds") {
        let Value::Histogram(buckets) = &sample.value else { panic!("{sample:?} is a histogram") };
        assert!(buckets.is_sorted_by(|a, b| a.less_than < b.less_than && a.count <= b.count), "{sample:?}");
        let path = SlowPath::ALL.into_iter().find(|path| Some(path.name()) == sample.labels.get("path"));
        let counted = latencies.of(path.expect("a slow path")).count() as f64;
        assert_eq!(buckets.last().map(|bucket| bucket.count), Some(counted));
    }
    assert!(HEAP.stats().resident < 4096 * MIB);
}

/// By the setting, from the start.
#[test]
fn the_setting_measures_from_the_start() {
    const TEST: &str = "the_setting_measures_from_the_start";
    common::child::body(TEST, |_| {
        let latencies = HEAP.latencies();
        assert!(latencies.of(SlowPath::Refill).count() > 0 && latencies.of(SlowPath::Grow).count() > 0, "{latencies}");
    });
    common::child::Child::new(TEST, "").settings("latency:on").run().succeeded();
}
