use egui::{Align, Layout, Ui};
use lathe_protocol::{ChatLane, CommandBody, Event, EventBody, ModelEntry, ModelProblem};

use crate::{
    Accept, Action, Asked, Outbox, Pick, Picker, Store, format,
    theme::{self, Tone, icons, space},
    widgets::{
        Answer, Button, Confirm, badge, card, empty_state, error_box, icon_button, notice, page,
        progress_line, search, spinner_line,
    },
};

/// What `models verify` says of a model.
#[derive(Debug, Clone)]
struct Verdict {
    problems: Vec<ModelProblem>,
    files: usize,
    bytes: u64,
}

/// Models on disk.
#[derive(Default)]
pub struct Models {
    filter: String,
    /// The newest check, by the model's name.
    check: (String, Asked<Verdict>),
    removing: Option<(String, Confirm)>,
    removal: Asked<()>,
    picker: Option<Picker>,
    import: Asked<()>,
}

impl Models {
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        let Self { check, removal, picker, import, .. } = self;
        if let Some(picker) = picker {
            picker.apply(event);
        }
        check.1.apply(event, |body| match body {
            EventBody::ModelProblems { problems, files_checked, bytes_checked } => {
                Some(Verdict { problems: problems.clone(), files: *files_checked, bytes: *bytes_checked })
            }
            _ => None,
        });
        if let (EventBody::Removed { what, freed_bytes }, true) =
            (&event.body, removal.job() == Some(event.job))
        {
            out.toast(
                Tone::Success,
                format!("Deleted {what}: {} are free again", format::bytes(*freed_bytes)),
            );
        }
        if removal.apply(event, |_| None) | import.apply(event, |_| None) {
            out.act(Action::RefreshModels);
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let wanted = self.filter.to_lowercase();
        let (mut filter, mut refresh, mut pick) = (std::mem::take(&mut self.filter), false, false);
        let actions = |ui: &mut Ui| {
            pick = Button::secondary("Import…")
                .icon(icons::DOWNLOAD_SIMPLE)
                .tooltip("Copy a model folder or .gguf file into the Hugging Face cache")
                .enabled(!self.import.is_waiting())
                .clicked(ui);
            refresh = Button::ghost("Look again").icon(icons::ARROW_CLOCKWISE).clicked(ui);
            search(ui, &mut filter, "Find a model");
        };
        let mut wish = None;
        page(ui, "Models", actions, |ui| {
            let models = store.models();
            let total: u64 = models.iter().map(|model| model.size_bytes).sum();
            ui.label(theme::weak(
                ui,
                format!("{} on disk, {} in all", format::plural(models.len(), "model"), format::bytes(total)),
            ));
            for error in [&store.models.error, &self.removal.error, &self.import.error].into_iter().flatten()
            {
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
                card(ui, |ui| wish = self.entry(ui, model, out).or(wish.take()));
                ui.add_space(space::XS);
            }
            if shown == 0 && !models.is_empty() {
                empty_state(
                    ui,
                    icons::FUNNEL,
                    "Nothing found",
                    "No model on disk has that in its name",
                    None,
                );
            }
        });
        self.filter = filter;
        if refresh {
            out.act(Action::RefreshModels);
        }
        if pick {
            self.picker = Some(Picker::open("Import a model", Accept::MODEL, None, out));
        }
        if let Some(pick) = self.picker.as_mut().and_then(|picker| picker.ui(ui, out)) {
            self.picker = None;
            if let Pick::Path(path) = pick {
                self.import.ask(out, CommandBody::ModelsImport { path, name: None });
            }
        }
        match wish {
            Some(Wish::Verify(name)) => {
                self.check.1.clear(out);
                self.check.1.ask(out, CommandBody::ModelsVerify { model: name.clone() });
                self.check.0 = name;
            }
            Some(Wish::Remove(model)) => {
                let confirm = Confirm {
                    title: format!("Delete {}?", model.name),
                    text: format!(
                        "All of the repository's revisions go from the Hugging Face cache, which Python tools share: \
                         {} at {}. Adapters made for it stay, but need it to run.",
                        format::bytes(model.size_bytes),
                        model.path
                    ),
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
    }

    fn entry(&self, ui: &mut Ui, model: &ModelEntry, out: &mut Outbox) -> Option<Wish> {
        let mut wish = None;
        let is_starter = model.revision.is_none();
        ui.horizontal(|ui| {
            ui.label(theme::heading(&model.name));
            if is_starter {
                badge(ui, Tone::Accent, "comes with Lathe");
            }
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if !is_starter && icon_button(ui, icons::TRASH, &format!("Delete {}…", model.name)).clicked()
                {
                    wish = Some(Wish::Remove(Box::new(model.clone())));
                }
                if icon_button(ui, icons::FOLDER_OPEN, &format!("Open the folder of {}", model.name))
                    .clicked()
                {
                    out.act(Action::OpenFolder { path: model.path.clone() });
                }
                if icon_button(ui, icons::SHIELD_CHECK, &format!("Verify {}", model.name)).clicked() {
                    wish = Some(Wish::Verify(model.name.clone()));
                }
                let usable = model.problem.is_none();
                if Button::ghost("Chat").icon(icons::CHAT_CIRCLE).enabled(usable).clicked(ui) {
                    out.act(Action::Chat(ChatLane { model: model.name.clone(), ..ChatLane::default() }));
                }
                if Button::secondary("Fine-tune…").icon(icons::SPARKLE).enabled(usable).clicked(ui) {
                    out.act(Action::NewRun { model: Some(model.name.clone()) });
                }
            });
        });
        if let Some(problem) = &model.problem {
            notice(ui, Tone::Error, problem);
        }
        self.verdict(ui, model, out);
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

    /// What checking the files is at, or has found.
    fn verdict(&self, ui: &mut Ui, model: &ModelEntry, out: &mut Outbox) {
        let (name, check) = &self.check;
        if *name != model.name {
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

enum Wish {
    Verify(String),
    Remove(Box<ModelEntry>),
}
