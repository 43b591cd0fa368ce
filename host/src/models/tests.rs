#![cfg(unix)]

use lathe_protocol::{CommandBody, EventBody, ExpertFormat, ModelProblem, ModelShape, Quant};

use super::*;
use crate::{
    adapters::tests::write_safetensors,
    testing::{Bench, ask, failure},
};

/// A small sound model folder, sharded if asked for.
fn write_model(folder: &Path, sharded: bool) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    if sharded {
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        write_safetensors(&folder.join("model-1.safetensors"), &[("a", &[4, 8])]);
        write_safetensors(&folder.join("model-2.safetensors"), &[("b", &[16])]);
    } else {
        write_safetensors(&folder.join("model.safetensors"), &[("a", &[4, 8]), ("b", &[16])]);
    }
}

/// A GGUF file with one F32 tensor of 8 elements.
fn gguf_bytes() -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    let string = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(8u64.to_le_bytes());
    string(&mut bytes, "tokenizer.ggml.tokens");
    bytes.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
    bytes.extend(2u64.to_le_bytes());
    string(&mut bytes, "a");
    string(&mut bytes, "bc");
    string(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    string(&mut bytes, "llama");
    string(&mut bytes, "general.license");
    bytes.extend(8u32.to_le_bytes());
    string(&mut bytes, "mit");
    let sizes = [
        ("block_count", 3u32),
        ("embedding_length", 4),
        ("feed_forward_length", 16),
        ("attention.head_count", 2),
        ("context_length", 512),
    ];
    for (key, size) in sizes {
        string(&mut bytes, &format!("llama.{key}"));
        bytes.extend([4u32.to_le_bytes(), size.to_le_bytes()].concat());
    }
    string(&mut bytes, "token_embd.weight");
    bytes.extend(2u32.to_le_bytes());
    bytes.extend([4u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 32, 0);
    bytes
}

fn import_as(bench: &Bench, path: &Path, name: Option<&str>) -> Vec<EventBody> {
    let body = CommandBody::ModelsImport { path: path.display().to_string(), name: name.map(str::to_owned) };
    ask(&mut bench.shell_host("exit 1"), 1, body)
}

fn verify_of(bench: &Bench, name: &str) -> Vec<ModelProblem> {
    let events = ask(&mut bench.shell_host("exit 1"), 1, CommandBody::ModelsVerify { model: name.into() });
    let found = events.iter().find_map(|event| match event {
        EventBody::ModelProblems { problems, .. } => Some(problems.clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{events:?}"))
}

fn in_cache(bench: &Bench) -> Vec<ModelEntry> {
    list(&bench.paths).unwrap().into_iter().filter(|model| model.name != starter::NAME).collect()
}

#[test]
fn an_imported_folder_lies_as_huggingface_hub_lays_it() {
    let bench = Bench::new();
    let source = bench.path("My model");
    write_model(&source, true);
    fs::write(source.join("optimizer.pt"), "junk").unwrap();
    let events = import_as(&bench, &source, Some("me/mine"));
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");

    let repo = bench.paths.hf_cache.join("models--me--mine");
    let revision = fs::read_to_string(repo.join("refs/main")).unwrap();
    assert_eq!(revision.len(), 40);
    let snapshot = repo.join("snapshots").join(&revision);
    let shard = snapshot.join("model-1.safetensors");
    assert_eq!(fs::read(&shard).unwrap(), fs::read(source.join("model-1.safetensors")).unwrap());
    assert!(!snapshot.join("optimizer.pt").exists());
    #[cfg(unix)]
    {
        let target = fs::read_link(&shard).unwrap();
        assert!(target.starts_with("../../blobs"), "{}", target.display());
        assert_eq!(file_name(&target).len(), 64);
    }
    assert_eq!(files::names_in(&bench.paths.hf_cache).unwrap(), ["models--me--mine"], "nothing left aside");

    let models = in_cache(&bench);
    assert_eq!(models.len(), 1);
    assert_eq!((models[0].name.as_str(), models[0].parameters), ("me/mine", Some(48)));
    assert_eq!(
        (models[0].problem.as_deref(), models[0].architecture.as_deref()),
        (None, Some("LlamaForCausalLM"))
    );
    assert!(verify_of(&bench, "me/mine").is_empty());

    // The same again is nothing new; another of the same name is refused.
    assert_eq!(import_as(&bench, &source, Some("me/mine")).last(), Some(&EventBody::Done));
    fs::write(source.join("config.json"), r#"{"architectures": ["Qwen3ForCausalLM"]}"#).unwrap();
    let error = failure(&import_as(&bench, &source, Some("me/mine")));
    assert!(error.message.contains("different model named me/mine"), "{error}");
    assert_eq!(import_as(&bench, &source, None).last(), Some(&EventBody::Done));
    assert!(resolve(&bench.paths, "local/My-model").is_ok());
    assert_eq!(resolve(&bench.paths, "MINE").unwrap().name, "me/mine");
}

#[test]
fn a_gguf_file_is_imported_and_found_by_its_short_name() {
    let bench = Bench::new();
    let file = bench.path("Tiny.Q8_0.gguf");
    fs::write(&file, gguf_bytes()).unwrap();
    assert_eq!(import_as(&bench, &file, None).last(), Some(&EventBody::Done));
    let found = resolve(&bench.paths, "tiny.q8_0").unwrap();
    assert_eq!(found.name, "local/Tiny.Q8_0");
    assert!(found.path.ends_with("Tiny.Q8_0.gguf") && found.path.is_file());
    let models = in_cache(&bench);
    assert_eq!((models[0].architecture.as_deref(), models[0].parameters), (Some("llama"), Some(8)));
    assert_eq!(models[0].license.as_deref(), Some("mit"));
    let shape = ModelShape {
        num_layers: 3,
        hidden_size: 4,
        intermediate_size: 16,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 2,
        vocab_size: 2,
        context_length: 512,
        tie_word_embeddings: true,
        is_gguf: true,
        linears: Quant::None,
        experts: None,
    };
    assert_eq!(models[0].shape, Some(shape));

    let bytes = gguf_bytes();
    for cut in [3, 20, 60, 100, bytes.len() - 1] {
        fs::write(&file, &bytes[..cut]).unwrap();
        let error = failure(&import_as(&bench, &file, Some("x")));
        assert!(
            error.message.contains("truncated") || error.message.contains("GGUF"),
            "cut at {cut}: {error}"
        );
    }
    assert_eq!(in_cache(&bench).len(), 1);
}

#[test]
fn a_broken_model_is_refused_with_the_file_at_fault() {
    let bench = Bench::new();
    let check = |spoil: &dyn Fn(&Path), problem: &str| {
        let source = bench.path("broken");
        files::remove_quietly(&source);
        write_model(&source, true);
        spoil(&source);
        let error = failure(&import_as(&bench, &source, None));
        assert!(error.message.contains(problem), "{error}");
        assert!(error.message.ends_with(source.to_str().unwrap()), "{error}");
        let found = verify_of_or_error(&bench, &source);
        assert!(found.contains(problem) || found.contains("no config.json"), "{found}");
    };
    let remove = |name: &'static str| move |dir: &Path| fs::remove_file(dir.join(name)).unwrap();
    check(&remove("config.json"), "config.json is missing");
    check(&remove("tokenizer.json"), "tokenizer.json is missing");
    check(&remove("model-2.safetensors"), "model-2.safetensors is missing");
    check(&remove("model.safetensors.index.json"), "model.safetensors.index.json is missing");
    check(&|dir| fs::write(dir.join("tokenizer.json"), "{").unwrap(), "tokenizer.json cannot be used");
    check(
        &|dir| write_safetensors(&dir.join("model-2.safetensors"), &[("c", &[16])]),
        "model-2.safetensors lacks b, which the index places there",
    );
    check(
        &|dir| {
            let path = dir.join("model-1.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        },
        "model-1.safetensors is truncated",
    );
    check(&|dir| fs::write(dir.join("model-1.safetensors"), "short").unwrap(), "too short");
    assert!(in_cache(&bench).is_empty());
}

fn verify_of_or_error(bench: &Bench, path: &Path) -> String {
    let body = CommandBody::ModelsVerify { model: path.display().to_string() };
    let events = ask(&mut bench.shell_host("exit 1"), 1, body);
    let sentence = events.iter().find_map(|event| match event {
        EventBody::ModelProblems { problems, .. } => {
            problems.first().map(|problem| format!("{} {}", problem.file, problem.problem))
        }
        EventBody::Failed { error } => Some(error.message.clone()),
        _ => None,
    });
    sentence.unwrap_or_default()
}

#[test]
fn a_flipped_bit_is_found_by_its_checksum() {
    let bench = Bench::new();
    write_model(&bench.path("m"), false);
    import_as(&bench, &bench.path("m"), Some("me/m"));
    let blob = resolve(&bench.paths, "me/m").unwrap().path.join("model.safetensors").canonicalize().unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    let problems = verify_of(&bench, "me/m");
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].file, "model.safetensors");
    assert!(problems[0].problem.contains("checksum"));
}

#[cfg(unix)]
#[test]
fn git_blobs_are_checked_too() {
    let bench = Bench::new();
    let repo = bench.paths.hf_cache.join("models--a--b");
    let snapshot = repo.join("snapshots/abc");
    write_model(&snapshot, false);
    fs::create_dir_all(repo.join("blobs")).unwrap();
    // `printf 'hello\n' | git hash-object --stdin`
    let blob = repo.join("blobs/ce013625030ba8dba906f756967f9e9ca394464a");
    fs::write(&blob, "hello\n").unwrap();
    std::os::unix::fs::symlink(
        "../../blobs/ce013625030ba8dba906f756967f9e9ca394464a",
        snapshot.join("x.txt"),
    )
    .unwrap();
    assert!(verify_of(&bench, "a/b").is_empty());
    fs::write(&blob, "hallo\n").unwrap();
    assert_eq!(verify_of(&bench, "a/b")[0].file, "x.txt");
    fs::remove_file(&blob).unwrap();
    assert_eq!(verify_of(&bench, "a/b")[0].problem, "points to a blob that is gone");
}

#[test]
fn gzipped_json_is_read() {
    use std::io::Write as _;
    let bench = Bench::new();
    let source = bench.path("m");
    write_model(&source, false);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(br#"{"model_type": "qwen3"}"#).unwrap();
    fs::write(source.join("config.json"), encoder.finish().unwrap()).unwrap();
    import_as(&bench, &source, Some("me/m"));
    assert_eq!(in_cache(&bench)[0].architecture.as_deref(), Some("qwen3"));
}

#[test]
fn removing_frees_the_blobs_and_spares_what_is_not_ours() {
    let bench = Bench::new();
    write_model(&bench.path("m"), false);
    import_as(&bench, &bench.path("m"), Some("me/m"));
    let remove = |name: &str| {
        ask(&mut bench.shell_host("exit 1"), 1, CommandBody::ModelsRemove { model: name.into() })
    };
    assert!(failure(&remove("starter")).message.contains("part of Lathe"));
    assert!(failure(&remove(bench.path("m").to_str().unwrap())).message.contains("Only models in"));
    let error = failure(&remove("me/n"));
    assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::NotFound, Some("did you mean me/m?")));
    let events = remove("m");
    let EventBody::Removed { freed_bytes, .. } = &events[0] else { panic!("{events:?}") };
    assert!(*freed_bytes > 192, "{freed_bytes}");
    assert!(in_cache(&bench).is_empty());
    assert!(bench.path("m/config.json").exists());
}

#[test]
fn names_that_could_be_several_or_none_say_so() {
    let bench = Bench::new();
    write_model(&bench.path("m"), false);
    import_as(&bench, &bench.path("m"), Some("me/m"));
    import_as(&bench, &bench.path("m"), Some("you/m"));
    let error = resolve(&bench.paths, "m").unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("write the whole name: me/m or you/m"));
    let error = resolve(&bench.paths, "./nowhere").unwrap_err();
    assert!(error.message.ends_with("nowhere"), "{error}");
    assert!(resolve(&bench.paths, "").is_err());
    assert!(resolve(&bench.paths, "zzz").unwrap_err().hint.unwrap().contains("models import"));
}

#[test]
fn a_models_license_and_shape_are_read_from_its_own_files() {
    let bench = Bench::new();
    let source = bench.path("m");
    let read = || entry("m".into(), None, &source);
    write_model(&source, false);
    assert_eq!((read().license, read().shape), (None, None), "unknown is no problem");
    assert_eq!(read().problem, None);

    let check = |card: &str, license: Option<&str>| {
        fs::write(source.join("README.md"), card).unwrap();
        assert_eq!(read().license.as_deref(), license, "{card:?}");
    };
    check("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", Some("apache-2.0"));
    check("---\r\nlicense: \"mit\"\r\n---\r\n", Some("mit"));
    check("---\nlicense:\n- cc-by-4.0\n- mit\n---\n", Some("cc-by-4.0"));
    check("---\nlicense: other\nlicense_name: tongyi\n---\n", Some("tongyi"));
    check("---\nlicense: other\n---\n", Some("other"));
    check("# A model\n\nlicense: mit\n", None);
    check("---\ntags: []\n---\nlicense: mit\n", None);
    check("", None);

    let config = r#"{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 320,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}"#;
    fs::write(source.join("config.json"), config).unwrap();
    let shape = read().shape.unwrap();
    assert_eq!((shape.head_dim, shape.num_key_value_heads, shape.context_length), (16, 2, 512));
    assert!(shape.tie_word_embeddings, "there is no other head");
    write_safetensors(&source.join("model.safetensors"), &[("a", &[4, 8]), ("lm_head.weight", &[16])]);
    assert!(!read().shape.unwrap().tie_word_embeddings);
    fs::write(source.join("config.json"), format!(r#"{{"text_config": {config}}}"#)).unwrap();
    assert_eq!(read().shape.unwrap().vocab_size, 320);
}

#[test]
fn weights_in_nf4_and_in_blocks_count_as_the_values_they_are() {
    let inspect = |name: &str| {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name);
        let findings = check::inspect(&golden, Depth::Headers);
        (findings.parameters.unwrap(), findings.shape.unwrap())
    };
    let formats = |shape: ModelShape| (shape.linears, shape.experts.map(|experts| experts.format));
    for (packed, dense, expected) in [
        ("tiny-llama-nf4", "tiny-llama", (Quant::Nf4, None)),
        ("tiny-qwen3-nf4", "tiny-qwen3", (Quant::Nf4Double, None)),
        ("tiny-gpt-oss-nf4", "tiny-gpt-oss", (Quant::Nf4Double, Some(ExpertFormat::Nf4Double))),
        ("tiny-qwen3-moe-nf4", "tiny-qwen3-moe", (Quant::Nf4, Some(ExpertFormat::Nf4))),
    ] {
        let ((parameters, shape), (of_dense, _)) = (inspect(packed), inspect(dense));
        assert_eq!(parameters, of_dense, "{packed}");
        assert_eq!(formats(shape), expected, "{packed}");
    }
    let (_, shape) = inspect("gguf/gpt-oss.gguf");
    assert_eq!(
        (shape.intermediate_size, shape.experts.map(|experts| experts.experts_per_token)),
        (32, Some(2))
    );
    assert_eq!(formats(shape), (Quant::None, Some(ExpertFormat::Blocks(136))));
}
