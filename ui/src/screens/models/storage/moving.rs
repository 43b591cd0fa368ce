use egui::{Align, Layout, Ui};
use lathe_protocol::{CacheReport, CommandBody, Event, EventBody, RepoKind};

use crate::{
    Accept, Asked, Outbox, Pick, Picker, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, card, dialog, error_box, field, labelled, progress_line, spinner_line},
};

/// The cache's, in the folder that is chosen for it.
const FOLDER: &str = "huggingface-hub";

/// None is the whole cache.
type What = Option<(RepoKind, String)>;

/// The cache, or a repository of it, on its way to another disk.
#[derive(Default)]
pub struct Moving {
    what: What,
    bytes: u64,
    picker: Option<Picker>,
    /// The folder that was chosen, until it is confirmed.
    to: Option<String>,
    asked: Asked<()>,
}

impl Moving {
    pub fn is_busy(&self) -> bool {
        self.asked.is_waiting()
    }

    pub fn choose(&mut self, what: What, bytes: u64, out: &mut Outbox) {
        let title = match &what {
            None => "Where shall the cache lie?".to_owned(),
            Some((_, id)) => format!("Where shall {id} lie?"),
        };
        (self.what, self.bytes) = (what, bytes);
        self.picker = Some(Picker::open(title, Accept::FOLDER, None, out));
    }

    /// True if it ended, be it well or not.
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) -> bool {
        if let Some(picker) = &mut self.picker {
            picker.apply(event);
        }
        if let (EventBody::Moved { what, to, bytes }, true) =
            (&event.body, self.asked.job() == Some(event.job))
        {
            let text = format!("Moved {what} to {to}: {}", format::bytes(*bytes));
            out.toast(Tone::Success, text);
        }
        self.asked.apply(event, |_| None)
    }

    pub fn progress(&self, ui: &mut Ui, out: &mut Outbox) {
        if let Some(error) = &self.asked.error {
            error_box(ui, error);
        }
        let Some(job) = self.asked.job() else { return };
        card(ui, |ui| {
            ui.horizontal(|ui| {
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    if Button::secondary("Cancel").tooltip("What was copied so far is deleted").clicked(ui) {
                        out.send(job, CommandBody::Stop);
                    }
                    ui.vertical(|ui| match &self.asked.progress {
                        Some(progress) => progress_line(ui, progress),
                        None => spinner_line(ui, "Moving"),
                    });
                });
            });
        });
    }

    /// A repository keeps its folder's name in the one that is chosen; the cache gets one of its own.
    fn folder_in(&self, chosen: &str) -> String {
        if self.what.is_some() {
            return chosen.to_owned();
        }
        let separator = if chosen.contains('\\') { '\\' } else { '/' };
        format!("{}{separator}{FOLDER}", chosen.trim_end_matches(separator))
    }

    pub fn dialogs(&mut self, ui: &mut Ui, report: &CacheReport, out: &mut Outbox) {
        if let Some(pick) = self.picker.as_mut().and_then(|picker| picker.ui(ui, out)) {
            self.picker = None;
            if let Pick::Path(path) = pick {
                self.to = Some(self.folder_in(&path));
            }
        }
        let Some(to) = &mut self.to else { return };
        let (name, from) = match &self.what {
            None => ("the cache", report.path.as_str()),
            Some((kind, id)) => {
                let repo = report.repos.iter().find(|repo| (repo.kind, &repo.id) == (*kind, id));
                (id.as_str(), repo.map_or(report.path.as_str(), |repo| &repo.path))
            }
        };
        let mut answer = None;
        let dismissed = dialog(ui, &format!("Move {name}?"), 520.0, |ui| {
            let label = format!("{} go into the folder", format::bytes(self.bytes));
            let help = match &self.what {
                None => "It must be empty, or not there yet",
                Some(_) => "The repository becomes a folder in it",
            };
            labelled(ui, &label, help, |ui| field(ui, to, "A folder"));
            ui.add_space(space::S);
            let text = format!(
                "Everything is copied and checked first, then deleted where it is now; stopped before that, nothing has \
                 changed. A link stays at {from}, so that Lathe and Python tools find everything as before."
            );
            ui.label(theme::weak(ui, text));
            ui.add_space(space::L);
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let button = Button::primary("Move").icon(icons::ARROW_RIGHT);
                if button.enabled(!to.trim().is_empty()).clicked(ui) {
                    answer = Some(true);
                }
                if Button::secondary("Cancel").clicked(ui) {
                    answer = Some(false);
                }
            });
        });
        match answer {
            Some(true) => {
                let command = CommandBody::CacheMove { repo: self.what.clone(), to: to.trim().to_owned() };
                self.asked.ask(out, command);
                self.to = None;
            }
            Some(false) => self.to = None,
            None if dismissed => self.to = None,
            None => {}
        }
    }
}
