//! Text is put together and taken apart.

use std::fmt::Write;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix_bytes};

pub const ROWS: &[Row] = &[Row {
    name: "strings",
    what: "30,000 pages of HTML are built from lines, escaped, indented, split, replaced in, and joined",
    run: pages,
}];

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn page(random: &mut Random) -> String {
    let mut lines: Vec<String> = Vec::new();
    for number in 0..20 {
        let bits = random.next();
        let name = format!("Name <{:x}> & sons", bits & 0xff_ffff);
        let mut line = format!("<li id=\"{number}\">{}", escaped(&name));
        for word in 0..bits >> 32 & 7 {
            let _ = write!(line, " {}-{}", ["one", "two", "three", "four"][(bits >> word) as usize & 3], word);
        }
        line += "</li>";
        lines.push(line);
    }
    let body = lines.join("\n").lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n");
    format!("<html>\n  <ul>\n{body}\n  </ul>\n</html>\n").replace("one", "eins").replace("</li>", "")
}

fn pages(scale: &Scale, watch: &mut Watch) -> u64 {
    watch.begin();
    let mut random = Random::new(0);
    let mut last: Vec<String> = vec![String::new(); 64];
    let mut sum = 0;
    for number in 0..scale.of(30_000) {
        let page = page(&mut random);
        let words: Vec<String> = page.split_whitespace().filter(|word| word.len() > 3).map(String::from).collect();
        sum = mix_bytes(sum, words[number % words.len()].as_bytes());
        last[number % 64] = page;
    }
    last.iter().fold(sum, |sum, page| mix_bytes(sum, page.as_bytes()))
}
