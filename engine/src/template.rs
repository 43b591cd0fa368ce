//! Chat templates: a conversation into text, and which bytes of it the assistant wrote.

mod python;
mod spans;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

use jiff::civil::DateTime;
use lathe_protocol::{ErrorCode, Message, Role};
use minijinja::{Environment, Value, syntax::SyntaxConfig};

pub use spans::{TurnSpan, turns};

use sha2::{Digest as _, Sha256};

use crate::{Error, Result, data::Chat, files, foreign};

/// Private-use characters that frame what the assistant wrote, from render to strip.
const SPAN_START: char = '\u{10f3a0}';
const SPAN_END: char = '\u{10f3a1}';

const NAME: &str = "chat_template";
const TWIN: &str = "training_twin";

/// Training twins: templates with generation tags, for models whose own has none. Each stands behind words by which
/// the own one is known.
const TWINS: [(&str, &str); 2] = [
    ("<|channel|>analysis<|message|>", include_str!("../../chat_templates/gptoss_training.jinja")),
    ("last_query_index", include_str!("../../chat_templates/qwen3_training.jinja")),
];

/// Instructions that a render may take, of minijinja's: some seconds of a template that does not end, thousands of turns
/// of one that does.
const FUEL: u64 = 50_000_000;
const MAX_TEXT_BYTES: usize = 64 << 20;

/// A model's chat template, compiled.
pub struct ChatTemplate {
    /// Where it comes from, in words, e.g. `chat_template.jinja of the model`.
    pub origin: String,
    /// Hash of all that decides what it writes.
    pub fingerprint: String,
    source: String,
    environment: Environment<'static>,
    has_generation_tags: bool,
    has_twin: bool,
}

/// What a template is told beside the conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// End with the header of the assistant's next turn.
    pub add_generation_prompt: bool,
    /// Left undefined for the template when `None`.
    pub enable_thinking: Option<bool>,
    /// Wins over the conversation's own.
    pub reasoning_effort: Option<String>,
    /// What the template takes for now; the fixed day of training when `None`.
    pub now: Option<DateTime>,
}

/// What `strftime_now` tells by default, the day Llama 3's own template falls back to: rows trained today and resumed
/// tomorrow are the same tokens.
const TRAINING_DATE: DateTime = jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0);

/// A conversation as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    pub text: String,
    /// Bytes the assistant wrote, end token included, in order.
    pub assistant_spans: Vec<Range<usize>>,
    /// Whether the tokenizer adds its own first and last tokens; a chat template writes them itself.
    pub bare: bool,
}

impl ChatTemplate {
    /// Compiles `source`; `specials` are the tokens it may name (`bos_token`, `eos_token`, ..).
    ///
    /// The environment is transformers': `trim_blocks`, `lstrip_blocks`, loop controls, Python's methods and JSON.
    pub fn new(source: &str, origin: impl Into<String>, specials: &BTreeMap<String, String>) -> Result<Self> {
        let origin = origin.into();
        let fail = |error: &minijinja::Error| {
            Error::invalid(
                ErrorCode::Template,
                format!("The chat template does not parse: {error}: {origin}"),
            )
        };
        if source.contains([SPAN_START, SPAN_END]) {
            return Err(Error::invalid(
                ErrorCode::Template,
                format!("The chat template holds a character Lathe marks spans with: {origin}"),
            ));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| fail(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", python::tojson);
        environment.add_filter("assistant_span", |text: &str| format!("{SPAN_START}{text}{SPAN_END}"));
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            },
        );
        for (name, token) in specials {
            environment.add_global(name.clone(), token.clone());
        }
        let (rewritten, has_generation_tags) = rewrite_generation_tags(source);
        environment.add_template_owned(NAME, rewritten).map_err(|error| fail(&error))?;
        let twin = TWINS.iter().find(|(words, _)| !has_generation_tags && source.contains(words));
        if let Some((_, twin)) = twin {
            let (twin, _) = rewrite_generation_tags(twin);
            environment.add_template_owned(TWIN, twin).map_err(|error| fail(&error))?;
        }
        let has_twin = twin.is_some();
        let written_by = format!("{source:?} {twin:?} {specials:?}");
        let fingerprint = files::hex(&Sha256::digest(written_by));
        Ok(Self {
            origin,
            fingerprint,
            source: source.to_string(),
            environment,
            has_generation_tags,
            has_twin,
        })
    }

