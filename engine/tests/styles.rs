//! Added tokens whose embedding rows learn, against PEFT (tests/golden/styles.py), and what is built on them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::{DType, Device};
use lathe_engine::{
    Error, Result, adapter,
    chat::{ChatSession, ReplyRequest},
    data,
    model::{LoadFor, Model},
    preflight, prepare,
    store::Reading,
    styles,
    text_files::TextFiles,
    tokenize::{TokenizedRow, encode_plain},
    train::{self, Surroundings},
};
use lathe_protocol::{
    ChatStats, DataFile, EventBody, Machine, Message, Method, Role, RunConfig, SamplingParams, StepMetrics,
    Style, StylesFile, Thinking, TrainJob,
};
use serde_json::Value;

const TIED_AND_UNTIED: [&str; 2] = ["tiny-qwen3", "tiny-qwen3-untied"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn job(model: &str, config: RunConfig, out_dir: &Path) -> TrainJob {
    TrainJob {
        model: golden(model).display().to_string(),
        model_name: model.into(),
        data: String::new(),
        eval_data: None,
        out_dir: out_dir.display().to_string(),
        init_adapter: None,
        config,
        resume: false,
        device: "cpu".into(),
        force: false,
        machine: Machine::default(),
        cache: out_dir.join("cache").display().to_string(),
    }
}

/// The steps of a run on `rows`, or on the job's data, stopped after so many.
fn run(job: &TrainJob, rows: Option<&[TokenizedRow]>, stop_after: usize) -> Result<Vec<StepMetrics>> {
    let stop = AtomicBool::new(false);
    let world = Surroundings { clock: &|| 0.0, stop: &stop, audience: None };
    let mut steps = Vec::new();
    let mut emit = |event| {
        if let EventBody::Step(step) = event {
            stop.store(step.step == stop_after, Ordering::Relaxed);
            steps.push(step);
        }
    };
    match rows {
        Some(rows) => train::run_on_rows(job, rows, &[], None, &world, &mut emit),
        None => train::run(job, &world, &mut emit),
    }?;
    Ok(steps)
}

fn golden_rows(expected: &Value, max_seq_len: usize) -> Vec<TokenizedRow> {
    let rows = expected["rows"].as_array().unwrap().iter().enumerate();
    rows.map(|(row, value)| {
        let mask = value["mask"].as_array().unwrap();
        let mut row = TokenizedRow {
            row,
            line: row + 1,
            ids: serde_json::from_value(value["ids"].clone()).unwrap(),
            loss_mask: mask.iter().map(|bit| bit.as_u64() == Some(1)).collect(),
            rejected: None,
        };
        row.truncate(max_seq_len);
        row
    })
    .collect()
}

/// The largest difference, relative to the largest expected value.
fn relative_error(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a: f32, b| a.max(b.abs()));
    largest(&mut actual.iter().zip(expected).map(|(a, b)| a - b)) / largest(&mut expected.iter().copied())
}

#[test]
fn eight_steps_with_tokens_of_their_own_equal_those_of_peft() {
    for (name, gradient_checkpointing) in TIED_AND_UNTIED.map(|name| [(name, false), (name, true)]).concat() {
        let expected = read(&golden(name).join("expected_train_styles.json"));
        let mut config: RunConfig = serde_json::from_value(expected["config"].clone()).unwrap();
        (config.warmup_ratio, config.gradient_checkpointing) = (0.0, gradient_checkpointing);
        let rows = golden_rows(&expected, config.max_seq_len);
        let out_dir = tempfile::tempdir().unwrap();
        let mut job = job(name, config, out_dir.path());
        job.init_adapter = Some(golden(name).join("styles-init").display().to_string());
        let steps = run(&job, Some(&rows), 0).unwrap();
        let expected = expected["steps"].as_array().unwrap();
        assert_eq!(steps.len(), expected.len());
        for (step, expected) in steps.iter().zip(expected) {
            for (key, actual) in [("loss", step.loss), ("grad_norm", step.grad_norm)] {
                let expected = expected[key].as_f64().unwrap();
                let error = (actual - expected).abs() / expected;
                assert!(error <= 1e-4, "{name} step {}: {key} {actual}, not {expected}", step.step);
            }
        }
        let path = |folder: PathBuf| folder.join(adapter::WEIGHTS_FILE);
        let load = |folder| candle_core::safetensors::load(path(folder), &Device::Cpu).unwrap();
        let (actual, expected) = (load(out_dir.path().into()), load(golden(name).join("styles-final")));
        assert_eq!(actual.len(), expected.len());
        for (key, expected) in expected {
            let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
            let error = relative_error(&values(&actual[&key]), &values(&expected));
            assert!(error <= 1e-3, "{name}: {key} differs by {error}");
        }
        if name == "tiny-qwen3" {
            // What PEFT is told of the tokens is what it said itself.
            let config = adapter::PeftConfig::read(out_dir.path()).unwrap();
            assert_eq!(config.token_ids(), [320, 321]);
        }
    }
}

