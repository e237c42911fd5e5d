//! Regular expressions are built, used a little, and dropped.

use regex::Regex;

use crate::usage::Watch;
use crate::{Row, Scale, mix};

pub const ROWS: &[Row] = &[Row {
    name: "regex",
    what: "120 regular expressions, with classes of Unicode, alternatives and repetitions, are built and each searches 2 \
           KB; 4 times",
    run: build,
}];

const SHAPES: [&str; 8] = [
    r"(?i)\b(error|warning|note)\s*§\b.*$",
    r"^(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})T\d{§,}",
    r"\p{Greek}+\s\p{Cyrillic}{1,§}",
    r"(?:[a-z0-9]+\.)+(com|org|net|io)/\w{0,§}",
    r"(\w+)\s+(\w+)\s+(\d{1,§})",
    r#""(?:[^"\\]|\\.){0,§}""#,
    r"(?x) [+-]? \d+ (?: \. \d* )? (?: [eE] [+-]? \d{1,§} )?",
    r"[\p{L}\p{Nd}_]{2,§}@[\p{L}\p{Nd}.-]+",
];

fn build(scale: &Scale, watch: &mut Watch) -> u64 {
    let line =
        "2026-11-22T16:42 ERROR 7 at lib.example.org/path: \"a \\\" quote\" αβγ где -12.5e10 someone@example.org 41\n";
    let text = line.repeat(2048 / line.len());
    watch.begin();
    let mut sum = 0;
    for _ in 0..scale.of(4) {
        for number in 0..scale.of(120) {
            let pattern = SHAPES[number % SHAPES.len()].replace('§', &(3 + number / SHAPES.len()).to_string());
            let regex = Regex::new(&pattern).expect("the pattern is right");
            for captures in regex.captures_iter(&text) {
                sum = captures.iter().flatten().fold(sum, |sum, group| mix(sum, group.end() as u64));
            }
        }
    }
    sum
}
