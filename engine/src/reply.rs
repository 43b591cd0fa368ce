//! Generated tokens into what a person reads: text by channel, markers never shown.

use std::{collections::HashMap, sync::Arc};

use lathe_protocol::{ReplyChannel, ReplyDelta};
use tokenizers::Tokenizer;

use crate::text_files::{TextFiles, is_special};

/// Markers that change the channel, and the channel behind them.
const TAGS: [(&str, ReplyChannel); 4] = [
    ("<think>", ReplyChannel::Thinking),
    ("</think>", ReplyChannel::Answer),
    ("<tool_call>", ReplyChannel::ToolCall),
    ("</tool_call>", ReplyChannel::Answer),
];

/// A reply cut off inside a marker shows nothing of it, from so many bytes on; less may be text (`a <`).
const MIN_CUT_TAG_BYTES: usize = 4;

/// How a model marks the parts of its reply.
pub enum Parser {
    /// Everything is the answer.
    Plain(Detokenizer),
    /// `<think>…</think>` and `<tool_call>…</tool_call>` around parts of it.
    Tagged(Detokenizer, TagSplitter),
}

impl Parser {
    /// For a reply to `prompt`, the rendered conversation, which may have opened the thinking already.
    pub fn for_model(text_files: &TextFiles, prompt: &str) -> Self {
        let detokenizer = Detokenizer::new(text_files.tokenizer.clone());
        let template = text_files.chat_template();
        let is_tagged = TAGS
            .iter()
            .any(|(tag, _)| template.mentions(tag) || text_files.tokenizer.token_to_id(tag).is_some());
        if !is_tagged {
            return Self::Plain(detokenizer);
        }
        let thinks = prompt.trim_end().ends_with("<think>");
        let channel = if thinks { ReplyChannel::Thinking } else { ReplyChannel::Answer };
        Self::Tagged(detokenizer, TagSplitter::new(channel))
    }

