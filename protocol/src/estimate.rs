//! What a run takes of a machine, before it is started.

mod placement;
mod probe;
mod remedy;

use serde::{Deserialize, Serialize};

pub use placement::Placement;
pub use probe::{MeasuredMemory, Phase, ProbeReport};
pub use remedy::Remedy;

use crate::{LoraConfig, LoraTargets, Method, Objective, Optimizer, Quant, RunConfig, is_saved};

/// Bytes of a value, weight, gradient or moment: nearly everything is f32 on the CPU.
const F32: u64 = 4;
const BF16: u64 = 2;
/// Rows of logits that exist at a time.
const LOGITS_ROWS: u64 = 128;
/// The program, its threads, and what the allocator keeps.
const PROCESS_BYTES: u64 = 20_000_000;
/// What the tokenizer keeps for a token of the vocabulary.
const TOKENIZER_BYTES_A_TOKEN: u64 = 256;
/// Values as wide as the hidden state that a block's backward has beside those it works on: sums of gradients are new
/// tensors, and the allocator keeps what it was given back. Measured: `cargo xtask bench memory`.
const SUMS: u64 = 9;
/// Prompt tokens fed in one pass of a chat.
const PREFILL_TOKENS: u64 = 512;

/// A model's sizes, as `config.json` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    pub num_layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub context_length: usize,
    pub tie_word_embeddings: bool,
    /// Whether its file is a GGUF, whose weights are not quantised again.
    #[serde(default)]
    pub is_gguf: bool,
    /// How the blocks' linears are stored.
    #[serde(default)]
    pub linears: Quant,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsShape>,
}

/// The mixture of experts in place of each block's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertsShape {
    pub num_experts: usize,
    pub experts_per_token: usize,
    pub format: ExpertFormat,
}

/// How the weights of experts are held in memory, which is how their files have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertFormat {
    F32,
    Bf16,
    Mxfp4,
    Nf4,
    Nf4Double,
    /// A GGUF's blocks: bytes of 256 weights, on average.
    Blocks(u64),
}

/// Weights that formats are compared by: as many as share a scale of NF4's scales.
const GROUP: u64 = 256 * 64;

/// Tensors of fewer elements have moments in f32 with either optimizer.
const MIN_8BIT_ELEMENTS: u64 = 4096;

/// The elements of a tensor, if they are that few.
fn if_few(elements: u64) -> u64 {
    if elements < MIN_8BIT_ELEMENTS { elements } else { 0 }
}

impl Optimizer {
    /// Bytes of both moments of so many elements, so many of them in tensors of few.
    fn moment_bytes(self, elements: u64, in_small_tensors: u64) -> u64 {
        match self {
            Self::Adamw => F32 * 2 * elements,
            // One byte each, and a scale of four for 256 of them.
            Self::Adamw8bit => {
                let coded = elements - in_small_tensors;
                2 * (coded + coded / 64) + F32 * 2 * in_small_tensors
            }
        }
    }
}

impl Quant {
    /// Bytes of [`GROUP`] weights.
    fn group_bytes(self) -> u64 {
        match self {
            Self::None => F32 * GROUP,
            // 4 bits each, and for 64 a scale of four bytes,
            Self::Nf4 => GROUP / 2 + 4 * 256,
            // or of one, with one of four for all of those.
            Self::Nf4Double => GROUP / 2 + 256 + 4,
        }
    }
}

impl ExpertFormat {
    /// Bytes of [`GROUP`] weights.
    fn group_bytes(self) -> u64 {
        match self {
            Self::F32 => Quant::None.group_bytes(),
            Self::Bf16 => 2 * GROUP,
            // 4 bits each, and one byte for the scale of 32.
            Self::Mxfp4 => GROUP / 2 + GROUP / 32,
            Self::Nf4 => Quant::Nf4.group_bytes(),
            Self::Nf4Double => Quant::Nf4Double.group_bytes(),
            Self::Blocks(bytes_of_256) => GROUP / 256 * bytes_of_256,
        }
    }

    fn is_dense(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16)
    }
}

