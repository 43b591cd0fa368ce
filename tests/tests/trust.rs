//! What a run and an adapter know of where they come from, as real processes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use lathe_tests::{Lathe, lines, losses, program, repo};
use serde_json::Value;

/// A short run with an evaluation, samples and dropout, on a copy of the sample data that a test may change.
fn train(lathe: &Lathe) -> (Vec<Value>, PathBuf) {
    let data = lathe.path("my data.jsonl");
    std::fs::copy(repo("resources/samples/pirate.jsonl"), &data).unwrap();
    let data_arg = data.display().to_string();
    let mut args =
        vec!["train", "--model", "starter", "--data", &data_arg, "--max-steps", "6", "--name", "first"];
    for set in [
        "max_seq_len=64",
        "lora.r=4",
        "lora.dropout=0.1",
        "seed=7",
        "eval_ratio=0.1",
        "eval_steps=3",
        "save_steps=3",
        "learning_rate=0.00123",
        "sample_prompts=It's me | Hi, you",
    ] {
        args.extend(["--set", set]);
    }
    (lathe.json(&args), data)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn reproduction(lathe: &Lathe) -> Value {
    lathe.json(&["runs", "show", "first", "--reproduce"]).pop().unwrap()
}

/// Runs a command line as a shell would, with the program in place of `lathe`.
fn in_shell(lathe: &Lathe, command: &str) -> Vec<Value> {
    let line = format!("{}{} --json", program().display(), command.strip_prefix("lathe").unwrap());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &line])
        .env("LATHE_DATA_DIR", lathe.path("data"))
        .env("HF_HUB_CACHE", lathe.path("hub"));
    let output = shell.current_dir("/").output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    lines(&output.stdout)
}

#[test]
fn the_printed_command_gives_the_same_losses_and_says_what_has_changed() {
    let lathe = Lathe::new();
    let (events, data) = train(&lathe);
    let found = reproduction(&lathe);
    assert_eq!(found["warnings"], serde_json::json!([]));
    let command = found["command"].as_str().unwrap();
    assert!(!command.contains("grad_accum"), "a default is not written: {command}");
    let again = in_shell(&lathe, command);
    assert_eq!(losses(&again).len(), 6);
    assert_eq!(losses(&again), losses(&events));
    let evals = |events: &[Value]| -> Vec<Value> {
        events.iter().filter(|event| event["kind"] == "eval").cloned().collect()
    };
    assert_eq!(evals(&again), evals(&events));
    // Also without the environment that told where the data folder is.
    let mut bare = lathe.command(&["runs", "show", "first", "--reproduce", "--data-dir"]);
    let output = bare.arg(lathe.path("data")).env_remove("LATHE_DATA_DIR").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.trim_end().ends_with(&format!("--data-dir {}", lathe.path("data").display())), "{text}");

    let mut text = std::fs::read_to_string(&data).unwrap();
    text.push('\n');
    std::fs::write(&data, text).unwrap();
    let warnings = reproduction(&lathe)["warnings"].to_string();
    assert!(warnings.contains("The data has changed"), "{warnings}");
    std::fs::remove_file(&data).unwrap();
    let output = lathe.run(&["runs", "show", "first", "--reproduce"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("warning: The data is gone: ") && output.status.success(), "{stderr}");
    let out_dir = lathe.json(&["runs", "show", "first"])[0]["run"]["out_dir"].as_str().unwrap().to_owned();
    std::fs::remove_file(Path::new(&out_dir).join("provenance.json")).unwrap();
    let warnings = reproduction(&lathe)["warnings"].to_string();
    assert!(warnings.contains("provenance.json is missing or damaged"), "{warnings}");
}

