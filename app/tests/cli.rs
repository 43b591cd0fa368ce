//! The command line's contract, on the real program with the starter model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

/// A machine of its own: data folder, model cache, working folder.
struct Bench {
    dir: tempfile::TempDir,
}

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lathe(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("LATHE_DATA_DIR", self.path("data"))
            .env("HF_HUB_CACHE", self.path("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.lathe(args).output().unwrap())
    }

    fn ok(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, Some(0), "{args:?}: {said:?}");
        said
    }

    fn fails(&self, code: i32, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
        said
    }

    /// Sample data in the working folder, under short names.
    fn with_samples(self) -> Self {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/samples");
        for name in ["pirate.jsonl", "pirate_eval.jsonl", "verbosity.jsonl"] {
            fs::copy(samples.join(name), self.path(name)).unwrap();
        }
        self
    }
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

const TRAIN: [&str; 9] = [
    "train",
    "--model",
    "starter",
    "--data",
    "pirate.jsonl",
    "--set",
    "max_seq_len=128",
    "--set",
    "learning_rate=2e-3",
];

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    TRAIN.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn help_and_usage_errors_follow_the_contract() {
    let bench = Bench::new();
    let help = bench.ok(&["--help"]).stdout;
    for command in ["quickstart", "hardware", "models", "data", "train", "runs", "adapters", "chat", "doctor"]
    {
        assert!(help.contains(command), "{command}");
    }
    assert!(!help.contains("worker"));
    bench.fails(2, &["no-such-command"]);
    bench.fails(2, &["train"]);
    bench.fails(2, &["train", "--resume"]);
    bench.fails(2, &["hardware", "--device", "cpu", "--no-such-flag"]);
    assert!(!bench.path("data").exists(), "looking at help leaves nothing behind");
}

#[test]
fn config_mistakes_are_usage_errors_that_name_the_way_out() {
    let bench = Bench::new().with_samples();
    let said = bench.fails(2, &train(&["--set", "learning_rat=1"]));
    assert!(said.stderr.contains("error: Unknown config key \"learning_rat\""), "{said:?}");
    assert!(said.stderr.contains("hint: did you mean learning_rate?"), "{said:?}");
    let said = bench.fails(2, &train(&["--set", "dtype=bf16"]));
    assert!(said.stderr.contains("is not supported by this version"), "{said:?}");
    let said = bench.fails(2, &train(&["--set", "batch_size=0", "--json"]));
    let lines = json_lines(&said.stdout);
    assert_eq!((lines.len(), &lines[0]["kind"], &lines[0]["code"]), (1, &"error".into(), &"usage".into()));
    let said = bench.fails(1, &train(&["--device", "cuda:0"]));
    assert!(said.stderr.contains("This machine has no device cuda:0"), "{said:?}");
    assert!(!bench.path("data/runs").exists(), "nothing half-written");
}

#[test]
fn missing_things_are_named_with_near_ones() {
    let bench = Bench::new().with_samples();
    let said = bench.fails(1, &["chat", "--model", "startr", "-p", "hi"]);
    assert!(said.stderr.contains("hint: did you mean starter?"), "{said:?}");
    let said = bench.fails(1, &["data", "check", "--model", "starter", "pirat.jsonl"]);
    assert!(said.stderr.contains("did you mean pirate.jsonl"), "{said:?}");
    let said = bench.fails(1, &["chat", "--model", "starter", "--adapter", "nope", "-p", "hi", "--json"]);
    let last: Value = serde_json::from_str(said.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["kind"], "error");
    assert_eq!(last["code"], "not_found");
    assert!(last["message"].as_str().unwrap().contains("nope") && last["hint"].is_string(), "{last}");
    bench.fails(1, &["runs", "show", "nope"]);
    bench.fails(1, &["adapters", "rm", "nope"]);
    let said = bench.fails(1, &["train", "--resume", "--out", "nowhere"]);
    assert!(said.stderr.contains("No run to resume"), "{said:?}");
    assert!(!bench.path("nowhere").exists());
}

#[test]
fn reports_are_one_json_object() {
    let bench = Bench::new().with_samples();
    let report = |args: &[&str]| {
        let lines = json_lines(&bench.ok(args).stdout);
        assert_eq!(lines.len(), 1, "{args:?}");
        lines[0].clone()
    };
    assert!(report(&["hardware", "--json"])["ram_total_bytes"].as_u64().unwrap() > 0);
    assert_eq!(report(&["models", "list", "--json"])["models"][0]["name"], "starter");
    assert!(report(&["models", "show", "starter", "--json"])["num_layers"].as_u64().unwrap() > 0);
    assert_eq!(report(&["models", "verify", "starter", "--json"])["problems"], Value::Array(vec![]));
    let checked = report(&["data", "check", "--model", "starter", "pirate.jsonl", "--json"]);
    assert!(checked["loss_tokens"].as_u64().unwrap() > 100);
    let row = report(&["data", "show", "--model", "starter", "pirate.jsonl", "--row", "1", "--json"]);
    assert!(row["tokens"].as_array().unwrap().iter().any(|token| token["loss"] == true));
    let eval = report(&["eval", "--model", "starter", "--data", "pirate_eval.jsonl", "--json"]);
    assert!(eval["perplexity"].as_f64().unwrap() > 1.0);
    bench.ok(&["logits", "--model", "starter", "--ids", "1,2,3", "--out", "l.safetensors"]);
    assert!(bench.path("l.safetensors").exists());
    let doctor = bench.ok(&["doctor"]).stdout;
    assert!(doctor.contains("ok    worker"), "{doctor}");
}

#[test]
fn a_run_that_diverges_names_its_rows_and_goes_on_as_it_is_told() {
    let bench = Bench::new().with_samples();
    // So wary that the first loss above the mean is a spike.
    let wary = ["--json", "--set", "spike_window=4", "--set", "spike_threshold=0.001", "--max-steps", "20"];
    let said = bench.fails(1, &train(&[&wary[..], &["--set", "save_steps=1", "--name", "wary"]].concat()));
    let lines = json_lines(&said.stdout);
    let divergence = of_kind(&lines, "diverged")[0];
    let step = divergence["step"].as_u64().unwrap();
    assert!(divergence["resumes_from"].as_u64().unwrap() < step - 1, "{divergence}");
    let places = divergence["rows"].as_array().unwrap();
    let place = format!("{} (line {})", places[0]["row"], places[0]["line"]);
    assert!(said.stderr.contains(&format!("Training diverged at step {step}: ")), "{said:?}");
    assert!(said.stderr.contains(&place) && said.stderr.contains("--skip-rows"), "{said:?}");
    let shown = bench.ok(&["runs", "show", "wary"]).stdout;
    assert!(shown.contains("diverged") && shown.contains(&place), "{shown}");

    bench.fails(2, &["runs", "resume", "wary", "--skip-rows", "--ignore-spikes"]);
    // The next spike may end it again, elsewhere.
    bench.run(&["runs", "resume", "wary", "--skip-rows"]);
    bench.ok(&["runs", "resume", "wary", "--ignore-spikes"]);
    let lines = json_lines(&bench.ok(&["runs", "show", "wary", "--json"]).stdout);
    assert_eq!(lines[0]["run"]["status"], "completed");
    assert_eq!(lines[0]["config"]["spike_threshold"], 0.0);
    let skipped = lines[0]["config"]["skip_rows"].as_array().unwrap();
    assert!(places.iter().all(|place| skipped.contains(&place["row"])), "{skipped:?}");
}

#[test]
fn a_run_is_estimated_for_models_here_and_of_the_catalog() {
    let bench = Bench::new();
    let estimate = |more: &[&str]| -> Value {
        let args = [&["estimate", "--json"], more].concat();
        serde_json::from_str(&bench.ok(&args).stdout).unwrap()
    };
    let starter = estimate(&["--model", "starter", "--set", "lora.r=8"]);
    let parts = starter["cpu"]["parts"].as_object().unwrap();
    let sum: u64 = parts.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(starter["cpu"]["total_bytes"], sum);
    assert_eq!(starter["cards"][0]["fit"], "Fits");
    let bigger = estimate(&["--model", "starter", "--set", "lora.r=16"]);
    assert_eq!(bigger["cpu"]["parts"]["adapter"], 2 * parts["adapter"].as_u64().unwrap());
    let gpt_oss = estimate(&["--model", "openai/gpt-oss-120b"]);
    assert_eq!(gpt_oss["cards"][0]["fit"], "Does not fit");
    assert_eq!(gpt_oss["cards"][0]["longest_row"], 0);
    let text = bench.ok(&["estimate", "--model", "starter"]).stdout;
    assert!(text.contains("In all") && text.contains("141 GB"), "{text}");
    bench.fails(1, &["estimate", "--model", "no/such-model"]);
    bench.fails(2, &["estimate", "--model", "starter", "--set", "lora.r=0"]);
}

#[test]
fn styles_are_trained_kept_shown_and_asked_for() {
    let bench = Bench::new().with_samples();
    fs::write(
        bench.path("run.toml"),
        "max_seq_len = 128\nmax_steps = 2\n[[styles]]\nname = \"terse\"\ntoken = \"[T]\"\nmax_new_tokens = 3\n",
    )
    .unwrap();
    let train =
        ["train", "--model", "starter", "--data", "verbosity.jsonl", "--name", "styled", "--out", "out"];
    let more = ["--config", "run.toml", "--style", "terse", "--style", "detailed=[D]"];
    bench.ok(&[&train[..], &more].concat());
    let shown = bench.ok(&["adapters", "show", "styled"]).stdout;
    assert!(shown.contains("Style         terse  [T]  at most 3 tokens\n"), "{shown}");
    assert!(shown.contains("Style         detailed  [D]\n"), "{shown}");

    let chat = ["chat", "--model", "starter", "--adapter", "styled", "-p", "Tell me a story", "--json"];
    let output_tokens = |more: &[&str]| {
        let lines = json_lines(&bench.ok(&[&chat[..], more].concat()).stdout);
        of_kind(&lines, "stats")[0]["output_tokens"].as_u64().unwrap()
    };
    assert!(output_tokens(&["--style", "terse"]) <= 3);
    let told = ["--style", "terse", "--min-tokens", "8", "--max-tokens", "9"];
    assert_eq!(output_tokens(&told), 9, "what is said wins over the style");
    let said = bench.fails(1, &[&chat[..], &["--style", "formal"]].concat());
    assert!(said.stderr.contains("No style \"formal\": known are terse, detailed"), "{said:?}");
    let said = bench.fails(1, &["chat", "--model", "starter", "-p", "Hi", "--style", "terse"]);
    assert!(said.stderr.contains("without an adapter there are no styles"), "{said:?}");
}

#[test]
fn a_run_streams_its_events_and_leaves_an_adapter_to_talk_with() {
    let bench = Bench::new().with_samples();
    let more = ["--eval-data", "pirate_eval.jsonl", "--max-steps", "6", "--set", "save_steps=3"];
    let said = bench.ok(&train(&[&more[..], &["--out", "out", "--name", "me", "--json"]].concat()));
    let lines = json_lines(&said.stdout);
    let steps = of_kind(&lines, "step");
    assert_eq!(steps.len(), 6);
    for field in ["step", "loss", "grad_norm", "lr", "tokens_per_second", "loss_tokens"] {
        assert!(steps[0][field].is_number(), "{field}");
    }
    assert_eq!(of_kind(&lines, "eval").len(), 1);
    assert_eq!(of_kind(&lines, "checkpoint").len(), 2);
    let done = lines.last().unwrap();
    assert_eq!(
        (&done["kind"], &done["completed"], &done["adapter"]),
        (&"done".into(), &true.into(), &"me".into())
    );
    for name in ["adapter_config.json", "adapter_model.safetensors", "lathe.json", "run.toml", "loss.png"] {
        assert!(bench.path("out").join(name).exists(), "{name}");
    }

    // The same folder again is refused, a finished run is not resumed.
    let said = bench.fails(1, &train(&["--out", "out"]));
    assert!(said.stderr.contains("holds a run already"), "{said:?}");
    bench.fails(1, &["train", "--resume", "--out", "out"]);
    bench.fails(2, &train(&["--name", "me", "--max-steps", "1"]));

    // From its weights, another run; by its name and by its folder, a chat.
    bench.ok(&train(&["--init-adapter", "me", "--max-steps", "1", "--name", "again"]));
    for adapter in ["me", "out"] {
        let said = bench.ok(&["chat", "--model", "starter", "--adapter", adapter, "-p", "Hi", "--json"]);
        let lines = json_lines(&said.stdout);
        assert!(!of_kind(&lines, "delta").is_empty());
        let stats = lines.last().unwrap();
        assert_eq!(stats["kind"], "stats");
        for field in ["load_seconds", "ttft_seconds", "prompt_tokens", "output_tokens", "tokens_per_second"] {
            assert!(stats[field].is_number(), "{field}");
        }
    }
    let adapters = json_lines(&bench.ok(&["adapters", "list", "--json"]).stdout);
    assert_eq!(adapters[0]["adapters"].as_array().unwrap().len(), 2);
    bench.ok(&["adapters", "show", "me"]);
    bench.ok(&["adapters", "rm", "me"]);
    bench.ok(&["adapters", "import", "out", "--name", "back"]);
    bench.ok(&["runs", "show", "again"]);
    bench.ok(&["runs", "rm", "again"]);
    assert_eq!(
        json_lines(&bench.ok(&["runs", "list", "--json"]).stdout)[0]["runs"].as_array().unwrap().len(),
        1
    );
}

#[test]
fn a_chat_reads_lines_and_forgets_on_demand() {
    let bench = Bench::new();
    let mut chat =
        bench.lathe(&["chat", "--model", "starter", "--json"]).stdin(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"Hello\n\nHow are you?\n/reset\nHello\n/exit\nnever\n").unwrap();
    let said = said(chat.wait_with_output().unwrap());
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines = json_lines(&said.stdout);
    let prompts: Vec<u64> =
        of_kind(&lines, "stats").iter().map(|stats| stats["prompt_tokens"].as_u64().unwrap()).collect();
    assert_eq!(prompts.len(), 3);
    assert!(prompts[1] > prompts[0], "the conversation is kept: {prompts:?}");
    assert_eq!(prompts[2], prompts[0], "and forgotten: {prompts:?}");
    let said = bench.fails(1, &["chat", "--model", "starter", "--effort", "low", "-p", "hi"]);
    assert!(said.stderr.contains("no reasoning effort"), "{said:?}");
    bench.fails(2, &["chat", "--model", "starter", "--temperature=-1", "-p", "hi"]);
}

/// Starts a long run and waits for its third step. Returns the process, its id line read on.
#[cfg(unix)]
fn start_long_run(bench: &Bench, out: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let args = train(&["--max-steps", "4000", "--set", "save_steps=2", "--out", out, "--json"]);
    let mut child = bench.lathe(&args).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"step\":3,") {
        line.clear();
        assert!(
            stdout.read_line(&mut line).unwrap() > 0,
            "{}",
            said(child.wait_with_output().unwrap()).stderr
        );
    }
    (child, stdout)
}

