use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Style;

/// Which weights learn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Low-rank adapters on a frozen base.
    #[default]
    Lora,
    /// Low-rank adapters on a frozen 4-bit base.
    Qlora,
    /// Every weight of the model.
    Full,
}

/// What is learned from a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// To write what the row has (supervised fine-tuning).
    #[default]
    Sft,
    /// To prefer one answer over another, measured against the model as it was (Direct Preference Optimization).
    Dpo,
    /// To write one answer and not another, without a reference (Odds Ratio Preference Optimization).
    Orpo,
}

impl Objective {
    /// Whether it learns from pairs of answers.
    pub fn takes_pairs(self) -> bool {
        self != Self::Sft
    }
}

/// How the frozen base is held in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quant {
    #[default]
    None,
    Nf4,
    /// NF4 with its scales quantised too (bitsandbytes' `bnb_4bit_use_double_quant`).
    Nf4Double,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    #[default]
    Adamw,
    Adamw8bit,
}

/// How the learning rate falls after the warmup (transformers' `get_scheduler`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    Linear,
    #[default]
    Cosine,
    Constant,
}

/// The adapter's settings, in PEFT's words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of A and B.
    pub r: usize,
    /// The update is scaled by `alpha / r` (or `alpha / sqrt(r)` with `use_rslora`).
    pub alpha: f64,
    /// Probability of dropping an input of A.
    pub dropout: f64,
    /// Module names to adapt, e.g. `q_proj`; or one of: `regex:` and a pattern of whole paths, `all-linear` (every
    /// linear of the blocks), `none`. Empty means the family's default.
    pub targets: Vec<String>,
    /// Tensors of experts and router to adapt (mixture-of-experts models), e.g. `mlp.experts.down_proj`.
    pub target_parameters: Vec<String>,
    /// Layers to adapt, PEFT's `layers_to_transform`; empty means all.
    pub layers: Vec<usize>,
    /// Modules that learn whole and are saved with the adapter: `embed_tokens`, `lm_head`, norms.
    pub modules_to_save: Vec<String>,
    pub use_rslora: bool,
    /// Learns the length of each row of a weight apart from its direction (DoRA).
    pub use_dora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Vec::new(),
            target_parameters: Vec::new(),
            layers: Vec::new(),
            modules_to_save: Vec::new(),
            use_rslora: false,
            use_dora: false,
        }
    }
}

/// Which rows are left out because they resemble others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dedupe {
    #[default]
    None,
    /// Those with the same words.
    Exact,
    /// Also those with nearly the same words.
    Near,
}

/// One of several data files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    pub path: String,
    /// How often an epoch sees each row: 2 is twice, 0.5 is every other row, drawn anew each epoch.
    #[serde(default = "once")]
    pub weight: f64,
    /// As [`RunConfig::columns`], which are those of the first file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
}

fn once() -> f64 {
    1.0
}

impl DataFile {
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), weight: once(), columns: BTreeMap::new() }
    }

    /// Reads `path`, or `path:weight`.
    pub fn parse(text: &str) -> Self {
        match text.rsplit_once(':').map(|(path, weight)| (path, weight.parse())) {
            Some((path, Ok(weight))) if !path.is_empty() => Self { weight, ..Self::new(path) },
            _ => Self::new(text),
        }
    }

    /// [`Self::parse`] of several, which keep the columns of files that are `known`.
    pub fn from_texts(texts: &[String], known: &[Self]) -> Vec<Self> {
        let file = |text: &String| {
            let mut file = Self::parse(text);
            if let Some(known) = known.iter().find(|known| known.path == file.path) {
                file.columns.clone_from(&known.columns);
            }
            file
        };
        texts.iter().map(file).collect()
    }
}

/// As [`DataFile::parse`] reads it.
impl std::fmt::Display for DataFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, weight, .. } = self;
        if (*weight - once()).abs() < f64::EPSILON { f.write_str(path) } else { write!(f, "{path}:{weight}") }
    }
}

