//! Running a suite: every allocator in turn, round after round.

use serde_json::Value;

use crate::options::Options;
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
    /// The median over the rounds; `None` if a round lacks the number.
    pub fn median(&self, row: &Row, allocator: usize, measure: &Measure) -> Option<f64> {
        let numbers: Option<Vec<f64>> = row.runs[allocator].iter().map(|line| line[measure.key].as_f64()).collect();
        let mut numbers = numbers.filter(|numbers| !numbers.is_empty())?;
        numbers.sort_unstable_by(f64::total_cmp);
        let (low, high) = (numbers[(numbers.len() - 1) / 2], numbers[numbers.len() / 2]);
        Some((low + high) / 2.0 / measure.divisor)
    }
}

const PEAK: Measure = Measure { key: "peak_kib", title: "Peak RSS, MiB", divisor: 1024.0, decimals: 1 };

/// Runs `program` for every round and allocator; in every round another allocator is the first.
fn rounds(options: &Options, variants: &[Variant], program: &str, args: &[String]) -> Result<Vec<Vec<Value>>, String> {
    let mut runs = vec![Vec::new(); variants.len()];
    for round in 0..options.rounds {
        for turn in 0..variants.len() {
            let number = (round + turn) % variants.len();
            let lines = variants[number].run(program, args)?;
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
    rows_of("micro", &[TIME, PEAK], options, variants)
}

/// Every wanted row of `memory`, likewise.
pub fn memory(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    const REST: Measure =
        Measure { key: "rest_kib", title: "RSS after 3 s of rest, MiB", divisor: 1024.0, decimals: 1 };
    const TIME: Measure = Measure { key: "ms", title: "Time, ms", divisor: 1.0, decimals: 1 };
    rows_of("memory", &[PEAK, REST, TIME], options, variants)
}

fn rows_of(
    program: &str,
    measures: &'static [Measure],
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
    if let Some(unknown) = options.rows.iter().find(|wanted| alone && list.iter().all(|(name, _)| name != *wanted)) {
        return Err(format!("{program} has no row {unknown}"));
    }
    let mut rows = Vec::new();
    for (name, what) in list {
        if options.rows.is_empty() || options.rows.contains(&name) {
            eprintln!("running {name}");
            let mut args = vec![name.clone()];
            if options.smoke {
                args.push("--smoke".into());
            }
            let runs = rounds(options, variants, program, &args)?;
            rows.push(Row { name, what, runs });
        }
    }
    Ok(Results { allocators: names(variants), measures, rows })
}

/// The index, which must come out the same every time.
pub fn index(options: &Options, variants: &[Variant]) -> Result<Results, String> {
    eprintln!("running index");
    let mut runs = rounds(options, variants, "index", &options.index_args)?;
    let first = runs[0][0].clone();
    for (run, allocator) in runs.iter_mut().zip(names(variants)) {
        for line in run {
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
