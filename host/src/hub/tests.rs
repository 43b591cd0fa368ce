#![cfg(unix)]

mod faults;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Barrier, atomic::Ordering},
};

use lathe_protocol::{
    CommandBody, Download, DownloadStatus, ErrorCode, ErrorInfo, EventBody, Gate, HubDetails, ModelEntry,
    Secret,
};
use serde_json::json;

use crate::{
    Host, HostOptions, NetOptions,
    testing::{
        Bench, ask, failure,
        fake_hub::{COMMIT, FakeHub, Fault, Repo, git_sha1, sha256},
        net_options,
    },
};

const MODEL: &str = "maker/tiny";

/// A file of weights of so many tensors of 64 KiB.
pub(crate) fn weights(names: &[&str], seed: u8) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    for (index, name) in names.iter().enumerate() {
        let (begin, end) = (index << 16, (index + 1) << 16);
        header.insert(
            (*name).into(),
            json!({"dtype": "BF16", "shape": [128, 256], "data_offsets": [begin, end]}),
        );
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend((0..names.len() << 16).map(|index| (index % 251) as u8 ^ seed));
    file
}

pub(crate) fn config() -> Vec<u8> {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 2,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "vocab_size": 128, "max_position_embeddings": 2048, "tie_word_embeddings": true, "dtype": "bfloat16"
    })
    .to_string()
    .into_bytes()
}

/// Two shards of 512 KiB and 1 MiB, and more than belongs to the model.
pub(crate) fn repo() -> Repo {
    let (first, second): (Vec<String>, Vec<String>) =
        ((0..8).map(|i| format!("a.{i}")).collect(), (0..16).map(|i| format!("b.{i}")).collect());
    let of = |names: &[String], seed| weights(&names.iter().map(String::as_str).collect::<Vec<_>>(), seed);
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let map: BTreeMap<&String, &str> = first
        .iter()
        .map(|name| (name, shards[0]))
        .chain(second.iter().map(|name| (name, shards[1])))
        .collect();
    let mut repo = Repo::new(&[
        ("config.json", config()),
        ("tokenizer.json", b"{}".to_vec()),
        ("README.md", b"---\nlicense: apache-2.0\n---\n".to_vec()),
        ("model.safetensors.index.json", json!({"weight_map": map}).to_string().into_bytes()),
        (shards[0], of(&first, 1)),
        (shards[1], of(&second, 2)),
        ("pytorch_model.bin", vec![0; 4096]),
        ("onnx/model.onnx", vec![0; 4096]),
        ("original/model.safetensors", vec![0; 4096]),
    ]);
    repo.info = json!({"cardData": {"license": "apache-2.0"}, "safetensors": {"parameters": {"BF16": 786_432}, "total": 786_432}});
    repo
}

fn host(bench: &Bench, hub: &FakeHub, change: impl FnOnce(&mut NetOptions)) -> Host {
    let mut options: HostOptions = bench.shell_options("exit 1");
    options.net = net_options(&hub.endpoint());
    change(&mut options.net);
    Host::start(options).unwrap()
}

fn pull(host: &mut Host, model: &str) -> Vec<EventBody> {
    ask(host, 1, CommandBody::ModelsPull { model: model.into(), revision: None })
}

fn pulled(host: &mut Host, model: &str) -> ModelEntry {
    let events = pull(host, model);
    let entry = events.iter().find_map(|event| match event {
        EventBody::Models { models } => Some(models[0].clone()),
        _ => None,
    });
    entry.unwrap_or_else(|| panic!("{:?}", events.last()))
}

fn pull_error(host: &mut Host, model: &str) -> ErrorInfo {
    failure(&pull(host, model))
}

fn shown(host: &mut Host, model: &str) -> HubDetails {
    match &ask(host, 2, CommandBody::HubShow { model: model.into(), revision: None })[0] {
        EventBody::HubDetails(details) => (**details).clone(),
        other => panic!("{other:?}"),
    }
}

fn downloads(events: &[EventBody]) -> Vec<Download> {
    let of = |event: &EventBody| {
        if let EventBody::Download(download) = event { Some((**download).clone()) } else { None }
    };
    events.iter().filter_map(of).collect()
}

