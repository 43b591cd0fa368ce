//! Models of the Hub: found, looked at, downloaded.

use std::process::ExitCode;

use lathe_protocol::{
    CommandBody, ErrorCode, ErrorInfo, EventBody, Gate, Hardware, HubDetails, HubModel, ModelShape,
    Placement, RunConfig, catalog as known, chat_memory, training_memory,
};
use lathe_ui::{
    Fit,
    format::{bytes, short_count},
};

use super::{Outcome, library, unexpected};
use crate::{
    note,
    output::{ago, fields, table},
    progress::Downloading,
    session::{OnInterrupt, Session},
};

/// Tokens of a conversation that a model's fit is told for.
const CHAT_TOKENS: usize = 4096;

/// Whether it is written as a model of the Hub: `owner/name`, a GGUF of one, or the address of its page.
pub fn is_hub_name(name: &str) -> bool {
    let is_address = name.starts_with("https://") || name.starts_with("http://");
    is_address || (name.contains('/') && !name.starts_with(['.', '/', '~', '\\']) && !name.ends_with('/'))
}

pub fn search(session: &mut Session, words: &[String], limit: usize) -> Outcome {
    let answer = session.ask(CommandBody::HubSearch { query: words.join(" "), limit })?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::HubModels { models } = answer else { return Err(unexpected()) };
    if models.is_empty() {
        session.out.line("Nothing found: fewer words, or a part of the name, find more");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = models.iter().map(row).collect();
    let head = ["MODEL", ">DOWNLOADS", ">PARAMETERS", "LICENCE", "CHANGED", ""];
    session.out.text(&table(&head, &rows));
    Ok(ExitCode::SUCCESS)
}

fn row(model: &HubModel) -> Vec<String> {
    let remark = match (&model.problem, model.gate, model.is_private) {
        (Some(problem), ..) => problem.clone(),
        (None, Gate::Agree | Gate::Ask, _) => gate_words(model.gate).into(),
        (None, Gate::Open, true) => "private".into(),
        (None, Gate::Open, false) => String::new(),
    };
    vec![
        model.name.clone(),
        short_count(model.downloads),
        model.parameters.map_or_else(|| "-".into(), short_count),
        model.license.clone().unwrap_or_else(|| "-".into()),
        model.updated_secs.map_or_else(|| "-".into(), ago),
        remark,
    ]
}

fn gate_words(gate: Gate) -> &'static str {
    match gate {
        Gate::Open => "open",
        Gate::Agree => "gated: agree to its terms first",
        Gate::Ask => "gated: its owner lets people in",
    }
}

