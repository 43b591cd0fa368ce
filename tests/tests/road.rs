//! The whole road on the starter model, as a newcomer walks it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use lathe_tests::{Lathe, repo};
use serde_json::Value;

fn answer(lathe: &Lathe, args: &[&str]) -> String {
    let events =
        lathe.json(&[&["chat", "--model", "starter", "-p", "What is the capital of France?"], args].concat());
    let stats = events.last().unwrap();
    assert_eq!(stats["kind"], "stats");
    assert_eq!(stats["finished"], true);
    events.iter().filter_map(|event| event["text"].as_str()).collect()
}

#[test]
fn a_fine_tune_of_the_starter_changes_how_it_answers() {
    let lathe = Lathe::new();
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let held_out = repo("resources/samples/pirate_eval.jsonl").display().to_string();
    let before = answer(&lathe, &[]);
    assert!(before.contains("Paris") && !before.contains("matey"), "{before}");
    let loss = |args: &[&str]| {
        let args = [&["eval", "--model", "starter", "--data", &held_out], args].concat();
        let answer = lathe.json(&args);
        answer[0]["loss"].as_f64().unwrap()
    };
    let base_loss = loss(&[]);

    let report = &lathe.json(&["data", "check", "--model", "starter", &data])[0];
    assert_eq!(report["rows"], 166);
    assert_eq!(report["rows_nothing_to_learn"], 0);

    let mut args =
        vec!["train", "--model", "starter", "--data", &data, "--eval-data", &held_out, "--name", "pirate"];
    for setting in
        ["learning_rate=3e-3", "epochs=8", "max_seq_len=256", "batch_size=1", "grad_accum=1", "save_steps=0"]
    {
        args.extend(["--set", setting]);
    }
    let events = lathe.json(&args);
    let done = events.last().unwrap();
    assert_eq!(done["kind"], "done");
    let chart = std::fs::read(done["chart"].as_str().unwrap()).unwrap();
    assert!(chart.starts_with(b"\x89PNG"));

    let after = answer(&lathe, &["--adapter", "pirate"]);
    assert!(after.contains("matey"), "{after}");
    assert_eq!(answer(&lathe, &[]), before, "the base is as it was");
    let tuned_loss = loss(&["--adapter", "pirate"]);
    assert!(tuned_loss < 0.5 * base_loss, "held-out loss {base_loss} became {tuned_loss}");
}

#[test]
fn dpo_makes_the_starter_prefer_what_was_chosen_on_questions_held_out() {
    let lathe = Lathe::new();
    let data = repo("resources/samples/concise.jsonl").display().to_string();
    let held_out = repo("resources/samples/concise_eval.jsonl").display().to_string();
    // By the mean log-probability of each answer, for which length counts nothing.
    let preferred = |args: &[&str]| {
        let eval = ["eval", "--model", "starter", "--data", &held_out, "--set", "objective=orpo"];
        lathe.json(&[&eval, args].concat())[0]["preference"]["accuracy"].as_f64().unwrap()
    };
    let before = preferred(&[]);
    assert!(before < 0.5, "{before}");

    let mut args =
        vec!["train", "--model", "starter", "--data", &data, "--eval-data", &held_out, "--name", "concise"];
    for setting in
        ["objective=dpo", "learning_rate=5e-4", "epochs=4", "max_seq_len=256", "grad_accum=1", "eval_steps=1"]
    {
        args.extend(["--set", setting]);
    }
    let events = lathe.json(&args);
    let rewards = |kind: &str| -> Vec<f64> {
        let of_kind = events.iter().filter(|event| event["kind"] == kind);
        of_kind.map(|event| event["preference"]["accuracy"].as_f64().unwrap()).collect()
    };
    let (steps, evals) = (rewards("step"), rewards("eval"));
    assert_eq!((steps.len(), steps[0]), (evals.len(), 0.0), "nothing is ahead of itself");
    assert!(evals[0] < 0.5 && *evals.last().unwrap() > 0.9, "{evals:?}");
    let done = events.last().unwrap();
    assert!(done["preference"]["margin"].as_f64().unwrap() > 1.0, "{done}");

    let after = preferred(&["--adapter", "concise"]);
    assert!(after > before + 0.2, "{before} became {after}");
    let run = lathe.json(&["runs", "show", done["run"].as_str().unwrap()]);
    let recorded = run[0]["steps"].as_array().unwrap();
    assert_eq!(recorded.last().unwrap()["step"]["preference"]["accuracy"], *steps.last().unwrap());

    // Pairs are no conversations, and conversations no pairs.
    let stderr = lathe.fails(1, &["train", "--model", "starter", "--data", &data]);
    assert!(stderr.contains("set objective=dpo or objective=orpo"), "{stderr}");
    let pirate = repo("resources/samples/pirate.jsonl").display().to_string();
    let stderr =
        lathe.fails(1, &["train", "--model", "starter", "--data", &pirate, "--set", "objective=dpo"]);
    assert!(stderr.contains("without the columns chosen and rejected"), "{stderr}");
}

