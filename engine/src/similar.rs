//! Rows with the same, or nearly the same, words: by a hash of the text, and by MinHash with locality-sensitive hashing
//! (Broder 1997; one permutation with optimal densification, Shrivastava 2017) over sequences of words.

use std::ops::Range;

use lathe_protocol::Role;

use crate::{Result, data::Conversation};

/// Words of a sequence.
const SHINGLE: usize = 5;
const NUM_BANDS: usize = 16;
const BAND: usize = 8;
const NUM_BINS: usize = NUM_BANDS * BAND;
/// Rows with this share of word sequences in common are near duplicates. 16 bands of 8 find 95 % of such pairs.
const LEAST_SIMILARITY: f64 = 0.8;

/// What a row's words are known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print {
    /// Of all its text, white space aside.
    pub exact: u64,
    /// Of its words, the system prompt aside; a byte a bin. Zeros in a row without words.
    pub signature: [u8; NUM_BINS],
}

impl Print {
    pub const NUM_BYTES: usize = 8 + NUM_BINS;

    /// Of a row's conversation, or of a pair's two.
    pub fn of<'a>(conversations: impl IntoIterator<Item = &'a Conversation>) -> Self {
        let mut exact = FNV_OFFSET;
        let mut words = Vec::new();
        for conversation in conversations {
            match conversation {
                Conversation::Chat(chat) => {
                    for message in &chat.messages {
                        exact = fnv(exact, &[message.role as u8]);
                        let calls: Vec<_> =
                            message.tool_calls.iter().map(|call| call.function.to_string()).collect();
                        let texts =
                            [message.style.as_deref(), message.thinking.as_deref(), Some(&message.content)];
                        let texts = texts.into_iter().map(Option::unwrap_or_default);
                        for text in texts.chain(calls.iter().map(String::as_str)) {
                            exact = exact_of(exact, text);
                            if !matches!(message.role, Role::System | Role::Developer) {
                                add_words(text, &mut words);
                            }
                        }
                    }
                    let tools = chat.tools.as_ref().map(ToString::to_string);
                    for text in [tools, chat.reasoning_effort.clone()].into_iter().flatten() {
                        exact = exact_of(exact, &text);
                    }
                }
                Conversation::Raw(raw) => {
                    for text in [&raw.prompt, &raw.completion, raw.style.as_deref().unwrap_or_default()] {
                        exact = exact_of(exact, text);
                        add_words(text, &mut words);
                    }
                }
            }
        }
        Self { exact: mix(exact), signature: signature(&words) }
    }

    pub fn to_bytes(self) -> [u8; Self::NUM_BYTES] {
        let mut bytes = [0; Self::NUM_BYTES];
        bytes[..8].copy_from_slice(&self.exact.to_le_bytes());
        bytes[8..].copy_from_slice(&self.signature);
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Self::NUM_BYTES]) -> Self {
        let (exact, signature) = bytes.split_at(8);
        let mut print = Self { exact: 0, signature: [0; NUM_BINS] };
        print.exact = exact.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        print.signature.copy_from_slice(signature);
        print
    }

    /// Estimates the share of word sequences in common. Bytes agree by chance, too, one in 256.
    fn similarity(&self, other: &Self) -> f64 {
        let agreeing = self.signature.iter().zip(&other.signature).filter(|(a, b)| a == b).count();
        let chance = 1.0 / 256.0;
        ((agreeing as f64 / NUM_BINS as f64 - chance) / (1.0 - chance)).max(0.0)
    }

    fn band(&self, band: usize) -> Option<u64> {
        if self.signature == [0; NUM_BINS] {
            return None;
        }
        let bytes = &self.signature[band * BAND..(band + 1) * BAND];
        Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Spreads a hash over all its bits (the finalizer of SplitMix64).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn exact_of(hash: u64, text: &str) -> u64 {
    let words = text.split_whitespace();
    // A zero byte ends a word, two end a text.
    fnv(words.fold(hash, |hash, word| fnv(fnv(hash, word.as_bytes()), &[0])), &[0])
}

/// Adds the hashes of a text's words. Signs, and letters of scripts that put no spaces between words, are words each.
fn add_words(text: &str, words: &mut Vec<u64>) {
    let mut word = None;
    let mut utf8 = [0; 4];
    for char in text.chars() {
        let is_part = char.is_alphanumeric() && !('\u{2e80}'..'\u{ac00}').contains(&char);
        if is_part {
            let hash = word.unwrap_or(FNV_OFFSET);
            word = Some(if char.is_ascii() {
                fnv(hash, &[char.to_ascii_lowercase() as u8])
            } else {
                char.to_lowercase().fold(hash, |hash, char| fnv(hash, char.encode_utf8(&mut utf8).as_bytes()))
            });
            continue;
        }
        words.extend(word.take());
        if !char.is_whitespace() {
            words.push(fnv(FNV_OFFSET, char.encode_utf8(&mut utf8).as_bytes()));
        }
    }
    words.extend(word);
}

/// Of a bin, as no hash is.
const EMPTY: u64 = u64::MAX;

/// Each sequence of words falls into one bin; a bin keeps its least hash, and an empty one takes another's.
fn signature(words: &[u64]) -> [u8; NUM_BINS] {
    if words.is_empty() {
        return [0; NUM_BINS];
    }
    let mut bins = [EMPTY; NUM_BINS];
    for shingle in words.windows(SHINGLE.min(words.len())) {
        let hash = mix(shingle.iter().fold(0, |hash, word| mix(hash ^ word).wrapping_add(FNV_OFFSET)));
        let bin = &mut bins[(hash % NUM_BINS as u64) as usize];
        *bin = (*bin).min(hash / NUM_BINS as u64);
    }
    std::array::from_fn(|index| {
        let mut bin = index;
        let mut attempt = 0;
        while bins[bin] == EMPTY {
            attempt += 1;
            bin = (mix((index as u64) << 32 | attempt) % NUM_BINS as u64) as usize;
        }
        mix(bins[bin]) as u8
    })
}

/// A row that resembles another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    pub row: usize,
    /// The one it resembles, which stands before it.
    pub like: usize,
    /// 1 for the very same text.
    pub similarity: f64,
    pub is_exact: bool,
}

