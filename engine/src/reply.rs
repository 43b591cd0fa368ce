//! Generated tokens into what a person reads: text by channel, markers never shown.

mod harmony;
mod tags;

use std::{collections::HashMap, sync::Arc};

use lathe_protocol::{ReplyChannel, ReplyDelta};
use tokenizers::Tokenizer;

pub use self::{
    harmony::{ANSWER_AT_ONCE, HarmonySplitter, MESSAGE_END, SIGNS as HARMONY_SIGNS, STOPS},
    tags::TagSplitter,
};
use crate::{
    template::ChatTemplate,
    text_files::{TextFiles, is_special},
};

/// A reply cut off inside a marker shows nothing of it, from so many bytes on; less may be text (`a <`).
const MIN_CUT_MARKER_BYTES: usize = 4;

/// How a model marks the parts of its reply.
pub enum Parser {
    /// Everything is the answer.
    Plain(Detokenizer),
    /// `<think>…</think>` and `<tool_call>…</tool_call>` around parts of it.
    Tagged(Detokenizer, TagSplitter),
    /// A row of messages, each with a channel in its header: gpt-oss.
    Harmony(Detokenizer, HarmonySplitter),
}

impl Parser {
    /// For a reply to `prompt`, the rendered conversation, which may have opened a thought or a message already.
    pub fn for_model(text_files: &TextFiles, prompt: &str) -> Self {
        let tokenizer = text_files.tokenizer.clone();
        match text_files.reply_form() {
            ReplyForm::Plain => Self::Plain(Detokenizer::new(tokenizer, &[])),
            ReplyForm::Tagged => {
                let thinks = prompt.trim_end().ends_with("<think>");
                let channel = if thinks { ReplyChannel::Thinking } else { ReplyChannel::Answer };
                Self::Tagged(Detokenizer::new(tokenizer, &tags::markers()), TagSplitter::new(channel))
            }
            ReplyForm::Harmony => {
                Self::Harmony(Detokenizer::new(tokenizer, &harmony::MARKERS), HarmonySplitter::after(prompt))
            }
        }
    }

    /// Takes the next token; gives what can be shown by now, often nothing.
    pub fn push(&mut self, id: u32) -> Vec<ReplyDelta> {
        match self {
            Self::Plain(detokenizer) => answer(detokenizer.push(id)),
            Self::Tagged(detokenizer, splitter) => splitter.push(&detokenizer.push(id)),
            Self::Harmony(detokenizer, splitter) => splitter.push(&detokenizer.push(id)),
        }
    }

    /// Gives what was held back.
    pub fn finish(&mut self) -> Vec<ReplyDelta> {
        match self {
            Self::Plain(detokenizer) => answer(detokenizer.finish()),
            Self::Tagged(detokenizer, splitter) => {
                let mut deltas = splitter.push(&detokenizer.finish());
                deltas.extend(splitter.finish());
                deltas
            }
            Self::Harmony(detokenizer, splitter) => {
                let mut deltas = splitter.push(&detokenizer.finish());
                deltas.extend(splitter.finish());
                deltas
            }
        }
    }

    /// Whether the next token belongs to a thought.
    pub fn is_thinking(&self) -> bool {
        let channel = match self {
            Self::Plain(_) => None,
            Self::Tagged(_, splitter) => Some(splitter.channel()),
            Self::Harmony(_, splitter) => splitter.channel(),
        };
        channel == Some(ReplyChannel::Thinking)
    }

    /// What ends a thought and begins the answer.
    pub fn end_of_thinking(&self) -> &'static str {
        match self {
            Self::Plain(_) => "",
            Self::Tagged(..) => tags::END_OF_THINKING,
            Self::Harmony(..) => harmony::END_OF_THINKING,
        }
    }
}

/// How a model writes its replies, by what its tokenizer and its template know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyForm {
    Plain,
    Tagged,
    Harmony,
}

impl ReplyForm {
    pub fn of(tokenizer: &Tokenizer, template: &ChatTemplate) -> Self {
        let knows = |marker: &str| template.mentions(marker) || tokenizer.token_to_id(marker).is_some();
        if harmony::SIGNS.into_iter().all(knows) {
            Self::Harmony
        } else if tags::markers().into_iter().any(knows) {
            Self::Tagged
        } else {
            Self::Plain
        }
    }
}

fn answer(text: String) -> Vec<ReplyDelta> {
    if text.is_empty() { Vec::new() } else { vec![ReplyDelta { channel: ReplyChannel::Answer, text }] }
}

/// Tokens into text as they come. A token may be half a character: it waits for the other half.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The tokens of the last piece given, for decoders whose text depends on what stands before, then those that wait.
    ids: Vec<u32>,
    num_given: usize,
    given: String,
    /// Special tokens by id: the text of those that are markers, none for the rest, which are never shown.
    specials: HashMap<u32, Option<String>>,
}

impl Detokenizer {
    /// A broken character is shown as such when it has waited for so many tokens: none has more bytes.
    const MAX_WAITING: usize = 4;

