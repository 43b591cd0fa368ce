//! A GGUF's header, the tokenizer in it, and its first tensors.

#![no_main]

use std::{path::PathBuf, sync::LazyLock};

use lathe_engine::{gguf::Gguf, text_files::TextFiles, weights::Weights};
use lathe_fuzz::folder;
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| folder("gguf").join("model.gguf"));

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*FILE, bytes).expect("written");
    let Ok(gguf) = Gguf::open(&FILE) else { return };
    drop(TextFiles::from_gguf(&gguf));
    let Ok(weights) = Weights::open(&FILE) else { return };
    let Ok(config) = weights.config(&FILE) else { return };
    for name in ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"] {
        drop(weights.dense(name, &config));
        drop(weights.quantized(name, &config));
    }
});