    /// Whether `{% generation %}` tags mark what the assistant writes.
    pub fn has_generation_tags(&self) -> bool {
        self.has_generation_tags
    }

    /// Whether Lathe has the same template with generation tags, or one that is nearly the same.
    pub fn has_twin(&self) -> bool {
        self.has_twin
    }

    /// As the model's files have it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template's source holds `text`, as a sign of what it can write.
    pub fn mentions(&self, text: &str) -> bool {
        self.source.contains(text)
    }

    /// The text alone: a prompt to generate from.
    pub fn prompt(&self, chat: &Chat, options: &RenderOptions) -> Result<String> {
        self.render_unmarked(&chat.messages, chat, options)
    }

    fn render_unmarked(&self, messages: &[Message], chat: &Chat, options: &RenderOptions) -> Result<String> {
        let mut text = self.render_messages(NAME, messages, chat, options)?;
        text.retain(|c| c != SPAN_START && c != SPAN_END);
        Ok(text)
    }

    /// Renders `messages` with everything else of `chat` by the template `name`. Sentinels stay in.
    fn render_messages(
        &self,
        name: &str,
        messages: &[Message],
        chat: &Chat,
        options: &RenderOptions,
    ) -> Result<String> {
        let now = options.now.unwrap_or(TRAINING_DATE);
        let strftime_now = move |format: &str| python::strftime(format, now);
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", messages.iter().map(message_value).collect()),
            ("tools", chat.tools.as_ref().map_or(Value::from(()), json_value)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", Value::from_function(strftime_now)),
        ];
        if let Some(enable_thinking) = options.enable_thinking {
            context.push(("enable_thinking", Value::from(enable_thinking)));
        }
        if let Some(effort) = options.reasoning_effort.as_ref().or(chat.reasoning_effort.as_ref()) {
            context.push(("reasoning_effort", Value::from(effort)));
        }
        let fail = |error: minijinja::Error| {
            // Templates speak to their user through raise_exception; the rest is for their author.
            let what = match std::error::Error::source(&error) {
                Some(limit) if error.kind() == minijinja::ErrorKind::WriteFailure => limit.to_string(),
                _ => error.detail().map_or_else(|| error.to_string(), str::to_string),
            };
            let line =
                error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
            Error::invalid(
                ErrorCode::Template,
                format!("The chat template fails: {what}{line}: {}", self.origin),
            )
        };
        let template = self.environment.get_template(name).map_err(fail)?;
        let rendered = foreign::guarded(|| {
            let mut text = Bounded(Vec::new());
            template.render_captured_to(Value::from_pairs(context), &mut text).map(|_| text.0)
        });
        let text = rendered.map_err(|panic| {
            let message = format!("The chat template fails: {panic}: {}", self.origin);
            Error::invalid(ErrorCode::Template, message)
        })?;
        String::from_utf8(text.map_err(fail)?).map_err(|error| {
            Error::invalid(
                ErrorCode::Template,
                format!("The chat template writes no text: {error}: {}", self.origin),
            )
        })
    }
}

