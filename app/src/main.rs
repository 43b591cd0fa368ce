//! `lathe`: the command line, and the worker that it re-executes itself as.

mod board;
mod chart;
mod cli;
mod commands;
mod output;
mod progress;
mod serve_ui;
mod session;
mod window;

use std::process::ExitCode;

use clap::Parser as _;
use lathe_protocol::ErrorCode;

use cli::{Cli, CommandLine};
use output::Output;
use session::Session;

fn main() -> ExitCode {
    // Before anything else: a worker is not a person's command.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "worker") {
        return lathe_worker::main();
    }
    let Cli { global, command } = Cli::parse();
    let verbose = global.verbose;
    let json = global.json;
    let outcome = match command {
        Some(CommandLine::ServeUi(args)) => serve_ui::run(&global, args),
        Some(command) => Session::open(&global).and_then(|mut session| {
            let outcome = commands::run(&mut session, command);
            match outcome {
                // Refused before anything was begun, so the command line says all there is to say.
                Err(error) if session.agrees_to_cpu(&error) => match Cli::parse().command {
                    Some(command) => commands::run(&mut session, command),
                    None => Err(error),
                },
                outcome => outcome,
            }
        }),
        None => window::open(&global),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            Output { json, ends_with_reader: true }.error(&error, verbose);
            ExitCode::from(if error.code == ErrorCode::Usage { 2 } else { 1 })
        }
    }
}
