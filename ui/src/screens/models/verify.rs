use egui::Ui;
use lathe_protocol::{CommandBody, Event, EventBody, ModelProblem};

use crate::{
    Asked, Outbox, format,
    theme::{Tone, icons},
    widgets::{Button, error_box, notice, progress_line, spinner_line},
};

/// What `models verify` says of a model.
#[derive(Debug, Clone)]
struct Verdict {
    problems: Vec<ModelProblem>,
    files: usize,
    bytes: u64,
}

/// The newest check of a model's files.
#[derive(Default)]
pub struct Verify {
    model: String,
    check: Asked<Verdict>,
}

impl Verify {
    pub fn apply(&mut self, event: &Event) {
        self.check.apply(event, |body| match body {
            EventBody::ModelProblems { problems, files_checked, bytes_checked } => {
                Some(Verdict { problems: problems.clone(), files: *files_checked, bytes: *bytes_checked })
            }
            _ => None,
        });
    }

    pub fn start(&mut self, model: String, out: &mut Outbox) {
        self.check.clear(out);
        self.check.ask(out, CommandBody::ModelsVerify { model: model.clone() });
        self.model = model;
    }

    /// Whether there is something to show of this model.
    pub fn is_of(&self, model: &str) -> bool {
        let Asked { value, error, .. } = &self.check;
        self.model == model && (self.check.is_waiting() || value.is_some() || error.is_some())
    }

    /// What checking this model's files is at, or has found.
    pub fn ui(&self, ui: &mut Ui, model: &str, out: &mut Outbox) {
        let check = &self.check;
        if self.model != model {
            return;
        }
        if let Some(progress) = &check.progress {
            progress_line(ui, progress);
        } else if check.is_waiting() {
            spinner_line(ui, "Checking the files");
        }
        if let (Some(job), true) = (check.job(), check.is_waiting())
            && Button::ghost("Cancel").icon(icons::X).clicked(ui)
        {
            out.send(job, CommandBody::Stop);
        }
        if let Some(error) = &check.error {
            error_box(ui, error);
        }
        if let Some(Verdict { problems, files, bytes }) = &check.value {
            if problems.is_empty() {
                let text =
                    format!("Sound: {}, {} checked", format::plural(*files, "file"), format::bytes(*bytes));
                notice(ui, Tone::Success, &text);
            }
            for ModelProblem { file, problem } in problems {
                notice(ui, Tone::Error, &format!("{file}: {problem}"));
            }
        }
    }
}
