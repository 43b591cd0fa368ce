use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use lathe_protocol::{LogFormat, Thinking};

/// Shape language models on your own workstation.
///
/// M is a Hub id in the cache (Qwen/Qwen3-0.6B), s3://bucket/prefix, a folder, a .gguf file, or starter.
/// A is an adapter's name in the library, or a PEFT folder.
#[derive(Debug, Parser)]
#[command(name = "lathe", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Option<CommandLine>,
}

#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where Lathe keeps runs, adapters and its database [default: the platform's, or LATHE_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// auto, cpu or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Print JSON on stdout: one object, or one a line for a stream
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

#[derive(Debug, Subcommand)]
pub enum CommandLine {
    /// The whole road on the starter model, offline, in about a minute
    Quickstart(Quickstart),
    /// This machine, and what it fits
    Hardware,
    /// Models on disk and on the Hub
    #[command(subcommand)]
    Models(Models),
    /// The memory a run takes, by part, and which cards it fits
    Estimate {
        /// As elsewhere, or one of the Hub that is not here yet (openai/gpt-oss-20b)
        #[arg(long, value_name = "M")]
        model: String,
        #[command(flatten)]
        config: ConfigArgs,
        /// Also do one step here, on rows of max_seq_len tokens, and measure what it takes
        #[arg(long)]
        probe: bool,
    },
    /// Look at data as the model will see it
    #[command(subcommand)]
    Data(Data),
    /// Fine-tune a model
    Train(Box<Train>),
    /// Fine-tune once for each combination of settings, and compare
    Sweep(Box<Sweep>),
    /// Past and present runs
    #[command(subcommand)]
    Runs(Runs),
    /// The adapter library
    #[command(subcommand)]
    Adapters(Adapters),
    /// Talk to a model
    Chat(Box<Chat>),
    /// Write a model's logits for given token ids
    Logits(Logits),
    /// Loss and perplexity over a data file's trained tokens
    Eval(Eval),
    /// The window for browsers, also of other machines; it prints a link that lets one viewer in
    ServeUi(ServeUi),
    /// Check the installation and say what to do
    Doctor,
}

#[derive(Debug, Args)]
pub struct ServeUi {
    /// On 127.0.0.1 and ::1 over HTTP, on any other address, e.g. 0.0.0.0:8474, over TLS
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8474", value_parser = listen_address)]
    pub listen: SocketAddr,
    /// A certificate (PEM) in place of one that Lathe makes and nobody vouches for
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let text = text.replace("localhost", "127.0.0.1");
    text.parse().or_else(|_| text.parse().map(|address: IpAddr| SocketAddr::new(address, 8474))).map_err(
        |_| {
            "not an address of this machine with a port, like 127.0.0.1:8474, [::1]:8474 or 0.0.0.0:8474"
                .to_owned()
        },
    )
}

#[derive(Debug, Args)]
pub struct Quickstart {
    /// Passes over the sample data
    #[arg(long, value_name = "N")]
    pub epochs: Option<f64>,
}

