use egui::Ui;
use lathe_protocol::{
    CONFIG_KEYS, CommandBody, DataFile, ErrorCode, ErrorInfo, Event, EventBody, Hardware, RunConfig,
    TrainRequest, TrainStart, in_catalog,
};

use super::{Step, Wizard, data, form::is_changed, method::epochs_words, preset::Preset};
use crate::{
    Asked, Outbox, Progress, Store, config_keys, fit, format,
    theme::{self, Tone, space},
    widgets::{
        Button, USE_CPU, card, choice, columns, error_box, field, key_value, labelled, link, notice, offer,
        section,
    },
};

const LINE_HEIGHT: f32 = 22.0;
const CPU: &str = "cpu";

/// A run on its way.
#[derive(Default)]
pub(super) struct Launch {
    /// The run's id.
    asked: Asked<String>,
    queued: bool,
}

/// A run that is on its own.
pub(super) struct Launched {
    pub run: String,
    pub queued: bool,
}

impl Launch {
    pub(super) fn ask_for_sweep(&mut self, command: CommandBody, out: &mut Outbox) {
        self.queued = true;
        self.asked.clear(out);
        self.asked.ask(out, command);
    }

    fn ask(&mut self, request: TrainRequest, out: &mut Outbox) {
        self.queued = request.start == TrainStart::Queued;
        self.asked.clear(out);
        self.asked.ask(out, CommandBody::Train(Box::new(request)));
    }

    pub(super) fn apply(&mut self, event: &Event) -> Option<Launched> {
        let ended = self.asked.apply(event, |body| match body {
            EventBody::RunStarted { run, .. } => Some(run.clone()),
            EventBody::Runs { runs } => runs.first().map(|run| run.id.clone()),
            _ => None,
        });
        if !ended || self.asked.error.is_some() {
            return None;
        }
        Some(Launched { run: self.asked.value.take()?, queued: self.queued })
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.asked.is_waiting()
    }

    pub(super) fn progress(&self) -> Option<&Progress> {
        self.asked.progress.as_ref()
    }

    pub(super) fn cancel(&mut self, out: &mut Outbox) {
        self.asked.clear(out);
    }

    fn error(&self) -> Option<&ErrorInfo> {
        self.asked.error.as_ref()
    }
}

impl Wizard {
    pub(super) fn start(&mut self, start: TrainStart, out: &mut Outbox) {
        if let Some(request) = self.request(start) {
            self.launch.ask(request, out);
        }
    }

    /// What was chosen, if it is enough.
    pub(super) fn request(&self, start: TrainStart) -> Option<TrainRequest> {
        let (model, data) = (self.choices.model.clone()?, self.choices.data.clone()?);
        let mut config = self.choices.config.clone();
        config.sample_prompts.retain(|prompt| !prompt.trim().is_empty());
        let name = self.choices.name.trim();
        Some(TrainRequest {
            model,
            data,
            eval_data: self.eval_data().cloned(),
            config,
            out_dir: None,
            name: (!name.is_empty()).then(|| name.to_owned()),
            init_adapter: None,
            force: false,
            resume: false,
            device: self.choices.device.clone(),
            start,
        })
    }

    /// Why the run cannot be started, beyond the earlier steps.
    pub(super) fn launch_problem(&self) -> Option<String> {
        if self.measurement.is_waiting() {
            return Some("The memory is being measured".into());
        }
        if self.report().is_some_and(|report| report.loss_tokens == 0) {
            return Some("There is nothing to learn in the data".into());
        }
        name_problem(&self.choices.name)
            .map(str::to_owned)
            .or_else(|| self.sweep.problem(&self.choices.config))
    }

