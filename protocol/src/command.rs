use serde::{Deserialize, Serialize};

use crate::{Message, RunConfig, SamplingParams, Thinking};

/// Chosen by whoever sends the command; every event of it carries the id back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// Something the window or the command line wants of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub job: JobId,
    pub body: CommandBody,
}

/// A model is named by a Hub id, a folder, a `.gguf` file or `starter`; an adapter by its library name or a PEFT folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum CommandBody {
    Hardware,
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

    DataCheck {
        model: String,
        data: String,
        config: RunConfig,
    },
    /// `row` counts from 0.
    DataShow {
        model: String,
        data: String,
        row: usize,
        config: RunConfig,
    },

    Train(Box<TrainRequest>),
    RunsList,
    RunsShow {
        run: String,
    },
    RunsResume {
        run: String,
    },
    /// Checkpoint and stop, also when another Lathe process holds the run.
    RunsStop {
        run: String,
    },
    RunsRemove {
        run: String,
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
    AdaptersRemove {
        adapter: String,
    },

    /// Starts a chat; the job goes on until `Stop`.
    Chat {
        model: String,
        adapters: Vec<String>,
        device: String,
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
    },
    Eval {
        model: String,
        adapter: Option<String>,
        data: String,
        config: RunConfig,
        device: String,
    },

    /// Ends the job: a run checkpoints first.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRequest {
    pub model: String,
    pub data: String,
    pub eval_data: Option<String>,
    pub config: RunConfig,
    /// Folder for adapter and checkpoints; none means a folder of its own in the data folder.
    pub out_dir: Option<String>,
    /// Name of the run and of its adapter in the library; none means one made from model and data.
    pub name: Option<String>,
    pub init_adapter: Option<String>,
    /// Continue the run whose folder `out_dir` is.
    pub resume: bool,
    pub device: String,
}
