//! A new run in four steps; going back loses nothing.

mod aside;
mod data;
mod files;
mod form;
mod held_out;
mod mapping;
mod memory;
mod method;
mod mixture;
mod model;
mod nav;
mod preflight;
mod preset;
mod review;
mod rows;
mod sweep;

use egui::{CentralPanel, Frame, Margin, Panel, ScrollArea, Ui};
use lathe_protocol::{CommandBody, DataReport, DatasetShape, Event, EventBody, ModelDetails, RunConfig};

pub(super) use self::review::device_options;
use self::{
    files::Purpose,
    form::ConfigForm,
    memory::Measurement,
    preflight::{Preflight, Question},
    preset::Preset,
    review::Launch,
    rows::Rows,
    sweep::Sweep,
};
use super::fetching::Fetching;
use crate::{
    Action, Asked, Outbox, Picker, Route, Store, fit,
    theme::{self, Tone, space},
    widgets::{StepView, stepper},
};

const ASIDE_WIDTH: f32 = 300.0;
/// With less room, the explanation goes below.
const WIDE: f32 = 840.0;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    #[default]
    Model,
    Data,
    Method,
    Review,
}

impl Step {
    const ALL: [Self; 4] = [Self::Model, Self::Data, Self::Method, Self::Review];

    fn name(self) -> &'static str {
        match self {
            Self::Model => "Model",
            Self::Data => "Data",
            Self::Method => "Method",
            Self::Review => "Review",
        }
    }

    fn before(self) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|step| *step < self)
    }

    fn after(self) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self)
    }
}

/// What was chosen so far.
struct Choices {
    /// By name; perhaps one of the catalog that is not here.
    model: Option<String>,
    data: Option<String>,
    /// Rows are held out in a file of their own, as long as `config.eval_ratio` is 0.
    eval_from_file: bool,
    eval_data: Option<String>,
    config: RunConfig,
    /// Empty means one made from model and data.
    name: String,
    /// `auto`, `cpu` or `cuda:N`.
    device: String,
}

impl Default for Choices {
    fn default() -> Self {
        let mut config = RunConfig { eval_ratio: held_out::USUAL_SHARE, ..RunConfig::default() };
        preset::BALANCED.apply(&mut config);
        Self {
            model: None,
            data: None,
            eval_from_file: false,
            eval_data: None,
            config,
            name: String::new(),
            device: "auto".into(),
        }
    }
}

/// The screen of a new run.
#[derive(Default)]
pub struct Wizard {
    step: Step,
    furthest: Step,
    choices: Choices,
    model_search: String,
    /// The chosen model, by name, and what its choice decides.
    explained: Option<String>,
    details: Asked<Box<ModelDetails>>,
    fetching: Fetching,
    /// Of the model imported last.
    import: Asked<String>,
    preflight: Preflight,
    rows: Rows,
    form: ConfigForm,
    picker: Option<(Purpose, Picker)>,
    measurement: Measurement,
    launch: Launch,
    sweep: Sweep,
}

impl Wizard {
    /// Everything else stays as it was chosen.
    pub fn choose_model(&mut self, model: String) {
        self.choices.model = Some(model);
        self.step = Step::Model;
    }

    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        if let Some((_, picker)) = &mut self.picker {
            picker.apply(event);
        }
        self.fetching.apply(event);
        self.preflight.apply(event);
        self.rows.apply(event);
        self.measurement.apply(event);
        self.details.apply(event, |body| match body {
            EventBody::ModelDetails(details) => Some(details.clone()),
            _ => None,
        });
        let import_ended = self.import.apply(event, |body| match body {
            EventBody::Models { models } => models.first().map(|model| model.name.clone()),
            _ => None,
        });
        if import_ended && self.import.error.is_none() {
            if let Some(model) = self.import.value.take() {
                out.toast(Tone::Success, format!("Imported {model}"));
                self.choices.model = Some(model);
            }
            out.act(Action::RefreshModels);
        }
        if let Some(launched) = self.launch.apply(event) {
            self.choices.name.clear();
            if launched.queued {
                let runs = if self.sweep.on { self.sweep.num_runs() } else { 1 };
                self.sweep.on = false;
                let text = if runs == 1 {
                    "The run waits in the queue".into()
                } else {
                    format!("{runs} runs wait in the queue")
                };
                out.toast(Tone::Success, text);
                out.go(Route::Runs);
            } else {
                out.go(Route::Run(launched.run));
            }
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        self.take_dropped_files(ui, store, out);
        self.follow_choices(ui, store, out);
        self.header(ui, store);
        let is_wide = ui.available_width() >= WIDE;
        let nav_margin = Margin { left: 0, right: 10, top: space::M as i8, bottom: space::L as i8 };
        Panel::bottom("wizard_nav")
            .resizable(false)
            .frame(Frame::new().inner_margin(nav_margin))
            .show(ui, |ui| self.nav(ui, store, out));
        if is_wide {
            Panel::right("wizard_aside")
                .exact_size(ASIDE_WIDTH + space::XL)
                .resizable(false)
                .show_separator_line(false)
                .frame(Frame::new().inner_margin(Margin {
                    left: space::M as i8,
                    right: 2,
                    top: 1,
                    bottom: 0,
                }))
                .show(ui, |ui| {
                    ScrollArea::vertical().id_salt("aside").show(ui, |ui| self.aside(ui, store));
                });
        }
        CentralPanel::default().frame(Frame::new()).show(ui, |ui| {
            ScrollArea::vertical().id_salt(self.step.name()).auto_shrink(false).show(ui, |ui| {
                // Room for the scroll bar and a card's border.
                let margin = Margin { left: 1, right: 10, top: 1, bottom: 16 };
                Frame::new().inner_margin(margin).show(ui, |ui| {
                    ui.spacing_mut().item_spacing.y = space::M;
                    match self.step {
                        Step::Model => self.model_step(ui, store, out),
                        Step::Data => self.data_step(ui, store, out),
                        Step::Method => self.method_step(ui, store),
                        Step::Review => self.review_step(ui, store, out),
                    }
                    if !is_wide {
                        self.aside(ui, store);
                    }
                });
            });
        });
        self.pick_files(ui, out);
        self.fetching.dialog(ui, out);
        if !store.connection.is_remote {
            files::drop_overlay(ui);
        }
    }

