mod cache;
mod chat;
mod compare;
mod data;
mod estimate;
mod hardware;
mod hub;
mod library;
mod quickstart;
mod record;
mod sweep;
mod train;

use std::{path::Path, process::ExitCode};

use lathe_host::config;
use lathe_protocol::{
    CheckStatus, CommandBody, DataFile, ErrorCode, ErrorInfo, EventBody, ResumeHow, RunConfig, StopThen,
};

use crate::{
    cli::{Adapters, CacheAct, CommandLine, ConfigArgs, Data, Eval, Logits, Models, Runs},
    note, output,
    session::Session,
};

pub use library::status;

pub type Outcome = Result<ExitCode, ErrorInfo>;

pub fn run(session: &mut Session, command: CommandLine) -> Outcome {
    match command {
        CommandLine::Quickstart(args) => quickstart::run(session, &args),
        CommandLine::Hardware => hardware::run(session),
        CommandLine::Doctor => doctor(session),

        CommandLine::Models(Models::List { catalog: true }) => hub::catalog(session),
        CommandLine::Models(Models::List { catalog: false }) => library::models(session),
        CommandLine::Models(Models::Search { words, limit }) => hub::search(session, &words, limit),
        CommandLine::Models(Models::Pull { model, revision }) => hub::pull(session, model, revision),
        CommandLine::Models(Models::Show { model }) => library::model(session, model),
        CommandLine::Models(Models::Import { path, name }) => library::import_model(session, path, name),
        CommandLine::Models(Models::Verify { model }) => library::verify(session, &model),
        CommandLine::Models(Models::Rm { model }) => {
            library::remove(session, CommandBody::ModelsRemove { model })
        }
        CommandLine::Models(Models::Cache { act: None, revisions }) => cache::show(session, revisions),
        CommandLine::Models(Models::Cache { act: Some(CacheAct::Rm(args)), .. }) => {
            cache::remove(session, &args)
        }
        CommandLine::Models(Models::Cache { act: Some(CacheAct::Move { dir, repo }), .. }) => {
            cache::move_to(session, full_path(&dir), repo.as_deref())
        }

        CommandLine::Estimate { model, config, probe } => estimate::run(session, &model, &config, probe),

        CommandLine::Data(Data::Check { model, files, eval_data, config }) => {
            data::check(session, model, &files, eval_data, &config)
        }
        CommandLine::Data(Data::Show { model, files, row, config }) => {
            data::show(session, model, &files, row, &config)
        }
        CommandLine::Data(Data::Cache { clear: true }) => {
            library::remove(session, CommandBody::DataCacheClear)
        }
        CommandLine::Data(Data::Cache { clear: false }) => data::cache(session),

        CommandLine::Train(args) => train::run(session, *args),
        CommandLine::Sweep(args) => sweep::run(session, *args),
        CommandLine::Runs(Runs::List) => library::runs(session),
        CommandLine::Runs(Runs::Show { run, reproduce: true }) => record::reproduce(session, run),
        CommandLine::Runs(Runs::Show { run, reproduce: false }) => library::run(session, run),
        CommandLine::Runs(Runs::Export { run, format, out }) => {
            record::export(session, run, format.into(), full_path(&out))
        }
        CommandLine::Runs(Runs::Resume { run, skip_rows, lower_rate, ignore_spikes, less_memory }) => {
            let how = match (skip_rows, lower_rate, ignore_spikes, less_memory) {
                (true, ..) => ResumeHow::SkipRows,
                (_, true, ..) => ResumeHow::LowerRate,
                (_, _, true, _) => ResumeHow::IgnoreSpikes,
                (.., true) => ResumeHow::LessMemory,
                _ => ResumeHow::AsItWas,
            };
            train::resume(session, run, how)
        }
        CommandLine::Runs(Runs::Stop { run, keep, discard }) => {
            let then = match (keep, discard) {
                (true, _) => StopThen::Keep,
                (_, true) => StopThen::Discard,
                _ => StopThen::Pause,
            };
            library::stop(session, run, then)
        }
        CommandLine::Runs(Runs::Compare { runs }) => compare::run(session, &runs),
        CommandLine::Runs(Runs::Move { run, to }) => library::move_queued(session, run, &to),
        CommandLine::Runs(Runs::Work) => sweep::work_off_queue(session),
        CommandLine::Runs(Runs::Rm { run }) => library::remove(session, CommandBody::RunsRemove { run }),

        CommandLine::Adapters(Adapters::List) => library::adapters(session),
        CommandLine::Adapters(Adapters::Show { adapter }) => {
            library::adapter(session, CommandBody::AdaptersShow { adapter })
        }
        CommandLine::Adapters(Adapters::Import { path, name }) => {
            library::adapter(session, CommandBody::AdaptersImport { path, name })
        }
        CommandLine::Adapters(Adapters::Rm { adapter }) => {
            library::remove(session, CommandBody::AdaptersRemove { adapter })
        }

        // It has a host of its own.
        CommandLine::ServeUi(_) => Err(unexpected()),
        CommandLine::Chat(args) => chat::run(session, &args),
        CommandLine::Logits(args) => logits(session, args),
        CommandLine::Eval(args) => eval(session, args),
    }
}