#[cfg(unix)]
fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

#[cfg(unix)]
fn status_of(bench: &Bench) -> String {
    let runs = json_lines(&bench.ok(&["runs", "list", "--json"]).stdout);
    runs[0]["runs"][0]["status"].as_str().unwrap().to_owned()
}

#[cfg(unix)]
/// The workers whose parent is `pid`.
#[cfg(unix)]
#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_run_goes_on_later() {
    let bench = Bench::new().with_samples();
    let (mut child, mut stdout) = start_long_run(&bench, "out");
    signal(child.id(), "-INT");
    let mut last = String::new();
    for line in (&mut stdout).lines() {
        last = line.unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "{last}");
    let done: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&done["kind"], &done["completed"]), (&"done".into(), &false.into()));
    let stopped_at = done["steps"].as_u64().unwrap();
    assert_eq!(status_of(&bench), "stopped");

    // Another process resumes it, a third stops it.
    let mut child =
        bench.lathe(&["runs", "resume", done["run"].as_str().unwrap(), "--json"]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first["step"].as_u64(), Some(stopped_at + 1), "{first}");
    let said = bench.ok(&["runs", "stop", "starter-pirate"]);
    assert!(said.stdout.contains("is stopped at step"), "{said:?}");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    bench.fails(1, &["runs", "stop", "starter-pirate"]);
}

#[cfg(unix)]
#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_reason_to_panic() {
    let bench = Bench::new().with_samples();
    let mut child = bench.lathe(&["data", "show", "--model", "starter", "pirate.jsonl"]).spawn().unwrap();
    drop(child.stdout.take());
    let said = said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!said.stderr.contains("panicked"), "{said:?}");
}

#[test]
fn quickstart_goes_down_the_whole_road_twice() {
    let bench = Bench::new();
    for round in 1..=2 {
        let said = bench.ok(&["quickstart", "--epochs", "3", "--json"]);
        let lines = json_lines(&said.stdout);
        let last = lines.last().unwrap();
        assert_eq!(last["kind"], "quickstart");
        assert_ne!(last["before"], last["after"], "round {round}");
        assert!(Path::new(last["chart"].as_str().unwrap()).exists());
        assert!(Path::new(last["adapter_path"].as_str().unwrap()).exists());
    }
    let said = bench.ok(&["quickstart", "--epochs", "1"]);
    assert!(said.stdout.contains("before") && said.stdout.contains("lathe chat --model starter"), "{said:?}");
}
