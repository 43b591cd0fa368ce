//! An adapter's folder from anywhere, put on a model: `adapter_config.json`, `styles.json` and the weights, each with
//! its length before it.

#![no_main]

use std::{path::PathBuf, sync::LazyLock};

use lathe_engine::{
    adapter,
    model::{LoadFor, Model},
    styles,
};
use lathe_fuzz::{folder, repo};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder("adapter"));
const FILES: [&str; 3] = ["adapter_config.json", "styles.json", "adapter_model.safetensors"];

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    for name in FILES {
        let Some((length, after)) = rest.split_first_chunk() else { return };
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (file, after) = after.split_at(length);
        std::fs::write(FOLDER.join(name), file).expect("written");
        rest = after;
    }
    drop(styles::read(&FOLDER));
    if adapter::PeftConfig::read(&FOLDER).is_ok() {
        let model = repo("tests/golden/data/tiny-llama");
        let mut model = Model::load(&model, LoadFor::Inference).expect("a model");
        drop(adapter::attach(&mut model, &FOLDER));
    }
});
