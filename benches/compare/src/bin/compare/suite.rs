//! Running a suite: every allocator in turn, round after round.

use std::time::Instant;

use serde_json::{Value, json};

use crate::distance;
use crate::options::{Options, matches};
use crate::order::turns;
use crate::variant::Variant;

/// One kind of number, for every row and allocator.
pub struct Measure {
    /// Key in the programs' lines of JSON.
    pub key: &'static str,
    pub title: &'static str,
    /// By what to divide the number for printing.
    pub divisor: f64,
    pub decimals: usize,
}

pub struct Row {
    pub name: String,
    /// What is measured, in words.
    pub what: String,
    /// Lines of JSON: one for every round of every allocator.
    pub runs: Vec<Vec<Value>>,
}

pub struct Results {
    pub allocators: Vec<&'static str>,
    pub measures: &'static [Measure],
    pub rows: Vec<Row>,
}

impl Results {
    /// The numbers of the rounds that have it.
    fn numbers(&self, row: &Row, allocator: usize, measure: &Measure) -> Vec<f64> {
        let numbers = row.runs[allocator].iter().filter_map(|line| line[measure.key].as_f64());
        numbers.map(|number| number / measure.divisor).collect()
    }

    /// The median over the rounds that have the number; `None` if none has.
    pub fn median(&self, row: &Row, allocator: usize, measure: &Measure) -> Option<f64> {
        median(self.numbers(row, allocator, measure))
    }

    /// One allocator's number over another's: the median over the rounds in which both have it, each with its own two, so
    /// that what disturbs the machine for a round disturbs both. `None` if there is none, or a number is 0.
    pub fn ratio(&self, row: &Row, one: usize, other: usize, measure: &Measure) -> Option<f64> {
        let number = |line: &Value| line[measure.key].as_f64().filter(|&number| number > 0.0);
        let rounds = row.runs[one].iter().zip(&row.runs[other]);
        median(rounds.filter_map(|(one, other)| Some(number(one)? / number(other)?)).collect())
    }

    /// For every row, an allocator's number over the best of all others'.
    pub fn to_best(&self, one: usize, measure: &Measure) -> Vec<f64> {
        let others = |row| {
            (0..self.allocators.len())
                .filter_map(move |other| (other != one).then(|| self.ratio(row, one, other, measure))?)
        };
        self.rows.iter().filter_map(|row| others(row).reduce(f64::max)).collect()
    }

    /// Runs that did not come to their end: whose, of which row, and how many.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for row in &self.rows {
            for (allocator, runs) in self.allocators.iter().zip(&row.runs) {
                let failed: Vec<_> = runs.iter().filter_map(|line| line[FAILED].as_str()).collect();
                if let Some(why) = failed.first() {
                    let (name, count, all) = (&row.name, failed.len(), runs.len());
                    failures.push(format!("{allocator} failed in {count} of {all} runs of `{name}`: {why}"));
                }
            }
        }
        failures
    }

    /// The least and the most.
    pub fn range(&self, row: &Row, allocator: usize, measure: &Measure) -> Option<(f64, f64)> {
        let numbers = self.numbers(row, allocator, measure);
        numbers.iter().copied().reduce(f64::min).zip(numbers.iter().copied().reduce(f64::max))
    }
}

/// The middle one, or the mean of the two in the middle; `None` if there are none.
pub fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_unstable_by(f64::total_cmp);
    let (low, high) = (numbers.get(numbers.len().checked_sub(1)? / 2)?, numbers.get(numbers.len() / 2)?);
    Some((low + high) / 2.0)
}

/// Key of the only thing that is known of a run that did not come to its end.
const FAILED: &str = "failed";

const PEAK: Measure = Measure { key: "peak_kib", title: "Peak RSS, MiB", divisor: 1024.0, decimals: 1 };

