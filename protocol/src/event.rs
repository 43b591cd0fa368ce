use serde::{Deserialize, Serialize};

use crate::{
    AdapterEntry, AnsweredBy, CachePlan, CacheReport, ChatEntry, ChatRecord, ChatStats, ColumnView,
    DataReport, Divergence, DoctorCheck, Download, ErrorInfo, FolderView, Gpu, Hardware, HubDetails,
    HubModel, JobId, ModelDetails, ModelEntry, ModelProblem, Opened, Origins, ProbeReport, ReplyDelta,
    RowView, RunDetails, RunEntry, SettingsView, Shell, Style, TokenCache,
};

/// Something that happened, with the job it belongs to. A worker's events carry the id its host gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub job: JobId,
    pub body: EventBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
}

/// Every job ends with exactly one of `Done` and `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    // Answers.
    Hardware(Hardware),
    /// As `gpus` and `gpu_note` of [`Hardware`].
    Gpus {
        gpus: Vec<Gpu>,
        gpu_note: Option<String>,
    },
    Models {
        models: Vec<ModelEntry>,
    },
    ModelDetails(Box<ModelDetails>),
    /// What `models verify` found; empty means sound.
    ModelProblems {
        problems: Vec<ModelProblem>,
        files_checked: usize,
        bytes_checked: u64,
    },
    HubModels {
        models: Vec<HubModel>,
    },
    HubDetails(Box<HubDetails>),
    Downloads {
        downloads: Vec<Download>,
    },
    /// Of one that this job does.
    Download(Box<Download>),
    Cache(Box<CacheReport>),
    CachePlan(CachePlan),
    /// Something was moved to a folder.
    Moved {
        what: String,
        to: String,
        bytes: u64,
    },
    DataReport(Box<DataReport>),
    /// Of a data file whose shape is not known: its columns, and every role a column can be mapped to by
    /// `config.columns`. The job's failure follows.
    DataColumns {
        columns: Vec<ColumnView>,
        roles: Vec<String>,
    },
    Row(RowView),
    TokenCache(TokenCache),
    Runs {
        runs: Vec<RunEntry>,
    },
    Run(Box<RunDetails>),
    /// The command line that does a run again.
    Reproduction {
        run: String,
        args: Vec<String>,
        /// `args` as a shell reads them.
        command: String,
        /// What differs from then: files, template, version.
        warnings: Vec<String>,
    },
    Origins(Box<Origins>),
    /// A run's metrics were written.
    Exported {
        paths: Vec<String>,
        steps: usize,
        evals: usize,
    },
    Adapters {
        adapters: Vec<AdapterEntry>,
    },
    Adapter(Box<AdapterEntry>),
    Chats {
        chats: Vec<ChatEntry>,
    },
    ChatRecord(Box<ChatRecord>),
    Settings(Box<SettingsView>),
    Folder(FolderView),
    Doctor {
        checks: Vec<DoctorCheck>,
    },
    /// Something was removed, and so many bytes came free.
    Removed {
        what: String,
        freed_bytes: u64,
    },
    Probe(ProbeReport),
    Shell(Shell),
    /// By `ShellPick`; none if the dialog was closed.
    Picked {
        path: Option<String>,
    },
    /// Of no job: the shell says it by itself, as job 0.
    Opened(Opened),
    /// `eval`'s answer and a training run's evaluations.
    Eval(EvalMetrics),
    /// `logits` wrote its file.
    LogitsWritten {
        path: String,
        num_tokens: usize,
        vocab_size: usize,
    },

    // The course of a job.
    /// A long preparation: `done` of `total` units (0 when unknown).
    Progress {
        what: String,
        done: u64,
        total: u64,
    },
    Log {
        level: LogLevel,
        message: String,
    },
    /// A run has its id and folder.
    RunStarted {
        run: String,
        name: String,
        out_dir: String,
    },
    /// Training begins: everything before the first step is ready.
    TrainingStarted {
        total_steps: usize,
        first_step: usize,
        trainable_parameters: u64,
        total_parameters: u64,
        rows: usize,
        tokens_per_epoch: u64,
    },
    Step(StepMetrics),
    /// Of a run that resumes: what was told just before its checkpoint, lest nobody was there to write it down.
    Retold(Told),
    Checkpoint {
        step: usize,
        path: String,
    },
    Sample(SampleText),
    /// The guard ends the run; its failure follows.
    Diverged(Divergence),
    /// Of a watched run: its status, place in the queue, or what it is doing.
    RunChanged(Box<RunEntry>),
    TrainingDone(TrainSummary),
    ChatReady {
        load_seconds: f64,
        supports_thinking: bool,
        /// Whether it can be told how hard to think: low, medium or high.
        #[serde(default)]
        supports_effort: bool,
        context_length: usize,
        /// The ways of answering it was trained in.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        styles: Vec<Style>,
    },
    /// Of a run in training: the reply begins.
    ReplyStarted(AnsweredBy),
    Reply(ReplyDelta),
    ReplyDone(ChatStats),
    /// A reply could not be given (a conversation too long, say); the chat goes on.
    ReplyFailed {
        error: ErrorInfo,
    },

    // The end of a job.
    Done,
    Failed {
        error: ErrorInfo,
    },
}

/// One optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Mean over the window's unmasked tokens, or over its pairs, before the update.
    pub loss: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// The rate this step used.
    pub lr: f64,
    /// All tokens of the window (not only the trained ones) by wall time.
    pub tokens_per_second: f64,
    pub tokens: usize,
    /// Tokens the loss was taken over.
    pub loss_tokens: usize,
    pub epoch: f64,
    /// Resident memory of the training process; the host looks it up, not at every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Of training on pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceMetrics>,
}

/// How a model takes the two sides of pairs, means over them; TRL's `rewards/*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PreferenceMetrics {
    /// Beta times what the log-probability of the chosen answer gained over the reference; with ORPO, beta times its
    /// mean over the answer's tokens.
    pub chosen_reward: f64,
    /// The same of the rejected answer.
    pub rejected_reward: f64,
    /// Share of pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
    /// Chosen less rejected reward.
    pub margin: f64,
    /// Of ORPO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub odds: Option<OddsMetrics>,
}

/// The parts of ORPO's loss, by TRL's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct OddsMetrics {
    /// Mean over the tokens of the chosen sides, prompts included.
    pub nll_loss: f64,
    /// Mean of log σ of the log odds.
    pub log_odds_ratio: f64,
    /// Mean log odds of chosen over rejected.
    pub log_odds_chosen: f64,
}

/// What the model as of a step answers to one of the fixed prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleText {
    pub step: usize,
    pub prompt: String,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    pub step: usize,
    /// Mean over the loss-masked tokens, or over the pairs.
    pub loss: f64,
    /// Of pairs, that of the chosen answers.
    pub perplexity: f64,
    /// Share of loss-masked tokens (of pairs, of the chosen answers') that are the likeliest one.
    pub token_accuracy: f64,
    pub loss_tokens: usize,
    pub rows: usize,
    /// Of pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceMetrics>,
}

/// Metrics of a run's last steps, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub steps: Vec<StepMetrics>,
    pub evals: Vec<EvalMetrics>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainSummary {
    pub steps: usize,
    /// Whether it ran to the end (else it was stopped and can be resumed).
    pub completed: bool,
    pub final_loss: Option<f64>,
    /// Of the weights that were saved.
    pub eval_loss: Option<f64>,
    /// The step whose weights were saved: the last one's, or those that evaluated best.
    #[serde(default)]
    pub kept_step: usize,
    pub seconds: f64,
    /// The adapter's (or, for `full`, the model's) folder.
    pub out_dir: String,
}
