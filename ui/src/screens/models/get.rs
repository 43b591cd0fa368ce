use egui::{Key, Ui};
use lathe_protocol::{
    CatalogModel, CommandBody, DownloadStatus, Event, EventBody, Gate, HubModel, RunConfig, catalog,
    in_catalog,
};

use super::{
    super::{
        fetching::{Fetching, is_bucket},
        model_line::{ModelLine, gate_badge},
    },
    details::Details,
};
use crate::{
    Asked, Outbox, Store, fit, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, clickable_card, empty_state, error_box, spinner_line, strip, wide_search},
};

const FIELD: &str = "Search the Hub, or name a model: owner/name or s3://bucket/prefix";
/// So long nothing is typed before the Hub is asked.
const PAUSE_SECS: f64 = 0.5;
const FEWEST_LETTERS: usize = 2;
const FIRST_RESULTS: usize = 30;
const MOST_RESULTS: usize = 200;
/// Of a card of two lines.
const CARD_HEIGHT: f32 = 78.0;

/// Models elsewhere: the catalog, and what a search on the Hub finds.
#[derive(Default)]
pub struct Get {
    query: String,
    /// When the Hub is asked for what was typed, by the window's clock.
    due: Option<f64>,
    /// What was asked for, and how many of it.
    asked: (String, usize),
    found: Asked<Vec<HubModel>>,
    details: Option<Details>,
}

impl Get {
    pub fn apply(&mut self, event: &Event) {
        self.found.apply(event, |body| match body {
            EventBody::HubModels { models } => Some(models.clone()),
            _ => None,
        });
        if let Some(details) = &mut self.details {
            details.apply(event);
        }
    }

    pub fn show(&mut self, model: String, out: &mut Outbox) {
        self.close(out);
        self.details = Some(Details::open(model, out));
    }

    pub fn search(&mut self, query: String, out: &mut Outbox) {
        self.close(out);
        self.query = query;
        self.ask(FIRST_RESULTS, out);
    }

    fn close(&mut self, out: &mut Outbox) {
        if let Some(mut details) = self.details.take() {
            details.stop(out);
        }
    }

    /// Nothing, where there is too little to go by.
    fn ask(&mut self, limit: usize, out: &mut Outbox) {
        let query = self.query.trim().to_owned();
        self.due = None;
        if query != self.asked.0 {
            self.found.clear(out);
        }
        if query.chars().count() >= FEWEST_LETTERS && !query.contains("://") {
            self.found.ask(out, CommandBody::HubSearch { query: query.clone(), limit });
        }
        self.asked = (query, limit);
    }

    pub fn ui(&mut self, ui: &mut Ui, fetching: &mut Fetching, store: &Store, out: &mut Outbox) {
        self.field(ui, out);
        ui.label(theme::small(
            ui,
            "The badges say what a fine-tune with usual settings takes of this machine’s memory; a click tells more.",
        ));
        let mut wish = None;
        let query = self.query.trim().to_owned();
        if let Some(name) = named(&query).filter(|name| in_catalog(name).is_none()) {
            let about = if is_bucket(name) { "A folder of an S3 bucket" } else { "The model of that name" };
            let line = ModelLine { about, ..line_of_name(name) };
            if clickable_card(ui, &format!("Look at {name}"), false, |ui| line.ui(ui, &[])).clicked() {
                wish = Some(name.to_owned());
            }
            ui.add_space(space::S);
        }
        let known: Vec<&CatalogModel> =
            catalog().iter().filter(|model| ModelLine::of_catalog(model).is_found(&query)).collect();
        let mut family = "";
        for model in &known {
            if family != model.family {
                family = &model.family;
                ui.add_space(space::XS);
                ui.label(theme::heading(family));
            }
            let badges = badges_of_catalog(model, store);
            wish = choose(ui, &ModelLine::of_catalog(model), &badges).or(wish);
        }
        if !query.is_empty() {
            wish = self.results(ui, &known, store, out).or(wish);
        }
        if let Some(model) = wish {
            self.show(model, out);
        }
        if let Some(details) = &mut self.details
            && details.ui(ui, fetching, store, out)
        {
            self.close(out);
        }
    }

    fn field(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let response = wide_search(ui, &mut self.query, FIELD);
        let now = ui.input(|input| input.time);
        if response.changed() {
            self.due = Some(now + PAUSE_SECS);
        }
        let is_entered = response.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
        if is_entered || self.due.is_some_and(|due| now >= due) {
            let is_known = self.query.trim() == self.asked.0 && self.found.error.is_none();
            if !is_known {
                self.ask(FIRST_RESULTS, out);
            }
            self.due = None;
            if let (true, Some(model)) = (is_entered, named(self.query.trim()).map(str::to_owned)) {
                self.show(model, out);
            }
        }
        if let Some(due) = self.due {
            ui.ctx().request_repaint_after_secs((due - now) as f32);
        }
    }

