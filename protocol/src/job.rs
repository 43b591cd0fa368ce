use serde::{Deserialize, Serialize};

use crate::{Machine, Message, RunConfig, SamplingParams, Thinking};

/// What a worker process is started for: its first frame on stdin. One job a process.
///
/// Paths are this machine's; the host has resolved every name to one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// Preflight: emits one [`EventBody::DataReport`](crate::EventBody::DataReport).
    CheckData(DataJob),
    /// Emits an [`EventBody::Row`](crate::EventBody::Row) for each of up to `count` rows from `row` (from 0) on.
    ShowData {
        data: DataJob,
        row: usize,
        count: usize,
    },
    Train(Box<TrainJob>),
    /// Does what a run's first step does, and emits one [`EventBody::Probe`](crate::EventBody::Probe).
    Probe(Box<ProbeJob>),
    /// Loads once, then answers every [`Request::Reply`].
    Chat(ChatJob),
    Logits(LogitsJob),
    Eval(EvalJob),
    /// Emits one [`EventBody::ModelDetails`](crate::EventBody::ModelDetails).
    DescribeModel {
        model: String,
    },
    /// Emits one [`EventBody::Origins`](crate::EventBody::Origins): what the run would be made of now.
    Origins(Box<TrainJob>),
}

impl Job {
    /// Model folder or `.gguf` file.
    pub fn model(&self) -> &str {
        match self {
            Self::CheckData(job) | Self::ShowData { data: job, .. } => &job.model,
            Self::Train(job) | Self::Origins(job) => &job.model,
            Self::Probe(job) => &job.model,
            Self::Chat(job) => &job.model,
            Self::Logits(job) => &job.model,
            Self::Eval(job) => &job.data.model,
            Self::DescribeModel { model } => model,
        }
    }

    /// What it computes on, if it does.
    pub fn device(&self) -> Option<&str> {
        match self {
            Self::Train(job) => Some(&job.device),
            Self::Probe(job) => Some(&job.device),
            Self::Chat(job) => Some(&job.device),
            Self::Logits(job) => Some(&job.device),
            Self::Eval(job) => Some(&job.device),
            Self::CheckData(_) | Self::ShowData { .. } | Self::DescribeModel { .. } | Self::Origins(_) => {
                None
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataJob {
    /// Model folder or `.gguf` file.
    pub model: String,
    pub data: String,
    /// Held-out rows, which the data is compared with.
    pub eval_data: Option<String>,
    pub config: RunConfig,
    /// Folder that keeps tokenised data.
    pub cache: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// Model folder or `.gguf` file.
    pub model: String,
    /// What the user called the model; goes into `adapter_config.json`.
    pub model_name: String,
    pub data: String,
    pub eval_data: Option<String>,
    /// Receives the adapter (or model), `lathe.json`, and `checkpoints/step-N/`.
    pub out_dir: String,
    pub config: RunConfig,
    /// Folder that keeps tokenised data.
    pub cache: String,
    /// PEFT folder whose weights the run starts from.
    pub init_adapter: Option<String>,
    /// Continue from the newest sound checkpoint in `out_dir`.
    pub resume: bool,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Start from an adapter of another base all the same.
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub machine: Machine,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeJob {
    /// Model folder or `.gguf` file.
    pub model: String,
    pub config: RunConfig,
    /// Of each of the batch's rows, all of them trained.
    pub row_tokens: usize,
    pub device: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatJob {
    pub model: String,
    /// PEFT folders, applied together.
    pub adapters: Vec<String>,
    pub device: String,
    /// Load adapters of another base all the same; so below.
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitsJob {
    pub model: String,
    pub adapter: Option<String>,
    pub ids: Vec<u32>,
    /// Safetensors file to write: `logits` (T, V) f32.
    pub out: String,
    pub device: String,
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalJob {
    pub data: DataJob,
    pub adapter: Option<String>,
    pub device: String,
    #[serde(default)]
    pub force: bool,
}

/// What a running worker is asked: every frame on stdin after the first. Closing stdin means `Stop`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Chat, and training between two steps: answer the conversation. Ends with
    /// [`EventBody::ReplyDone`](crate::EventBody::ReplyDone) or
    /// [`EventBody::ReplyFailed`](crate::EventBody::ReplyFailed).
    Reply {
        messages: Vec<Message>,
        sampling: SamplingParams,
        thinking: Thinking,
        effort: Option<String>,
        /// Training: without the adapter.
        #[serde(default)]
        base: bool,
    },
    /// Chat, training: end the reply that is being written.
    CancelReply,
    /// Training: checkpoint and exit. Chat: exit.
    Stop,
}
