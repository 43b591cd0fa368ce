//! Text and tokens against transformers and llama.cpp. `tests/golden/*.py` make the numbers.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its goldens has failed")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use lathe_engine::{
    data::{Chat, read_examples},
    prepare,
    template::{self, ChatTemplate, RenderOptions},
    text_files::TextFiles,
    tokenize::encode_plain,
};
use lathe_protocol::Message;
use serde::Deserialize;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The SmolLM2 GGUF: `LATHE_SMOLLM2`, or where `cargo xtask fetch-smollm2` puts it.
fn smollm2() -> Option<PathBuf> {
    let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/smollm2").join(file);
    let path = std::env::var_os("LATHE_SMOLLM2").map_or(fetched, PathBuf::from);
    if !path.is_file() {
        eprintln!("skipped: no {} (cargo xtask fetch-smollm2)", path.display());
        return None;
    }
    Some(path)
}

#[derive(Deserialize)]
struct GoldenTokens {
    ids: Vec<u32>,
    mask: Vec<u8>,
}

#[test]
fn ids_and_loss_masks_equal_transformers() {
    for model in ["tiny-llama", "tiny-qwen3"] {
        let folder = golden(model);
        let text_files = TextFiles::open(&folder).unwrap();
        let dataset = read_examples(&folder.join("rows.jsonl"), &BTreeMap::new()).unwrap();
        let prepared = prepare::rows(&text_files, &dataset, usize::MAX).unwrap();
        let expected: Vec<GoldenTokens> = read(&folder.join("expected_tokens.json"));
        assert_eq!(prepared.len(), expected.len());
        for (row, expected) in prepared.iter().zip(expected) {
            assert_eq!(row.ids, expected.ids, "{model} row {}", row.row);
            let mask: Vec<u8> = row.loss_mask.iter().map(|&learned| u8::from(learned)).collect();
            assert_eq!(mask, expected.mask, "{model} row {}", row.row);
        }
    }
}

#[derive(Deserialize)]
struct GoldenTemplates {
    templates: BTreeMap<String, String>,
    renders: Vec<GoldenRender>,
}

#[derive(Deserialize)]
struct GoldenRender {
    template: String,
    messages: Vec<Value>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    enable_thinking: Option<bool>,
    reasoning_effort: Option<String>,
    expected: String,
    /// What the training twin marks as the assistant's.
    learned: Option<Vec<String>>,
}

/// The goldens' messages are as transformers takes them; ours have one name for a thought and one shape for a call.
fn message(mut value: Value) -> Message {
    if let Some(thought) = value.as_object_mut().unwrap().remove("reasoning_content") {
        value["thinking"] = thought;
    }
    if let Some(calls) = value.get_mut("tool_calls") {
        for call in calls.as_array_mut().unwrap().iter_mut().filter(|call| call.get("function").is_none()) {
            *call = json!({ "function": call.clone() });
        }
    }
    serde_json::from_value(value).unwrap()
}

#[test]
fn renders_equal_transformers_to_the_byte() {
    let GoldenTemplates { templates, renders } = read(&golden("templates.json"));
    let compile = |source: &String| ChatTemplate::new(source, "golden", &BTreeMap::new()).unwrap();
    let templates: BTreeMap<_, _> = templates.iter().map(|(name, source)| (name, compile(source))).collect();
    for (index, render) in renders.into_iter().enumerate() {
        let GoldenRender { template, messages, tools, enable_thinking, reasoning_effort, expected, .. } =
            render;
        let add_generation_prompt = render.add_generation_prompt;
        let chat = Chat { tools, ..Chat::new(messages.into_iter().map(message).collect()) };
        let options = RenderOptions {
            add_generation_prompt,
            enable_thinking,
            reasoning_effort,
            ..RenderOptions::default()
        };
        let text = templates[&template].prompt(&chat, &options).unwrap();
        assert_eq!(text, expected, "render {index} of {template}");
        if let Some(learned) = render.learned {
            let rendered = template::render(&templates[&template], &chat, &options).unwrap();
            let spans = rendered.assistant_spans.iter().map(|span| &rendered.text[span.clone()]);
            assert_eq!(spans.collect::<Vec<_>>(), learned, "render {index} of {template}");
            assert_eq!(rendered.text, expected);
        }
    }
}

#[derive(Deserialize)]
struct GoldenText {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn the_gguf_tokenizer_equals_llama_cpp() {
    let Some(path) = smollm2() else { return };
    let started = Instant::now();
    let text_files = TextFiles::open(&path).unwrap();
    let load_secs = started.elapsed().as_secs_f64();
    eprintln!("loaded in {load_secs:.3} s");
    assert!(load_secs < 2.0, "{load_secs:.3} s, even on a busy machine");
    let expected: Vec<GoldenText> = read(&golden("smollm2/tokens.json"));
    for GoldenText { text, ids } in expected {
        assert_eq!(encode_plain(&text_files, &text).unwrap(), ids, "{text:?}");
    }
    assert_eq!(text_files.stop_ids, [2]);
    assert!(text_files.prefix_ids.is_empty());
    assert_eq!(text_files.template.unwrap().origin, "the GGUF's metadata");
}

#[test]
fn tokenizers_read_from_ggufs_equal_the_models_own() {
    for pre in ["qwen2", "llama-bpe", "gpt-4o"] {
        let text_files = TextFiles::open(&golden(&format!("gguf/tokenizer-{pre}.gguf"))).unwrap();
        let expected: Vec<GoldenText> = read(&golden(&format!("gguf/tokenizer-{pre}.json")));
        for GoldenText { text, ids } in expected {
            assert_eq!(encode_plain(&text_files, &text).unwrap(), ids, "{pre}: {text:?}");
        }
    }
}

#[test]
fn a_pre_tokenizer_that_nobody_knows_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    let mut bytes = std::fs::read(golden("gguf/tokenizer-qwen2.gguf")).unwrap();
    let at = bytes.windows(5).position(|word| word == b"qwen2").unwrap();
    bytes[at..at + 5].copy_from_slice(b"other");
    std::fs::write(&path, bytes).unwrap();
    let Err(error) = TextFiles::open(&path) else { panic!("it was read") };
    assert!(error.to_string().starts_with("Unknown pre-tokenizer \"other\" in the GGUF"), "{error}");
}
