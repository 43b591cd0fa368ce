//! GGUF files of the tiny models, written here as llama.cpp's converter would, give the logits of their folders.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use lathe_engine::{
    adapter::{self, PeftConfig},
    family::ModelFamily,
    lora,
    model::{LoadFor, Model, ModelConfig},
    weights::Weights,
};
use lathe_kernels::{BlockType, Blocks};
use lathe_protocol::LoraConfig;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn largest(tensor: &Tensor) -> f32 {
    tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The rows of each head, halves interleaved, as the converter writes q and k of Llama models.
fn interleaved(weight: &Tensor, num_heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    let heads = weight.reshape((num_heads, 2, rows / num_heads / 2, columns)).unwrap();
    heads.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

fn metadata(config: &ModelConfig) -> Vec<(String, Value)> {
    let name = config.family.name();
    let key = |key: &str| format!("{name}.{key}");
    let size = |value: usize| Value::U32(value as u32);
    vec![
        ("general.architecture".into(), Value::String(name.into())),
        (key("block_count"), size(config.num_layers)),
        (key("embedding_length"), size(config.hidden_size)),
        (key("feed_forward_length"), size(config.intermediate_size)),
        (key("attention.head_count"), size(config.num_heads)),
        (key("attention.head_count_kv"), size(config.num_kv_heads)),
        (key("attention.key_length"), size(config.head_dim)),
        (key("context_length"), size(config.max_position_embeddings)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps as f32)),
        (key("rope.freq_base"), Value::F32(config.rope_theta as f32)),
    ]
}

/// Writes the folder's model as a GGUF whose matrices have type `dtype`.
fn write(folder: &Path, path: &Path, dtype: GgmlDType) {
    let weights = Weights::open(folder).unwrap();
    let config = weights.config(folder).unwrap();
    let mut names = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), "token_embd.weight".to_owned()),
        ("model.norm.weight".into(), "output_norm.weight".into()),
        ("lm_head.weight".into(), "output.weight".into()),
    ]);
    for layer in 0..config.num_layers {
        for (hf, gguf) in [
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ] {
            for suffix in ["weight", "bias"] {
                names.insert(
                    format!("model.layers.{layer}.{hf}.{suffix}"),
                    format!("blk.{layer}.{gguf}.{suffix}"),
                );
            }
        }
    }
    let mut tensors = Vec::new();
    for (hf, gguf) in names.into_iter().filter(|(hf, _)| weights.has(hf)) {
        let mut tensor = weights.dense(&hf, &config).unwrap();
        if config.family == ModelFamily::Llama && hf.contains("q_proj") {
            tensor = interleaved(&tensor, config.num_heads);
        }
        if config.family == ModelFamily::Llama && hf.contains("k_proj") {
            tensor = interleaved(&tensor, config.num_kv_heads);
        }
        let blocks_fit = tensor.rank() == 2 && tensor.dims()[1].is_multiple_of(dtype.block_size());
        let dtype = if blocks_fit { dtype } else { GgmlDType::F32 };
        tensors.push((gguf, QTensor::quantize(&tensor, dtype).unwrap()));
    }
    let metadata = metadata(&config);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

#[test]
fn a_gguf_gives_the_logits_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    // The rope scaling of tiny-llama3-rope is no metadata key of a GGUF; the others cover tied, untied, biases, norms.
    for (name, load_for) in [
        ("tiny-llama", LoadFor::Inference),
        ("tiny-qwen3", LoadFor::Lora),
        ("tiny-qwen3-untied", LoadFor::Inference),
        ("tiny-qwen2", LoadFor::Inference),
    ] {
        let path = folder.path().join(format!("{name}.gguf"));
        let expected =
            candle_core::safetensors::load(golden(name).join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<u32> =
            expected["ids"].flatten_all().unwrap().to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        for (dtype, tolerance) in [(GgmlDType::F32, 1e-4), (GgmlDType::Q8_0, 0.05)] {
            write(&golden(name), &path, dtype);
            let logits = Model::load(&path, load_for).unwrap().all_logits(&ids).unwrap();
            let expected = expected["logits"].reshape(logits.shape()).unwrap();
            let error = largest(&(&logits - &expected).unwrap()) / largest(&expected);
            assert!(error < tolerance, "{name} as {dtype:?}: {error}");
        }
    }
}

#[test]
fn adapters_on_a_quantised_gguf_are_those_on_its_dequantised_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny-qwen3.gguf");
    write(&golden("tiny-qwen3"), &path, GgmlDType::Q8_0);
    // An adapter that replaces the tied table's one half.
    let mut model = Model::load(&path, LoadFor::Lora).unwrap();
    let config = LoraConfig { modules_to_save: vec!["embed_tokens".into()], ..LoraConfig::default() };
    lora::attach_fresh(&mut model, &config, 1).unwrap();
    for trainable in adapter::trainables(&model).iter().filter(|trainable| trainable.name.contains("embed")) {
        trainable.var.set(&(trainable.var.as_tensor() * 1.5).unwrap()).unwrap();
    }
    let whole = folder.path().join("whole");
    adapter::save(&model, &PeftConfig::new(&config, &model, "tiny"), &whole).unwrap();
    let ids: Vec<u32> = (20..60).collect();
    for adapter in [golden("tiny-qwen3").join("kinds/dora"), whole] {
        let mut all = Vec::new();
        for load_for in [LoadFor::Inference, LoadFor::Lora] {
            let mut model = Model::load(&path, load_for).unwrap();
            adapter::attach(&mut model, &adapter).unwrap();
            if load_for == LoadFor::Inference {
                model.fix_adapters().unwrap();
            }
            all.push(model.all_logits(&ids).unwrap());
        }
        let error = largest(&(&all[0] - &all[1]).unwrap()) / largest(&all[1]);
        assert!(error < 0.01, "{}: {error}", adapter.display());
    }
}

