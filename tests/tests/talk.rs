//! Talking to a run while it trains in another process.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

use lathe_tests::{Lathe, losses, repo};

/// Too many steps to end before the test stops it.
const STEPS: &str = "max_steps=400";

fn train_args(out: &str) -> Vec<String> {
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let mut args: Vec<String> =
        ["train", "--model", "starter", "--data", &data, "--out", out, "--name", "talker"]
            .map(String::from)
            .to_vec();
    for setting in [STEPS, "max_seq_len=64", "batch_size=2", "grad_accum=1", "lora.dropout=0.1", "lora.r=4"] {
        args.extend(["--set".into(), setting.into()]);
    }
    args
}

/// The first losses of a run, until `talk` is over.
fn train(lathe: &Lathe, talk: impl FnOnce(&Lathe)) -> Vec<(u64, String)> {
    let args = train_args(&lathe.path("run").display().to_string());
    let mut running = lathe.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let mut events = vec![running.step(1)];
    talk(lathe);
    while let Some(step) = running.next("step") {
        events.push(step);
    }
    assert!(running.child.wait().unwrap().success());
    losses(&events)
}

#[test]
fn a_run_in_another_process_answers_and_trains_as_if_nobody_had_asked() {
    let lathe = Lathe::new();
    let question = |more: &[&str]| {
        let args = ["chat", "--run", "talker", "-p", "Where is the harbour?", "--max-tokens", "12"];
        let said = lathe.json(&[&args[..], more].concat());
        let stats = said.last().unwrap().clone();
        assert_eq!((&stats["kind"], &stats["total_steps"]), (&"stats".into(), &400.into()));
        let deltas = said.iter().filter_map(|line| line["text"].as_str());
        (stats["step"].as_u64().unwrap(), stats["voice"].clone(), deltas.collect::<String>())
    };
    let talked = train(&lathe, |lathe| {
        let (first, voice, _) = question(&[]);
        assert_eq!(voice, "adapter");
        let (second, voice, answer) = question(&["--base"]);
        assert_eq!(voice, "base");
        assert!(second > first && first > 0, "steps {first} and {second}");
        let model = ["chat", "--model", "starter", "-p", "Where is the harbour?", "--max-tokens", "12"];
        let untrained = lathe.json(&model);
        let untrained: String = untrained.iter().filter_map(|line| line["text"].as_str()).collect();
        assert_eq!(answer, untrained);

        // A stop does not wait for a long answer.
        let long =
            ["chat", "--run", "talker", "-p", "Tell me all", "--max-tokens", "900", "--min-tokens", "900"];
        let mut talking = lathe.start(&long);
        talking.next("delta").unwrap();
        lathe.json(&["runs", "stop", "talker"]);
        let stats = talking.next("stats").unwrap();
        assert!(stats["output_tokens"].as_u64().unwrap() < 900 && stats["finished"] == false, "{stats}");
        assert!(talking.child.wait().unwrap().success());
    });
    let stderr = lathe.fails(1, &["chat", "--run", "talker", "-p", "Still there?"]);
    assert!(stderr.contains("it is stopped") && stderr.contains("lathe runs resume"), "{stderr}");

    let lathe = Lathe::new();
    let silent = train(&lathe, |lathe| {
        let out = lathe.path("run").display().to_string();
        let shown = || lathe.json(&["runs", "show", &out])[0]["run"]["step"].as_u64().unwrap();
        while shown() <= talked.len() as u64 {}
        lathe.json(&["runs", "stop", "talker"]);
    });
    assert!(talked.len() > 2 && talked == silent[..talked.len()], "{talked:?} {silent:?}");
}