fn notes(events: &[EventBody]) -> String {
    downloads(events).into_iter().filter_map(|download| download.note).collect::<Vec<_>>().join("\n")
}

fn repo_dir(bench: &Bench) -> PathBuf {
    bench.paths.hf_cache.join("models--maker--tiny")
}

fn snapshot(bench: &Bench) -> PathBuf {
    repo_dir(bench).join("snapshots").join(COMMIT)
}

fn assert_whole(bench: &Bench) {
    let repo = repo();
    for (name, bytes) in &repo.files {
        let path = snapshot(bench).join(name);
        let is_left_out =
            ["pytorch_model.bin", "onnx/model.onnx", "original/model.safetensors"].contains(&name.as_str());
        assert_eq!(path.exists(), !is_left_out, "{name}");
        if !is_left_out {
            assert!(&fs::read(&path).unwrap() == bytes, "{name} differs");
            let blob = if crate::testing::fake_hub::is_lfs(name) { sha256(bytes) } else { git_sha1(bytes) };
            assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(blob));
        }
    }
    assert_eq!(fs::read_to_string(repo_dir(bench).join("refs/main")).unwrap(), COMMIT);
    let left: Vec<_> = fs::read_dir(repo_dir(bench).join("blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("incomplete")), "{left:?}");
}

/// What the partial file of the second shard holds.
fn leave_partial(bench: &Bench, bytes: &[u8]) -> PathBuf {
    let blobs = repo_dir(bench).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let path = blobs.join(format!("{}.incomplete", sha256(&second_shard())));
    fs::write(&path, bytes).unwrap();
    path
}

fn second_shard() -> Vec<u8> {
    repo().files["model-00002-of-00002.safetensors"].clone()
}

fn cdn() -> String {
    format!("/cdn/{}", sha256(&second_shard()))
}

#[test]
fn a_model_is_downloaded_as_python_lays_it_out_and_found_by_its_name() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    let mut host = host(&bench, &hub, |net| net.token = Some(Secret("hf_mine".into())));
    let events = pull(&mut host, MODEL);
    assert_eq!(events.last(), Some(&EventBody::Done));
    assert_whole(&bench);
    let last = downloads(&events).pop().unwrap();
    assert_eq!((last.status, last.done_files, last.total_files), (DownloadStatus::Done, 6, 6));
    assert_eq!(last.done_bytes, last.total_bytes);
    let models = ask(&mut host, 2, CommandBody::ModelsList);
    let EventBody::Models { models } = &models[0] else { panic!("{models:?}") };
    let model = models.iter().find(|model| model.name == MODEL).unwrap();
    assert_eq!((model.problem.as_deref(), model.parameters), (None, Some(786_432)));
    // The token is for the Hub, not for where it sends to.
    assert!(
        hub.requests("/resolve/")
            .iter()
            .all(|request| request.authorization.as_deref() == Some("Bearer hf_mine"))
    );
    assert!(
        hub.requests("/cdn/").len() > 1
            && hub.requests("/cdn/").iter().all(|request| request.authorization.is_none())
    );

    let before = hub.served.load(Ordering::SeqCst);
    pulled(&mut host, MODEL);
    let served = hub.served.load(Ordering::SeqCst) - before;
    assert!(served < 2000, "again: {served} bytes");
}

#[test]
fn files_come_at_the_same_time() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    hub.fail("/cdn/", 2, Fault::Meet(Arc::new(Barrier::new(2))));
    pulled(&mut host(&bench, &hub, |_| {}), MODEL);
    // One that waited alone would have been asked for again.
    let asked = hub.requests("/cdn/");
    assert_ne!(asked[0].path, asked[1].path);
    assert_whole(&bench);
}

