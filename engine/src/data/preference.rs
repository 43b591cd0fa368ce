//! Preference rows: two answers to one prompt, as TRL takes them.
//!
//! The prompt is a text or messages of its own, or what both sides begin with.

use std::path::Path;

use lathe_protocol::{Message, Role};

use super::{Conversation, RawExample, RawText, conversation::Row};
use crate::Result;

/// Two sides of a row, each the prompt and an answer to it. A chat's `unlearned` are the messages of its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    pub chosen: Conversation,
    pub rejected: Conversation,
}

impl Pair {
    /// Why nothing can be learned from it.
    pub fn problem(&self) -> Option<&'static str> {
        if self.chosen == self.rejected {
            return Some("chosen and rejected are the same");
        }
        match (says_nothing(&self.chosen), says_nothing(&self.rejected)) {
            (true, _) => Some("the chosen answer is empty"),
            (_, true) => Some("the rejected answer is empty"),
            _ => None,
        }
    }
}

fn says_nothing(side: &Conversation) -> bool {
    match side {
        Conversation::Chat(chat) => chat.messages[chat.unlearned.len()..].iter().all(|message| {
            let Message { content, thinking, tool_calls, .. } = message;
            content.trim().is_empty() && thinking.is_none() && tool_calls.is_empty()
        }),
        Conversation::Raw(raw) => raw.completion.trim().is_empty(),
    }
}

/// Reads one preference row. `path` is for the error, which names row, line and field.
pub fn parse_pair(example: &RawExample, path: &Path) -> Result<Pair> {
    Row { example, path, takes_silence: true }.pair()
}

