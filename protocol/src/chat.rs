use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A call the assistant makes, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `{"name": .., "arguments": ..}`.
    pub function: serde_json::Value,
}

/// One turn of a conversation, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// What the assistant thought before it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Of a user's turn: the way it wants to be answered, by a style's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<String>,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            thinking: None,
            tool_calls: Vec::new(),
            name: None,
            tool_call_id: None,
            style: None,
        }
    }
}

/// How hard a model is told to think, where it can be told.
pub const REASONING_EFFORTS: [&str; 3] = ["low", "medium", "high"];

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    pub top_p: f64,
    /// 0 keeps every token.
    pub top_k: usize,
    pub max_tokens: usize,
    /// Before so many tokens a reply does not end.
    pub min_tokens: usize,
    pub seed: u64,
    /// After so many tokens a thought is ended and the answer begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking_budget: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            max_tokens: 512,
            min_tokens: 0,
            seed: 42,
            thinking_budget: None,
        }
    }
}

/// What happens to a model's thinking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    #[default]
    Show,
    /// It thinks, unseen: its thoughts come as they do, as a sign of life, and whoever shows the reply leaves them out.
    Hide,
    /// It is asked not to think, or made to answer at once.
    Off,
}

/// Which part of a reply a piece of text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyChannel {
    Thinking,
    Answer,
    ToolCall,
}

/// A piece of a reply, as it is generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyDelta {
    pub channel: ReplyChannel,
    pub text: String,
}

/// The clock of one reply. Loading is never counted in the speed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ChatStats {
    pub load_seconds: f64,
    /// From the request to the first token.
    pub ttft_seconds: f64,
    pub prompt_tokens: usize,
    pub output_tokens: usize,
    /// Output tokens after the first, by the time they took.
    pub tokens_per_second: f64,
    /// Of the output tokens, those of its thoughts.
    #[serde(default)]
    pub thinking_tokens: usize,
    #[serde(default)]
    pub thinking_seconds: f64,
    /// Whether the model ended its turn (else the token limit did, or a stop).
    pub finished: bool,
}

/// Whose words an answer of a run in training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredBy {
    /// How many steps had been taken.
    pub step: usize,
    pub total_steps: usize,
    pub voice: RunVoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunVoice {
    /// The model with the adapter as of the step.
    Adapter,
    /// The model without it.
    Base,
    /// The model itself, all of which learns.
    Model,
}

impl fmt::Display for AnsweredBy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let voice = match self.voice {
            RunVoice::Adapter => "adapter",
            RunVoice::Base => "base",
            RunVoice::Model => "model",
        };
        write!(formatter, "step {} of {} · {voice}", self.step, self.total_steps)
    }
}

/// A conversation as it is kept. With two lanes it compares two models on the same questions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatRecord {
    /// Chosen by whoever creates the chat.
    pub id: String,
    pub title: String,
    /// Seconds since 1970.
    pub updated_secs: u64,
    pub system: String,
    pub sampling: SamplingParams,
    pub thinking: Thinking,
    pub effort: Option<String>,
    pub lanes: Vec<ChatLane>,
}

/// One model's side of a conversation: a tree, since a question can be edited and an answer regenerated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLane {
    pub model: String,
    pub adapters: Vec<String>,
    /// The adapters are of another base, and somebody wants them all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// Answers while it trains, in place of the model and adapters named above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunLane>,
    /// In which the next answer is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style: Option<String>,
    pub nodes: Vec<ChatNode>,
    /// Index of the last node of the branch that is shown.
    pub leaf: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLane {
    /// The run's id.
    pub id: String,
    pub name: String,
    /// Without its adapter.
    pub base: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatNode {
    /// Index of the node before; none begins a conversation.
    pub parent: Option<usize>,
    pub message: Message,
    /// Of an answer that came to its end.
    pub stats: Option<ChatStats>,
    /// Of an answer of a run in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<AnsweredBy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatEntry {
    pub id: String,
    pub title: String,
    pub updated_secs: u64,
    pub model: String,
}
