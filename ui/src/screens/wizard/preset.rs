use lathe_protocol::{RunConfig, Schedule, Style};

/// Rows a step of the optimizer learns from, unless the preset says otherwise.
const ROWS_A_STEP: usize = 16;
const LEARNING_RATE: f64 = 2e-4;
const WARMUP_RATIO: f64 = 0.03;

/// Settings that go well together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Preset {
    pub name: &'static str,
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
    r: 16,
    alpha: 32.0,
    epochs: 4.0,
    learning_rate: 1e-3,
    // Terse rows have few tokens, and count little in a step that they share with many detailed ones.
    rows_a_step: 4,
    has_styles: true,
    good_for: "Terse or detailed, chosen in chat; for rows with a style, as in verbosity.jsonl",
};
pub(super) const PRESETS: [Preset; 4] = [QUICK, BALANCED, THOROUGH, VERBOSITY];

impl Preset {
    /// Rows are not packed: with short ones, steps of so many full sequences would be too few.
    pub(super) fn apply(&self, config: &mut RunConfig) {
        (config.lora.r, config.lora.alpha, config.epochs) = (self.r, self.alpha, self.epochs);
        (config.learning_rate, config.warmup_ratio) = (self.learning_rate, WARMUP_RATIO);
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
            config.learning_rate = 1e-4;
            assert_eq!(Preset::of(&config), None);
        }
    }
}
