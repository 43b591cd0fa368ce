use std::collections::VecDeque;

use lathe_protocol::{DivergenceSign, RunConfig};

/// A loss that differs from the mean by less is noise, however even the steps before were: late in a run of rows known
/// by heart, one that is not yet stands out.
const LEAST_LOSS_DEVIATION: f64 = 0.25;

/// What the last steps looked like: a window of (loss, gradient norm), kept in checkpoints.
pub type Recent = VecDeque<(f64, f64)>;

/// What gave a step away, and for a spike the mean it rose from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alarm {
    pub sign: DivergenceSign,
    pub usual: Option<f64>,
}

/// Looks at a step before its update: z-scores of loss and gradient norm over the steps before. A sound step joins
/// `recent`.
pub fn check(config: &RunConfig, recent: &mut Recent, loss: f64, grad_norm: f64) -> Option<Alarm> {
    if !loss.is_finite() || !grad_norm.is_finite() {
        return Some(Alarm { sign: DivergenceSign::NotFinite, usual: None });
    }
    // Fewer steps tell no noise from a spike.
    if config.spike_threshold > 0.0 && recent.len() >= config.spike_window.div_ceil(2) {
        let losses = recent.iter().map(|(loss, _)| *loss);
        let (usual, deviation) = mean_and_deviation(losses);
        if loss - usual > config.spike_threshold * deviation.max(LEAST_LOSS_DEVIATION) {
            return Some(Alarm { sign: DivergenceSign::LossSpike, usual: Some(usual) });
        }
        // Norms of single steps vary by their own size, and those that are not clipped do nothing out of the ordinary.
        let norms = recent.iter().map(|(_, grad_norm)| *grad_norm);
        let (usual, deviation) = mean_and_deviation(norms);
        if grad_norm - usual > config.spike_threshold * deviation.max(usual).max(config.max_grad_norm) {
            return Some(Alarm { sign: DivergenceSign::GradNormSpike, usual: Some(usual) });
        }
    }
    recent.push_back((loss, grad_norm));
    while recent.len() > config.spike_window {
        recent.pop_front();
    }
    None
}

fn mean_and_deviation(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guard says of a step after `before`.
    fn check_after(before: &[(f64, f64)], step: (f64, f64), config: &RunConfig) -> Option<DivergenceSign> {
        let mut recent = Recent::new();
        for (loss, grad_norm) in before {
            assert_eq!(check(config, &mut recent, *loss, *grad_norm), None, "{loss}, {grad_norm}");
        }
        check(config, &mut recent, step.0, step.1).map(|alarm| alarm.sign)
    }

    /// Losses that fall from 4 to 2 with noise of 0.3.
    fn noisy(steps: usize) -> Vec<(f64, f64)> {
        let noise = |step: usize| ((step * 7919) % 13) as f64 / 20.0 - 0.3;
        (0..steps)
            .map(|step| (2.0 + 2.0 * (-(step as f64) / 20.0).exp() + noise(step), 1.5 + noise(step)))
            .collect()
    }

    #[test]
    fn a_spike_is_far_outside_the_noise_of_the_steps_before() {
        let config = RunConfig::default();
        let off = RunConfig { spike_threshold: 0.0, ..config.clone() };
        let wary = RunConfig { spike_threshold: 3.0, ..config.clone() };
        let unclipped = RunConfig { max_grad_norm: 0.0, ..config.clone() };
        let even = vec![(0.02, 0.1); 60];
        for (before, step, config, expected) in [
            (noisy(80), (3.5, 2.0), &config, None),
            (noisy(80), (9.0, 2.0), &config, Some(DivergenceSign::LossSpike)),
            (noisy(80), (2.0, 40.0), &config, Some(DivergenceSign::GradNormSpike)),
            (noisy(80), (3.5, 2.0), &wary, Some(DivergenceSign::LossSpike)),
            (noisy(80), (9.0, 40.0), &off, None),
            (noisy(24), (9.0, 40.0), &config, None),
            (even.clone(), (1.0, 0.9), &config, None),
            (even.clone(), (1.0, 2.1), &config, None),
            (even.clone(), (1.0, 12.0), &config, Some(DivergenceSign::GradNormSpike)),
            (even.clone(), (1.0, 2.1), &unclipped, Some(DivergenceSign::GradNormSpike)),
            (even, (3.0, 0.9), &config, Some(DivergenceSign::LossSpike)),
            (Vec::new(), (f64::NAN, 1.0), &off, Some(DivergenceSign::NotFinite)),
            (Vec::new(), (1.0, f64::INFINITY), &off, Some(DivergenceSign::NotFinite)),
        ] {
            assert_eq!(check_after(&before, step, config), expected, "{step:?} after {} steps", before.len());
        }
    }

    #[test]
    fn what_spiked_is_not_what_is_usual() {
        let config = RunConfig::default();
        let mut recent: Recent = noisy(80).into();
        recent.drain(..30);
        let before = recent.clone();
        assert!(check(&config, &mut recent, 9.0, 1.0).is_some());
        assert_eq!(recent, before);
        assert_eq!(check(&config, &mut recent, 2.0, 1.0), None);
        assert_eq!((recent.len(), recent.back()), (50, Some(&(2.0, 1.0))));
    }
}
