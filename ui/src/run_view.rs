use lathe_protocol::{
    ErrorInfo, EvalMetrics, EventBody, LogLine, RunDetails, SampleText, StepMetrics, TrainSummary,
};

use crate::smoothing::{self, Smoother};

/// Weight of the past in the step time that the ETA is made of.
const STEP_TIME_SMOOTHING: f64 = 0.8;

/// Where a run stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum RunPhase {
    #[default]
    Waiting,
    /// What is being prepared, e.g. `Loading the model`.
    Preparing(String),
    Training,
    /// The run ended, complete or stopped on request.
    Ended(TrainSummary),
    Failed(ErrorInfo),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossPoint {
    pub step: usize,
    pub loss: f64,
    /// Exponential moving average, bias-corrected.
    pub smoothed: f64,
}

/// A run as its events tell it, reduced to what is shown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunView {
    pub run: Option<String>,
    pub name: Option<String>,
    pub out_dir: Option<String>,
    pub phase: RunPhase,
    pub total_steps: usize,
    /// The checkpoint's step that a resumed run went on from.
    pub first_step: usize,
    pub trainable_parameters: u64,
    pub total_parameters: u64,
    pub losses: Vec<LossPoint>,
    pub steps: Vec<StepMetrics>,
    pub evals: Vec<EvalMetrics>,
    /// The newest step.
    pub last: Option<StepMetrics>,
    /// Steps at which a checkpoint was written.
    pub checkpoints: Vec<usize>,
    pub samples: Vec<SampleText>,
    pub log: Vec<LogLine>,
    /// Spent on steps, without pauses, evaluations and the like.
    pub trained_secs: f64,
    /// Of one step, as of late.
    step_secs: Option<f64>,
    smoother: Smoother,
}

impl RunView {
    /// A run's whole recorded history, also of steps before it was last resumed.
    pub fn of_record(details: &RunDetails) -> Self {
        let RunDetails { run, steps, evals, samples, log, .. } = details;
        let mut view = Self {
            run: Some(run.id.clone()),
            name: Some(run.name.clone()),
            out_dir: Some(run.out_dir.clone()),
            total_steps: run.total_steps,
            evals: evals.clone(),
            samples: samples.clone(),
            log: log.clone(),
            ..Self::default()
        };
        for point in steps {
            view.apply_step(&point.step);
        }
        view
    }

    /// `now_secs` since 1970.
    pub fn apply(&mut self, event: &EventBody, now_secs: f64) {
        match event {
            EventBody::RunStarted { run, name, out_dir } => {
                self.run = Some(run.clone());
                self.name = Some(name.clone());
                self.out_dir = Some(out_dir.clone());
            }
            EventBody::Progress { what, .. }
                if matches!(self.phase, RunPhase::Waiting | RunPhase::Preparing(_)) =>
            {
                self.phase = RunPhase::Preparing(what.clone());
            }
            EventBody::TrainingStarted {
                total_steps,
                first_step,
                trainable_parameters,
                total_parameters,
                ..
            } => {
                self.phase = RunPhase::Training;
                (self.total_steps, self.first_step) = (*total_steps, *first_step);
                self.trainable_parameters = *trainable_parameters;
                self.total_parameters = *total_parameters;
                // Steps after the checkpoint are taken again.
                self.losses.retain(|point| point.step <= *first_step);
                self.steps.retain(|step| step.step <= *first_step);
                self.evals.retain(|eval| eval.step <= *first_step);
            }
            EventBody::Step(step) => self.apply_step(step),
            EventBody::Eval(eval) => self.evals.push(*eval),
            EventBody::Checkpoint { step, .. } => self.checkpoints.push(*step),
            EventBody::Sample(sample) => self.samples.push(sample.clone()),
            EventBody::Log { level, message } => {
                self.log.push(LogLine { at_secs: now_secs, level: *level, message: message.clone() });
            }
            EventBody::TrainingDone(summary) => self.phase = RunPhase::Ended(summary.clone()),
            EventBody::Failed { error } => self.phase = RunPhase::Failed(error.clone()),
            _ => {}
        }
    }