    /// Of the special tokens, `markers` alone become text.
    pub fn new(tokenizer: Arc<Tokenizer>, markers: &[&str]) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let specials = added
            .into_iter()
            .filter(|(id, _)| is_special(&tokenizer, *id))
            .map(|(id, token)| (id, markers.contains(&token.content.as_str()).then_some(token.content)))
            .collect();
        Self { tokenizer, ids: Vec::new(), num_given: 0, given: String::new(), specials }
    }

    pub fn push(&mut self, id: u32) -> String {
        if let Some(tag) = self.specials.get(&id).cloned() {
            // Text does not run on across a special token.
            return self.finish() + &tag.unwrap_or_default();
        }
        self.ids.push(id);
        let text = self.decode();
        let is_broken = text.ends_with('\u{fffd}') && self.ids.len() - self.num_given < Self::MAX_WAITING;
        if is_broken || text.len() <= self.given.len() {
            return String::new();
        }
        let piece = text.get(self.given.len()..).unwrap_or_default().to_string();
        self.ids.drain(..self.num_given);
        self.num_given = self.ids.len();
        self.given = self.decode();
        piece
    }

    /// What still waits, as far as it is text.
    pub fn finish(&mut self) -> String {
        let text = self.decode();
        let piece = text.get(self.given.len()..).unwrap_or_default().to_string();
        self.ids.clear();
        self.num_given = 0;
        self.given.clear();
        piece
    }

    fn decode(&self) -> String {
        // Decoders of the kinds we load cannot fail; an id past the vocabulary is skipped.
        self.tokenizer.decode(&self.ids, false).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::{prelude::*, test_runner::TestRunner};
    use tokenizers::AddedToken;

    use super::*;
    use crate::tokenize::encode_plain;

    fn tiny() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3")
    }

    /// The tiny tokenizer with these as special tokens.
    fn with_specials(markers: &[&str]) -> TextFiles {
        let mut tokenizer = Tokenizer::from_file(tiny().join("tokenizer.json")).unwrap();
        let specials: Vec<_> = markers.iter().map(|marker| AddedToken::from(*marker, true)).collect();
        tokenizer.add_special_tokens(specials).unwrap();
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path().join("tokenizer.json"), false).unwrap();
        TextFiles::open(folder.path()).unwrap()
    }

    fn reply(text_files: &TextFiles, ids: &[u32]) -> Vec<ReplyDelta> {
        let mut parser = Parser::for_model(text_files, "");
        let mut deltas: Vec<_> = ids.iter().flat_map(|id| parser.push(*id)).collect();
        deltas.extend(parser.finish());
        deltas
    }

    #[test]
    fn a_tokenizer_with_harmonys_markers_writes_harmony() {
        let text_files = with_specials(&harmony::MARKERS);
        assert_eq!(text_files.reply_form(), ReplyForm::Harmony);
        assert!(text_files.supports_thinking());
        let id = |marker: &str| text_files.tokenizer.token_to_id(marker).unwrap();
        assert!(harmony::STOPS.iter().all(|stop| text_files.stop_ids.contains(&id(stop))));
        assert!(!text_files.stop_ids.contains(&id(MESSAGE_END)));
        let text = "<|channel|>analysis<|message|>Hm 🙂<|end|><|start|>assistant<|channel|>final<|message|>あ<|return|>";
        let deltas = reply(&text_files, &encode_plain(&text_files, text).unwrap());
        let of = |wanted| {
            let mine = deltas.iter().filter(|delta| delta.channel == wanted);
            mine.map(|delta| delta.text.as_str()).collect::<String>()
        };
        assert_eq!((of(ReplyChannel::Thinking).as_str(), of(ReplyChannel::Answer).as_str()), ("Hm 🙂", "あ"));
    }

    #[test]
    fn a_soup_of_tokens_shows_no_marker() {
        for markers in [harmony::MARKERS.to_vec(), tags::markers().to_vec()] {
            let text_files = with_specials(&markers);
            let size = u32::try_from(text_files.tokenizer.get_vocab_size(true)).unwrap();
            let special: Vec<_> =
                markers.iter().filter_map(|marker| text_files.tokenizer.token_to_id(marker)).collect();
            let id = prop_oneof![0..size + 2, prop::sample::select(special)];
            let mut runner = TestRunner::deterministic();
            runner
                .run(&prop::collection::vec(id, 0..48), |ids| {
                    let deltas = reply(&text_files, &ids);
                    prop_assert!(deltas.iter().all(|delta| !delta.text.is_empty()));
                    let text: String = deltas.into_iter().map(|delta| delta.text).collect();
                    prop_assert!(markers.iter().all(|marker| !text.contains(marker)), "{text:?}");
                    Ok(())
                })
                .unwrap();
        }
    }

    #[test]
    fn half_characters_wait_and_special_tokens_are_not_shown() {
        let text_files = TextFiles::open(&tiny()).unwrap();
        let check = |text: &str, expected: &str| {
            let mut parser = Parser::for_model(&text_files, "");
            let mut shown = String::new();
            for id in encode_plain(&text_files, text).unwrap() {
                for delta in parser.push(id) {
                    assert!(!delta.text.is_empty() && !delta.text.contains('\u{fffd}'), "{delta:?}");
                    shown.push_str(&delta.text);
                }
            }
            parser.finish().into_iter().for_each(|delta| shown.push_str(&delta.text));
            assert_eq!(shown, expected);
        };
        check("ありがとう 🙂👩‍👩‍👧 Łódź  x\n", "ありがとう 🙂👩‍👩‍👧 Łódź  x\n");
        check("Hi<|im_end|>\n<|im_start|>there", "Hi\nthere");
        // Half a character at the very end shows as a broken one, and what stands before a special token too.
        let mut parser = Parser::for_model(&text_files, "");
        let half = encode_plain(&text_files, "あ").unwrap()[0];
        assert!(parser.push(half).is_empty());
        assert_eq!(
            parser.push(text_files.stop_ids[0]),
            [ReplyDelta { channel: ReplyChannel::Answer, text: "\u{fffd}".into() }]
        );
        assert!(parser.finish().is_empty());
    }
}
