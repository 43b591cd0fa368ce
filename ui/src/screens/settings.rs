use egui::{TextEdit, Ui};
use lathe_protocol::{
    CommandBody, Event, EventBody, Secret, Settings, SettingsView, Shell, Theme, TokenStatus,
};

use crate::{
    Action, Asked, Outbox, Store,
    theme::{self, Tone, icons, space},
    widgets::{
        Button, badge, error_box, field, icon_button, key_value, labelled, notice, page, section, segmented,
        spinner_line,
    },
};

/// What a person can set, and what Lathe promises.
#[derive(Default)]
pub struct SettingsScreen {
    /// As they are being changed; none until they were read.
    draft: Option<Draft>,
    save: Asked<()>,
    token: String,
    token_change: Asked<()>,
    /// As `serve-ui` printed it, on another machine.
    link: String,
    connection: Asked<()>,
}

/// Optional folders as text: empty is none.
#[derive(Debug, Clone, PartialEq)]
struct Draft {
    settings: Settings,
    threads: String,
    hf_cache: String,
    data_dir: String,
}

impl Draft {
    fn of(settings: &Settings) -> Self {
        Self {
            threads: if settings.threads == 0 { String::new() } else { settings.threads.to_string() },
            hf_cache: settings.hf_cache.clone().unwrap_or_default(),
            data_dir: settings.data_dir.clone().unwrap_or_default(),
            settings: settings.clone(),
        }
    }

    /// None if the threads are no number.
    fn settings(&self) -> Option<Settings> {
        let folder = |text: &str| (!text.trim().is_empty()).then(|| text.trim().to_owned());
        let threads = self.threads.trim();
        Some(Settings {
            threads: if threads.is_empty() { 0 } else { threads.parse().ok()? },
            hf_cache: folder(&self.hf_cache),
            data_dir: folder(&self.data_dir),
            ..self.settings.clone()
        })
    }
}

impl SettingsScreen {
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        if self.save.apply(event, |_| None) {
            out.act(Action::RefreshSettings);
            if self.save.error.is_none() {
                out.toast(Tone::Success, "Settings saved");
            }
        }
        self.connection.apply(event, |_| None);
        if self.token_change.apply(event, |_| None) {
            out.act(Action::RefreshSettings);
        }
        if let (EventBody::Settings(view), false) = (&event.body, self.save.is_waiting()) {
            let theirs = Draft::of(&view.settings);
            // What is being typed is not overwritten.
            if self.draft.is_none()
                || self.draft.as_ref().and_then(Draft::settings) == Some(view.settings.clone())
            {
                self.draft = Some(theirs);
            }
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        page(
            ui,
            "Settings",
            |_| {},
            |ui| {
                if let Some(error) = &store.settings.error {
                    error_box(ui, error);
                }
                let Some(view) = &store.settings.value else {
                    if store.settings.error.is_none() {
                        spinner_line(ui, "Reading the settings");
                    }
                    return;
                };
                ui.set_max_width(820.0);
                let saved = &view.settings;
                let draft = self.draft.get_or_insert_with(|| Draft::of(saved));
                section(ui, "Look", |ui| {
                    let options =
                        [(Theme::System, "As the system"), (Theme::Light, "Light"), (Theme::Dark, "Dark")];
                    if segmented(ui, &mut draft.settings.theme, &options).changed() {
                        let settings = Settings { theme: draft.settings.theme, ..saved.clone() };
                        self.save.ask(out, CommandBody::SettingsSave(settings));
                    }
                });
                ui.add_space(space::XS);
                if let Some(shell) = store.shell.value.as_ref().filter(|shell| shell.can_connect) {
                    self.machines(ui, shell, out);
                    ui.add_space(space::XS);
                }
                self.hugging_face(ui, view, out);
                ui.add_space(space::XS);
                self.machine(ui, view, out);
                ui.add_space(space::XS);
                privacy(ui);
                ui.add_space(space::XS);
                section(ui, "About", |ui| {
                    key_value(
                        ui,
                        "about",
                        [("Version", view.version.clone()), ("Settings file", view.path.clone())],
                    );
                });
            },
        );
    }

    /// Which machine's Lathe this window shows.
    fn machines(&mut self, ui: &mut Ui, shell: &Shell, out: &mut Outbox) {
        section(ui, "Machine", |ui| {
            if let Some(address) = &shell.connected_to {
                ui.horizontal(|ui| {
                    ui.label(theme::strong("This window shows the Lathe on another machine"));
                    badge(ui, Tone::Accent, address);
                });
                if Button::secondary("Back to this machine").icon(icons::HOUSE).clicked(ui) {
                    self.connection.ask(out, CommandBody::ShellConnect { link: None });
                }
            } else {
                labelled(
                    ui,
                    "Another machine",
                    "Run `lathe serve-ui --listen ADDRESS` there, and paste the link it prints. It works once",
                    |ui| field(ui, &mut self.link, "https://gpu-box:8474/#token=…"),
                );
                let can_connect = !self.link.trim().is_empty() && !self.connection.is_waiting();
                if Button::secondary("Connect").icon(icons::DESKTOP).enabled(can_connect).clicked(ui) {
                    let link = Some(Secret(self.link.trim().to_owned()));
                    self.connection.ask(out, CommandBody::ShellConnect { link });
                }
            }
            if self.connection.is_waiting() {
                spinner_line(ui, "Connecting");
            }
            if let Some(error) = &self.connection.error {
                error_box(ui, error);
            }
        });
    }