/// Sizes as numbers that products of them fit into, also where `usize` has 32 bits (wasm).
impl ModelShape {
    /// The linears of a block by module: name, inputs, outputs.
    fn linears(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let (hidden, mlp) = (self.hidden(), self.mlp());
        let attention = [
            ("self_attn.q_proj", hidden, self.q_width()),
            ("self_attn.k_proj", hidden, self.kv_width()),
            ("self_attn.v_proj", hidden, self.kv_width()),
            ("self_attn.o_proj", self.q_width(), hidden),
        ];
        let dense =
            [("mlp.gate_proj", hidden, mlp), ("mlp.up_proj", hidden, mlp), ("mlp.down_proj", mlp, hidden)];
        attention.into_iter().chain(dense.into_iter().filter(|_| self.experts.is_none()))
    }

    /// Weights of the matrices of so many experts a block.
    fn expert_parameters(&self, experts_a_layer: usize) -> u64 {
        self.layers() * experts_a_layer as u64 * 3 * self.hidden() * self.mlp()
    }

    fn num_experts(&self) -> usize {
        self.experts.map_or(0, |experts| experts.num_experts)
    }

    fn layers(&self) -> u64 {
        self.num_layers as u64
    }

    fn hidden(&self) -> u64 {
        self.hidden_size as u64
    }

    fn mlp(&self) -> u64 {
        self.intermediate_size as u64
    }

    fn vocab(&self) -> u64 {
        self.vocab_size as u64
    }

    fn q_width(&self) -> u64 {
        (self.num_attention_heads * self.head_dim) as u64
    }

    fn kv_width(&self) -> u64 {
        (self.num_key_value_heads * self.head_dim) as u64
    }

    /// Weights of the blocks' linears.
    fn linear_parameters(&self) -> u64 {
        self.layers() * self.linears().map(|(_, inputs, outputs)| inputs * outputs).sum::<u64>()
    }

    /// Weights of the embedding table, and as many of the output projection.
    fn embedding_parameters(&self) -> u64 {
        self.vocab() * self.hidden()
    }

    /// All weights, but for attention's biases and per-head norms, which are few.
    pub fn parameters(&self) -> u64 {
        let norms = self.num_norms() * self.hidden();
        let router_and_biases = self.num_experts() as u64 * (2 * self.hidden() + 2 * self.mlp());
        let experts = self.expert_parameters(self.num_experts()) + self.layers() * router_and_biases;
        self.linear_parameters() + experts + self.num_tables() * self.embedding_parameters() + norms
    }

    fn num_norms(&self) -> u64 {
        2 * self.layers() + 1
    }

    /// Embedding table and output projection, if they are two.
    fn num_tables(&self) -> u64 {
        if self.tie_word_embeddings { 1 } else { 2 }
    }

    /// Bytes of the embedding table and of the output projection, frozen; of one that is both, as the latter.
    ///
    /// A table that is only looked up stays as it is stored, taken as bf16; a GGUF's blocks are less.
    fn table_bytes(&self, placement: Placement) -> [u64; 2] {
        let embedding = if self.tie_word_embeddings { 0 } else { BF16 * self.embedding_parameters() };
        [embedding, placement.head_value(self) * self.embedding_parameters()]
    }

    /// Bytes of all weights where they are, frozen: experts and the blocks' linears may be packed, as they are stored or
    /// by `quant`.
    fn weight_bytes(&self, quant: Quant, placement: Placement) -> u64 {
        let (of_linears, of_tables) =
            (self.linear_parameters(), self.num_tables() * self.embedding_parameters());
        let of_experts = self.expert_parameters(self.num_experts());
        let linears = match if self.linears == Quant::None { quant } else { self.linears } {
            Quant::None => GROUP * placement.weight(),
            packed => packed.group_bytes(),
        };
        let experts = match self.experts.map(|experts| experts.format) {
            Some(format) if quant == Quant::None || !format.is_dense() => format.group_bytes(),
            _ => quant.group_bytes(),
        };
        (self.parameters() - of_experts - of_linears - of_tables) * placement.weight()
            + self.table_bytes(placement).iter().sum::<u64>()
            + of_linears * linears / GROUP
            + of_experts * experts / GROUP
    }

    /// Weights of an adapter: A and B of all it targets, DoRA's magnitudes, and what learns whole.
    pub fn adapter_parameters(&self, lora: &LoraConfig) -> u64 {
        let AdapterSizes { linears, magnitudes, experts, norms, .. } = self.adapter_sizes(lora);
        linears + magnitudes + experts + norms + learnt_tables(lora) * self.embedding_parameters()
    }