#[test]
fn only_headers_are_fetched_to_show_a_model() {
    let names: Vec<String> = (0..16).map(|index| format!("model.layers.{index}.weight")).collect();
    let single = weights(&names.iter().map(String::as_str).collect::<Vec<_>>(), 3);
    let mut repo = repo();
    repo.files.retain(|name, _| !name.contains("safetensors"));
    repo.files.insert("model.safetensors".into(), single);
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo)]));
    let mut host = host(&bench, &hub, |_| {});
    let details = shown(&mut host, MODEL);
    assert_eq!(details.problem, None);
    assert_eq!(
        (details.license.as_deref(), details.gate, details.parameters),
        (Some("apache-2.0"), Gate::Open, Some(524_288))
    );
    assert_eq!(
        (details.architecture.as_deref(), details.shape.unwrap().num_layers),
        (Some("Qwen3ForCausalLM"), 2)
    );
    assert!(details.size_bytes > 1 << 20 && details.missing_bytes == details.size_bytes);
    assert!(details.disk_free_bytes > 0 && details.revision == COMMIT);
    let wanted: Vec<&str> =
        details.files.iter().filter(|file| file.is_wanted).map(|file| file.name.as_str()).collect();
    assert_eq!(wanted, ["README.md", "config.json", "model.safetensors", "tokenizer.json"]);
    let served = hub.served.load(Ordering::SeqCst);
    assert!(served < (64 << 10) + 2000, "{served} bytes for {}", details.size_bytes);
    assert!(!bench.paths.hf_cache.join("models--maker--tiny").exists());
}

#[test]
fn a_search_puts_what_can_be_used_first() {
    let mut unusable = Repo::new(&[("pytorch_model.bin", Vec::new())]);
    unusable.info = json!({"downloads": 1000});
    let mut gptq = repo();
    gptq.info = json!({"config": {"model_type": "qwen3", "quantization_config": {"quant_method": "gptq"}}});
    let mut mamba = repo();
    mamba.info =
        json!({"config": {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "gated": "manual"});
    let repos = [
        ("a/tiny-bin", unusable),
        ("b/tiny-gptq", gptq),
        ("c/tiny-mamba", mamba),
        (MODEL, repo()),
        ("x/other", repo()),
    ];
    let (bench, hub) = (Bench::new(), FakeHub::start(&repos));
    let mut host = host(&bench, &hub, |_| {});
    let events = ask(&mut host, 1, CommandBody::HubSearch { query: "tiny".into(), limit: 3 });
    let EventBody::HubModels { models } = &events[0] else { panic!("{events:?}") };
    assert_eq!(models.len(), 3);
    let first = &models[0];
    assert_eq!((first.name.as_str(), first.downloads, first.problem.as_deref()), (MODEL, 7, None));
    assert_eq!(
        (first.license.as_deref(), first.parameters, first.updated_secs),
        (Some("apache-2.0"), Some(786_432), Some(1_754_413_200))
    );
    assert!(models[1].problem.as_ref().unwrap().contains("neither safetensors nor GGUF"));
    assert!(models[2].problem.as_ref().unwrap().contains("GPTQ"));
}

#[test]
fn refusals_are_told_in_clear_words() {
    let mut gated = repo();
    gated.info["gated"] = json!("auto");
    gated.gated_for = Some("hf_right".into());
    let mut private = repo();
    private.private_for = Some("hf_right".into());
    let repos = [("meta/gated", gated), ("me/private", private), (MODEL, repo())];
    let (bench, hub) = (Bench::new(), FakeHub::start(&repos));
    let mut anonymous = host(&bench, &hub, |_| {});
    let other = Bench::new();
    let mut known = host(&other, &hub, |net| net.token = Some(Secret("hf_other".into())));
    let check = |host: &mut Host, model: &str, code: ErrorCode, message: &str, hint: &str| {
        let error = pull_error(host, model);
        let told = error.hint.clone().unwrap_or_default();
        assert!(error.code == code && error.message.contains(message) && told.contains(hint), "{error:?}");
        assert!(!format!("{error:?}").contains("hf_other"));
    };
    check(
        &mut anonymous,
        "meta/gated",
        ErrorCode::Access,
        "agrees to its terms",
        "/meta/gated, agree to its terms, then `lathe models pull meta/gated`",
    );
    check(
        &mut known,
        "meta/gated",
        ErrorCode::Access,
        "not given to the account of the token of HF_TOKEN",
        "with that account",
    );
    check(
        &mut anonymous,
        "me/private",
        ErrorCode::NotFound,
        "No model me/private at 127.0.0.1",
        "a private one needs a token",
    );
    check(
        &mut known,
        "me/private",
        ErrorCode::NotFound,
        "No model me/private",
        "which that of HF_TOKEN may not",
    );
    check(&mut anonymous, "no/model", ErrorCode::NotFound, "No model no/model", "lathe models search");
    check(&mut anonymous, "model", ErrorCode::Usage, "Not the name of a model", "owner/name");
    check(&mut anonymous, "maker/tiny:Q4_K_M", ErrorCode::NotFound, "no GGUF file Q4_K_M", "none at all");
    hub.fail(
        "/api/models/maker",
        1,
        Fault::Answer(
            401,
            vec![("X-Error-Message".into(), "Invalid credentials in Authorization header".into())],
        ),
    );
    check(&mut known, MODEL, ErrorCode::Access, "does not accept the token of HF_TOKEN", "/settings/tokens");
    hub.fail(
        "/api/models/maker",
        1,
        Fault::Answer(403, vec![("X-Error-Message".into(), "Your token lacks a right".into())]),
    );
    check(
        &mut known,
        MODEL,
        ErrorCode::Access,
        "does not permit it: Your token lacks a right",
        "right to read",
    );
    hub.fail("/resolve/", 1, Fault::Answer(404, vec![("X-Error-Code".into(), "EntryNotFound".into())]));
    check(&mut known, MODEL, ErrorCode::NotFound, "lacks a file that it lists", "/tree/main");
    let wrong = CommandBody::ModelsPull { model: MODEL.into(), revision: Some("v9".into()) };
    let error = failure(&ask(&mut anonymous, 7, wrong));
    assert!(error.code == ErrorCode::NotFound && error.message == "maker/tiny has no revision v9", "{error}");
    assert!(!repo_dir(&bench).exists() && !repo_dir(&other).exists());

    let details = shown(&mut anonymous, "meta/gated");
    assert_eq!(details.gate, Gate::Agree);
    assert!(details.size_bytes > 1 << 20 && details.problem.unwrap().contains("agree to its terms"));
    let mut right = host(&bench, &hub, |net| net.token = Some(Secret("hf_right".into())));
    assert_eq!(shown(&mut right, "meta/gated").problem, None);
    pulled(&mut right, "me/private");
}

#[test]
fn a_token_of_pythons_tools_is_used_where_there_is_no_other() {
    let mut private = repo();
    private.private_for = Some("hf_right".into());
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, private)]));
    fs::write(bench.path("token"), "hf_right\n").unwrap();
    let token_file = bench.path("token");
    pulled(&mut host(&bench, &hub, |net| net.token_file = Some(token_file)), MODEL);
    assert_whole(&bench);
}

