//! What learns gets a gradient, what is frozen gets none, and packing changes nothing.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use candle_core::Device;
use lathe_engine::{
    adapter, batch, lora,
    model::{BaseLinear, Embedding, LoadFor, Model, Norm},
    tokenize::TokenizedRow,
    train::{PassOptions, Trainable, Weights, accumulate, optimizer, trainables},
};
use lathe_protocol::{LoraConfig, Method, RunConfig};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn row(ids: impl Iterator<Item = u32>) -> TokenizedRow {
    let ids: Vec<u32> = ids.collect();
    let loss_mask = (0..ids.len()).map(|t| t >= ids.len() / 2).collect();
    TokenizedRow { ids, loss_mask, ..TokenizedRow::default() }
}

fn rows(vocab_size: usize) -> Vec<TokenizedRow> {
    let row = |ids: &mut dyn Iterator<Item = u32>| row(ids.map(|id| id % vocab_size as u32));
    vec![row(&mut (5..25)), row(&mut (40..120).step_by(2)), row(&mut (0..9).map(|i| 300 - i * i))]
}

fn gradients(model: &Model, trainables: &[Trainable], rows: &[TokenizedRow]) -> (f64, Vec<Vec<f32>>) {
    gradients_with(model, trainables, rows, None)
}

fn gradients_with(
    model: &Model,
    trainables: &[Trainable],
    rows: &[TokenizedRow],
    recomputed_blocks: Option<usize>,
) -> (f64, Vec<Vec<f32>>) {
    let mut optimizer = optimizer(trainables, &RunConfig::default()).unwrap();
    let options = PassOptions {
        rope: model.rope_table(64),
        dropout_key: Some(3),
        neftune: None,
        recomputed_blocks,
        offload: None,
    };
    let batch = batch::pack(rows);
    let tokens = accumulate(model, trainables, &batch, &options, Weights::Even(1.0), &mut optimizer).unwrap();
    (tokens.iter().map(|token| token.loss).sum(), optimizer.gradients().unwrap())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn every_adapter_tensor_learns_and_no_base_weight_does() {
    for name in [
        "tiny-llama",
        "tiny-qwen3",
        "tiny-qwen2",
        "tiny-qwen3-untied",
        "tiny-gpt-oss-mxfp4",
        "tiny-qwen3-moe",
    ] {
        let mut model = Model::load(&golden(name), LoadFor::Lora).unwrap();
        lora::attach_fresh(&mut model, &LoraConfig { r: 4, ..LoraConfig::default() }, 1).unwrap();
        let found = trainables(&model, Method::Lora);
        let linears = model.config.family.default_targets();
        assert_eq!(found.len(), 2 * linears.len() * model.config.num_layers);
        let (_, sums) = gradients(&model, &found, &rows(model.config.vocab_size));
        for (trainable, gradient) in found.iter().zip(&sums) {
            assert!(gradient.iter().all(|value| value.is_finite()), "{}", trainable.name);
            // While B is zero, A gets none: dA = s·(dy B)ᵀ x.
            let is_b = trainable.name.contains("lora_B");
            assert_eq!(largest(gradient) > 0.0, is_b, "{name}: {}", trainable.name);
        }
        for projection in model.projections() {
            let BaseLinear::Dense(frozen) = &projection.base else {
                panic!("{} is not frozen", projection.name)
            };
            assert!(!frozen.weight().unwrap().track_op(), "{} is in autograd", projection.name);
        }
        assert!(matches!(&model.embedding, Embedding::Frozen(table) if !table.track_op()));
        assert!(matches!(&model.final_norm, Norm::Frozen(weight) if !weight.track_op()));
    }
}

#[test]
fn every_weight_of_a_full_fine_tune_learns() {
    for name in ["tiny-llama", "tiny-qwen3", "tiny-qwen2", "tiny-qwen3-untied"] {
        let model = Model::load(&golden(name), LoadFor::Full).unwrap();
        let found = trainables(&model, Method::Full);
        let elements: usize = found.iter().map(|t| t.var.elem_count()).sum();
        let (_, sums) = gradients(&model, &found, &rows(model.config.vocab_size));
        for (trainable, gradient) in found.iter().zip(&sums) {
            let size = largest(gradient);
            // A key bias shifts every score of a query alike, so the softmax takes it away.
            let cancels = trainable.name.ends_with("k_proj.bias");
            assert!(
                size.is_finite() && (size > 0.0 || cancels),
                "{name}: {} has gradient {size}",
                trainable.name
            );
        }
        assert!(elements >= model.num_parameters(), "{name}: {elements} of {} learn", model.num_parameters());
    }
}

#[test]
fn recomputing_blocks_changes_no_gradient_however_many_at_a_time() {
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/starter");
    let mut adapted = Model::load(&starter, LoadFor::Lora).unwrap();
    lora::attach_fresh(&mut adapted, &LoraConfig { dropout: 0.2, ..LoraConfig::default() }, 1).unwrap();
    for (model, method) in
        [(adapted, Method::Lora), (Model::load(&starter, LoadFor::Full).unwrap(), Method::Full)]
    {
        assert_eq!(model.blocks.len(), 5);
        let found = trainables(&model, method);
        let rows = rows(model.config.vocab_size);
        let (kept_loss, kept) = gradients(&model, &found, &rows);
        for blocks in [1, 2, 3, 5, 6] {
            let (loss, recomputed) = gradients_with(&model, &found, &rows, Some(blocks));
            assert_eq!(loss.to_bits(), kept_loss.to_bits(), "{blocks} blocks at a time");
            for ((trainable, kept), recomputed) in found.iter().zip(&kept).zip(&recomputed) {
                assert!(kept == recomputed, "{blocks} blocks at a time: {}", trainable.name);
            }
        }
    }
}

#[test]
fn packed_rows_learn_as_if_alone() {
    check_packing(&Model::load(&golden("tiny-qwen3"), LoadFor::Full).unwrap(), Method::Full);
    let mut model = Model::load(&golden("tiny-gpt-oss"), LoadFor::Lora).unwrap();
    adapter::attach(&mut model, &golden("tiny-gpt-oss").join("init")).unwrap();
    check_packing(&model, Method::Lora);
}

fn check_packing(model: &Model, method: Method) {
    let rows = rows(model.config.vocab_size);
    let found = trainables(model, method);
    let (packed_loss, packed) = gradients(model, &found, &rows);
    let mut alone: Vec<Vec<f32>> = packed.iter().map(|gradient| vec![0.0; gradient.len()]).collect();
    let mut alone_loss = 0.0;
    for row in rows {
        let (loss, sums) = gradients(model, &found, &[row]);
        alone_loss += loss;
        for (sum, gradient) in alone.iter_mut().zip(sums) {
            sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
        }
    }
    assert!((packed_loss - alone_loss).abs() < 1e-4 * alone_loss, "{packed_loss} {alone_loss}");
    for ((trainable, packed), alone) in found.iter().zip(&packed).zip(&alone) {
        let difference = packed.iter().zip(alone).fold(0f32, |d, (a, b)| d.max((a - b).abs()));
        assert!(difference <= 1e-4 * largest(alone), "{}: {difference}", trainable.name);
    }
}

#[test]
fn adapter_gradients_of_gpt_oss_equal_those_of_peft() {
    let folder = golden("tiny-gpt-oss");
    let mut model = Model::load(&folder, LoadFor::Lora).unwrap();
    adapter::attach(&mut model, &folder.join("init")).unwrap();
    let found = trainables(&model, Method::Lora);
    let expected =
        candle_core::safetensors::load(folder.join("expected_gradients.safetensors"), &Device::Cpu).unwrap();
    for trainable in &found {
        trainable.var.set(&expected[&trainable.name]).unwrap();
    }
    let rows: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(folder.join("expected_tokens.json")).unwrap()).unwrap();
    let ids: Vec<u32> = serde_json::from_value(rows[0]["ids"].clone()).unwrap();
    let loss_mask: Vec<bool> =
        rows[0]["mask"].as_array().unwrap().iter().map(|bit| bit.as_u64() == Some(1)).collect();
    // The first token is never predicted; it is masked anyway.
    let count = loss_mask.iter().filter(|learns| **learns).count() as f32;
    let (_, sums) = gradients(&model, &found, &[TokenizedRow { ids, loss_mask, ..TokenizedRow::default() }]);
    for (trainable, gradient) in found.iter().zip(&sums) {
        let expected: Vec<f32> =
            expected[&format!("grad.{}", trainable.name)].flatten_all().unwrap().to_vec1().unwrap();
        let difference = gradient.iter().zip(&expected).fold(0f32, |d, (a, b)| d.max((a / count - b).abs()));
        let error = difference / largest(&expected);
        assert!(error <= 1e-4, "{}: relative error {error}", trainable.name);
    }
}
