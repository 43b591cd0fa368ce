use std::collections::BTreeMap;

use egui::{Response, Role, TextEdit, Ui, WidgetInfo, vec2};
use lathe_protocol::{CONFIG_KEYS, ConfigKey, LoraTargets, RunConfig};
use serde_json::Value;

use crate::{
    config_keys::{get, options, range_words, reset, set, text},
    theme::{self, CONTROL_HEIGHT, Tone, icons, size, space},
    widgets::{Button, icon_button, search, switch},
};

const CONTROL_WIDTH: f32 = 200.0;

/// The keys by what they are about.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "What learns",
        &[
            "objective",
            "beta",
            "method",
            "quant",
            "dtype",
            "styles",
            "lora.r",
            "lora.alpha",
            "lora.dropout",
            "lora.targets",
            "lora.target_parameters",
            "lora.layers",
            "lora.modules_to_save",
            "lora.use_rslora",
            "lora.use_dora",
        ],
    ),
    (
        "Length of the run",
        &[
            "epochs",
            "max_steps",
            "batch_size",
            "grad_accum",
            "gradient_checkpointing",
            "gradient_checkpointing_every",
            "activation_offloading",
        ],
    ),
    (
        "Learning rate and optimizer",
        &[
            "learning_rate",
            "schedule",
            "warmup_ratio",
            "warmup_steps",
            "optimizer",
            "weight_decay",
            "max_grad_norm",
            "neftune_alpha",
        ],
    ),
    (
        "Data",
        &[
            "max_seq_len",
            "packing",
            "shuffle",
            "seed",
            "data",
            "columns",
            "dedupe",
            "eval_ratio",
            "skip_rows",
        ],
    ),
    (
        "While it trains",
        &[
            "eval_steps",
            "early_stopping_patience",
            "early_stopping_min_delta",
            "keep_best",
            "spike_window",
            "spike_threshold",
            "sample_prompts",
        ],
    ),
    ("Checkpoints", &["save_steps", "save_total_limit"]),
];

/// Why the config cannot be: settings that exclude each other.
pub(super) fn refused(config: &RunConfig) -> Option<String> {
    LoraTargets::new(&config.lora).err().map(|error| error.message)
}

/// Fields for the keys of a config; what is written but cannot be stays until it is mended.
#[derive(Default)]
pub(super) struct ConfigForm {
    drafts: BTreeMap<&'static str, Draft>,
    filter: String,
    is_open: bool,
}

struct Draft {
    text: String,
    /// What the key takes, if this is something else.
    problem: Option<String>,
}

impl ConfigForm {
    /// The first value that cannot be.
    pub(super) fn problem(&self) -> Option<String> {
        let problem =
            |(key, draft): (&&str, &Draft)| draft.problem.as_ref().map(|why| format!("{key}: {why}"));
        self.drafts.iter().find_map(problem)
    }

    /// The control of a key, in the kind its values need; `name` is its accessible name.
    pub(super) fn control(
        &mut self,
        ui: &mut Ui,
        config: &mut RunConfig,
        key: &'static ConfigKey,
        name: &str,
    ) -> Response {
        let value = get(config, key.name);
        let options = options(key);
        match value {
            Value::Bool(mut on) => {
                let response = switch(ui, &mut on, "");
                response.widget_info(|| WidgetInfo::selected(Role::Switch, true, on, name));
                if response.changed() {
                    put(config, key, &on.to_string());
                }
                response
            }
            Value::String(value) if !options.is_empty() => {
                let mut chosen = None;
                let combo =
                    egui::ComboBox::from_id_salt(key.name).selected_text(&*value).width(CONTROL_WIDTH);
                let response = combo.show_ui(ui, |ui| {
                    for option in options {
                        if ui.selectable_label(value == option, option).clicked() {
                            chosen = Some(option);
                        }
                    }
                });
                response.response.widget_info(|| WidgetInfo::labeled(Role::ComboBox, true, name));
                if let Some(option) = chosen {
                    put(config, key, option);
                }
                response.response
            }
            _ => self.field(ui, config, key, name),
        }
    }

    fn field(
        &mut self,
        ui: &mut Ui,
        config: &mut RunConfig,
        key: &'static ConfigKey,
        name: &str,
    ) -> Response {
        let draft = self.drafts.get(key.name);
        let mut written = draft.map_or_else(|| text(config, key.name), |draft| draft.text.clone());
        let is_wrong = draft.is_some_and(|draft| draft.problem.is_some());
        let response = ui
            .scope(|ui| {
                if is_wrong {
                    let color = Tone::Error.color(ui);
                    let widgets = &mut ui.visuals_mut().widgets;
                    (widgets.inactive.bg_stroke.color, widgets.hovered.bg_stroke.color) = (color, color);
                    ui.visuals_mut().selection.stroke.color = color;
                }
                let width = CONTROL_WIDTH.min(ui.available_width());
                let edit = TextEdit::singleline(&mut written)
                    .id_salt(key.name)
                    .desired_width(width)
                    .hint_text("None")
                    .margin(vec2(space::S + 2.0, 7.0))
                    .min_size(vec2(width, CONTROL_HEIGHT));
                ui.add(edit)
            })
            .inner;
        response.widget_info(|| WidgetInfo::labeled(Role::TextInput, true, name));
        if response.changed() {
            let problem = set(config, key, &written).err();
            self.drafts.insert(key.name, Draft { text: written, problem });
        } else if !response.has_focus() && !is_wrong {
            // From here on it reads as the config has it.
            self.drafts.remove(key.name);
        }
        response
    }