    fn header(&mut self, ui: &mut Ui, store: &Store) {
        ui.horizontal_wrapped(|ui| {
            ui.set_min_height(theme::CONTROL_HEIGHT + space::XS);
            ui.label(theme::title("New fine-tune"));
            ui.add_space(space::XXL);
            let steps = Step::ALL.map(|step| StepView {
                name: step.name(),
                is_done: step < self.furthest && self.blocked(step, store).is_none(),
                locked: self.locked(step, store),
            });
            if let Some(index) = stepper(ui, &steps, self.step as usize) {
                self.go_to(Step::ALL[index]);
            }
        });
        ui.add_space(space::M);
    }

    fn go_to(&mut self, step: Step) {
        self.step = step;
        self.furthest = self.furthest.max(step);
    }

    /// Asks what the choices make necessary: what the model decides, the data's report, and the rows around the one in sight.
    fn follow_choices(&mut self, ui: &Ui, store: &Store, out: &mut Outbox) {
        let usable = self.choices.model.clone().filter(|_| self.blocked(Step::Model, store).is_none());
        if self.explained != usable {
            self.explained.clone_from(&usable);
            self.details.clear(out);
            if let Some(model) = usable {
                self.details.ask(out, CommandBody::ModelsShow { model });
            }
        }
        if let Some(shape) = self.report().map(|report| report.shape) {
            Preset::suit(&mut self.choices.config, shape == DatasetShape::Preference);
        }
        let question = self.question(store);
        self.preflight.follow(ui, question.as_ref(), out);
        self.rows.follow(question.as_ref(), self.preflight.report(), out);
    }

    fn question(&self, store: &Store) -> Option<Question> {
        let model = self.choices.model.as_ref().filter(|_| self.blocked(Step::Model, store).is_none())?;
        Some(Question::new(model, self.choices.data.as_ref()?, self.eval_data(), &self.choices.config))
    }

    /// Why the step is not complete.
    fn blocked(&self, step: Step, store: &Store) -> Option<String> {
        let Choices { model, data, eval_data, .. } = &self.choices;
        match step {
            Step::Model => match model {
                None => Some("Choose a model first".into()),
                Some(name) => match store.model(name) {
                    None => Some(format!("{name} is not on this machine yet: download it first")),
                    Some(entry) => entry.problem.as_ref().map(|problem| format!("{name}: {problem}")),
                },
            },
            Step::Data if data.is_none() => Some("Choose a data file first".into()),
            Step::Data if self.held_out_in_file() && eval_data.is_none() => {
                Some("Choose the file of held-out rows".into())
            }
            Step::Data => self.preflight.blocked(),
            Step::Method => self.form.problem().or_else(|| form::refused(&self.choices.config)),
            Step::Review => self.launch_problem(),
        }
    }

    /// Why the step cannot be gone to: the first earlier one that is not complete.
    fn locked(&self, step: Step, store: &Store) -> Option<String> {
        Step::ALL.into_iter().take_while(|earlier| *earlier < step).find_map(|step| self.blocked(step, store))
    }

    fn report(&self) -> Option<&DataReport> {
        self.preflight.report()
    }

    /// Tokens of the longest row, once the data is known.
    fn longest_row(&self) -> Option<usize> {
        self.report().map(DataReport::longest_row_tokens)
    }

    fn run_time(&self, store: &Store) -> Option<fit::TimeEstimate> {
        self.time_of(&self.choices.config, store)
    }

    /// Of a run with these settings.
    fn time_of(&self, config: &RunConfig, store: &Store) -> Option<fit::TimeEstimate> {
        let (model, report) = (self.choices.model.as_ref()?, self.report()?);
        let epochs = if config.max_steps > 0 {
            config.max_steps as f64 / report.steps_per_epoch.max(1) as f64
        } else {
            config.epochs
        };
        let tokens = (report.tokens as f64 * epochs) as u64;
        fit::run_time(model, config, tokens, report.lengths.mean as usize, store)
    }

    fn import(&mut self, path: String, out: &mut Outbox) {
        self.import.ask(out, CommandBody::ModelsImport { path, name: None });
    }
}
