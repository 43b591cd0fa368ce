use egui::{Align, Layout, ScrollArea, Ui};
use lathe_protocol::{
    CommandBody, Download, DownloadStatus, ErrorCode, Event, EventBody, Gate, HubDetails, HubFile,
    ModelShape, RunConfig, TokenStatus, in_catalog,
};

use super::super::fetching::{Fetching, failure, is_bucket, page_button, ways_in};
use crate::{
    Action, Asked, Fit, Outbox, Store, fit, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, badge, choice, choices, dialog, field, key_value, notice, spinner_line},
};

const WIDTH: f32 = 640.0;
/// Of the window, beside what can scroll.
const MARGIN: f32 = 230.0;
const FILE_HEIGHT: f32 = 22.0;
const FILES_HEIGHT: f32 = 180.0;

/// What the Hub tells of one model, before it is downloaded.
pub struct Details {
    model: String,
    /// As it stands in its field; empty means the usual one.
    revision: String,
    /// That which is shown.
    asked_revision: Option<String>,
    asked: Asked<Box<HubDetails>>,
    /// Whether it was being downloaded when it was last drawn.
    was_under_way: bool,
}

/// What is known of a model, from the Hub or from the catalog.
struct Facts<'a> {
    license: Option<&'a str>,
    parameters: Option<u64>,
    size_bytes: u64,
    shape: Option<ModelShape>,
}

impl Details {
    pub fn open(model: String, out: &mut Outbox) -> Self {
        let mut details = Self {
            model,
            revision: String::new(),
            asked_revision: None,
            asked: Asked::default(),
            was_under_way: false,
        };
        details.ask(out);
        details
    }

    fn ask(&mut self, out: &mut Outbox) {
        let revision = Some(self.revision.trim().to_owned()).filter(|revision| !revision.is_empty());
        self.asked_revision.clone_from(&revision);
        self.asked.ask(out, CommandBody::HubShow { model: self.model.clone(), revision });
    }

    pub fn stop(&mut self, out: &mut Outbox) {
        self.asked.stop(out);
    }

    pub fn apply(&mut self, event: &Event) {
        let Self { model, asked, .. } = self;
        asked.apply(event, |body| match body {
            EventBody::HubDetails(details) => {
                // It may have been named by its page's address.
                model.clone_from(&details.name);
                Some(details.clone())
            }
            _ => None,
        });
    }

    /// True if it wants to close.
    pub fn ui(&mut self, ui: &mut Ui, fetching: &mut Fetching, store: &Store, out: &mut Outbox) -> bool {
        let (mut is_closed, wishes) = (false, out.actions.len());
        let is_under_way = under_way(&self.model, store).is_some();
        if self.was_under_way && !is_under_way {
            // What is here has changed.
            self.ask(out);
        }
        self.was_under_way = is_under_way;
        let title = self.model.clone();
        let height = ui.ctx().content_rect().height() - MARGIN;
        let dismissed = dialog(ui, &title, WIDTH, |ui| {
            ScrollArea::vertical()
                .max_height(height)
                .min_scrolled_height(height)
                .auto_shrink([false, true])
                .show(ui, |ui| {
                    ui.spacing_mut().item_spacing.y = space::S;
                    self.body(ui, store, out);
                });
            ui.add_space(space::M);
            is_closed = self.foot(ui, fetching, store, out);
        });
        // What leads elsewhere leaves it behind.
        is_closed || dismissed || out.actions.len() > wishes
    }

    fn body(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let known = in_catalog(&self.model);
        if let Some(known) = known {
            ui.label(theme::weak(ui, &known.good_for));
        }
        let mut again = false;
        if self.asked.is_waiting() {
            let what = if is_bucket(&self.model) { "Asking the bucket" } else { "Asking the Hub" };
            spinner_line(ui, what);
        }
        if let Some(error) = &self.asked.error {
            failure(ui, &self.model, error, store, out);
            again = Button::secondary("Try again").icon(icons::ARROW_CLOCKWISE).clicked(ui);
        }
        let details = self.asked.value.as_deref();
        // A refusal has said it, and shows the ways there.
        if !self.asked.error.as_ref().is_some_and(|error| error.code == ErrorCode::Access) {
            self.gate_words(ui, store, out);
        }
        if let Some(details) = details {
            obstacles(ui, details);
        }
        let facts = match (details, known) {
            (Some(details), _) => Facts {
                license: details.license.as_deref(),
                parameters: details.parameters,
                size_bytes: details.size_bytes,
                shape: details.shape,
            },
            (None, Some(known)) => Facts {
                license: Some(&known.license),
                parameters: Some(known.parameters),
                size_bytes: known.download_bytes,
                shape: Some(known.shape),
            },
            (None, None) => {
                if again {
                    self.ask(out);
                }
                return;
            }
        };
        fits(ui, &facts, store);
        let other = details.and_then(|details| other_gguf(ui, details));
        table(ui, &facts, details);
        if let Some(details) = details {
            files(ui, details);
            ui.collapsing("Another revision", |ui| {
                ui.horizontal(|ui| {
                    let name = "A branch, tag or commit; empty is main";
                    ui.scope(|ui| {
                        ui.set_max_width(360.0);
                        field(ui, &mut self.revision, name);
                    });
                    again |= Button::secondary("Look").clicked(ui);
                });
            });
        }
        if let Some(model) = other {
            self.model = model;
            again = true;
        }
        if again {
            self.ask(out);
        }
    }

