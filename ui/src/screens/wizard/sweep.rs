use egui::{Align, Layout, Ui, WidgetInfo};
use lathe_protocol::{
    CONFIG_KEYS, CommandBody, MANY_RUNS, Method, RunConfig, SweepKey, SweepRequest, SweepValue, TrainStart,
    sweep_points,
};

use super::{Wizard, form};
use crate::{
    Outbox, Store, config_keys, fit, format,
    theme::{self, Tone, space},
    widgets::{card, choice, field, switch},
};

/// Of the keys, those that make no sense to sweep.
const NOT_SWEPT: [&str; 5] = ["columns", "dtype", "sample_prompts", "skip_rows", "styles"];
/// Bytes that a checkpoint's optimizer keeps of a trained value beside the value itself.
const MOMENT_BYTES: u64 = 8;

/// One or two keys whose values are tried, each with each.
pub(super) struct Sweep {
    pub on: bool,
    keys: [(&'static str, String); 2],
}

impl Default for Sweep {
    fn default() -> Self {
        Self { on: false, keys: [("learning_rate", "1e-4, 3e-4".into()), (NONE, String::new())] }
    }
}

/// No second key.
const NONE: &str = "";

impl Sweep {
    fn keys(&self) -> Vec<SweepKey> {
        let chosen = self.keys.iter().filter(|(key, _)| *key != NONE);
        chosen.map(|(key, values)| SweepKey::new(key, values)).collect()
    }

    pub(super) fn num_runs(&self) -> usize {
        self.keys().iter().map(|key| key.values.len()).product()
    }

    /// The configs it makes of `base`. Errors: why it cannot be.
    fn configs(&self, base: &RunConfig) -> Result<Vec<RunConfig>, String> {
        let keys = self.keys();
        if let [a, b] = keys.as_slice()
            && a.key == b.key
        {
            return Err(format!("{} is chosen twice", a.key));
        }
        if let Some(empty) = keys.iter().find(|key| key.values.is_empty()) {
            return Err(format!("Write the values of {}, with commas between", empty.key));
        }
        let with = |values: &[SweepValue]| -> Result<RunConfig, String> {
            let mut config = base.clone();
            for SweepValue { key, value } in values {
                let Some(known) = config_keys::config_key(key) else { continue };
                config_keys::set(&mut config, known, value)
                    .map_err(|range| format!("{key} cannot be {value}: {range}"))?;
            }
            form::refused(&config).map_or(Ok(config), Err)
        };
        let mut configs: Vec<RunConfig> = Vec::new();
        for values in sweep_points(&keys) {
            let config = with(&values)?;
            if configs.contains(&config) {
                return Err("Two of the values are the same".into());
            }
            configs.push(config);
        }
        Ok(configs)
    }

    /// Why it cannot be started.
    pub(super) fn problem(&self, base: &RunConfig) -> Option<String> {
        if !self.on {
            return None;
        }
        let count = self.num_runs();
        if count > MANY_RUNS {
            return Some(format!("{count} runs are too many: {MANY_RUNS} at most"));
        }
        self.configs(base).err()
    }
}

impl Wizard {
    pub(super) fn sweep_card(&mut self, ui: &mut Ui, store: &Store) {
        card(ui, |ui| {
            ui.horizontal(|ui| {
                ui.label(theme::heading("Sweep"));
                ui.label(theme::small(ui, "A run for each combination of settings, and a comparison"));
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    let on = &mut self.sweep.on;
                    let response = switch(ui, on, "");
                    let info = || WidgetInfo::selected(egui::Role::Switch, true, *on, "Make it a sweep");
                    response.widget_info(info);
                });
            });
            if self.sweep.on {
                ui.add_space(space::S);
                key_row(ui, "First", &mut self.sweep.keys[0], false);
                key_row(ui, "Second", &mut self.sweep.keys[1], true);
                ui.add_space(space::XS);
                match self.sweep.problem(&self.choices.config) {
                    Some(problem) => ui.label(theme::small(ui, problem).color(Tone::Error.color(ui))),
                    None => ui.label(self.sweep_cost(store)),
                };
            }
        });
    }

    /// `4 runs, about 12 min in all on one device, 38 MB of adapters and checkpoints`.
    fn sweep_cost(&self, store: &Store) -> String {
        let configs = self.sweep.configs(&self.choices.config).unwrap_or_default();
        let mut words = vec![format::plural(configs.len(), "run")];
        let times: Option<Vec<f64>> =
            configs.iter().map(|config| Some(self.time_of(config, store)?.secs)).collect();
        if let Some(times) = times {
            words.push(format!("about {} in all on one device", format::duration(times.iter().sum())));
        }
        let model = self.choices.model.as_ref();
        if let Some(shape) = model.and_then(|model| fit::shape_of(model, store)) {
            let bytes = configs.iter().map(|config| {
                let learned = match config.method {
                    Method::Full => shape.parameters(),
                    Method::Lora | Method::Qlora => shape.adapter_parameters(&config.lora),
                };
                // In the run's folder and in the library, and in the checkpoints with the optimizer.
                let checkpoints = config.save_total_limit as u64 * learned * (4 + MOMENT_BYTES);
                2 * learned * 4 + checkpoints
            });
            words.push(format!("{} on disk", format::bytes(bytes.sum())));
        }
        words.join(", ")
    }

    /// Queues the sweep's runs.
    pub(super) fn start_sweep(&mut self, out: &mut Outbox) {
        let Some(train) = self.request(TrainStart::Queued) else { return };
        let request = SweepRequest { train, keys: self.sweep.keys() };
        self.launch.ask_for_sweep(CommandBody::Sweep(Box::new(request)), out);
    }
}

fn key_row(ui: &mut Ui, which: &str, (key, values): &mut (&'static str, String), optional: bool) {
    let none = optional.then_some((NONE, "None"));
    let sweepable = CONFIG_KEYS.iter().filter(|key| !NOT_SWEPT.contains(&key.name));
    let options: Vec<_> = none.into_iter().chain(sweepable.map(|key| (key.name, key.name))).collect();
    ui.horizontal(|ui| {
        ui.allocate_ui_with_layout(
            egui::vec2(220.0, theme::CONTROL_HEIGHT),
            Layout::left_to_right(Align::Center),
            |ui| choice(ui, &format!("{which} setting of the sweep"), key, &options),
        );
        if *key != NONE {
            let hint = config_keys::config_key(key).map(config_keys::range_words).unwrap_or_default();
            let response = field(ui, values, &format!("Values with commas between: {hint}"));
            response
                .widget_info(|| WidgetInfo::labeled(egui::Role::TextInput, true, format!("Values of {key}")));
        }
    });
}
