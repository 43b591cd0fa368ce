/// Smoothed lines look back over about this share of a run.
const WINDOW: f64 = 1.0 / 150.0;
/// The most weight of the past.
pub const MAX_SMOOTHING: f64 = 0.99;

/// The weight of the past that suits a run of so many steps: one of 1 - 1/n looks back over about n.
pub fn suited_to(total_steps: usize) -> f64 {
    (1.0 - 1.0 / (total_steps as f64 * WINDOW).max(1.0)).clamp(0.6, MAX_SMOOTHING)
}

/// An exponential moving average, bias-corrected: its first value is the first sample itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Smoother {
    weight: f64,
    sum: f64,
}

impl Smoother {
    /// `past`, from 0 to below 1, is the weight of what came before. A sample that is no number is passed over.
    pub fn push(&mut self, sample: f64, past: f64) -> f64 {
        if sample.is_finite() {
            self.sum = past * self.sum + (1.0 - past) * sample;
            self.weight = past * self.weight + (1.0 - past);
        }
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_the_first_sample_and_a_gap_changes_nothing() {
        let mut smoother = Smoother::default();
        assert!((smoother.push(4.0, 0.9) - 4.0).abs() < 1e-12);
        let second = smoother.push(2.0, 0.9);
        assert!(second > 2.0 && second < 4.0);
        assert!((smoother.push(f64::NAN, 0.9) - second).abs() < 1e-12);
    }
}