    /// As the Hub tells, or the catalog meanwhile.
    fn gate(&self) -> Gate {
        let told = self.asked.value.as_ref().map(|details| details.gate);
        told.or_else(|| in_catalog(&self.model).map(|known| known.gate)).unwrap_or_default()
    }

    /// What the owner asks for, with the way there.
    fn gate_words(&self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let token = store.settings.value.as_ref().map(|view| &view.token);
        let has_token = token.is_some_and(TokenStatus::is_there);
        let gate = match (self.gate(), has_token) {
            (Gate::Open, _) => None,
            (Gate::Agree, false) => Some(
                "Its owner wants you to agree to terms. Open its page, sign in and agree; then keep an access token of \
                 that account in Settings",
            ),
            (Gate::Agree, true) => Some(
                "Its owner wants you to agree to terms. Once the account of your token has agreed on its page, it can be \
                 downloaded",
            ),
            (Gate::Ask, false) => Some(
                "Its owner decides who may download it. Ask on its page; once you are let in, keep an access token of \
                 that account in Settings",
            ),
            (Gate::Ask, true) => Some(
                "Its owner decides who may download it. Once the account of your token is let in, it can be downloaded",
            ),
        };
        if let Some(text) = gate.filter(|_| store.usable_model(&self.model).is_none()) {
            choices(ui, Tone::Warning, text, |ui| ways_in(ui, &self.model, store, out));
        }
    }

    /// What can be done with it. True if the dialog wants to close.
    fn foot(&self, ui: &mut Ui, fetching: &mut Fetching, store: &Store, out: &mut Outbox) -> bool {
        let model = self.model.as_str();
        let under_way = under_way(model, store);
        if let Some(download) = under_way {
            fetching.ui(ui, download, false, store, out);
            ui.add_space(space::S);
        } else {
            fetching.refusal(ui, model, store, out);
        }
        let entry = store.usable_model(model);
        let is_here = entry.is_some();
        let mut is_closed = false;
        // Where it is needed, it stands with the reason.
        let is_open = self.gate() == Gate::Open;
        ui.horizontal(|ui| {
            ui.set_min_height(theme::CONTROL_HEIGHT);
            if is_open && self.asked.error.is_none() {
                page_button(ui, model, store);
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let missing = self.asked.value.as_ref().map(|details| details.missing_bytes);
                if let Some(entry) = entry {
                    if Button::primary("Fine-tune…").icon(icons::SPARKLE).clicked(ui) {
                        out.act(Action::NewRun { model: Some(entry.name.clone()) });
                    }
                    if Button::secondary("Chat").icon(icons::CHAT_CIRCLE).clicked(ui) {
                        out.chat(&entry.name);
                    }
                }
                if under_way.is_none() && (!is_here || missing.is_some_and(|missing| missing > 0)) {
                    self.download(ui, fetching, out);
                }
                is_closed = Button::secondary("Close").clicked(ui);
                if is_here {
                    badge(ui, Tone::Success, "On this machine");
                }
            });
        });
        is_closed
    }

    fn download(&self, ui: &mut Ui, fetching: &mut Fetching, out: &mut Outbox) {
        let details = self.asked.value.as_deref();
        let is_told = !self.asked.is_waiting() && self.asked.error.is_none();
        let (text, blocked) = match details {
            None => ("Download".to_owned(), true),
            Some(details) => (
                format!("Download {}", format::bytes(details.missing_bytes)),
                details.problem.is_some() || details.missing_bytes > details.disk_free_bytes,
            ),
        };
        let button = Button::primary(&text).icon(icons::DOWNLOAD_SIMPLE);
        if button.enabled(is_told && !blocked && !fetching.is_busy(&self.model)).clicked(ui) {
            fetching.start(&self.model, self.asked_revision.clone(), out);
        }
    }
}

/// Why it cannot be downloaded or used.
fn obstacles(ui: &mut Ui, details: &HubDetails) {
    if let Some(problem) = &details.problem {
        notice(ui, Tone::Error, problem);
    }
    let HubDetails { missing_bytes, disk_free_bytes, .. } = details;
    if missing_bytes > disk_free_bytes {
        let (needed, free) = (format::bytes(*missing_bytes), format::bytes(*disk_free_bytes));
        notice(ui, Tone::Error, &format!("The disk is too full: needs {needed}, {free} free"));
    }
}

/// Its download, until that is done.
fn under_way<'a>(model: &str, store: &'a Store) -> Option<&'a Download> {
    store.download(model).filter(|download| download.status != DownloadStatus::Done)
}

