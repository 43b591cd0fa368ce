use lathe_protocol::{Objective, RunConfig, Schedule, Style};

/// Rows a step of the optimizer learns from, unless the preset says otherwise.
const ROWS_A_STEP: usize = 16;
const LEARNING_RATE: f64 = 2e-4;
const WARMUP_RATIO: f64 = 0.03;

/// Settings that go well together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Preset {
    pub name: &'static str,
    pub objective: Objective,
    pub r: usize,
    pub alpha: f64,
    pub epochs: f64,
    pub learning_rate: f64,
    pub rows_a_step: usize,
    /// Whether it teaches terse and detailed answers, each by a token of its own.
    pub has_styles: bool,
    pub good_for: &'static str,
}

pub(super) const QUICK: Preset = Preset {
    name: "Quick",
    objective: Objective::Sft,
    r: 8,
    alpha: 16.0,
    epochs: 1.0,
    learning_rate: LEARNING_RATE,
    rows_a_step: ROWS_A_STEP,
    has_styles: false,
    good_for: "To see whether the data works at all, or for a light change of tone",
};
pub(super) const BALANCED: Preset = Preset {
    name: "Balanced",
    objective: Objective::Sft,
    r: 16,
    alpha: 32.0,
    epochs: 2.0,
    learning_rate: LEARNING_RATE,
    rows_a_step: ROWS_A_STEP,
    has_styles: false,
    good_for: "The usual choice: a style, a format or a narrow task",
};
pub(super) const THOROUGH: Preset = Preset {
    name: "Thorough",
    objective: Objective::Sft,
    r: 32,
    alpha: 64.0,
    epochs: 3.0,
    learning_rate: LEARNING_RATE,
    rows_a_step: ROWS_A_STEP,
    has_styles: false,
    good_for: "For much data or a new skill; watch that it does not learn by heart",
};
pub(super) const VERBOSITY: Preset = Preset {
    name: "Verbosity control",
    objective: Objective::Sft,
    r: 16,
    alpha: 32.0,
    epochs: 4.0,
    learning_rate: 1e-3,
    // Terse rows have few tokens, and count little in a step that they share with many detailed ones.
    rows_a_step: 4,
    has_styles: true,
    good_for: "Terse or detailed, chosen in chat; for rows with a style, as in verbosity.jsonl",
};
pub(super) const DPO: Preset = Preset {
    name: "Preference (DPO)",
    objective: Objective::Dpo,
    r: 16,
    alpha: 32.0,
    epochs: 2.0,
    learning_rate: 5e-5,
    rows_a_step: 8,
    has_styles: false,
    good_for: "To lean towards the chosen answers and stay close to the model as it was in all else",
};
pub(super) const ORPO: Preset = Preset {
    name: "Preference (ORPO)",
    objective: Objective::Orpo,
    r: 16,
    alpha: 32.0,
    epochs: 3.0,
    learning_rate: 1e-4,
    rows_a_step: 8,
    has_styles: false,
    good_for: "To learn to write the chosen answers, and not the rejected ones, in one go",
};
pub(super) const PRESETS: [Preset; 6] = [QUICK, BALANCED, THOROUGH, VERBOSITY, DPO, ORPO];

impl Preset {
    /// Rows are not packed: with short ones, steps of so many full sequences would be too few.
    pub(super) fn apply(&self, config: &mut RunConfig) {
        (config.lora.r, config.lora.alpha, config.epochs) = (self.r, self.alpha, self.epochs);
        (config.learning_rate, config.warmup_ratio) = (self.learning_rate, WARMUP_RATIO);
        config.objective = self.objective;
        config.styles = if self.has_styles { Style::terse_and_detailed() } else { Vec::new() };
        (config.batch_size, config.grad_accum, config.packing) = (1, self.rows_a_step, false);
        (config.schedule, config.warmup_steps, config.max_steps) = (Schedule::Cosine, 0, 0);
    }

    /// However the rows of a step are split into passes.
    pub(super) fn is_in(&self, config: &RunConfig) -> bool {
        let mut applied = config.clone();
        self.apply(&mut applied);
        (applied.batch_size, applied.grad_accum) = (config.batch_size, config.grad_accum);
        applied == *config && config.batch_size * config.grad_accum == self.rows_a_step
    }

    /// Those for pairs of answers, or those for rows of one.
    pub(super) fn offered(for_pairs: bool) -> Vec<Self> {
        PRESETS.into_iter().filter(|preset| preset.objective.takes_pairs() == for_pairs).collect()
    }

    /// Makes the objective one that rows of this kind can have; with it whatever else a preset set.
    pub(super) fn suit(config: &mut RunConfig, for_pairs: bool) {
        if config.objective.takes_pairs() == for_pairs {
            return;
        }
        let suitable = if for_pairs { DPO } else { BALANCED };
        if Self::of(config).is_some() {
            suitable.apply(config);
        }
        config.objective = suitable.objective;
    }

    /// The one in use.
    pub(super) fn of(config: &RunConfig) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.is_in(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_is_found_again_until_one_of_its_settings_changes() {
        for preset in PRESETS {
            let mut config = RunConfig::default();
            preset.apply(&mut config);
            assert_eq!(Preset::of(&config), Some(preset));
            (config.batch_size, config.grad_accum, config.seed) = (2, preset.rows_a_step / 2, 7);
            assert_eq!(Preset::of(&config), Some(preset));
            config.learning_rate = 3e-3;
            assert_eq!(Preset::of(&config), None);
        }
    }

    #[test]
    fn the_objective_follows_the_data_and_settings_of_ones_own_stay() {
        let mut config = RunConfig::default();
        QUICK.apply(&mut config);
        Preset::suit(&mut config, true);
        assert_eq!(Preset::of(&config), Some(DPO));
        ORPO.apply(&mut config);
        Preset::suit(&mut config, true);
        assert_eq!(Preset::of(&config), Some(ORPO));
        config.learning_rate = 3e-3;
        let own = RunConfig { objective: Objective::Sft, ..config.clone() };
        Preset::suit(&mut config, false);
        assert_eq!(config, own);
    }
}
