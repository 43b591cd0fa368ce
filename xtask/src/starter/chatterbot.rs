//! `chatterbot-corpus` (BSD): questions and answers about computers, and trivia.

use std::collections::HashSet;

use anyhow::Result;

use super::{corpus::Conversation, text};
use crate::{
    pip::{self, Wheel},
    repo,
};

const WHEEL: Wheel = Wheel {
    name: "chatterbot-corpus",
    version: "1.3.3",
    file_name: "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    sha256: "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
};

/// What follows a question in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// Several answers to it.
    Alternative,
    /// The rest of the conversation.
    Sequential,
}

/// The files whose contents suit a small assistant.
const FILES: [(&str, Answers); 4] = [
    ("computers", Answers::Alternative),
    ("health", Answers::Sequential),
    ("tech_support", Answers::Alternative),
    ("trivia", Answers::Alternative),
];
const MAX_TURN_WORDS: usize = 30;
const MIN_KEY_BYTES: usize = 12;

/// The rows of the recipe.
pub fn conversations() -> Result<Vec<Conversation>> {
    let wheel = WHEEL.fetch(&repo::cache_dir().join("wheels"))?;
    let (mut rows, mut seen) = (Vec::new(), HashSet::new());
    for (name, answers) in FILES {
        let file = pip::read_member(&wheel, &format!("chatterbot_corpus/data/english/{name}.yml"))?;
        for conversation in parse(&file) {
            let turns: Vec<String> = conversation.iter().map(|turn| text::tidy(turn)).collect();
            let parts = match (answers, turns.as_slice()) {
                (Answers::Alternative, [question, answers @ ..]) => {
                    answers.iter().map(|answer| vec![question.clone(), answer.clone()]).collect()
                }
                (Answers::Sequential, turns) => vec![turns[..turns.len() / 2 * 2].to_vec()],
                (Answers::Alternative, []) => Vec::new(),
            };
            for part in parts {
                let fit = |turn: &String| {
                    (1..=MAX_TURN_WORDS).contains(&text::num_words(turn)) && !text::unfit(turn)
                };
                let key = text::key(&part);
                if part.len() >= 2 && key.len() >= MIN_KEY_BYTES && part.iter().all(fit) && seen.insert(key) {
                    rows.push(Conversation::new(part));
                }
            }
        }
    }
    Ok(rows)
}

/// The conversations of a file: the little YAML it uses, lists of lists of plain or single-quoted strings.
fn parse(file: &str) -> Vec<Vec<String>> {
    let mut conversations: Vec<Vec<String>> = Vec::new();
    for line in file.lines().skip_while(|line| *line != "conversations:").skip(1) {
        let (first, rest) = match line.strip_prefix("- ") {
            Some(rest) => (true, rest.trim_start()),
            None => (false, line.trim_start()),
        };
        if first {
            conversations.push(Vec::new());
        }
        let Some(turns) = conversations.last_mut() else { continue };
        match (rest.strip_prefix("- "), turns.last_mut()) {
            (Some(turn), _) => turns.push(turn.trim_end().to_owned()),
            // A long string goes on, indented, on the next line.
            (None, Some(turn)) if !rest.trim().is_empty() => {
                turn.push(' ');
                turn.push_str(rest.trim());
            }
            _ => {}
        }
    }
    for turn in conversations.iter_mut().flatten() {
        if let Some(quoted) = turn.strip_prefix('\'').and_then(|turn| turn.strip_suffix('\'')) {
            *turn = quoted.replace("''", "'");
        }
    }
    conversations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_little_yaml_is_read() {
        let file = "categories:\n- trivia\nconversations:\n- - Who was it,\n    then?\n  - '1963'\n- - 'It''s: what?'\n  - Yes\n";
        assert_eq!(parse(file), [vec!["Who was it, then?", "1963"], vec!["It's: what?", "Yes"]]);
    }
}
