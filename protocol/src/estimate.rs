//! What a run takes of a machine, before it is started.

use serde::{Deserialize, Serialize};

use crate::{LoraConfig, Method, Quant, RunConfig};

/// Bytes of a value, weight, gradient or moment: everything is f32 on the CPU.
const F32: u64 = 4;
/// Rows of logits that exist at a time.
const LOGITS_ROWS: u64 = 128;
/// The program, its threads, and what the allocator keeps.
const PROCESS_BYTES: u64 = 20_000_000;
/// What the tokenizer keeps for a token of the vocabulary.
const TOKENIZER_BYTES_A_TOKEN: u64 = 256;
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
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        let norms = (2 * self.layers() + 1) * self.hidden();
        let router_and_biases = self.num_experts() as u64 * (2 * self.hidden() + 2 * self.mlp());
        let experts = self.expert_parameters(self.num_experts()) + self.layers() * router_and_biases;
        self.linear_parameters() + experts + tables * self.embedding_parameters() + norms
    }

    /// Bytes of all weights in memory, where only experts and the blocks' linears may be other than f32: as they are
    /// stored, or by `quant`.
    fn weight_bytes(&self, quant: Quant) -> u64 {
        let (of_linears, of_experts) = (self.linear_parameters(), self.expert_parameters(self.num_experts()));
        let linears = if self.linears == Quant::None { quant } else { self.linears };
        let experts = match self.experts.map(|experts| experts.format) {
            Some(format) if quant == Quant::None || !format.is_dense() => format.group_bytes(),
            _ => quant.group_bytes(),
        };
        F32 * (self.parameters() - of_linears - of_experts)
            + of_linears * linears.group_bytes() / GROUP
            + of_experts * experts / GROUP
    }

    /// Weights of an adapter: A and B of every linear it targets.
    pub fn adapter_parameters(&self, lora: &LoraConfig) -> u64 {
        let of_layer = |layer| {
            self.linears().map(move |(module, inputs, outputs)| {
                let adapted = is_target(&format!("model.layers.{layer}.{module}"), lora);
                if adapted { lora.r as u64 * (inputs + outputs) } else { 0 }
            })
        };
        (0..self.num_layers).flat_map(of_layer).sum()
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

    /// Values that exist for one token while the backward is inside a block: the gradients of what it computes, each
    /// for a moment beside its sum. Experts work one after the other; one may get every token.
    fn transients(&self) -> u64 {
        let attention = 5 * self.q_width() + 4 * self.kv_width();
        let mlp = if self.experts.is_some() { 4 * self.mlp() + 3 * self.hidden() } else { 6 * self.mlp() };
        mlp.max(attention) + 3 * self.hidden()
    }

    /// What a process with this model's tokenizer takes without the model.
    fn process_bytes(&self) -> u64 {
        PROCESS_BYTES + TOKENIZER_BYTES_A_TOKEN * self.vocab()
    }
}

