//! What the two sides say to each other: the window (or the command line) to the host, and the host to a worker.
//!
//! Plain data with serde, and the rules of LoRA's targets: it builds for wasm and knows neither a tensor nor a file.

mod cache;
mod catalog;
mod chat;
mod command;
mod config;
mod divergence;
mod error;
mod estimate;
mod event;
mod frame;
mod hardware;
mod hub;
mod job;
mod link;
mod origins;
mod report;
mod settings;
mod style;
mod sweep;
mod targets;

pub use cache::{CacheFile, CachePlan, CacheRepo, CacheReport, CacheRevision, CacheTarget, RepoKind};
pub use catalog::{CatalogModel, catalog, in_catalog};
pub use chat::{
    AnsweredBy, ChatEntry, ChatLane, ChatNode, ChatRecord, ChatStats, Message, REASONING_EFFORTS,
    ReplyChannel, ReplyDelta, Role, RunLane, RunVoice, SamplingParams, Thinking, ToolCall,
};
pub use command::{Command, CommandBody, JobId, LogFormat, ResumeHow, TrainRequest, TrainStart};
pub use config::{
    CONFIG_KEYS, ConfigKey, DataFile, Dedupe, LoraConfig, Method, Objective, Optimizer, Quant, RunConfig,
    Schedule,
};
pub use divergence::{Divergence, DivergenceSign, RowPlace};
pub use error::{ErrorCode, ErrorInfo};
pub use estimate::{
    ExpertFormat, ExpertsShape, MeasuredMemory, MemoryEstimate, ModelShape, Phase, Placement, ProbeReport,
    Remedy, chat_memory, training_flops, training_memory,
};
pub use event::{
    EvalMetrics, Event, EventBody, LogLevel, OddsMetrics, PreferenceMetrics, SampleText, StepMetrics, Told,
    TrainSummary,
};
pub use frame::{handshake, read_frame, write_frame};
pub use hardware::{Gpu, GpuProcess, Hardware, PcieLink};
pub use hub::{Download, DownloadAct, DownloadStatus, Gate, HubDetails, HubFile, HubModel, MODEL_TYPES};
pub use job::{ChatJob, DataJob, EvalJob, Job, LogitsJob, ProbeJob, Request, TrainJob};
pub use link::EngineLink;
pub use origins::{BaseMatch, BasePrint, FilePrint, Machine, Origins, WeightsMetrics};
pub use report::{
    AdapterEntry, AdapterUpdate, CheckStatus, ColumnView, Consequence, DataReport, DatasetShape, DoctorCheck,
    FileReport, FolderEntry, FolderView, LengthStats, LogLine, MetricPoint, ModelDetails, ModelEntry,
    ModelFile, ModelProblem, Place, RejectedView, RowIssue, RowView, RunDetails, RunEntry, RunStatus,
    SimilarPair, SimilarRows, StopThen, TokenCache, TokenView,
};
pub use settings::{Secret, Settings, SettingsView, Theme, TokenStatus};
pub use style::{Style, StylesFile};
pub use sweep::{MANY_RUNS, MAX_SWEEP_KEYS, SweepKey, SweepPlace, SweepRequest, SweepValue, sweep_points};
pub use targets::{
    LoraTargets, REGEX_PREFIX, ends_in, indices_text, is_saved, matches_pattern, parse_layers, parse_rows,
};

/// Version of the frames between host and worker; the worker's first line of stdout carries it.
pub const PROTOCOL_VERSION: u32 = 1;
