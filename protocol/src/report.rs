use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Divergence, EvalMetrics, LogLevel, Method, ModelShape, Origins, ReplyChannel, Role, RowPlace, RunConfig,
    SampleText, StepMetrics, Style, SweepPlace,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// What to write after `--model`.
    pub name: String,
    pub architecture: Option<String>,
    pub parameters: Option<u64>,
    pub size_bytes: u64,
    pub revision: Option<String>,
    pub path: String,
    /// As the model's own files name it, e.g. `apache-2.0`.
    pub license: Option<String>,
    /// None if `config.json` or the GGUF header does not tell it.
    pub shape: Option<ModelShape>,
    /// Why it cannot be used, if so.
    pub problem: Option<String>,
}

/// A model as its own files describe it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDetails {
    pub name: String,
    pub path: String,
    pub architecture: String,
    pub parameters: u64,
    pub size_bytes: u64,
    #[serde(flatten)]
    pub shape: ModelShape,
    /// Stored types and how many tensors have each, e.g. `Q4_1: 211`.
    pub dtypes: BTreeMap<String, usize>,
    pub has_chat_template: bool,
    /// What LoRA adapts by default.
    pub default_targets: Vec<String>,
    /// What else its choice decides.
    pub consequences: Vec<Consequence>,
    pub files: Vec<ModelFile>,
}

/// Something that follows from the choice of a model, in plain words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consequence {
    /// E.g. `Weights`.
    pub topic: String,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    pub name: String,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelProblem {
    pub file: String,
    pub problem: String,
}

/// The shapes of data file that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetShape {
    Messages,
    ShareGpt,
    Alpaca,
    PromptCompletion,
    Preference,
    Text,
}

/// Preflight's findings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// Of the first file, as are the columns.
    pub shape: DatasetShape,
    /// The rows' fields, and what each is taken for.
    pub columns: Vec<ColumnView>,
    /// The roles this shape has, e.g. `prompt`; `config.columns` maps a role to a column of another name.
    pub roles: Vec<String>,
    /// Of all files.
    pub rows: usize,
    pub files: Vec<FileReport>,
    /// Of the rows, held out for evaluation by `eval_ratio`.
    pub held_out_rows: usize,
    /// Of an epoch, after truncation.
    pub tokens: u64,
    /// Tokens of an epoch that the loss is taken over, after truncation.
    pub loss_tokens: u64,
    /// Lengths before truncation; of pairs, of the prompt with the chosen answer.
    pub lengths: LengthStats,
    /// Of pairs: lengths of the prompt with the rejected answer.
    #[serde(default)]
    pub rejected_lengths: Option<LengthStats>,
    pub max_seq_len: usize,
    pub truncated_rows: usize,
    /// Rows without a trained token as they are, not counting those that truncation emptied.
    pub rows_nothing_to_learn: usize,
    /// Rows whose trained tokens all lie past the cut.
    pub rows_emptied_by_truncation: usize,
    /// Rows that resemble an earlier one.
    pub duplicates: SimilarRows,
    /// Rows to learn from that resemble held-out ones.
    pub leaks: SimilarRows,
    /// Of both, left out by `dedupe`.
    pub rows_dropped: usize,
    /// The first few rows with something to say, e.g. `nothing to learn: no assistant turn`.
    pub issues: Vec<RowIssue>,
    /// Where the template comes from, e.g. `chat_template.jinja of the model`.
    pub template: String,
    /// How the loss mask was found: `generation tags`, of the template or of its twin, or `difference of renders`.
    pub mask_source: String,
    pub sequences_per_epoch: usize,
    pub steps_per_epoch: usize,
    pub warnings: Vec<String>,
}

impl DataReport {
    /// Before truncation; of pairs, the longer side.
    pub fn longest_row_tokens(&self) -> usize {
        self.rejected_lengths.as_ref().map_or(0, |lengths| lengths.max).max(self.lengths.max)
    }
}

/// One of the files to learn from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileReport {
    pub path: String,
    pub shape: DatasetShape,
    pub rows: usize,
    pub weight: f64,
}

/// Rows with the same words as others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SimilarRows {
    /// With the very same words, punctuation and case aside.
    pub exact: usize,
    /// With nearly the same, the system prompt aside.
    pub near: usize,
    /// The first few.
    pub pairs: Vec<SimilarPair>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimilarPair {
    pub row: RowPlace,
    /// The earlier, or held-out, row that it resembles.
    pub like: RowPlace,
    /// Share of word sequences in common; 1 if all words are the same.
    pub similarity: f64,
}