    fn apply_step(&mut self, step: &StepMetrics) {
        // A step took what its speed says: before it came there may have been a pause, an evaluation or an outage.
        let secs = step.tokens as f64 / step.tokens_per_second;
        if secs.is_finite() {
            self.trained_secs += secs;
            self.step_secs = Some(match self.step_secs {
                Some(past) => STEP_TIME_SMOOTHING * past + (1.0 - STEP_TIME_SMOOTHING) * secs,
                None => secs,
            });
        }
        let smoothed = self.smoother.push(step.loss, smoothing::suited_to(self.total_steps));
        self.losses.push(LossPoint { step: step.step, loss: step.loss, smoothed });
        self.steps.push(*step);
        self.last = Some(*step);
    }

    pub fn step(&self) -> usize {
        self.last.map_or(self.first_step, |last| last.step)
    }

    /// 0 to 1.
    pub fn fraction(&self) -> f64 {
        if self.total_steps == 0 { 0.0 } else { (self.step() as f64 / self.total_steps as f64).min(1.0) }
    }

    /// Seconds to the end, once a step was seen.
    pub fn eta_secs(&self) -> Option<f64> {
        let remaining = self.total_steps.saturating_sub(self.step());
        self.step_secs.map(|secs| secs * remaining as f64)
    }

    pub fn smoothed_loss(&self) -> Option<f64> {
        self.losses.last().map(|point| point.smoothed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: usize, loss: f64) -> EventBody {
        EventBody::Step(StepMetrics {
            step,
            loss,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens_per_second: 32.0,
            tokens: 64,
            loss_tokens: 32,
            epoch: 0.1,
            memory_bytes: None,
            preference: None,
        })
    }

    fn started(total_steps: usize, first_step: usize) -> EventBody {
        EventBody::TrainingStarted {
            total_steps,
            first_step,
            trainable_parameters: 10,
            total_parameters: 100,
            rows: 5,
            tokens_per_epoch: 500,
        }
    }

    #[test]
    fn progress_and_eta_follow_the_steps() {
        let mut view = RunView::default();
        assert_eq!((view.fraction(), view.eta_secs()), (0.0, None));
        view.apply(&started(10, 0), 100.0);
        view.apply(&step(1, 3.0), 102.0);
        // As if the connection had been lost in between.
        view.apply(&step(2, 2.0), 904.0);
        assert!((view.fraction() - 0.2).abs() < 1e-12);
        assert!((view.eta_secs().unwrap() - 16.0).abs() < 1e-9);
        assert!((view.trained_secs - 4.0).abs() < 1e-9);
        assert_eq!(view.phase, RunPhase::Training);
    }

    #[test]
    fn the_smoothed_loss_lies_within_the_raw_ones() {
        let mut view = RunView::default();
        view.apply(&started(3, 0), 0.0);
        view.apply(&step(1, 4.0), 1.0);
        assert!((view.smoothed_loss().unwrap() - 4.0).abs() < 1e-12, "the first is itself");
        view.apply(&step(2, 2.0), 2.0);
        let smoothed = view.smoothed_loss().unwrap();
        assert!(smoothed > 2.0 && smoothed < 4.0);
    }

    #[test]
    fn a_resumed_run_goes_on_from_its_checkpoint() {
        let mut view = RunView::default();
        view.apply(&started(10, 0), 0.0);
        for count in 1..=6 {
            view.apply(&step(count, 1.0), count as f64);
        }
        view.apply(&started(10, 5), 20.0);
        view.apply(&step(6, 1.0), 21.0);
        assert_eq!(view.losses.iter().map(|point| point.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        let summary = TrainSummary {
            steps: 10,
            completed: true,
            final_loss: Some(1.0),
            eval_loss: None,
            kept_step: 2,
            seconds: 9.0,
            out_dir: "/o".into(),
        };
        view.apply(&EventBody::TrainingDone(summary.clone()), 30.0);
        assert_eq!(view.phase, RunPhase::Ended(summary));
    }
}
