//! DPO and ORPO against TRL's trainers (tests/golden/preference.py), and their way through a run.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use lathe_engine::{
    Result, data, preflight, prepare,
    text_files::TextFiles,
    train::{self, Surroundings},
};
use lathe_protocol::{
    DatasetShape, ErrorInfo, EvalMetrics, EventBody, Machine, Method, Objective, PreferenceMetrics,
    RunConfig, StepMetrics, TokenView, TrainJob,
};
use serde_json::Value;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3")
}

fn golden(name: &str) -> PathBuf {
    model().join("preference").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn job(data: &Path, config: RunConfig, out_dir: &Path) -> TrainJob {
    let init = (config.method == Method::Lora).then(|| model().join("init").display().to_string());
    TrainJob {
        model: model().display().to_string(),
        model_name: "tiny".into(),
        data: data.display().to_string(),
        eval_data: Some(data.display().to_string()),
        out_dir: out_dir.display().to_string(),
        init_adapter: init,
        config,
        resume: false,
        device: "cpu".into(),
        force: false,
        machine: Machine::default(),
    }
}

/// The run's steps and evaluations; it is stopped by the first event that `ends` picks.
fn run(job: &TrainJob, ends: impl Fn(&EventBody) -> bool) -> Result<(Vec<StepMetrics>, Vec<EvalMetrics>)> {
    let stop = AtomicBool::new(false);
    let (mut steps, mut evals) = (Vec::new(), Vec::new());
    train::run(job, &Surroundings { clock: &|| 0.0, stop: &stop, audience: None }, &mut |event| {
        if ends(&event) {
            stop.store(true, Ordering::Relaxed);
        }
        match event {
            EventBody::Step(step) => steps.push(step),
            EventBody::Eval(eval) => evals.push(eval),
            _ => {}
        }
    })?;
    Ok((steps, evals))
}

fn never(_: &EventBody) -> bool {
    false
}

/// Holds numbers to TRL's to 1e-4 of their size, and small ones to what summed f32 log-probabilities can tell.
fn compare(what: &str, loss: f64, metrics: &PreferenceMetrics, expected: &Value) {
    let PreferenceMetrics { chosen_reward, rejected_reward, accuracy, margin, odds } = *metrics;
    let mut pairs = vec![
        ("loss", loss),
        ("chosen", chosen_reward),
        ("rejected", rejected_reward),
        ("accuracies", accuracy),
        ("margins", margin),
    ];
    if let Some(odds) = odds {
        pairs.extend([
            ("nll_loss", odds.nll_loss),
            ("log_odds_ratio", odds.log_odds_ratio),
            ("log_odds_chosen", odds.log_odds_chosen),
        ]);
    }
    for (name, found) in pairs {
        let expected = expected[name].as_f64().unwrap();
        let off = (found - expected).abs();
        assert!(off <= 1e-4 * expected.abs().max(0.1), "{what}: {name} is {found}, of TRL {expected}");
    }
}

fn check(name: &str, change: impl Fn(&mut RunConfig)) {
    let expected = &read(&golden("expected_train.json"))[name];
    let mut config: RunConfig = serde_json::from_value(expected["config"].clone()).unwrap();
    change(&mut config);
    let out_dir = tempfile::tempdir().unwrap();
    let data = golden(&format!("{}.jsonl", expected["data"].as_str().unwrap()));
    let (steps, evals) = run(&job(&data, config, out_dir.path()), never).unwrap();
    let expected_steps = expected["steps"].as_array().unwrap();
    assert_eq!(steps.len(), expected_steps.len());
    for (step, expected) in steps.iter().zip(expected_steps) {
        let what = format!("{name}, step {}", step.step);
        compare(&what, step.loss, &step.preference.unwrap(), expected);
        let norm = expected["grad_norm"].as_f64().unwrap();
        let off = (step.grad_norm / norm - 1.0).abs();
        assert!(off <= 1e-4, "{what}: gradient norm {} of TRL {norm}", step.grad_norm);
    }
    compare(&format!("{name}, held out"), evals[0].loss, &evals[0].preference.unwrap(), &expected["eval"]);
}

#[test]
fn eight_steps_of_dpo_and_orpo_equal_those_of_trl() {
    for name in ["dpo", "dpo-cut", "dpo-full", "orpo"] {
        check(name, |_| ());
    }
}

#[test]
fn checkpointing_packing_and_batches_of_another_size_change_nothing() {
    for name in ["dpo", "dpo-full", "orpo"] {
        check(name, |config| config.gradient_checkpointing = true);
    }
    // A window of four pairs, in one forward pass and in four.
    for name in ["dpo", "orpo"] {
        check(name, |config| (config.batch_size, config.grad_accum) = (4, 1));
        check(name, |config| (config.batch_size, config.grad_accum) = (1, 4));
    }
}

#[test]
fn the_tokens_of_both_sides_equal_those_of_trl() {
    let text_files = TextFiles::open(&model()).unwrap();
    let expected = read(&golden("expected_tokens.json"));
    for form in ["conversations", "implicit", "strings"] {
        let dataset = data::read_examples(&golden(&format!("{form}.jsonl")), &BTreeMap::new()).unwrap();
        let rows = prepare::rows(&text_files, &dataset, usize::MAX).unwrap().rows;
        let expected = expected[form].as_array().unwrap();
        assert_eq!(rows.len(), expected.len());
        for (row, expected) in rows.iter().zip(expected) {
            let ids = |name: &str| -> Vec<u32> { serde_json::from_value(expected[name].clone()).unwrap() };
            let rejected = row.rejected.as_ref().unwrap();
            let sides =
                [("chosen", &row.ids, &row.loss_mask), ("rejected", &rejected.ids, &rejected.loss_mask)];
            for (side, found, mask) in sides {
                let prompt = ids("prompt");
                assert_eq!(found[..prompt.len()], prompt, "{form}, row {}", row.row);
                assert_eq!(found[prompt.len()..], ids(side), "{form}, row {}", row.row);
                let answer = (0..found.len()).map(|t| t >= prompt.len());
                assert!(mask.iter().copied().eq(answer), "{form}, row {}: {mask:?}", row.row);
            }
        }
    }
}

fn dpo() -> RunConfig {
    let mut config = RunConfig {
        objective: Objective::Dpo,
        max_seq_len: 128,
        grad_accum: 2,
        max_steps: 6,
        save_steps: 2,
        learning_rate: 1e-2,
        ..RunConfig::default()
    };
    config.lora.r = 4;
    config
}

#[test]
fn a_resumed_run_has_the_same_losses_to_the_bit() {
    let data = golden("conversations.jsonl");
    for (method, objective) in
        [(Method::Lora, Objective::Dpo), (Method::Full, Objective::Dpo), (Method::Lora, Objective::Orpo)]
    {
        let mut config = RunConfig { method, objective, ..dpo() };
        config.neftune_alpha = 5.0;
        config.learning_rate = if method == Method::Full { 1e-3 } else { 1e-2 };
        let bits = |(steps, evals): (Vec<StepMetrics>, Vec<EvalMetrics>)| {
            let of_steps = steps.iter().map(|step| step.loss.to_bits()).collect::<Vec<_>>();
            (of_steps, evals.iter().map(|eval| eval.loss.to_bits()).collect::<Vec<_>>())
        };
        let out_dir = tempfile::tempdir().unwrap();
        let undisturbed = bits(run(&job(&data, config.clone(), out_dir.path()), never).unwrap());
        let out_dir = tempfile::tempdir().unwrap();
        let mut job = job(&data, config, out_dir.path());
        let third = |event: &EventBody| matches!(event, EventBody::Step(step) if step.step == 3);
        let mut found = bits(run(&job, third).unwrap());
        job.resume = true;
        // Stopped while it takes the reference anew, a resumed run has lost nothing.
        let at_once = |event: &EventBody| matches!(event, EventBody::Progress { .. });
        assert!(run(&job, at_once).unwrap().0.is_empty());
        let rest = bits(run(&job, never).unwrap());
        found.0.extend(rest.0);
        found.1.extend(rest.1);
        assert_eq!(found, undisturbed, "{method:?}, {objective:?}");
    }
}

#[test]
fn an_adapter_adds_to_the_model_it_went_on_from() {
    let data = golden("conversations.jsonl");
    let out_dir = tempfile::tempdir().unwrap();
    run(&job(&data, dpo(), out_dir.path()), never).unwrap();
    let again = tempfile::tempdir().unwrap();
    let mut job = job(&data, dpo(), again.path());
    job.init_adapter = Some(out_dir.path().display().to_string());
    let (steps, _) = run(&job, never).unwrap();
    let first = steps[0].preference.unwrap();
    assert!(first.margin.abs() < 1e-5, "{first:?}");
    assert!((steps[0].loss - std::f64::consts::LN_2).abs() < 1e-5, "{}", steps[0].loss);
}

#[test]
fn data_and_objective_that_do_not_fit_are_refused() {
    for (objective, data, message, hint) in [
        (
            Objective::Sft,
            golden("strings.jsonl"),
            "Rows of chosen and rejected answers are not for objective = \"sft\": ",
            "set objective=dpo or objective=orpo; or columns=completion=chosen, to learn the chosen answers alone",
        ),
        (
            Objective::Dpo,
            model().join("rows.jsonl"),
            "objective = \"dpo\" learns from pairs of answers: the rows are messages, without the columns chosen and rejected: ",
            "set objective=sft; or name the columns, e.g. columns=prompt=question,chosen=good,rejected=bad",
        ),
    ] {
        let out_dir = tempfile::tempdir().unwrap();
        let config = RunConfig { objective, ..dpo() };
        let error = ErrorInfo::from(run(&job(&data, config, out_dir.path()), never).unwrap_err());
        assert!(error.message.starts_with(message), "{error}");
        assert_eq!(error.hint.unwrap(), hint);
    }
    // What the hint says.
    let columns = BTreeMap::from([("completion".to_owned(), "chosen".to_owned())]);
    let config = RunConfig { objective: Objective::Sft, columns, ..dpo() };
    let out_dir = tempfile::tempdir().unwrap();
    run(&job(&golden("strings.jsonl"), config, out_dir.path()), never).unwrap();
}

#[test]
fn the_check_counts_both_sides_and_names_pairs_without_use() {
    let rows = [
        r#"{"prompt": "a", "chosen": " yes", "rejected": " no, not at all"}"#,
        r#"{"prompt": "a", "chosen": " yes", "rejected": " yes"}"#,
        r#"{"prompt": "a", "chosen": "", "rejected": " no"}"#,
        r#"{"prompt": "a very, very, very, very, very, very long one", "chosen": " yes", "rejected": " no"}"#,
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, rows.join("\n")).unwrap();
    let text_files = TextFiles::open(&model()).unwrap();
    let dataset = data::read_examples(&path, &BTreeMap::new()).unwrap();
    let config = RunConfig { max_seq_len: 12, batch_size: 1, grad_accum: 1, ..dpo() };
    let report = preflight::check(&text_files, &dataset, &config).unwrap();
    assert_eq!(report.shape, DatasetShape::Preference);
    assert_eq!((report.rows, report.rows_nothing_to_learn, report.rows_emptied_by_truncation), (4, 2, 1));
    let issues: Vec<_> = report.issues.iter().map(|issue| (issue.row, issue.issue.as_str())).collect();
    assert_eq!(issues[0], (0, "cut from 15 to 12 tokens"), "the longer side is told");
    assert_eq!(
        issues[1..3],
        [
            (1, "nothing to learn: chosen and rejected are the same"),
            (2, "nothing to learn: the chosen answer is empty"),
        ]
    );
    assert_eq!(issues[4], (3, "nothing left to learn: an answer lies past the cut at 12 tokens"));

    let view = preflight::show_row(&text_files, &dataset, 0, 12).unwrap();
    let text = |tokens: &[TokenView], learned: bool| -> String {
        tokens.iter().filter(|token| token.loss == learned).map(|token| token.text.as_str()).collect()
    };
    let rejected = view.rejected.unwrap();
    assert_eq!((text(&view.tokens, false), text(&view.tokens, true)), ("a".into(), " yes<|im_end|>".into()));
    assert_eq!(text(&rejected.tokens, true), " no, not at all<|im_end|>");
    assert_eq!((view.truncated_tokens, rejected.truncated_tokens), (0, 3));
    assert_eq!(report.tokens as usize, view.tokens.len() + 12);
    assert_eq!((report.lengths.min, report.rejected_lengths.unwrap().max), (2, 47));
}
