use egui::{Align, Label, Layout, OpenUrl, Ui};
use lathe_protocol::{
    CommandBody, Download, DownloadAct, DownloadStatus, ErrorCode, ErrorInfo, Event, EventBody, JobId,
    ModelEntry,
};

use super::run::bar;
use crate::{
    Outbox, Route, Store, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, badge, dialog, error_box, icon_button},
};

/// What a person does with downloads, wherever they show: in their list, with their model, in the wizard.
#[derive(Default)]
pub struct Fetching {
    /// Changes that were asked for, by the model's name.
    asked: Vec<(JobId, String)>,
    /// The newest change that was refused.
    refused: Option<(String, ErrorInfo)>,
    removing: Option<Download>,
}

impl Fetching {
    pub fn apply(&mut self, event: &Event) {
        let Some(index) = self.asked.iter().position(|(job, _)| *job == event.job) else { return };
        match &event.body {
            EventBody::Done => drop(self.asked.remove(index)),
            EventBody::Failed { error } => {
                let (_, model) = self.asked.remove(index);
                self.refused = Some((model, error.clone()));
            }
            _ => {}
        }
    }

    pub fn start(&mut self, model: &str, revision: Option<String>, out: &mut Outbox) {
        self.ask(model, CommandBody::DownloadsAdd { model: model.to_owned(), revision }, out);
    }

    pub fn act(&mut self, model: &str, act: DownloadAct, out: &mut Outbox) {
        self.ask(model, CommandBody::DownloadsAct { model: model.to_owned(), act }, out);
    }

    fn ask(&mut self, model: &str, body: CommandBody, out: &mut Outbox) {
        self.refused = None;
        self.asked.push((out.ask(body), model.to_owned()));
    }

    /// Whether something was asked for about it, and not answered yet.
    pub fn is_busy(&self, model: &str) -> bool {
        self.asked.iter().any(|(_, busy)| busy == model)
    }

    /// Why the newest change was refused, if it was one about this model.
    pub fn refusal(&self, ui: &mut Ui, model: &str, store: &Store, out: &mut Outbox) {
        if let Some((_, error)) = self.refused.as_ref().filter(|(refused, _)| refused == model) {
            failure(ui, model, error, store, out);
        }
    }

    /// How far a download is and what can be done about it; `with_name`, where nothing above tells it.
    pub fn ui(&mut self, ui: &mut Ui, download: &Download, with_name: bool, store: &Store, out: &mut Outbox) {
        let Download { model, status, note, error, .. } = download;
        ui.horizontal(|ui| {
            badge(ui, tone(*status), word(*status));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                self.controls(ui, download, store, out);
                ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                    let text = if with_name {
                        theme::strong(title(download))
                    } else {
                        theme::weak(ui, facts(download))
                    };
                    ui.add(Label::new(text).truncate()).on_hover_text(model);
                });
            });
        });
        if *status != DownloadStatus::Done {
            bar(ui, fraction(download), tone(*status), model, ui.available_width());
        }
        if with_name {
            ui.label(theme::weak(ui, facts(download)));
        }
        if let Some(note) = note {
            ui.horizontal(|ui| {
                ui.label(theme::icon(icons::CLOCK).color(Tone::Warning.color(ui)));
                ui.add(Label::new(note).wrap());
            });
        }
        if let Some(error) = error {
            failure(ui, model, error, store, out);
        }
        self.refusal(ui, model, store, out);
    }

    fn controls(&mut self, ui: &mut Ui, download: &Download, store: &Store, out: &mut Outbox) {
        let Download { model, status, .. } = download;
        let is_free = !self.is_busy(model);
        let remove = format!("Remove {model} from the downloads");
        if icon_button(ui, icons::X, &remove).clicked() && is_free {
            match (status, download.done_bytes) {
                (DownloadStatus::Done, _) => self.act(model, DownloadAct::Forget, out),
                (_, 0) => self.act(model, DownloadAct::Discard, out),
                _ => self.removing = Some(download.clone()),
            }
        }
        let mut button = |ui: &mut Ui, text: &str, icon, act| {
            if Button::secondary(text).icon(icon).enabled(is_free).clicked(ui) {
                self.act(model, act, out);
            }
        };
        match status {
            DownloadStatus::Running | DownloadStatus::Queued => {
                button(ui, "Pause", icons::PAUSE, DownloadAct::Pause);
            }
            DownloadStatus::Paused => button(ui, "Resume", icons::PLAY, DownloadAct::Resume),
            DownloadStatus::Failed => button(ui, "Try again", icons::ARROW_CLOCKWISE, DownloadAct::Resume),
            DownloadStatus::Done => {}
        }
        let mut queue = store.downloads().iter().filter(|other| other.status == DownloadStatus::Queued);
        let is_next = queue.next().is_none_or(|next| next.model == *model);
        if *status == DownloadStatus::Queued && !is_next {
            button(ui, "Download next", icons::ARROW_UP, DownloadAct::First);
        }
    }

    /// Asks what becomes of what was fetched so far.
    pub fn dialog(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let Some(download) = &self.removing else { return };
        let mut act = None;
        let mut is_over = dialog(ui, "Remove the download?", 480.0, |ui| {
            let (model, done) = (&download.model, format::bytes(download.done_bytes));
            let text = format!(
                "{model} is not whole: {done} of it are here. Kept, they count as an incomplete download in Storage, \
                 and downloading it again goes on from there."
            );
            ui.label(theme::weak(ui, text));
            ui.add_space(space::L);
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if Button::danger("Remove and delete").clicked(ui) {
                    act = Some(Some(DownloadAct::Discard));
                }
                if Button::secondary("Remove, keep the files").clicked(ui) {
                    act = Some(Some(DownloadAct::Forget));
                }
                if Button::ghost("Cancel").clicked(ui) {
                    act = Some(None);
                }
            });
        });
        is_over |= act.is_some();
        if !is_over {
            return;
        }
        if let (Some(download), Some(Some(act))) = (self.removing.take(), act) {
            self.act(&download.model, act, out);
        }
        self.removing = None;
    }
}

