use egui::Ui;
use lathe_protocol::{
    CommandBody, ErrorCode, Event, Method, ResumeHow, RunEntry, RunStatus, StopThen, TrainStart,
};

use crate::{
    Asked, Outbox, format,
    theme::{Tone, space},
    widgets::{Answer, Button, Confirm, USE_CPU, error_box},
};

/// What is done about runs from one screen: one thing a run at a time, and what cannot be undone after a question.
#[derive(Default)]
pub struct RunActions {
    tasks: Vec<Task>,
    question: Option<Question>,
    removed: Option<String>,
}

/// Something asked for a run, until it is done; a failed one stays until the next.
struct Task {
    run: String,
    command: CommandBody,
    asked: Asked<()>,
    /// Said once the run is gone.
    farewell: Option<String>,
}

struct Question {
    run: String,
    confirm: Confirm,
    command: CommandBody,
    farewell: String,
}

impl RunActions {
    /// Also starts a queued run at once.
    pub fn resume(&mut self, run: &RunEntry, how: ResumeHow, out: &mut Outbox) {
        let (run_id, start) = (run.id.clone(), TrainStart::Detached);
        let command = CommandBody::RunsResume { run: run_id, how, start, device: None };
        self.ask(&run.id, None, command, out);
    }

    pub fn stop(&mut self, run: &RunEntry, then: StopThen, out: &mut Outbox) {
        self.ask(&run.id, None, CommandBody::RunsStop { run: run.id.clone(), then }, out);
    }

    pub fn move_to(&mut self, run: &RunEntry, position: usize, out: &mut Outbox) {
        self.ask(&run.id, None, CommandBody::RunsMove { run: run.id.clone(), position }, out);
    }

    pub fn assign(&mut self, run: &RunEntry, device: String, out: &mut Outbox) {
        self.ask(&run.id, None, CommandBody::RunsAssign { run: run.id.clone(), device }, out);
    }

    /// Asks before a run that is queued or under way goes.
    pub fn discard(&mut self, run: &RunEntry) {
        let name = &run.name;
        let (title, text, yes, done) = if run.status == RunStatus::Queued && run.step == 0 {
            let text = "It has not started, so nothing is lost but its settings.".to_owned();
            (format!("Remove {name} from the queue?"), text, "Remove", "Removed")
        } else {
            let steps = format::plural(run.step, "step");
            let text = format!(
                "The run stops, and its folder goes: checkpoints, samples, log, and what the model learned in {steps}. \
                 This cannot be undone."
            );
            (format!("Stop and discard {name}?"), text, "Discard", "Discarded")
        };
        let command = CommandBody::RunsStop { run: run.id.clone(), then: StopThen::Discard };
        self.question(run, Confirm { title, text, yes: yes.into() }, command, done);
    }

    /// Asks before a run that ended goes.
    pub fn remove(&mut self, run: &RunEntry) {
        let stays = match (run.status, run.method) {
            (_, Method::Full) => "The trained model in it goes too.",
            (RunStatus::Completed | RunStatus::Kept, _) => "Its adapter stays in the library.",
            _ => "It can no longer be resumed.",
        };
        let confirm = Confirm {
            title: format!("Delete {}?", run.name),
            text: format!(
                "The run's folder goes with its checkpoints, and so do its charts, samples and log. {stays} \
                 This cannot be undone."
            ),
            yes: "Delete".into(),
        };
        self.question(run, confirm, CommandBody::RunsRemove { run: run.id.clone() }, "Deleted");
    }

    fn question(&mut self, run: &RunEntry, confirm: Confirm, command: CommandBody, done: &str) {
        let farewell = format!("{done} {}", run.name);
        self.question = Some(Question { run: run.id.clone(), confirm, command, farewell });
    }

    /// A job is never stopped for the next one: stopping a resumed run's job may stop the run.
    fn ask(&mut self, run: &str, farewell: Option<String>, command: CommandBody, out: &mut Outbox) {
        if self.is_busy(run) {
            return;
        }
        self.forget(run);
        let mut asked = Asked::default();
        asked.ask(out, command.clone());
        self.tasks.push(Task { run: run.to_owned(), command, asked, farewell });
    }

    /// Whether something is being done about this run.
    pub fn is_busy(&self, run: &str) -> bool {
        self.tasks.iter().any(|task| task.run == run && task.asked.is_waiting())
    }

    /// What is being done about this run, if the host says so.
    pub fn doing(&self, run: &str) -> Option<&str> {
        let task = self.tasks.iter().find(|task| task.run == run)?;
        task.asked.progress.as_ref().map(|progress| progress.what.as_str())
    }

    /// A run that is gone, once.
    pub fn take_removed(&mut self) -> Option<String> {
        self.removed.take()
    }

    /// Forgets what failed about a run.
    pub fn forget(&mut self, run: &str) {
        self.tasks.retain(|task| task.run != run || task.asked.is_waiting());
    }

    /// The question, if there is one, and what went wrong with one run, or with any.
    pub fn ui(&mut self, ui: &mut Ui, run: Option<&str>, out: &mut Outbox) {
        let mut on_cpu = None;
        for task in self.tasks.iter().filter(|task| run.is_none_or(|run| task.run == run)) {
            if let Some(error) = &task.asked.error {
                error_box(ui, error);
                if let (ErrorCode::NeedsCpu, CommandBody::RunsResume { run, how, start, .. }) =
                    (error.code, &task.command)
                    && Button::secondary(USE_CPU).clicked(ui)
                {
                    let (run, device) = (run.clone(), Some("cpu".into()));
                    on_cpu = Some(CommandBody::RunsResume { run, how: *how, start: *start, device });
                }
                ui.add_space(space::XS);
            }
        }
        if let Some(command) = on_cpu
            && let CommandBody::RunsResume { run, .. } = &command
        {
            self.ask(&run.clone(), None, command, out);
        }
        match self.question.as_ref().and_then(|question| question.confirm.ui(ui)) {
            Some(Answer::Yes) => {
                if let Some(Question { run, command, farewell, .. }) = self.question.take() {
                    self.ask(&run, Some(farewell), command, out);
                }
            }
            Some(Answer::No) => self.question = None,
            None => {}
        }
    }

    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        let Some(place) = self.tasks.iter_mut().position(|task| task.asked.apply(event, |_| None)) else {
            return;
        };
        if self.tasks[place].asked.error.is_none() {
            let Task { run, farewell, .. } = self.tasks.swap_remove(place);
            if let Some(farewell) = farewell {
                out.toast(Tone::Neutral, farewell);
                self.removed = Some(run);
            }
        }
    }
}