    /// Takes the next token; gives what can be shown by now, often nothing.
    pub fn push(&mut self, id: u32) -> Vec<ReplyDelta> {
        match self {
            Self::Plain(detokenizer) => answer(detokenizer.push(id)),
            Self::Tagged(detokenizer, splitter) => splitter.push(&detokenizer.push(id)),
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

    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let specials = added
            .into_iter()
            .filter(|(id, _)| is_special(&tokenizer, *id))
            .map(|(id, token)| {
                (id, TAGS.iter().any(|(tag, _)| *tag == token.content).then_some(token.content))
            })
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

/// Text into channels as it comes, whatever pieces it comes in.
///
/// White space beside a marker belongs to neither side. A marker that does not fit (a second `<think>`, a `</think>`
/// without the first) only switches the channel.
pub struct TagSplitter {
    channel: ReplyChannel,
    /// The beginning of what may be a marker, and white space that may stand before one.
    held: String,
    after_tag: bool,
}

impl TagSplitter {
    pub fn new(channel: ReplyChannel) -> Self {
        // A reply that begins in its thinking had its marker in the prompt.
        Self { channel, held: String::new(), after_tag: channel == ReplyChannel::Thinking }
    }

    pub fn push(&mut self, text: &str) -> Vec<ReplyDelta> {
        let mut deltas = Vec::new();
        self.held.push_str(text);
        loop {
            if self.after_tag {
                self.held = self.held.trim_start().to_string();
                if self.held.is_empty() {
                    return deltas;
                }
            }
            let found = TAGS.iter().filter_map(|(tag, channel)| Some((self.held.find(tag)?, *tag, *channel)));
            let Some((at, tag, channel)) = found.min_by_key(|(at, ..)| *at) else { break };
            self.give(self.held[..at].trim_end().to_string(), &mut deltas);
            self.held.drain(..at + tag.len());
            self.channel = channel;
            self.after_tag = true;
        }
        let safe = self.held.len() - waiting_tag(&self.held);
        let safe = self.held[..safe].trim_end().len();
        let piece: String = self.held.drain(..safe).collect();
        self.give(piece, &mut deltas);
        deltas
    }

    pub fn finish(&mut self) -> Vec<ReplyDelta> {
        let mut deltas = Vec::new();
        let tag_bytes = waiting_tag(&self.held);
        if tag_bytes >= MIN_CUT_TAG_BYTES {
            self.held.truncate(self.held.len() - tag_bytes);
        }
        let text = std::mem::take(&mut self.held);
        let text = if self.channel == ReplyChannel::Answer { text.as_str() } else { text.trim_end() };
        self.give(text.to_string(), &mut deltas);
        deltas
    }

    fn give(&mut self, text: String, deltas: &mut Vec<ReplyDelta>) {
        if !text.is_empty() {
            self.after_tag = false;
            deltas.push(ReplyDelta { channel: self.channel, text });
        }
    }
}

/// Length in bytes of the end of `text` that may be the beginning of a marker.
fn waiting_tag(text: &str) -> usize {
    let starts = TAGS.iter().filter_map(|(tag, _)| (1..tag.len()).rev().find(|&n| text.ends_with(&tag[..n])));
    starts.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::tokenize::encode_plain;

    /// The text of each channel, in order, as a reader sees it.
    fn channels(start: ReplyChannel, pieces: &[&str]) -> Vec<(ReplyChannel, String)> {
        let mut splitter = TagSplitter::new(start);
        let mut deltas: Vec<_> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
        deltas.extend(splitter.finish());
        let mut channels: Vec<(ReplyChannel, String)> = Vec::new();
        for ReplyDelta { channel, text } in deltas {
            assert!(TAGS.iter().all(|(tag, _)| !text.contains(tag)), "{text:?}");
            match channels.last_mut().filter(|(last, _)| *last == channel) {
                Some((_, all)) => all.push_str(&text),
                None => channels.push((channel, text)),
            }
        }
        channels
    }

    #[test]
    fn tags_switch_channels_and_are_never_shown() {
        use ReplyChannel::{Answer, Thinking, ToolCall};
        let check = |text: &str, expected: &[(ReplyChannel, &str)]| {
            let found = channels(Answer, &[text]);
            let found: Vec<_> = found.iter().map(|(channel, text)| (*channel, text.as_str())).collect();
            assert_eq!(found, expected, "{text:?}");
        };
        check("Hello \n", &[(Answer, "Hello \n")]);
        check("<think>\nHm.\n</think>\n\nYes.", &[(Thinking, "Hm."), (Answer, "Yes.")]);
        check("<think>\n\n</think>\n\nYes.", &[(Answer, "Yes.")]);
        check("<think>\nHm, a < b \n", &[(Thinking, "Hm, a < b")]);
        check("Hm.\n</think>\nYes.", &[(Answer, "Hm.Yes.")]);
        check("<think>a<think>b</think>c", &[(Thinking, "ab"), (Answer, "c")]);
        check("I ask.\n<tool_call>\n{}\n</tool_call>", &[(Answer, "I ask."), (ToolCall, "{}")]);
        check("x <t", &[(Answer, "x <t")]);
        check("x</thin", &[(Answer, "x")]);
        check("a <b> & </b>", &[(Answer, "a <b> & </b>")]);
        assert_eq!(
            channels(Thinking, &["\nHm.</think>Yes."]),
            [(Thinking, "Hm.".into()), (Answer, "Yes.".into())]
        );
    }

    #[test]
    fn half_characters_wait_and_special_tokens_are_not_shown() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3");
        let text_files = TextFiles::open(&folder).unwrap();
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

    proptest! {
        #[test]
        fn however_it_is_split_the_reply_reads_the_same(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "<think>", "</think>", "<tool_call>", "</tool_call>", "<thi", "</", "<", ">", "think", " ", "\n", "a", "é", "🙂",
                ]),
                0..24,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
            thinks: bool,
        ) {
            let text = parts.concat();
            let start = if thinks { ReplyChannel::Thinking } else { ReplyChannel::Answer };
            let whole = channels(start, &[&text]);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                pieces.push(&text[at..cut]);
                at = cut;
            }
            pieces.push(&text[at..]);
            prop_assert_eq!(&channels(start, &pieces), &whole);
        }
    }
}
