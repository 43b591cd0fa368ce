//! The peak memory of a training step, measured by `lathe estimate --probe`, beside its prediction.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{
    Setup, gpt_oss, process,
    table::{Goal, Row},
};

/// What the prediction may be off by.
const TOLERANCE: f64 = 0.05;

/// Beside the grid, on SmolLM2: the other ways to train.
const OTHERS: [&[&str]; 8] = [
    &["max_seq_len=512", "lora.r=64", "optimizer=adamw8bit"],
    &["max_seq_len=512", "method=qlora"],
    &["max_seq_len=512", "batch_size=4", "method=qlora", "gradient_checkpointing=true"],
    &["max_seq_len=128", "method=full"],
    &["max_seq_len=512", "method=full", "gradient_checkpointing=true"],
    &["max_seq_len=128", "method=full", "optimizer=adamw8bit"],
    &["max_seq_len=512", "lora.use_dora=true"],
    &["max_seq_len=128", "lora.modules_to_save=[\"embed_tokens\"]"],
];

pub fn measure(setup: &Setup) -> Result<Vec<Row>> {
    let lathe = process::build_lathe()?;
    let gpt_oss = setup.scratch.path().join("tiny-gpt-oss");
    gpt_oss::write_model(&gpt_oss, &gpt_oss::TINY)?;
    let mut rows = Vec::new();
    let mut add = |name: &str, model: &Path, settings: &[&str]| -> Result<()> {
        rows.push(probe(setup, &lathe, name, model, settings)?);
        Ok(())
    };
    for (name, model) in [("SmolLM2 Q4_1", setup.smollm2.as_path()), ("gpt-oss", gpt_oss.as_path())] {
        for settings in grid() {
            add(name, model, &settings)?;
        }
    }
    match setup.hf_folder()? {
        Ok(folder) => {
            for settings in OTHERS {
                add("SmolLM2", Path::new(&folder), settings)?;
            }
        }
        Err(why) => println!("skipped: no SmolLM2 as a folder, which the peers' Python writes: {why}"),
    }
    Ok(rows)
}

/// Batch, length, rank and checkpointing, each with each.
fn grid() -> Vec<Vec<&'static str>> {
    let mut grid = Vec::new();
    for batch_size in ["batch_size=1", "batch_size=4"] {
        for length in ["max_seq_len=128", "max_seq_len=512", "max_seq_len=1024"] {
            for rank in ["lora.r=8", "lora.r=64"] {
                let kept: &[&str] = &[];
                let recomputed = ["gradient_checkpointing=true"];
                let by_four = ["gradient_checkpointing=true", "gradient_checkpointing_every=4"];
                for checkpointing in [kept, &recomputed, &by_four] {
                    grid.push([&[batch_size, length, rank], checkpointing].concat());
                }
            }
        }
    }
    grid
}

fn probe(setup: &Setup, lathe: &Path, name: &str, model: &Path, settings: &[&str]) -> Result<Row> {
    let mut command = Command::new(lathe);
    command.args(["estimate", "--probe", "--json", "--device", "cpu", "--model"]).arg(model);
    command.arg("--data-dir").arg(setup.scratch.path().join("data"));
    for setting in settings {
        command.args(["--set", setting]);
    }
    command.env("RAYON_NUM_THREADS", setup.threads.to_string());
    let (values, _) = process::json_lines(&mut command)?;
    let [value] = values.as_slice() else { bail!("one answer, not {}", values.len()) };
    let megabytes = |value: &serde_json::Value| Some(value.as_f64()? / 1e6);
    let report = &value["probe"];
    let measured = megabytes(&report["measured"]["peak"]).context("no measured peak")?;
    let predicted = megabytes(&report["predicted_bytes"]).context("no prediction")?;
    println!("{name} {}: {measured:.0} MB, {predicted:.0} MB predicted", settings.join(" "));
    let what = settings.join(" ").replace("gradient_", "");
    Ok(Row {
        measure: format!("{name}, {what}"),
        unit: "MB",
        lathe: Ok(measured),
        peer_name: "predicted",
        peer: Ok(predicted),
        goal: Goal::Within(TOLERANCE),
    })
}
