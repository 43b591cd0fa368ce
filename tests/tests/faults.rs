//! What happens to machines: processes that are killed, disks that fill, files that change or spoil.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(target_os = "linux")]

use std::{path::Path, process::Command, thread::sleep, time::Duration};

use lathe_tests::{Lathe, kill_9, losses, program, repo};
use serde_json::Value;

/// A run on the starter model with short steps and a checkpoint every other one.
fn train(data: &Path, out: &Path, steps: usize) -> Vec<String> {
    let (data, out, steps) = (data.display().to_string(), out.display().to_string(), steps.to_string());
    let mut args: Vec<String> =
        ["train", "--model", "starter", "--data", &data, "--out", &out, "--max-steps", &steps]
            .map(String::from)
            .to_vec();
    for setting in
        ["max_seq_len=64", "batch_size=1", "grad_accum=1", "save_steps=2", "lora.dropout=0.1", "lora.r=4"]
    {
        args.extend(["--set".into(), setting.into()]);
    }
    args
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn pirate() -> std::path::PathBuf {
    repo("resources/samples/pirate.jsonl")
}

/// What the run's record says of its steps.
fn recorded(lathe: &Lathe) -> Vec<(u64, String)> {
    let runs = lathe.json(&["runs", "list"]);
    let id = runs[0]["runs"][0]["id"].as_str().unwrap().to_owned();
    let steps = lathe.json(&["runs", "show", &id]).remove(0)["steps"].take();
    let step = |point: &Value| (point["step"]["step"].as_u64().unwrap(), point["step"]["loss"].to_string());
    steps.as_array().unwrap().iter().map(step).collect()
}

/// Numbers that look random and are the same each time (Knuth's 64-bit congruential generator).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn fifty_kills_at_random_moments_change_no_loss() {
    const KILLS: usize = 50;
    const STEPS_BETWEEN: u64 = 4;
    let steps = KILLS * STEPS_BETWEEN as usize + 20;
    let quiet = Lathe::new();
    let expected = losses(&quiet.json(&strs(&train(&pirate(), &quiet.path("run"), steps))));
    assert_eq!(expected.len(), steps);

    let lathe = Lathe::new();
    let fresh = train(&pirate(), &lathe.path("run"), steps);
    let mut dice = Dice(7);
    for kill in 0..KILLS {
        let args = if kill == 0 { fresh.clone() } else { [&fresh[..], &["--resume".into()]].concat() };
        let mut running = lathe.start(&strs(&args));
        // The first has begun when it is killed; the others are killed while they load, train or save.
        let seen = dice.below(STEPS_BETWEEN).max(u64::from(kill == 0));
        for _ in 0..seen {
            running.next("step").unwrap();
        }
        sleep(Duration::from_millis(dice.below(if seen == 0 { 300 } else { 30 })));
        match running.workers().first() {
            Some(worker) if dice.below(2) == 0 => kill_9(*worker),
            _ => kill_9(running.child.id()),
        }
        running.child.wait().unwrap();
    }
    let last = lathe.json(&strs(&[&fresh[..], &["--resume".into()]].concat()));
    assert_eq!(last.last().unwrap()["completed"], true);
    let resumed = losses(&last);
    assert_eq!(resumed.last(), expected.last());
    assert_eq!(recorded(&lathe), recorded(&quiet));
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let lathe = Lathe::new();
    let out = lathe.path("run");
    let whole = train(&pirate(), &out, 8);
    let mut running = lathe.start(&strs(&whole));
    running.step(4);
    kill_9(running.workers()[0]);
    running.child.wait().unwrap();

    // No file may grow beyond 64 KiB: the adapter's are larger, and SQLite's log is emptied before it gets there.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let args = [&whole[..], &["--resume".into()]].concat();
    let mut command = Command::new("bash");
    command.args(["-c", script]).arg(program()).args(&args);
    command.env("LATHE_DATA_DIR", lathe.path("data")).env("HF_HUB_CACHE", lathe.path("hub"));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: Cannot write") && stderr.contains("too large"), "{stderr}");
    assert!(stderr.contains("then: lathe runs resume"), "{stderr}");
    let checkpoints = std::fs::read_dir(out.join("checkpoints")).unwrap();
    let names: Vec<_> = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.is_empty() && names.iter().all(|name| name.starts_with("step-")), "{names:?}");

    let resumed = losses(&lathe.json(&strs(&args)));
    let quiet = Lathe::new();
    let expected = losses(&quiet.json(&strs(&train(&pirate(), &quiet.path("run"), 8))));
    let first = resumed[0].0 as usize;
    assert!(first > 1);
    assert_eq!(resumed, expected[first - 1..]);
}

#[test]
fn a_data_file_that_changed_under_a_paused_run_is_not_trained_on() {
    let lathe = Lathe::new();
    let data = lathe.path("data.jsonl");
    let text = std::fs::read_to_string(pirate()).unwrap();
    std::fs::write(&data, &text).unwrap();
    let args = train(&data, &lathe.path("run"), 8);
    let mut running = lathe.start(&strs(&args));
    running.step(4);
    kill_9(running.workers()[0]);
    running.child.wait().unwrap();
    let resume = [&args[..], &["--resume".into()]].concat();

    std::fs::write(&data, text.replacen("Arr", "Brr", 1)).unwrap();
    let stderr = lathe.fails(1, &strs(&resume));
    assert!(stderr.contains("The data has changed since step"), "{stderr}");
    assert!(stderr.contains("put the data file back"), "{stderr}");

    std::fs::write(&data, &text).unwrap();
    assert_eq!(lathe.json(&strs(&resume)).last().unwrap()["completed"], true);
}
