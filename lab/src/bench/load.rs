//! What a person waits for before anything happens.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Result, ensure};

use super::{
    Setup, decode, median_of, process,
    table::{Goal, Row, median},
};

/// Starts of `lathe --help` a measurement is the median of.
const NUM_STARTS: usize = 11;

pub fn measure(setup: &Setup) -> Result<Vec<Row>> {
    let lathe = process::build_lathe()?;
    let measured = setup.alternate(&mut [
        ("lathe", &mut || Ok(Ok(decode::lathe(setup, 0)?.load_seconds))),
        ("llama.cpp", &mut || Ok(decode::llama_cpp(setup, 0)?.map(|speeds| speeds.load_seconds))),
    ])?;
    let [ours, theirs] = measured.as_slice() else { unreachable!("two sides") };
    Ok(vec![
        Row {
            measure: "Load of SmolLM2 Q4_1, ready to chat".into(),
            unit: "s",
            lathe: median_of(ours, |seconds| *seconds),
            peer_name: "llama.cpp",
            peer: median_of(theirs, |seconds| *seconds),
            goal: Goal::OrLess(1.5),
        },
        Row {
            measure: "`lathe --help`".into(),
            unit: "ms",
            lathe: help_millis(&lathe)?.ok_or_else(|| "none".to_owned()),
            peer_name: "",
            peer: Err("–".into()),
            goal: Goal::OrLess(50.0),
        },
    ])
}

fn help_millis(lathe: &Path) -> Result<Option<f64>> {
    let mut millis = Vec::new();
    for _ in 0..NUM_STARTS {
        let started = Instant::now();
        let status = Command::new(lathe).arg("--help").stdout(Stdio::null()).status()?;
        ensure!(status.success(), "`lathe --help` failed ({status}): {}", lathe.display());
        millis.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(millis))
}