#[test]
fn a_run_on_several_files_is_done_again_with_their_weights() {
    let lathe = Lathe::new();
    let [data, more] = ["a.jsonl", "b c.jsonl"].map(|name| lathe.path(name).display().to_string());
    for (path, sample) in [(&data, "pirate"), (&more, "verbosity")] {
        std::fs::copy(repo(&format!("resources/samples/{sample}.jsonl")), path).unwrap();
    }
    let weighted = format!("{more}:0.5");
    let mut args = vec!["train", "--model", "starter", "--data", &data, "--data", &weighted];
    args.extend(["--max-steps", "3", "--name", "first", "--set", "max_seq_len=64"]);
    let events = lathe.json(&args);
    let found = reproduction(&lathe);
    assert_eq!(found["warnings"], serde_json::json!([]));
    let command = found["command"].as_str().unwrap();
    assert!(command.contains(&format!("--data {data} --data '{weighted}'")), "{command}");
    assert_eq!(losses(&in_shell(&lathe, command)), losses(&events));
    let out_dir = lathe.json(&["runs", "show", "first"])[0]["run"]["out_dir"].as_str().unwrap().to_owned();
    let origins = read(&Path::new(&out_dir).join("provenance.json"));
    let paths: Vec<_> = origins["data"].as_array().unwrap().iter().map(|file| file["path"].clone()).collect();
    assert_eq!(paths, [data.as_str(), &more]);
    std::fs::write(&more, "{\"text\": \"Other\"}").unwrap();
    let warnings = reproduction(&lathe)["warnings"].to_string();
    assert!(warnings.contains("The data has changed") && warnings.contains("b c.jsonl"), "{warnings}");
}