    /// What the Hub has besides the catalog; which one was chosen.
    fn results(
        &mut self,
        ui: &mut Ui,
        known: &[&CatalogModel],
        store: &Store,
        out: &mut Outbox,
    ) -> Option<String> {
        let mut wish = None;
        let (asked, limit) = self.asked.clone();
        if asked.contains("://") || asked.is_empty() {
            return None;
        }
        ui.add_space(space::S);
        ui.label(theme::heading("On the Hub"));
        if self.found.is_waiting() {
            spinner_line(ui, &format!("Searching for {asked}"));
        }
        if let Some(error) = &self.found.error {
            error_box(ui, error);
            if Button::secondary("Try again").icon(icons::ARROW_CLOCKWISE).clicked(ui) {
                self.ask(limit, out);
                return None;
            }
        }
        let found = self.found.value.as_deref()?;
        if found.is_empty() && !self.found.is_waiting() {
            let text = "Try fewer or other words, or write the model's whole name, owner/name";
            empty_state(ui, icons::MAGNIFYING_GLASS, "The Hub has no such model", text, None);
        }
        let is_other = |model: &&HubModel| !known.iter().any(|known| known.name == model.name);
        for model in found.iter().filter(is_other) {
            strip(ui, CARD_HEIGHT, |ui| {
                let about = about(model, store);
                let line = ModelLine {
                    about: &about,
                    parameters: model.parameters,
                    license: model.license.as_deref(),
                    problem: model.problem.as_deref(),
                    ..line_of_name(&model.name)
                };
                let badges = badges_of_result(model, store);
                wish = ui.vertical(|ui| choose(ui, &line, &badges)).inner.or(wish.take());
            });
        }
        let has_more = found.len() >= limit && limit < MOST_RESULTS;
        if has_more && !self.found.is_waiting() && Button::secondary("Show more").clicked(ui) {
            self.ask((limit * 3).min(MOST_RESULTS), out);
        }
        wish
    }
}

/// The model that is named in full, if one is: by its name, the address of its page, or a bucket.
fn named(query: &str) -> Option<&str> {
    let rest = query.strip_prefix("https://").or_else(|| query.strip_prefix("s3://")).unwrap_or(query);
    let (owner, name) = rest.split_once('/')?;
    let is_word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
    (is_word(owner) && is_word(name) && !rest.contains("://")).then_some(query)
}

fn line_of_name(name: &str) -> ModelLine<'_> {
    ModelLine { name, about: "", parameters: None, size_bytes: 0, license: None, shape: None, problem: None }
}

fn choose(ui: &mut Ui, line: &ModelLine<'_>, badges: &[(Tone, String)]) -> Option<String> {
    let badges: Vec<_> = badges.iter().map(|(tone, text)| (*tone, text.as_str())).collect();
    clickable_card(ui, line.name, false, |ui| line.ui(ui, &badges)).clicked().then(|| line.name.to_owned())
}

fn about(model: &HubModel, store: &Store) -> String {
    let facts = [
        model.architecture.clone(),
        Some(format!("{} downloads", format::short_count(model.downloads))),
        Some(format::plural(model.likes as usize, "like")),
        model.updated_secs.map(|secs| format!("updated {}", format::ago(secs, store.now_secs))),
    ];
    facts.into_iter().flatten().collect::<Vec<_>>().join("  ·  ")
}

/// Whether it is here or on its way.
fn whereabouts(model: &str, store: &Store) -> Option<(Tone, String)> {
    if store.usable_model(model).is_some() {
        return Some((Tone::Success, "On this machine".into()));
    }
    let download = store.download(model)?;
    let percent = download.done_bytes as f64 / download.total_bytes.max(1) as f64 * 100.0;
    Some(match download.status {
        DownloadStatus::Queued => (Tone::Accent, "In the queue".into()),
        DownloadStatus::Running => (Tone::Accent, format!("Downloading, {percent:.0} %")),
        DownloadStatus::Paused => (Tone::Neutral, format!("Paused at {percent:.0} %")),
        DownloadStatus::Failed => (Tone::Error, "Download failed".into()),
        DownloadStatus::Done => return None,
    })
}

fn badges_of_catalog(model: &CatalogModel, store: &Store) -> Vec<(Tone, String)> {
    if let Some(badge) = whereabouts(&model.name, store) {
        return vec![badge];
    }
    let (memory, fit) = fit::memory(&model.shape, &RunConfig::default(), None, store);
    let fit = fit.map(|fit| (fit.tone(), fit.words(memory.total())));
    fit.into_iter().chain(gate_of(model.gate)).collect()
}

fn gate_of(gate: Gate) -> Option<(Tone, String)> {
    gate_badge(gate).map(|(tone, text)| (tone, text.to_owned()))
}

fn badges_of_result(model: &HubModel, store: &Store) -> Vec<(Tone, String)> {
    let badges = [
        model.problem.is_some().then(|| (Tone::Error, "Not supported".to_owned())),
        whereabouts(&model.name, store),
        model.is_private.then(|| (Tone::Neutral, "Private".to_owned())),
        gate_of(model.gate),
    ];
    badges.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_named_in_full_is_known_as_one() {
        for name in
            ["Qwen/Qwen3-4B", "a/b:Q4_K_M", "a/b/c.gguf", "https://huggingface.co/a/b", "s3://bucket/a/b"]
        {
            assert_eq!(named(name), Some(name));
        }
        for words in ["qwen3", "and/or not", "s3://bucket", "a/", "", "http://a/b/http://c"] {
            assert_eq!(named(words), None, "{words}");
        }
    }
}