/// What failed about a model elsewhere; what its owner or the Hub did not permit, with the way there.
pub fn failure(ui: &mut Ui, model: &str, error: &ErrorInfo, store: &Store, out: &mut Outbox) {
    error_box(ui, error);
    if error.code == ErrorCode::Access {
        ui.horizontal(|ui| ways_in(ui, model, store, out));
    }
}

/// To a model's page, and to where the token is kept.
pub fn ways_in(ui: &mut Ui, model: &str, store: &Store, out: &mut Outbox) {
    page_button(ui, model, store);
    if Button::secondary("Open Settings").icon(icons::KEY).clicked(ui) {
        out.go(Route::Settings);
    }
}

/// Opens the model's page on the Hub in the browser; nothing for a model that has none.
pub fn page_button(ui: &mut Ui, model: &str, store: &Store) {
    if is_bucket(model) {
        return;
    }
    let button = Button::secondary("Open its page").icon(icons::ARROW_SQUARE_OUT);
    let url = store.page_of(model);
    if button.tooltip(&url).clicked(ui) {
        ui.ctx().open_url(OpenUrl::new_tab(url));
    }
}

/// Whether a model that is here is known by its name on the Hub, not by a path or a bucket.
pub fn is_of_hub(model: &ModelEntry) -> bool {
    let name = &model.name;
    model.revision.is_some()
        && name.contains('/')
        && !name.starts_with('/')
        && !name.contains('\\')
        && !is_bucket(name)
}

/// Whether a name is that of a folder in an S3 bucket.
pub fn is_bucket(model: &str) -> bool {
    model.starts_with("s3://")
}

/// The model, and which revision of it, if not the usual one.
fn title(download: &Download) -> String {
    match &download.revision {
        Some(revision) => format!("{} at {revision}", download.model),
        None => download.model.clone(),
    }
}

/// 0 to 1.
fn fraction(download: &Download) -> f32 {
    (download.done_bytes as f64 / download.total_bytes.max(1) as f64).min(1.0) as f32
}

fn word(status: DownloadStatus) -> &'static str {
    match status {
        DownloadStatus::Queued => "Queued",
        DownloadStatus::Running => "Downloading",
        DownloadStatus::Paused => "Paused",
        DownloadStatus::Failed => "Failed",
        DownloadStatus::Done => "Done",
    }
}

fn tone(status: DownloadStatus) -> Tone {
    match status {
        DownloadStatus::Queued | DownloadStatus::Paused => Tone::Neutral,
        DownloadStatus::Running => Tone::Accent,
        DownloadStatus::Failed => Tone::Error,
        DownloadStatus::Done => Tone::Success,
    }
}

/// How far it is, how fast, and how long it will take, as far as that is known.
fn facts(download: &Download) -> String {
    let Download { status, done_bytes, total_bytes, done_files, total_files, .. } = download;
    if *total_bytes == 0 {
        return match status {
            DownloadStatus::Queued => "Waits for those before it".into(),
            DownloadStatus::Running => "Asking which files it has".into(),
            _ => "Nothing was fetched yet".into(),
        };
    }
    let total = format::bytes(*total_bytes);
    if *status == DownloadStatus::Done {
        return format!("{total} in {}", format::plural(*total_files, "file"));
    }
    let facts = [
        Some(format!("{} of {total}", format::bytes(*done_bytes))),
        Some(format!("{done_files} of {}", format::plural(*total_files, "file"))),
        (download.bytes_per_second > 0.0)
            .then(|| format!("{}/s", format::bytes(download.bytes_per_second as u64))),
        download.eta_seconds.map(|secs| format!("{} left", format::duration(secs))),
    ];
    facts.into_iter().flatten().collect::<Vec<_>>().join("  ·  ")
}
