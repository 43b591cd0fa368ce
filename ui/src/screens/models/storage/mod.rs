mod deletion;
mod moving;
mod repos;

use std::collections::BTreeSet;

use egui::{Align, Layout, Ui};
use lathe_protocol::{CacheReport, CacheTarget, CommandBody, Event, EventBody};

pub use self::deletion::Deletion;
use self::{
    moving::Moving,
    repos::{Click, Repos},
};
use super::verify::Verify;
use crate::{
    Action, Asked, Outbox, Store, format,
    theme::{self, Tone, icons, space},
    widgets::{
        Button, card, choices, empty_state, error_box, icon_button, notice, search, spinner_line, stat,
    },
};

/// So many warnings are told one by one.
const NUM_WARNINGS: usize = 3;

/// What the Hugging Face cache takes, and what of it can go.
#[derive(Default)]
pub struct Storage {
    report: Asked<Box<CacheReport>>,
    filter: String,
    /// Repositories whose revisions show, by kind and id.
    open: BTreeSet<String>,
    /// To be deleted.
    selected: Vec<CacheTarget>,
    deletion: Option<Deletion>,
    moving: Moving,
}

impl Storage {
    pub fn look(&mut self, out: &mut Outbox) {
        self.report.ask(out, CommandBody::CacheShow);
    }

    /// Unless it is being read now.
    pub fn look_again(&mut self, out: &mut Outbox) {
        if !self.report.is_waiting() {
            self.look(out);
        }
    }

    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        self.report.apply(event, |body| match body {
            EventBody::Cache(report) => Some(report.clone()),
            _ => None,
        });
        let mut is_changed = self.moving.apply(event, out);
        if let Some(deletion) = &mut self.deletion
            && deletion.apply(event, out)
        {
            self.deletion = None;
            self.selected.clear();
            is_changed = true;
        }
        // The list of models brings a look at the cache with it.
        if is_changed {
            out.act(Action::RefreshModels);
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, verify: &mut Verify, store: &Store, out: &mut Outbox) {
        if let Some(error) = &self.report.error {
            error_box(ui, error);
            if Button::secondary("Try again").icon(icons::ARROW_CLOCKWISE).clicked(ui) {
                self.look(out);
                return;
            }
        }
        // What is shown stays while it is read anew.
        let Some(report) = self.report.value.take() else {
            if self.report.is_waiting() {
                spinner_line(ui, "Reading the cache");
            }
            return;
        };
        card(ui, |ui| self.totals(ui, &report, out));
        self.moving.progress(ui, out);
        warnings(ui, &report);
        ui.add_space(space::S);
        if report.repos.is_empty() {
            let text = "Models and data sets that Lathe and Python tools download are kept here";
            empty_state(ui, icons::HARD_DRIVES, "The cache is empty", text, None);
        } else {
            self.list(ui, &report, verify, store, out);
        }
        self.moving.dialogs(ui, &report, out);
        self.report.value = Some(report);
        if let Some(deletion) = &mut self.deletion
            && deletion.ui(ui, out)
        {
            self.deletion = None;
        }
    }