/// PEFT's rule: a target names a module by its whole path or its last parts; none means every linear of the blocks.
fn is_target(module: &str, lora: &LoraConfig) -> bool {
    let names = |target: &String| {
        module.strip_suffix(target.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    lora.targets.is_empty() || lora.targets == ["all-linear"] || lora.targets.iter().any(names)
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
    /// The process itself, scratch buffers, and what the allocator keeps.
    pub workspace: u64,
}

impl MemoryEstimate {
    /// Each part with its name.
    pub fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("Weights", self.weights),
            ("Adapter", self.adapter),
            ("Gradients", self.gradients),
            ("Optimizer", self.optimizer),
            ("Activations", self.activations),
            ("Logits", self.logits),
            ("Workspace", self.workspace),
        ]
    }

    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Peak memory of training this model on rows of up to `longest_row_tokens`, on the CPU.
///
/// Frozen weights are f32 whatever the file holds, but for experts and linears in NF4: a GGUF is dequantised. A batch is
/// its rows laid end to end, nothing padded; with packing each of its sequences is taken as full. Every token is taken as trained.
pub fn training_memory(shape: &ModelShape, config: &RunConfig, longest_row_tokens: usize) -> MemoryEstimate {
    let row_tokens = if config.packing { config.max_seq_len } else { longest_row_tokens };
    let tokens = config.batch_size as u64 * row_tokens.min(config.max_seq_len) as u64;
    let full = config.method == Method::Full;
    let adapter = if full { 0 } else { shape.adapter_parameters(&config.lora) };
    let learned = if full { shape.parameters() } else { adapter };
    // One sum over the step's batches, and the gradients of the batch (with checkpointing of the block) at hand.
    let at_hand =
        if config.gradient_checkpointing { learned.div_ceil(shape.layers().max(1)) } else { learned };
    // The output projection's gradient exists twice, once as the loss leaves it, once scaled.
    let of_head = if full { 2 * shape.embedding_parameters() } else { 0 };
    let a_layer = shape.activations_a_layer(config);
    let activations = if config.gradient_checkpointing {
        // Every block's input, and all of one block.
        (shape.layers() + 1) * shape.hidden() + a_layer
    } else {
        shape.layers() * a_layer
    };
    // Beside a chunk of logits: the trained tokens' last states, normed, and the gradients of both.
    let logits = LOGITS_ROWS.min(tokens) * shape.vocab() + 4 * tokens * shape.hidden();
    MemoryEstimate {
        weights: shape.weight_bytes(config.base_quant()),
        adapter: F32 * adapter,
        gradients: F32 * (learned + at_hand + of_head),
        optimizer: F32 * 2 * learned,
        activations: F32 * tokens * activations,
        logits: F32 * logits,
        workspace: F32 * tokens * shape.transients() + shape.process_bytes(),
    }
}

/// Floating-point operations of training on `tokens` tokens in rows of `row_tokens` on average.
///
/// A product with a matrix costs two a weight and token, forward and once more for the gradient of its input; a third
/// time for its own, where it learns; and its forward again with gradient checkpointing. Every token is taken as
/// trained, and attention sees half of its row.
pub fn training_flops(shape: &ModelShape, config: &RunConfig, tokens: u64, row_tokens: usize) -> f64 {
    let learns = config.method == Method::Full;
    let again = f64::from(u8::from(config.gradient_checkpointing));
    let (linears, head) = (shape.linear_parameters() as f64, shape.embedding_parameters() as f64);
    let adapter = if learns { 0.0 } else { shape.adapter_parameters(&config.lora) as f64 };
    let frozen_passes = if learns { 3.0 } else { 2.0 };
    // Experts do gate and up once more in the backward.
    let experts =
        shape.expert_parameters(shape.experts.map_or(0, |experts| experts.experts_per_token)) as f64;
    let products = linears * (frozen_passes + again)
        + experts * (2.0 + 2.0 / 3.0 + again)
        + head * frozen_passes
        + adapter * (3.0 + again);
    // Scores and weighted values forward; five such products backward, which recomputes the scores.
    let attention = shape.layers() * shape.q_width() * row_tokens.min(config.max_seq_len) as u64;
    tokens as f64 * (2.0 * products + attention as f64 * (2.0 + 5.0 + 2.0 * again))
}

/// Peak memory of a chat whose conversation has `context_tokens`.
///
/// A file of less than two bytes a weight is a quantised GGUF, unless it is one of experts or in NF4: it stays so, with
/// its blocks' scales in f32; any other model is f32, but for experts and linears in NF4.
pub fn chat_memory(shape: &ModelShape, model_bytes: u64, context_tokens: usize) -> u64 {
    let parameters = shape.parameters();
    let is_float_or_gguf = shape.experts.is_none() && shape.linears == Quant::None;
    let quantized = is_float_or_gguf && model_bytes < 2 * parameters * 9 / 10;
    let weights = if quantized { model_bytes + parameters / 8 } else { shape.weight_bytes(Quant::None) };
    // One weight at a time is dequantised to read a prompt.
    let dequantized = if quantized { shape.hidden() * shape.mlp() } else { 0 };
    let tokens = context_tokens as u64;
    let cache = 2 * shape.layers() * shape.kv_width() * tokens;
    let prefill = PREFILL_TOKENS.min(tokens) * 4 * (shape.hidden() + shape.mlp());
    weights + F32 * (dequantized + cache + prefill + shape.vocab()) + shape.process_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMOLLM2: ModelShape = ModelShape {
        num_layers: 30,
        hidden_size: 576,
        intermediate_size: 1536,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        vocab_size: 49_152,
        context_length: 8192,
        tie_word_embeddings: true,
        linears: Quant::None,
        experts: None,
    };
    const STARTER: ModelShape = ModelShape {
        num_layers: 5,
        hidden_size: 256,
        intermediate_size: 704,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        head_dim: 32,
        vocab_size: 4096,
        context_length: 256,
        tie_word_embeddings: true,
        linears: Quant::None,
        experts: None,
    };

    const GPT_OSS_20B: ModelShape = ModelShape {
        num_layers: 24,
        hidden_size: 2880,
        intermediate_size: 2880,
        num_attention_heads: 64,
        num_key_value_heads: 8,
        head_dim: 64,
        vocab_size: 201_088,
        context_length: 131_072,
        tie_word_embeddings: false,
        linears: Quant::None,
        experts: Some(ExpertsShape { num_experts: 32, experts_per_token: 4, format: ExpertFormat::Mxfp4 }),
    };

    fn config(max_seq_len: usize, batch_size: usize, r: usize, gradient_checkpointing: bool) -> RunConfig {
        let lora = LoraConfig { r, ..LoraConfig::default() };
        RunConfig { max_seq_len, batch_size, gradient_checkpointing, lora, ..RunConfig::default() }
    }

    fn lora_on(targets: &[&str]) -> LoraConfig {
        LoraConfig {
            targets: targets.iter().map(|target| (*target).to_owned()).collect(),
            ..LoraConfig::default()
        }
    }

    #[test]
    fn parameters_are_those_of_the_models() {
        assert_eq!([SMOLLM2.parameters(), STARTER.parameters()], [134_515_008, 4_737_792]);
        let count = |targets: &[&str]| SMOLLM2.adapter_parameters(&lora_on(targets));
        assert_eq!(count(&[]), 30 * 16 * 10_176);
        assert_eq!(count(&["all-linear"]), count(&[]));
        assert_eq!(count(&["q_proj", "v_proj"]), 30 * 16 * (576 + 576 + 576 + 192));
        assert_eq!(count(&["mlp.down_proj"]), 30 * 16 * (1536 + 576));
        assert_eq!(count(&["model.layers.0.self_attn.k_proj"]), 16 * (576 + 192));
        assert_eq!(count(&["proj"]), 0);
    }

    #[test]
    fn experts_count_as_they_are_held() {
        // Its own files say 20 914 757 184, biases of attention and router and sinks included.
        let missing = 20_914_757_184 - GPT_OSS_20B.parameters();
        assert_eq!(missing, 24 * (4096 + 2 * 512 + 2880 + 64 + 32));
        let (packed, dense) = (GPT_OSS_20B.weight_bytes(Quant::None), 4 * GPT_OSS_20B.parameters());
        assert_eq!(dense - packed, GPT_OSS_20B.expert_parameters(32) * 111 / 32);
        assert_eq!(GPT_OSS_20B.adapter_parameters(&lora_on(&[])), 24 * 16 * (2 * 6976 + 2 * 3392));
        assert_eq!(GPT_OSS_20B.adapter_parameters(&lora_on(&["gate_proj"])), 0);
        assert!(chat_memory(&GPT_OSS_20B, 13_800_000_000, 100) < packed + 500_000_000);
    }

    /// Peak resident memory of training workers on two threads, in MB: rows longer than the context, one batch a step.
    #[test]
    fn training_memory_is_within_ten_percent_of_what_was_measured() {
        let check = |shape: &ModelShape, config: &RunConfig, measured_mb: f64| {
            let predicted_mb = training_memory(shape, config, 10_000).total() as f64 / 1e6;
            assert!(
                (predicted_mb / measured_mb - 1.0).abs() < 0.1,
                "{predicted_mb} MB, not {measured_mb} MB"
            );
        };
        check(&SMOLLM2, &config(256, 1, 16, false), 1010.0);
        check(&SMOLLM2, &config(512, 1, 16, false), 1346.0);
        check(&SMOLLM2, &config(1024, 1, 16, false), 2019.0);
        check(&SMOLLM2, &config(512, 2, 16, false), 2015.0);
        check(&SMOLLM2, &config(512, 1, 64, false), 1667.0);
        check(&SMOLLM2, &config(512, 1, 16, true), 745.0);
        check(&SMOLLM2, &config(1024, 2, 16, true), 1017.0);
        check(&STARTER, &config(256, 1, 16, false), 81.0);
        check(&STARTER, &config(256, 4, 16, false), 172.0);
        check(&STARTER, &config(256, 4, 16, true), 103.0);
        let full = |config: RunConfig| RunConfig { method: Method::Full, ..config };
        check(&SMOLLM2, &full(config(256, 1, 16, false)), 3309.0);
        check(&SMOLLM2, &full(config(512, 1, 16, true)), 2666.0);
        check(&STARTER, &full(config(256, 1, 16, false)), 157.0);
        check(&STARTER, &full(config(256, 4, 16, true)), 163.0);
        let some = RunConfig { lora: lora_on(&["q_proj", "v_proj"]), ..config(512, 1, 16, false) };
        check(&SMOLLM2, &some, 1267.0);
    }

    #[test]
    fn the_parts_of_a_training_runs_memory_are_these() {
        let estimate = training_memory(&SMOLLM2, &config(512, 1, 16, false), 512);
        let expected = MemoryEstimate {
            weights: 538_060_032,
            adapter: 19_537_920,
            gradients: 39_075_840,
            optimizer: 39_075_840,
            activations: 644_444_160,
            logits: 29_884_416,
            workspace: 54_996_224,
        };
        assert_eq!(estimate, expected);
        assert_eq!(estimate.total(), 1_365_074_432);
    }

    #[test]
    fn linears_in_nf4_take_four_and_a_half_bits_a_weight() {
        let lora = config(512, 2, 16, false);
        let qlora = RunConfig { method: Method::Qlora, ..lora.clone() };
        let weights = |config: &RunConfig| training_memory(&SMOLLM2, config, 512).weights;
        assert_eq!(weights(&lora) - weights(&qlora), 106_168_320 * 4 - 106_168_320 * 9 / 16);
        assert_eq!(weights(&qlora), weights(&RunConfig { quant: Quant::Nf4, ..lora }));
    }

    #[test]
    fn what_is_stored_in_nf4_takes_no_more_than_that() {
        let stored = ModelShape { linears: Quant::Nf4, ..SMOLLM2 };
        let saved = 106_168_320 * 4 - 106_168_320 * 9 / 16;
        assert_eq!(SMOLLM2.weight_bytes(Quant::None) - stored.weight_bytes(Quant::None), saved);
        assert_eq!(stored.weight_bytes(Quant::Nf4), stored.weight_bytes(Quant::None));
        let with = |format| {
            let experts = GPT_OSS_20B.experts.map(|experts| ExpertsShape { format, ..experts });
            ModelShape { linears: Quant::Nf4Double, experts, ..GPT_OSS_20B }
        };
        let in_memory = with(ExpertFormat::Nf4Double).weight_bytes(Quant::None);
        let packed = GPT_OSS_20B.linear_parameters() + GPT_OSS_20B.expert_parameters(32);
        let dense = GPT_OSS_20B.parameters() - packed;
        assert_eq!(in_memory, 4 * dense + packed * (32 * 256 + 256 + 4) / (64 * 256));
        assert_eq!(with(ExpertFormat::Nf4Double).weight_bytes(Quant::Nf4), in_memory);
        assert_eq!(with(ExpertFormat::Bf16).weight_bytes(Quant::Nf4Double), in_memory);
        let mxfp4 = with(ExpertFormat::Mxfp4).weight_bytes(Quant::None);
        assert_eq!(with(ExpertFormat::Blocks(136)).weight_bytes(Quant::None), mxfp4);
        assert!(chat_memory(&stored, 130_000_000, 100) > stored.weight_bytes(Quant::None));
    }

    #[test]
    fn more_of_anything_takes_more() {
        let total = |config: &RunConfig, row: usize| training_memory(&SMOLLM2, config, row).total();
        let base = config(512, 2, 16, false);
        let unpacked = RunConfig { packing: false, ..base.clone() };
        assert!(total(&unpacked, 100) < total(&unpacked, 101));
        assert_eq!(total(&unpacked, 512), total(&unpacked, 513), "longer rows are cut");
        assert_eq!(total(&base, 100), total(&unpacked, 512), "packed sequences are full");
        for more in [config(513, 2, 16, false), config(512, 3, 16, false), config(512, 2, 17, false)] {
            assert!(total(&base, 512) < total(&more, 512));
            let flops = |config: &RunConfig| training_flops(&SMOLLM2, config, 1000, 512);
            assert!(flops(&base) <= flops(&more));
        }
        let recomputed = config(512, 2, 16, true);
        assert!(total(&recomputed, 512) < total(&base, 512));
        let flops = |config: &RunConfig, tokens, row| training_flops(&SMOLLM2, config, tokens, row);
        assert!(flops(&base, 1000, 512) < flops(&recomputed, 1000, 512));
        assert!(flops(&base, 1000, 511) < flops(&base, 1000, 512));
        assert!(flops(&base, 1000, 512) < flops(&base, 1001, 512));
        let deeper = ModelShape { num_layers: 31, ..SMOLLM2 };
        assert!(total(&base, 512) < training_memory(&deeper, &base, 512).total());
        assert!(chat_memory(&SMOLLM2, 538_000_000, 100) < chat_memory(&SMOLLM2, 538_000_000, 101));
        assert!(chat_memory(&SMOLLM2, 98_000_000, 100) < chat_memory(&SMOLLM2, 99_000_000, 100));
    }

    #[test]
    fn operations_are_counted_a_product_at_a_time() {
        let lora = config(512, 1, 16, false);
        let full = RunConfig { method: Method::Full, ..lora.clone() };
        let check = |config: &RunConfig, expected: u64| {
            let flops = training_flops(&SMOLLM2, config, 1, 100);
            assert!((flops - expected as f64).abs() < 1.0, "{flops}, not {expected}");
        };
        let (linears, head, adapter, attention) = (106_168_320, 28_311_552, 4_884_480, 30 * 576 * 100);
        check(&lora, 4 * (linears + head) + 6 * adapter + 7 * attention);
        check(&full, 6 * (linears + head) + 7 * attention);
        let recomputed = config(512, 1, 16, true);
        check(&recomputed, 6 * linears + 4 * head + 8 * adapter + 9 * attention);
    }

    /// As above: after one reply.
    #[test]
    fn chat_memory_is_within_ten_percent_of_what_was_measured() {
        let check = |model_bytes: u64, context_tokens: usize, measured_mb: f64| {
            let predicted_mb = chat_memory(&SMOLLM2, model_bytes, context_tokens) as f64 / 1e6;
            assert!(
                (predicted_mb / measured_mb - 1.0).abs() < 0.1,
                "{predicted_mb} MB, not {measured_mb} MB"
            );
        };
        check(98_362_432, 67, 166.0);
        check(98_362_432, 2047, 272.0);
        check(538_090_216, 67, 599.0);
        check(538_090_216, 2047, 704.0);
    }
}
