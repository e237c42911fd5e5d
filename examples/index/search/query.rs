//! Queries: documents that contain all of some words, best first.

use std::cmp::Reverse;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::corpus::Corpus;
use super::hash::hash_of;
use super::index::{Index, Posting};
use super::parallel;
use super::progress::Progress;
use super::tokens::lower_case;

/// Lines in the answer to a query.
const PAGE: usize = 10;

/// What all queries together gave.
pub struct Answers {
    pub hits: usize,
    /// Depends on the text of every answer, and not on the order in which they were found.
    pub checksum: u64,
}

/// `count` queries of two or three words that occur in more than one document. The n-th most frequent word is
/// drawn about 1/n as often as the most frequent.
pub fn workload(index: &Index, count: usize) -> Vec<String> {
    let mut words: Vec<(&str, usize)> =
        index.iter().map(|(word, postings)| (word, postings.len())).filter(|(_, documents)| *documents > 1).collect();
    words.sort_unstable_by_key(|&(word, documents)| (Reverse(documents), word));
    if words.is_empty() {
        return Vec::new();
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let doublings = u64::from(words.len().ilog2()) + 1;
    let mut word = || {
        let first = 1 << (random() % doublings);
        let rank = first + random() % first;
        words[(rank as usize).min(words.len()) - 1].0
    };
    (0..count)
        .map(|number| {
            let (a, b) = (word(), word());
            if number % 2 == 0 { format!("{a} {b}") } else { format!("{a} {b} {}", word()) }
        })
        .collect()
}

/// Answers all queries on that many threads.
pub fn run_all(index: &Index, corpus: &Corpus, queries: &[String], threads: usize) -> Answers {
    let (hits, checksum) = (AtomicUsize::new(0), AtomicU64::new(0));
    let progress = Progress::new("searching", "queries", queries.len() as u64);
    let Ok(()) = parallel::for_each(threads, queries.len(), |number| {
        let found = search(index, &queries[number]);
        let page = page(corpus, &found);
        // Relaxed: sums, read after the threads are joined.
        hits.fetch_add(found.len(), Ordering::Relaxed);
        checksum.fetch_add(hash_of(&(number, page.as_str())), Ordering::Relaxed);
        progress.add(1);
        Ok::<(), Infallible>(())
    });
    Answers { hits: hits.into_inner(), checksum: checksum.into_inner() }
}

/// A document that contains all words of a query.
struct Hit {
    document: u32,
    score: f64,
}

/// All documents that contain every word of the query, best first: a word counts for more the more often it
/// is in the document and the fewer documents it is in.
fn search(index: &Index, query: &str) -> Vec<Hit> {
    let mut lower = String::new();
    let lists: Option<Vec<&[Posting]>> = query
        .split_whitespace()
        .map(|word| {
            lower_case(word, &mut lower);
            index.get(&lower)
        })
        .collect();
    let mut lists = lists.unwrap_or_default();
    lists.sort_by_key(|list| list.len());
    let Some((shortest, others)) = lists.split_first() else {
        return Vec::new();
    };
    let weight = |list: &[Posting]| (index.documents() as f64 / list.len() as f64).ln_1p();
    let score = |posting: &Posting, weight: f64| f64::from(posting.count) * weight;

    let first = weight(shortest);
    let mut hits: Vec<Hit> =
        shortest.iter().map(|posting| Hit { document: posting.document, score: score(posting, first) }).collect();
    for list in others {
        let (mut rest, weight) = (*list, weight(list));
        hits.retain_mut(|hit| {
            rest = &rest[rest.partition_point(|posting| posting.document < hit.document)..];
            match rest.first() {
                Some(posting) if posting.document == hit.document => {
                    hit.score += score(posting, weight);
                    true
                }
                _ => false,
            }
        });
    }
    hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.document.cmp(&b.document)));
    hits
}

/// The best hits as text, a line each.
fn page(corpus: &Corpus, hits: &[Hit]) -> String {
    let mut page = String::new();
    for hit in hits.iter().take(PAGE) {
        // Writing to a `String` cannot fail.
        let _ = writeln!(page, "{:10.2}  {}", hit.score, corpus.name(hit.document));
    }
    page
}