#[test]
fn what_cannot_be_used_is_not_downloaded() {
    let mut pickles = repo();
    pickles.files.retain(|name, _| !name.contains("safetensors"));
    let mut mamba = repo();
    mamba.files.insert("config.json".into(), br#"{"model_type": "mamba"}"#.to_vec());
    let mut awq = repo();
    let config = br#"{"model_type": "qwen3", "quantization_config": {"quant_method": "awq"}}"#;
    awq.files.insert("config.json".into(), config.to_vec());
    let adapter = Repo::new(&[
        ("adapter_config.json", b"{}".to_vec()),
        ("adapter_model.safetensors", weights(&["a"], 0)),
    ]);
    let repos = [("a/pickles", pickles), ("a/mamba", mamba), ("a/awq", awq), ("a/adapter", adapter)];
    let (bench, hub) = (Bench::new(), FakeHub::start(&repos));
    let mut host = host(&bench, &hub, |_| {});
    for (model, why) in
        [("a/pickles", "pickles"), ("a/mamba", "mamba"), ("a/awq", "AWQ"), ("a/adapter", "adapter")]
    {
        let error = pull_error(&mut host, model);
        assert!(error.code == ErrorCode::Model && error.message.contains(why), "{error}");
        assert!(shown(&mut host, model).problem.unwrap().contains(why));
    }
    assert!(!bench.paths.hf_cache.exists());
}

/// A GGUF of one tensor with a vocabulary of 3.4 MB in its header.
fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let number =
        |key: &str, value: u32| [text(key), 4u32.to_le_bytes().into(), value.to_le_bytes().into()].concat();
    let mut file =
        [b"GGUF".to_vec(), 3u32.to_le_bytes().into(), 1u64.to_le_bytes().into(), 7u64.to_le_bytes().into()]
            .concat();
    file.extend([text("general.architecture"), 8u32.to_le_bytes().into(), text("qwen3")].concat());
    for (key, value) in [
        ("block_count", 2),
        ("embedding_length", 64),
        ("feed_forward_length", 128),
        ("attention.head_count", 4),
        ("context_length", 512),
    ] {
        file.extend(number(&format!("qwen3.{key}"), value));
    }
    let tokens: Vec<u8> = (0..200_000).flat_map(|index| text(&format!("token{index:04}"))).collect();
    let head = [
        text("tokenizer.ggml.tokens"),
        9u32.to_le_bytes().into(),
        8u32.to_le_bytes().into(),
        200_000u64.to_le_bytes().into(),
    ];
    file.extend([head.concat(), tokens].concat());
    file.extend([text("token_embd.weight"), 2u32.to_le_bytes().into(), 64u64.to_le_bytes().into()].concat());
    file.extend(
        [200_000u64.to_le_bytes().to_vec(), 1u32.to_le_bytes().into(), 0u64.to_le_bytes().into()].concat(),
    );
    file.resize(file.len().next_multiple_of(32) + 2 * 64 * 200_000, 0);
    file
}