#[derive(Debug, Subcommand)]
pub enum Models {
    /// Every model on disk
    List {
        /// Those worth knowing instead, on disk or not
        #[arg(long)]
        catalog: bool,
    },
    /// Find models on the Hub; those that can be used come first
    Search {
        words: Vec<String>,
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Download a model from the Hub into the Hugging Face cache, or from an S3 bucket; goes on where it was stopped
    Pull {
        /// owner/name, or one GGUF file of it: owner/name:Q4_K_M, owner/name/FILE.gguf; or s3://bucket/prefix
        #[arg(value_name = "M")]
        model: String,
        /// A branch, tag or commit [default: main]
        #[arg(long, value_name = "R")]
        revision: Option<String>,
    },
    /// One model, in detail; of one that is not here, what the Hub tells of it
    Show {
        #[arg(value_name = "M")]
        model: String,
    },
    /// Copy a model folder or .gguf file into the Hugging Face cache
    Import {
        path: String,
        /// owner/name in the cache [default: local/ and the file's name]
        #[arg(long)]
        name: Option<String>,
    },
    /// Check a model's files: checksums, lengths, missing shards
    Verify {
        /// Also M@COMMIT, or dataset/owner/name
        #[arg(value_name = "M")]
        model: String,
    },
    /// Remove a model from the Hugging Face cache
    Rm {
        #[arg(value_name = "M")]
        model: String,
    },
    /// The Hugging Face cache: what lies in it, by repository
    #[command(args_conflicts_with_subcommands = true)]
    Cache {
        #[command(subcommand)]
        act: Option<CacheAct>,
        /// By revision
        #[arg(long)]
        revisions: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum CacheAct {
    /// Delete repositories, revisions or what nothing needs; says what that frees, and asks
    Rm(CacheRm),
    /// Move the cache, or a repository of it, to another disk; a link stays, so that Python finds it
    Move {
        /// A folder that is empty, or not there yet
        dir: PathBuf,
        /// Only this one, into a folder of its own in DIR
        #[arg(long, value_name = "M")]
        repo: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct CacheRm {
    /// owner/name, or owner/name@COMMIT (its beginning, or a branch); dataset/owner/name for what is no model
    #[arg(value_name = "TARGET", required_unless_present_any = ["detached", "unreferenced", "incomplete"])]
    pub targets: Vec<String>,
    /// Revisions without a branch or tag
    #[arg(long)]
    pub detached: bool,
    /// Files that no revision refers to
    #[arg(long)]
    pub unreferenced: bool,
    /// Downloads that were not finished, and what something interrupted left
    #[arg(long)]
    pub incomplete: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// TOML file with config keys
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set a config key, e.g. --set lora.r=8; comes after --config
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Data {
    /// Preflight: rows, shape, lengths, truncation, rows with nothing to learn
    Check {
        #[arg(long, value_name = "M")]
        model: String,
        /// Files, each with its weight
        #[arg(value_name = "FILE[:WEIGHT]", required_unless_present = "config")]
        files: Vec<String>,
        /// Held-out rows to compare them with
        #[arg(long, value_name = "FILE")]
        eval_data: Option<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// One row as tokens: id, whether it is trained (*), turn, text
    Show {
        #[arg(long, value_name = "M")]
        model: String,
        #[arg(value_name = "FILE[:WEIGHT]", required_unless_present = "config")]
        files: Vec<String>,
        /// Which row, counted from 0 through all files
        #[arg(long, default_value_t = 0, value_name = "N")]
        row: usize,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// What tokenised data takes on disk
    Cache {
        /// Remove it all: it is made again when needed
        #[arg(long)]
        clear: bool,
    },
}

/// What a run, or every run of a sweep, is made of.
#[derive(Debug, Args)]
pub struct TrainArgs {
    #[arg(long, value_name = "M", required_unless_present = "resume")]
    pub model: Option<String>,
    /// JSONL, JSON, CSV, Parquet or text; may be given several times. An epoch sees each row as often as the weight
    /// says: 2 is twice, 0.5 is half of the rows
    #[arg(long, value_name = "FILE[:WEIGHT]", required_unless_present_any = ["resume", "config"])]
    pub data: Vec<String>,
    /// Held-out data of the same kind
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<String>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Start from an adapter's weights
    #[arg(long, value_name = "A", conflicts_with = "resume")]
    pub init_adapter: Option<String>,
    /// Start from an adapter of another base all the same, where shapes permit
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// A way of answering to learn, of the rows whose `style` it is; may be given several times [default token:
    /// <|NAME|>]
    #[arg(long, value_name = "NAME[=TOKEN]")]
    pub style: Vec<String>,
    /// Optimizer steps, whatever `epochs` says
    #[arg(long, value_name = "N")]
    pub max_steps: Option<usize>,
    /// Name of the run and its adapter, or of the sweep [default: made of model and data]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    pub args: TrainArgs,
    /// Folder for adapter and checkpoints [default: one in the data folder]
    #[arg(long, value_name = "DIR", required_if_eq("resume", "true"))]
    pub out: Option<PathBuf>,
    /// Continue the run in --out from its newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Leave the run to the queue, which the window works off, and `lathe runs work`
    #[arg(long)]
    pub queue: bool,
}

#[derive(Debug, Args)]
pub struct Sweep {
    #[command(flatten)]
    pub args: TrainArgs,
    /// A config key and its values, e.g. learning_rate=1e-4,3e-4; one key or two. Values with commas stand between bars:
    /// "lora.targets=q_proj,v_proj | all-linear"
    #[arg(long, value_name = "KEY=A,B,…", required_unless_present = "resume", conflicts_with = "resume")]
    pub grid: Vec<String>,
    /// Go on with a sweep that was stopped
    #[arg(long, value_name = "NAME")]
    pub resume: Option<String>,
    /// Do not ask for more than 64 runs
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Subcommand)]
pub enum Runs {
    /// Every run, newest first
    List,
    /// One run, in detail
    Show {
        run: String,
        /// Print the command that does the run again; what differs by now is told on stderr
        #[arg(long)]
        reproduce: bool,
    },
    /// Write a run's metrics for other programs
    Export {
        run: String,
        #[arg(long, value_name = "FORMAT")]
        format: LogFormatArg,
        /// Receives NAME.csv, or NAME/ with an event file
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Continue a stopped, interrupted or failed run, or one that diverged or ran out of memory, from its newest checkpoint
    Resume {
        run: String,
        /// Of a run that diverged: leave out the rows it names
        #[arg(long, group = "how")]
        skip_rows: bool,
        /// Halve the learning rate
        #[arg(long, group = "how")]
        lower_rate: bool,
        /// Look for spikes no more; a loss that is no number still ends the run
        #[arg(long, group = "how")]
        ignore_spikes: bool,
        /// Of a run that ran out of memory: recompute activations, which takes longer and changes no loss
        #[arg(long, group = "how")]
        less_memory: bool,
    },
    /// Checkpoint and stop a run, also one of another process, or take it out of the queue
    Stop {
        run: String,
        /// Take the adapter as it is into the library
        #[arg(long, conflicts_with = "discard")]
        keep: bool,
        /// Stop at once, and remove the run and its folder
        #[arg(long)]
        discard: bool,
    },
    /// Runs side by side: settings that differ, held-out loss, time, speed
    Compare {
        /// Runs, or a sweep's name
        #[arg(value_name = "RUN", required = true)]
        runs: Vec<String>,
    },
    /// Give a queued run another place or device
    Move {
        run: String,
        /// up, down, first, last, a place from 1, or a device: auto, cpu, cuda:N
        #[arg(value_name = "WHERE")]
        to: String,
    },
    /// Start queued runs, each when its device is free, until there are none
    Work,
    /// Remove a run, its folder and its checkpoints; its adapter stays in the library
    Rm { run: String },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormatArg {
    Tensorboard,
    Csv,
}

impl From<LogFormatArg> for LogFormat {
    fn from(arg: LogFormatArg) -> Self {
        match arg {
            LogFormatArg::Tensorboard => Self::Tensorboard,
            LogFormatArg::Csv => Self::Csv,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Adapters {
    /// Every adapter in the library
    List,
    /// One adapter, in detail
    Show {
        #[arg(value_name = "A")]
        adapter: String,
    },
    /// Copy a PEFT folder into the library
    Import {
        path: String,
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove an adapter from the library
    Rm {
        #[arg(value_name = "A")]
        adapter: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ThinkingArg {
    Show,
    Hide,
    Off,
}

impl From<ThinkingArg> for Thinking {
    fn from(arg: ThinkingArg) -> Self {
        match arg {
            ThinkingArg::Show => Self::Show,
            ThinkingArg::Hide => Self::Hide,
            ThinkingArg::Off => Self::Off,
        }
    }
}

#[derive(Debug, Args)]
pub struct Chat {
    #[arg(long, value_name = "M", required_unless_present = "run")]
    pub model: Option<String>,
    /// May be given several times
    #[arg(long, value_name = "A", requires = "model")]
    pub adapter: Vec<String>,
    /// Use an adapter of another base all the same, where shapes permit
    #[arg(long, conflicts_with = "run")]
    pub force: bool,
    /// Talk to a run while it trains, also one of another process: it answers between two steps, as it is then
    #[arg(long, value_name = "RUN", conflicts_with = "model")]
    pub run: Option<String>,
    /// Of a run: without its adapter
    #[arg(long, requires = "run")]
    pub base: bool,
    /// Ask once and leave; without it, lines from stdin are the turns (/reset, /exit)
    #[arg(short, long)]
    pub prompt: Option<String>,
    /// System prompt
    #[arg(long, value_name = "S")]
    pub system: Option<String>,
    /// Reasoning effort, for models that have it
    #[arg(long, value_name = "LEVEL", value_parser = ["low", "medium", "high"])]
    pub effort: Option<String>,
    #[arg(long, default_value = "show")]
    pub thinking: ThinkingArg,
    /// After N tokens the thought is ended and the answer begun
    #[arg(long, value_name = "N")]
    pub thinking_budget: Option<usize>,
    /// A style that the adapter was trained with
    #[arg(long, value_name = "NAME")]
    pub style: Option<String>,
    /// [default: the style's, or 512]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Before N tokens the reply does not end [default: the style's, or 0]
    #[arg(long, value_name = "N")]
    pub min_tokens: Option<usize>,
    /// 0 takes the likeliest token [default: the style's, or 0]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// [default: the style's, or 1]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// 0 keeps every token [default: the style's, or 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub struct Logits {
    #[arg(long, value_name = "M")]
    pub model: String,
    #[arg(long, value_name = "A")]
    pub adapter: Option<String>,
    /// Use an adapter of another base all the same, where shapes permit
    #[arg(long)]
    pub force: bool,
    /// Token ids, e.g. 1,2,3
    #[arg(long, value_delimiter = ',', required = true)]
    pub ids: Vec<u32>,
    /// Safetensors file to write: logits (T, V) f32
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct Eval {
    #[arg(long, value_name = "M")]
    pub model: String,
    #[arg(long, value_name = "A")]
    pub adapter: Option<String>,
    /// Use an adapter of another base all the same, where shapes permit
    #[arg(long)]
    pub force: bool,
    #[arg(long, value_name = "FILE")]
    pub data: String,
    #[command(flatten)]
    pub config: ConfigArgs,
}
