//! What is kept of a run, for another program or another run.

use std::process::ExitCode;

use lathe_protocol::{CommandBody, EventBody, LogFormat};

use super::{Outcome, unexpected};
use crate::{note, session::Session};

/// The command that does a run again; what differs by now goes to stderr.
pub fn reproduce(session: &mut Session, run: String) -> Outcome {
    let answer = session.ask(CommandBody::RunsReproduce { run })?;
    let EventBody::Reproduction { command, warnings, .. } = &answer else { return Err(unexpected()) };
    for warning in warnings {
        note!("warning: {warning}");
    }
    if session.out.json {
        session.out.object(&answer);
    } else {
        session.out.line(command);
    }
    Ok(ExitCode::SUCCESS)
}

pub fn export(session: &mut Session, run: String, format: LogFormat, out: String) -> Outcome {
    let answer = session.ask(CommandBody::RunsExport { run, format, out })?;
    let EventBody::Exported { paths, steps, evals } = &answer else { return Err(unexpected()) };
    if session.out.json {
        session.out.object(&answer);
    } else {
        for path in paths {
            session.out.line(&format!("{steps} steps, {evals} evaluations: {path}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
