//! LoRA training: rank 16 on all seven linears of SmolLM2-135M, f32, on real dialogue.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use lathe_engine::{data, prepare, text_files::TextFiles};
use lathe_protocol::{Message, Role};
use serde::Deserialize;
use serde_json::json;

use super::{
    Measured, Setup, median_of, process,
    table::{Goal, Row},
};
use crate::{repo, starter::chitchat};

const MAX_SEQ_LEN: usize = 512;
/// Chats of the data set the rows are picked from.
const NUM_CHATS: usize = 200;

/// What one side measured.
#[derive(Deserialize)]
struct Speed {
    non_pad_tokens_per_second: f64,
    peak_rss_bytes: f64,
}

/// The files both sides read: conversations, and the same as tokens.
struct Rows {
    conversations: String,
    tokens: String,
    count: usize,
}

pub fn measure(setup: &Setup) -> Result<Vec<Row>> {
    let lathe = process::build_lathe()?;
    let rows = write_rows(setup)?;
    let hf_folder = setup.hf_folder()?;
    // The peer's first batch is not timed.
    let peft = |batch_size: usize| -> Result<Measured<Speed>> {
        let Ok(hf_folder) = &hf_folder else { return Ok(Err("not installed".into())) };
        let steps = (rows.count / batch_size).saturating_sub(1).max(1).to_string();
        let (batch_size, threads) = (batch_size.to_string(), setup.threads.to_string());
        let args = ["--model", hf_folder, "--rows", &rows.tokens, "--batch-size", &batch_size];
        let more = ["--steps", &steps, "--threads", &threads, "--r", "16", "--alpha", "32"];
        setup.peer.run("peft_train.py", &[&args[..], &more].concat())
    };
    let measured = setup.alternate(&mut [
        ("lathe", &mut || Ok(Ok(run_lathe(setup, &lathe, &rows)?))),
        ("peft, batch 4", &mut || peft(4)),
        ("peft, batch 1", &mut || peft(1)),
    ])?;
    let [ours, batch4, batch1] = measured.as_slice() else { unreachable!("three sides") };
    let speed: fn(&Speed) -> f64 = |speed| speed.non_pad_tokens_per_second;
    let memory: fn(&Speed) -> f64 = |speed| speed.peak_rss_bytes / 1e9;
    let row = |measure: &str, unit, number, peer_name, peer, goal| Row {
        measure: measure.into(),
        unit,
        lathe: median_of(ours, number),
        peer_name,
        peer: median_of(peer, number),
        goal,
    };
    let padded = "peft, batch 4, padded";
    let alone = "peft, batch 1";
    Ok(vec![
        row("LoRA training, non-pad", "tok/s", speed, padded, batch4, Goal::TimesOrMore(2.5)),
        row("LoRA training, non-pad", "tok/s", speed, alone, batch1, Goal::TimesOrMore(1.4)),
        row("LoRA training, peak RSS", "GB", memory, alone, batch1, Goal::TimesOrLess(0.5)),
    ])
}

/// Chats as conversations, and the rows of tokens that Lathe makes of them.
fn write_rows(setup: &Setup) -> Result<Rows> {
    let chats = chitchat::chats(|text| text.trim().to_owned())?;
    let chats = chats.iter().map(|turns| &turns[..turns.len() / 2 * 2]).filter(|turns| turns.len() >= 2);
    // Evenly from the first chats, so that few rows have the lengths of many.
    let conversations: Vec<serde_json::Value> = chats
        .take(NUM_CHATS)
        .collect::<Vec<_>>()
        .chunks(NUM_CHATS.div_ceil(setup.num_rows))
        .filter_map(|chunk| chunk.first())
        .map(|turns| {
            let roles = [Role::User, Role::Assistant].into_iter().cycle();
            json!({ "messages": roles.zip(*turns).map(|(role, text)| Message::new(role, text)).collect::<Vec<_>>() })
        })
        .collect();
    let path = |name: &str| setup.scratch.path().join(name);
    let write = |path: &Path, values: &[serde_json::Value]| {
        let lines: Vec<String> = values.iter().map(ToString::to_string).collect();
        repo::write(path, lines.join("\n") + "\n")
    };
    let (conversations_path, tokens_path) = (path("conversations.jsonl"), path("tokens.jsonl"));
    write(&conversations_path, &conversations)?;

    let text_files = TextFiles::open(&setup.smollm2)?;
    let rows = prepare::rows(
        &text_files,
        &data::read_examples(&conversations_path, &BTreeMap::new())?,
        MAX_SEQ_LEN,
    )?;
    let tokens: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| json!({ "ids": row.ids, "mask": row.loss_mask.iter().map(|learned| u8::from(*learned)).collect::<Vec<_>>() }))
        .collect();
    write(&tokens_path, &tokens)?;
    let num_tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    let num_learned: usize = rows.iter().map(lathe_engine::tokenize::TokenizedRow::num_loss_tokens).sum();
    println!("{} rows, {num_tokens} tokens, {num_learned} of them learned", rows.len());
    Ok(Rows {
        conversations: conversations_path.display().to_string(),
        tokens: tokens_path.display().to_string(),
        count: rows.len(),
    })
}

/// One pass over the rows, packed, a sequence a step; like the peer's, the first step is not timed.
fn run_lathe(setup: &Setup, lathe: &Path, rows: &Rows) -> Result<Speed> {
    let folder = tempfile::tempdir_in(setup.scratch.path())?;
    let mut command = Command::new(lathe);
    command.arg("train").arg("--model").arg(&setup.smollm2).args(["--data", &rows.conversations]);
    command.arg("--out").arg(folder.path().join("out")).args(["--json", "--device", "cpu"]);
    command.arg("--data-dir").arg(folder.path().join("data"));
    for setting in [
        "lora.r=16",
        "lora.alpha=32",
        "lora.targets=all-linear",
        "packing=true",
        "shuffle=false",
        "batch_size=1",
        "grad_accum=1",
        "epochs=1",
        "save_steps=0",
        "weight_decay=0",
    ] {
        command.args(["--set", setting]);
    }
    command.args(["--set", &format!("max_seq_len={MAX_SEQ_LEN}")]);
    command.env("RAYON_NUM_THREADS", setup.threads.to_string());
    let (events, peak_bytes) = process::json_lines(&mut command)?;
    let steps: Vec<(f64, f64)> = events
        .iter()
        .filter(|event| event["kind"] == "step")
        .map(|step| Some((step["tokens"].as_f64()?, step["tokens_per_second"].as_f64()?)))
        .collect::<Option<_>>()
        .context("A step without its tokens")?;
    ensure!(steps.len() > 1, "Only {} steps, the first of which is not timed", steps.len());
    let (tokens, seconds) = steps[1..]
        .iter()
        .fold((0.0, 0.0), |(sum, seconds), (tokens, speed)| (sum + tokens, seconds + tokens / speed));
    Ok(Speed { non_pad_tokens_per_second: tokens / seconds, peak_rss_bytes: peak_bytes as f64 })
}
