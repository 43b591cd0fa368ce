//! Whether a model is told from another: the same in other files, its quantised forms, other weights, other shapes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use lathe_engine::{
    Error, files,
    origins::{self, check_bases, print_base},
    weights::{SafetensorsFolder, Weights},
};
use lathe_protocol::{BaseMatch, BasePrint, ErrorCode};
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn print(path: &Path) -> BasePrint {
    print_base(path, &path.file_name().unwrap().to_string_lossy()).unwrap()
}

/// A copy of a golden model that `change` may change.
fn copy(model: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(golden(model).join(name), folder.path().join(name)).unwrap();
    }
    change(folder.path());
    folder
}

/// The model's tensors in two shards with an index, in another order.
fn cut_in_two(folder: &Path) {
    let whole = SafetensorsFolder::open(folder).unwrap();
    let mut names: Vec<&str> = whole.names().collect();
    names.sort_unstable();
    names.reverse();
    let mut map = serde_json::Map::new();
    for (index, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("part-{index}.safetensors");
        let tensors = part.iter().map(|name| ((*name).to_owned(), whole.read(name).unwrap()));
        files::write_safetensors(&folder.join(&file), &tensors.collect()).unwrap();
        map.extend(part.iter().map(|name| ((*name).to_owned(), file.clone().into())));
    }
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

/// Changes the last byte of the weights, as another fine-tune changes all of them.
fn change_weights(folder: &Path) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn shards_and_folders_do_not_change_a_base_but_its_weights_do() {
    let base = print(&golden("tiny-llama"));
    let sharded = copy("tiny-llama", |folder| {
        // What is stored as f32 first, so that writing it again changes no type.
        let whole = SafetensorsFolder::open(folder).unwrap();
        let tensors = whole.names().map(|name| (name.to_owned(), whole.read(name).unwrap())).collect();
        files::write_safetensors(&folder.join("model.safetensors"), &tensors).unwrap();
    });
    let dense = print(sharded.path());
    cut_in_two(sharded.path());
    assert_eq!(dense.matches(&print(sharded.path())), BaseMatch::Same);

    let moved = copy("tiny-llama", |_| {});
    assert_eq!(base.matches(&print(moved.path())), BaseMatch::Same);
    let tuned = copy("tiny-llama", change_weights);
    let BaseMatch::Other(differences) = base.matches(&print(tuned.path())) else { panic!("not told apart") };
    assert!(differences[0].starts_with("the same shapes, other weights: "), "{differences:?}");

    let BaseMatch::Other(differences) = base.matches(&print(&golden("tiny-qwen3"))) else {
        panic!("not told apart")
    };
    assert!(differences.contains(&"model_type llama there, qwen3 here".to_owned()), "{differences:?}");
}

#[test]
fn quantised_forms_are_taken_for_the_base_they_were_made_of() {
    let is_other_form = |base: &Path, form: &Path| {
        let (base, form) = (print(base), print(form));
        assert!(
            matches!(base.matches(&form), BaseMatch::OtherForm(_)),
            "{base:#?}\n{form:#?}\n{:?}",
            base.matches(&form)
        );
        assert_ne!(base.storage, form.storage);
    };
    is_other_form(&golden("tiny-llama"), &golden("tiny-llama-nf4"));
    is_other_form(&golden("tiny-qwen3"), &golden("tiny-qwen3-nf4"));
}

/// The folder a GGUF could have been made of, its last norm changed by `change`.
fn folder_of_gguf(path: &Path, change: f64) -> tempfile::TempDir {
    let weights = Weights::open(path).unwrap();
    let config = weights.config(path).unwrap();
    let of_layer =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj"];
    let of_layer = of_layer.iter().chain(&[
        "mlp.up_proj",
        "mlp.down_proj",
        "input_layernorm",
        "post_attention_layernorm",
    ]);
    let of_layers = of_layer.flat_map(|module| {
        (0..config.num_layers).map(move |layer| format!("model.layers.{layer}.{module}.weight"))
    });
    let whole = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"].map(String::from);
    let tensors = of_layers.chain(whole).map(|name| {
        let tensor = weights.dense(&name, &config).unwrap();
        let is_last = name == "model.norm.weight";
        (name, if is_last { (tensor + change).unwrap() } else { tensor })
    });
    let folder = tempfile::tempdir().unwrap();
    files::write_safetensors(&folder.path().join("model.safetensors"), &tensors.collect()).unwrap();
    let json = json!({
        "model_type": "llama", "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "vocab_size": config.vocab_size,
        "rms_norm_eps": 1e-5, "rope_theta": config.rope_theta,
    });
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    folder
}

#[test]
fn a_gguf_is_known_by_its_architecture_and_norms() {
    let gguf = golden("gguf/llama.gguf");
    let (same, other) = (folder_of_gguf(&gguf, 0.0), folder_of_gguf(&gguf, 0.5));
    let gguf = print(&gguf);
    let (there, here) = (print(same.path()), print(other.path()));
    assert!(matches!(there.matches(&gguf), BaseMatch::OtherForm(_)), "{:?}", there.matches(&gguf));
    let BaseMatch::Other(differences) = here.matches(&gguf) else { panic!("not told apart") };
    assert!(differences[0].contains("with other norms"), "{differences:?}");
}

/// An adapter's folder that says it was trained on `base`.
fn adapter_of(base: &BasePrint) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(golden("tiny-llama/adapter").join(name), folder.path().join(name)).unwrap();
    }
    let origins = json!({"lathe": "0.1.0", "base": base});
    std::fs::write(folder.path().join("provenance.json"), origins.to_string()).unwrap();
    folder
}