    /// Why what is written for the key cannot be.
    pub(super) fn message(&self, ui: &mut Ui, key: &ConfigKey) {
        if let Some(problem) = self.drafts.get(key.name).and_then(|draft| draft.problem.as_ref()) {
            let color = Tone::Error.color(ui);
            ui.label(egui::RichText::new(problem).size(size::SMALL).color(color));
        }
    }

    /// Drops what is written but not taken: another value was chosen.
    pub(super) fn forget_drafts(&mut self) {
        self.drafts.clear();
    }

    /// A fold with every key.
    pub(super) fn advanced(&mut self, ui: &mut Ui, config: &mut RunConfig) {
        let changed = CONFIG_KEYS.iter().filter(|key| is_changed(config, key)).count();
        ui.horizontal(|ui| {
            let icon = if self.is_open { icons::CARET_DOWN } else { icons::CARET_RIGHT };
            if Button::ghost("Advanced").icon(icon).clicked(ui) {
                self.is_open = !self.is_open;
            }
            ui.label(theme::small(
                ui,
                format!("{} settings, {changed} other than the default", CONFIG_KEYS.len()),
            ));
        });
        if !self.is_open {
            return;
        }
        ui.horizontal(|ui| {
            search(ui, &mut self.filter, "Find a setting");
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let reset = Button::secondary("Reset all").icon(icons::ARROW_CLOCKWISE);
                if reset.tooltip("To the defaults; columns, held-out rows and questions stay").clicked(ui) {
                    reset_all(config);
                    self.drafts.clear();
                }
            });
        });
        let wanted = self.filter.trim().to_lowercase();
        for (group, names) in GROUPS {
            let found = |key: &&'static ConfigKey| {
                names.contains(&key.name)
                    && (key.name.contains(&wanted) || key.help.to_lowercase().contains(&wanted))
            };
            let mut keys: Vec<_> = CONFIG_KEYS.iter().filter(found).collect();
            keys.sort_by_key(|key| names.iter().position(|name| *name == key.name));
            if keys.is_empty() {
                continue;
            }
            ui.add_space(space::S);
            ui.label(theme::heading(group));
            for key in keys {
                self.setting(ui, config, key);
            }
        }
    }

    fn setting(&mut self, ui: &mut Ui, config: &mut RunConfig, key: &'static ConfigKey) {
        ui.horizontal(|ui| {
            ui.set_min_height(CONTROL_HEIGHT + space::S);
            let text_width = (ui.available_width() - CONTROL_WIDTH - 60.0).max(160.0);
            ui.vertical(|ui| {
                ui.set_width(text_width);
                ui.spacing_mut().item_spacing.y = 1.0;
                ui.label(egui::RichText::new(key.name).monospace());
                ui.label(theme::small(ui, key.help));
                let color = theme::colors(ui).text_faint;
                ui.label(theme::small(ui, default_words(key)).color(color));
            });
            ui.vertical(|ui| {
                ui.set_width(CONTROL_WIDTH);
                self.control(ui, config, key, key.name);
                self.message(ui, key);
            });
            let has_draft = self.drafts.get(key.name).is_some_and(|draft| draft.problem.is_some());
            if (is_changed(config, key) || has_draft)
                && icon_button(ui, icons::ARROW_CLOCKWISE, &format!("Reset {}", key.name)).clicked()
            {
                self.drafts.remove(key.name);
                reset(config, key);
            }
        });
    }
}

/// The default, and what else may be there.
fn default_words(key: &ConfigKey) -> String {
    match text(&RunConfig::default(), key.name).as_str() {
        "true" => "Default on".into(),
        "false" => "Default off".into(),
        "" => format!("Default none; {}", range_words(key).to_lowercase()),
        default => format!("Default {default}; {}", range_words(key).to_lowercase()),
    }
}

/// All but what was said in forms of its own: columns, held-out rows, questions.
fn reset_all(config: &mut RunConfig) {
    let RunConfig { columns, eval_ratio, sample_prompts, .. } = std::mem::take(config);
    *config = RunConfig { columns, eval_ratio, sample_prompts, ..RunConfig::default() };
}

/// A control only offers values its key takes.
fn put(config: &mut RunConfig, key: &ConfigKey, value: &str) {
    let result = set(config, key, value);
    debug_assert_eq!(result, Ok(()), "{} = {value}", key.name);
}

pub(super) fn is_changed(config: &RunConfig, key: &ConfigKey) -> bool {
    get(config, key.name) != get(&RunConfig::default(), key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let mut keys: Vec<&str> = CONFIG_KEYS.iter().map(|key| key.name).collect();
        grouped.sort_unstable();
        keys.sort_unstable();
        assert_eq!(grouped, keys);
    }
}