/// Runs `program` for every round and allocator, in balanced turns. A peer may fail, which is noted.
fn rounds(
    options: &Options,
    variants: &[Variant],
    program: &str,
    args: impl Fn(usize) -> Vec<String>,
) -> Result<Vec<Vec<Value>>, String> {
    let mut runs = vec![Vec::new(); variants.len()];
    for round in 0..options.rounds {
        let args = &args(round);
        distance::look();
        for number in turns(round, variants.len()) {
            let lines = match variants[number].run(program, args) {
                Ok(lines) => lines,
                Err(why) if number > 0 => {
                    eprintln!("{why}");
                    let last = why.lines().rev().find(|line| !line.is_empty()).unwrap_or_default();
                    vec![json!({ FAILED: last })]
                }
                Err(why) => return Err(why),
            };
            let [line] = <[Value; 1]>::try_from(lines).map_err(|lines| format!("{program} printed {lines:?}"))?;
            runs[number].push(line);
        }
    }
    Ok(runs)
}

fn names(variants: &[Variant]) -> Vec<&'static str> {
    variants.iter().map(|variant| variant.name).collect()
}

/// Every wanted row of `micro`, each run in a process of its own.
pub fn micro(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    const TIME: Measure = Measure { key: "ns_per_op", title: "Time, ns per operation", divisor: 1.0, decimals: 2 };
    rows_of("micro", &[TIME, PEAK], &[], options, variants)
}

/// Every wanted row of `memory`, likewise.
pub fn memory(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    const REST: Measure =
        Measure { key: "rest_kib", title: "RSS after 3 s of rest, MiB", divisor: 1024.0, decimals: 1 };
    const TIME: Measure = Measure { key: "ms", title: "Time, ms", divisor: 1.0, decimals: 1 };
    rows_of("memory", &[PEAK, REST, TIME], &[], options, variants)
}

/// Every wanted row of `workloads`, likewise; checksums must agree. The first round rests at its end.
pub fn workloads(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    const fn count(key: &'static str, title: &'static str) -> Measure {
        Measure { key, title, divisor: 1.0, decimals: 0 }
    }
    const MEASURES: [Measure; 7] = [
        Measure { key: "ms", title: "Time, ms", divisor: 1.0, decimals: 0 },
        Measure { key: "cpu_ms", title: "User and system time, ms", divisor: 1.0, decimals: 0 },
        PEAK,
        Measure { key: "rest_kib", title: "RSS after the work and 1 s of rest, MiB", divisor: 1024.0, decimals: 1 },
        count("faults", "Page faults"),
        count("voluntary", "Voluntary context switches"),
        count("involuntary", "Involuntary context switches"),
    ];
    let results = rows_of("workloads", &MEASURES, &["--rest"], options, variants)?;
    for row in &results.rows {
        let first = &row.runs[0][0]["checksum"];
        for (allocator, runs) in results.allocators.iter().zip(&row.runs) {
            let completed = runs.iter().filter(|line| line[FAILED].is_null());
            if let Some(other) = completed.map(|line| &line["checksum"]).find(|checksum| *checksum != first) {
                return Err(format!("{} with {allocator}: the checksum is {other} and not {first}", row.name));
            }
        }
    }
    Ok(results)
}

/// Every wanted row of `latency`.
pub fn latency(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    const fn ns(key: &'static str, title: &'static str) -> Measure {
        Measure { key, title, divisor: 1.0, decimals: 0 }
    }
    const MEASURES: [Measure; 8] = [
        ns("alloc_p50", "alloc, median, ns"),
        ns("alloc_p99", "alloc, 99 %, ns"),
        ns("alloc_p999", "alloc, 99.9 %, ns"),
        ns("alloc_max", "alloc, longest, ns"),
        ns("dealloc_p50", "dealloc, median, ns"),
        ns("dealloc_p99", "dealloc, 99 %, ns"),
        ns("dealloc_p999", "dealloc, 99.9 %, ns"),
        ns("dealloc_max", "dealloc, longest, ns"),
    ];
    rows_of("latency", &MEASURES, &[], options, variants)
}