#[test]
fn a_gguf_is_not_quantised_a_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny-llama.gguf");
    write(&golden("tiny-llama"), &path, GgmlDType::Q8_0);
    let Err(error) = Model::load(&path, LoadFor::Qlora { double_quant: false }) else { panic!("it loaded") };
    assert_eq!(error.to_string(), "A GGUF's weights are quantised already, and NF4 would round them again");
}

#[test]
fn a_cut_file_is_refused_in_one_line_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    write(&golden("tiny-llama"), &path, GgmlDType::F32);
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 3, 200, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let Err(error) = Model::load(&path, LoadFor::Inference) else { panic!("{length} bytes were enough") };
        let message = error.to_string();
        assert!(message.contains("cut.gguf") && message.lines().count() == 1, "{length} bytes: {message}");
    }
}

#[test]
fn values_of_every_block_type_are_those_of_ggml_and_products_those_of_the_values() {
    let tensors = candle_core::safetensors::load(golden("gguf/blocks.safetensors"), &Device::Cpu).unwrap();
    for (name, number) in [
        ("F16", 1),
        ("BF16", 30),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("MXFP4", 39),
    ] {
        let values = &tensors[&format!("{name}.values")];
        let (rows, width) = values.dims2().unwrap();
        let bytes = tensors[&format!("{name}.bytes")].flatten_all().unwrap().to_vec1().unwrap();
        let block_type = BlockType::from_ggml(number).unwrap();
        let blocks = Blocks::new(bytes, block_type, rows, width).unwrap();
        let is_same = |found: Tensor| flat(&found) == flat(values);
        assert!(is_same(blocks.dequantize().unwrap()), "{name}");
        if block_type.is_dense() {
            continue;
        }
        let weight = blocks.tiled().unwrap();
        assert!(is_same(weight.dequantize().unwrap()), "{name} in tiles");
        for num_tokens in [1, 5, 40] {
            let x = (0..num_tokens * width).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 500.0);
            let x = Tensor::from_vec(x.collect::<Vec<_>>(), (num_tokens, width), &Device::Cpu).unwrap();
            let expected = x.matmul(&values.t().unwrap()).unwrap();
            let error = largest(&(weight.forward(&x).unwrap() - &expected).unwrap()) / largest(&expected);
            assert!(error < 1e-4, "{name}, {num_tokens} tokens: {error}");
        }
    }
}

#[test]
fn every_architecture_gives_the_logits_of_transformers_on_the_dequantised_weights() {
    for name in ["llama", "qwen3moe", "gpt-oss"] {
        let folder = golden("gguf");
        let expected = folder.join(format!("{name}.safetensors"));
        let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
        let ids: Vec<u32> = expected["ids"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        for load_for in [LoadFor::Inference, LoadFor::Lora] {
            let model = Model::load(&folder.join(format!("{name}.gguf")), load_for).unwrap();
            let logits = model.all_logits(&ids).unwrap();
            let error = largest(&(&logits - &expected["logits"]).unwrap()) / largest(&expected["logits"]);
            assert!(error < 1e-4, "{name} {load_for:?}: {error}");
            let rope = model.rope_table(ids.len());
            let mut cache = model.new_cache(ids.len()).unwrap();
            model.decode(&ids[..ids.len() - 1], &mut cache, &rope).unwrap();
            let last = model.decode(&ids[ids.len() - 1..], &mut cache, &rope).unwrap();
            let error = largest(&(last - logits.get(ids.len() - 1).unwrap()).unwrap()) / largest(&logits);
            assert!(error < 1e-4, "{name} {load_for:?}, decoded: {error}");
        }
    }
}

#[test]
fn adapters_on_a_gguf_of_experts_get_gradients() {
    for name in ["qwen3moe", "gpt-oss"] {
        let path = golden("gguf").join(format!("{name}.gguf"));
        let mut model = Model::load(&path, LoadFor::Lora).unwrap();
        lora::attach_fresh(&mut model, &LoraConfig::default(), 1).unwrap();
        let logits = model.all_logits(&[1, 2, 3, 5, 8, 13, 21, 34]).unwrap();
        let gradients = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for projection in model.projections() {
            let gradient = largest(gradients.get(&projection.lora[0].b).unwrap());
            assert!(gradient.is_finite() && gradient > 0.0, "{name}: {} {gradient}", projection.name);
        }
    }
}
