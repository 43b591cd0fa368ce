use egui::{Align, Layout, Ui};
use lathe_protocol::{Download, DownloadAct, DownloadStatus};

use super::super::fetching::Fetching;
use crate::{
    Action, Outbox, Store, format, theme,
    theme::{icons, space},
    widgets::{Button, card, empty_state, error_box, spinner_line},
};

/// What is on its way here, next first. True if a model shall be looked for.
pub fn ui(ui: &mut Ui, fetching: &mut Fetching, store: &Store, out: &mut Outbox) -> bool {
    if let Some(error) = &store.downloads.error {
        error_box(ui, error);
    }
    let Some(downloads) = &store.downloads.value else {
        if store.downloads.is_waiting() {
            spinner_line(ui, "Reading the list of downloads");
        }
        return false;
    };
    if downloads.is_empty() {
        let text = "A model that is being fetched shows up here. It can be paused, goes on where it was after a cut \
                    line or a restart, and is checked by its hash before it is used";
        return empty_state(ui, icons::DOWNLOAD_SIMPLE, "No downloads", text, Some("Get a model"));
    }
    let is_done = |download: &&Download| download.status == DownloadStatus::Done;
    let unfinished: Vec<&Download> = downloads.iter().filter(|download| !is_done(download)).collect();
    let missing: u64 =
        unfinished.iter().map(|download| download.total_bytes.saturating_sub(download.done_bytes)).sum();
    ui.horizontal(|ui| {
        ui.set_min_height(theme::CONTROL_HEIGHT);
        let text = match unfinished.len() {
            0 => "Everything is here".into(),
            count => {
                format!("{}, {} to go", format::plural(count, "unfinished download"), format::bytes(missing))
            }
        };
        ui.label(theme::weak(ui, text));
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let clear = Button::ghost("Clear finished").icon(icons::BROOM);
            if downloads.iter().any(|download| is_done(&download)) && clear.clicked(ui) {
                for download in downloads.iter().filter(is_done) {
                    fetching.act(&download.model, DownloadAct::Forget, out);
                }
            }
        });
    });
    let done = downloads.iter().filter(is_done);
    for download in unfinished.into_iter().chain(done) {
        ui.push_id(&download.model, |ui| {
            card(ui, |ui| {
                fetching.ui(ui, download, true, store, out);
                if is_done(&download) {
                    ways_on(ui, &download.model, store, out);
                }
            });
        });
        ui.add_space(space::XS);
    }
    false
}

/// What a model is fetched for.
fn ways_on(ui: &mut Ui, model: &str, store: &Store, out: &mut Outbox) {
    let entry = store.usable_model(model);
    let (name, is_usable) = (entry.map_or(model, |entry| &entry.name), entry.is_some());
    ui.horizontal(|ui| {
        if Button::secondary("Fine-tune…").icon(icons::SPARKLE).enabled(is_usable).clicked(ui) {
            out.act(Action::NewRun { model: Some(name.to_owned()) });
        }
        if Button::ghost("Chat").icon(icons::CHAT_CIRCLE).enabled(is_usable).clicked(ui) {
            out.chat(name);
        }
    });
}
