//! `lathe runs compare`: runs, or a sweep, side by side.

use std::process::ExitCode;

use lathe_protocol::{AdapterEntry, CommandBody, EventBody, RunDetails, RunEntry};
use lathe_ui::{
    comparison::{self, Outcome as RunOutcome},
    format,
};
use serde_json::{Value, json};

use super::{Outcome, library::status, unexpected};
use crate::{
    append,
    board::title,
    output::{loss, table},
    session::Session,
};

pub fn run(session: &mut Session, names: &[String]) -> Outcome {
    let EventBody::Runs { runs: all } = session.ask(CommandBody::RunsList)? else { return Err(unexpected()) };
    let mut wanted: Vec<String> = Vec::new();
    for name in names {
        let found = of_sweep(&all, name);
        if found.is_empty() {
            wanted.push(name.clone());
        }
        wanted.extend(found.iter().map(|run| run.id.clone()));
    }
    print(session, &wanted)
}

/// The runs of a sweep, in their order.
pub fn of_sweep<'a>(runs: &'a [RunEntry], name: &str) -> Vec<&'a RunEntry> {
    let place =
        |run: &RunEntry| run.sweep.as_ref().filter(|place| place.name == name).map(|place| place.index);
    let mut found: Vec<_> = runs.iter().filter(|run| place(run).is_some()).collect();
    found.sort_by_key(|run| place(run));
    found
}

/// The comparison of these runs.
pub fn print(session: &mut Session, names: &[String]) -> Outcome {
    let mut runs = Vec::new();
    for name in names {
        match session.ask(CommandBody::RunsShow { run: name.clone() })? {
            EventBody::Run(details) => runs.push(*details),
            _ => return Err(unexpected()),
        }
    }
    let EventBody::Adapters { adapters } = session.ask(CommandBody::AdaptersList)? else {
        return Err(unexpected());
    };
    let runs: Vec<&RunDetails> = runs.iter().collect();
    if session.out.json {
        session.out.object(&as_json(&runs, &adapters));
    } else {
        session.out.text(&as_text(&runs, &adapters));
    }
    Ok(ExitCode::SUCCESS)
}

fn adapter_of<'a>(run: &RunEntry, adapters: &'a [AdapterEntry]) -> Option<&'a str> {
    let made_by_it = |adapter: &&AdapterEntry| adapter.run.as_ref() == Some(&run.name);
    adapters.iter().find(made_by_it).map(|adapter| adapter.name.as_str())
}

fn as_text(runs: &[&RunDetails], adapters: &[AdapterEntry]) -> String {
    let distinctions = comparison::distinctions(runs);
    let best = comparison::best(runs);
    let of_one_sweep = runs.iter().all(|details| details.run.sweep.is_some());
    let mut head: Vec<&str> = if of_one_sweep { Vec::new() } else { vec!["RUN"] };
    head.extend(distinctions.iter().map(|difference| difference.key.as_str()));
    head.extend([">HELD-OUT", ">LOSS", ">TIME", ">TOKENS/S", "STATUS", "ADAPTER"]);
    let rows: Vec<Vec<String>> = runs
        .iter()
        .enumerate()
        .map(|(index, details)| {
            let RunOutcome { eval_loss, loss: last, seconds, tokens_per_second } = RunOutcome::of(details);
            let mark = |text: String, marked: bool| {
                format!("{}{text}", if marked && best == Some(index) { "* " } else { "" })
            };
            let mut row = if of_one_sweep { Vec::new() } else { vec![details.run.name.clone()] };
            row.extend(distinctions.iter().map(|difference| difference.values[index].clone()));
            row.extend([
                mark(loss(eval_loss), eval_loss.is_some()),
                mark(loss(last), eval_loss.is_none()),
                if seconds > 0.0 { format::duration(seconds) } else { "-".into() },
                tokens_per_second.map_or_else(|| "-".into(), |speed| format!("{speed:.0}")),
                status(&details.run),
                adapter_of(&details.run, adapters).unwrap_or("-").into(),
            ]);
            row
        })
        .collect();
    let mut text = table(&head, &rows);
    if let Some(best) = best {
        let what = if RunOutcome::of(runs[best]).eval_loss.is_some() { "held-out loss" } else { "loss" };
        append!(text, "\n* lowest {what}: {}\n", runs[best].run.name);
    }
    for run in runs.iter().map(|details| &details.run) {
        if let Some(error) = &run.error {
            append!(text, "{}: {error}\n", title(run));
        }
    }
    text
}

fn as_json(runs: &[&RunDetails], adapters: &[AdapterEntry]) -> Value {
    let distinctions = comparison::distinctions(runs);
    let row = |(index, details): (usize, &&RunDetails)| {
        let run = &details.run;
        let RunOutcome { eval_loss, loss, seconds, tokens_per_second } = RunOutcome::of(details);
        let values: serde_json::Map<String, Value> = distinctions
            .iter()
            .map(|difference| (difference.key.clone(), json!(difference.values[index])))
            .collect();
        json!({
            "run": run.id, "name": run.name, "values": values, "status": run.status, "error": run.error,
            "step": run.step, "total_steps": run.total_steps, "eval_loss": eval_loss, "loss": loss,
            "seconds": seconds, "tokens_per_second": tokens_per_second, "device": run.runs_on,
            "adapter": adapter_of(run, adapters),
        })
    };
    let sweep = runs.first().and_then(|details| details.run.sweep.as_ref()).map(|place| &place.name);
    json!({
        "kind": "comparison",
        "sweep": sweep,
        "keys": distinctions.iter().map(|difference| &difference.key).collect::<Vec<_>>(),
        "runs": runs.iter().enumerate().map(row).collect::<Vec<_>>(),
        "best": comparison::best(runs).map(|best| &runs[best].run.id),
    })
}