#[test]
fn logits_equal_those_of_peft_and_adapters_saved_with_a_resized_model_are_read() {
    for name in TIED_AND_UNTIED {
        let folder = tempfile::tempdir().unwrap();
        let copy = |from: &str, file: &str| {
            std::fs::copy(golden(name).join(from).join(file), folder.path().join(file)).unwrap();
        };
        copy("styles-init", "adapter_config.json");
        copy("styles-final", adapter::WEIGHTS_FILE);
        let path = golden(name).join("expected_styles.safetensors");
        let expected = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let ids: Vec<u32> = expected["ids"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
        let check = || {
            for load_for in [LoadFor::Inference, LoadFor::Lora] {
                let mut model = Model::load(&golden(name), load_for).unwrap();
                adapter::attach(&mut model, folder.path()).unwrap();
                let logits = model.all_logits(&ids).unwrap();
                assert_eq!(logits.dims(), expected["logits"].dims(), "{name}");
                let values =
                    |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let error = relative_error(&values(&logits), &values(&expected["logits"]));
                assert!(error <= 1e-4, "{name}: relative error {error}");
            }
        };
        check();
        // Unless told otherwise, PEFT saves the resized tables as well.
        let weights = folder.path().join(adapter::WEIGHTS_FILE);
        let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        let table = candle_core::Tensor::zeros((322, 4), DType::F32, &Device::Cpu).unwrap();
        for name in ["model.embed_tokens.token_adapter.base_layer", "lm_head.token_adapter.base_layer"] {
            tensors.insert(format!("base_model.model.{name}.weight"), table.clone());
        }
        candle_core::safetensors::save(&tensors, weights).unwrap();
        check();
    }
}

fn style_config() -> RunConfig {
    let styles = vec![
        Style { max_new_tokens: Some(9), ..Style::new("terse") },
        Style { min_new_tokens: Some(20), ..Style::new("detailed") },
    ];
    let lora = lathe_protocol::LoraConfig { r: 4, dropout: 0.1, ..Default::default() };
    RunConfig {
        max_seq_len: 128,
        grad_accum: 1,
        max_steps: 4,
        learning_rate: 1e-2,
        styles,
        lora,
        ..Default::default()
    }
}

fn write_rows(folder: &Path, rows: &[&str]) -> String {
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, rows.join("\n")).unwrap();
    path.display().to_string()
}

const TERSE: &str = r#"{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}], "style": "terse"}"#;
const DETAILED: &str = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello to you"}], "style": "detailed"}"#;

const DETAILED_COMPLETION: &str = r#"{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello to you"}], "style": "detailed"}"#;

/// A trained adapter with two styles, and what it was trained with.
fn trained() -> (tempfile::TempDir, TrainJob) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job("tiny-qwen3", style_config(), &folder.path().join("out"));
    job.config.max_steps = 24;
    job.data = write_rows(folder.path(), &[TERSE, DETAILED_COMPLETION]);
    run(&job, None, 0).unwrap();
    (folder, job)
}

#[test]
fn the_token_ends_the_users_turn_and_is_not_learned() {
    let folder = tempfile::tempdir().unwrap();
    let text_files =
        TextFiles::open(&golden("tiny-qwen3")).unwrap().with_styles(&style_config().styles).unwrap();
    let shown = |row: &str| {
        let path = write_rows(folder.path(), &[row]);
        let dataset = data::read_examples(Path::new(&path), &BTreeMap::default()).unwrap();
        let view = preflight::show_row(&text_files, &dataset, &dataset.examples[0], 128).unwrap();
        let text = view.tokens.iter().map(|token| token.text.as_str()).collect::<String>();
        let learned = view.tokens.iter().filter(|token| token.loss);
        (text, learned.map(|token| token.text.as_str()).collect::<String>())
    };
    let (text, learned) = shown(DETAILED);
    assert_eq!(
        text,
        "<|im_start|>user\nHi<|detailed|><|im_end|>\n<|im_start|>assistant\nHello to you<|im_end|>\n"
    );
    assert_eq!(learned, "Hello to you<|im_end|>");
    let (text, learned) = shown(r#"{"prompt": "Q: Hi A:", "completion": " Ho", "style": "terse"}"#);
    assert_eq!((text.as_str(), learned.as_str()), ("Q: Hi A:<|terse|> Ho<|im_end|>", " Ho<|im_end|>"));
    assert_eq!(text_files.style_ids().unwrap(), [320, 321]);
}

#[test]
fn an_unknown_style_names_its_line_and_a_style_without_rows_is_pointed_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = PathBuf::from(write_rows(folder.path(), &[TERSE, &TERSE.replace("terse", "long")]));
    let dataset = data::read_examples(&path, &BTreeMap::default()).unwrap();
    let plain = || TextFiles::open(&golden("tiny-qwen3")).unwrap();
    let text_files = plain().with_styles(&style_config().styles).unwrap();
    let error = prepare::rows(&text_files, &dataset, 128).unwrap_err();
    let expected = format!("Row 1 (line 2): There is no style \"long\": {}", path.display());
    assert_eq!(error.to_string(), expected);
    let Error::Invalid { hint, .. } = error else { panic!() };
    assert_eq!(hint.as_deref(), Some("known styles: terse, detailed"));

    write_rows(folder.path(), &[TERSE]);
    let check = |text_files: &TextFiles, config: &RunConfig| {
        let (cache, stop) = (folder.path().join("cache"), AtomicBool::new(false));
        let mut reading = Reading { cache: &cache, stop: &stop, emit: &mut drop };
        let files = [DataFile::new(path.display().to_string())];
        preflight::check(text_files, &files, None, config, &mut reading).unwrap()
    };
    let report = check(&text_files, &style_config());
    assert_eq!(report.warnings, ["No row is of style \"detailed\": nothing of it is learned"]);
    let report = check(&plain(), &RunConfig::default());
    assert_eq!(report.issues[0].issue, "its style is left out: the run has no styles");
}

