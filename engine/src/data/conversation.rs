//! Rows into conversations, one parser a shape.
//!
//! - `messages`, ShareGPT and Alpaca rows are chats; every assistant turn is learned, but those of OpenAI's `weight: 0`.
//! - `prompt` and `completion` as strings are text end to end, without template; as messages they are a chat of which
//!   only the completion's assistant turns are learned (TRL's convention for both).
//! - `text` is learned whole.
//! - `prompt`, `chosen` and `rejected` are a pair of answers: `preference` reads them.
//!
//! A `style` beside them names the way of answering that the row shows.

use std::path::Path;

use lathe_protocol::{DatasetShape, Message, REASONING_EFFORTS, Role, ToolCall};
use serde_json::{Map, Value};

use super::{Chat, Conversation, RawExample, RawText, parse_pair, read::kind, row_error};
use crate::{Error, Result};

const ROLES: &[(&str, Role)] = &[
    ("system", Role::System),
    ("developer", Role::Developer),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
];

/// ShareGPT's names for whose turn it is, as they occur in the wild.
const SHAREGPT_ROLES: &[(&str, Role)] = &[
    ("system", Role::System),
    ("human", Role::User),
    ("user", Role::User),
    ("gpt", Role::Assistant),
    ("assistant", Role::Assistant),
    ("function_call", Role::Assistant),
    ("tool", Role::Tool),
    ("observation", Role::Tool),
    ("function_response", Role::Tool),
];

/// Reads one row as its shape says; of a pair, its chosen side. `path` is for the error, which names row, line and field.
pub fn parse_conversation(example: &RawExample, shape: DatasetShape, path: &Path) -> Result<Conversation> {
    let row = Row { example, path, takes_silence: false };
    match shape {
        DatasetShape::Messages => row.messages(),
        DatasetShape::ShareGpt => row.sharegpt(),
        DatasetShape::Alpaca => row.alpaca(),
        DatasetShape::PromptCompletion => row.prompt_completion(),
        DatasetShape::Text => row.text(),
        DatasetShape::Preference => Ok(parse_pair(example, path)?.chosen),
    }
}

/// A row and what its errors name.
pub(super) struct Row<'a> {
    pub example: &'a RawExample,
    pub path: &'a Path,
    /// Whether an assistant's turn may be empty: a pair that has one is pointed out later, not refused.
    pub takes_silence: bool,
}

