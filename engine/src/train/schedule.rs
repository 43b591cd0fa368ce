use lathe_protocol::{RunConfig, Schedule};

/// The learning rate of update `step` (from 0): transformers' `get_scheduler`.
pub fn learning_rate(config: &RunConfig, step: usize, total_steps: usize) -> f64 {
    let warmup = warmup_steps(config, total_steps);
    if step < warmup {
        return config.learning_rate * step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total_steps - warmup.min(total_steps)).max(1) as f64;
    config.learning_rate
        * match config.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
        }
}

fn warmup_steps(config: &RunConfig, total_steps: usize) -> usize {
    if config.warmup_steps > 0 {
        return config.warmup_steps;
    }
    (config.warmup_ratio * total_steps as f64).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warmup_starts_at_zero_and_the_end_is_near_zero() {
        let config = RunConfig {
            learning_rate: 1.0,
            warmup_steps: 2,
            schedule: Schedule::Linear,
            ..Default::default()
        };
        let rates: Vec<f64> = (0..6).map(|step| learning_rate(&config, step, 6)).collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    }
}