/// Everything that decides a training run, one flat page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    pub method: Method,
    pub quant: Quant,
    /// The files to learn from, where there are several or weights; else the run's data file is the one.
    pub data: Vec<DataFile>,
    pub objective: Objective,
    /// DPO: how closely the model is held to its reference. ORPO: weight of the odds ratio beside the likelihood.
    pub beta: f64,
    /// Names of the data's columns by role, where they differ, e.g. `prompt` -> `question`.
    pub columns: BTreeMap<String, String>,
    /// Share of the rows held out for evaluation when there is no file for it.
    pub eval_ratio: f64,
    /// Rows left out because they resemble others, of the data or of the held-out file.
    pub dedupe: Dedupe,
    /// Rows longer than this are cut at the end; of a pair, each side.
    pub max_seq_len: usize,
    /// Several rows share one sequence of `max_seq_len` tokens; each attends to itself only.
    pub packing: bool,
    /// Sequences a forward pass.
    pub batch_size: usize,
    /// Forward passes an optimizer step.
    pub grad_accum: usize,
    pub epochs: f64,
    /// Optimizer steps; 0 means what `epochs` gives.
    pub max_steps: usize,
    pub optimizer: Optimizer,
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warmup_ratio: f64,
    /// Steps of warmup; 0 means what `warmup_ratio` gives.
    pub warmup_steps: usize,
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    pub seed: u64,
    pub shuffle: bool,
    pub gradient_checkpointing: bool,
    /// Blocks between activations that gradient checkpointing keeps: so many are recomputed at a time.
    pub gradient_checkpointing_every: usize,
    /// On a GPU, what checkpointing keeps waits in the host's memory.
    pub activation_offloading: bool,
    /// Evaluate every so many steps; 0 means at the end only.
    pub eval_steps: usize,
    /// Save a checkpoint every so many steps; 0 means at the end only.
    pub save_steps: usize,
    /// Checkpoints kept on disk.
    pub save_total_limit: usize,
    /// Answered at every checkpoint and evaluation by the model as it then is.
    pub sample_prompts: Vec<String>,
    /// Stop after so many evaluations without improvement; 0 means never.
    pub early_stopping_patience: usize,
    /// How much lower than the lowest before an eval loss must be to count as improvement.
    pub early_stopping_min_delta: f64,
    /// What is saved at the end is what evaluated best; early stopping always does so.
    pub keep_best: bool,
    /// Steps that a loss and gradient norm are compared with to find a spike.
    pub spike_window: usize,
    /// A spike is so many standard deviations above the mean of those steps; 0 means none is looked for.
    pub spike_threshold: f64,
    /// Rows of the data file, from 0, that are not trained on. The others keep their places.
    pub skip_rows: Vec<usize>,
    /// Noise on the embeddings while training (NEFTune); 0 means none.
    pub neftune_alpha: f64,
    /// Compute type; `f32` on the CPU.
    pub dtype: String,
    /// Ways of answering, each with a token whose embedding is learned beside the adapter.
    pub styles: Vec<Style>,
    pub lora: LoraConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            method: Method::Lora,
            quant: Quant::None,
            data: Vec::new(),
            objective: Objective::Sft,
            beta: 0.1,
            columns: BTreeMap::new(),
            eval_ratio: 0.0,
            dedupe: Dedupe::None,
            max_seq_len: 1024,
            packing: true,
            batch_size: 1,
            grad_accum: 4,
            epochs: 1.0,
            max_steps: 0,
            optimizer: Optimizer::Adamw,
            learning_rate: 2e-4,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.03,
            warmup_steps: 0,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            seed: 42,
            shuffle: true,
            gradient_checkpointing: false,
            gradient_checkpointing_every: 1,
            activation_offloading: false,
            eval_steps: 0,
            save_steps: 50,
            save_total_limit: 2,
            sample_prompts: Vec::new(),
            early_stopping_patience: 0,
            early_stopping_min_delta: 0.0,
            keep_best: false,
            spike_window: 50,
            spike_threshold: 10.0,
            skip_rows: Vec::new(),
            neftune_alpha: 0.0,
            dtype: "f32".into(),
            styles: Vec::new(),
            lora: LoraConfig::default(),
        }
    }
}