fn refusal(model: &Path, adapter: &Path) -> (String, String) {
    match check_bases(model, &[adapter], false) {
        Err(Error::Invalid { code: ErrorCode::OtherBase, message, hint: Some(hint) }) => (message, hint),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_adapter_of_another_base_is_refused_with_what_differs_and_can_be_forced() {
    let model = golden("tiny-llama");
    let adapter = adapter_of(&print(&model));
    assert_eq!(check_bases(&model, &[adapter.path()], false).unwrap(), origins::Checked::default());

    let other = golden("tiny-qwen3");
    let (message, hint) = refusal(&other, adapter.path());
    assert!(message.contains("model_type llama there, qwen3 here; "), "{message}");
    assert!(hint.contains("--force"), "{hint}");
    let checked = check_bases(&other, &[adapter.path()], true).unwrap();
    assert_eq!((checked.forced, checked.warnings), (vec![message], vec![]));

    let quantised = check_bases(&golden("tiny-llama-nf4"), &[adapter.path()], false).unwrap();
    assert!(quantised.warnings[0].contains("stored in another form"), "{quantised:?}");
}

#[test]
fn origins_that_are_missing_damaged_or_foreign_are_told_apart() {
    let model = golden("tiny-llama");
    let adapter = adapter_of(&print(&model));
    let path = adapter.path().join("provenance.json");
    let text = std::fs::read_to_string(&path).unwrap();

    // Tampered: a digit of a hash, then the architecture.
    let mut tampered: Value = serde_json::from_str(&text).unwrap();
    tampered["base"]["weights_hash"] = "ff00".into();
    std::fs::write(&path, tampered.to_string()).unwrap();
    assert!(refusal(&model, adapter.path()).0.contains("other weights"));
    tampered["base"]["config"]["hidden_size"] = "2048".into();
    std::fs::write(&path, tampered.to_string()).unwrap();
    assert!(refusal(&model, adapter.path()).0.contains("hidden_size 2048 there, 64 here"));

    // Damaged: cut short, or ours without a base.
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert!(refusal(&model, adapter.path()).0.contains("are damaged"));
    std::fs::write(&path, r#"{"lathe": "0.1.0", "base": 7}"#).unwrap();
    assert!(refusal(&model, adapter.path()).0.contains("cannot be understood"));
    assert_eq!(check_bases(&model, &[adapter.path()], true).unwrap().forced.len(), 1);

    // Somebody else's file of this name, and none.
    for foreign in [Some(r#"{"builder": "ci"}"#), Some("[1, 2]"), None] {
        match foreign {
            Some(foreign) => std::fs::write(&path, foreign).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let checked = check_bases(&model, &[adapter.path()], false).unwrap();
        assert!(checked.notes[0].starts_with("Base not verified"), "{checked:?}");
    }
}

#[test]
fn the_version_of_candle_is_the_one_that_is_built_in() {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock")).unwrap();
    let version = format!("name = \"candle-core\"\nversion = \"{}\"", origins::CANDLE_VERSION);
    assert!(lock.contains(&version), "Cargo.lock has no {version}");
}
