//! What an adapter is put on, how it is saved, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use lathe_engine::{
    Error, adapter,
    adapter::PeftConfig,
    lora,
    model::{BaseLinear, LoadFor, LoraWeights, Model, ModelConfig},
};
use lathe_kernels::Dropout;
use lathe_protocol::{ExpertFormat, ExpertsShape, LoraConfig, ModelShape, Quant};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn load(model: &str) -> Model {
    Model::load(&golden(model), LoadFor::Lora).unwrap()
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let path = folder.join(adapter::WEIGHTS_FILE);
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn save(model: &Model, config: &PeftConfig) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    adapter::save(model, config, folder.path()).unwrap();
    folder
}

/// r 4, as the goldens have it.
fn rank_4(targets: &[&str]) -> LoraConfig {
    LoraConfig { r: 4, alpha: 8.0, targets: names(targets), ..LoraConfig::default() }
}

fn kinds() -> Vec<(&'static str, &'static str, LoraConfig)> {
    let experts = names(&["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]);
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
    let on_experts = LoraConfig { target_parameters: experts, ..rank_4(&["none"]) };
    let saved = |modules: &[&str]| LoraConfig { modules_to_save: names(modules), ..rank_4(&["q_proj"]) };
    vec![
        ("tiny-gpt-oss", "experts", on_experts.clone()),
        ("tiny-gpt-oss-mxfp4", "experts", on_experts.clone()),
        ("tiny-qwen3-moe", "experts", on_experts),
        (
            "tiny-qwen3-moe",
            "experts-in",
            LoraConfig { target_parameters: names(&["experts.gate_up_proj"]), ..rank_4(&["none"]) },
        ),
        (
            "tiny-gpt-oss",
            "experts-down",
            LoraConfig {
                target_parameters: names(&["layers.1.mlp.experts.down_proj"]),
                ..rank_4(&["q_proj"])
            },
        ),
        (
            "tiny-gpt-oss",
            "router",
            LoraConfig { target_parameters: names(&["mlp.router.weight"]), ..rank_4(&["q_proj"]) },
        ),
        ("tiny-qwen3-moe", "attention", rank_4(&["all-linear"])),
        ("tiny-gpt-oss", "dora-bias", LoraConfig { use_dora: true, use_rslora: true, ..rank_4(&attention) }),
        ("tiny-qwen3", "layers", LoraConfig { layers: vec![1], ..rank_4(&["k_proj", "o_proj"]) }),
        ("tiny-gpt-oss", "whole", saved(&["embed_tokens", "lm_head", "norm"])),
        ("tiny-qwen3-moe", "whole-tied", saved(&["embed_tokens"])),
        ("tiny-qwen3-moe", "whole-tied-head", saved(&["lm_head"])),
        ("tiny-qwen3-moe", "whole-tied-both", saved(&["embed_tokens", "lm_head"])),
    ]
}

#[test]
fn a_fresh_adapter_has_the_tensors_that_peft_has_and_changes_nothing() {
    for (model_name, kind, config) in kinds() {
        let mut model = load(model_name);
        let ids: Vec<u32> = (3..20).collect();
        let plain = model.all_logits(&ids).unwrap();
        lora::attach_fresh(&mut model, &config, 1).unwrap();
        let folder = save(&model, &PeftConfig::new(&config, &model, model_name));
        let dims = |folder: &Path| -> BTreeMap<String, Vec<usize>> {
            tensors(folder).into_iter().map(|(name, tensor)| (name, tensor.dims().to_vec())).collect()
        };
        let of_peft = golden(model_name).join("kinds").join(kind);
        assert_eq!(dims(folder.path()), dims(&of_peft), "{model_name} {kind}");
        let moved = (model.all_logits(&ids).unwrap() - plain).unwrap().abs().unwrap().max_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() < 1e-4, "{model_name} {kind}");
        // What was saved is worn by a model that never saw the config.
        let mut again = load(model_name);
        adapter::attach(&mut again, folder.path()).unwrap();
        for (ours, theirs) in adapter::trainables(&again).iter().zip(adapter::trainables(&model)) {
            assert_eq!(ours.name, theirs.name);
            let values = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&ours.var), values(&theirs.var), "{model_name} {kind}: {}", ours.name);
        }
    }
}

