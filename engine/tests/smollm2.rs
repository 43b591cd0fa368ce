//! SmolLM2-135M-Instruct from its Q4_1 GGUF against transformers on the dequantised weights
//! (tests/golden/tokenizers_gguf.py).
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use lathe_engine::{
    chat::{ChatSession, ReplyRequest},
    model::{LoadFor, Model},
};
use lathe_protocol::{Message, Role, SamplingParams, Thinking};
use serde_json::Value;

/// The GGUF: `LATHE_SMOLLM2`, or where `cargo xtask fetch-smollm2` puts it.
fn gguf() -> Option<PathBuf> {
    let fetched =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("LATHE_SMOLLM2").map_or(fetched, PathBuf::from);
    if !path.exists() {
        eprintln!("skipped: no {} (cargo xtask fetch-smollm2)", path.display());
        return None;
    }
    Some(path)
}

fn expected() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/smollm2/expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Largest difference of the expected top logits of every position, relative to their size.
fn error_against(logits: &[Vec<f32>], reference: &Value) -> f32 {
    let mut worst = 0f32;
    for (position, logits) in logits.iter().enumerate() {
        let ids: Vec<usize> = numbers(&reference["top_ids"][position]);
        let expected: Vec<f32> = numbers(&reference["top_logits"][position]);
        for (id, expected) in ids.iter().zip(&expected) {
            worst = worst.max((logits[*id] - expected).abs() / expected.abs());
        }
    }
    worst
}

#[test]
fn logits_equal_those_of_transformers_on_the_dequantised_weights() {
    let Some(path) = gguf() else { return };
    let expected = expected();
    let ids: Vec<u32> = numbers(&expected["logits"]["ids"]);
    let model = Model::load(&path, LoadFor::Inference).unwrap();
    let logits: Vec<Vec<f32>> = model.all_logits(&ids).unwrap().to_vec2().unwrap();
    let error = error_against(&logits, &expected["logits"]["transformers"]);
    assert!(error < 1e-3, "relative error {error}");

    // Token by token the products run on the quantised weights.
    let rope = model.rope_table(ids.len());
    let mut cache = model.new_cache(ids.len()).unwrap();
    let stepwise: Vec<Vec<f32>> =
        ids.iter().map(|id| model.decode(&[*id], &mut cache, &rope).unwrap().to_vec1().unwrap()).collect();
    let error = error_against(&stepwise, &expected["logits"]["transformers"]);
    assert!(error < 2e-3, "relative error {error} token by token");
}

#[test]
fn greedy_chat_knows_the_capital_of_france() {
    let Some(path) = gguf() else { return };
    let now = Cell::new(0.0);
    let clock = || {
        now.set(now.get() + 0.001);
        now.get()
    };
    let mut session = ChatSession::load(&path, &[], &clock).unwrap();
    let expected = expected();
    for golden in expected["greedy"].as_array().unwrap() {
        let request = ReplyRequest {
            messages: vec![Message::new(Role::User, golden["question"].as_str().unwrap())],
            sampling: SamplingParams { max_tokens: 40, ..SamplingParams::default() },
            thinking: Thinking::Show,
            effort: None,
            now: None,
        };
        let mut text = String::new();
        let cancel = AtomicBool::new(false);
        let stats =
            session.reply(&request, &cancel, &clock, &mut |delta| text.push_str(&delta.text)).unwrap();
        assert_eq!(format!("{text}<|im_end|>"), golden["transformers"]["text"].as_str().unwrap());
        assert!(stats.finished);
        assert_eq!(stats.output_tokens, golden["transformers"]["ids"].as_array().unwrap().len());
        assert_eq!(stats.prompt_tokens, golden["prompt_ids"].as_array().unwrap().len());
    }
}
