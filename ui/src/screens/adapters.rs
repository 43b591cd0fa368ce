use egui::{Align, Layout, Ui};
use lathe_protocol::{AdapterEntry, AdapterUpdate, ChatLane, CommandBody, Event, EventBody};

use crate::{
    Accept, Action, Asked, Outbox, Pick, Picker, Route, Store, format,
    theme::{self, Tone, icons, space},
    widgets::{
        Answer, Button, Confirm, badge, card, dialog, empty_state, error_box, field, icon_button, key_value,
        labelled, page, search, spinner_line,
    },
};

/// The library of adapters.
#[derive(Default)]
pub struct Adapters {
    filter: String,
    editing: Option<Edit>,
    removing: Option<(String, Confirm)>,
    /// The newest change, by the adapter's name.
    change: (String, Asked<()>),
    picker: Option<Picker>,
    import: Asked<()>,
}

/// Name, notes and tags of one adapter, as they are being changed.
struct Edit {
    adapter: String,
    name: String,
    notes: String,
    /// Between commas.
    tags: String,
}

impl Adapters {
    /// Copies a PEFT folder into the library.
    pub fn import(&mut self, path: String, out: &mut Outbox) {
        self.import.ask(out, CommandBody::AdaptersImport { path, name: None });
    }

    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        if let Some(picker) = &mut self.picker {
            picker.apply(event);
        }
        let imported = match (&event.body, self.import.job() == Some(event.job)) {
            (EventBody::Adapter(entry), true) => Some(entry.name.clone()),
            _ => None,
        };
        if let Some(name) = imported {
            out.toast(Tone::Success, format!("{name} is in the library"));
        }
        if self.import.apply(event, |_| None) {
            out.act(Action::RefreshAdapters);
        }
        let ended = self.change.1.apply(event, |_| None);
        if ended {
            out.act(Action::RefreshAdapters);
            if self.change.1.error.is_none() {
                self.editing = None;
            }
        }
        if let (EventBody::Removed { what, freed_bytes }, true) =
            (&event.body, self.change.1.job() == Some(event.job))
        {
            out.toast(
                Tone::Success,
                format!("Deleted {what}: {} are free again", format::bytes(*freed_bytes)),
            );
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let wanted = self.filter.to_lowercase();
        let filter = &mut self.filter;
        let (can_import, mut pick) = (!self.import.is_waiting(), false);
        let find = |ui: &mut Ui| {
            pick = Button::secondary("Import…")
                .icon(icons::DOWNLOAD_SIMPLE)
                .tooltip("Copy a PEFT folder into the library")
                .enabled(can_import)
                .clicked(ui);
            if !store.adapters().is_empty() {
                search(ui, filter, "Find an adapter");
            }
        };
        let mut wish = None;
        page(ui, "Adapters", find, |ui| {
            for error in [&store.adapters.error, &self.import.error].into_iter().flatten() {
                error_box(ui, error);
            }
            if self.import.is_waiting() {
                spinner_line(ui, "Importing the adapter");
            }
            match &store.adapters.value {
                None if store.adapters.error.is_none() => spinner_line(ui, "Reading the library"),
                Some(adapters) if adapters.is_empty() => {
                    let text = "A finished fine-tune puts its adapter here: a small file that changes how its model \
                                talks, and can be tried, noted on, and shared";
                    if empty_state(ui, icons::PUZZLE_PIECE, "No adapters yet", text, Some("New fine-tune…"))
                    {
                        out.act(Action::NewRun { model: None });
                    }
                }
                _ => {}
            }
            let mut shown = 0;
            for adapter in store.adapters().iter().filter(|adapter| matches(adapter, &wanted)) {
                shown += 1;
                if let Some(error) = self
                    .change
                    .1
                    .error
                    .as_ref()
                    .filter(|_| self.editing.is_none() && self.change.0 == adapter.name)
                {
                    error_box(ui, error);
                }
                card(ui, |ui| wish = entry(ui, adapter, store, out).or(wish.take()));
                ui.add_space(space::XS);
            }
            if shown == 0 && !store.adapters().is_empty() {
                empty_state(
                    ui,
                    icons::FUNNEL,
                    "Nothing found",
                    "No adapter has that in its name, base, notes or tags",
                    None,
                );
            }
        });
        if pick {
            self.picker = Some(Picker::open("Import an adapter", Accept::FOLDER, None, out));
        }
        if let Some(pick) = self.picker.as_mut().and_then(|picker| picker.ui(ui, out)) {
            self.picker = None;
            if let Pick::Path(path) = pick {
                self.import(path, out);
            }
        }
        match wish {
            Some(Wish::Edit(edit)) => self.editing = Some(edit),
            Some(Wish::Remove(adapter)) => {
                let confirm = Confirm {
                    title: format!("Delete {}?", adapter.name),
                    text: format!(
                        "Its folder goes from the library, {}: {}. The model it belongs to and the run that made it stay.",
                        format::bytes(adapter.size_bytes),
                        adapter.path
                    ),
                    yes: "Delete".into(),
                };
                self.removing = Some((adapter.name, confirm));
            }
            None => {}
        }
        self.edit_dialog(ui, out);
        self.remove_dialog(ui, out);
    }