impl Row<'_> {
    pub fn error(&self, field: &str, problem: impl AsRef<str>) -> Error {
        row_error(self.path, self.example.row, self.example.line, field, problem.as_ref())
    }

    fn wrong_kind(&self, field: &str, value: &Value, wanted: &str) -> Error {
        self.error(field, format!("expected {wanted}, found {}", kind(value)))
    }

    pub fn get(&self, field: &str) -> Option<&Value> {
        self.example.fields.get(field).filter(|value| !value.is_null())
    }

    fn need(&self, field: &str) -> Result<&Value> {
        self.get(field).ok_or_else(|| self.error(field, "missing field"))
    }

    pub fn need_str(&self, field: &str) -> Result<&str> {
        let value = self.need(field)?;
        value.as_str().ok_or_else(|| self.wrong_kind(field, value, "a string"))
    }

    fn optional_str(&self, field: &str) -> Result<Option<&str>> {
        self.get(field).map(|_| self.need_str(field)).transpose()
    }

    /// An array, or a string that holds one, as CSV cells do.
    pub fn need_array(&self, field: &str) -> Result<Vec<Value>> {
        let items = match self.need(field)? {
            Value::Array(items) => items.clone(),
            Value::String(text) => serde_json::from_str(text)
                .map_err(|error| self.error(field, format!("expected an array of messages: {error}")))?,
            other => return Err(self.wrong_kind(field, other, "an array of messages")),
        };
        if items.is_empty() {
            return Err(self.error(field, "no messages"));
        }
        Ok(items)
    }

    /// The way of answering that the row shows. Numbers occur, too.
    pub fn style(&self) -> Option<String> {
        let value = self.get("style").filter(|value| value.as_str() != Some(""))?;
        Some(value.as_str().map_or_else(|| value.to_string(), String::from))
    }

    /// A row's style is that of every user's turn.
    pub fn chat(&self, mut messages: Vec<Message>, unlearned: Vec<usize>) -> Result<Conversation> {
        let style = self.style();
        for message in messages.iter_mut().filter(|message| message.role == Role::User) {
            message.style.clone_from(&style);
        }
        let tools = match self.get("tools") {
            // Tables cannot hold nested schemas of different shapes, so tools are often stored as text.
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => Some(
                serde_json::from_str(text)
                    .map_err(|error| self.error("tools", format!("not a list of tools: {error}")))?,
            ),
            other => other.cloned(),
        };
        if let Some(other) = tools.as_ref().filter(|tools| !tools.is_array()) {
            return Err(self.wrong_kind("tools", other, "an array"));
        }
        let tools = tools.filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()));
        let reasoning_effort = self.optional_str("reasoning_effort")?.map(str::to_string);
        if let Some(other) = reasoning_effort.as_deref().filter(|effort| !REASONING_EFFORTS.contains(effort))
        {
            let error = self.error("reasoning_effort", format!("unknown effort {other:?}"));
            return Err(error.hint(format!("known efforts: {}", REASONING_EFFORTS.join(", "))));
        }
        Ok(Conversation::Chat(Chat { messages, tools, reasoning_effort, unlearned }))
    }

    fn messages(&self) -> Result<Conversation> {
        let mut unlearned = Vec::new();
        let messages = self.parse_messages("messages", &self.need_array("messages")?, &mut unlearned)?;
        self.chat(messages, unlearned)
    }

    pub fn parse_messages(
        &self,
        field: &str,
        items: &[Value],
        unlearned: &mut Vec<usize>,
    ) -> Result<Vec<Message>> {
        let parse = |(index, item): (usize, &Value)| {
            let at = format!("{field}[{index}]");
            let Value::Object(fields) = item else { return Err(self.wrong_kind(&at, item, "an object")) };
            if fields.get("weight").and_then(Value::as_f64) == Some(0.0) {
                unlearned.push(index);
            }
            self.parse_message(&at, fields)
        };
        items.iter().enumerate().map(parse).collect()
    }

    fn parse_message(&self, at: &str, fields: &Map<String, Value>) -> Result<Message> {
        let get = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let role = self.role(at, "role", get("role"), ROLES)?;
        let optional = |name: &str| match get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong_kind(&format!("{at}.{name}"), other, "a string")),
        };
        let thinking_field =
            ["thinking", "reasoning_content", "reasoning"].into_iter().find(|name| get(name).is_some());
        let thinking = thinking_field.map_or(Ok(None), optional)?.filter(|text| !text.is_empty());
        let tool_calls = match get("tool_calls") {
            None => Vec::new(),
            Some(Value::Array(calls)) => {
                let parse = |(i, call)| self.tool_call(&format!("{at}.tool_calls[{i}]"), call);
                calls.iter().enumerate().map(parse).collect::<Result<_>>()?
            }
            Some(other) => return Err(self.wrong_kind(&format!("{at}.tool_calls"), other, "an array")),
        };
        let content_at = format!("{at}.content");
        let content = match get("content") {
            Some(value) => self.content(&content_at, value)?,
            // OpenAI writes null, or nothing, for a turn that only calls tools.
            None if role == Role::Assistant && !tool_calls.is_empty() => String::new(),
            None if fields.contains_key("content") => {
                return Err(self.error(&content_at, "expected a string, found null"));
            }
            None => return Err(self.error(&content_at, "missing field")),
        };
        let (name, tool_call_id) = (optional("name")?, optional("tool_call_id")?);
        let message = Message { role, content, thinking, tool_calls, name, tool_call_id, style: None };
        if role == Role::Assistant {
            self.refuse_empty(&content_at, &message)?;
        } else if let Some(field) = thinking_field.filter(|_| message.thinking.is_some()) {
            return Err(self.error(&format!("{at}.{field}"), "only assistant turns can think"));
        }
        Ok(message)
    }

    /// An assistant that says nothing would teach the model to end its turn at once.
    fn refuse_empty(&self, at: &str, message: &Message) -> Result<()> {
        if !self.takes_silence && message.content.trim().is_empty() && message.tool_calls.is_empty() {
            return Err(self
                .error(at, "the assistant's content is empty")
                .hint("fill it in, or remove the row"));
        }
        Ok(())
    }

    fn role(&self, at: &str, field: &str, value: Option<&Value>, known: &[(&str, Role)]) -> Result<Role> {
        let at = format!("{at}.{field}");
        let Some(value) = value else { return Err(self.error(&at, "missing field")) };
        let Some(name) = value.as_str() else { return Err(self.wrong_kind(&at, value, "a string")) };
        let found = known.iter().find(|(known, _)| *known == name);
        found.map(|(_, role)| *role).ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            self.error(&at, format!("unknown role {name:?}"))
                .hint(format!("known roles: {}", names.join(", ")))
        })
    }

    /// A string, or OpenAI's list of text parts, joined by line breaks.
    fn content(&self, at: &str, value: &Value) -> Result<String> {
        let parts = match value {
            Value::String(text) => return Ok(text.clone()),
            Value::Array(parts) => parts,
            other => return Err(self.wrong_kind(at, other, "a string")),
        };
        let part_text = |(index, part): (usize, &Value)| {
            let at = format!("{at}[{index}]");
            let part_kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
            if part_kind != "text" {
                let problem = format!("a part of type {part_kind:?}: only text can be trained on");
                return Err(self.error(&at, problem));
            }
            match part.get("text") {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(other) => Err(self.wrong_kind(&format!("{at}.text"), other, "a string")),
                None => Err(self.error(&format!("{at}.text"), "missing field")),
            }
        };
        Ok(parts.iter().enumerate().map(part_text).collect::<Result<Vec<_>>>()?.join("\n"))
    }

    /// OpenAI's `{"function": {..}}`, or the function alone.
    ///
    /// Arguments that are JSON in a string become the JSON: templates write them with `tojson`, which would quote them
    /// a second time.
    fn tool_call(&self, at: &str, call: &Value) -> Result<ToolCall> {
        let mut function = call.get("function").unwrap_or(call).clone();
        if function.get("name").and_then(Value::as_str).is_none() {
            return Err(self.error(at, "a tool call needs a function with a name"));
        }
        let arguments = function.get("arguments").and_then(Value::as_str).map(serde_json::from_str::<Value>);
        if let Some(Ok(parsed @ Value::Object(_))) = arguments {
            function["arguments"] = parsed;
        }
        let text = |name: &str| call.get(name).and_then(Value::as_str).map(str::to_string);
        Ok(ToolCall { id: text("id"), kind: text("type"), function })
    }

    fn sharegpt(&self) -> Result<Conversation> {
        let items = self.need_array("conversations")?;
        let mut messages = Vec::with_capacity(items.len() + 1);
        if let Some(system) = self.optional_str("system")?.filter(|text| !text.is_empty()) {
            messages.push(Message::new(Role::System, system));
        }
        for (index, item) in items.iter().enumerate() {
            let at = format!("conversations[{index}]");
            let Value::Object(fields) = item else { return Err(self.wrong_kind(&at, item, "an object")) };
            // Some files say `conversations` and mean OpenAI's messages.
            if fields.contains_key("role") && !fields.contains_key("from") {
                messages.push(self.parse_message(&at, fields)?);
                continue;
            }
            let role = self.role(&at, "from", fields.get("from"), SHAREGPT_ROLES)?;
            let at = format!("{at}.value");
            let Some(value) = fields.get("value") else { return Err(self.error(&at, "missing field")) };
            let mut message = Message::new(role, self.content(&at, value)?);
            if fields.get("from").and_then(Value::as_str) == Some("function_call") {
                let call = serde_json::from_str(&message.content)
                    .map_err(|error| self.error(&at, format!("a function_call must be JSON: {error}")))?;
                message.content.clear();
                message.tool_calls.push(self.tool_call(&at, &call)?);
            }
            if role == Role::Assistant {
                self.refuse_empty(&at, &message)?;
            }
            messages.push(message);
        }
        self.chat(messages, Vec::new())
    }

    /// The instruction, with its input below it, asks; the output answers.
    fn alpaca(&self) -> Result<Conversation> {
        let mut messages = Vec::new();
        if let Some(system) = self.optional_str("system")?.filter(|text| !text.is_empty()) {
            messages.push(Message::new(Role::System, system));
        }
        let instruction = self.need_str("instruction")?;
        let question = match self.optional_str("input")?.filter(|input| !input.trim().is_empty()) {
            Some(input) => format!("{instruction}\n\n{input}"),
            None => instruction.to_string(),
        };
        messages.push(Message::new(Role::User, question));
        let answer = Message::new(Role::Assistant, self.need_str("output")?);
        self.refuse_empty("output", &answer)?;
        messages.push(answer);
        self.chat(messages, Vec::new())
    }

    /// Whether a field holds messages. So may a CSV cell; a string that merely begins with a bracket is text.
    pub fn is_messages(&self, field: &str) -> bool {
        match self.get(field) {
            Some(Value::String(text)) => serde_json::from_str::<Vec<Map<String, Value>>>(text)
                .is_ok_and(|items| !items.is_empty() && items.iter().all(|item| item.contains_key("role"))),
            other => other.is_some_and(Value::is_array),
        }
    }

    fn prompt_completion(&self) -> Result<Conversation> {
        if !self.is_messages("prompt") && !self.is_messages("completion") {
            let (prompt, completion) = (self.need_str("prompt")?, self.need_str("completion")?);
            if completion.trim().is_empty() {
                return Err(self.error("completion", "the completion is empty"));
            }
            let (prompt, completion) = (prompt.to_string(), completion.to_string());
            return Ok(Conversation::Raw(RawText { prompt, completion, style: self.style() }));
        }
        let mut ignored = Vec::new();
        let mut messages = self.parse_messages("prompt", &self.need_array("prompt")?, &mut ignored)?;
        let mut unlearned: Vec<_> = (0..messages.len()).collect();
        let mut unlearned_of_completion = Vec::new();
        let completion = self.need_array("completion")?;
        let completion = self.parse_messages("completion", &completion, &mut unlearned_of_completion)?;
        unlearned.extend(unlearned_of_completion.into_iter().map(|index| index + messages.len()));
        messages.extend(completion);
        self.chat(messages, unlearned)
    }

    fn text(&self) -> Result<Conversation> {
        let text = self.need_str("text")?;
        if text.trim().is_empty() {
            return Err(self.error("text", "the text is empty"));
        }
        Ok(Conversation::Raw(RawText { prompt: String::new(), completion: text.to_string(), style: None }))
    }
}