#[test]
fn an_adapter_knows_where_it_comes_from_and_refuses_another_base() {
    let lathe = Lathe::new();
    train(&lathe);
    let adapter = lathe.json(&["adapters", "show", "first"]).pop().unwrap();
    let folder = PathBuf::from(adapter["path"].as_str().unwrap());
    let origins = read(&folder.join("provenance.json"));
    assert_eq!(adapter["origins"], origins);
    let metrics = &origins["metrics"];
    assert_eq!(metrics["step"], 6);
    assert!(metrics["token_accuracy"].is_f64() && metrics["loss"].is_f64(), "{metrics}");
    assert_eq!(origins["data"].as_array().unwrap().len(), 1);
    assert_eq!(origins["config"]["seed"], 7);
    // Its checkpoints know it too.
    let run = lathe.json(&["runs", "show", "first"]).pop().unwrap();
    let checkpoint = PathBuf::from(run["checkpoints"][0].as_str().unwrap());
    assert_eq!(read(&checkpoint.join("provenance.json"))["metrics"]["step"], 3);

    // The same model with other weights: its last tensor's last byte.
    let other = lathe.path("other");
    let starter = run_model(&lathe);
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(&starter).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, other.join(file.file_name().unwrap())).unwrap();
    }
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let other = other.display().to_string();
    let chat = ["chat", "--model", &other, "--adapter", "first", "-p", "Hi", "--max-tokens", "2"];
    let stderr = lathe.fails(1, &chat);
    assert!(stderr.contains("trained on another base: the same shapes, other weights: "), "{stderr}");
    assert!(stderr.contains("--force"), "{stderr}");
    let forced = lathe.run(&[&chat[..], &["--force"]].concat());
    let stderr = String::from_utf8_lossy(&forced.stderr);
    assert!(forced.status.success() && stderr.contains("warning: Forced: "), "{stderr}");

    // A run from it is refused, and, forced, remembers that: so does the command that does it again.
    let data = lathe.path("my data.jsonl").display().to_string();
    let mut args =
        vec!["train", "--model", &other, "--data", &data, "--init-adapter", "first", "--max-steps", "1"];
    args.extend(["--set", "max_seq_len=64", "--name", "second"]);
    assert!(lathe.fails(1, &args).contains("trained on another base"));
    args.push("--force");
    lathe.json(&args);
    let second = lathe.json(&["adapters", "show", "second"]).pop().unwrap();
    assert!(second["origins"]["forced"][0].as_str().unwrap().contains("other weights"), "{second}");
    let again = lathe.json(&["runs", "show", "second", "--reproduce"]).pop().unwrap();
    assert!(again["command"].as_str().unwrap().ends_with(" --force"), "{again}");

    // Other shapes stay impossible.
    let tiny = repo("tests/golden/data/tiny-llama").display().to_string();
    let logits = ["logits", "--model", &tiny, "--adapter", "first", "--ids", "1", "--out"];
    let out = lathe.path("out.safetensors").display().to_string();
    let stderr = lathe.fails(1, &[&logits[..], &[&out]].concat());
    assert!(stderr.contains("hidden_size ") && stderr.contains(" there, "), "{stderr}");
    let stderr = lathe.fails(1, &[&logits[..], &[&out, "--force"]].concat());
    assert!(stderr.contains("does not fit") && stderr.contains("--force cannot mend shapes"), "{stderr}");

    // One that came from elsewhere says nothing of its base.
    std::fs::remove_file(folder.join("provenance.json")).unwrap();
    let output =
        lathe.run(&["chat", "--model", "starter", "--adapter", "first", "-p", "Hi", "--max-tokens", "2"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Base not verified"));
    let shown = String::from_utf8(lathe.run(&["adapters", "show", "first"]).stdout).unwrap();
    assert!(shown.contains("starter, not verified"), "{shown}");
}

/// The folder of the starter model.
fn run_model(lathe: &Lathe) -> PathBuf {
    lathe.json(&["models", "show", "starter"])[0]["path"].as_str().unwrap().into()
}

#[test]
fn metrics_are_exported_as_they_were_recorded() {
    let lathe = Lathe::new();
    let (events, _) = train(&lathe);
    let out = lathe.path("logs").display().to_string();
    let export = |format: &str| {
        let answer =
            lathe.json(&["runs", "export", "first", "--format", format, "--out", &out]).pop().unwrap();
        assert_eq!((&answer["steps"], &answer["evals"]), (&6.into(), &2.into()));
        PathBuf::from(answer["paths"][0].as_str().unwrap())
    };
    let csv = std::fs::read_to_string(export("csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.split_terminator("\r\n").map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 7);
    let column = |name: &str| rows[0].iter().position(|column| *column == name).unwrap();
    let found: Vec<(u64, String)> = rows[1..]
        .iter()
        .map(|row| {
            (row[column("step")].parse().unwrap(), row[column("loss")].parse::<f64>().unwrap().to_string())
        })
        .collect();
    let expected: Vec<(u64, String)> = losses(&events)
        .into_iter()
        .map(|(step, loss)| (step, loss.parse::<f64>().unwrap().to_string()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(rows[2][column("eval_loss")], "");
    let eval = events.iter().find(|event| event["kind"] == "eval").unwrap();
    assert_eq!(serde_json::json!(rows[3][column("eval_loss")].parse::<f64>().unwrap()), eval["loss"]);

    // Twice the same file: it is replaced.
    let path = export("tensorboard");
    assert_eq!(path, export("tensorboard"));
    assert!(path.starts_with(lathe.path("logs/first")), "{}", path.display());
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    assert!(
        lathe
            .fails(1, &["runs", "export", "none", "--format", "csv", "--out", &out])
            .contains("No run named")
    );
}

#[test]
fn metrics_of_pairs_are_exported_by_trls_names() {
    let lathe = Lathe::new();
    let data = repo("resources/samples/concise.jsonl").display().to_string();
    let args = ["train", "--model", "starter", "--data", &data, "--max-steps", "2", "--name", "pairs"];
    let events = lathe.json(&[&args[..], &["--set", "objective=orpo", "--set", "eval_ratio=0.1"]].concat());
    let out = lathe.path("logs").display().to_string();
    let answer = lathe.json(&["runs", "export", "pairs", "--format", "csv", "--out", &out]).pop().unwrap();
    let csv = std::fs::read_to_string(answer["paths"][0].as_str().unwrap()).unwrap();
    let rows: Vec<Vec<&str>> = csv.split_terminator("\r\n").map(|line| line.split(',').collect()).collect();
    let found = |row: usize, name: &str| {
        let column = rows[0].iter().position(|column| *column == name).unwrap();
        serde_json::json!(rows[row][column].parse::<f64>().unwrap())
    };
    let of = |kind: &str| events.iter().rfind(|event| event["kind"] == kind).unwrap()["preference"].clone();
    for (prefix, metrics) in [("", of("step")), ("eval_", of("eval"))] {
        let name = |name: &str| format!("{prefix}{name}");
        assert_eq!(found(2, &name("rewards/margins")), metrics["margin"]);
        assert_eq!(found(2, &name("rewards/accuracies")), metrics["accuracy"]);
        assert_eq!(found(2, &name("nll_loss")), metrics["odds"]["nll_loss"]);
    }
    lathe.json(&["runs", "export", "pairs", "--format", "tensorboard", "--out", &out]);
    let folder = std::fs::read_dir(lathe.path("logs/pairs")).unwrap().next().unwrap().unwrap().path();
    let file = std::fs::read(folder).unwrap();
    for tag in ["train/rewards/chosen", "train/log_odds_ratio", "eval/rewards/rejected"] {
        assert!(file.windows(tag.len()).any(|bytes| bytes == tag.as_bytes()), "{tag}");
    }
}