/// Whether this machine can train it and talk to it.
fn fits(ui: &mut Ui, facts: &Facts<'_>, store: &Store) {
    let Some(shape) = &facts.shape else { return };
    let (training, fit) = fit::memory(shape, &RunConfig::default(), None, store);
    let line = |ui: &mut Ui, what: &str, needed: u64, fit: Option<Fit>| {
        ui.horizontal(|ui| {
            ui.label(theme::strong(what));
            if let Some(fit) = fit {
                badge(ui, fit.tone(), &fit.words(needed));
            }
            ui.add_space(space::M);
        });
    };
    ui.horizontal(|ui| {
        line(ui, "Fine-tune", training.total(), fit);
        let (needed, fit) = fit::chat(shape, facts.size_bytes, store);
        line(ui, "Chat", needed, fit);
    });
}

/// Of several GGUF files one is fetched; what the model is called with another, if one is chosen.
fn other_gguf(ui: &mut Ui, details: &HubDetails) -> Option<String> {
    let is_piece = |name: &str| name.contains("-of-0") || name.contains("mmproj") || name.contains("imatrix");
    let whole = |file: &&HubFile| file.name.to_lowercase().ends_with(".gguf") && !is_piece(&file.name);
    let files: Vec<&HubFile> = details.files.iter().filter(whole).collect();
    let mut chosen = files.iter().find(|file| file.is_wanted)?.name.clone();
    if files.len() < 2 {
        return None;
    }
    let options: Vec<(String, String)> = files
        .iter()
        .map(|file| (file.name.clone(), format!("{}, {}", file.name, format::bytes(file.size_bytes))))
        .collect();
    let response = ui.horizontal(|ui| {
        ui.label(theme::strong("Which file"));
        ui.spacing_mut().combo_width = ui.available_width();
        choice(ui, "Which file", &mut chosen, &options)
    });
    let mut parts = details.name.split(':').next().unwrap_or_default().split('/');
    let (owner, name) = (parts.next()?, parts.next()?);
    response.inner.changed().then(|| format!("{owner}/{name}/{chosen}"))
}

fn table(ui: &mut Ui, facts: &Facts<'_>, details: Option<&HubDetails>) {
    let mut rows = vec![(
        "Licence",
        facts.license.unwrap_or("not told: ask its owner before you pass anything on").to_owned(),
    )];
    if let Some(parameters) = facts.parameters {
        rows.push(("Parameters", format::short_count(parameters)));
    }
    if let Some(architecture) = details.and_then(|details| details.architecture.clone()) {
        rows.push(("Architecture", architecture));
    }
    if let Some(shape) = &facts.shape {
        rows.push(("Context", format!("{} tokens", format::count(shape.context_length as u64))));
    }
    let size = format::bytes(facts.size_bytes);
    let Some(details) = details else {
        rows.push(("Download", size));
        return key_value(ui, "hub facts", rows);
    };
    let here = details.size_bytes.saturating_sub(details.missing_bytes);
    rows.push(match (here, details.missing_bytes) {
        (0, _) => ("Download", size),
        (_, 0) => ("Download", format!("{size}, all of it here already")),
        (here, _) => ("Download", format!("{size}, {} of it here already", format::bytes(here))),
    });
    rows.push(("Free disk", format::bytes(details.disk_free_bytes)));
    rows.push(("Revision", details.revision.clone()));
    key_value(ui, "hub facts", rows);
}

/// What a download fetches, and what it leaves.
fn files(ui: &mut Ui, details: &HubDetails) {
    let wanted = details.files.iter().filter(|file| file.is_wanted).count();
    let left = details.files.len() - wanted;
    let title = match left {
        0 => format::plural(wanted, "file"),
        left => format!("{wanted} of {} are needed", format::plural(wanted + left, "file")),
    };
    ui.collapsing(title, |ui| {
        let area = ScrollArea::vertical().id_salt("hub files").max_height(FILES_HEIGHT);
        area.auto_shrink([false, true]).show_rows(ui, FILE_HEIGHT, details.files.len(), |ui, range| {
            for file in details.files.get(range).unwrap_or_default() {
                file_line(ui, file);
            }
        });
    });
}

fn file_line(ui: &mut Ui, file: &HubFile) {
    let HubFile { name, size_bytes, is_wanted, is_here } = file;
    ui.spacing_mut().interact_size.y = FILE_HEIGHT;
    ui.horizontal(|ui| {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            ui.add_space(space::M);
            ui.label(theme::weak(ui, format::bytes(*size_bytes)));
            let state = match (is_here, is_wanted) {
                (true, _) => "here",
                (false, true) => "",
                (false, false) => "not needed",
            };
            ui.label(theme::small(ui, state));
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                let name = if *is_wanted { egui::RichText::new(name) } else { theme::weak(ui, name) };
                ui.add(egui::Label::new(name).truncate());
            });
        });
    });
}
