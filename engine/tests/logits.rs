//! Logits of tiny random models against transformers and peft (fp32), as dumped by tests/golden/{models,lora}.py.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lathe_engine::{
    adapter,
    model::{LoadFor, Model, ModelConfig},
    weights::Weights,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

/// The largest absolute difference, relative to the expected values' largest magnitude.
fn relative_error(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let max = |tensor: Tensor| {
        tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    max((actual - expected).unwrap()) / max(expected.clone())
}

fn check(name: &str, adapter_and_expected: Option<(&str, &str)>, load_for: LoadFor) {
    let folder = golden(name);
    let mut model = Model::load(&folder, load_for).unwrap();
    let expected_file = match adapter_and_expected {
        Some((adapter_name, expected)) => {
            adapter::attach(&mut model, &folder.join(adapter_name)).unwrap();
            expected
        }
        None => "expected.safetensors",
    };
    let expected = candle_core::safetensors::load(folder.join(expected_file), &Device::Cpu).unwrap();
    let ids: Vec<u32> =
        expected["ids"].flatten_all().unwrap().to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let logits = model.all_logits(&ids).unwrap();
    let error = relative_error(&logits, &expected["logits"].reshape(logits.shape()).unwrap());
    assert!(error <= 1e-4, "{name}: relative error {error}");

    // Token by token through the cache gives the last token's logits too, with adapters that are final.
    model.fix_adapters().unwrap();
    let rope = model.rope_table(ids.len());
    let mut cache = model.new_cache(ids.len()).unwrap();
    model.decode(&ids[..ids.len() / 2], &mut cache, &rope).unwrap();
    let mut last = None;
    for id in &ids[ids.len() / 2..] {
        last = Some(model.decode(&[*id], &mut cache, &rope).unwrap());
    }
    let expected_last = logits.get(ids.len() - 1).unwrap();
    let error = relative_error(&last.unwrap(), &expected_last);
    assert!(error <= 1e-5, "{name}: decoding differs from the full forward by {error}");
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in ["tiny-llama", "tiny-llama3-rope", "tiny-qwen3", "tiny-qwen3-untied", "tiny-qwen2"] {
        check(name, None, LoadFor::Inference);
        check(name, None, LoadFor::Full);
    }
    for name in ["tiny-gpt-oss", "tiny-gpt-oss-mxfp4", "tiny-qwen3-moe", "tiny-qwen3-moe-some-dense"] {
        check(name, None, LoadFor::Inference);
    }
}

#[test]
fn logits_in_nf4_equal_those_of_transformers_on_the_dequantised_weights() {
    for name in ["tiny-llama-nf4", "tiny-qwen3-nf4", "tiny-gpt-oss-nf4", "tiny-qwen3-moe-nf4"] {
        check(name, None, LoadFor::Inference);
        check(name, None, LoadFor::Lora);
    }
    for (name, expected, double_quant) in [
        ("tiny-qwen3", "tiny-qwen3/expected_nf4.safetensors", false),
        ("tiny-qwen3", "tiny-qwen3-nf4/expected.safetensors", true),
        ("tiny-qwen3-moe", "tiny-qwen3-moe-nf4/expected.safetensors", false),
        ("tiny-gpt-oss", "tiny-gpt-oss-nf4/expected.safetensors", true),
    ] {
        let model = Model::load(&golden(name), LoadFor::Qlora { double_quant }).unwrap();
        let expected = candle_core::safetensors::load(golden(expected), &Device::Cpu).unwrap();
        let ids: Vec<u32> = expected["ids"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let error = relative_error(&model.all_logits(&ids).unwrap(), &expected["logits"]);
        assert!(error <= 1e-4, "{name}: relative error {error}");
    }
}

#[test]
fn weights_in_nf4_count_as_the_values_they_are() {
    for name in ["tiny-llama", "tiny-qwen3", "tiny-gpt-oss", "tiny-qwen3-moe"] {
        let count = |name: &str| Weights::open(&golden(name)).unwrap().num_parameters();
        assert_eq!(count(&format!("{name}-nf4")), count(name));
    }
}

#[test]
fn what_nf4_cannot_do_is_refused_with_the_reason() {
    let refused = |name: &str, load_for: LoadFor| match Model::load(&golden(name), load_for) {
        Ok(_) => panic!("{name} loaded"),
        Err(error) => error.to_string(),
    };
    assert_eq!(
        refused("tiny-gpt-oss-mxfp4", LoadFor::Qlora { double_quant: false }),
        "MXFP4 weights are quantised already, and NF4 would round them again"
    );
    assert_eq!(refused("tiny-llama-nf4", LoadFor::Full), "A model stored in NF4 cannot be trained whole");
    let text = std::fs::read_to_string(golden("tiny-llama-nf4").join("config.json")).unwrap();
    let fp4 = serde_json::from_str(&text.replace("nf4", "fp4")).unwrap();
    assert_eq!(
        ModelConfig::from_json(&fp4).unwrap_err().to_string(),
        "Weights quantised with \"fp4\" are not supported by this version"
    );
}

#[test]
fn lora_logits_equal_those_of_peft() {
    check("tiny-llama", Some(("adapter", "expected_lora.safetensors")), LoadFor::Lora);
    check("tiny-qwen3", Some(("adapter", "expected_lora.safetensors")), LoadFor::Inference);
    check("tiny-qwen3", Some(("adapter-rslora", "expected_lora_rslora.safetensors")), LoadFor::Lora);
}

/// (model, adapter of tests/golden/kinds.py, what the base is loaded for while it learns).
const KINDS: [(&str, &str, LoadFor); 18] = [
    ("tiny-gpt-oss", "experts", LoadFor::Lora),
    ("tiny-gpt-oss", "experts-down", LoadFor::Lora),
    ("tiny-gpt-oss", "router", LoadFor::Lora),
    ("tiny-gpt-oss", "dora-bias", LoadFor::Lora),
    ("tiny-gpt-oss", "whole", LoadFor::Lora),
    ("tiny-gpt-oss-mxfp4", "experts", LoadFor::Lora),
    ("tiny-qwen3-moe", "attention", LoadFor::Lora),
    ("tiny-qwen3-moe", "all-linear", LoadFor::Lora),
    ("tiny-qwen3-moe", "experts", LoadFor::Lora),
    ("tiny-qwen3-moe", "experts-in", LoadFor::Lora),
    ("tiny-qwen3-moe", "whole-tied", LoadFor::Lora),
    ("tiny-qwen3-moe", "whole-tied-head", LoadFor::Lora),
    ("tiny-qwen3-moe", "whole-tied-both", LoadFor::Lora),
    ("tiny-qwen3", "rslora", LoadFor::Lora),
    ("tiny-qwen3", "dora", LoadFor::Lora),
    ("tiny-qwen3", "dora-nf4", LoadFor::Qlora { double_quant: false }),
    ("tiny-qwen3", "layers", LoadFor::Lora),
    ("tiny-qwen3", "patterns", LoadFor::Lora),
];

#[test]
fn logits_of_every_kind_of_adapter_equal_those_of_peft() {
    for (model, kind, load_for) in KINDS {
        let (adapter, expected) = (format!("kinds/{kind}"), format!("kinds/{kind}/expected.safetensors"));
        check(model, Some((&adapter, &expected)), load_for);
        if load_for == LoadFor::Lora {
            check(model, Some((&adapter, &expected)), LoadFor::Inference);
        }
    }
}

#[test]
fn experts_in_bf16_stay_so_and_count_as_the_values_they_are() {
    let source = golden("tiny-gpt-oss");
    let tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let logits = |dtype: DType| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(source.join("config.json"), folder.path().join("config.json")).unwrap();
        let rounded = tensors.iter().map(|(name, tensor)| {
            let is_expert = name.contains(".experts.") && tensor.rank() == 3;
            let rounded = tensor.to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap();
            (name.clone(), if is_expert { rounded } else { tensor.clone() })
        });
        let rounded: std::collections::HashMap<_, _> = rounded.collect();
        candle_core::safetensors::save(&rounded, folder.path().join("model.safetensors")).unwrap();
        let model = Model::load(folder.path(), LoadFor::Lora).unwrap();
        model.all_logits(&(0..70).map(|t| t % 64).collect::<Vec<u32>>()).unwrap()
    };
    assert!(relative_error(&logits(DType::BF16), &logits(DType::F32)) <= 1e-6);
}

#[test]
fn experts_are_not_trained_whole() {
    let Err(error) = Model::load(&golden("tiny-gpt-oss"), LoadFor::Full) else { panic!("it loaded") };
    assert_eq!(error.to_string(), "Experts stay frozen: gpt_oss cannot be trained whole");
}