    pub(super) fn review_step(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        if let Some(error) = self.launch.error() {
            error_box(ui, error);
        }
        if self.cpu_question(ui, store) {
            CPU.clone_into(&mut self.choices.device);
            self.launch.cancel(out);
        }
        card(ui, |ui| {
            let made_up = self.made_up_name();
            let help = "Of the run and of its adapter; left empty, Lathe makes one from model and data";
            labelled(ui, "Name", help, |ui| field(ui, &mut self.choices.name, &made_up));
            if let Some(problem) = name_problem(&self.choices.name) {
                ui.label(theme::small(ui, problem).color(Tone::Error.color(ui)));
            }
            let devices = device_options(store);
            if devices.len() > 2 {
                ui.add_space(space::S);
                labelled(
                    ui,
                    "Device",
                    "A run waits for its device; chats stay possible on the others",
                    |ui| choice(ui, "Device", &mut self.choices.device, &devices),
                );
            }
        });
        self.sweep_card(ui, store);
        if let Some(report) = self.report() {
            data::findings(ui, report);
        }
        let mut edit = None;
        columns(ui, &[Step::Model, Step::Data], 280.0, |ui, step| {
            let facts = if *step == Step::Model { self.model_facts(store) } else { self.data_facts() };
            if summary_card(ui, *step, facts) {
                edit = Some(*step);
            }
        });
        if summary_card(ui, Step::Method, self.method_facts()) {
            edit = Some(Step::Method);
        }
        section(ui, "What it takes", |ui| {
            self.memory(ui, store);
            self.measurement(ui, out);
            self.duration(ui, store);
        });
        if let Some(step) = edit {
            self.go_to(step);
        }
    }

    /// Where no graphics card that is here can compute the run: what will, said and asked. True if the CPU is to.
    fn cpu_question(&self, ui: &mut Ui, store: &Store) -> bool {
        let is_refused = self.launch.error().is_some_and(|error| error.code == ErrorCode::NeedsCpu);
        let hardware = store.hardware.value.as_ref();
        let unused =
            hardware.filter(|machine| !machine.gpus.is_empty() && machine.usable_gpus().next().is_none());
        if self.choices.device == CPU {
            if unused.is_some() {
                notice(ui, Tone::Neutral, "The run computes on the CPU: that was chosen");
            }
            return false;
        }
        let why = unused.map(|machine| machine.gpu_note.as_deref().unwrap_or("It is not known why"));
        match why {
            Some(why) => {
                let text = format!("The graphics card cannot be used. {why}");
                offer(ui, Tone::Warning, &text, Button::secondary(USE_CPU))
            }
            None if is_refused => {
                offer(ui, Tone::Warning, "The CPU can compute it, in more time", Button::secondary(USE_CPU))
            }
            None => false,
        }
    }

    fn model_facts(&self, store: &Store) -> Vec<(&'static str, String)> {
        let Some(name) = &self.choices.model else { return Vec::new() };
        let mut facts = vec![("Model", name.clone())];
        if let Some(entry) = store.model(name) {
            let parameters =
                entry.parameters.map(|parameters| ("Parameters", format::short_count(parameters)));
            facts.extend(parameters);
            facts.push(("On disk", format::bytes(entry.size_bytes)));
            let license = entry.license.clone().or_else(|| Some(in_catalog(name)?.license.clone()));
            facts.extend(license.map(|license| ("Licence", license)));
        }
        if let Some(shape) = fit::shape_of(name, store) {
            facts.push(("Context", format::plural(shape.context_length, "token")));
        }
        facts
    }

    fn data_facts(&self) -> Vec<(&'static str, String)> {
        let Some(path) = &self.choices.data else { return Vec::new() };
        let mut facts = vec![("File", format::file_name(path).to_owned())];
        let weight = |file: &DataFile| format!("{} × {}", format::file_name(&file.path), file.weight);
        let files: Vec<_> = self.choices.config.data.iter().map(weight).collect();
        if !files.is_empty() {
            facts[0].1 = files.join(", ");
        }
        if let Some(report) = self.report() {
            let trained = report.rows.saturating_sub(report.held_out_rows);
            facts.push(("Shape", data::shape_name(report.shape).into()));
            facts.push(("Rows", format!("{} to learn from", format::count(trained as u64))));
            facts.push((
                "Tokens",
                format!(
                    "{}, {} learned",
                    format::short_count(report.tokens),
                    format::short_count(report.loss_tokens)
                ),
            ));
            facts.push((
                "Held out",
                match self.eval_data() {
                    Some(file) => format::file_name(file).to_owned(),
                    None => format::plural(report.held_out_rows, "row"),
                },
            ));
        }
        facts
    }