    fn totals(&mut self, ui: &mut Ui, report: &CacheReport, out: &mut Outbox) {
        let CacheReport { path, target, size_bytes, unreferenced_bytes, incomplete_bytes, .. } = report;
        let rest = unreferenced_bytes + incomplete_bytes;
        let detached = repos::detached_bytes(report);
        ui.horizontal(|ui| {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let is_moving = self.moving.is_busy();
                let moves = Button::secondary("Move to another disk…").icon(icons::HARD_DRIVES);
                if moves.enabled(!is_moving && !report.repos.is_empty()).clicked(ui) {
                    self.moving.choose(None, report.size_bytes + rest, out);
                }
                let clean = Button::secondary("Clean up…").icon(icons::BROOM);
                let tooltip = "Nothing is left over: no unfinished, unreferenced or detached files";
                if clean.enabled(rest + detached > 0).tooltip(tooltip).clicked(ui) {
                    self.deletion = Some(Deletion::clean_up(report, out));
                }
                if icon_button(ui, icons::FOLDER_OPEN, "Open the cache's folder").clicked() {
                    out.act(Action::OpenFolder { path: path.clone() });
                }
                if icon_button(ui, icons::ARROW_CLOCKWISE, "Look again").clicked() {
                    self.look(out);
                }
                ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                    ui.label(theme::heading("Hugging Face cache"));
                    if self.report.is_waiting() {
                        ui.add(egui::Spinner::new().size(theme::size::LARGE));
                    }
                });
            });
        });
        let place = match target {
            Some(target) => format!("{path}, which lies at {target}"),
            None => path.clone(),
        };
        ui.add(egui::Label::new(theme::small(ui, &place)).truncate()).on_hover_text(&place);
        ui.add_space(space::XS);
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = space::XXL;
            stat(ui, "In use", &format::bytes(*size_bytes)).on_hover_text(
                "Of what revisions refer to. Files that several share lie here, and count, once",
            );
            stat(ui, "Unfinished", &format::bytes(*incomplete_bytes))
                .on_hover_text("Downloads, and what an interrupted import or move left");
            stat(ui, "Unreferenced", &format::bytes(*unreferenced_bytes))
                .on_hover_text("Files that no revision refers to any more");
            stat(ui, "Free on this disk", &format::bytes(report.disk_free_bytes));
        });
        ui.add_space(space::XS);
        ui.label(theme::small(
            ui,
            "Python tools share it. Revisions of a repository share the files they have in common, which lie here once: \
             deleting one frees only what no other needs.",
        ));
    }

    fn list(
        &mut self,
        ui: &mut Ui,
        report: &CacheReport,
        verify: &mut Verify,
        store: &Store,
        out: &mut Outbox,
    ) {
        ui.horizontal(|ui| {
            search(ui, &mut self.filter, "Find a repository");
            ui.label(theme::weak(ui, summary(report)));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let count = self.selected.len();
                let text = if count == 0 {
                    "Delete selected…".into()
                } else {
                    format!("Delete {count} selected…")
                };
                let button = Button::danger(&text).icon(icons::TRASH).enabled(count > 0);
                if button.tooltip("Select repositories or revisions first").clicked(ui) {
                    self.deletion = Some(Deletion::of(self.selected.clone(), out));
                }
            });
        });
        let Self { filter, open, selected, .. } = self;
        let repos = Repos { report, filter: filter.trim(), verify, now_secs: store.now_secs };
        match repos.ui(ui, open, selected, out) {
            Some(Click::Fold(key)) => {
                let was_open = self.open.remove(&key);
                if !was_open {
                    self.open.insert(key);
                }
            }
            Some(Click::Delete(target)) => self.deletion = Some(Deletion::of(vec![target], out)),
            Some(Click::Move { kind, id, bytes }) => self.moving.choose(Some((kind, id)), bytes, out),
            Some(Click::Open(path)) => out.act(Action::OpenFolder { path }),
            Some(Click::Verify(model)) => verify.start(model, out),
            None => {}
        }
    }
}

/// How much there is, and since when most of it lies unused.
fn summary(report: &CacheReport) -> String {
    let revisions: usize = report.repos.iter().map(|repo| repo.revisions.len()).sum();
    let repos = match report.repos.len() {
        1 => "1 repository".to_owned(),
        count => format!("{count} repositories"),
    };
    format!("{repos}, {}", format::plural(revisions, "revision"))
}

fn warnings(ui: &mut Ui, report: &CacheReport) {
    let warnings = &report.warnings;
    if warnings.len() <= NUM_WARNINGS {
        for warning in warnings {
            notice(ui, Tone::Warning, warning);
        }
        return;
    }
    let text = format!("{} are not laid out as they should be", format::plural(warnings.len(), "folder"));
    choices(ui, Tone::Warning, &text, |ui| {
        ui.collapsing("Which", |ui| {
            for warning in warnings {
                ui.label(warning);
            }
        });
    });
}