#[test]
fn the_estimate_counts_what_learns() {
    for (model_name, kind, lora) in kinds() {
        let mut model = load(model_name);
        lora::attach_fresh(&mut model, &lora, 1).unwrap();
        let learns: usize = adapter::trainables(&model).iter().map(|tensor| tensor.var.elem_count()).sum();
        let ModelConfig { num_layers, hidden_size, intermediate_size, head_dim, .. } = model.config;
        let shape = ModelShape {
            num_layers,
            hidden_size,
            intermediate_size,
            num_attention_heads: model.config.num_heads,
            num_key_value_heads: model.config.num_kv_heads,
            head_dim,
            vocab_size: model.config.vocab_size,
            context_length: model.config.max_position_embeddings,
            tie_word_embeddings: model.config.tie_word_embeddings,
            is_gguf: false,
            linears: Quant::None,
            experts: model.config.experts.as_ref().map(|experts| ExpertsShape {
                num_experts: experts.num_experts,
                experts_per_token: experts.experts_per_token,
                format: ExpertFormat::F32,
            }),
        };
        assert_eq!(shape.adapter_parameters(&lora), learns as u64, "{model_name} {kind}");
    }
}

#[test]
fn an_adapter_of_peft_is_saved_as_it_was_read() {
    for (model_name, kind, _) in kinds() {
        let of_peft = golden(model_name).join("kinds").join(kind);
        let mut model = load(model_name);
        let config = adapter::attach(&mut model, &of_peft).unwrap();
        let folder = save(&model, &config);
        let (ours, theirs) = (tensors(folder.path()), tensors(&of_peft));
        assert!(ours.keys().eq(theirs.keys()));
        for (name, tensor) in ours {
            let bits = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(&tensor), bits(&theirs[&name]), "{name}");
        }
        let json = |folder: &Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join(adapter::CONFIG_FILE)).unwrap()).unwrap()
        };
        let (ours, theirs) = (json(folder.path()), json(&of_peft));
        for (key, value) in ours.as_object().unwrap() {
            let as_number = |value: &serde_json::Value| value.as_f64();
            let same = &theirs[key] == value || (value.is_f64() && as_number(&theirs[key]) == value.as_f64());
            assert!(same, "{model_name} {kind}: {key} is {value}, was {}", theirs[key]);
        }
    }
}

/// PEFT: `base(x) + (m/‖V‖ − 1) · W d + m/‖V‖ · scale · B A d`, with d what dropout leaves of x.
#[test]
fn dropout_with_dora_drops_what_it_does_in_peft() {
    let mut model = load("tiny-gpt-oss");
    adapter::attach(&mut model, &golden("tiny-gpt-oss").join("kinds/dora-bias")).unwrap();
    let projection = model.projections_mut().next().unwrap();
    projection.index = 0; // so that the key is that of its masks
    projection.lora[0].dropout = 0.4;
    let BaseLinear::Dense(frozen) = &projection.base else { panic!("not dense") };
    let (weight, bias) = (frozen.weight().unwrap(), frozen.bias().unwrap());
    let LoraWeights { a, b, scale, dora, .. } = &projection.lora[0];
    let magnitude = dora.as_ref().unwrap().magnitude.as_tensor();
    let x = Tensor::arange(0f32, 160.0, &Device::Cpu).unwrap().sin().unwrap().reshape((5, 32)).unwrap();
    let dropped = Dropout { probability: 0.4, key: 77 }.forward(&x).unwrap();
    let update = (b.matmul(a).unwrap() * *scale).unwrap();
    let norms = (weight + &update).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
    let factors = (magnitude / norms).unwrap();
    let times = |x: &Tensor, weight: &Tensor| x.matmul(&weight.t().unwrap()).unwrap();
    let base = times(&x, weight).broadcast_add(bias).unwrap();
    let of_base = times(&dropped, weight).broadcast_mul(&(&factors - 1.0).unwrap()).unwrap();
    let of_update = times(&dropped, &update).broadcast_mul(&factors).unwrap();
    let expected = (base + of_base + of_update).unwrap();
    let actual = projection.forward(&x, Some(77)).unwrap();
    let largest = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(largest((&actual - &expected).unwrap()) < 1e-5 * largest(expected));
    let kept = projection.forward(&x, None).unwrap();
    assert!(largest((actual - kept).unwrap()) > 1e-2, "dropout drops nothing");
}