    fn edit_dialog(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let Some(edit) = &mut self.editing else { return };
        let (mut save, mut cancel) = (false, false);
        let closed = dialog(ui, "Edit adapter", 460.0, |ui| {
            labelled(ui, "Name", "", |ui| field(ui, &mut edit.name, "Name in the library"));
            ui.add_space(space::S);
            labelled(ui, "Notes", "", |ui| {
                ui.add(
                    egui::TextEdit::multiline(&mut edit.notes).desired_rows(4).desired_width(f32::INFINITY),
                )
            });
            ui.add_space(space::S);
            labelled(ui, "Tags", "Between commas", |ui| field(ui, &mut edit.tags, "support, v2"));
            if let Some(error) = &self.change.1.error {
                error_box(ui, error);
            }
            ui.add_space(space::L);
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let can_save = !edit.name.trim().is_empty() && !self.change.1.is_waiting();
                save = Button::primary("Save").enabled(can_save).clicked(ui);
                cancel = Button::secondary("Cancel").clicked(ui);
            });
        });
        if save {
            let tags = edit.tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(String::from);
            let name = edit.name.trim();
            let update = AdapterUpdate {
                name: (name != edit.adapter).then(|| name.to_owned()),
                notes: Some(edit.notes.clone()),
                tags: Some(tags.collect()),
            };
            let adapter = edit.adapter.clone();
            self.change.0.clone_from(&adapter);
            self.change.1.ask(out, CommandBody::AdaptersUpdate { adapter, update });
        } else if cancel || closed {
            self.editing = None;
            self.change.1.error = None;
        }
    }

    fn remove_dialog(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let Some((adapter, confirm)) = &self.removing else { return };
        let Some(answer) = confirm.ui(ui) else { return };
        if answer == Answer::Yes {
            self.change.0.clone_from(adapter);
            self.change.1.ask(out, CommandBody::AdaptersRemove { adapter: adapter.clone() });
        }
        self.removing = None;
    }
}

enum Wish {
    Edit(Edit),
    Remove(Box<AdapterEntry>),
}

/// The base's name, and whether anything vouches for it.
fn base(adapter: &AdapterEntry) -> String {
    let name = adapter.base_model.as_deref().unwrap_or("unknown");
    if adapter.origins.is_some() { name.into() } else { format!("{name}, not verified") }
}

fn matches(adapter: &AdapterEntry, wanted: &str) -> bool {
    let AdapterEntry { name, notes, tags, base_model, .. } = adapter;
    let texts = [name, notes].into_iter().chain(tags).chain(base_model);
    wanted.is_empty() || texts.into_iter().any(|text| text.to_lowercase().contains(wanted))
}

fn entry(ui: &mut Ui, adapter: &AdapterEntry, store: &Store, out: &mut Outbox) -> Option<Wish> {
    let mut wish = None;
    ui.horizontal(|ui| {
        ui.label(theme::heading(&adapter.name));
        for tag in &adapter.tags {
            badge(ui, Tone::Accent, tag);
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if icon_button(ui, icons::TRASH, &format!("Delete {}…", adapter.name)).clicked() {
                wish = Some(Wish::Remove(Box::new(adapter.clone())));
            }
            if icon_button(ui, icons::FOLDER_OPEN, &format!("Open the folder of {}", adapter.name)).clicked()
            {
                out.act(Action::OpenFolder { path: adapter.path.clone() });
            }
            if icon_button(ui, icons::PENCIL_SIMPLE, &format!("Edit {}…", adapter.name)).clicked() {
                wish = Some(Wish::Edit(Edit {
                    adapter: adapter.name.clone(),
                    name: adapter.name.clone(),
                    notes: adapter.notes.clone(),
                    tags: adapter.tags.join(", "),
                }));
            }
            let base = adapter.base_model.as_deref().filter(|_| adapter.problem.is_none());
            let test = Button::secondary("Test in chat").icon(icons::CHAT_CIRCLE).enabled(base.is_some());
            if let (true, Some(base)) = (test.clicked(ui), base) {
                let adapters = vec![adapter.name.clone()];
                out.act(Action::Chat(ChatLane { model: base.to_owned(), adapters, ..ChatLane::default() }));
            }
        });
    });
    if let Some(problem) = &adapter.problem {
        crate::widgets::notice(ui, Tone::Error, problem);
    }
    if !adapter.notes.is_empty() {
        ui.label(&adapter.notes);
    }
    crate::widgets::columns(ui, &[true, false], 340.0, |ui, &is_origin| {
        let facts = if is_origin {
            vec![
                ("Base", base(adapter)),
                (
                    "Data",
                    adapter.data.as_deref().map_or("unknown".into(), |data| format::file_name(data).into()),
                ),
                (
                    "Made",
                    adapter.created_secs.map_or("unknown".into(), |secs| format::ago(secs, store.now_secs)),
                ),
            ]
        } else {
            let mut facts = vec![
                ("LoRA", format!("r = {}, alpha = {}", adapter.r, adapter.alpha)),
                ("Adapts", adapter.targets.join(", ")),
                (
                    "Size",
                    match adapter.last_loss {
                        Some(loss) => format!(
                            "{}, last loss {}",
                            format::bytes(adapter.size_bytes),
                            format::number(loss)
                        ),
                        None => format::bytes(adapter.size_bytes),
                    },
                ),
            ];
            facts.extend(adapter.styles.iter().map(|style| {
                let settings = style.settings();
                let colon = if settings.is_empty() { "" } else { ": " };
                ("Style", format!("{}{colon}{settings}", style.name))
            }));
            facts
        };
        key_value(ui, &format!("{} {is_origin}", adapter.name), facts);
    });
    if let Some(origins) = &adapter.origins {
        ui.collapsing("What it was made of", |ui| {
            key_value(ui, &format!("{} origins", adapter.name), crate::origins::facts(origins));
        });
    }
    if let Some(run) = adapter.run.as_ref().and_then(|name| store.runs().iter().find(|run| &run.name == name))
        && crate::widgets::link(ui, "See its run").clicked()
    {
        out.go(Route::Run(run.id.clone()));
    }
    wish
}