    /// A config that cannot be has no adapter.
    fn adapter_sizes(&self, lora: &LoraConfig) -> AdapterSizes {
        let mut sizes = AdapterSizes::default();
        let Ok(targets) = LoraTargets::new(lora) else { return sizes };
        let (rank, num_experts) = (lora.r as u64, self.num_experts() as u64);
        let matrices =
            [("gate_up_proj", self.hidden(), 2 * self.mlp()), ("down_proj", self.mlp(), self.hidden())];
        for layer in 0..self.num_layers {
            for (module, inputs, outputs) in self.linears() {
                if targets.has_linear(&format!("model.layers.{layer}.{module}")) {
                    let magnitudes = if lora.use_dora { outputs } else { 0 };
                    sizes.linears += rank * (inputs + outputs);
                    sizes.magnitudes += magnitudes;
                    sizes.in_small_tensors +=
                        if_few(rank * inputs) + if_few(rank * outputs) + if_few(magnitudes);
                }
            }
            for (name, inputs, outputs) in matrices.iter().filter(|_| num_experts > 0) {
                if targets.has_parameter(&format!("model.layers.{layer}.mlp.experts.{name}")) {
                    sizes.experts += num_experts * rank * (inputs + outputs);
                    sizes.expert_outputs += num_experts * rank * outputs;
                }
            }
            let adapts_router = ["gate", "router"]
                .iter()
                .any(|name| targets.has_parameter(&format!("model.layers.{layer}.mlp.{name}.weight")));
            sizes.linears +=
                if adapts_router && num_experts > 0 { rank * (self.hidden() + num_experts) } else { 0 };
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                let learns = is_saved(&format!("model.layers.{layer}.{norm}"), &lora.modules_to_save);
                sizes.norms += if learns { self.hidden() } else { 0 };
            }
        }
        sizes.norms += if is_saved("model.norm", &lora.modules_to_save) { self.hidden() } else { 0 };
        sizes.in_small_tensors += if self.hidden() < MIN_8BIT_ELEMENTS { sizes.norms } else { 0 };
        sizes
    }

    /// Values that a block's forward leaves for the backward of one token: the two norms' outputs, q and k before and
    /// after rotation, v, attention's output and log-sums, o, both sums with the residual, gate, up and their product,
    /// down; and the low-rank products of adapters. Of experts only the routing is kept.
    fn activations_a_layer(&self, config: &RunConfig) -> u64 {
        let mlp = self
            .experts
            .map_or(3 * self.mlp(), |experts| (experts.num_experts + experts.experts_per_token) as u64);
        let plain = 6 * self.hidden() + 3 * self.q_width() + 3 * self.kv_width() + mlp;
        let adapters = if config.method == Method::Full { 0 } else { 7 * config.lora.r };
        plain + (self.num_attention_heads + adapters) as u64
    }

    /// Values that exist for one token while the backward is inside a block, with the gradients of its output and of its
    /// two sums. Attention has a gradient of q, k and v for every head of q, and their sums. Experts work one after
    /// the other, on what an even routing gives them.
    fn transients(&self) -> u64 {
        let attention = 5 * self.q_width() + 2 * self.kv_width();
        let mlp = match self.experts {
            None => 4 * self.mlp() + self.hidden(),
            Some(experts) => {
                let rows = 4 * self.mlp() + 3 * self.hidden();
                rows * experts.experts_per_token as u64 / experts.num_experts.max(1) as u64
                    + 2 * self.hidden()
            }
        };
        mlp.max(attention) + (2 + SUMS) * self.hidden()
    }

    /// What a process with this model's tokenizer takes without the model.
    fn process_bytes(&self) -> u64 {
        PROCESS_BYTES + TOKENIZER_BYTES_A_TOKEN * self.vocab()
    }
}

/// How many of embedding and output projection learn whole.
fn learnt_tables(lora: &LoraConfig) -> u64 {
    let learns = |module: &&str| is_saved(module, &lora.modules_to_save);
    ["model.embed_tokens", "lm_head"].into_iter().filter(learns).count() as u64
}

/// Values of the parts of an adapter; per-head norms, which are few, left out.
#[derive(Default)]
struct AdapterSizes {
    /// A and B of linears.
    linears: u64,
    magnitudes: u64,
    /// A and B of experts.
    experts: u64,
    /// B of them alone.
    expert_outputs: u64,
    norms: u64,
    /// All of the above that lie in tensors of few elements.
    in_small_tensors: u64,
}

