use serde::{Deserialize, Serialize};

use crate::{
    AdapterUpdate, CacheTarget, ChatRecord, DownloadAct, Message, RepoKind, RunConfig, SamplingParams,
    Secret, Settings, StopThen, SweepRequest, Thinking,
};

/// Chosen by whoever sends the command; every event of it carries the id back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// Something the window or the command line wants of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub job: JobId,
    pub body: CommandBody,
}

/// A model is named by a Hub id, `s3://bucket/prefix`, a folder, a `.gguf` file or `starter`; an adapter by its library name or a PEFT folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandBody {
    Hardware,
    /// Tells of the graphics cards, now and every second that something changed, until the job is stopped.
    GpusFollow,
    Doctor,

    ModelsList,
    ModelsShow {
        model: String,
    },
    /// Copies a folder or `.gguf` file into the Hugging Face cache as `name` (`owner/name`).
    ModelsImport {
        path: String,
        name: Option<String>,
    },
    ModelsVerify {
        model: String,
    },
    ModelsRemove {
        model: String,
    },
    /// Downloads a model of the Hub, or from `s3://bucket/prefix`; tells of it by `Download`. Stopped, it is paused.
    ModelsPull {
        model: String,
        /// A branch, tag or commit; none means `main`.
        revision: Option<String>,
    },

    /// Models of the Hub that Lathe can use first.
    HubSearch {
        query: String,
        limit: usize,
    },
    /// A model as the Hub, or a bucket, tells of it; nothing but headers is downloaded.
    HubShow {
        model: String,
        revision: Option<String>,
    },

    /// The list of downloads now and whenever one changes, until `Stop`.
    DownloadsFollow,
    /// Into the queue of downloads, which this host works off.
    DownloadsAdd {
        model: String,
        revision: Option<String>,
    },
    DownloadsAct {
        model: String,
        act: DownloadAct,
    },

    /// What lies in the Hugging Face cache.
    CacheShow,
    /// What deleting these would free; deletes nothing.
    CachePlan {
        targets: Vec<CacheTarget>,
    },
    CacheDelete {
        targets: Vec<CacheTarget>,
    },
    /// Moves the cache, or one repository of it, to a folder of another disk; a link stays where it was.
    CacheMove {
        repo: Option<(RepoKind, String)>,
        to: String,
    },

    DataCheck {
        model: String,
        /// `config.data` comes before it.
        data: String,
        eval_data: Option<String>,
        config: RunConfig,
    },
    /// One `Row` for each of up to `count` rows from `row` on, which counts from 0.
    DataShow {
        model: String,
        data: String,
        row: usize,
        count: usize,
        config: RunConfig,
    },

    /// What tokenised data takes on disk, as [`EventBody::TokenCache`](crate::EventBody::TokenCache).
    DataCache,
    DataCacheClear,

    Train(Box<TrainRequest>),
    /// Measures the memory of one step of a run whose longest row has so many tokens; none means `max_seq_len`.
    /// Refused if the prediction is more than what is free.
    Probe {
        model: String,
        config: RunConfig,
        longest_row: Option<usize>,
        device: String,
    },
    /// Queues the runs of a sweep, all or none, and answers with them.
    Sweep(Box<SweepRequest>),
    RunsList,
    /// `Runs` now and whenever something about a run changes, until `Stop`.
    RunsFollow,
    RunsShow {
        run: String,
    },
    /// The run's record (`Run`), then its events as they are recorded, whichever process runs it. Ends with the run.
    RunsWatch {
        run: String,
    },
    /// The command line that does the run again, and what differs by now.
    RunsReproduce {
        run: String,
    },
    /// Writes the metrics into the folder `out`.
    RunsExport {
        run: String,
        format: LogFormat,
        out: String,
    },
    /// Also starts a queued run at once.
    RunsResume {
        run: String,
        #[serde(default)]
        how: ResumeHow,
        #[serde(default)]
        start: TrainStart,
        /// In place of the one it was started with, from now on.
        #[serde(default)]
        device: Option<String>,
    },
    /// Checkpoint and stop, also when another Lathe process holds the run. Takes a queued run out of the queue.
    RunsStop {
        run: String,
        then: StopThen,
    },
    /// Gives a queued run another place; 0 is the next to start.
    RunsMove {
        run: String,
        position: usize,
    },
    /// Gives a queued run to another device, or to whichever is free (`auto`).
    RunsAssign {
        run: String,
        device: String,
    },
    RunsRemove {
        run: String,
    },
    /// Puts the runs of a sweep that can go on back into the queue, and answers with them.
    SweepResume {
        sweep: String,
    },
    /// Starts queued runs, each when its device is free, until there are none; of one sweep, if it is named.
    /// `Stop` ends those under way with a checkpoint; the others stay queued.
    QueueWork {
        sweep: Option<String>,
    },

    AdaptersList,
    AdaptersShow {
        adapter: String,
    },
    /// Copies a PEFT folder into the library.
    AdaptersImport {
        path: String,
        name: Option<String>,
    },
    /// Only adapters of the library.
    AdaptersUpdate {
        adapter: String,
        update: AdapterUpdate,
    },
    AdaptersRemove {
        adapter: String,
    },

    ChatsList,
    ChatsShow {
        chat: String,
    },
    /// Creates or replaces the chat with its id.
    ChatsSave(Box<ChatRecord>),
    ChatsRemove {
        chat: String,
    },

    SettingsShow,
    SettingsSave(Settings),
    /// Keeps the Hugging Face token in the operating system's keyring.
    TokenSave {
        token: Secret,
    },
    TokenRemove,

    /// A folder of the machine the host runs on; none means the home folder.
    Browse {
        folder: Option<String>,
    },
    /// Shows a folder in the file manager of the machine the host runs on.
    OpenFolder {
        path: String,
    },

    /// Starts a chat; the job goes on until `Stop`.
    Chat {
        model: String,
        adapters: Vec<String>,
        device: String,
        /// Load adapters of another base all the same; so below.
        #[serde(default)]
        force: bool,
    },
    /// Starts a chat with a run of whatever process, which answers between its steps; the job goes on until `Stop` or
    /// the run's end, which is its failure.
    TalkToRun {
        run: String,
        /// Without its adapter.
        base: bool,
    },
    /// To a running chat.
    Reply {
        messages: Vec<Message>,
        sampling: SamplingParams,
        thinking: Thinking,
        effort: Option<String>,
    },
    /// To a running chat.
    CancelReply,
    Logits {
        model: String,
        adapter: Option<String>,
        ids: Vec<u32>,
        out: String,
        device: String,
        #[serde(default)]
        force: bool,
    },
    Eval {
        model: String,
        adapter: Option<String>,
        data: String,
        config: RunConfig,
        device: String,
        #[serde(default)]
        force: bool,
    },

    /// Ends the job: a run checkpoints first.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRequest {
    pub model: String,
    /// The first data file; `config.data` comes before it.
    pub data: String,
    pub eval_data: Option<String>,
    pub config: RunConfig,
    /// Folder for adapter and checkpoints; none means a folder of its own in the data folder.
    pub out_dir: Option<String>,
    /// Name of the run and of its adapter in the library; none means one made from model and data.
    pub name: Option<String>,
    pub init_adapter: Option<String>,
    /// Start from an adapter of another base all the same.
    #[serde(default)]
    pub force: bool,
    /// Continue the run whose folder `out_dir` is.
    pub resume: bool,
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    #[serde(default)]
    pub start: TrainStart,
}

/// What changes in a run that goes on; its config keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResumeHow {
    #[default]
    AsItWas,
    /// Without the rows of the step it diverged at.
    SkipRows,
    /// At half the learning rate.
    LowerRate,
    /// No longer watched for spikes.
    IgnoreSpikes,
    /// Recomputing every block's activations, which changes no loss.
    LessMemory,
}

/// A form in which other programs read a run's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Csv,
    /// Event files.
    Tensorboard,
}

/// How long a `Train` job stays with its run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainStart {
    /// To its end: the run's events are the job's.
    #[default]
    Attached,
    /// Until training has started (or failed to); the host goes on with the run, `RunsWatch` tells of it.
    Detached,
    /// The run is recorded, and started when its device is free.
    Queued,
}