impl Row<'_> {
    pub fn pair(&self) -> Result<Pair> {
        match (self.is_messages("chosen"), self.is_messages("rejected")) {
            (true, true) => self.pair_of_messages(),
            (false, false) => self.pair_of_texts(),
            (true, false) => Err(self.error("rejected", "expected messages, as in chosen")),
            (false, true) => Err(self.error("rejected", "expected text, as in chosen")),
        }
    }

    fn pair_of_texts(&self) -> Result<Pair> {
        let (mut chosen, mut rejected) = (self.need_str("chosen")?, self.need_str("rejected")?);
        let prompt;
        if self.get("prompt").is_some() {
            prompt = self.need_str("prompt")?;
        } else {
            let both = chosen.char_indices().zip(rejected.chars());
            let differs = both.clone().find(|((_, a), b)| a != b).or_else(|| both.last());
            let mut at = differs.map_or(0, |((at, _), _)| at);
            // A space before the answers is part of them.
            at -= usize::from(chosen[..at].ends_with(' '));
            (prompt, chosen) = chosen.split_at(at);
            rejected = &rejected[at..];
        }
        let side = |completion: &str| {
            let (prompt, completion) = (prompt.to_owned(), completion.to_owned());
            Conversation::Raw(RawText { prompt, completion, style: self.style() })
        };
        Ok(Pair { chosen: side(chosen), rejected: side(rejected) })
    }

    fn pair_of_messages(&self) -> Result<Pair> {
        let messages = |field: &str| self.parse_messages(field, &self.need_array(field)?, &mut Vec::new());
        let (mut chosen, mut rejected) = (messages("chosen")?, messages("rejected")?);
        let answers = |side: &[Message]| side.first().is_some_and(|first| first.role == Role::Assistant);
        let prompt: Vec<Message> = if self.is_messages("prompt") {
            messages("prompt")?
        } else if self.get("prompt").is_some() && answers(&chosen) && answers(&rejected) {
            vec![Message::new(Role::User, self.need_str("prompt")?)]
        } else {
            let shortest = chosen.len().min(rejected.len());
            let differs = chosen.iter().zip(&rejected).position(|(a, b)| a != b);
            let at = differs.unwrap_or(shortest - 1);
            rejected.drain(..at);
            chosen.drain(..at).collect()
        };
        if prompt.is_empty() {
            return Err(self
                .error("prompt", "chosen and rejected begin differently, and there is no prompt")
                .hint("add a prompt, or begin both with the same messages"));
        }
        let side = |answer: Vec<Message>| {
            let messages = prompt.iter().cloned().chain(answer).collect();
            self.chat(messages, (0..prompt.len()).collect())
        };
        Ok(Pair { chosen: side(chosen)?, rejected: side(rejected)? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(fields: &Value) -> Result<Pair> {
        let example = RawExample { row: 0, line: 1, fields: fields.as_object().cloned().unwrap_or_default() };
        parse_pair(&example, Path::new("a.jsonl"))
    }

    /// Prompt, chosen and rejected, whatever their form; messages as `role: content` lines.
    fn check(fields: &Value, expected: [&str; 3]) {
        let Pair { chosen, rejected } = parse(fields).unwrap();
        let parts = |side: &Conversation| match side {
            Conversation::Raw(raw) => (raw.prompt.clone(), raw.completion.clone()),
            Conversation::Chat(chat) => {
                let lines = |messages: &[Message]| {
                    let line = |message: &Message| format!("{:?}: {}", message.role, message.content);
                    messages.iter().map(line).collect::<Vec<_>>().join(" | ")
                };
                let (prompt, answer) = chat.messages.split_at(chat.unlearned.len());
                (lines(prompt), lines(answer))
            }
        };
        let ((prompt, chosen), (same_prompt, rejected)) = (parts(&chosen), parts(&rejected));
        assert_eq!([prompt.as_str(), &chosen, &rejected], expected, "{fields}");
        assert_eq!(prompt, same_prompt);
    }

    fn user(content: &str) -> Value {
        json!({"role": "user", "content": content})
    }

    fn assistant(content: &str) -> Value {
        json!({"role": "assistant", "content": content})
    }

    #[test]
    fn a_prompt_of_its_own_stands_before_both_answers() {
        check(
            &json!({"prompt": "Sky?", "chosen": " Blue", "rejected": " Green"}),
            ["Sky?", " Blue", " Green"],
        );
        let messages = json!({
            "prompt": [user("Sky?")], "chosen": [assistant("Blue")], "rejected": [assistant("Green")],
        });
        let expected = ["User: Sky?", "Assistant: Blue", "Assistant: Green"];
        check(&messages, expected);
        let in_cells = json!({
            "prompt": messages["prompt"].to_string(), "chosen": messages["chosen"].to_string(),
            "rejected": messages["rejected"].to_string(),
        });
        check(&in_cells, expected);
        let asked_as_text = json!({
            "prompt": "Sky?", "chosen": [assistant("Blue")], "rejected": [assistant("Green")],
        });
        check(&asked_as_text, expected);
    }

    #[test]
    fn a_prompt_inside_both_sides_is_what_they_begin_with() {
        check(
            &json!({"chosen": "The sky is blue.", "rejected": "The sky is green."}),
            ["The sky is", " blue.", " green."],
        );
        check(&json!({"chosen": "Größe: 1", "rejected": "Größe: 2"}), ["Größe:", " 1", " 2"]);
        // As UltraFeedback has it: a prompt as text beside whole conversations.
        check(
            &json!({
                "prompt": "Sky?",
                "chosen": [user("Hi"), assistant("Ho"), user("Sky?"), assistant("Blue")],
                "rejected": [user("Hi"), assistant("Ho"), user("Sky?"), assistant("Green"), user("Sure?")],
            }),
            ["User: Hi | Assistant: Ho | User: Sky?", "Assistant: Blue", "Assistant: Green | User: Sure?"],
        );
    }

    #[test]
    fn pairs_that_cannot_be_read_are_named() {
        for (fields, expected) in [
            (
                json!({"chosen": [assistant("a")], "rejected": [assistant("b")]}),
                "Row 0 (line 1), prompt: chosen and rejected begin differently, and there is no prompt: a.jsonl",
            ),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": [assistant("c")]}),
                "Row 0 (line 1), rejected: expected text, as in chosen: a.jsonl",
            ),
            (
                json!({"prompt": "a", "chosen": "b", "rejected": 3}),
                "Row 0 (line 1), rejected: expected a string, found a number: a.jsonl",
            ),
        ] {
            assert_eq!(parse(&fields).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn pairs_without_a_difference_or_an_answer_are_found() {
        let problem = |prompt: Value, chosen: Value, rejected: Value| {
            parse(&json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})).unwrap().problem()
        };
        let same = Some("chosen and rejected are the same");
        assert_eq!(problem(json!("a"), json!("b"), json!("b")), same);
        assert_eq!(problem(json!([user("a")]), json!([assistant("b")]), json!([assistant("b")])), same);
        assert_eq!(problem(json!("a"), json!(" "), json!("b")), Some("the chosen answer is empty"));
        let empty = problem(json!([user("a")]), json!([assistant("b")]), json!([assistant("")]));
        assert_eq!(empty, Some("the rejected answer is empty"));
        assert_eq!(problem(json!("a"), json!("b"), json!("c")), None);
    }
}