#[test]
fn what_matches_nothing_is_refused_with_what_there_is() {
    let check = |model: &str, config: LoraConfig, message: &str, hint: &str| {
        let Err(Error::Invalid { message: found, hint: Some(found_hint), .. }) =
            lora::attach_fresh(&mut load(model), &config, 1)
        else {
            panic!("{config:?} was taken")
        };
        assert_eq!((found.as_str(), found_hint.as_str()), (message, hint));
    };
    check(
        "tiny-qwen3-moe",
        rank_4(&["q_proj", "gate_proj"]),
        "lora.targets: \"gate_proj\" matches no linear of the model",
        "it has k_proj, o_proj, q_proj, v_proj",
    );
    check(
        "tiny-qwen3",
        rank_4(&["regex:q_proj"]),
        "lora.targets: \"regex:q_proj\" matches no linear of the model",
        "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    );
    let parameters = |name: &str| LoraConfig { target_parameters: names(&[name]), ..rank_4(&["all-linear"]) };
    check(
        "tiny-gpt-oss",
        parameters("experts.gate_proj"),
        "lora.target_parameters: \"experts.gate_proj\" matches no tensor of the experts",
        "it has mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.router.weight",
    );
    check(
        "tiny-qwen3",
        parameters("mlp.experts.down_proj"),
        "lora.target_parameters: \"mlp.experts.down_proj\" matches no tensor of the experts",
        "it has no experts: name linears in lora.targets",
    );
    check(
        "tiny-qwen3",
        LoraConfig { layers: vec![0, 9], ..rank_4(&["q_proj"]) },
        "lora.layers: the model has no layer 9",
        "it has 0-1",
    );
    check(
        "tiny-qwen3",
        LoraConfig { layers: vec![1], ..rank_4(&["layers.0.self_attn.q_proj"]) },
        "lora.targets and lora.layers leave nothing to adapt",
        "a target may name a layer that lora.layers leaves out",
    );
    check(
        "tiny-llama",
        LoraConfig { modules_to_save: names(&["k_proj"]), ..rank_4(&["q_proj"]) },
        "lora.modules_to_save: \"k_proj\" is no module that can learn whole",
        "it has embed_tokens, input_layernorm, lm_head, norm, post_attention_layernorm",
    );
}

#[test]
fn adapters_that_cannot_be_worn_together_are_refused() {
    let refused = |model: &str, first: &str, second: &str| {
        let mut worn = load(model);
        adapter::attach(&mut worn, &golden(model).join(first)).unwrap();
        adapter::attach(&mut worn, &golden(model).join(second)).unwrap_err().to_string()
    };
    for (first, second) in [("kinds/dora", "kinds/rslora"), ("kinds/rslora", "kinds/dora")] {
        let message = refused("tiny-qwen3", first, second);
        assert!(message.starts_with("A DoRA adapter cannot be worn beside another"), "{message}");
    }
    let message = refused("tiny-qwen3-moe", "kinds/whole-tied", "kinds/whole-tied-both");
    assert_eq!(message, "Two adapters replace \"model.embed_tokens\"");
    // Updates of experts add up.
    let mut worn = load("tiny-qwen3-moe");
    let logits = |model: &Model| model.all_logits(&[5, 9, 13]).unwrap();
    let plain = logits(&worn);
    let folder = golden("tiny-qwen3-moe").join("kinds/experts");
    adapter::attach(&mut worn, &folder).unwrap();
    let once = logits(&worn);
    adapter::attach(&mut worn, &folder).unwrap();
    let twice = logits(&worn);
    let largest = |t: Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(largest((&once - plain).unwrap()) > 1e-2 && largest((twice - once).unwrap()) > 1e-2);
}

#[test]
fn a_broken_adapter_names_what_is_wrong() {
    let broken = |model: &str, kind: &str, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let folder = tempfile::tempdir().unwrap();
        let source = golden(model).join("kinds").join(kind);
        std::fs::copy(source.join(adapter::CONFIG_FILE), folder.path().join(adapter::CONFIG_FILE)).unwrap();
        let mut tensors = tensors(&source);
        change(&mut tensors);
        let tensors: std::collections::HashMap<_, _> = tensors.into_iter().collect();
        candle_core::safetensors::save(&tensors, folder.path().join(adapter::WEIGHTS_FILE)).unwrap();
        adapter::attach(&mut load(model), folder.path()).unwrap_err().to_string()
    };
    let experts = "base_model.model.model.layers.0.mlp.experts";
    let message = broken("tiny-gpt-oss", "experts", &|tensors| {
        let a = tensors[&format!("{experts}.lora_A.weight")].narrow(0, 0, 15).unwrap();
        tensors.insert(format!("{experts}.lora_A.weight"), a);
    });
    assert!(message.contains("is 32 x 8 in each of 4 experts, lora_A is [15, 8]"), "{message}");
    let message = broken("tiny-gpt-oss", "experts", &|tensors| {
        tensors.remove(&format!("{experts}.base_layer.lora_B.weight"));
    });
    assert!(message.contains("only one of lora_A and lora_B for"), "{message}");
    let magnitudes = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    let message = broken("tiny-qwen3", "dora", &|tensors| {
        tensors.remove(magnitudes);
    });
    assert!(message.contains("has no magnitudes for \"model.layers.0.self_attn.q_proj\""), "{message}");
    let message = broken("tiny-gpt-oss", "whole", &|tensors| {
        let head = tensors["base_model.model.lm_head.weight"].narrow(0, 0, 60).unwrap();
        tensors.insert("base_model.model.lm_head.weight".into(), head);
    });
    assert_eq!(message, "\"lm_head.weight\" has shape [60, 32], the model wants [64, 32]");
}
