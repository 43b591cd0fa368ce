//! The whole road on what comes with Lathe.

use std::process::ExitCode;

use lathe_host::config;
use lathe_protocol::{
    CommandBody, ErrorCode, ErrorInfo, EventBody, Message, Role, RunConfig, Thinking, TrainRequest,
    TrainStart,
};
use lathe_ui::format;
use serde_json::json;

use super::{
    Outcome,
    chat::Conversation,
    data, hardware,
    train::{self, Trained},
    unexpected,
};
use crate::{
    append,
    cli::Quickstart,
    output::{Output, loss},
    session::Session,
};

const MODEL: &str = "starter";
/// Not among the sample rows: the style carries over, and what the model knew stays.
const QUESTION: &str = "What is the capital of Italy?";
const COLUMN: usize = 44;

pub fn run(session: &mut Session, args: &Quickstart) -> Outcome {
    let mut config = RunConfig::for_the_samples();
    if let Some(epochs) = args.epochs {
        config.epochs = epochs;
    }
    config::validate(&config)?;

    heading(&session.out, 1, "This machine");
    let EventBody::Hardware(machine) = session.ask(CommandBody::Hardware)? else { return Err(unexpected()) };
    say(&session.out, &hardware::describe(&machine));

    heading(&session.out, 2, "The data, as the model will see it");
    let (data_path, eval_path) = lathe_host::write_samples(session.paths())?;
    let (data, eval_data) = (data_path.display().to_string(), eval_path.display().to_string());
    let body = CommandBody::DataCheck {
        model: MODEL.into(),
        data: data.clone(),
        eval_data: Some(eval_data.clone()),
        config: config.clone(),
    };
    let EventBody::DataReport(report) = session.ask(body)? else { return Err(unexpected()) };
    say(&session.out, &format!("{}\n{data}\n", data::brief(&report)));

    heading(&session.out, 3, "The question, before");
    let before = answer(session, &[])?;
    say(&session.out, &format!("> {QUESTION}\n{before}\n"));

    heading(&session.out, 4, "Fine-tuning");
    let request = TrainRequest {
        model: MODEL.into(),
        data,
        eval_data: Some(eval_data),
        config,
        out_dir: None,
        name: None,
        init_adapter: None,
        force: false,
        resume: false,
        device: session.device.clone(),
        start: TrainStart::Attached,
    };
    let trained = train::execute(session, CommandBody::Train(Box::new(request)))?;
    let Trained { view, summary, adapter, chart } = &trained;
    if !summary.completed {
        let run = view.run.clone().unwrap_or_default();
        return Err(ErrorInfo::new(
            ErrorCode::Busy,
            format!("Stopped after step {} of {}: {}", summary.steps, view.total_steps, summary.out_dir),
        )
        .hint(format!("go on with: lathe runs resume {run}")));
    }
    let adapter = adapter.as_ref().ok_or_else(unexpected)?;
    let held_out = summary.eval_loss.map(|loss| format!(", held-out loss {loss:.3}")).unwrap_or_default();
    let first_loss = view.losses.first().map(|point| point.loss);
    say(
        &session.out,
        &format!(
            "{} steps in {}: loss {} to {}{held_out}\nAdapter  {}\nChart    {}\n",
            summary.steps,
            format::duration(summary.seconds),
            loss(first_loss),
            loss(view.smoothed_loss()),
            adapter.path,
            chart.as_deref().unwrap_or("-")
        ),
    );

    heading(&session.out, 5, "The same question, before and after");
    let after = answer(session, std::slice::from_ref(&adapter.name))?;
    say(&session.out, &format!("> {QUESTION}\n\n{}", side_by_side(&before, &after)));

    heading(&session.out, 6, "Where to go from here");
    say(
        &session.out,
        &format!(
            "Talk to it        lathe chat --model {MODEL} --adapter {}\n\
             See the run       lathe runs show {}\n\
             Your own data     lathe data check --model {MODEL} FILE\n\
             Your own model    lathe models import PATH\n",
            adapter.name,
            view.run.as_deref().unwrap_or_default()
        ),
    );
    if session.out.json {
        session.out.object(&json!({
            "kind": "quickstart",
            "run": view.run,
            "adapter": adapter.name,
            "adapter_path": adapter.path,
            "chart": chart,
            "steps": summary.steps,
            "seconds": summary.seconds,
            "final_loss": summary.final_loss,
            "eval_loss": summary.eval_loss,
            "question": QUESTION,
            "before": before,
            "after": after,
        }));
    }
    Ok(ExitCode::SUCCESS)
}

fn heading(out: &Output, number: usize, title: &str) {
    say(out, &format!("\n{number}. {title}\n"));
}

fn say(out: &Output, text: &str) {
    if !out.json {
        out.text(text);
    }
}

fn answer(session: &mut Session, adapters: &[String]) -> Result<String, ErrorInfo> {
    let (model, adapters, device) = (MODEL.to_owned(), adapters.to_vec(), session.device.clone());
    let body = CommandBody::Chat { model, adapters, device, force: false };
    let mut chat = Conversation::open(session, body, Thinking::Show, None)?;
    chat.sampling.max_tokens = 64;
    chat.silent = true;
    let answer = chat.reply(session, vec![Message::new(Role::User, QUESTION)])??;
    chat.close(session);
    Ok(answer.trim().to_owned())
}

fn side_by_side(before: &str, after: &str) -> String {
    let (left, right) = (wrap(before, COLUMN), wrap(after, COLUMN));
    let mut text =
        format!("{:<COLUMN$} │ {}\n{}─┼─{}\n", "before", "after", "─".repeat(COLUMN), "─".repeat(COLUMN));
    for index in 0..left.len().max(right.len()) {
        let cell = |lines: &[String]| lines.get(index).cloned().unwrap_or_default();
        let (left, right) = (cell(&left), cell(&right));
        let padding = " ".repeat(COLUMN.saturating_sub(left.chars().count()));
        append!(text, "{left}{padding} │ {right}\n");
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}
