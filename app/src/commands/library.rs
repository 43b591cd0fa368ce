//! Lists and details of models, runs and adapters.

use std::process::ExitCode;

use lathe_protocol::{
    AdapterEntry, CommandBody, ErrorCode, ErrorInfo, EventBody, ModelEntry, RunDetails, RunEntry, RunStatus,
    StopThen,
};
use lathe_ui::format::{bytes, short_count};

use super::{Outcome, hub, unexpected};
use crate::{
    output::{ago, fields, loss, table},
    session::Session,
};

pub fn models(session: &mut Session) -> Outcome {
    let answer = session.ask(CommandBody::ModelsList)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Models { models } = answer else { return Err(unexpected()) };
    print_models(session, &models);
    Ok(ExitCode::SUCCESS)
}

pub fn print_models(session: &Session, models: &[ModelEntry]) {
    if models.is_empty() {
        let cache = session.paths().hf_cache.display();
        return session.out.line(&format!(
            "No models on disk yet: `lathe models pull OWNER/NAME` downloads one to {cache}"
        ));
    }
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|model| {
            vec![
                model.name.clone(),
                model.architecture.clone().unwrap_or_else(|| "-".into()),
                model.parameters.map_or_else(|| "-".into(), short_count),
                bytes(model.size_bytes),
                model.revision.as_deref().map_or("-", |revision| &revision[..revision.len().min(8)]).into(),
                model
                    .problem
                    .as_ref()
                    .map_or_else(String::new, |problem| format!("cannot be used: {problem}")),
            ]
        })
        .collect();
    session.out.text(&table(&["MODEL", "ARCHITECTURE", ">PARAMETERS", ">SIZE", "REVISION", ""], &rows));
}

pub fn model(session: &mut Session, model: String) -> Outcome {
    let answer = match session.ask(CommandBody::ModelsShow { model: model.clone() }) {
        Err(error) if error.code == ErrorCode::NotFound && hub::is_hub_name(&model) => {
            return hub::show(session, model);
        }
        answer => answer?,
    };
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::ModelDetails(model) = answer else { return Err(unexpected()) };
    let shape = &model.shape;
    let dtypes: Vec<String> = model.dtypes.iter().map(|(dtype, count)| format!("{dtype} ×{count}")).collect();
    let yes_no = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
    let mut lines = vec![
        ("Model", model.name.clone()),
        ("Architecture", model.architecture.clone()),
        ("Parameters", short_count(model.parameters)),
        ("Layers", shape.num_layers.to_string()),
        ("Width", format!("{}, feed-forward {}", shape.hidden_size, shape.intermediate_size)),
        (
            "Heads",
            format!(
                "{} of {} dimensions, {} for keys and values",
                shape.num_attention_heads, shape.head_dim, shape.num_key_value_heads
            ),
        ),
        ("Vocabulary", format!("{} tokens", shape.vocab_size)),
        ("Context", format!("{} tokens", shape.context_length)),
        ("Tied embeddings", yes_no(shape.tie_word_embeddings)),
        ("Chat template", yes_no(model.has_chat_template)),
        ("Stored as", dtypes.join(", ")),
        ("LoRA adapts", model.default_targets.join(", ")),
        ("Path", model.path.clone()),
    ];
    // The targets have a line of their own.
    lines.extend(
        model
            .consequences
            .iter()
            .filter(|told| told.topic != "LoRA")
            .map(|told| (told.topic.as_str(), told.text.clone())),
    );
    for (index, file) in model.files.iter().enumerate() {
        let name = if index == 0 { "Files" } else { "" };
        lines.push((name, format!("{}  {}", file.name, bytes(file.size_bytes))));
    }
    session.out.text(&fields(&lines));
    Ok(ExitCode::SUCCESS)
}

