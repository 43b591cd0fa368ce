use egui::{Align, Layout, Ui};
use lathe_protocol::{CacheTarget, CommandBody, Event, EventBody, ModelEntry, RepoKind};

use super::{super::fetching::is_of_hub, storage::Deletion, verify::Verify};
use crate::{
    Accept, Action, Asked, Outbox, Pick, Picker, Store, format,
    store::repo_of,
    theme::{self, Tone, icons, space},
    widgets::{
        Answer, Button, Confirm, badge, card, empty_state, error_box, icon_button, notice, offer,
        progress_line, search, spinner_line,
    },
};

/// Models on disk.
#[derive(Default)]
pub struct Here {
    filter: String,
    /// Of a model that is no repository of the cache.
    removing: Option<(String, Confirm)>,
    deletion: Option<Deletion>,
    removal: Asked<()>,
    picker: Option<Picker>,
    import: Asked<()>,
}

impl Here {
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        let Self { removal, deletion, picker, import, .. } = self;
        if let Some(picker) = picker {
            picker.apply(event);
        }
        if let (EventBody::Removed { what, freed_bytes }, true) =
            (&event.body, removal.job() == Some(event.job))
        {
            out.toast(
                Tone::Success,
                format!("Deleted {what}: {} are free again", format::bytes(*freed_bytes)),
            );
        }
        let deleted = deletion.as_mut().is_some_and(|deletion| deletion.apply(event, out));
        if deleted {
            *deletion = None;
        }
        if removal.apply(event, |_| None) | import.apply(event, |_| None) | deleted {
            out.act(Action::RefreshModels);
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, verify: &mut Verify, store: &Store, out: &mut Outbox) {
        self.toolbar(ui, store, out);
        let wish = self.list(ui, verify, store, out);
        if let Some(pick) = self.picker.as_mut().and_then(|picker| picker.ui(ui, out)) {
            self.picker = None;
            if let Pick::Path(path) = pick {
                self.import.ask(out, CommandBody::ModelsImport { path, name: None });
            }
        }
        match wish {
            Some(Wish::Verify(name)) => verify.start(name, out),
            Some(Wish::Remove(model)) if is_of_hub(&model) => {
                let id = repo_of(&model.name).to_owned();
                let target = CacheTarget::Repo { kind: RepoKind::Model, id };
                self.deletion = Some(Deletion::of(vec![target], out));
            }
            Some(Wish::Remove(model)) => {
                let (size, path) = (format::bytes(model.size_bytes), &model.path);
                let confirm = Confirm {
                    title: format!("Delete {}?", model.name),
                    text: format!("{size} at {path} go. Adapters made for it stay, but need it to run."),
                    yes: "Delete".into(),
                };
                self.removing = Some((model.name, confirm));
            }
            None => {}
        }
        if let Some((name, confirm)) = &self.removing
            && let Some(answer) = confirm.ui(ui)
        {
            if answer == Answer::Yes {
                self.removal.ask(out, CommandBody::ModelsRemove { model: name.clone() });
            }
            self.removing = None;
        }
        if let Some(deletion) = &mut self.deletion
            && deletion.ui(ui, out)
        {
            self.deletion = None;
        }
    }

    fn toolbar(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let models = store.models();
        let total: u64 = models.iter().map(|model| model.size_bytes).sum();
        ui.horizontal(|ui| {
            search(ui, &mut self.filter, "Find a model");
            let text =
                format!("{} on disk, {} in all", format::plural(models.len(), "model"), format::bytes(total));
            ui.label(theme::weak(ui, text));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let import = Button::secondary("Import…")
                    .icon(icons::UPLOAD_SIMPLE)
                    .tooltip("Copy a model folder or .gguf file into the Hugging Face cache")
                    .enabled(!self.import.is_waiting());
                if import.clicked(ui) {
                    self.picker = Some(Picker::open("Import a model", Accept::MODEL, None, out));
                }
                if icon_button(ui, icons::ARROW_CLOCKWISE, "Look again").clicked() {
                    out.act(Action::RefreshModels);
                }
            });
        });
    }

    fn list(&self, ui: &mut Ui, verify: &Verify, store: &Store, out: &mut Outbox) -> Option<Wish> {
        let mut wish = None;
        let (wanted, models) = (self.filter.to_lowercase(), store.models());
        for error in [&store.models.error, &self.removal.error, &self.import.error].into_iter().flatten() {
            error_box(ui, error);
        }
        for progress in [&self.removal.progress, &self.import.progress].into_iter().flatten() {
            progress_line(ui, progress);
        }
        if store.models.value.is_none() && store.models.error.is_none() {
            spinner_line(ui, "Looking for models");
        }
        let mut shown = 0;
        for model in models.iter().filter(|model| model.name.to_lowercase().contains(&wanted)) {
            shown += 1;
            card(ui, |ui| wish = entry(ui, model, verify, out).or(wish.take()));
            ui.add_space(space::XS);
        }
        if shown == 0 && !models.is_empty() {
            empty_state(ui, icons::FUNNEL, "Nothing found", "No model on disk has that in its name", None);
        }
        wish
    }
}

fn entry(ui: &mut Ui, model: &ModelEntry, verify: &Verify, out: &mut Outbox) -> Option<Wish> {
    let mut wish = None;
    let is_starter = model.name == "starter";
    ui.horizontal(|ui| {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if !is_starter && icon_button(ui, icons::TRASH, &format!("Delete {}…", model.name)).clicked() {
                wish = Some(Wish::Remove(Box::new(model.clone())));
            }
            if icon_button(ui, icons::FOLDER_OPEN, &format!("Open the folder of {}", model.name)).clicked() {
                out.act(Action::OpenFolder { path: model.path.clone() });
            }
            if icon_button(ui, icons::SHIELD_CHECK, &format!("Verify {}", model.name)).clicked() {
                wish = Some(Wish::Verify(model.name.clone()));
            }
            let usable = model.problem.is_none();
            if Button::ghost("Chat").icon(icons::CHAT_CIRCLE).enabled(usable).clicked(ui) {
                out.chat(&model.name);
            }
            if Button::secondary("Fine-tune…").icon(icons::SPARKLE).enabled(usable).clicked(ui) {
                out.act(Action::NewRun { model: Some(model.name.clone()) });
            }
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                ui.add(egui::Label::new(theme::heading(&model.name)).truncate());
                if is_starter {
                    badge(ui, Tone::Accent, "comes with Lathe");
                }
            });
        });
    });
    if let Some(problem) = &model.problem {
        let get = Button::secondary("Get what is missing…").icon(icons::DOWNLOAD_SIMPLE);
        if !is_of_hub(model) {
            notice(ui, Tone::Error, problem);
        } else if offer(ui, Tone::Error, problem, get) {
            out.act(Action::GetModel { model: model.name.clone() });
        }
    }
    verify.ui(ui, &model.name, out);
    let facts = [
        Some(format::bytes(model.size_bytes)),
        model.parameters.map(|count| format!("{} parameters", format::short_count(count))),
        model.architecture.clone(),
        model.license.clone(),
    ];
    ui.label(facts.into_iter().flatten().collect::<Vec<_>>().join("  ·  "));
    let revision =
        model.revision.as_ref().map(|revision| format!("Revision {revision}, ")).unwrap_or_default();
    ui.add(egui::Label::new(theme::small(ui, format!("{revision}{}", model.path))).truncate());
    wish
}

enum Wish {
    Verify(String),
    Remove(Box<ModelEntry>),
}