impl RunConfig {
    /// The files to learn from, with the columns each has: those of `data`, or else `first` alone.
    pub fn files(&self, first: &str) -> Vec<DataFile> {
        let mut files = self.data.clone();
        if files.is_empty() {
            files.push(DataFile::new(first));
        }
        if files[0].columns.is_empty() {
            files[0].columns.clone_from(&self.columns);
        }
        files
    }

    /// A file to measure on, with the columns of the data.
    pub fn eval_file(&self, path: &str) -> DataFile {
        DataFile { columns: self.columns.clone(), ..DataFile::new(path) }
    }

    /// How the frozen base is held: QLoRA is LoRA on one in NF4.
    pub fn base_quant(&self) -> Quant {
        match (self.method, self.quant) {
            (Method::Qlora, Quant::None) => Quant::Nf4,
            (_, quant) => quant,
        }
    }

    /// Tokens that a packed sequence takes: a pair is two sides of `max_seq_len`.
    pub fn sequence_tokens(&self) -> usize {
        self.max_seq_len * if self.objective.takes_pairs() { 2 } else { 1 }
    }

    /// Whether what is saved at the end is what evaluated best.
    pub fn keeps_best(&self) -> bool {
        self.keep_best || self.early_stopping_patience > 0
    }

    /// Blocks that a backward recomputes at a time; `None` if their activations are kept.
    pub fn recomputed_blocks(&self) -> Option<usize> {
        self.gradient_checkpointing.then_some(self.gradient_checkpointing_every.max(1))
    }

    /// What the sample data needs on the starter model: some twenty seconds on two cores.
    pub fn for_the_samples() -> Self {
        Self {
            max_seq_len: 256,
            grad_accum: 1,
            epochs: 20.0,
            learning_rate: 3e-3,
            warmup_ratio: 0.05,
            eval_steps: 50,
            save_steps: 0,
            lora: LoraConfig { r: 16, alpha: 32.0, ..LoraConfig::default() },
            ..Self::default()
        }
    }

    /// What the verbosity sample needs on the starter model: some ten seconds on two cores.
    pub fn for_the_verbosity_sample() -> Self {
        Self {
            epochs: 12.0,
            learning_rate: 2e-3,
            styles: Style::terse_and_detailed(),
            ..Self::for_the_samples()
        }
    }

    /// What the sample of preferences needs on the starter model: some ten seconds on two cores.
    pub fn for_the_preference_sample() -> Self {
        Self {
            objective: Objective::Dpo,
            epochs: 4.0,
            learning_rate: 5e-4,
            eval_steps: 10,
            ..Self::for_the_samples()
        }
    }
}

/// One key of [`RunConfig`] as a person meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigKey {
    /// Dotted name, e.g. `lora.r`.
    pub name: &'static str,
    /// What may stand there.
    pub range: &'static str,
    pub help: &'static str,
}

const fn key(name: &'static str, range: &'static str, help: &'static str) -> ConfigKey {
    ConfigKey { name, range, help }
}