/// The models worth knowing, and how each fits this machine.
pub fn catalog(session: &mut Session) -> Outcome {
    if session.out.json {
        session.out.object(&serde_json::json!({"kind": "catalog", "models": known()}));
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Models { models } = session.ask(CommandBody::ModelsList)? else {
        return Err(unexpected());
    };
    let machine = machine(session)?;
    let rows: Vec<Vec<String>> = known()
        .iter()
        .map(|model| {
            let is_here = models.iter().any(|found| found.name == model.name && found.problem.is_none());
            vec![
                model.name.clone(),
                short_count(model.parameters),
                bytes(model.download_bytes),
                model.license.clone(),
                fits(&model.shape, model.download_bytes, &machine)
                    .map_or_else(|| "-".into(), |(word, _)| word),
                if is_here { "here" } else { "" }.into(),
                model.good_for.clone(),
            ]
        })
        .collect();
    let head = ["MODEL", ">PARAMETERS", ">DOWNLOAD", "LICENCE", "TRAINING", "", "GOOD FOR"];
    session.out.text(&table(&head, &rows));
    Ok(ExitCode::SUCCESS)
}

fn machine(session: &mut Session) -> Result<Hardware, ErrorInfo> {
    match session.ask(CommandBody::Hardware)? {
        EventBody::Hardware(machine) => Ok(machine),
        _ => Err(unexpected()),
    }
}

/// How LoRA with the usual settings fits the best device here, in a word and in words; none if no device is known.
fn fits(shape: &ModelShape, model_bytes: u64, machine: &Hardware) -> Option<(String, String)> {
    let config = RunConfig::default();
    let card = machine.usable_gpus().max_by_key(|gpu| gpu.vram_total_bytes);
    let (what, memory, placement) = match card {
        Some(gpu) => (gpu.name.clone(), gpu.vram_total_bytes, Placement::Cuda),
        None => ("RAM".into(), machine.ram_total_bytes, Placement::Cpu),
    };
    if memory == 0 {
        return None;
    }
    let training = training_memory(shape, &config, config.max_seq_len, placement).total();
    let chat = chat_memory(shape, model_bytes, CHAT_TOKENS);
    let words = |needed| Fit::of(needed, memory).words(needed);
    let fit = Fit::of(training, memory);
    Some((
        fit.word().into(),
        format!("LoRA {}; chat {}: {} of {what}", words(training), words(chat), bytes(memory)),
    ))
}

fn details(session: &mut Session, model: String) -> Result<HubDetails, ErrorInfo> {
    match session.ask(CommandBody::HubShow { model, revision: None })? {
        EventBody::HubDetails(details) => Ok(*details),
        _ => Err(unexpected()),
    }
}

/// Of a model that is not here.
pub fn shape(session: &mut Session, model: &str) -> Result<ModelShape, ErrorInfo> {
    let HubDetails { shape, problem, name, .. } = details(session, model.to_owned())?;
    shape.ok_or_else(|| {
        let why = problem.unwrap_or_else(|| "its config.json names no sizes".into());
        ErrorInfo::new(ErrorCode::Model, format!("{name} cannot be reckoned with: {why}"))
    })
}

pub fn show(session: &mut Session, model: String) -> Outcome {
    let details = details(session, model)?;
    if session.out.json {
        session.out.object(&EventBody::HubDetails(Box::new(details)));
        return Ok(ExitCode::SUCCESS);
    }
    let machine = machine(session)?;
    session.out.text(&describe(&details, &machine));
    let HubDetails { name, problem, .. } = &details;
    if problem.is_none() {
        session.out.line(&format!("\nIt is not on disk: lathe models pull {name}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(details: &HubDetails, machine: &Hardware) -> String {
    let HubDetails { shape, size_bytes, missing_bytes, disk_free_bytes, .. } = details;
    let mut lines = vec![("Model", details.name.clone()), ("Revision", details.revision.clone())];
    lines.push(("Licence", details.license.clone().unwrap_or_else(|| "not told".into())));
    lines.push(("Access", gate_words(details.gate).into()));
    lines.extend(details.architecture.clone().map(|architecture| ("Architecture", architecture)));
    lines.extend(details.parameters.map(|count| ("Parameters", short_count(count))));
    if let Some(shape) = shape {
        lines.push(("Context", format!("{} tokens", shape.context_length)));
        let fit = fits(shape, *size_bytes, machine);
        lines.extend(fit.map(|(_, words)| ("This machine", words)));
    }
    let here = size_bytes.saturating_sub(*missing_bytes);
    let part = if here > 0 { format!(", {} of it here", bytes(here)) } else { String::new() };
    lines.push((
        "Download",
        format!("{}{part}; {} of disk free", bytes(*size_bytes), bytes(*disk_free_bytes)),
    ));
    lines.extend(details.problem.clone().map(|problem| ("Problem", problem)));
    let mut heading = "Files";
    for file in &details.files {
        let remark = match (file.is_wanted, file.is_here) {
            (_, true) => "  here",
            (true, false) => "",
            (false, false) => "  left out",
        };
        lines.push((
            std::mem::take(&mut heading),
            format!("{}  {}{remark}", file.name, bytes(file.size_bytes)),
        ));
    }
    fields(&lines)
}

pub fn pull(session: &mut Session, model: String, revision: Option<String>) -> Outcome {
    let mut bar = Downloading::new();
    let mut models = Vec::new();
    let command = CommandBody::ModelsPull { model, revision };
    let outcome = session.run(command, OnInterrupt::Abort, &mut |session, event| match event {
        EventBody::Models { models: found } => models = found,
        event if session.out.json => session.out.object(&event),
        EventBody::Download(download) => bar.show(&download),
        _ => {}
    });
    bar.clear();
    outcome?;
    if session.out.json {
        session.out.object(&EventBody::Models { models });
        return Ok(ExitCode::SUCCESS);
    }
    library::print_models(session, &models);
    if let Some(model) = models.first() {
        match &model.problem {
            Some(problem) => note!("warning: it is here, but cannot be used: {problem}"),
            None => session.out.line(&format!("\nTry it: lathe chat --model {}", model.name)),
        }
    }
    Ok(ExitCode::SUCCESS)
}
