use std::{path::Path, process::ExitCode};

use lathe_host::config;
use lathe_protocol::{
    AdapterEntry, CommandBody, ErrorCode, ErrorInfo, EvalMetrics, EventBody, ResumeHow, RunConfig,
    TrainRequest, TrainStart, TrainSummary,
};
use lathe_ui::{RunView, format};
use serde_json::{Value, json};

use super::{Outcome, full_path, take_data};
use crate::{
    append, chart,
    cli::{ConfigArgs, Train, TrainArgs},
    note,
    output::{self, loss},
    progress::Training,
    session::{OnInterrupt, Session},
};

/// How a run went.
pub struct Trained {
    pub view: RunView,
    pub summary: TrainSummary,
    /// In the library, if the run was completed and made one.
    pub adapter: Option<AdapterEntry>,
    /// The loss curve as PNG.
    pub chart: Option<String>,
}

pub fn run(session: &mut Session, args: Train) -> Outcome {
    let Train { args, out, resume, queue } = args;
    // A resumed run keeps its settings; what is given here must agree with them.
    let kept = out.as_deref().filter(|_| resume).map(kept_config).transpose()?;
    let request = request(args, session, kept)?;
    config::validate(&request.config)?;
    let start = if queue { TrainStart::Queued } else { TrainStart::Attached };
    let out_dir = out.as_deref().map(full_path);
    let body = CommandBody::Train(Box::new(TrainRequest { out_dir, resume, start, ..request }));
    if !queue {
        return finish(session, body);
    }
    let answer = session.ask(body)?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::RunStarted { run, name, .. } = answer {
        session.out.line(&format!("Run {name} waits in the queue: {run}"));
        session.out.line("Work it off: lathe runs work");
    }
    Ok(ExitCode::SUCCESS)
}

/// What the flags say, on the defaults or the settings that a run was begun with. Not yet validated.
pub fn request(
    args: TrainArgs,
    session: &Session,
    kept: Option<RunConfig>,
) -> Result<TrainRequest, ErrorInfo> {
    let TrainArgs { model, data, eval_data, config, init_adapter, force, style, max_steps, name } = args;
    let ConfigArgs { config: file, set: mut sets } = config;
    if !style.is_empty() {
        sets.push(format!("styles={}", style.join(",")));
    }
    sets.extend(max_steps.map(|steps| format!("max_steps={steps}")));
    let mut config = config::build_on(&kept.unwrap_or_default(), file.as_deref(), &sets)?;
    let data = take_data(&data, &mut config);
    Ok(TrainRequest {
        model: model.unwrap_or_default(),
        data,
        eval_data,
        config,
        out_dir: None,
        name,
        init_adapter,
        force,
        resume: false,
        device: session.device.clone(),
        start: TrainStart::Attached,
    })
}

pub fn resume(session: &mut Session, run: String, how: ResumeHow) -> Outcome {
    let device = Some(session.device.clone()).filter(|device| device != "auto");
    finish(session, CommandBody::RunsResume { run, how, start: TrainStart::Attached, device })
}

fn kept_config(out: &Path) -> Result<RunConfig, ErrorInfo> {
    let kept = out.join("run.toml");
    if !kept.exists() {
        return Err(ErrorInfo::new(
            ErrorCode::NotFound,
            format!("No run to resume in this folder: it has no run.toml: {}", full_path(out)),
        )
        .hint("leave --resume out to start a new run"));
    }
    config::build(Some(&kept), &[])
}

