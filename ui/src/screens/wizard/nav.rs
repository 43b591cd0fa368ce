use egui::{Key, KeyboardShortcut, Modifiers, Ui};
use lathe_protocol::TrainStart;

use super::{Step, Wizard, preset::Preset};
use crate::{
    Outbox, Store, format,
    theme::{self, icons},
    widgets::{Button, progress_line, spinner_line},
};

const CONTINUE: KeyboardShortcut = KeyboardShortcut::new(Modifiers::COMMAND, Key::Enter);

impl Wizard {
    /// Back and Continue, or Start and Queue; always in sight.
    pub(super) fn nav(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        if self.launch.is_waiting() {
            return self.launching(ui, out);
        }
        ui.horizontal(|ui| {
            if let Some(before) = self.step.before()
                && Button::secondary("Back").icon(icons::ARROW_LEFT).clicked(ui)
            {
                self.go_to(before);
            }
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let blocked = self.locked(self.step, store).or_else(|| self.blocked(self.step, store));
                if let Some(after) = self.step.after() {
                    if self.main_button(ui, "Continue", blocked.as_deref()) {
                        self.go_to(after);
                    }
                } else {
                    self.start_buttons(ui, blocked.as_deref(), out);
                }
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    ui.add(egui::Label::new(theme::small(ui, self.summary())).truncate());
                });
            });
        });
    }

    fn start_buttons(&mut self, ui: &mut Ui, blocked: Option<&str>, out: &mut Outbox) {
        if self.sweep.on {
            let text = format!("Queue {}", format::plural(self.sweep.num_runs(), "run"));
            if self.main_button(ui, &text, blocked) {
                self.start_sweep(out);
            }
            return;
        }
        if self.main_button(ui, "Start", blocked) {
            self.start(TrainStart::Detached, out);
        }
        let mut queue = Button::secondary("Queue").icon(icons::QUEUE);
        queue = match blocked {
            Some(reason) => queue.enabled(false).tooltip(reason),
            None => queue.tooltip("Starts when its device is free"),
        };
        if queue.clicked(ui) {
            self.start(TrainStart::Queued, out);
        }
    }

    fn main_button(&self, ui: &mut Ui, text: &str, blocked: Option<&str>) -> bool {
        let mut button = Button::primary(text).min_width(120.0);
        if text == "Start" {
            button = button.icon(icons::PLAY);
        }
        button = match blocked {
            Some(reason) => button.enabled(false).tooltip(reason),
            None => button.shortcut(ui.ctx().format_shortcut(&CONTINUE)),
        };
        let pressed = self.picker.is_none() && ui.input_mut(|input| input.consume_shortcut(&CONTINUE));
        button.clicked(ui) || (pressed && blocked.is_none())
    }

    fn launching(&mut self, ui: &mut Ui, out: &mut Outbox) {
        ui.horizontal(|ui| {
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                if Button::secondary("Cancel").icon(icons::X).clicked(ui) {
                    self.launch.cancel(out);
                }
                ui.vertical(|ui| match self.launch.progress() {
                    Some(progress) => progress_line(ui, progress),
                    None => spinner_line(ui, "Preparing the run"),
                });
            });
        });
    }

    /// What is chosen so far, in a line.
    fn summary(&self) -> String {
        let data = |path: &str| format::data_name(path, &self.choices.config);
        let parts = [
            self.choices.model.as_deref().map(|model| format::file_name(model).to_owned()),
            self.choices.data.as_deref().map(data).filter(|_| self.furthest >= Step::Data),
            Some(Preset::of(&self.choices.config).map_or("Custom", |preset| preset.name).to_owned())
                .filter(|_| self.furthest >= Step::Method),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("  ·  ")
    }
}