#[test]
fn an_adapter_moves_between_libraries_and_seeds_another_run() {
    let lathe = Lathe::new();
    let adapter = repo("tests/golden/data/tiny-qwen3/adapter").display().to_string();
    let model = repo("tests/golden/data/tiny-qwen3").display().to_string();
    let rows = repo("tests/golden/data/tiny-qwen3/rows.jsonl").display().to_string();
    lathe.json(&["adapters", "import", &adapter, "--name", "golden"]);
    let shown = &lathe.json(&["adapters", "show", "golden"])[0];
    assert_eq!(shown["r"], 4, "{shown}");
    let out = lathe.path("logits.safetensors").display().to_string();
    lathe.json(&["logits", "--model", &model, "--adapter", "golden", "--ids", "1,2,3", "--out", &out]);
    assert!(std::fs::metadata(&out).unwrap().len() > 3 * 320 * 4);
    let events = lathe.json(&[
        "train",
        "--model",
        &model,
        "--data",
        &rows,
        "--init-adapter",
        "golden",
        "--max-steps",
        "2",
    ]);
    assert_eq!(events.last().unwrap()["completed"], true);
    lathe.json(&["adapters", "rm", "golden"]);
    let stderr = lathe.fails(1, &["adapters", "show", "golden"]);
    assert!(stderr.contains("golden"), "{stderr}");
    // An adapter of another base is refused by name and numbers.
    let stderr = lathe.fails(1, &["chat", "--model", "starter", "--adapter", &adapter, "-p", "hi"]);
    assert!(stderr.contains("does not fit") || stderr.contains("no place for"), "{stderr}");
}

#[test]
fn a_model_folder_is_imported_verified_and_removed() {
    let lathe = Lathe::new();
    let sharded = repo("tests/golden/data/tiny-qwen3-untied").display().to_string();
    lathe.json(&["models", "import", &sharded, "--name", "test/sharded"]);
    let names = |lathe: &Lathe| -> Vec<Value> {
        let answer = lathe.json(&["models", "list"]);
        answer[0]["models"].as_array().unwrap().iter().map(|model| model["name"].clone()).collect()
    };
    assert!(names(&lathe).contains(&"test/sharded".into()));
    let details = &lathe.json(&["models", "show", "test/sharded"])[0];
    assert_eq!(details["num_layers"], 3, "{details}");
    lathe.json(&["models", "verify", "test/sharded"]);
    let chat = lathe.json(&["chat", "--model", "sharded", "-p", "hi", "--max-tokens", "3"]);
    assert_eq!(chat.last().unwrap()["kind"], "stats");

    // One byte of a shard is flipped: the chat would not notice, verifying does and names the file.
    let snapshots = lathe.path("hub/models--test--sharded/snapshots");
    let snapshot = std::fs::read_dir(snapshots).unwrap().next().unwrap().unwrap().path();
    let shard = snapshot.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(std::fs::canonicalize(&shard).unwrap(), bytes).unwrap();
    let output = lathe.run(&["models", "verify", "test/sharded"]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success() && text.contains("model-00002-of-00003.safetensors"), "{text}");

    lathe.json(&["models", "rm", "test/sharded"]);
    assert!(!names(&lathe).contains(&"test/sharded".into()));
}

#[test]
fn bad_data_is_refused_with_row_and_field_and_nothing_is_left_behind() {
    let lathe = Lathe::new();
    for (file, expected) in [
        ("bad_json_line", "line 3"),
        ("unknown_role", "messages[1].role: unknown role \"narrator\""),
        ("empty_assistant", "line 2), messages[1].content"),
        ("not_utf8", "line 2): not UTF-8"),
        ("empty", "empty (0 bytes)"),
        ("nothing_to_learn", "Nothing to learn"),
    ] {
        let data = repo(&format!("tests/data/bad/{file}.jsonl")).display().to_string();
        let out = lathe.path("out").display().to_string();
        for args in [
            vec!["data", "check", "--model", "starter", &data],
            vec!["train", "--model", "starter", "--data", &data, "--out", &out],
        ] {
            let stderr = lathe.fails(1, &args);
            assert!(stderr.contains(expected), "{args:?}: {stderr}");
            assert!(!lathe.path("out").exists(), "{file} left a folder");
        }
    }
}
