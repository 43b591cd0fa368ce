//! `lathe sweep`, and `lathe runs work`: queued runs, worked off side by side.

use std::{collections::HashMap, process::ExitCode};

use lathe_host::config;
use lathe_protocol::{
    CommandBody, ErrorCode, ErrorInfo, Event, EventBody, JobId, MANY_RUNS, RunDetails, RunEntry, RunStatus,
    SweepKey, SweepRequest,
};
use lathe_ui::format::plural;
use serde_json::{Value, json};

use super::{Outcome, compare, train, unexpected};
use crate::{
    board::Board,
    cli::Sweep,
    note,
    session::{STOPPING, Session, interrupts},
};

pub fn run(session: &mut Session, args: Sweep) -> Outcome {
    let Sweep { args, grid, resume, yes } = args;
    let command = if let Some(sweep) = resume {
        CommandBody::SweepResume { sweep }
    } else {
        let keys = grid.iter().map(|pair| key(pair)).collect::<Result<Vec<_>, _>>()?;
        refuse_many(&keys, yes)?;
        let train = train::request(args, session, None)?;
        config::validate(&train.config)?;
        if train.eval_data.is_none() && train.config.eval_ratio <= 0.0 {
            note!(
                "warning: nothing is held out, so the runs are compared by the loss of their training rows"
            );
            note!("hint: add --eval-data FILE, or --set eval_ratio=0.1");
        }
        CommandBody::Sweep(Box::new(SweepRequest { train, keys }))
    };
    let EventBody::Runs { runs } = session.ask(command)? else { return Err(unexpected()) };
    let Some(name) = runs.first().and_then(|run| run.sweep.as_ref()).map(|place| place.name.clone()) else {
        return Err(unexpected());
    };
    note!("sweep {name}: {}", plural(runs.len(), "run"));
    let runs = work(session, Some(&name))?;
    let runs = compare::of_sweep(&runs, &name);
    let ids: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
    let is_left = runs
        .iter()
        .any(|run| matches!(run.status, RunStatus::Queued | RunStatus::Stopped | RunStatus::Interrupted));
    let outcome = compare::print(session, &ids)?;
    if is_left {
        note!("go on with it: lathe sweep --resume {name}");
    }
    Ok(outcome)
}

fn key(pair: &str) -> Result<SweepKey, ErrorInfo> {
    let (key, values) = pair.split_once('=').ok_or_else(|| {
        ErrorInfo::new(ErrorCode::Usage, format!("Not a key with its values: {pair:?}"))
            .hint("write e.g. --grid lora.r=8,16")
    })?;
    Ok(SweepKey::new(key, values))
}

fn refuse_many(keys: &[SweepKey], yes: bool) -> Result<(), ErrorInfo> {
    let count: usize = keys.iter().map(|key| key.values.len()).product();
    if yes || count <= MANY_RUNS {
        return Ok(());
    }
    Err(ErrorInfo::new(ErrorCode::Usage, format!("That makes {count} runs"))
        .hint(format!("add --yes if you mean it; up to {MANY_RUNS} need none")))
}

pub fn work_off_queue(session: &mut Session) -> Outcome {
    work(session, None)?;
    Ok(ExitCode::SUCCESS)
}

