//! Results as Markdown and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::chance::to_best_by_chance;
use crate::options::{Options, Suite};
use crate::suite::{Measure, Results};
use crate::variant::Skipped;

/// Pairs of a name and what is to be said.
type Facts = [(&'static str, String)];

/// The command that gave the results.
fn command(options: &Options) -> String {
    let command = "cargo run --release --manifest-path benches/compare/Cargo.toml --bin compare --";
    format!("{command} {}", options.command_line).trim_end().into()
}

/// A page of Markdown about one suite.
pub fn page(options: &Options, suite: &Suite, machine: &Facts, results: &Results, skipped: &[Skipped]) -> String {
    let mut page = format!("# {} with several allocators\n\n", suite.name());
    // Writing to a `String` cannot fail.
    let _ = writeln!(page, "Medians over {} rounds, written by\n\n    {}\n", options.rounds, command(options));
    for (name, fact) in machine {
        let _ = writeln!(page, "- {name}: {fact}");
    }
    if let Some(mode) = results.rows.first().and_then(|row| row.runs[0][0]["mode"].as_str()) {
        let _ = writeln!(page, "- {} mode: {mode}", results.allocators[0]);
    }
    for Skipped { name, reason } in skipped {
        let _ = writeln!(page, "- {name} is missing: {}", reason.lines().last().unwrap_or_default());
    }
    for failure in results.failures() {
        let _ = writeln!(page, "- {failure}");
    }
    for measure in results.measures {
        let _ = write!(page, "\n## {}\n\n{}", measure.title, table(results, measure));
    }
    if results.rows.len() > 1 {
        let first = &results.measures[0];
        let _ = write!(page, "\n## {}, each over the best of all others\n\n{}", first.title, standings(results, first));
    }
    if options.rounds > 1 {
        let _ = write!(page, "\n## {}, least–most\n\n{}", results.measures[0].title, ranges(results));
    }
    let _ = writeln!(
        page,
        "\nIn brackets: {} over the peer, the median of the ratios within each round, so less than 1 is in our favour. The \
         best peer of a row is the one to which that is largest: the best of so many by chance as well as by merit.",
        results.allocators[0]
    );
    page.push_str("\n## Rows\n\n");
    for row in &results.rows {
        let _ = writeln!(page, "- `{}`: {}", row.name, row.what);
    }
    page
}

/// One measure: a line for every row, with each peer's number and ours over it, and ours over the best peer's.
fn table(results: &Results, measure: &Measure) -> String {
    let (ours, peers) = (results.allocators[0], &results.allocators[1..]);
    let mut table = format!("| row | {ours} | {} | best peer | ratio |\n", peers.join(" | "));
    // Writing to a `String` cannot fail, here and below.
    let _ = writeln!(table, "| --- | --: |{} --- | --: |", " --: |".repeat(peers.len()));
    // The ratios of all rows: to each peer, and to the best.
    let mut ratios = vec![Vec::new(); peers.len() + 1];
    for row in &results.rows {
        let number = |allocator| results.median(row, allocator, measure);
        let cell = |number: Option<f64>| number.map_or("–".into(), |n| format!("{n:.*}", measure.decimals));
        let shown = |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.2}"));
        let _ = write!(table, "| {} | {} |", row.name, cell(number(0)));
        let mut best: Option<(f64, &str)> = None;
        for (column, peer) in peers.iter().enumerate() {
            let ratio = results.ratio(row, 0, column + 1, measure);
            let _ = write!(table, " {} ({}) |", cell(number(column + 1)), shown(ratio));
            ratios[column].extend(ratio);
            if let Some(ratio) = ratio.filter(|ratio| best.is_none_or(|(most, _)| *ratio > most)) {
                best = Some((ratio, peer));
            }
        }
        let (most, name) = best.unzip();
        ratios[peers.len()].extend(most);
        let _ = writeln!(table, " {} | {} |", name.unwrap_or("–"), shown(most));
    }
    if results.rows.len() > 1 {
        let means: Vec<String> = ratios.iter().map(|ratios| geometric_mean(ratios)).collect();
        let (to_best, to_peers) = means.split_last().expect("one mean more than there are peers");
        let cells: String = to_peers.iter().map(|mean| format!(" ({mean}) |")).collect();
        let _ = writeln!(table, "| geometric mean | |{cells} | {to_best} |");
    }
    table
}

/// How every allocator stands against the best of all others in each row.
fn standings(results: &Results, measure: &Measure) -> String {
    let mut table = "| | geometric mean | rows within 5 % of the best | farthest from it |\n".to_string();
    // Writing to a `String` cannot fail.
    let _ = writeln!(table, "| --- | --: | --: | --: |");
    for (number, name) in results.allocators.iter().enumerate() {
        let ratios = results.to_best(number, measure);
        let near = ratios.iter().filter(|&&ratio| ratio <= 1.05).count();
        let worst = ratios.iter().copied().fold(0.0, f64::max);
        let (mean, rows) = (geometric_mean(&ratios), ratios.len());
        let _ = writeln!(table, "| {name} | {mean} | {near} of {rows} | {worst:.2} |");
    }
    if results.allocators.len() > 2 && results.rows.iter().any(|row| row.runs[0].len() > 1) {
        let (mean, count) = (geometric_mean(&to_best_by_chance(results, measure)), results.allocators.len());
        let _ = writeln!(
            table,
            "\nBy chance alone, were all {count} the same allocator and did its times vary as they do in each of these rows, every \
             one would be at a geometric mean of {mean}, since it is compared with the luckiest of the others."
        );
    }
    table
}

/// How far the rounds of the first measure are apart.
fn ranges(results: &Results) -> String {
    let measure = &results.measures[0];
    let mut table = format!("| row | {} |\n", results.allocators.join(" | "));
    // Writing to a `String` cannot fail, here and below.
    let _ = writeln!(table, "| --- |{}", " --: |".repeat(results.allocators.len()));
    for row in &results.rows {
        let _ = write!(table, "| {} |", row.name);
        for allocator in 0..results.allocators.len() {
            let _ = match results.range(row, allocator, measure) {
                Some((least, most)) => write!(table, " {least:.0$}–{most:.0$} |", measure.decimals),
                None => write!(table, " – |"),
            };
        }
        table.push('\n');
    }
    table
}

fn geometric_mean(ratios: &[f64]) -> String {
    if ratios.is_empty() {
        return "–".into();
    }
    let logarithms: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
    format!("{:.2}", (logarithms / ratios.len() as f64).exp())
}

/// Everything that was measured.
pub fn json(options: &Options, suite: &Suite, machine: &Facts, results: &Results, skipped: &[Skipped]) -> String {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|row| {
            let runs: Map<String, Value> = results
                .allocators
                .iter()
                .zip(&row.runs)
                .map(|(name, lines)| (name.to_string(), json!(lines)))
                .collect();
            json!({ "row": row.name, "what": row.what, "runs": runs })
        })
        .collect();
    let machine: Map<String, Value> = machine.iter().map(|(name, fact)| (name.to_string(), json!(fact))).collect();
    let skipped: Map<String, Value> =
        skipped.iter().map(|Skipped { name, reason }| (name.to_string(), json!(reason))).collect();
    let document = json!({
        "suite": suite.name(),
        "command": command(options),
        "rounds": options.rounds,
        "machine": machine,
        "skipped": skipped,
        "rows": rows,
    });
    format!("{document:#}\n")
}
