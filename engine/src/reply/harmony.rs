//! Harmony, the form of gpt-oss's replies: messages, each with a header that names its channel.
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`. Headers come out
//! broken now and then. What cannot be a header is taken as the model's words, and a message without a channel that is
//! known as an answer.

use lathe_protocol::{ReplyChannel, ReplyDelta};
use serde::de::IgnoredAny;
use serde_json::json;

use super::MIN_CUT_MARKER_BYTES;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const CONSTRAIN: &str = "<|constrain|>";
const END: &str = "<|end|>";
const RETURN: &str = "<|return|>";
const CALL: &str = "<|call|>";
pub(super) const MARKERS: [&str; 7] = [START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL];

/// A model that knows these writes Harmony.
pub const SIGNS: [&str; 3] = [START, CHANNEL, MESSAGE];
/// These end a reply.
pub const STOPS: [&str; 2] = [RETURN, CALL];
/// This ends a message: the next one follows.
pub const MESSAGE_END: &str = END;
/// Behind the prompt, it makes the model answer without a thought.
pub const ANSWER_AT_ONCE: &str = "<|channel|>final<|message|>";
/// What a model is made to write when its thought has to end.
pub(super) const END_OF_THINKING: &str = "<|end|><|start|>assistant<|channel|>final<|message|>";

const ROLES: [&str; 5] = ["assistant", "user", "system", "developer", "tool"];
const CHANNELS: [(&str, ReplyChannel); 3] = [
    ("analysis", ReplyChannel::Thinking),
    ("commentary", ReplyChannel::Answer),
    ("final", ReplyChannel::Answer),
];
/// What a header may say of its message's content.
const CONTENT_TYPES: [&str; 2] = ["json", "code"];
/// A longer part of a header is none, but text: a channel, a recipient and a content type are three words.
const MAX_HEADER_WORDS: usize = 3;
const MAX_HEADER_BYTES: usize = 128;

/// Text into channels as it comes. It goes by characters, so how the text is cut makes no difference.
pub struct HarmonySplitter {
    place: Place,
    /// The beginning of what may be a marker.
    held: String,
    /// The channel of the last text given, and whether its message is over.
    last: Option<(ReplyChannel, bool)>,
}

enum Place {
    Header(Header),
    Text(ReplyChannel),
    /// A tool call, given as JSON when it is over.
    Call {
        name: String,
        arguments: String,
    },
}

impl HarmonySplitter {
    /// For the reply to a prompt, which ends in a header or, if it forces the channel, behind one.
    pub fn after(prompt: &str) -> Self {
        let header = Header { has_role: false, ..Header::default() };
        let mut splitter = Self { place: Place::Header(header), held: String::new(), last: None };
        let tail = prompt.rsplit_once(START).map_or("", |(_, tail)| tail);
        if let Some(at) = tail.find(CHANNEL) {
            splitter.push(&tail[at..]);
        }
        splitter
    }

    /// What the text that comes next belongs to, unless it is a header.
    pub fn channel(&self) -> Option<ReplyChannel> {
        match &self.place {
            Place::Header(_) => None,
            Place::Text(channel) => Some(*channel),
            Place::Call { .. } => Some(ReplyChannel::ToolCall),
        }
    }

    pub fn push(&mut self, text: &str) -> Vec<ReplyDelta> {
        let mut deltas = Vec::new();
        for c in text.chars() {
            self.held.push(c);
            if let Some(marker) = MARKERS.into_iter().find(|marker| *marker == self.held) {
                self.held.clear();
                self.marker(marker, &mut deltas);
            } else if !MARKERS.iter().any(|marker| marker.starts_with(&self.held)) {
                // A marker begins with the only `<` in it, so if the last character is one, it may begin the next.
                let safe = self.held.len() - usize::from(c == '<');
                let text: String = self.held.drain(..safe).collect();
                self.text(&text, &mut deltas);
            }
        }
        deltas
    }

    pub fn finish(&mut self) -> Vec<ReplyDelta> {
        let mut deltas = Vec::new();
        let held = std::mem::take(&mut self.held);
        if held.len() < MIN_CUT_MARKER_BYTES {
            self.text(&held, &mut deltas);
        }
        self.close(&mut deltas);
        deltas
    }

    fn marker(&mut self, marker: &str, deltas: &mut Vec<ReplyDelta>) {
        match (marker, &mut self.place) {
            (MESSAGE, Place::Header(header)) => {
                let words = header.end_part(true);
                let (spoken_in, next) = (header.text_channel(), header.place());
                self.give(spoken_in, &words, deltas);
                self.end_message();
                self.place = next;
            }
            (CHANNEL, Place::Header(header)) => {
                let words = header.end_part(true);
                header.in_channel = true;
                let spoken_in = header.text_channel();
                self.give(spoken_in, &words, deltas);
                self.end_message();
            }
            (CONSTRAIN, Place::Header(header)) => header.part.push(' '),
            // Out of place: what stood before it and what follows are kept apart.
            (MESSAGE | CONSTRAIN, Place::Text(_)) => self.end_message(),
            (MESSAGE | CONSTRAIN, Place::Call { arguments, .. }) => arguments.push(' '),
            _ => {
                self.close(deltas);
                // A channel without a start: the header begins in its middle.
                let in_channel = marker == CHANNEL;
                self.place = Place::Header(Header { has_role: true, in_channel, ..Header::default() });
            }
        }
    }

    fn text(&mut self, text: &str, deltas: &mut Vec<ReplyDelta>) {
        match &mut self.place {
            Place::Text(channel) => {
                let channel = *channel;
                self.give(channel, text, deltas);
            }
            Place::Call { arguments, .. } => arguments.push_str(text),
            Place::Header(header) => {
                header.part.push_str(text);
                if header.is_text() {
                    let words = header.end_part(false);
                    self.place = header.place();
                    self.text(&words, deltas);
                }
            }
        }
    }

    /// Ends what the place holds.
    fn close(&mut self, deltas: &mut Vec<ReplyDelta>) {
        match &mut self.place {
            Place::Text(_) => {}
            Place::Call { name, arguments } => {
                let is_json = serde_json::from_str::<IgnoredAny>(arguments).is_ok();
                let arguments =
                    if is_json { std::mem::take(arguments) } else { json!(arguments).to_string() };
                let call = format!("{{\"name\": {}, \"arguments\": {}}}", json!(name), arguments.trim());
                self.give(ReplyChannel::ToolCall, &call, deltas);
            }
            Place::Header(header) => {
                let words = header.end_part(false);
                let spoken_in = header.text_channel();
                self.give(spoken_in, &words, deltas);
            }
        }
        self.end_message();
    }

    fn end_message(&mut self) {
        if let Some((_, is_over)) = &mut self.last {
            *is_over = true;
        }
    }

    /// Two messages of one channel are two paragraphs.
    fn give(&mut self, channel: ReplyChannel, text: &str, deltas: &mut Vec<ReplyDelta>) {
        if text.is_empty() {
            return;
        }
        let gap = if self.last == Some((channel, true)) { "\n\n" } else { "" };
        self.last = Some((channel, false));
        match deltas.last_mut().filter(|delta| delta.channel == channel) {
            Some(delta) => delta.text.extend([gap, text]),
            None => deltas.push(ReplyDelta { channel, text: format!("{gap}{text}") }),
        }
    }
}

/// A message's header as far as it is read.
#[derive(Default)]
struct Header {
    /// Whether it begins with a role; that of a reply's first message is in the prompt.
    has_role: bool,
    recipient: Option<String>,
    channel: Option<ReplyChannel>,
    /// What stands behind the last marker.
    part: String,
    /// Whether that marker is `<|channel|>`.
    in_channel: bool,
}

impl Header {
    /// Reads the part that ends here, and gives what in it is no header. `is_header`: the marker behind it says that
    /// it was one.
    fn end_part(&mut self, is_header: bool) -> String {
        let part = std::mem::take(&mut self.part);
        let in_channel = std::mem::take(&mut self.in_channel);
        let mut rest = part.trim_start();
        if let Some((name, channel)) = CHANNELS.iter().find(|(name, _)| in_channel && rest.starts_with(name))
        {
            self.channel = Some(*channel);
            rest = rest[name.len()..].trim_start();
        }
        while let Some(word) = rest.split_whitespace().next() {
            if let Some(recipient) = word.strip_prefix("to=") {
                let is_tool = !recipient.is_empty() && !ROLES.contains(&recipient);
                self.recipient = is_tool.then(|| recipient.trim_start_matches("functions.").to_string());
            } else {
                let is_role = (is_header || self.has_role) && !in_channel && ROLES.contains(&word);
                let is_content_type = is_header && CONTENT_TYPES.contains(&word);
                if !is_role && !is_content_type {
                    break;
                }
            }
            rest = rest[word.len()..].trim_start();
        }
        // One word more is the name of an unknown channel, or of a tool that speaks.
        let is_name = is_header && (in_channel || self.has_role) && rest.split_whitespace().nth(1).is_none();
        if is_name { String::new() } else { rest.to_string() }
    }

    /// Whether the part can no longer be a header.
    fn is_text(&self) -> bool {
        let part = self.part.trim_start();
        part.contains('\n')
            || part.len() > MAX_HEADER_BYTES
            || part.split_whitespace().nth(MAX_HEADER_WORDS).is_some()
    }

    fn text_channel(&self) -> ReplyChannel {
        self.channel.unwrap_or(ReplyChannel::Answer)
    }

    /// Where the text behind this header belongs.
    fn place(&mut self) -> Place {
        match self.recipient.take() {
            Some(name) => Place::Call { name, arguments: String::new() },
            None => Place::Text(self.text_channel()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text of each channel, in order, as a reader sees it.
    fn channels(prompt: &str, pieces: &[&str]) -> Vec<(ReplyChannel, String)> {
        let mut splitter = HarmonySplitter::after(prompt);
        let mut deltas: Vec<_> = pieces.iter().flat_map(|piece| splitter.push(piece)).collect();
        deltas.extend(splitter.finish());
        let mut channels: Vec<(ReplyChannel, String)> = Vec::new();
        for ReplyDelta { channel, text } in deltas {
            assert!(!text.is_empty());
            match channels.last_mut().filter(|(last, _)| *last == channel) {
                Some((_, all)) => all.push_str(&text),
                None => channels.push((channel, text)),
            }
        }
        for (_, text) in &channels {
            assert!(MARKERS.iter().all(|marker| !text.contains(marker)), "{text:?}");
        }
        channels
    }

    fn check(text: &str, expected: &[(ReplyChannel, &str)]) {
        let found = channels("<|start|>assistant", &[text]);
        let found: Vec<_> = found.iter().map(|(channel, text)| (*channel, text.as_str())).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    use ReplyChannel::{Answer, Thinking, ToolCall};

    #[test]
    fn messages_go_to_their_channels() {
        check(
            "<|channel|>analysis<|message|>Hm, a < b.<|end|><|start|>assistant<|channel|>final<|message|> Yes.\n<|return|>",
            &[(Thinking, "Hm, a < b."), (Answer, " Yes.\n")],
        );
        check(
            "<|channel|>commentary<|message|>I ask.<|end|><|start|>assistant<|channel|>final<|message|>So.<|return|>",
            &[(Answer, "I ask.\n\nSo.")],
        );
        let call = "{\"name\": \"get_weather\", \"arguments\": {\"z\":1, \"a\":2}}";
        for header in [
            " to=functions.get_weather<|channel|>commentary json",
            "<|channel|>commentary to=functions.get_weather <|constrain|>json",
            "<|channel|>commentary to=functions.get_weather<|constrain|>json",
            "<|channel|>analysis to=functions.get_weather code",
        ] {
            check(&format!("{header}<|message|>{{\"z\":1, \"a\":2}}<|call|>"), &[(ToolCall, call)]);
        }
        check(
            "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
            &[(ToolCall, "{\"name\": \"python\", \"arguments\": \"print(1)\"}")],
        );
    }

    #[test]
    fn broken_headers_lose_no_words() {
        // No header at all, a short one and one that the reply's end cuts off.
        check("Hello! How can I help you?", &[(Answer, "Hello! How can I help you?")]);
        check("Yes.<|return|>", &[(Answer, "Yes.")]);
        check("<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|chan", &[(Thinking, "Hm")]);
        check(
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final",
            &[(Thinking, "Hm")],
        );
        // No channel, an unknown one, two of them.
        check("<|message|>Yes.<|return|>", &[(Answer, "Yes.")]);
        check("<|channel|>thoughts<|message|>Hm.<|end|>", &[(Answer, "Hm.")]);
        check("<|channel|>analysis<|channel|>final<|message|>Yes.", &[(Answer, "Yes.")]);
        // Text before a marker, and where a marker is missing.
        check("Well now.<|channel|>final<|message|>Yes.", &[(Answer, "Well now.\n\nYes.")]);
        check("<|channel|>final The answer is 42.<|return|>", &[(Answer, "The answer is 42.")]);
        check("<|channel|>analysisWe need to think.<|end|>", &[(Thinking, "We need to think.")]);
        check(
            "<|channel|>analysis<|message|>Hm.<|end|>assistant<|channel|>final<|message|>Yes.",
            &[(Thinking, "Hm."), (Answer, "Yes.")],
        );
        check(
            "<|channel|>analysis<|message|>Hm.<|channel|>final<|message|>Yes.",
            &[(Thinking, "Hm."), (Answer, "Yes.")],
        );
        check("assistant<|channel|>final<|message|>Yes.", &[(Answer, "Yes.")]);
        check("<|channel|>final<|message|>a<|message|>b<|end|>c", &[(Answer, "a\n\nb\n\nc")]);
        check("x <|e", &[(Answer, "x <|e")]);
        check("x <|en", &[(Answer, "x ")]);
    }

    #[test]
    fn a_prompt_may_have_begun_the_message() {
        let found = channels("<|end|><|start|>assistant<|channel|>final<|message|>", &["Yes."]);
        assert_eq!(found, [(Answer, "Yes.".to_string())]);
        let splitter = HarmonySplitter::after("<|start|>assistant<|channel|>analysis<|message|>");
        assert_eq!(splitter.channel(), Some(Thinking));
    }

    proptest! {
        #[test]
        fn however_it_is_split_the_reply_reads_the_same_and_keeps_its_words(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL, "<|", "<", "|>", "end|>", "assistant", "analysis",
                    "commentary", "final", " to=functions.f", " json", "{}", " ", "\n", " two words ", " é", "🙂",
                ]),
                0..32,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let text = parts.concat();
            let whole = channels("<|start|>assistant", &[&text]);
            // One word may be the name of a channel; two never are.
            let count = |text: &str| text.matches("words").count();
            prop_assert_eq!(whole.iter().map(|(_, shown)| count(shown)).sum::<usize>(), count(&text));
            let mut cuts: Vec<_> = cuts.iter().map(|cut| text.floor_char_boundary(cut.index(text.len() + 1))).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut at = 0;
            for cut in cuts {
                pieces.push(&text[at..cut]);
                at = cut;
            }
            pieces.push(&text[at..]);
            prop_assert_eq!(&channels("<|start|>assistant", &pieces), &whole);
        }

        #[test]
        fn the_words_of_a_message_are_all_shown(words in "[a-z é<|>\n]{1,40}", channel in 0..3_usize) {
            let name = CHANNELS[channel].0;
            let text = format!("<|channel|>{name}<|message|>{words}<|end|>");
            prop_assert_eq!(channels("<|start|>assistant", &[&text]), [(CHANNELS[channel].1, words)]);
        }
    }
}