/// Bytes, as long as they are not too many.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT_BYTES {
            return Err(std::io::Error::other(format!("it writes more than {} MiB", MAX_TEXT_BYTES >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The text, and which of it the assistant wrote.
///
/// Spans come from the template's `{% generation %}` tags, from those of its twin if that writes the same text, or from
/// the difference of renders.
/// Errors: `ErrorCode::Template` if the template fails or the spans cannot be told, `ErrorCode::Data` if a message
/// holds a character that frames spans.
pub fn render(template: &ChatTemplate, chat: &Chat, options: &RenderOptions) -> Result<Rendered> {
    if let Some(index) = chat.messages.iter().position(holds_sentinel) {
        return Err(Error::data(format!(
            "messages[{index}] holds the private-use character U+10F3A0 or U+10F3A1, with which Lathe marks spans"
        )));
    }
    let render = |name| {
        template.render_messages(name, &chat.messages, chat, options).map(|marked| strip_sentinels(&marked))
    };
    let (text, framed) = render(NAME)?;
    let twin = if template.has_twin { render(TWIN).ok() } else { None };
    let framed = match twin.filter(|(twin_text, _)| *twin_text == text) {
        Some((_, framed)) => Some(framed),
        None => template.has_generation_tags.then_some(framed),
    };
    let turns: Vec<_> =
        (0..chat.messages.len()).filter(|&i| chat.messages[i].role == Role::Assistant).collect();
    let framed = framed.filter(|framed| chat.unlearned.is_empty() || framed.len() == turns.len());
    let spans: Vec<_> = if let Some(framed) = framed {
        turns.into_iter().map(Some).chain(std::iter::repeat(None)).zip(framed).collect()
    } else {
        let spans = spans::by_difference(template, chat, options, &text)?;
        spans.into_iter().map(|(turn, bytes)| (Some(turn), bytes)).collect()
    };
    let is_learned = |turn: &Option<usize>| turn.is_none_or(|turn| !chat.unlearned.contains(&turn));
    let assistant_spans =
        spans.into_iter().filter(|(turn, _)| is_learned(turn)).map(|(_, bytes)| bytes).collect();
    Ok(Rendered { text, assistant_spans, bare: false })
}

fn holds_sentinel(message: &Message) -> bool {
    let holds = |text: &str| text.contains([SPAN_START, SPAN_END]);
    holds(&message.content)
        || message.thinking.as_deref().is_some_and(holds)
        || message.tool_calls.iter().any(|call| holds(&call.function.to_string()))
}

/// The text without sentinels, and the bytes they framed.
fn strip_sentinels(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut start = None;
    let mut rest = marked;
    while let Some(at) = rest.find([SPAN_START, SPAN_END]) {
        text.push_str(&rest[..at]);
        if rest[at..].starts_with(SPAN_START) {
            start = Some(text.len());
        } else if let Some(start) = start.take().filter(|&start| start < text.len()) {
            spans.push(start..text.len());
        }
        rest = &rest[at + SPAN_START.len_utf8()..];
    }
    text.push_str(rest);
    (text, spans)
}

/// Turns `{% generation %}` into a filter block, keeping its whitespace control, and says whether there was one.
fn rewrite_generation_tags(source: &str) -> (String, bool) {
    let mut rewritten = String::with_capacity(source.len());
    let mut found = false;
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at + 2..].find("%}").map(|length| at + 2 + length) else { break };
        let tag = &rest[at + 2..end];
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "filter assistant_span",
            "endgeneration" => "endfilter",
            _ => word,
        };
        rewritten.push_str(&rest[..at + 2]);
        if replacement == word {
            rewritten.push_str(tag);
        } else {
            found = true;
            rewritten.push_str(&tag.replacen(word, &format!(" {replacement} "), 1));
        }
        rewritten.push_str("%}");
        rest = &rest[end + 2..];
    }
    rewritten.push_str(rest);
    (rewritten, found)
}

/// A message as transformers hands it to a template: thinking goes by two names.
fn message_value(message: &Message) -> Value {
    let Message { role, content, thinking, tool_calls, name, tool_call_id, style: _ } = message;
    let mut fields: Vec<(&str, Value)> = Vec::with_capacity(6);
    if let Some(thinking) = thinking {
        fields.push(("thinking", Value::from(thinking)));
    }
    fields.push(("role", Value::from(role_name(*role))));
    fields.push(("content", Value::from(content)));
    if let Some(thinking) = thinking {
        fields.push(("reasoning_content", Value::from(thinking)));
    }
    if !tool_calls.is_empty() {
        let call_value = |call: &lathe_protocol::ToolCall| {
            let mut fields: Vec<(&str, Value)> = Vec::with_capacity(3);
            fields.extend(call.id.as_ref().map(|id| ("id", Value::from(id))));
            fields.extend(call.kind.as_ref().map(|kind| ("type", Value::from(kind))));
            fields.push(("function", json_value(&call.function)));
            Value::from_pairs(fields)
        };
        fields.push(("tool_calls", tool_calls.iter().map(call_value).collect()));
    }
    fields.extend(name.as_ref().map(|name| ("name", Value::from(name))));
    fields.extend(tool_call_id.as_ref().map(|id| ("tool_call_id", Value::from(id))));
    Value::from_pairs(fields)
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

fn json_value(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => items.iter().map(json_value).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, value)| (name.as_str(), json_value(value))))
        }
    }
}