/// Prints that lie somewhere, in the order of their rows.
pub trait Prints {
    fn num_rows(&self) -> usize;
    /// Visits the rows in order.
    fn each(&self, visit: &mut dyn FnMut(usize, &Print)) -> Result<()>;
    fn print(&self, row: usize) -> Result<Print>;
}

/// No row's number.
const NONE: u32 = u32::MAX;

/// Finds the rows that resemble an earlier one: any (`references` is none), or one of the first `references`, which are
/// compared with no other.
/// Memory: 17 bytes a row.
pub fn find(prints: &dyn Prints, references: Option<usize>) -> Result<Vec<Match>> {
    let len = prints.num_rows();
    let wanted: Range<usize> = references.unwrap_or(0)..len;
    let mut like = vec![NONE; len];
    let mut found = Vec::new();
    let mut keys: Vec<(u64, u32)> = Vec::with_capacity(len);
    // The whole text first, then a band at a time: rows whose keys agree are compared with the first of them.
    for band in std::iter::once(None).chain((0..NUM_BANDS).map(Some)) {
        keys.clear();
        prints.each(&mut |row, print| {
            let key = band.map_or(Some(print.exact), |band| print.band(band));
            keys.extend(key.map(|key| (key, row as u32)));
        })?;
        keys.sort_unstable();
        for group in keys.chunk_by(|(a, _), (b, _)| a == b).filter(|group| group.len() > 1) {
            let first = group[0].1 as usize;
            if references.is_some_and(|references| first >= references) {
                continue;
            }
            let mut first_print = None;
            for row in group[1..].iter().map(|(_, row)| *row as usize) {
                if like[row] != NONE || !wanted.contains(&row) {
                    continue;
                }
                let similarity = if band.is_none() {
                    1.0
                } else {
                    let first_print = match first_print {
                        Some(print) => print,
                        None => *first_print.insert(prints.print(first)?),
                    };
                    first_print.similarity(&prints.print(row)?)
                };
                if similarity >= LEAST_SIMILARITY {
                    like[row] = first as u32;
                    found.push(Match { row, like: first, similarity, is_exact: band.is_none() });
                }
            }
        }
    }
    found.sort_unstable_by_key(|found| found.row);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::RawText;

    impl Prints for Vec<Print> {
        fn num_rows(&self) -> usize {
            self.len()
        }

        fn each(&self, visit: &mut dyn FnMut(usize, &Print)) -> Result<()> {
            self.iter().enumerate().for_each(|(row, print)| visit(row, print));
            Ok(())
        }

        fn print(&self, row: usize) -> Result<Print> {
            Ok(self[row])
        }
    }

    fn print(text: &str) -> Print {
        let raw = RawText { prompt: String::new(), completion: text.into(), style: None };
        Print::of([&Conversation::Raw(raw)])
    }

    /// `count` words that depend on `seed`.
    fn words(seed: u64, count: u64) -> Vec<String> {
        (0..count).map(|word| format!("w{}", mix(seed << 32 | word) % 5000)).collect()
    }

    #[test]
    fn the_similarity_is_near_that_of_the_sets_of_word_sequences() {
        for changed in [0, 1, 4, 10, 30] {
            let a = words(1, 400);
            let mut b = a.clone();
            for index in 0..changed {
                b[10 + index * 12] = "other".into();
            }
            // Each changed word breaks five sequences.
            let common = 396.0 - 5.0 * changed as f64;
            let expected = common / (2.0 * 396.0 - common);
            let found = print(&a.join(" ")).similarity(&print(&b.join(" ")));
            assert!((found - expected).abs() < 0.1, "{changed} words: {found}, not {expected}");
        }
    }

    #[test]
    fn white_space_does_not_tell_texts_apart_and_signs_do() {
        assert_eq!(print("a  b\n c"), print("a b c"));
        assert_ne!(print("a b").exact, print("ab").exact);
        assert_eq!(print("Hello there").signature, print("hello THERE").signature);
        assert_ne!(print("1 + 1 is 2").signature, print("1 - 1 is 2").signature);
        assert!(print("今日は天気がいい").similarity(&print("今日は天気が悪い")) < LEAST_SIMILARITY);
        assert_eq!(print(" ").band(0), None);
        let print = print("a b c");
        assert_eq!(Print::from_bytes(&print.to_bytes()), print);
    }

    #[test]
    fn duplicates_name_the_first_of_their_kind_and_leaks_a_held_out_row() {
        let mut texts: Vec<String> = (0..50).map(|seed| words(seed, 120).join(" ")).collect();
        texts[7] = texts[3].clone();
        texts[20] = texts[3].replace(&words(3, 120)[60], "other");
        texts[30] = texts[20].to_uppercase();
        let prints: Vec<Print> = texts.iter().map(|text| print(text)).collect();
        let found = |references| -> Vec<(usize, usize, bool)> {
            let found = find(&prints, references).unwrap();
            found.iter().map(|found| (found.row, found.like, found.is_exact)).collect()
        };
        assert_eq!(found(None), [(7, 3, true), (20, 3, false), (30, 20, false)]);
        assert_eq!(found(Some(5)), [(7, 3, true), (20, 3, false), (30, 3, false)]);
        assert_eq!(found(Some(3)), []);
    }
}
