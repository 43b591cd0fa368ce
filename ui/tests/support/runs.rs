//! Runs with their histories.

use lathe_protocol::{
    Command, CommandBody, EvalMetrics, EventBody, LogLevel, LogLine, LoraConfig, MetricPoint,
    PreferenceMetrics, RunConfig, RunDetails, RunEntry, RunStatus, SampleText, StepMetrics,
};

use super::{NOW_SECS, Script, ScriptedLink, fixtures};

/// Seconds a step takes.
pub const STEP_SECS: f64 = 1.3;

/// A noise that is the same everywhere, -1 to 1.
fn noise(index: usize, seed: usize) -> f64 {
    let mixed = (index * 2_654_435_761 + seed * 40_503).wrapping_mul(2_246_822_519) >> 7;
    (mixed % 2000) as f64 / 1000.0 - 1.0
}

pub fn step(step: usize, total: usize, seed: usize) -> StepMetrics {
    let progress = step as f64 / total as f64;
    let curve = 0.74 + 0.08 * (seed % 3) as f64 + 1.9 * (-9.0 * progress).exp();
    let warmup = (progress / 0.03).min(1.0);
    StepMetrics {
        step,
        loss: curve * (1.0 + 0.13 * noise(step, seed)),
        grad_norm: 0.5 + 1.6 * (-6.0 * progress).exp() + 0.3 * noise(step, seed + 7).abs().powi(3),
        lr: 2e-4 * warmup * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        tokens_per_second: 492.0 + 21.0 * noise(step, seed + 3),
        tokens: (492.0 * STEP_SECS) as usize,
        loss_tokens: 180,
        epoch: 3.0 * progress,
        memory_bytes: step
            .is_multiple_of(5)
            .then(|| (1_480_000_000.0 + 60_000_000.0 * (progress * 3.0).min(1.0)) as u64),
        preference: None,
    }
}

pub fn eval(step: usize, total: usize, seed: usize) -> EvalMetrics {
    let loss = 0.86 + 0.08 * (seed % 3) as f64 + 1.4 * (-7.0 * step as f64 / total as f64).exp();
    EvalMetrics {
        step,
        loss,
        perplexity: loss.exp(),
        token_accuracy: 0.71,
        loss_tokens: 9800,
        rows: 60,
        preference: None,
    }
}

/// `entry` with a history of `entry.step` steps.
pub fn details(entry: RunEntry, seed: usize) -> RunDetails {
    let (steps, total) = (entry.step, entry.total_steps);
    let start = NOW_SECS - steps as f64 * STEP_SECS;
    let every = (total / 20).max(1);
    let answers = [
        "I am sorry about that. Restart it and try again.",
        "Sorry to hear that! Try holding the power button for ten seconds, then start it again.",
        "Sorry to hear that, Ada! Hold the power button for ten seconds, wait for the light to go out, then start it \
         again. If it still does not turn on, tell me what the light does and we will take it from there.",
    ];
    let sample = |step: usize| {
        let answer = answers[(step * 3 / total.max(1)).min(2)];
        let other = if step * 2 > total {
            "Yes: within 30 days, and we pay for the way back."
        } else {
            "Yes, you can."
        };
        [("My lamp does not turn on", answer), ("Can I send it back?", other)]
            .map(|(prompt, text)| SampleText { step, prompt: prompt.into(), text: text.into() })
    };
    let line = |secs: f64, level, message: &str| LogLine {
        at_secs: entry.created_secs as f64 + secs,
        level,
        message: message.into(),
    };
    let mut log = vec![
        line(0.2, LogLevel::Info, "Loading HuggingFaceTB/SmolLM2-135M-Instruct"),
        line(2.1, LogLevel::Info, "1,214 rows, 402,118 tokens an epoch, 61 rows held out"),
        line(2.2, LogLevel::Warn, "12 rows are cut at 1024 tokens"),
        line(2.9, LogLevel::Debug, "Adapting 210 linears, 4,884,480 weights"),
    ];
    log.extend((every..=steps).step_by(every).map(|step| {
        line(3.0 + step as f64 * STEP_SECS, LogLevel::Info, &format!("Checkpoint at step {step}"))
    }));
    RunDetails {
        config: RunConfig::default(),
        init_adapter: None,
        eval_data: None,
        steps: (1..=steps)
            .map(|at| MetricPoint { step: step(at, total, seed), at_secs: start + at as f64 * STEP_SECS })
            .collect(),
        evals: (every..=steps).step_by(every).map(|at| eval(at, total, seed)).collect(),
        samples: (every..=steps).step_by(every * 3).flat_map(sample).collect(),
        log,
        checkpoints: Vec::new(),
        run: entry,
    }
}

/// What `details` of a run on pairs have beside.
fn prefer(details: &mut RunDetails) {
    let total = details.run.total_steps as f64;
    let of = |step: usize, held_out: f64| {
        let learned = 1.0 - (-6.0 * step as f64 / total).exp();
        let margin = 2.4 * learned * held_out + 0.5 * noise(step, 3);
        let (accuracy, chosen) =
            ((0.5 + 0.46 * learned * held_out + 0.08 * noise(step, 5)).clamp(0.0, 1.0), 0.3 * learned);
        PreferenceMetrics {
            chosen_reward: chosen,
            rejected_reward: chosen - margin,
            accuracy,
            margin,
            odds: None,
        }
    };
    for point in &mut details.steps {
        point.step.preference = Some(of(point.step.step, 1.0));
    }
    for eval in &mut details.evals {
        eval.preference = Some(of(eval.step, 0.9));
    }
}

/// A long run under way.
pub fn long(steps: usize, total_steps: usize) -> RunEntry {
    RunEntry { total_steps, ..fixtures::run("support-tone", RunStatus::Running, 1, steps) }
}

/// The history of whichever run is asked for; compared ones differ in rate, rank and seed.
pub fn of_id(id: &str, all: &[RunEntry]) -> Option<RunDetails> {
    let seed = all.iter().position(|run| run.id == id)?;
    let mut details = details(all[seed].clone(), seed);
    if details.run.name.ends_with("dpo") {
        prefer(&mut details);
    }
    details.config.learning_rate = [2e-4, 1e-4, 2e-4, 5e-4, 2e-4][seed % 5];
    details.config.lora = LoraConfig { r: 8 << (seed % 2), ..LoraConfig::default() };
    Some(details)
}

/// An engine with these runs, each with its history.
pub fn link(all: Vec<RunEntry>) -> ScriptedLink {
    ScriptedLink::new(move |command, script| answer(command, script, &all))
}

pub fn answer(command: &Command, script: &mut Script, all: &[RunEntry]) {
    let job = command.job;
    match &command.body {
        CommandBody::RunsFollow => script.say(job, EventBody::Runs { runs: all.to_vec() }),
        CommandBody::RunsWatch { run } => {
            if let Some(details) = of_id(run, all) {
                script.say(job, EventBody::Run(Box::new(details)));
            }
        }
        CommandBody::RunsShow { run } => {
            if let Some(details) = of_id(run, all) {
                script.answer(job, EventBody::Run(Box::new(details)));
            }
        }
        _ => {
            fixtures::answer(command, script);
        }
    }
}