fn finish(session: &mut Session, body: CommandBody) -> Outcome {
    let trained = execute(session, body)?;
    if session.out.json {
        session.out.object(&done_object(&trained));
    } else {
        session.out.text(&describe(&trained));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a training job to its end, with its progress on stderr and (`--json`) its events on stdout.
pub fn execute(session: &mut Session, body: CommandBody) -> Result<Trained, ErrorInfo> {
    // A reader that leaves does not end a run.
    session.out.ends_with_reader = false;
    let mut progress = Training::new(!session.out.json);
    let mut summary = None;
    let mut adapter = None;
    let outcome = session.run(body, OnInterrupt::Save, &mut |session, event| {
        progress.apply(&event);
        match event {
            EventBody::RunStarted { run, name, out_dir } => note!("run {run} ({name}): {out_dir}"),
            EventBody::Step(_)
            | EventBody::Eval(_)
            | EventBody::Checkpoint { .. }
            | EventBody::Diverged(_)
                if session.out.json =>
            {
                session.out.object(&event);
            }
            EventBody::TrainingDone(done) => summary = Some(done),
            EventBody::Adapter(entry) => adapter = Some(*entry),
            _ => {}
        }
    });
    progress.end();
    session.out.ends_with_reader = true;
    outcome?;
    let mut view = progress.view;
    // A resumed run's chart begins where the run did.
    if let (true, Some(run)) = (view.first_step > 0, view.run.clone())
        && let EventBody::Run(details) = session.ask(CommandBody::RunsShow { run })?
    {
        view = RunView::of_record(&details);
    }
    let summary =
        summary.ok_or_else(|| ErrorInfo::new(ErrorCode::Internal, "The run ended without a summary"))?;
    let chart = match chart::write(&view, Path::new(&summary.out_dir)) {
        Ok(path) => path.map(|path| path.display().to_string()),
        Err(error) => {
            note!("warning: the loss chart could not be drawn: {error}");
            None
        }
    };
    Ok(Trained { view, summary, adapter, chart })
}

fn done_object(trained: &Trained) -> Value {
    let Trained { view, summary, adapter, chart } = trained;
    let mut object = json!({"kind": "done"});
    if let (Value::Object(object), Ok(Value::Object(fields))) = (&mut object, serde_json::to_value(summary)) {
        object.extend(fields);
        let eval = kept_eval(trained);
        object.insert("perplexity".into(), json!(eval.map(|eval| eval.perplexity)));
        object.insert("token_accuracy".into(), json!(eval.map(|eval| eval.token_accuracy)));
        if let Some(preference) = eval.and_then(|eval| eval.preference) {
            object.insert("preference".into(), json!(preference));
        }
        object.insert("run".into(), json!(view.run));
        object.insert("name".into(), json!(view.name));
        object.insert("adapter".into(), json!(adapter.as_ref().map(|adapter| &adapter.name)));
        object.insert("chart".into(), json!(chart));
    }
    object
}

/// Of the weights that were saved.
fn kept_eval(trained: &Trained) -> Option<&EvalMetrics> {
    trained.view.evals.iter().find(|eval| eval.step == trained.summary.kept_step)
}

fn describe(trained: &Trained) -> String {
    let Trained { view, summary, adapter, chart } = trained;
    let run = view.run.as_deref().unwrap_or_default();
    let took = format::duration(summary.seconds);
    let last = loss(view.smoothed_loss().or(summary.final_loss));
    let mut text = if summary.completed {
        format!("Done: {} steps in {took}, loss {last}", summary.steps)
    } else {
        format!("Stopped after step {} of {}, loss {last}", summary.steps, view.total_steps)
    };
    if let Some(eval) = summary.eval_loss {
        append!(text, ", held-out loss {eval:.4}");
    }
    if let Some(eval) = kept_eval(trained) {
        let accuracy = eval.token_accuracy * 100.0;
        append!(text, ", perplexity {:.2}, accuracy {accuracy:.1} %", eval.perplexity);
        if let Some(preference) = &eval.preference {
            append!(text, ", {}", output::preference(preference));
        }
    }
    text.push('\n');
    if summary.kept_step < summary.steps {
        append!(text, "Kept the weights of step {}, which had the lowest held-out loss\n", summary.kept_step);
    }
    if !summary.completed {
        append!(text, "Resume it: lathe runs resume {run}\n");
    }
    if let Some(adapter) = adapter {
        append!(text, "Adapter  {}  {}\n", adapter.name, adapter.path);
    }
    append!(text, "Folder   {}\n", summary.out_dir);
    if let Some(chart) = chart {
        append!(text, "Chart    {chart}\n");
    }
    if let Some(adapter) = adapter {
        let base = adapter.base_model.as_deref().unwrap_or("M");
        append!(text, "Try it: lathe chat --model {base} --adapter {}\n", adapter.name);
    } else if summary.completed {
        append!(text, "Try it: lathe chat --model {}\n", summary.out_dir);
    }
    text
}