    fn method_facts(&self) -> Vec<(&'static str, String)> {
        let config = &self.choices.config;
        let RunConfig { lora, batch_size, grad_accum, .. } = config;
        let preset = Preset::of(config).map_or("Custom", |preset| preset.name);
        let schedule = config_keys::text(config, "schedule");
        let length = if config.max_steps > 0 {
            format::plural(config.max_steps, "step")
        } else {
            epochs_words(config.epochs)
        };
        let method = match config_keys::text(config, "method").as_str() {
            "lora" => format!("{preset}: LoRA of rank {}, alpha {}", lora.r, lora.alpha),
            method => format!("{preset}: {method}"),
        };
        let mut facts = vec![
            ("Method", method),
            ("Length", format!("{length}, {} a step", format::plural(batch_size * grad_accum, "sequence"))),
            ("Learning rate", format!("{}, {schedule}", config.learning_rate)),
        ];
        if config.objective.takes_pairs() {
            let objective = config_keys::text(config, "objective").to_uppercase();
            facts.insert(0, ("Objective", format!("{objective}, beta {}", config.beta)));
        }
        if !config.styles.is_empty() {
            let names: Vec<_> = config.styles.iter().map(|style| style.name.as_str()).collect();
            facts.push(("Styles", names.join(", ")));
        }
        if !config.sample_prompts.is_empty() {
            facts.push(("Questions", config.sample_prompts.join("  ·  ")));
        }
        let others = CONFIG_KEYS.iter().filter(|key| {
            let is_shown = [
                "data",
                "columns",
                "eval_ratio",
                "sample_prompts",
                "styles",
                "learning_rate",
                "epochs",
                "objective",
                "beta",
            ]
            .contains(&key.name);
            is_changed(config, key) && !is_shown && !is_of_preset(key.name)
        });
        let others: Vec<_> =
            others.map(|key| format!("{} = {}", key.name, config_keys::text(config, key.name))).collect();
        if !others.is_empty() {
            facts.push(("Also set", others.join(", ")));
        }
        facts
    }

    fn made_up_name(&self) -> String {
        let part =
            |path: &Option<String>| path.as_deref().map(format::file_name).unwrap_or_default().to_lowercase();
        let data = part(&self.choices.data);
        let stem = data.rsplit_once('.').map_or(data.as_str(), |(stem, _)| stem);
        format!("{}-{stem}", part(&self.choices.model))
    }
}

/// Each device, and how it is told; the first is whichever suits.
pub(in crate::screens) fn device_options(store: &Store) -> Vec<(String, String)> {
    let gpus = store.hardware.value.iter().flat_map(Hardware::usable_gpus);
    let gpus = gpus.map(|gpu| (gpu.device(), format!("GPU {}: {}", gpu.index, gpu.name)));
    let auto = ("auto".to_owned(), "Whichever is free and has room".to_owned());
    [auto].into_iter().chain(gpus).chain([("cpu".to_owned(), "CPU".to_owned())]).collect()
}

fn is_of_preset(key: &str) -> bool {
    ["lora.r", "lora.alpha", "batch_size", "grad_accum", "packing", "schedule", "warmup_ratio", "method"]
        .contains(&key)
}

/// What a step came to. True if it is to be changed.
fn summary_card(ui: &mut Ui, step: Step, facts: Vec<(&'static str, String)>) -> bool {
    let mut edit = false;
    card(ui, |ui| {
        ui.spacing_mut().interact_size.y = LINE_HEIGHT;
        ui.horizontal(|ui| {
            ui.label(theme::heading(step.name()));
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let response = link(ui, "Edit");
                let name = format!("Edit {}", step.name());
                response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Link, true, &name));
                edit = response.clicked();
            });
        });
        ui.add_space(space::XS);
        key_value(ui, step.name(), facts);
    });
    edit
}

fn name_problem(name: &str) -> Option<&'static str> {
    let is_fine = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    (!name.trim().chars().all(is_fine)).then_some("The name takes letters, digits, -, _ and . only")
}
