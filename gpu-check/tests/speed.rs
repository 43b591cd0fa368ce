//! What times a card, on small models and the emulated GPU: that it measures, not how fast.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use lathe_engine::model::{Compute, LoadFor};
use lathe_gpu_check::{
    models::{self, Shape, TINY_GPT_OSS, TINY_QWEN3},
    speed::{self, Measured, Training, Writing},
};
use lathe_protocol::LoraConfig;

fn measured(shape: &Shape, load_for: LoadFor) -> Vec<Measured> {
    lathe_emulator::install();
    let folder = tempfile::tempdir().unwrap();
    let bytes = models::write(folder.path(), shape, 1).unwrap();
    assert_eq!(bytes, folder.path().join("model.safetensors").metadata().unwrap().len());
    let mut all = Vec::new();
    let mut tell = |measured| all.push(measured);
    let compute = Compute::emulated_gpu();
    let run = Writing { load_for, num_tokens: 2, first_token: Some(1e9), speed: 1e9 };
    speed::writing(folder.path(), shape, &run, &compute, &mut tell).unwrap();
    let lora = LoraConfig { r: 8, ..LoraConfig::default() };
    let run = Training { load_for, lora, lengths: &[(24, 1e-9, 1e9)] };
    speed::training(folder.path(), shape, &run, &compute, &mut tell).unwrap();
    all
}

#[test]
fn both_models_are_written_loaded_and_timed() {
    for (shape, load_for) in
        [(&TINY_QWEN3, LoadFor::Qlora { double_quant: true }), (&TINY_GPT_OSS, LoadFor::Lora)]
    {
        let all = measured(shape, load_for);
        let speeds: Vec<&Measured> = all.iter().filter(|measured| measured.unit == "tok/s").collect();
        assert!(speeds.len() >= 2 && speeds.iter().all(|speed| speed.value > 0.0), "{all:?}");
        let verdict =
            |what: &str| all.iter().find(|m| m.what.ends_with(what)).and_then(Measured::meets_target);
        assert_eq!(verdict("first token"), Some(true), "{all:?}");
        assert_eq!(verdict("trains on 24 tokens"), Some(true), "{all:?}");
        // No emulator is that fast.
        assert!(speeds.iter().any(|speed| speed.meets_target() == Some(false)), "{all:?}");
    }
}
