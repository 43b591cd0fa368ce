//! A sweep on the starter model, as real processes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

use lathe_tests::{Lathe, repo};
use serde_json::Value;

/// A sweep with short steps and something held out.
fn sweep(steps: usize, grid: &[&str]) -> Vec<String> {
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let steps = steps.to_string();
    let mut args: Vec<String> =
        ["sweep", "--model", "starter", "--data", &data, "--name", "s", "--max-steps", &steps]
            .map(String::from)
            .to_vec();
    for setting in ["max_seq_len=64", "grad_accum=2", "save_steps=4", "lora.r=4", "eval_ratio=0.1"] {
        args.extend(["--set".into(), setting.into()]);
    }
    for key in grid {
        args.extend(["--grid".into(), (*key).to_owned()]);
    }
    args
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn statuses(comparison: &Value) -> Vec<&str> {
    assert_eq!(comparison["kind"], "comparison", "{comparison}");
    comparison["runs"].as_array().unwrap().iter().map(|run| run["status"].as_str().unwrap()).collect()
}

#[test]
fn a_sweep_of_two_keys_trains_each_combination_and_compares_them() {
    let lathe = Lathe::new();
    let args = sweep(4, &["learning_rate=1e-4,3e-3", "lora.r=4,8"]);
    let events = lathe.json(&strs(&args));
    let comparison = events.last().unwrap();
    assert_eq!(statuses(comparison), ["completed"; 4]);
    assert_eq!(comparison["keys"], serde_json::json!(["learning_rate", "lora.r"]));
    let runs = comparison["runs"].as_array().unwrap();
    let eval = |index: usize| runs[index]["eval_loss"].as_f64().unwrap();
    // Every step of every run was told.
    for run in runs {
        let of_run = |event: &&Value| event["run"] == run["run"] && event["kind"] == "step";
        let steps: Vec<u64> =
            events.iter().filter(of_run).map(|event| event["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4], "{run}");
    }
    // The higher rate learns more in four steps.
    assert!(eval(2).max(eval(3)) < eval(0).min(eval(1)), "{comparison}");
    let best = if eval(2) <= eval(3) { 2 } else { 3 };
    assert_eq!(comparison["best"], runs[best]["run"]);
    assert_eq!(runs[1]["name"], "s-learning_rate-1e-4-r-8");
    assert_eq!(runs[1]["adapter"], "s-learning_rate-1e-4-r-8");
    assert_eq!(runs[1]["values"]["lora.r"], "8");

    let table = lathe.run(&["runs", "compare", "s"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    let head = text.lines().next().unwrap();
    assert!(head.starts_with("learning_rate  lora.r") && head.contains("HELD-OUT"), "{text}");
    assert_eq!(text.matches('*').count(), 2, "the best, and what the star means: {text}");
    let error = lathe.fails(2, &strs(&args));
    assert!(error.contains("\"s\" is taken"), "{error}");
}

#[test]
fn a_run_of_a_sweep_that_diverges_does_not_stop_the_others() {
    let lathe = Lathe::new();
    let args = sweep(6, &["learning_rate=1e30,1e-3"]);
    let events = lathe.json(&strs(&args));
    let comparison = events.last().unwrap();
    assert_eq!(statuses(comparison), ["diverged", "completed"]);
    assert!(comparison["runs"][0]["error"].as_str().unwrap().contains("step"), "{comparison}");
    assert_eq!(comparison["best"], comparison["runs"][1]["run"]);
}

#[test]
fn a_sweep_that_is_interrupted_goes_on_where_it_was() {
    let lathe = Lathe::new();
    let args = sweep(120, &["seed=1,2"]);
    let mut running = lathe.start(&strs(&args));
    running.step(6);
    let pid = i32::try_from(running.child.id()).unwrap();
    std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status().unwrap();
    let comparison = running.next("comparison").unwrap();
    assert!(running.child.wait().unwrap().success());
    assert_eq!(statuses(&comparison), ["stopped", "queued"]);
    let stopped_at = comparison["runs"][0]["step"].as_u64().unwrap();
    assert!((6..120).contains(&stopped_at), "{comparison}");

    let events = lathe.json(&["sweep", "--resume", "s"]);
    assert_eq!(statuses(events.last().unwrap()), ["completed"; 2]);
    let of_first =
        events.iter().filter(|event| event["kind"] == "step" && event["run"] == comparison["runs"][0]["run"]);
    let steps: Vec<u64> = of_first.map(|event| event["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (stopped_at + 1..=120).collect::<Vec<_>>());
    let error = lathe.fails(1, &["sweep", "--resume", "s"]);
    assert!(error.contains("Nothing of sweep s can go on"), "{error}");
}

#[test]
fn runs_left_to_the_queue_are_moved_and_worked_off() {
    let lathe = Lathe::new();
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    for name in ["a", "b"] {
        let args =
            ["train", "--model", "starter", "--data", &data, "--name", name, "--max-steps", "2", "--queue"];
        lathe.json(&args);
    }
    let moved = lathe.json(&["runs", "move", "b", "up"]);
    let first = moved[0]["runs"].as_array().unwrap().iter().find(|run| run["queue_position"] == 0).unwrap();
    assert_eq!(first["name"], "b");
    assert!(lathe.fails(1, &["runs", "move", "a", "cuda:3"]).contains("This machine has no device cuda:3"));
    assert!(lathe.fails(2, &["runs", "move", "a", "sideways"]).contains("Not a place in the queue"));
    let output = lathe.run(&["runs", "work"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr.lines().filter(|line| line.contains("completed at step 2/2")).count(), 2, "{stderr}");
    let at_secs = |name: &str, step: usize| {
        lathe.json(&["runs", "show", name])[0]["steps"][step]["at_secs"].as_f64().unwrap()
    };
    assert!(at_secs("b", 1) <= at_secs("a", 0), "b had been moved up");
    let runs = lathe.json(&["runs", "list"]);
    assert!(runs[0]["runs"].as_array().unwrap().iter().all(|run| run["status"] == "completed"));
}

#[test]
fn what_cannot_be_swept_is_said_before_anything_is_queued() {
    let lathe = Lathe::new();
    let refused = |grid: &[&str], expected: &str| {
        let error = lathe.fails(2, &strs(&sweep(2, grid)));
        assert!(error.contains(expected), "{error}");
    };
    refused(&["learning_rat=1e-4"], "did you mean learning_rate?");
    refused(&["lora.r=8,8"], "lora.r = 8 is there twice");
    refused(&["lora.r"], "Not a key with its values");
    let seeds: Vec<String> = (0..65).map(|seed: i32| seed.to_string()).collect();
    refused(&[&format!("seed={}", seeds.join(","))], "That makes 65 runs");
    let runs = lathe.json(&["runs", "list"]);
    assert!(runs[0]["runs"].as_array().unwrap().is_empty());
}