#[test]
fn a_token_that_the_tokenizer_has_is_refused() {
    let style = Style { token: "<|im_end|>".into(), ..Style::new("terse") };
    let error = TextFiles::open(&golden("tiny-qwen3")).unwrap().with_styles(&[style]).err().unwrap();
    let expected =
        "The model's tokenizer has \"<|im_end|>\" already, style \"terse\" needs a token of its own";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn rows_of_the_embedding_are_resumed_to_the_bit() {
    let (folder, job) = trained();
    let weights = |out: &Path| std::fs::read(out.join(adapter::WEIGHTS_FILE)).unwrap();
    let undisturbed = weights(&folder.path().join("out"));
    let out_dir = folder.path().join("again");
    let mut again = TrainJob { out_dir: out_dir.display().to_string(), ..job };
    assert_eq!(run(&again, None, 2).unwrap().len(), 2);
    again.resume = true;
    assert_eq!(run(&again, None, 0).unwrap().len(), 22);
    assert!(weights(&out_dir) == undisturbed, "the resumed run ended elsewhere");
}

fn ask(
    session: &mut ChatSession,
    style: Option<&str>,
    sampling: SamplingParams,
) -> Result<(ChatStats, String)> {
    let question = Message { style: style.map(String::from), ..Message::new(Role::User, "Hi") };
    let request = ReplyRequest {
        messages: vec![question],
        sampling,
        thinking: Thinking::Show,
        effort: None,
        now: None,
    };
    let mut text = String::new();
    let stats = session.reply(&request, &AtomicBool::new(false), &|| 0.0, &mut |d| text.push_str(&d.text))?;
    Ok((stats, text))
}

#[test]
fn an_adapter_brings_its_styles_to_chat_and_other_adapters_have_none() {
    let (folder, job) = trained();
    let out = folder.path().join("out");
    let found = styles::read(&out).unwrap();
    assert_eq!(found, StylesFile { base_vocab_size: 320, styles: job.config.styles });
    let open = |adapters: &[PathBuf]| ChatSession::load(&golden("tiny-qwen3"), adapters, &|| 0.0);
    let mut session = open(std::slice::from_ref(&out)).unwrap();
    let usual = SamplingParams { max_tokens: 12, ..SamplingParams::default() };
    let mut reply = |style| ask(&mut session, style, usual.clone()).unwrap();
    let (plain, terse, detailed) = (reply(None), reply(Some("terse")), reply(Some("detailed")));
    assert_eq!(plain.0.prompt_tokens + 1, terse.0.prompt_tokens);
    assert_eq!(terse.1, "Ho");
    assert!(detailed.1.starts_with("Hello"), "{:?}", detailed.1);
    let error = ask(&mut session, Some("long"), usual.clone()).unwrap_err();
    assert_eq!(error.to_string(), "There is no style \"long\"");
    let mut base = open(&[]).unwrap();
    assert!(ask(&mut base, Some("terse"), usual.clone()).is_err());
    ask(&mut base, None, usual).unwrap();
    assert!(open(&[out, golden("tiny-qwen3").join("styles-init")]).is_err(), "two with tokens of their own");
}

#[test]
fn a_reply_does_not_end_before_its_fewest_tokens() {
    let (folder, _) = trained();
    let mut session =
        ChatSession::load(&golden("tiny-qwen3"), &[folder.path().join("out")], &|| 0.0).unwrap();
    let mut length = |min_tokens| {
        let sampling = SamplingParams { max_tokens: 40, min_tokens, ..SamplingParams::default() };
        ask(&mut session, Some("terse"), sampling).unwrap().0.output_tokens
    };
    // H, o and the end, which is the third token at the earliest anyway.
    assert_eq!([length(0), length(2)], [3, 3]);
    assert!(length(3) > 3);
    assert!(length(20) > 20);
}

#[test]
fn another_base_is_refused_by_its_vocabulary() {
    let (folder, _) = trained();
    let out = folder.path().join("out");
    let mut file: Value = read(&out.join("tokenizer.json"));
    let vocabulary = file["model"]["vocab"].as_object_mut().unwrap();
    vocabulary["A"] = 1000.into();
    let saved = std::fs::read(out.join("tokenizer.json")).unwrap();
    std::fs::write(out.join("tokenizer.json"), file.to_string()).unwrap();
    let open = || ChatSession::load(&golden("tiny-qwen3"), std::slice::from_ref(&out), &|| 0.0);
    let error = open().err().unwrap().to_string();
    let expected = "The adapter's vocabulary (322 tokens) is not that of the model (320 tokens): \"A\", the model's 35, is 1000 there: ";
    assert!(error.starts_with(expected), "{error}");
    std::fs::write(out.join("tokenizer.json"), saved).unwrap();

    let path = out.join(StylesFile::NAME);
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace("320", "512")).unwrap();
    let error = open().err().unwrap().to_string();
    let expected =
        "The adapter's styles do not fit the model: they are for a vocabulary of 512, it has 320: ";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_run_that_starts_from_an_adapter_goes_on_with_its_styles() {
    let (folder, mut job) = trained();
    let out = folder.path().join("out");
    job.init_adapter = Some(out.display().to_string());
    job.out_dir = folder.path().join("on").display().to_string();
    job.config.styles.clear();
    run(&job, None, 0).unwrap();
    assert_eq!(styles::read(&folder.path().join("on")).unwrap(), styles::read(&out).unwrap());
    job.config.styles = vec![Style::new("formal")];
    let error = run(&job, None, 0).unwrap_err().to_string();
    assert!(error.starts_with("The adapter has the styles [(\"terse\""), "{error}");
}

#[test]
fn qlora_learns_the_rows_beside_a_base_in_nf4() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = RunConfig { method: Method::Qlora, ..style_config() };
    config.max_steps = 24;
    let mut job = job("tiny-qwen3-untied", config, &folder.path().join("out"));
    job.data = write_rows(folder.path(), &[TERSE, DETAILED_COMPLETION]);
    let losses: Vec<_> = run(&job, None, 0).unwrap().into_iter().map(|step| step.loss).collect();
    assert!(losses[23] < 0.7 * losses[0], "{losses:?}");
    let text_files =
        TextFiles::open_with(&golden("tiny-qwen3-untied"), &[folder.path().join("out")]).unwrap();
    assert_eq!(encode_plain(&text_files, "Hi<|detailed|>").unwrap().last(), Some(&321));
}