    fn hugging_face(&mut self, ui: &mut Ui, view: &SettingsView, out: &mut Outbox) {
        section(ui, "Hugging Face", |ui| {
            ui.horizontal(|ui| {
                ui.label(theme::strong("Access token"));
                let (tone, text) = match &view.token {
                    TokenStatus::Absent => (Tone::Neutral, "none"),
                    TokenStatus::Keyring => (Tone::Success, "in the keyring"),
                    TokenStatus::Environment => (Tone::Success, "from HF_TOKEN"),
                    TokenStatus::File(_) => (Tone::Success, "of Python's tools"),
                    TokenStatus::NoKeyring(_) => (Tone::Warning, "no keyring"),
                };
                badge(ui, tone, text);
            });
            match &view.token {
                TokenStatus::NoKeyring(why) => {
                    notice(
                        ui,
                        Tone::Warning,
                        &format!("No keyring: {why}. Set HF_TOKEN in the environment instead"),
                    );
                }
                TokenStatus::Environment => {
                    ui.label(theme::weak(ui, "HF_TOKEN is set and comes before the keyring"));
                }
                TokenStatus::File(path) => {
                    ui.label(theme::weak(
                        ui,
                        format!("Read from {path}; one that is kept here comes before it"),
                    ));
                    self.token_field(ui, view, out);
                }
                TokenStatus::Absent | TokenStatus::Keyring => self.token_field(ui, view, out),
            }
            ui.label(theme::small(
                ui,
                "For models that ask you to accept their terms. It is kept in the operating system's keyring, never in \
                 a file or a log",
            ));
            if let Some(error) = &self.token_change.error {
                error_box(ui, error);
            }
        });
    }

    fn token_field(&mut self, ui: &mut Ui, view: &SettingsView, out: &mut Outbox) {
        ui.horizontal(|ui| {
            let edit = TextEdit::singleline(&mut self.token)
                .password(true)
                .hint_text("hf_…")
                .margin(egui::vec2(space::S + 2.0, 7.0))
                .desired_width(340.0);
            ui.add(edit).on_hover_text("Hugging Face access token");
            let token = self.token.trim();
            if Button::secondary("Keep in the keyring")
                .icon(icons::KEY)
                .enabled(!token.is_empty())
                .clicked(ui)
            {
                self.token_change.ask(out, CommandBody::TokenSave { token: Secret(token.to_owned()) });
                self.token.clear();
            }
            if view.token == TokenStatus::Keyring && Button::danger("Remove").icon(icons::TRASH).clicked(ui) {
                self.token_change.ask(out, CommandBody::TokenRemove);
            }
        });
    }

    fn machine(&mut self, ui: &mut Ui, view: &SettingsView, out: &mut Outbox) {
        let Some(draft) = &mut self.draft else { return };
        section(ui, "Folders and threads", |ui| {
            labelled(ui, "Hub address", "Where models come from; a mirror's address works too", |ui| {
                field(ui, &mut draft.settings.endpoint, "https://huggingface.co")
            });
            let now = |path: &str| format!("In use: {path}. A change takes effect at the next start");
            for (name, text, path) in [
                ("Hugging Face cache", &mut draft.hf_cache, &view.hf_cache),
                ("Data folder", &mut draft.data_dir, &view.data_dir),
            ] {
                ui.add_space(space::XS);
                ui.horizontal_top(|ui| {
                    ui.vertical(|ui| {
                        ui.set_width(ui.available_width() - 48.0);
                        labelled(ui, name, &now(path), |ui| field(ui, text, path));
                    });
                    ui.vertical(|ui| {
                        ui.add_space(theme::size::BODY + space::S);
                        if icon_button(ui, icons::FOLDER_OPEN, &format!("Open: {name}")).clicked() {
                            out.act(Action::OpenFolder { path: path.clone() });
                        }
                    });
                });
            }
            ui.add_space(space::XS);
            labelled(
                ui,
                "Threads",
                "A job computes on so many; empty means all cores. Counts from the next job on",
                |ui| {
                    ui.scope(|ui| {
                        ui.set_max_width(120.0);
                        field(ui, &mut draft.threads, "all")
                    })
                    .inner
                },
            );
            let settings = draft.settings();
            if settings.as_ref().is_none_or(|settings| settings.threads > 4096) {
                notice(ui, Tone::Error, "Threads must be a number from 1 to 4096, or empty");
            }
            if let Some(error) = &self.save.error {
                error_box(ui, error);
            }
            ui.add_space(space::S);
            let settings = settings.filter(|settings| settings.threads <= 4096 && *settings != view.settings);
            let can_save = settings.is_some() && !self.save.is_waiting();
            if let (true, Some(settings)) = (Button::primary("Save").enabled(can_save).clicked(ui), settings)
            {
                self.save.ask(out, CommandBody::SettingsSave(settings));
            }
        });
    }
}

fn privacy(ui: &mut Ui) {
    section(ui, "Privacy", |ui| {
        for text in [
            "Lathe sends nothing anywhere: no telemetry, no crash reports, no check for updates",
            "Your data, models, runs and conversations stay on this machine, in the folders above",
            "It asks the Hub only for what you search there, look at, or tell it to fetch",
        ] {
            ui.horizontal_top(|ui| {
                ui.label(theme::icon(icons::CHECK).color(Tone::Success.color(ui)));
                ui.add(egui::Label::new(text).wrap());
            });
        }
    });
}
