use egui::Ui;
use lathe_protocol::{CommandBody, Event, EventBody, LogFormat};

use crate::{
    Accept, Asked, Outbox, Pick, Picker,
    theme::{self, Tone, icons, space},
    widgets::{Button, dialog, error_box, notice, spinner_line},
};

/// What is taken along of a run: the command that does it again, and its metrics.
#[derive(Default)]
pub struct Record {
    command: Asked<Copied>,
    /// Put into the clipboard in the next frame.
    to_copy: bool,
    export: Asked<String>,
    choosing: Option<Choosing>,
}

struct Copied {
    command: String,
    warnings: Vec<String>,
}

/// What an export still needs to know.
enum Choosing {
    Format,
    Folder(LogFormat, Box<Picker>),
}

impl Record {
    pub fn copy_command(&mut self, run: &str, out: &mut Outbox) {
        self.command.ask(out, CommandBody::RunsReproduce { run: run.to_owned() });
    }

    pub fn export(&mut self) {
        self.choosing = Some(Choosing::Format);
    }

    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        let copied = self.command.apply(event, |body| match body {
            EventBody::Reproduction { command, warnings, .. } => {
                Some(Copied { command: command.clone(), warnings: warnings.clone() })
            }
            _ => None,
        });
        self.to_copy |= copied && self.command.error.is_none();
        let exported = self.export.apply(event, |body| match body {
            EventBody::Exported { paths, .. } => Some(paths.join(", ")),
            _ => None,
        });
        if exported && let Some(paths) = self.export.value.take() {
            out.toast(Tone::Success, format!("Exported to {paths}"));
        }
        if let Some(Choosing::Folder(_, picker)) = &mut self.choosing {
            picker.apply(event);
        }
    }

    /// What came of it, and the questions of an export.
    pub fn ui(&mut self, ui: &mut Ui, run: &str, out: &mut Outbox) {
        if let (true, Some(copied)) = (std::mem::take(&mut self.to_copy), &self.command.value) {
            ui.ctx().copy_text(copied.command.clone());
            let but = if copied.warnings.is_empty() { "" } else { ", but not everything is as it was" };
            out.toast(Tone::Neutral, format!("Copied the command{but}"));
        }
        for error in [&self.command.error, &self.export.error].into_iter().flatten() {
            error_box(ui, error);
        }
        if self.command.is_waiting() {
            spinner_line(ui, "Comparing the run's files with what they were");
        }
        for warning in self.command.value.iter().flat_map(|copied| &copied.warnings) {
            notice(ui, Tone::Warning, warning);
        }
        match &mut self.choosing {
            None => {}
            Some(Choosing::Format) => self.choose_format(ui, out),
            Some(Choosing::Folder(format, picker)) => match picker.ui(ui, out) {
                None => {}
                Some(Pick::Cancelled) => self.choosing = None,
                Some(Pick::Path(folder)) => {
                    let command =
                        CommandBody::RunsExport { run: run.to_owned(), format: *format, out: folder };
                    self.export.ask(out, command);
                    self.choosing = None;
                }
            },
        }
    }

    fn choose_format(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let mut chosen = None;
        let closed = dialog(ui, "Export logs", 420.0, |ui| {
            let text =
                "Losses, learning rate, gradient norm, speed and evaluations, for another program to read.";
            ui.label(theme::weak(ui, text));
            ui.add_space(space::L);
            ui.horizontal(|ui| {
                let tensorboard = Button::secondary("TensorBoard…").icon(icons::EXPORT);
                if tensorboard.tooltip("A folder with an event file").clicked(ui) {
                    chosen = Some((LogFormat::Tensorboard, "Folder for the event files"));
                }
                let csv = Button::secondary("CSV…").icon(icons::EXPORT);
                if csv.tooltip("A table, a line a step").clicked(ui) {
                    chosen = Some((LogFormat::Csv, "Folder for the table"));
                }
            });
        });
        if let Some((format, title)) = chosen {
            let picker = Picker::open(title, Accept::FOLDER, None, out);
            self.choosing = Some(Choosing::Folder(format, Box::new(picker)));
        } else if closed {
            self.choosing = None;
        }
    }
}
