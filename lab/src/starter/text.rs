//! One message of somebody's chat, tidied; and whether it is fit to learn from.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Whole words; a trailing `*` allows any ending.
const BLOCKED_WORDS: &str = include_str!("blocked_words.txt");
/// First names and the like: the starter should not call its user by somebody's name.
const BLOCKED_NAMES: &str = include_str!("blocked_names.txt");

const FOLDED: [(char, &str); 8] = [
    ('\u{2018}', "'"),
    ('\u{2019}', "'"),
    ('\u{201c}', "\""),
    ('\u{201d}', "\""),
    ('\u{2026}', "..."),
    ('\u{2013}', "-"),
    ('\u{2014}', "-"),
    ('\u{a0}', " "),
];

/// Whole words and what they should have been, in this order.
const CORRECTIONS: [(&str, &str); 26] = [
    ("i", "I"),
    ("im", "I'm"),
    ("ive", "I've"),
    ("dont", "don't"),
    ("didnt", "didn't"),
    ("doesnt", "doesn't"),
    ("cant", "can't"),
    ("isnt", "isn't"),
    ("wasnt", "wasn't"),
    ("wouldnt", "wouldn't"),
    ("couldnt", "couldn't"),
    ("havent", "haven't"),
    ("youre", "you're"),
    ("theyre", "they're"),
    ("thats", "that's"),
    ("whats", "what's"),
    ("its a", "it's a"),
    ("theres", "there's"),
    ("(?-i:u)", "you"),
    ("(?-i:ur)", "your"),
    ("(?-i:r)", "are"),
    ("(?-i:ya)", "you"),
    ("yea", "yeah"),
    ("gonna", "going to"),
    ("wanna", "want to"),
    ("gotta", "have to"),
];

static CORRECTION_PATTERNS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    CORRECTIONS.iter().map(|(from, to)| (regex(&format!(r"(?i)\b{from}\b")), *to)).collect()
});

static SMILEY: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?:^|\s)(?:[:;=]['-]?[()DPpOo/\\|3]+|\(:|<3|\^_?\^|[xX]D\b)"));
static FILLER: LazyLock<Regex> =
    LazyLock::new(|| regex(r"(?i)\b(?:haha\w*|ha|hehe\w*|hahah\w*|lol)\b[.!]*,?"));
static SPACE: LazyLock<Regex> = LazyLock::new(|| regex(r"\s+"));
static SPACE_BEFORE_MARK: LazyLock<Regex> = LazyLock::new(|| regex(r"\s+([.,!?])"));
static MARKS: LazyLock<Regex> = LazyLock::new(|| regex(r"[!?.,]+([!?])"));
static SENTENCE_START: LazyLock<Regex> = LazyLock::new(|| regex(r"(^|[.!?] )([a-z])"));
static QUESTION: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)^(?:(?:so|and|but|oh|well|hey|hi|hello|yeah),? )*(?:what|who|why|how|when|where|which|do|does|did|are|is|can|could|would|have|has|will)\b",
    )
});
static WORD: LazyLock<Regex> = LazyLock::new(|| regex(r"[a-z']+"));

static BLOCKED: LazyLock<Regex> = LazyLock::new(|| {
    let words = BLOCKED_WORDS.split_whitespace().chain(BLOCKED_NAMES.split_whitespace());
    let words: Vec<String> = words
        .map(|word| match word.strip_suffix('*') {
            Some(stem) => format!(r"{stem}\w*"),
            None => word.to_owned(),
        })
        .collect();
    regex(&format!(r"(?i)\b(?:{})\b", words.join("|")))
});
/// Claims that are personal, or would contradict the model's own voice.
static PERSONAL: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"(?i)\b(?:i live|i'm from|im from|i am from|i was born|where (?:are|r) (?:you|u) from|where do you live|years? old|how old|who (?:are|is) (?:you|this)|are you (?:there|real|human|a))\b",
    )
});
static NOISE: LazyLock<Regex> = LazyLock::new(|| {
    let drawn_out: Vec<String> = ('a'..='z').map(|letter| format!("{letter}{{3,}}")).collect();
    let noise = r#"[^A-Za-z0-9 .,!?'"-]|\d{3,}|[!?.]{4,}|\b[A-Z]{4,}\b|\b\w{16,}\b"#;
    regex(&format!("{noise}|{}", drawn_out.join("|")))
});

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant and valid")
}

/// A message as tidy ASCII sentences; empty when nothing is left.
pub fn tidy(text: &str) -> String {
    let mut text = text.to_owned();
    for (from, to) in FOLDED {
        text = text.replace(from, to);
    }
    let text = SMILEY.replace_all(&text, " ");
    let text = FILLER.replace_all(&text, " ");
    let text = SPACE.replace_all(&text, " ");
    let text = SPACE_BEFORE_MARK.replace_all(&text, "$1");
    let text = text.trim_matches([' ', ',', '-']);
    let mut text = MARKS.replace_all(text, "$1").into_owned();
    for (pattern, correct) in CORRECTION_PATTERNS.iter() {
        text = pattern.replace_all(&text, *correct).into_owned();
    }
    let capitalize = |found: &Captures<'_>| format!("{}{}", &found[1], found[2].to_uppercase());
    let mut text = SENTENCE_START.replace_all(&text, capitalize).into_owned();
    if text.ends_with(char::is_alphanumeric) {
        text.push(if QUESTION.is_match(&text) { '?' } else { '.' });
    }
    if text.contains(|letter: char| letter.is_ascii_alphabetic()) { text } else { String::new() }
}

/// The words of a text in lower case.
pub fn words(text: &str) -> Vec<String> {
    WORD.find_iter(&text.to_lowercase()).map(|word| word.as_str().to_owned()).collect()
}

pub fn num_words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Noise, a word we do not want said, or something personal.
pub fn unfit(text: &str) -> bool {
    NOISE.is_match(text) || BLOCKED.is_match(text) || PERSONAL.is_match(text)
}

/// What tells a row from one that says the same.
pub fn key(turns: &[String]) -> String {
    words(&turns.join(" ")).join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_sentences() {
        let check = |text: &str, expected: &str| assert_eq!(tidy(text), expected);
        check("im doing good", "I'm doing good.");
        check("whats up  :) haha", "What's up?");
        check("so what do u think...?", "So what do you think?");
        check("i\u{2019}m gonna go .  bye", "I'm going to go. Bye.");
        check(":)", "");
    }

    #[test]
    fn noise_names_and_claims_are_unfit() {
        for text in ["call 555 1234", "Hi Sarah.", "I was born in May.", "Sooo nice.", "Caf\u{e9}."] {
            assert!(unfit(text), "{text}");
        }
        assert!(!unfit("It's a nice day, isn't it?"));
    }
}