#[test]
fn of_a_gguf_too_only_the_header_is_fetched() {
    let gguf = gguf();
    let (whole, repo) = (gguf.len() as u64, Repo::new(&[("m-F16.gguf", gguf)]));
    let (bench, hub) = (Bench::new(), FakeHub::start(&[("maker/m-GGUF", repo)]));
    let details = shown(&mut host(&bench, &hub, |_| {}), "maker/m-GGUF");
    assert_eq!((details.problem.as_deref(), details.architecture.as_deref()), (None, Some("qwen3")));
    let shape = details.shape.unwrap();
    assert_eq!((shape.num_layers, shape.vocab_size, shape.is_gguf), (2, 200_000, true));
    assert_eq!(details.parameters, Some(64 * 200_000));
    let served = hub.served.load(Ordering::SeqCst);
    assert!(served <= 6 << 20 && whole > 4 * served, "{served} of {whole} bytes");
}

#[test]
fn one_gguf_of_several_is_fetched_and_found() {
    let gguf = |seed: u8| [b"GGUF".to_vec(), vec![seed; 1000]].concat();
    let repo = Repo::new(&[
        ("m-Q4_K_M.gguf", gguf(1)),
        ("m-Q8_0.gguf", gguf(2)),
        ("sub/m-F16.gguf", gguf(3)),
        ("README.md", Vec::new()),
    ]);
    let (bench, hub) = (Bench::new(), FakeHub::start(&[("maker/many-GGUF", repo)]));
    let mut host = host(&bench, &hub, |_| {});
    let events = pull(&mut host, "maker/many-GGUF");
    let told = |event: &EventBody| matches!(event, EventBody::Log { message, .. } if message.contains("m-Q4_K_M.gguf is fetched"));
    assert!(events.iter().any(told), "{events:?}");
    let resolved = |name: &str| {
        crate::models::resolve(&bench.paths, name)
            .map(|model| (model.name, crate::models::check::file_name(&model.path)))
    };
    assert_eq!(resolved("maker/many-GGUF").unwrap(), ("maker/many-GGUF".into(), "m-Q4_K_M.gguf".into()));
    assert!(
        resolved("maker/many-GGUF:F16")
            .unwrap_err()
            .hint
            .unwrap()
            .contains("lathe models pull maker/many-GGUF:F16")
    );
    assert_eq!(pulled(&mut host, "maker/many-GGUF:f16").name, "maker/many-GGUF:f16");
    assert_eq!(resolved("maker/many-GGUF:F16").unwrap().1, "m-F16.gguf");
    assert!(resolved("maker/many-GGUF").unwrap_err().hint.unwrap().contains("maker/many-GGUF:Q4_K_M"));
    assert_eq!(resolved("maker/many-GGUF/m-Q4_K_M.gguf").unwrap().1, "m-Q4_K_M.gguf");
}
