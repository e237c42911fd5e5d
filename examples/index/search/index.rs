//! The inverted index: from a word to the documents it occurs in.

use std::cell::RefCell;
use std::convert::Infallible;
use std::mem;
use std::sync::{Mutex, PoisonError};

use thread_local::ThreadLocal;

use super::Error;
use super::corpus::Corpus;
use super::hash::{FnvMap, hash_of};
use super::parallel;
use super::progress::Progress;
use super::tokens::count_words;

/// A document in which a word occurs, and how often.
#[derive(Clone, Copy, Hash)]
pub struct Posting {
    pub document: u32,
    pub count: u32,
}

type Shard = FnvMap<Box<str>, Vec<Posting>>;

/// Parts of an index, by hash of the word, so that threads can merge different parts at once.
const SHARDS: usize = 64;

/// Which shard a word belongs to. Maps choose a slot by the low bits of the same hash and a tag by its top
/// seven, so the shard is taken from between.
fn shard_of(word: &str) -> usize {
    (hash_of(word) >> 40) as usize % SHARDS
}

/// What one thread has indexed so far.
struct Partial {
    shards: Vec<Shard>,
}

impl Default for Partial {
    fn default() -> Self {
        Partial { shards: vec![Shard::default(); SHARDS] }
    }
}

impl Partial {
    fn add(&mut self, document: u32, text: &str) {
        for (word, count) in count_words(text) {
            self.shards[shard_of(&word)].entry(word).or_default().push(Posting { document, count });
        }
    }
}

pub struct Index {
    /// Postings are in the order of their documents.
    shards: Vec<Shard>,
    documents: usize,
}

impl Index {
    /// Indexes all documents: each thread those that it happens to take, into a part of its own, then shard by
    /// shard into one.
    pub fn build(corpus: &Corpus, threads: usize) -> Result<Index, Error> {
        let partials: ThreadLocal<RefCell<Partial>> = ThreadLocal::with_capacity(threads);
        let progress = Progress::new("indexing", "bytes", corpus.bytes());
        parallel::for_each(threads, corpus.documents(), |document| {
            let document = document as u32;
            let text = corpus.read(document)?;
            partials.get_or_default().borrow_mut().add(document, &text);
            progress.add(text.len() as u64);
            Ok(())
        })?;

        let mut columns: Vec<Vec<Shard>> = (0..SHARDS).map(|_| Vec::new()).collect();
        for partial in partials {
            for (column, shard) in columns.iter_mut().zip(partial.into_inner().shards) {
                column.push(shard);
            }
        }
        let columns: Vec<Mutex<Vec<Shard>>> = columns.into_iter().map(Mutex::new).collect();
        let Ok(()) = parallel::for_each(threads, SHARDS, |number| {
            let mut column = columns[number].lock().unwrap_or_else(PoisonError::into_inner);
            *column = vec![merge(mem::take(&mut *column))];
            Ok::<(), Infallible>(())
        });
        let shards = columns.into_iter().flat_map(|column| column.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(Index { shards: shards.collect(), documents: corpus.documents() })
    }

    pub fn documents(&self) -> usize {
        self.documents
    }

    /// Number of distinct words.
    pub fn words(&self) -> usize {
        self.shards.iter().map(Shard::len).sum()
    }

    /// Number of pairs of a word and a document that it occurs in.
    pub fn postings(&self) -> usize {
        self.iter().map(|(_, postings)| postings.len()).sum()
    }

    /// Every word with its postings, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Posting])> {
        self.shards.iter().flatten().map(|(word, postings)| (&**word, postings.as_slice()))
    }

    /// Where a word occurs, in the order of the documents.
    pub fn get(&self, word: &str) -> Option<&[Posting]> {
        self.shards[shard_of(word)].get(word).map(Vec::as_slice)
    }

    /// Depends on every word and posting, and not on the order of words.
    pub fn checksum(&self) -> u64 {
        self.iter().fold(0, |sum, entry| sum.wrapping_add(hash_of(&entry)))
    }
}

/// One shard from the threads' shards of the same number.
fn merge(parts: Vec<Shard>) -> Shard {
    let mut parts = parts.into_iter();
    let mut merged = parts.next().unwrap_or_default();
    for part in parts {
        for (word, postings) in part {
            merged.entry(word).or_default().extend(postings);
        }
    }
    for postings in merged.values_mut() {
        postings.sort_unstable_by_key(|posting| posting.document);
        postings.shrink_to_fit();
    }
    merged
}
