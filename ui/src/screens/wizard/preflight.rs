use egui::Ui;
use lathe_protocol::{ColumnView, CommandBody, DataReport, ErrorInfo, Event, EventBody, RunConfig};

use crate::{Asked, Outbox, widgets::spinner_line};

/// So long nothing changes before a new question is asked.
const QUIET_SECS: f64 = 0.4;

/// What the data is checked with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    pub model: String,
    pub data: String,
    /// Held-out rows that the data is compared with.
    pub eval_data: Option<String>,
    /// Only what matters to the data differs from the default.
    pub config: RunConfig,
}

impl Question {
    pub(super) fn new(model: &str, data: &str, eval_data: Option<&String>, config: &RunConfig) -> Self {
        let RunConfig {
            data: files,
            columns,
            dedupe,
            eval_ratio,
            max_seq_len,
            packing,
            batch_size,
            grad_accum,
            seed,
            styles,
            objective,
            ..
        } = config.clone();
        let config = RunConfig {
            data: files,
            dedupe,
            columns,
            eval_ratio,
            max_seq_len,
            packing,
            batch_size,
            grad_accum,
            seed,
            styles,
            objective,
            ..RunConfig::default()
        };
        Self { model: model.into(), data: data.into(), eval_data: eval_data.cloned(), config }
    }

    pub(super) fn is_of_same_file(&self, other: &Self) -> bool {
        (&self.model, &self.data) == (&other.model, &other.data)
    }
}

#[derive(Debug, Clone)]
enum Answer {
    Report(Box<DataReport>),
    /// The file's shape is not known.
    Columns {
        columns: Vec<ColumnView>,
        roles: Vec<String>,
    },
}

/// The newest report on the data, asked again whenever the question changes.
#[derive(Default)]
pub(super) struct Preflight {
    asked: Option<Question>,
    /// A question that may still change, and since when it has not.
    pending: Option<(Question, f64)>,
    answer: Asked<Answer>,
}

impl Preflight {
    pub(super) fn follow(&mut self, ui: &Ui, question: Option<&Question>, out: &mut Outbox) {
        let Some(question) = question else {
            if self.asked.take().is_some() {
                self.answer.clear(out);
            }
            self.pending = None;
            return;
        };
        if self.asked.as_ref() == Some(question) {
            self.pending = None;
            return;
        }
        let now = ui.input(|input| input.time);
        let is_same_file = self.asked.as_ref().is_some_and(|asked| asked.is_of_same_file(question));
        if is_same_file {
            match &self.pending {
                Some((pending, since)) if pending == question => {
                    if now - since < QUIET_SECS {
                        return ui.ctx().request_repaint_after_secs((QUIET_SECS - (now - since)) as f32);
                    }
                }
                _ => {
                    self.pending = Some((question.clone(), now));
                    return ui.ctx().request_repaint_after_secs(QUIET_SECS as f32);
                }
            }
        } else {
            self.answer.clear(out);
        }
        self.ask(question.clone(), out);
    }

    pub(super) fn apply(&mut self, event: &Event) {
        self.answer.apply(event, |body| match body {
            EventBody::DataReport(report) => Some(Answer::Report(report.clone())),
            EventBody::DataColumns { columns, roles } => {
                Some(Answer::Columns { columns: columns.clone(), roles: roles.clone() })
            }
            _ => None,
        });
    }

    /// Once more, the file having changed.
    pub(super) fn again(&mut self, out: &mut Outbox) {
        if let Some(question) = self.asked.take() {
            self.ask(question, out);
        }
    }

    fn ask(&mut self, question: Question, out: &mut Outbox) {
        let Question { model, data, eval_data, config } = question.clone();
        self.answer.ask(out, CommandBody::DataCheck { model, data, eval_data, config });
        (self.asked, self.pending) = (Some(question), None);
    }

    pub(super) fn report(&self) -> Option<&DataReport> {
        match &self.answer.value {
            Some(Answer::Report(report)) if self.answer.error.is_none() => Some(report),
            _ => None,
        }
    }

    /// Columns and roles of a file whose shape is not known.
    pub(super) fn unknown_shape(&self) -> Option<(&[ColumnView], &[String])> {
        match &self.answer.value {
            Some(Answer::Columns { columns, roles }) => Some((columns, roles)),
            _ => None,
        }
    }

    pub(super) fn error(&self) -> Option<&ErrorInfo> {
        self.answer.error.as_ref()
    }

    /// How far the check is.
    pub(super) fn waiting(&self, ui: &mut Ui) {
        match &self.answer.progress {
            Some(progress) if progress.total > 0 => {
                let share = progress.done as f32 / progress.total as f32;
                spinner_line(ui, &progress.what);
                ui.add(egui::ProgressBar::new(share).desired_height(4.0));
            }
            Some(progress) => spinner_line(ui, &progress.what),
            None => spinner_line(ui, "Checking the data"),
        }
    }

    /// Whether the report is still that of an earlier question.
    pub(super) fn is_waiting(&self) -> bool {
        self.answer.is_waiting() || self.pending.is_some()
    }

    pub(super) fn blocked(&self) -> Option<String> {
        if let Some(error) = self.error() {
            Some(error.message.clone())
        } else if self.is_waiting() || self.report().is_none() {
            Some("The data is being checked".into())
        } else {
            None
        }
    }
}
