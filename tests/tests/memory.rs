//! What a training step takes, measured in a process of its own, beside what was predicted.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use lathe_tests::{Lathe, lines, repo};

/// The peak of one step is within 5 % of its prediction.
fn check(lathe: &Lathe, model: &str, settings: &[&str]) {
    let mut args = vec!["estimate", "--probe", "--json", "--model", model];
    for setting in settings {
        args.extend(["--set", setting]);
    }
    let output = lathe.command(&args).env("RAYON_NUM_THREADS", "2").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let probe = &lines(&output.stdout)[0]["probe"];
    let ratio = probe["ratio"].as_f64().unwrap();
    assert!((ratio - 1.0).abs() <= 0.05, "{args:?}: {probe}");
    let measured = |key: &str| probe["measured"][key].as_u64().unwrap();
    assert!(measured("program") < measured("loaded") && measured("ready") < measured("peak"), "{probe}");
}

#[test]
fn a_step_takes_what_was_predicted() {
    let lathe = Lathe::new();
    check(&lathe, "starter", &["max_seq_len=256", "batch_size=4"]);
    check(&lathe, "starter", &["max_seq_len=256", "method=full"]);
    let fetched = repo(".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let smollm2 = std::env::var_os("LATHE_SMOLLM2").map_or(fetched, Into::into);
    if !smollm2.exists() {
        println!("skipped: no SmolLM2 (cargo xtask fetch-smollm2)");
        return;
    }
    let smollm2 = smollm2.display().to_string();
    check(&lathe, &smollm2, &["max_seq_len=512"]);
    check(&lathe, &smollm2, &["max_seq_len=128", "lora.r=64", "optimizer=adamw8bit"]);
    check(&lathe, &smollm2, &["max_seq_len=128", "batch_size=4", "gradient_checkpointing=true"]);
    let by_four = ["gradient_checkpointing=true", "gradient_checkpointing_every=4"];
    check(&lathe, &smollm2, &[&["max_seq_len=512"], &by_four[..]].concat());
}

#[test]
fn a_step_that_does_not_fit_is_refused_with_what_would() {
    let lathe = Lathe::new();
    let huge = ["--model", "starter", "--set", "max_seq_len=1024", "--set", "batch_size=65536"];
    let estimate = &lathe.json(&[&["estimate"], &huge[..]].concat())[0];
    assert_eq!(estimate["fit"], "Does not fit");
    assert!(estimate["settings"].as_str().unwrap().starts_with("batch_size="), "{estimate}");
    let stderr = lathe.fails(1, &[&["estimate", "--probe"], &huge[..]].concat());
    assert!(stderr.contains("The step does not fit: needs "), "{stderr}");
    assert!(stderr.contains("hint: It fits with batch_size="), "{stderr}");
}