/// What tokenised data takes on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCache {
    pub folder: String,
    pub entries: usize,
    pub size_bytes: u64,
    pub limit_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnView {
    pub name: String,
    /// None: not used.
    pub role: Option<String>,
    /// The beginning of the first row's value.
    pub example: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthStats {
    pub min: usize,
    pub mean: f64,
    pub p50: usize,
    pub p95: usize,
    pub max: usize,
    /// Counts of rows in 24 equal bins of `0..=max`.
    pub histogram: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowIssue {
    #[serde(flatten)]
    pub place: RowPlace,
    pub issue: String,
}

/// One row as the model sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowView {
    #[serde(flatten)]
    pub place: RowPlace,
    /// Of a pair, the prompt and the chosen answer.
    pub tokens: Vec<TokenView>,
    /// Tokens that `max_seq_len` cuts off (they are in `tokens` too, at the end).
    pub truncated_tokens: usize,
    /// The other side of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<RejectedView>,
}

/// The prompt and the rejected answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RejectedView {
    pub tokens: Vec<TokenView>,
    pub truncated_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    pub id: u32,
    pub text: String,
    /// Whether the model is trained to predict it.
    pub loss: bool,
    /// Whose turn it is in; none between turns.
    pub role: Option<Role>,
    /// Set inside assistant turns.
    pub channel: Option<ReplyChannel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Queued,
    Running,
    /// Stopped on request, with a checkpoint.
    Stopped,
    /// Stopped on request; what it had learned is in the library. It can still be resumed.
    Kept,
    /// Its process died; it can be resumed.
    Interrupted,
    /// Memory gave out; it can be resumed with less.
    OutOfMemory,
    /// The guard ended it before a bad update; it can be resumed.
    Diverged,
    Completed,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEntry {
    pub id: String,
    pub name: String,
    pub status: RunStatus,
    pub model: String,
    pub data: String,
    pub method: Method,
    pub out_dir: String,
    /// Seconds since 1970.
    pub created_secs: u64,
    pub step: usize,
    pub total_steps: usize,
    pub last_loss: Option<f64>,
    pub eval_loss: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
    /// Of one that diverged.
    #[serde(default)]
    pub divergence: Option<Divergence>,
    /// Of late.
    pub tokens_per_second: Option<f64>,
    /// What a running one prepares, e.g. `Loading the model`; none once it trains.
    pub doing: Option<String>,
    /// Of a queued one, among all that are queued, whatever device they wait for; 0 is the first.
    pub queue_position: Option<usize>,
    /// Whether the process that answers holds it (closing the process stops it).
    #[serde(default)]
    pub held_here: bool,
    /// What it is to run on: `auto`, `cpu` or `cuda:N`.
    #[serde(default = "auto")]
    pub device: String,
    /// What it runs on.
    #[serde(default)]
    pub runs_on: Option<String>,
    /// Of one that is part of a sweep.
    #[serde(default)]
    pub sweep: Option<SweepPlace>,
}

fn auto() -> String {
    "auto".into()
}

/// What becomes of a run that is stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopThen {
    /// It can be resumed.
    #[default]
    Pause,
    /// Also takes the adapter as it is into the library.
    Keep,
    /// Removes the run and its folder.
    Discard,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDetails {
    pub run: RunEntry,
    pub config: RunConfig,
    pub init_adapter: Option<String>,
    pub eval_data: Option<String>,
    pub steps: Vec<MetricPoint>,
    pub evals: Vec<EvalMetrics>,
    pub samples: Vec<SampleText>,
    pub log: Vec<LogLine>,
    pub checkpoints: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Seconds since 1970.
    pub at_secs: f64,
    pub level: LogLevel,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricPoint {
    pub step: StepMetrics,
    /// Seconds since 1970.
    pub at_secs: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterEntry {
    pub name: String,
    pub path: String,
    pub base_model: Option<String>,
    pub r: usize,
    pub alpha: f64,
    pub targets: Vec<String>,
    pub size_bytes: u64,
    pub created_secs: Option<u64>,
    /// From `lathe.json`, when Lathe made it.
    pub run: Option<String>,
    pub data: Option<String>,
    pub last_loss: Option<f64>,
    pub notes: String,
    pub tags: Vec<String>,
    /// Ways of answering it was trained in.
    #[serde(default)]
    pub styles: Vec<Style>,
    /// What it was made of, if Lathe made it. Without, its base is not verified.
    #[serde(default)]
    pub origins: Option<Box<Origins>>,
    pub problem: Option<String>,
}

/// What is to change; none leaves a thing as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterUpdate {
    pub name: Option<String>,
    pub notes: Option<String>,
    pub tags: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorCheck {
    pub name: String,
    pub status: CheckStatus,
    pub message: String,
    pub hint: Option<String>,
}

/// A folder's subfolders and files, folders first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderView {
    pub path: String,
    pub parent: Option<String>,
    pub entries: Vec<FolderEntry>,
    /// Where people keep things: home, downloads, the sample data.
    pub places: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderEntry {
    pub name: String,
    pub path: String,
    pub is_folder: bool,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub name: String,
    pub path: String,
}
