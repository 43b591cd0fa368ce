use super::*;
use crate::Style;

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
    is_gguf: false,
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
    is_gguf: false,
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
    is_gguf: false,
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
    assert_eq!(count(&["regex:.*(q|v)_proj"]), count(&["q_proj", "v_proj"]));
    assert_eq!(count(&["regex:("]), 0);
}

#[test]
fn an_adapter_counts_all_that_learns() {
    let few = LoraConfig { layers: vec![0, 3], ..lora_on(&["q_proj"]) };
    assert_eq!(SMOLLM2.adapter_parameters(&few), 2 * 16 * (576 + 576));
    let dora = LoraConfig { use_dora: true, ..few.clone() };
    assert_eq!(SMOLLM2.adapter_parameters(&dora), 2 * (16 * (576 + 576) + 576));
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let experts = LoraConfig {
        target_parameters: names(&["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
        ..lora_on(&["none"])
    };
    // A of 32 · 16 rows for each stack, B as many columns.
    assert_eq!(GPT_OSS_20B.adapter_parameters(&experts), 24 * 512 * (2880 + 5760 + 2880 + 2880));
    assert_eq!(SMOLLM2.adapter_parameters(&experts), 0, "it has none");
    let whole = LoraConfig { modules_to_save: names(&["embed_tokens", "norm"]), ..few.clone() };
    let tables = 49_152 * 576;
    assert_eq!(SMOLLM2.adapter_parameters(&whole), 2 * 16 * (576 + 576) + tables + 61 * 576);
    // Of two tables that were one, the frozen one is gone when both learn.
    let weights = |modules: &[&str]| {
        let lora = LoraConfig { modules_to_save: names(modules), ..few.clone() };
        training_memory(&SMOLLM2, &RunConfig { lora, ..config(512, 1, 16, false) }, 512, Placement::Cpu)
            .weights
    };
    assert_eq!(weights(&["embed_tokens"]), weights(&[]));
    assert_eq!(weights(&[]) - weights(&["embed_tokens", "lm_head"]), 4 * tables);
}

#[test]
fn experts_count_as_they_are_held() {
    // Its own files say 20 914 757 184, biases of attention and router and sinks included.
    let missing = 20_914_757_184 - GPT_OSS_20B.parameters();
    assert_eq!(missing, 24 * (4096 + 2 * 512 + 2880 + 64 + 32));
    let (packed, dense) =
        (GPT_OSS_20B.weight_bytes(Quant::None, Placement::Cpu), 4 * GPT_OSS_20B.parameters());
    let tables = 2 * GPT_OSS_20B.embedding_parameters();
    assert_eq!(dense - packed, GPT_OSS_20B.expert_parameters(32) * 111 / 32 + 2 * tables);
    // On a card it is its file, without the few biases.
    let on_a_card = GPT_OSS_20B.weight_bytes(Quant::None, Placement::Cuda);
    assert_eq!(13_761_264_768 - on_a_card, 2 * missing);
    assert_eq!(GPT_OSS_20B.adapter_parameters(&lora_on(&[])), 24 * 16 * (2 * 6976 + 2 * 3392));
    assert_eq!(GPT_OSS_20B.adapter_parameters(&lora_on(&["gate_proj"])), 0);
    assert!(chat_memory(&GPT_OSS_20B, 13_800_000_000, 100) < packed + 500_000_000);
}

/// A gpt-oss small enough to be measured, and not only its process.
const TINY_GPT_OSS: ModelShape = ModelShape {
    num_layers: 6,
    hidden_size: 768,
    intermediate_size: 768,
    num_attention_heads: 16,
    num_key_value_heads: 4,
    vocab_size: 32_768,
    experts: Some(ExpertsShape { num_experts: 8, experts_per_token: 4, format: ExpertFormat::Mxfp4 }),
    ..GPT_OSS_20B
};

/// Peak resident memory in MB of `lathe estimate --probe` on two threads of Linux; `cargo xtask bench memory` has more.
#[test]
fn training_memory_is_within_five_percent_of_what_was_measured() {
    let check = |shape: &ModelShape, config: &RunConfig, measured_mb: f64| {
        let predicted_mb = training_memory(shape, config, 10_000, Placement::Cpu).total() as f64 / 1e6;
        assert!((predicted_mb / measured_mb - 1.0).abs() < 0.05, "{predicted_mb} MB, not {measured_mb} MB");
    };
    let every_4 = |config: RunConfig| RunConfig { gradient_checkpointing_every: 4, ..config };
    let full = |config: RunConfig| RunConfig { method: Method::Full, ..config };
    let with = |lora: LoraConfig, config: RunConfig| RunConfig { lora, ..config };
    check(&SMOLLM2, &config(256, 1, 16, false), 1006.0);
    check(&SMOLLM2, &config(1024, 1, 16, false), 2017.0);
    check(&SMOLLM2, &config(512, 2, 16, false), 2014.0);
    check(&SMOLLM2, &config(1024, 4, 64, false), 6516.0);
    check(&SMOLLM2, &config(512, 1, 16, true), 739.0);
    check(&SMOLLM2, &config(1024, 2, 16, true), 988.0);
    check(&SMOLLM2, &config(512, 4, 64, true), 1214.0);
    check(&SMOLLM2, &every_4(config(512, 4, 64, true)), 1385.0);
    check(&SMOLLM2, &with(lora_on(&["q_proj", "v_proj"]), config(512, 1, 16, false)), 1268.0);
    let dora = LoraConfig { use_dora: true, ..LoraConfig::default() };
    check(&SMOLLM2, &with(dora, config(512, 1, 16, false)), 1682.0);
    let table = LoraConfig { modules_to_save: vec!["embed_tokens".into()], ..LoraConfig::default() };
    check(&SMOLLM2, &with(table, config(128, 1, 16, false)), 1402.0);
    let of_8_bits = RunConfig { optimizer: Optimizer::Adamw8bit, ..config(512, 1, 64, false) };
    check(&SMOLLM2, &of_8_bits, 1546.0);
    let qlora = RunConfig { method: Method::Qlora, ..config(512, 1, 16, false) };
    check(&SMOLLM2, &qlora, 976.0);
    check(&SMOLLM2, &full(config(256, 1, 16, false)), 3197.0);
    check(&SMOLLM2, &full(config(512, 1, 16, true)), 2536.0);
    check(&STARTER, &config(256, 1, 16, false), 78.0);
    check(&STARTER, &config(256, 4, 16, false), 171.0);
    check(&STARTER, &config(256, 4, 16, true), 98.0);
    check(&STARTER, &config(512, 8, 16, true), 260.0);
    check(&STARTER, &config(128, 1, 16, true), 54.0);
    check(&STARTER, &full(config(256, 1, 16, false)), 150.0);
    check(&STARTER, &full(config(256, 4, 16, true)), 151.0);
    check(&TINY_GPT_OSS, &config(128, 1, 8, false), 317.0);
    check(&TINY_GPT_OSS, &config(1024, 4, 64, false), 1393.0);
    check(&TINY_GPT_OSS, &config(1024, 4, 8, true), 733.0);
    check(&TINY_GPT_OSS, &every_4(config(512, 4, 64, true)), 723.0);
    let experts = LoraConfig {
        target_parameters: vec!["mlp.experts.gate_up_proj".into(), "mlp.experts.down_proj".into()],
        ..LoraConfig::default()
    };
    check(&TINY_GPT_OSS, &with(experts, config(512, 4, 16, true)), 541.0);
}

#[test]
fn what_fits_is_the_change_that_costs_least() {
    let check = |shape: &ModelShape, config: &RunConfig, budget_mb: u64, expected: Option<&str>| {
        let found = Remedy::find(shape, config, 10_000, Placement::Cpu, budget_mb * 1_000_000);
        assert_eq!(found.map(Remedy::settings).as_deref(), expected, "{budget_mb} MB");
        let total =
            |config: &RunConfig| training_memory(shape, config, 10_000, Placement::Cpu).total() / 1_000_000;
        if let Some(remedy) = found {
            let mut changed = config.clone();
            remedy.apply(&mut changed);
            assert!(total(config) > budget_mb && total(&changed) <= budget_mb);
        }
    };
    let batch = RunConfig { grad_accum: 3, ..config(512, 4, 16, false) };
    check(&SMOLLM2, &batch, 3000, Some("batch_size=3 grad_accum=4"));
    check(&SMOLLM2, &batch, 2500, Some("batch_size=2 grad_accum=6"));
    check(&SMOLLM2, &batch, 1200, Some("gradient_checkpointing=true"));
    check(&SMOLLM2, &batch, 800, None);
    check(&SMOLLM2, &config(512, 1, 64, true), 900, Some("optimizer=adamw8bit"));
    check(
        &SMOLLM2,
        &RunConfig { optimizer: Optimizer::Adamw8bit, ..config(256, 1, 16, true) },
        400,
        Some("method=qlora"),
    );
    let recomputed = RunConfig { optimizer: Optimizer::Adamw8bit, ..config(1024, 1, 16, true) };
    let gguf = ModelShape { is_gguf: true, ..SMOLLM2 };
    check(&SMOLLM2, &recomputed, 700, Some("method=qlora"));
    check(&gguf, &recomputed, 700, Some("max_seq_len=384"));
    let full = RunConfig { method: Method::Full, ..recomputed };
    check(&SMOLLM2, &full, 1000, Some("method=lora"));
    assert_eq!(Remedy::sentence(None), "No single change makes it fit: choose a smaller model");
    assert_eq!(
        Remedy::sentence(Some(Remedy::ShorterRows(512))),
        "It fits with max_seq_len=512: longer rows are cut"
    );
}

#[test]
fn a_probe_tells_its_phases_and_how_far_it_was_off() {
    let predicted = training_memory(&SMOLLM2, &config(512, 1, 16, false), 512, Placement::Cpu);
    let measured = MeasuredMemory { program: 10, loaded: 30, ready: 25, peak: predicted.total() / 2 };
    let report = ProbeReport { predicted, measured, row_tokens: 512, seconds: 1.0 };
    let phases = report.phases();
    assert_eq!(phases.iter().map(|phase| phase.predicted).sum::<u64>(), predicted.total());
    assert_eq!(phases.map(|phase| phase.measured), [10, 20, 0, measured.peak - 25]);
    assert_eq!(report.verdict(), "Measured 50.0 % less than predicted");
}

#[test]
fn the_parts_of_a_training_runs_memory_are_these() {
    let estimate = training_memory(&SMOLLM2, &config(512, 1, 16, false), 512, Placement::Cpu);
    let expected = MemoryEstimate {
        weights: 538_060_032,
        adapter: 19_537_920,
        gradients: 19_537_920,
        optimizer: 39_075_840,
        activations: 644_444_160,
        logits: 29_884_416,
        workspace: 16_392_192,
        program: 32_582_912,
    };
    assert_eq!(estimate, expected);
    assert_eq!(estimate.total(), 1_339_515_392);
}

#[test]
fn a_style_takes_a_row_with_its_gradients_and_moments() {
    let lora = config(512, 1, 16, false);
    let styled = RunConfig { styles: Style::terse_and_detailed(), ..lora.clone() };
    let total = |config: &RunConfig| training_memory(&SMOLLM2, config, 512, Placement::Cpu).total();
    assert_eq!(total(&styled) - total(&lora), 2 * 576 * 4 * (1 + 2 + 2));
}

#[test]
fn moments_in_8_bits_take_a_quarter_but_for_small_tensors() {
    let optimizer = |config: &RunConfig, optimizer: Optimizer| {
        let config = RunConfig { optimizer, ..config.clone() };
        training_memory(&SMOLLM2, &config, 512, Placement::Cpu).optimizer
    };
    let check = |config: &RunConfig, coded: u64, small: u64| {
        assert_eq!(optimizer(config, Optimizer::Adamw), 8 * (coded + small));
        assert_eq!(optimizer(config, Optimizer::Adamw8bit), 2 * coded + coded / 32 + 8 * small);
    };
    let full = RunConfig { method: Method::Full, ..config(512, 1, 16, false) };
    check(&full, 134_515_008 - 61 * 576, 61 * 576);
    // B of k and v has 16 · 192 elements.
    check(&config(512, 1, 16, false), 30 * 16 * (10_176 - 2 * 192), 30 * 16 * 2 * 192);
    let whole = LoraConfig { modules_to_save: vec!["norm".into()], use_dora: true, ..lora_on(&["q_proj"]) };
    let whole = RunConfig { lora: whole, styles: Style::terse_and_detailed(), ..config(512, 1, 16, false) };
    check(&whole, 30 * 16 * 2 * 576, (30 + 61 + 2) * 576);
}

#[test]
fn linears_in_nf4_take_four_and_a_half_bits_a_weight() {
    let lora = config(512, 2, 16, false);
    let qlora = RunConfig { method: Method::Qlora, ..lora.clone() };
    let weights = |config: &RunConfig| training_memory(&SMOLLM2, config, 512, Placement::Cpu).weights;
    assert_eq!(weights(&lora) - weights(&qlora), 106_168_320 * 4 - 106_168_320 * 9 / 16);
    assert_eq!(weights(&qlora), weights(&RunConfig { quant: Quant::Nf4, ..lora }));
}

#[test]
fn more_of_anything_takes_more() {
    let total =
        |config: &RunConfig, row: usize| training_memory(&SMOLLM2, config, row, Placement::Cpu).total();
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
    assert!(total(&base, 512) < training_memory(&deeper, &base, 512, Placement::Cpu).total());
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
        assert!((predicted_mb / measured_mb - 1.0).abs() < 0.1, "{predicted_mb} MB, not {measured_mb} MB");
    };
    check(98_362_432, 67, 166.0);
    check(98_362_432, 2047, 272.0);
    check(538_090_216, 67, 599.0);
    check(538_090_216, 2047, 704.0);
}

#[test]
fn a_card_holds_bf16_where_the_cpu_holds_f32() {
    let on = |config: &RunConfig, placement| training_memory(&SMOLLM2, config, 512, placement);
    let lora = config(512, 1, 16, false);
    let (cpu, card) = (on(&lora, Placement::Cpu), on(&lora, Placement::Cuda));
    assert_eq!(cpu.weights, 2 * card.weights);
    assert_eq!(cpu.activations, 2 * card.activations);
    // What learns is f32 everywhere.
    assert_eq!((cpu.adapter, cpu.gradients, cpu.optimizer), (card.adapter, card.gradients, card.optimizer));
    assert_eq!(cpu.logits, card.logits);
    let full = RunConfig { method: Method::Full, ..lora };
    assert_eq!(on(&full, Placement::Cpu).weights, on(&full, Placement::Cuda).weights);
}

#[test]
fn what_is_stored_in_nf4_takes_no_more_than_that() {
    let bytes = |shape: &ModelShape, quant| shape.weight_bytes(quant, Placement::Cpu);
    let stored = ModelShape { linears: Quant::Nf4, ..SMOLLM2 };
    let saved = 106_168_320 * 4 - 106_168_320 * 9 / 16;
    assert_eq!(bytes(&SMOLLM2, Quant::None) - bytes(&stored, Quant::None), saved);
    assert_eq!(bytes(&stored, Quant::Nf4), bytes(&stored, Quant::None));
    let with = |format| {
        let experts = GPT_OSS_20B.experts.map(|experts| ExpertsShape { format, ..experts });
        ModelShape { linears: Quant::Nf4Double, experts, ..GPT_OSS_20B }
    };
    let in_memory = bytes(&with(ExpertFormat::Nf4Double), Quant::None);
    let packed = GPT_OSS_20B.linear_parameters() + GPT_OSS_20B.expert_parameters(32);
    let tables = 2 * GPT_OSS_20B.embedding_parameters();
    let dense = GPT_OSS_20B.parameters() - packed - tables;
    assert_eq!(in_memory, 4 * dense + 2 * tables + packed * (32 * 256 + 256 + 4) / (64 * 256));
    assert_eq!(bytes(&with(ExpertFormat::Nf4Double), Quant::Nf4), in_memory);
    assert_eq!(bytes(&with(ExpertFormat::Bf16), Quant::Nf4Double), in_memory);
    let mxfp4 = bytes(&with(ExpertFormat::Mxfp4), Quant::None);
    assert_eq!(bytes(&with(ExpertFormat::Blocks(136)), Quant::None), mxfp4);
    assert!(chat_memory(&stored, 130_000_000, 100) > bytes(&stored, Quant::None));
}

#[test]
fn a_pair_takes_the_memory_of_two_rows() {
    for packing in [true, false] {
        let rows = |objective, batch_size| {
            let config = RunConfig { objective, packing, ..config(512, batch_size, 16, true) };
            training_memory(&SMOLLM2, &config, 300, Placement::Cpu)
        };
        assert_eq!(rows(Objective::Dpo, 1), rows(Objective::Sft, 2));
        assert_eq!(rows(Objective::Orpo, 2), rows(Objective::Sft, 4));
    }
}

#[test]
fn pairs_take_the_time_of_the_head_again_and_dpo_that_of_a_reference() {
    let flops = |objective, epochs| {
        let config = RunConfig { objective, epochs, ..config(512, 1, 16, false) };
        training_flops(&SMOLLM2, &config, 1000, 300) / 1000.0
    };
    let sft = flops(Objective::Sft, 2.0);
    let head = 2.0 * (SMOLLM2.vocab_size * SMOLLM2.hidden_size) as f64;
    assert!((flops(Objective::Orpo, 2.0) - sft - head).abs() < 1.0);
    let reference = |epochs| flops(Objective::Dpo, epochs) - flops(Objective::Orpo, epochs);
    // A forward is a third of one with its backward, or half where nothing of the base learns.
    assert!(reference(1.0) > sft / 3.0 && reference(1.0) < sft / 2.0, "{} of {sft}", reference(1.0));
    assert!((reference(4.0) - reference(1.0) / 4.0).abs() < 1.0);
}