/// Peak memory of a training run by part, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    pub weights: u64,
    pub adapter: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub activations: u64,
    pub logits: u64,
    /// Gradients of values and of the batch at hand, and what an operation needs for itself. It takes the logits' place,
    /// so only what it needs beyond that.
    pub workspace: u64,
    /// The process itself and its tokenizer; on a card its context, and what the allocator keeps.
    pub program: u64,
}

impl MemoryEstimate {
    /// Each part with its name.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("Weights", self.weights),
            ("Adapter", self.adapter),
            ("Gradients", self.gradients),
            ("Optimizer", self.optimizer),
            ("Activations", self.activations),
            ("Logits", self.logits),
            ("Workspace", self.workspace),
            ("Program", self.program),
        ]
    }

    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Peak memory of training this model on rows of up to `longest_row_tokens`: of the machine's, or of the card's.
///
/// Frozen weights are as wide as `placement` says whatever the file holds, but for experts and linears in NF4: a GGUF is
/// dequantised. A batch is its rows laid end to end, nothing padded; with packing each of its sequences is taken as full. A pair's
/// sides are two rows. Every token is taken as trained.
pub fn training_memory(
    shape: &ModelShape,
    config: &RunConfig,
    longest_row_tokens: usize,
    placement: Placement,
) -> MemoryEstimate {
    let row_tokens = if config.packing { config.max_seq_len } else { longest_row_tokens };
    let sides = if config.objective.takes_pairs() { 2 } else { 1 };
    let tokens = config.batch_size as u64 * sides * row_tokens.min(config.max_seq_len) as u64;
    let full = config.method == Method::Full;
    let style_rows = config.styles.len() as u64 * shape.hidden();
    let adapter = if full { 0 } else { shape.adapter_parameters(&config.lora) + style_rows };
    let learned = if full { shape.parameters() } else { adapter };
    // Blocks whose activations exist at a time.
    let blocks_kept = config.recomputed_blocks().map_or(shape.layers(), |n| shape.layers().min(n as u64));
    // Gradients of the batch at hand, with checkpointing of a group of blocks or of a table at a time. The loss leaves that
    // of the output projection, of which a copy is made.
    let of_blocks = |values: u64| values.div_ceil(shape.layers().max(1)) * blocks_kept;
    let learnt_tables = if full { shape.num_tables() } else { learnt_tables(&config.lora) };
    let learns_head = full || is_saved("lm_head", &config.lora.modules_to_save);
    let of_tables = learnt_tables * shape.embedding_parameters();
    let of_head = if learns_head { shape.embedding_parameters() } else { 0 };
    let at_hand = match config.recomputed_blocks() {
        None => learned + of_head,
        Some(_) => of_blocks(learned - of_tables).max(of_tables.min(shape.embedding_parameters()) + of_head),
    };
    // A table that learns whole takes the frozen one's place, unless that is still needed as the other.
    let learns = |module| is_saved(module, &config.lora.modules_to_save);
    let [embedding, head] = shape.table_bytes(placement);
    let replaced_tables = match (learns("model.embed_tokens"), learns("lm_head")) {
        (true, true) => embedding + head,
        (true, false) => embedding,
        (false, true) if !shape.tie_word_embeddings => head,
        _ => 0,
    };
    let sizes = if full { AdapterSizes::default() } else { shape.adapter_sizes(&config.lora) };
    let in_small_tensors = if full {
        shape.num_norms() * if_few(shape.hidden())
    } else {
        sizes.in_small_tensors + if_few(style_rows)
    };
    // With checkpointing every group's input, and the last output; two of them where they wait in the host's memory.
    let leave = config.activation_offloading && placement == Placement::Cuda;
    let num_inputs = |blocks: usize| if leave { 2 } else { shape.layers().div_ceil(blocks as u64) + 1 };
    let inputs = config.recomputed_blocks().map_or(0, |blocks| num_inputs(blocks) * shape.hidden());
    // DoRA keeps a product before it is scaled.
    let activations = inputs + blocks_kept * shape.activations_a_layer(config) + of_blocks(sizes.magnitudes);
    // Experts' updates are laid out expert by expert for a step, B twice.
    let laid_out = of_blocks(sizes.experts + sizes.expert_outputs);
    // Beside a chunk of logits: the trained tokens' last states, normed, and the gradients of both.
    let logits = LOGITS_ROWS.min(tokens) * shape.vocab() + 4 * tokens * shape.hidden();
    let weights = if full {
        F32 * shape.parameters()
    } else {
        shape.weight_bytes(config.base_quant(), placement) - replaced_tables
    };
    let activations = placement.activation() * tokens * activations;
    let transients = placement.activation() * tokens * shape.transients();
    let logits = F32 * logits;
    let workspace = (transients + F32 * (at_hand + laid_out)).saturating_sub(logits);
    MemoryEstimate {
        weights,
        adapter: F32 * adapter,
        gradients: F32 * learned,
        optimizer: config.optimizer.moment_bytes(learned, in_small_tensors),
        activations,
        logits,
        workspace,
        program: placement.program_bytes(shape, activations + logits + workspace),
    }
}

