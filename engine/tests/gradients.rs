//! What learns gets a gradient, what is frozen gets none, and packing changes nothing.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use lathe_engine::{
    batch, lora,
    model::{BaseLinear, Embedding, LoadFor, Model, Norm},
    tokenize::TokenizedRow,
    train::{PassOptions, Trainable, accumulate, trainables},
};
use lathe_protocol::{LoraConfig, Method};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn row(ids: impl Iterator<Item = u32>) -> TokenizedRow {
    let ids: Vec<u32> = ids.collect();
    let loss_mask = (0..ids.len()).map(|t| t >= ids.len() / 2).collect();
    TokenizedRow { row: 0, line: 1, ids, loss_mask }
}

fn rows() -> Vec<TokenizedRow> {
    vec![row(5..25), row((40..120).step_by(2)), row((0..9).map(|i| 300 - i * i))]
}

fn gradients(model: &Model, trainables: &[Trainable], rows: &[TokenizedRow]) -> (f64, Vec<Vec<f32>>) {
    let mut sums: Vec<Vec<f32>> = trainables.iter().map(|t| vec![0.0; t.var.elem_count()]).collect();
    let options = PassOptions {
        rope: model.rope_table(64),
        dropout_key: None,
        neftune: None,
        gradient_checkpointing: false,
    };
    let stats = accumulate(model, trainables, &batch::pack(rows), &options, 1.0, &mut sums).unwrap();
    (stats.loss_sum, sums)
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[test]
fn every_adapter_tensor_learns_and_no_base_weight_does() {
    for name in ["tiny-llama", "tiny-qwen3", "tiny-qwen2", "tiny-qwen3-untied"] {
        let mut model = Model::load(&golden(name), LoadFor::Lora).unwrap();
        lora::attach_fresh(&mut model, &LoraConfig { r: 4, ..LoraConfig::default() }, 1).unwrap();
        let found = trainables(&model, Method::Lora);
        assert_eq!(found.len(), 2 * 7 * model.config.num_layers);
        let (_, sums) = gradients(&model, &found, &rows());
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
            assert!(!frozen.weight().track_op(), "{} is in autograd", projection.name);
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
        let (_, sums) = gradients(&model, &found, &rows());
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
fn packed_rows_learn_as_if_alone() {
    let model = Model::load(&golden("tiny-qwen3"), LoadFor::Full).unwrap();
    let found = trainables(&model, Method::Full);
    let (packed_loss, packed) = gradients(&model, &found, &rows());
    let mut alone: Vec<Vec<f32>> = packed.iter().map(|gradient| vec![0.0; gradient.len()]).collect();
    let mut alone_loss = 0.0;
    for row in rows() {
        let (loss, sums) = gradients(&model, &found, &[row]);
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
