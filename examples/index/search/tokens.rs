//! Words of a text.

use super::hash::FnvMap;

/// A longer run of word characters is data (a digest, a packed table) and not a word.
const LONGEST: usize = 64;

/// The words of a text in lower case, and how often each occurs. A word is two or more letters, digits or
/// underscores.
pub fn count_words(text: &str) -> FnvMap<Box<str>, u32> {
    let mut counts = FnvMap::default();
    let mut lower = String::with_capacity(LONGEST);
    for word in text.split(|c: char| !c.is_alphanumeric() && c != '_') {
        if word.len() < 2 || word.len() > LONGEST {
            continue;
        }
        lower_case(word, &mut lower);
        match counts.get_mut(lower.as_str()) {
            Some(count) => *count += 1,
            None => {
                counts.insert(Box::from(lower.as_str()), 1);
            }
        }
    }
    counts
}

/// Writes the form in which a word is indexed into `lower`, in place of what was there.
pub fn lower_case(word: &str, lower: &mut String) {
    lower.clear();
    if word.is_ascii() {
        lower.push_str(word);
        lower.make_ascii_lowercase();
    } else {
        lower.extend(word.chars().flat_map(char::to_lowercase));
    }
}