/// Floating-point operations of training on `tokens` tokens in rows of `row_tokens` on average.
///
/// A product with a matrix costs two a weight and token, forward and once more for the gradient of its input; a third
/// time for its own, where it learns; and its forward again with gradient checkpointing. Pairs take the output
/// projection's forward twice, and DPO's reference one forward of each row. Every token is taken as trained, and
/// attention sees half of its row.
pub fn training_flops(shape: &ModelShape, config: &RunConfig, tokens: u64, row_tokens: usize) -> f64 {
    let learns = config.method == Method::Full;
    let again = f64::from(u8::from(config.gradient_checkpointing));
    let (linears, head) = (shape.linear_parameters() as f64, shape.embedding_parameters() as f64);
    let sizes = if learns { AdapterSizes::default() } else { shape.adapter_sizes(&config.lora) };
    // A token sees the updates of its own experts.
    let share = shape.experts.map_or(0.0, |e| e.experts_per_token as f64 / e.num_experts.max(1) as f64);
    let adapter = sizes.linears as f64 + sizes.experts as f64 * share;
    let of_head = f64::from(u8::from(!learns && is_saved("lm_head", &config.lora.modules_to_save)));
    let frozen_passes = if learns { 3.0 } else { 2.0 };
    // Experts do gate and up once more in the backward.
    let experts =
        shape.expert_parameters(shape.experts.map_or(0, |experts| experts.experts_per_token)) as f64;
    let products = linears * (frozen_passes + again)
        + experts * (2.0 + 2.0 / 3.0 + again)
        + head * (frozen_passes + of_head + f64::from(u8::from(config.objective.takes_pairs())))
        + adapter * (3.0 + again);
    // Scores and weighted values forward; five such products backward, which recomputes the scores.
    let attention = shape.layers() * shape.q_width() * row_tokens.min(config.max_seq_len) as u64;
    let reference = if config.objective == Objective::Dpo { 1.0 / config.epochs.max(1.0) } else { 0.0 };
    let of_reference = reference * (2.0 * (linears + experts + head) + 2.0 * attention as f64);
    tokens as f64 * (2.0 * products + attention as f64 * (2.0 + 5.0 + 2.0 * again) + of_reference)
}

/// Peak memory of a chat whose conversation has `context_tokens`.
///
/// A file of less than two bytes a weight is a quantised GGUF, unless it is one of experts or in NF4: it stays so, with
/// its blocks' scales in f32; any other model is f32, but for experts and linears in NF4.
pub fn chat_memory(shape: &ModelShape, model_bytes: u64, context_tokens: usize) -> u64 {
    let parameters = shape.parameters();
    let is_float_or_gguf = shape.experts.is_none() && shape.linears == Quant::None;
    let quantized = is_float_or_gguf && model_bytes < 2 * parameters * 9 / 10;
    let weights = if quantized {
        model_bytes + parameters / 8
    } else {
        shape.weight_bytes(Quant::None, Placement::Cpu)
    };
    // One weight at a time is dequantised to read a prompt.
    let dequantized = if quantized { shape.hidden() * shape.mlp() } else { 0 };
    let tokens = context_tokens as u64;
    let cache = 2 * shape.layers() * shape.kv_width() * tokens;
    let prefill = PREFILL_TOKENS.min(tokens) * 4 * (shape.hidden() + shape.mlp());
    weights + F32 * (dequantized + cache + prefill + shape.vocab()) + shape.process_bytes()
}

#[cfg(test)]
mod tests;