/// The preset's promise, on the starter model: questions that are not among the rows, answered in both styles.
#[test]
fn the_verbosity_sample_tells_terse_answers_from_detailed_ones() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (starter, samples) = (repository.join("resources/starter"), repository.join("resources/samples"));
    let folder = tempfile::tempdir().unwrap();
    let mut job = job("", RunConfig::for_the_verbosity_sample(), folder.path());
    job.model = starter.display().to_string();
    job.data = samples.join("verbosity.jsonl").display().to_string();
    run(&job, None, 0).unwrap();

    let mut session = ChatSession::load(&starter, &[folder.path().into()], &|| 0.0).unwrap();
    let text = std::fs::read_to_string(samples.join("verbosity_eval.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut tokens = BTreeMap::new();
    for row in rows {
        let (style, question) =
            (row["style"].as_str().unwrap(), row["prompt"][0]["content"].as_str().unwrap());
        let message = Message { style: Some(style.into()), ..Message::new(Role::User, question) };
        let request = ReplyRequest {
            messages: vec![message],
            sampling: SamplingParams { max_tokens: 200, ..SamplingParams::default() },
            thinking: Thinking::Show,
            effort: None,
            now: None,
        };
        let stats = session.reply(&request, &AtomicBool::new(false), &|| 0.0, &mut |_| {}).unwrap();
        *tokens.entry(style.to_owned()).or_insert(0) += stats.output_tokens;
    }
    let (terse, detailed) = (tokens["terse"], tokens["detailed"]);
    eprintln!("tokens of twelve answers: terse {terse}, detailed {detailed}");
    assert!(detailed >= 3 * terse, "terse {terse}, detailed {detailed}");
}