/// Every key that `--set`, a TOML file and the window's Advanced fold accept.
pub const CONFIG_KEYS: &[ConfigKey] = &[
    key("method", "lora | qlora | full", "Which weights learn"),
    key("quant", "none | nf4 | nf4_double", "How the frozen base is held"),
    key("objective", "sft | dpo | orpo", "What is learned: the rows' answers, or which of two is preferred"),
    key("beta", "> 0", "DPO: hold to the reference; ORPO: weight of the odds ratio"),
    key(
        "data",
        "path[:weight], …, or [[data]] tables",
        "The files to learn from; weight 2 sees each row twice an epoch, 0.5 half of them",
    ),
    key(
        "columns",
        "role=column, …, or a table",
        "Names of the data's columns, where they differ from the role's",
    ),
    key("eval_ratio", "0..=0.5", "Share of the rows held out for evaluation, without a file for it"),
    key("dedupe", "none | exact | near", "Leave out rows with the same, or nearly the same, words as others"),
    key("max_seq_len", "8..=1048576", "Longer rows are cut here"),
    key("packing", "true | false", "Fill sequences with several rows"),
    key("batch_size", "1..", "Sequences a forward pass"),
    key("grad_accum", "1..", "Forward passes an optimizer step"),
    key("epochs", "> 0", "Passes over the data"),
    key("max_steps", "0..", "Optimizer steps; 0 means what epochs gives"),
    key("optimizer", "adamw | adamw8bit", "Update rule"),
    key("learning_rate", "> 0", "Peak learning rate"),
    key("schedule", "linear | cosine | constant", "How the learning rate falls"),
    key("warmup_ratio", "0..1", "Share of the steps spent warming up"),
    key("warmup_steps", "0..", "Steps of warmup; 0 means what warmup_ratio gives"),
    key("weight_decay", "0..", "Decoupled weight decay"),
    key("max_grad_norm", "0..", "Gradients are clipped to this norm; 0 means never"),
    key("seed", "0..", "Same seed, same machine: same losses"),
    key("shuffle", "true | false", "Shuffle the rows each epoch"),
    key("gradient_checkpointing", "true | false", "Recompute activations to save memory"),
    key("gradient_checkpointing_every", "1..", "Blocks recomputed at a time, from one kept input"),
    key("activation_offloading", "true | false", "Keep checkpoints' inputs in the host's memory (GPU)"),
    key("eval_steps", "0..", "Evaluate every so many steps; 0 means at the end"),
    key("save_steps", "0..", "Checkpoint every so many steps; 0 means at the end"),
    key("save_total_limit", "1..", "Checkpoints kept on disk"),
    key(
        "sample_prompts",
        "prompts between \" | \", or a list",
        "Answered at every checkpoint and evaluation",
    ),
    key("early_stopping_patience", "0..", "Evaluations without improvement before stopping; 0 means never"),
    key("early_stopping_min_delta", "0..", "An eval loss that falls by less is no improvement"),
    key("keep_best", "true | false", "Save the weights of the lowest eval loss; early stopping always does"),
    key("spike_window", "4..", "Steps that a spike of loss or gradient norm is measured against"),
    key("spike_threshold", "0..", "Standard deviations that make a spike, which ends the run; 0 means never"),
    key("skip_rows", "rows, e.g. 3, 17-20", "Rows of the data, from 0, not to train on"),
    key("neftune_alpha", "0..", "Noise on the embeddings while training"),
    key("dtype", "f32", "Compute type"),
    key(
        "styles",
        "name=token, …, or [[styles]] tables",
        "Ways of answering that a token in the question asks for",
    ),
    key("lora.r", "1..=4096", "Rank of the adapter"),
    key("lora.alpha", "> 0", "Scale of the update, alpha / r"),
    key("lora.dropout", "0..1", "Dropout on the adapter's input"),
    key(
        "lora.targets",
        "names, all-linear, none, or regex:PATTERN",
        "Linears to adapt; empty means the family's default",
    ),
    key(
        "lora.target_parameters",
        "names, e.g. mlp.experts.down_proj",
        "Tensors of experts and router to adapt",
    ),
    key("lora.layers", "layers, e.g. 0-7, 12", "Layers to adapt; empty means all"),
    key(
        "lora.modules_to_save",
        "names, e.g. embed_tokens, lm_head, norm",
        "Learn whole, saved with the adapter",
    ),
    key("lora.use_rslora", "true | false", "Scale by alpha / sqrt(r)"),
    key("lora.use_dora", "true | false", "Learn magnitudes too (DoRA)"),
];