pub fn import_model(session: &mut Session, path: String, name: Option<String>) -> Outcome {
    let answer = session.ask(CommandBody::ModelsImport { path, name })?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::Models { models } = answer {
        print_models(session, &models);
        if let Some(model) = models.first() {
            session.out.line(&format!("\nTry it: lathe chat --model {}", model.name));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn verify(session: &mut Session, model: &str) -> Outcome {
    let answer = session.ask(CommandBody::ModelsVerify { model: model.to_owned() })?;
    let EventBody::ModelProblems { problems, files_checked, bytes_checked } = &answer else {
        return Err(unexpected());
    };
    if session.out.json {
        session.out.object(&answer);
    } else {
        for problem in problems {
            session.out.line(&format!("{} {}", problem.file, problem.problem));
        }
        if problems.is_empty() {
            session.out.line(&format!("Sound: {files_checked} files, {}", bytes(*bytes_checked)));
        }
    }
    match problems.len() {
        0 => Ok(ExitCode::SUCCESS),
        count => {
            let what = if count == 1 { "1 problem".into() } else { format!("{count} problems") };
            Err(ErrorInfo::new(ErrorCode::Model, format!("{what} in {files_checked} files: {model}"))
                .hint("get the files again from where they came"))
        }
    }
}

pub fn remove(session: &mut Session, body: CommandBody) -> Outcome {
    let answer = session.ask(body)?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::Removed { what, freed_bytes } = answer {
        session.out.line(&format!("Removed {what}, {} freed", bytes(freed_bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn runs(session: &mut Session) -> Outcome {
    let answer = session.ask(CommandBody::RunsList)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Runs { runs } = answer else { return Err(unexpected()) };
    if runs.is_empty() {
        session.out.line("No runs yet: `lathe train --model M --data FILE` starts one");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                run.id.clone(),
                run.name.clone(),
                status(run),
                steps(run),
                loss(run.last_loss),
                loss(run.eval_loss),
                run.runs_on.clone().unwrap_or_else(|| run.device.clone()),
                ago(run.created_secs),
            ]
        })
        .collect();
    let head = ["RUN", "NAME", "STATUS", ">STEP", ">LOSS", ">HELD-OUT", "DEVICE", "STARTED"];
    session.out.text(&table(&head, &rows));
    Ok(ExitCode::SUCCESS)
}

pub fn steps(run: &RunEntry) -> String {
    if run.total_steps == 0 { "-".into() } else { format!("{}/{}", run.step, run.total_steps) }
}

/// In a word; of a queued run with its place, which counts from 1.
pub fn status(run: &RunEntry) -> String {
    let word = match run.status {
        RunStatus::Queued => "queued",
        RunStatus::Running => "running",
        RunStatus::Stopped => "stopped",
        RunStatus::Kept => "kept",
        RunStatus::Interrupted => "interrupted",
        RunStatus::OutOfMemory => "out of memory",
        RunStatus::Diverged => "diverged",
        RunStatus::Completed => "completed",
        RunStatus::Failed => "failed",
    };
    match run.queue_position {
        Some(position) => format!("{word} ({})", position + 1),
        None => word.into(),
    }
}

pub fn run(session: &mut Session, run: String) -> Outcome {
    let answer = session.ask(CommandBody::RunsShow { run })?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Run(details) = answer else { return Err(unexpected()) };
    let RunDetails { run, config, init_adapter, eval_data, steps: points, evals, checkpoints, .. } = *details;
    let mut lines = vec![
        ("Run", format!("{}  {}", run.id, run.name)),
        ("Status", status(&run)),
        ("Model", run.model.clone()),
        ("Data", run.data.clone()),
    ];
    lines.extend(eval_data.map(|path| ("Held-out data", path)));
    lines.extend(init_adapter.map(|path| ("From adapter", path)));
    lines.extend([
        ("Started", ago(run.created_secs)),
        ("Steps", steps(&run)),
        ("Loss", loss(run.last_loss)),
        ("Held-out loss", loss(run.eval_loss)),
        ("Folder", run.out_dir.clone()),
    ]);
    for (index, checkpoint) in checkpoints.iter().enumerate() {
        lines.push((if index == 0 { "Checkpoints" } else { "" }, checkpoint.clone()));
    }
    lines.extend(run.error.clone().map(|error| ("Error", error)));
    let differences = lathe_host::config::differences(&lathe_protocol::RunConfig::default(), &config);
    for (index, (key, _, value)) in differences.iter().enumerate() {
        lines.push((if index == 0 { "Config" } else { "" }, format!("{key} = {value}")));
    }
    session.out.text(&fields(&lines));
    // About twelve lines of history, the first and the last among them.
    let stride = points.len().div_ceil(12).max(1);
    let rows: Vec<Vec<String>> = points
        .iter()
        .enumerate()
        .filter(|(index, _)| index % stride == 0 || index + 1 == points.len())
        .map(|(_, point)| {
            let eval = evals.iter().find(|eval| eval.step == point.step.step);
            let mut cells = vec![
                point.step.step.to_string(),
                format!("{:.4}", point.step.loss),
                loss(eval.map(|eval| eval.loss)),
                eval.map_or("-".into(), |eval| format!("{:.2}", eval.perplexity)),
                eval.map_or("-".into(), |eval| format!("{:.1} %", eval.token_accuracy * 100.0)),
                format!("{:.3}", point.step.grad_norm),
                format!("{:.2e}", point.step.lr),
                format!("{:.0}", point.step.tokens_per_second),
            ];
            if let Some(preference) = &point.step.preference {
                cells.push(format!("{:.3}", preference.margin));
                cells.push(format!("{:.0} %", preference.accuracy * 100.0));
            }
            cells
        })
        .collect();
    if !rows.is_empty() {
        session.out.text("\n");
        let mut head =
            vec![">STEP", ">LOSS", ">HELD-OUT", ">PERPLEXITY", ">ACCURACY", ">GRAD NORM", ">LR", ">TOKENS/S"];
        if points.iter().any(|point| point.step.preference.is_some()) {
            head.extend([">MARGIN", ">PREFERRED"]);
        }
        session.out.text(&table(&head, &rows));
    }
    match run.status {
        RunStatus::Queued => session.out.line(&format!("\nStart it now: lathe runs resume {}", run.id)),
        RunStatus::Running | RunStatus::Completed => {}
        _ => match &run.divergence {
            Some(divergence) => {
                session.out.line(&format!("\nTo {}", lathe_host::recovery_hint(&run.id, divergence)));
            }
            None => session.out.line(&format!("\nResume it: lathe runs resume {}", run.id)),
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives a queued run another place or device.
pub fn move_queued(session: &mut Session, run: String, to: &str) -> Outcome {
    let device = ["auto", "cpu"].contains(&to) || to.starts_with("cuda");
    let body = if device {
        CommandBody::RunsAssign { run, device: to.to_owned() }
    } else {
        let EventBody::Run(details) = session.ask(CommandBody::RunsShow { run: run.clone() })? else {
            return Err(unexpected());
        };
        let place = details.run.queue_position.unwrap_or_default();
        let position = match to {
            "up" => place.saturating_sub(1),
            "down" => place + 1,
            "first" => 0,
            "last" => usize::MAX,
            _ => match to.parse::<usize>() {
                Ok(place) if place > 0 => place - 1,
                _ => {
                    return Err(ErrorInfo::new(
                        ErrorCode::Usage,
                        format!("Not a place in the queue: {to:?}"),
                    )
                    .hint("write up, down, first, last, a place from 1, auto, cpu or cuda:N"));
                }
            },
        };
        CommandBody::RunsMove { run, position }
    };
    let answer = session.ask(body)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Runs { mut runs } = answer else { return Err(unexpected()) };
    runs.sort_by_key(|run| run.queue_position);
    let row = |run: &RunEntry| vec![status(run), run.name.clone(), run.device.clone()];
    session.out.text(&table(&["STATUS", "NAME", "DEVICE"], &runs.iter().map(row).collect::<Vec<_>>()));
    Ok(ExitCode::SUCCESS)
}

pub fn stop(session: &mut Session, run: String, then: StopThen) -> Outcome {
    let answer = session.ask(CommandBody::RunsStop { run, then })?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    match answer {
        EventBody::Removed { what, freed_bytes } => {
            session.out.line(&format!("Removed {what}, {} freed", bytes(freed_bytes)));
        }
        EventBody::Runs { runs } => {
            for run in runs {
                let (word, steps, id) = (status(&run), steps(&run), &run.id);
                session.out.line(&format!("Run {} is {word} at step {steps}", run.name));
                if run.status == RunStatus::Kept {
                    session.out.line("Its adapter is in the library: lathe adapters list");
                }
                if run.status != RunStatus::Completed {
                    session.out.line(&format!("Resume it: lathe runs resume {id}"));
                }
            }
        }
        _ => return Err(unexpected()),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn adapters(session: &mut Session) -> Outcome {
    let answer = session.ask(CommandBody::AdaptersList)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Adapters { adapters } = answer else { return Err(unexpected()) };
    if adapters.is_empty() {
        session
            .out
            .line("No adapters yet: a finished `lathe train` puts one here, `lathe adapters import` too");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = adapters
        .iter()
        .map(|adapter| {
            vec![
                adapter.name.clone(),
                adapter.base_model.clone().unwrap_or_else(|| "-".into()),
                adapter.r.to_string(),
                bytes(adapter.size_bytes),
                loss(adapter.last_loss),
                adapter.created_secs.map_or_else(|| "-".into(), ago),
                adapter
                    .problem
                    .as_ref()
                    .map_or_else(String::new, |problem| format!("cannot be used: {problem}")),
            ]
        })
        .collect();
    session.out.text(&table(&["ADAPTER", "BASE", ">R", ">SIZE", ">LOSS", "MADE", ""], &rows));
    Ok(ExitCode::SUCCESS)
}

/// A command that answers with one adapter.
pub fn adapter(session: &mut Session, body: CommandBody) -> Outcome {
    let answer = session.ask(body)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Adapter(adapter) = answer else { return Err(unexpected()) };
    session.out.text(&describe_adapter(&adapter));
    Ok(ExitCode::SUCCESS)
}

fn base_model(adapter: &AdapterEntry) -> String {
    let name = adapter.base_model.as_deref().unwrap_or("unknown");
    if adapter.origins.is_some() { name.into() } else { format!("{name}, not verified") }
}

fn describe_adapter(adapter: &AdapterEntry) -> String {
    let mut lines = vec![
        ("Adapter", adapter.name.clone()),
        ("Base", base_model(adapter)),
        ("Rank", format!("{}, alpha {}", adapter.r, adapter.alpha)),
        ("Adapts", adapter.targets.join(", ")),
        ("Size", bytes(adapter.size_bytes)),
    ];
    for style in &adapter.styles {
        let settings = style.settings();
        let sampled = if settings.is_empty() { String::new() } else { format!("  {settings}") };
        lines.push(("Style", format!("{}  {}{sampled}", style.name, style.token)));
    }
    lines.extend(adapter.run.clone().map(|run| ("Run", run)));
    if let Some(origins) = &adapter.origins {
        lines.extend(lathe_ui::origins::facts(origins));
    } else {
        lines.extend(adapter.data.clone().map(|data| ("Data", data)));
        lines.extend(adapter.last_loss.map(|last| ("Last loss", loss(Some(last)))));
    }
    lines.extend(adapter.created_secs.map(|created| ("Made", ago(created))));
    lines.push(("Path", adapter.path.clone()));
    lines.extend(adapter.problem.clone().map(|problem| ("Problem", problem)));
    fields(&lines)
}
