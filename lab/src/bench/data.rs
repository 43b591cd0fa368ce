//! Preflight of data that does not fit into memory, and how fast rows become tokens.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::{
    Setup, median_of, process,
    table::{Goal, Row},
};

const NUM_ROWS: usize = 1_000_000;
const NUM_BYTES: usize = 2_000_000_000;
/// Rows of as many bytes, for the comparison.
const SLICE_ROWS: usize = 10_000;
const MAX_RSS_MB: f64 = 500.0;

#[derive(Deserialize)]
struct Peer {
    seconds: f64,
}

pub fn measure(setup: &Setup) -> Result<Vec<Row>> {
    let lathe = process::build_lathe()?;
    let path = |name: &str| setup.scratch.path().join(name);
    let (whole, slice) = (path("whole.jsonl"), path("slice.jsonl"));
    println!("writing {NUM_ROWS} rows, {NUM_BYTES} bytes");
    write_rows(&whole, NUM_ROWS, NUM_BYTES / NUM_ROWS)?;
    write_rows(&slice, SLICE_ROWS, NUM_BYTES / NUM_ROWS)?;

    let hf_folder = setup.hf_folder()?;

    // 1. The slice, in turns: each time into a new folder, so that nothing is found in a cache
    let mut turn = 0;
    let measured = setup.alternate(&mut [
        ("lathe", &mut || {
            turn += 1;
            let (seconds, _) = check(setup, &lathe, &slice, &path(&format!("slice {turn}")))?;
            Ok(Ok(SLICE_ROWS as f64 / seconds))
        }),
        ("tokenizers", &mut || {
            let Ok(hf_folder) = &hf_folder else { return Ok(Err("not installed".into())) };
            let peer = setup.peer.run::<Peer>("tokenise.py", &[hf_folder, &slice.display().to_string()])?;
            Ok(peer.map(|peer| SLICE_ROWS as f64 / peer.seconds))
        }),
    ])?;
    let [ours, theirs] = measured.as_slice() else { unreachable!("two sides") };

    // 2. The whole, once: first without a cache, then with it
    println!("the whole file");
    let (first_seconds, peak_bytes) = check(setup, &lathe, &whole, &path("whole"))?;
    let (cached_seconds, _) = check(setup, &lathe, &whole, &path("whole"))?;
    let alone = |measure: &str, unit, value, goal| Row {
        measure: measure.into(),
        unit,
        lathe: Ok(value),
        peer_name: "",
        peer: Err("–".into()),
        goal,
    };
    Ok(vec![
        Row {
            measure: "Preflight of 10,000 rows, 20 MB".into(),
            unit: "rows/s",
            lathe: median_of(ours, |speed| *speed),
            peer_name: "transformers, tokenizers",
            peer: median_of(theirs, |speed| *speed),
            goal: Goal::TimesOrMore(1.0),
        },
        alone("Preflight of 1,000,000 rows, 2 GB", "rows/s", NUM_ROWS as f64 / first_seconds, Goal::None),
        alone("… its peak RSS", "MB", peak_bytes as f64 / 1e6, Goal::OrLess(MAX_RSS_MB)),
        alone("… once its tokens are kept", "s", cached_seconds, Goal::None),
    ])
}

/// Seconds of a preflight and the peak memory of its processes.
fn check(setup: &Setup, lathe: &Path, data: &Path, data_dir: &Path) -> Result<(f64, u64)> {
    let mut command = Command::new(lathe);
    command.args(["--json", "--data-dir"]).arg(data_dir);
    command.args(["data", "check", "--model"]).arg(&setup.smollm2).arg(data);
    command.env("RAYON_NUM_THREADS", setup.threads.to_string());
    let started = Instant::now();
    let (values, peak_bytes) = process::json_lines(&mut command)?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(values.last().is_some_and(|report| report["rows"].as_u64().is_some()), "no report");
    Ok((seconds, peak_bytes))
}

/// Rows of a question and an answer, made of sentences that are drawn from a few thousand.
fn write_rows(path: &Path, num_rows: usize, row_bytes: usize) -> Result<()> {
    let mut state = 7_u64;
    // Numbers of a linear congruential generator: the same rows on every machine.
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let syllables =
        ["an", "ber", "con", "den", "er", "for", "ing", "ly", "men", "ous", "pre", "re", "tion", "un"];
    let words: Vec<String> =
        (0..5000).map(|_| (0..=draw(3)).map(|_| syllables[draw(syllables.len())]).collect()).collect();
    let sentences: Vec<String> = (0..5000)
        .map(|_| (0..12).map(|_| words[draw(words.len())].as_str()).collect::<Vec<_>>().join(" ") + ". ")
        .collect();
    let mut file = BufWriter::new(File::create(path)?);
    let mut text = String::new();
    for row in 0..num_rows {
        text.clear();
        let question = &sentences[draw(sentences.len())];
        write!(text, r#"{{"messages": [{{"role": "user", "content": "{row} {question}"}}, "#)?;
        text.push_str(r#"{"role": "assistant", "content": ""#);
        while text.len() + 40 < row_bytes {
            text.push_str(&sentences[draw(sentences.len())]);
        }
        text.push_str("\"}]}\n");
        file.write_all(text.as_bytes())?;
    }
    Ok(file.flush()?)
}