/// Each wanted row of a program; its first round has more arguments than the others.
fn rows_of(
    program: &str,
    measures: &'static [Measure],
    first: &[&str],
    options: &Options,
    variants: &[Variant],
) -> Result<Results, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list: Vec<(String, String)> = variants[0]
        .run(program, &["--list".into()])?
        .iter()
        .map(|line| (text(&line["row"]), text(&line["operation"])))
        .collect();
    // Rows may be of the other program, if both run.
    let alone = options.suites.len() == 1;
    let unknown = |wanted: &&String| alone && !list.iter().any(|(name, _)| matches(wanted, name));
    if let Some(unknown) = options.rows.iter().find(unknown) {
        return Err(format!("{program} has no row {unknown}"));
    }
    let list: Vec<_> = list.into_iter().filter(|(name, _)| options.wants(name)).collect();
    let (mut rows, began) = (Vec::new(), Instant::now());
    for (name, what) in &list {
        let left = began.elapsed().mul_f64((list.len() - rows.len()) as f64 / rows.len().max(1) as f64);
        let left = if rows.is_empty() { String::new() } else { format!(", {} s left", left.as_secs()) };
        eprintln!("running {program} {name}, row {} of {}{left}", rows.len() + 1, list.len());
        let args = |round| {
            let mut args = vec![name.clone()];
            args.extend(options.smoke.then(|| "--smoke".into()));
            args.extend(first.iter().filter(|_| round == 0).map(|arg| arg.to_string()));
            args
        };
        let runs = rounds(options, variants, program, args)?;
        rows.push(Row { name: name.clone(), what: what.clone(), runs });
    }
    Ok(Results { allocators: names(variants), measures, rows })
}

/// The index, which must come out the same every time.
pub fn index(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    eprintln!("running index");
    let mut runs = rounds(options, variants, "index", |_| options.index_args.clone())?;
    let first = runs[0][0].clone();
    for (run, allocator) in runs.iter_mut().zip(names(variants)) {
        for line in run.iter_mut().filter(|line| line[FAILED].is_null()) {
            for input in ["root", "threads", "files", "documents", "bytes", "queries"] {
                if line[input] != first[input] {
                    return Err(format!(
                        "the text has changed meanwhile: {input} {} and {}",
                        first[input], line[input]
                    ));
                }
            }
            for output in ["words", "postings", "hits", "index_checksum", "query_checksum"] {
                if line[output] != first[output] {
                    return Err(format!("{allocator}: {output} is {} and not {}", line[output], first[output]));
                }
            }
            line["total_s"] = (line["index_s"].as_f64().zip(line["query_s"].as_f64())).map(|(a, b)| a + b).into();
        }
    }
    let what = format!(
        "{} threads, {} files as {} documents, {:.1} MB; {} words, {} postings; {} queries with {} hits; in every \
         run checksums {} and {}",
        first["threads"],
        first["files"],
        first["documents"],
        first["bytes"].as_f64().unwrap_or_default() / 1e6,
        first["words"],
        first["postings"],
        first["queries"],
        first["hits"],
        first["index_checksum"].as_str().unwrap_or_default(),
        first["query_checksum"].as_str().unwrap_or_default(),
    );
    const MEASURES: [Measure; 4] = [
        Measure { key: "total_s", title: "Indexing and queries, wall seconds", divisor: 1.0, decimals: 3 },
        Measure { key: "index_s", title: "Indexing, wall seconds", divisor: 1.0, decimals: 3 },
        Measure { key: "query_s", title: "Queries, wall seconds", divisor: 1.0, decimals: 3 },
        PEAK,
    ];
    Ok(Results {
        allocators: names(variants),
        measures: &MEASURES,
        rows: vec![Row { name: "index".into(), what, runs }],
    })
}
