use egui::{Align, Layout, Ui};
use lathe_protocol::{Method, ResumeHow, RunEntry, RunStatus, StopThen};

use crate::{
    format,
    theme::{self, icons, space},
    widgets::{Button, icon_button, run_badge},
};

/// What is wanted of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Back,
    Resume(ResumeHow),
    Stop(StopThen),
    /// After a question.
    Discard,
    /// After a question.
    Remove,
    OpenFolder,
    CopyCommand,
    ExportLogs,
    Chat,
    /// While it trains.
    Talk,
}

/// The run's name, and what can be done about it.
pub fn ui(ui: &mut Ui, run: &RunEntry, is_busy: bool) -> Option<Deed> {
    let mut deed = None;
    if icon_button(ui, icons::ARROW_LEFT, "All runs").clicked() {
        deed = Some(Deed::Back);
    }
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        deed = deed.or(deeds(ui, run, is_busy));
        ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
            let badge_room = 100.0;
            ui.scope(|ui| {
                ui.set_max_width((ui.available_width() - badge_room).max(80.0));
                ui.add(egui::Label::new(theme::title(&run.name)).truncate());
            });
            run_badge(ui, run.status);
        });
    });
    deed
}

/// From the right: the rarest first.
fn deeds(ui: &mut Ui, run: &RunEntry, is_busy: bool) -> Option<Deed> {
    let mut deed = None;
    let mut button = |ui: &mut Ui, button: Button<'_>, wanted: Deed| {
        if button.enabled(!is_busy).clicked(ui) {
            deed = Some(wanted);
        }
    };
    let keeps = run.method != Method::Full;
    let discard = Button::ghost("Stop and discard…").icon(icons::TRASH);
    let keep = Button::secondary("Stop and keep").icon(icons::FLOPPY_DISK);
    let remove = Button::ghost("Delete…").icon(icons::TRASH);
    let resume = Button::secondary("Resume").icon(icons::PLAY);
    match run.status {
        RunStatus::Queued => {
            button(ui, Button::ghost("Remove from queue…").icon(icons::TRASH), Deed::Discard);
        }
        RunStatus::Running => {
            button(ui, discard.tooltip("Removes the run and what it has learned"), Deed::Discard);
            if keeps {
                let tooltip = "Stops, and puts the adapter as it is into the library";
                button(ui, keep.tooltip(tooltip), Deed::Stop(StopThen::Keep));
            }
            let pause = Button::secondary("Pause").icon(icons::PAUSE);
            let tooltip = "Writes a checkpoint and stops; the run can go on later";
            button(ui, pause.tooltip(tooltip), Deed::Stop(StopThen::Pause));
            let talk = Button::primary("Talk to it").icon(icons::CHAT_CIRCLE);
            button(ui, talk.tooltip("A chat that it answers between its steps"), Deed::Talk);
        }
        RunStatus::Stopped
        | RunStatus::Interrupted
        | RunStatus::OutOfMemory
        | RunStatus::Diverged
        | RunStatus::Failed => {
            button(ui, remove, Deed::Remove);
            if keeps && run.step > 0 {
                let keep = Button::secondary("Keep as it is").icon(icons::FLOPPY_DISK);
                button(ui, keep.tooltip("Puts the adapter into the library"), Deed::Stop(StopThen::Keep));
            }
            // The others have it beside what went wrong.
            if run.status == RunStatus::Stopped {
                button(ui, Button::primary("Resume").icon(icons::PLAY), Deed::Resume(ResumeHow::AsItWas));
            }
        }
        RunStatus::Kept | RunStatus::Completed => {
            button(ui, remove, Deed::Remove);
            if run.status == RunStatus::Kept {
                button(ui, resume, Deed::Resume(ResumeHow::AsItWas));
            }
            button(ui, Button::primary("Test in chat").icon(icons::CHAT_CIRCLE), Deed::Chat);
        }
    }
    if icon_button(ui, icons::FOLDER_OPEN, "Open folder").clicked() {
        deed = Some(Deed::OpenFolder);
    }
    if icon_button(ui, icons::TERMINAL, "Copy the command").clicked() {
        deed = Some(Deed::CopyCommand);
    }
    if run.step > 0 && icon_button(ui, icons::EXPORT, "Export logs…").clicked() {
        deed = Some(Deed::ExportLogs);
    }
    deed
}

/// What the run is made of, in a line.
pub fn facts(ui: &mut Ui, run: &RunEntry, data_name: Option<&str>, now_secs: f64) {
    let method = match run.method {
        Method::Lora => "LoRA",
        Method::Qlora => "QLoRA",
        Method::Full => "Every weight",
    };
    let created = format!("Created {}", format::ago(run.created_secs, now_secs));
    let date = format::date(run.created_secs);
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = space::XS;
        for (icon, text, whole) in [
            (icons::CUBE, run.model.as_str(), run.model.as_str()),
            (icons::DATABASE, data_name.unwrap_or_else(|| format::file_name(&run.data)), run.data.as_str()),
            (icons::SLIDERS_HORIZONTAL, method, "Which weights learn"),
            (icons::CLOCK, created.as_str(), date.as_str()),
        ] {
            ui.label(theme::icon(icon).color(theme::colors(ui).text_faint));
            ui.label(theme::weak(ui, text)).on_hover_text(whole);
            ui.add_space(space::M);
        }
    });
}