/// Works off the queue, or a sweep, with what its runs tell on the way. Returns all runs as they are then.
fn work(session: &mut Session, sweep: Option<&str>) -> Result<Vec<RunEntry>, ErrorInfo> {
    // A reader that leaves does not end a run.
    session.out.ends_with_reader = false;
    let of_sweep = |run: &&RunEntry| match sweep {
        Some(name) => run.sweep.as_ref().is_some_and(|place| place.name == name),
        None => true,
    };
    let EventBody::Runs { runs } = session.ask(CommandBody::RunsList)? else { return Err(unexpected()) };
    let waiting = runs.iter().filter(of_sweep).filter(|run| run.status == RunStatus::Queued);
    let mut board = Board::new(!session.out.json, waiting.clone());
    // What they did before they were stopped was told then.
    let mut told = Told(waiting.map(|run| (run.id.clone(), (run.step, run.step))).collect());
    let worked = session.start(CommandBody::QueueWork { sweep: sweep.map(str::to_owned) });
    let followed = session.start(CommandBody::RunsFollow);
    let mut watched: HashMap<JobId, String> = HashMap::new();
    let (before, mut stops) = (interrupts(), 0);
    let outcome = 'work: loop {
        for Event { job, body } in session.all_events() {
            match body {
                EventBody::Done if job == worked => break 'work Ok(()),
                EventBody::Failed { error } if job == worked => break 'work Err(error),
                EventBody::Runs { runs } if job == followed => {
                    let ours: Vec<&RunEntry> = runs.iter().filter(of_sweep).collect();
                    board.show(&ours);
                    for run in ours.iter().filter(|run| run.status == RunStatus::Running) {
                        if session.out.json
                            && told.knows(&run.id)
                            && !watched.values().any(|known| *known == run.id)
                        {
                            let job = session.start(CommandBody::RunsWatch { run: run.id.clone() });
                            watched.insert(job, run.id.clone());
                        }
                    }
                }
                body => {
                    if let Some(run) = watched.get(&job) {
                        told.tell(session, run, &body);
                    }
                }
            }
        }
        while stops < (interrupts() - before).min(2) {
            stops += 1;
            if stops == 1 {
                board.say(STOPPING);
            }
            session.send(worked, CommandBody::Stop);
        }
    };
    for job in watched.keys().chain([&followed]) {
        session.send(*job, CommandBody::Stop);
    }
    let EventBody::Runs { runs } = session.ask(CommandBody::RunsList)? else { return Err(unexpected()) };
    board.show(&runs.iter().filter(of_sweep).collect::<Vec<_>>());
    if session.out.json {
        // What came after the last look.
        for run in runs.iter().filter(of_sweep) {
            if !told.knows(&run.id) {
                continue;
            }
            if let EventBody::Run(details) = session.ask(CommandBody::RunsShow { run: run.id.clone() })? {
                told.record(session, &details);
            }
        }
    }
    session.out.ends_with_reader = true;
    outcome.map(|()| runs)
}

/// Up to which step and evaluation each run was told, as JSON lines.
struct Told(HashMap<String, (usize, usize)>);

impl Told {
    fn knows(&self, run: &str) -> bool {
        self.0.contains_key(run)
    }

    fn tell(&mut self, session: &Session, run: &str, body: &EventBody) {
        let (step, eval) = self.0.entry(run.to_owned()).or_default();
        match body {
            EventBody::Run(details) => return self.record(session, details),
            EventBody::Step(metrics) => *step = metrics.step,
            EventBody::Eval(metrics) => *eval = metrics.step,
            EventBody::Checkpoint { .. } => {}
            _ => return,
        }
        session.out.object(&of_run(run, body));
    }

    /// What of a run's history is not told yet.
    fn record(&mut self, session: &Session, details: &RunDetails) {
        let run = &details.run.id;
        let (step, eval) = self.0.entry(run.clone()).or_default();
        let mut events: Vec<EventBody> = Vec::new();
        for point in details.steps.iter().filter(|point| point.step.step > *step) {
            events.push(EventBody::Step(point.step));
        }
        events.extend(
            details.evals.iter().filter(|metrics| metrics.step > *eval).map(|eval| EventBody::Eval(*eval)),
        );
        *step = details.steps.last().map_or(0, |point| point.step.step);
        *eval = details.evals.last().map_or(0, |metrics| metrics.step);
        for event in events {
            session.out.object(&of_run(run, &event));
        }
    }
}

/// A run's event, with the run it is of.
fn of_run(run: &str, event: &EventBody) -> Value {
    let mut value = json!(event);
    if let Value::Object(fields) = &mut value {
        fields.insert("run".into(), json!(run));
    }
    value
}