/// Defaults, `--config`, `--set`, checked.
fn read_config(args: &ConfigArgs) -> Result<RunConfig, ErrorInfo> {
    let ConfigArgs { config: file, set } = args;
    let run_config = config::build(file.as_deref(), set)?;
    config::validate(&run_config)?;
    Ok(run_config)
}

/// Puts data files that were named into the config, in place of its own: the first.
fn take_data(given: &[String], config: &mut RunConfig) -> String {
    if !given.is_empty() {
        // A file may be called `a:1`.
        let file = |text: &String| {
            if Path::new(text).exists() { DataFile::new(text) } else { DataFile::parse(text) }
        };
        config.data = given.iter().map(file).collect();
        for file in &mut config.data {
            file.path = full_path(file.path.as_ref());
        }
    }
    let first = config.data.first().map(|file| file.path.clone()).unwrap_or_default();
    if config.data == [DataFile::new(&first)] {
        config.data.clear();
    }
    first
}

fn full_path(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
}

/// A job that answered with something else than its kind.
fn unexpected() -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Internal, "The host answered something else than it was asked")
}

fn doctor(session: &mut Session) -> Outcome {
    let answer = session.ask(CommandBody::Doctor)?;
    let EventBody::Doctor { checks } = &answer else { return Err(unexpected()) };
    let failed = checks.iter().filter(|check| check.status == CheckStatus::Fail).count();
    if session.out.json {
        session.out.object(&answer);
    } else {
        for check in checks {
            let mark = match check.status {
                CheckStatus::Ok => "ok  ",
                CheckStatus::Warn => "warn",
                CheckStatus::Fail => "FAIL",
            };
            session.out.line(&format!("{mark}  {:<13}  {}", check.name, check.message));
            if let Some(hint) = &check.hint {
                session.out.line(&format!("                     hint: {hint}"));
            }
        }
    }
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(ErrorInfo::new(ErrorCode::Internal, format!("{failed} of {} checks failed", checks.len()))
        .hint("each failed check above says what to do"))
}

fn logits(session: &mut Session, args: Logits) -> Outcome {
    let Logits { model, adapter, force, ids, out } = args;
    let device = session.device.clone();
    let answer =
        session.ask(CommandBody::Logits { model, adapter, ids, out: full_path(&out), device, force })?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::LogitsWritten { path, num_tokens, vocab_size } = answer {
        session.out.line(&format!("logits ({num_tokens}, {vocab_size}) f32: {path}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn eval(session: &mut Session, args: Eval) -> Outcome {
    let Eval { model, adapter, force, data, config } = args;
    let mut config = read_config(&config)?;
    // What a run learned from is not what it is measured on.
    config.data.clear();
    let device = session.device.clone();
    let answer = session.ask(CommandBody::Eval { model, adapter, data, config, device, force })?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::Eval(metrics) = answer {
        let mut lines = vec![
            ("Loss", format!("{:.4}", metrics.loss)),
            ("Perplexity", format!("{:.3}", metrics.perplexity)),
            ("Accuracy", format!("{:.1} %", metrics.token_accuracy * 100.0)),
        ];
        if let Some(preference) = &metrics.preference {
            lines.push(("Preference", output::preference(preference)));
        }
        lines.push(("Tokens", format!("{} trained, in {} rows", metrics.loss_tokens, metrics.rows)));
        session.out.text(&output::fields(&lines));
    } else {
        note!("warning: no metrics came");
    }
    Ok(ExitCode::SUCCESS)
}
