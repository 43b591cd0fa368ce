//! A reply in Harmony, token by token: whatever a model writes, no marker is ever shown.

#![no_main]

use std::sync::LazyLock;

use lathe_engine::{reply::Parser, text_files::TextFiles, tokenize::encode_plain};
use lathe_fuzz::{folder, repo};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const MARKERS: [&str; 7] =
    ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];

/// A small model's tokenizer with Harmony's markers added.
static TEXT_FILES: LazyLock<TextFiles> = LazyLock::new(|| {
    let bytes = std::fs::read(repo("tests/golden/data/tiny-qwen3/tokenizer.json")).expect("a tokenizer");
    let mut tokenizer: Value = serde_json::from_slice(&bytes).expect("JSON");
    let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
    let first = added.iter().filter_map(|token| token["id"].as_u64()).max().unwrap_or(0) + 1;
    for (id, content) in (first..).zip(MARKERS) {
        added.push(json!({"id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false}));
    }
    let folder = folder("harmony");
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    TextFiles::open(&folder).expect("text files")
});

fuzz_target!(|text: &str| {
    let ids = encode_plain(&TEXT_FILES, text).expect("any text has tokens");
    let mut parser = Parser::for_model(&TEXT_FILES, "<|start|>assistant");
    let mut deltas: Vec<_> = ids.iter().flat_map(|id| parser.push(*id)).collect();
    deltas.extend(parser.finish());
    assert!(deltas.iter().all(|delta| !delta.text.is_empty()));
    for same_channel in deltas.chunk_by(|a, b| a.channel == b.channel) {
        let shown: String = same_channel.iter().map(|delta| delta.text.as_str()).collect();
        assert!(MARKERS.iter().all(|marker| !shown.contains(marker)), "{shown:?}");
    }
});
