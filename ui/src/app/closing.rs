use egui::{Context, Ui, ViewportCommand};
use lathe_protocol::{CommandBody, Download, RunEntry, RunStatus, StopThen};

use super::CloseWish;
use crate::{
    Outbox, Store, format, theme,
    theme::space,
    widgets::{Button, dialog, spinner_line},
};

/// What happens when the window is closed while a run or a download goes on in this program.
#[derive(Default)]
pub(super) struct Closing {
    state: State,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Open,
    Asking,
    /// Runs were told to stop; the window goes when they have.
    Stopping,
    Decided(CloseWish),
}

impl Closing {
    pub(super) fn wish(&self) -> CloseWish {
        match self.state {
            State::Decided(wish) => wish,
            _ => CloseWish::Stop,
        }
    }

    pub(super) fn logic(&mut self, ctx: &Context, store: &Store) {
        let wants_to_close = ctx.input(|input| input.viewport().close_requested());
        let has_work = runs(store).next().is_some() || downloads(store).next().is_some();
        if wants_to_close && !matches!(self.state, State::Decided(_)) && has_work {
            ctx.send_viewport_cmd(ViewportCommand::CancelClose);
            if self.state == State::Open {
                self.state = State::Asking;
            }
        }
        if self.state == State::Stopping && runs(store).next().is_none() {
            self.close(ctx, CloseWish::Stop);
        }
    }

    pub(super) fn close(&mut self, ctx: &Context, wish: CloseWish) {
        self.state = State::Decided(wish);
        ctx.send_viewport_cmd(ViewportCommand::Close);
    }

    pub(super) fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        match self.state {
            State::Asking => self.question(ui, store, out),
            State::Stopping => {
                dialog(ui, "Saving before closing", 420.0, |ui| {
                    for run in runs(store) {
                        spinner_line(ui, &format!("{} ends its step and writes a checkpoint", run.name));
                    }
                });
            }
            State::Open | State::Decided(_) => {}
        }
    }

    fn question(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let runs: Vec<&RunEntry> = runs(store).collect();
        let downloads: Vec<&Download> = downloads(store).collect();
        let title = match (runs.len(), downloads.len()) {
            (1, 0) => "A run is going on",
            (_, 0) => "Runs are going on",
            (0, 1) => "A download is going on",
            (0, _) => "Downloads are going on",
            _ => "A run and a download are going on",
        };
        let (goes_on, is_kept, stop) = if runs.is_empty() {
            ("its downloads", "what is here is kept, and the download can be resumed", "Pause and close")
        } else {
            (
                "the run and its queue",
                "a checkpoint is written, and the run can be resumed",
                "Checkpoint and stop",
            )
        };
        let mut answered = false;
        let dismissed = dialog(ui, title, 560.0, |ui| {
            for run in &runs {
                let steps = format!("step {} of {}", run.step, run.total_steps);
                ui.label(format!("{}, {steps}", run.name));
            }
            for Download { model, done_bytes, total_bytes, .. } in &downloads {
                let done = format!("{} of {}", format::bytes(*done_bytes), format::bytes(*total_bytes));
                ui.label(if *total_bytes == 0 { model.clone() } else { format!("{model}, {done}") });
            }
            ui.add_space(space::S);
            ui.label(theme::weak(
                ui,
                format!(
                    "Without its window Lathe goes on with {goes_on}, then ends. Open Lathe again to see how it \
                     stands. Or stop now: {is_kept}."
                ),
            ));
            ui.add_space(space::L);
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                if Button::primary("Keep running in the background").clicked(ui) {
                    self.close(ui.ctx(), CloseWish::KeepRunning);
                    answered = true;
                }
                if Button::secondary(stop).clicked(ui) {
                    for run in &runs {
                        out.ask(CommandBody::RunsStop { run: run.id.clone(), then: StopThen::Pause });
                    }
                    self.state = State::Stopping;
                    answered = true;
                }
                if Button::ghost("Cancel").clicked(ui) {
                    self.state = State::Open;
                    answered = true;
                }
            });
        });
        if !answered && (dismissed || runs.is_empty() && downloads.is_empty()) {
            self.state = State::Open;
        }
    }
}

/// Those that end with this program.
fn runs(store: &Store) -> impl Iterator<Item = &RunEntry> {
    store.runs().iter().filter(|run| run.held_here && run.status == RunStatus::Running)
}

fn downloads(store: &Store) -> impl Iterator<Item = &Download> {
    store.downloads().iter().filter(|download| download.held_here)
}
