//! A training run, top to bottom.

mod checkpoint;
mod checksums;
mod evaluation;
mod guard;
mod load;
mod plan;
pub mod preference;
mod probe;
mod samples;
mod schedule;
mod step;
mod talk;

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use lathe_kernels::AdamW;
use lathe_protocol::{
    Divergence, DivergenceSign, ErrorCode, EvalMetrics, EventBody, LogLevel, Origins, RowPlace, RunConfig,
    StepMetrics, Told, TrainJob, TrainSummary, WeightsMetrics,
};
use sha2::{Digest as _, Sha256};

pub use crate::model::Trainable;
pub use evaluation::{Evaluation, evaluate_rows};
pub use plan::{Plan, Window};
pub use probe::{ProcessMemory, probe};
pub use samples::Samples;
pub use step::{PassOptions, Weights, accumulate, evaluate, optimizer, trainables};
pub use talk::{Audience, Question};

use talk::Talk;

use crate::{
    Error, Result,
    corpus::Rows,
    files,
    model::{Compute, Model},
    origins::{self, Checked},
    styles,
    text_files::TextFiles,
    tokenize::TokenizedRow,
};

/// What a run needs of the world: a clock, somebody to tell it to stop, and perhaps company.
pub struct Surroundings<'a> {
    /// Seconds since any fixed moment.
    pub clock: &'a dyn Fn() -> f64,
    /// Once set, the run checkpoints and returns.
    pub stop: &'a AtomicBool,
    pub audience: Option<Audience<'a>>,
}

/// Runs (or resumes) a fine-tune on the rows of `job.data`. Every metric goes through `emit`; the summary is the last
/// word.
///
/// Errors: unusable model, data or adapter (before the first step); a loss or gradient that spikes or is not finite; a
/// full disk.
pub fn run(
    job: &TrainJob,
    world: &Surroundings<'_>,
    emit: &mut dyn FnMut(EventBody),
) -> Result<TrainSummary> {
    let config = &job.config;
    if job.eval_data.is_some() && config.eval_ratio > 0.0 {
        let message =
            format!("Rows cannot be held out (eval_ratio = {}) beside a file of them", config.eval_ratio);
        return Err(
            Error::invalid(ErrorCode::Usage, message).hint("leave --eval-data out, or set eval_ratio=0")
        );
    }
    let mut checked = Checked::default();
    // One without a checkpoint begins anew.
    let has_begun = job.resume && !checkpoint::list(Path::new(&job.out_dir))?.is_empty();
    let begun = if has_begun { origins::of_begun(job)? } else { None };
    if begun.is_none() {
        checked = origins::check_bases(Path::new(&job.model), job.init_adapter.as_slice(), job.force)?;
        for message in checked.warnings.iter().chain(&checked.forced) {
            emit(EventBody::Log { level: LogLevel::Warn, message: message.clone() });
        }
    }
    let text_files = load::open_text_files(job)?;
    let (rows, mut held_out) = match load::load_rows(&text_files, job, world.stop, emit) {
        Err(Error::Stopped) => return Ok(stopped_before_the_first_step(job)),
        loaded => loaded?,
    };
    let origins = if let Some(begun) = begun {
        begun
    } else {
        let files = config.files(&job.data);
        let mut counts = rows.counts_of_files();
        if job.eval_data.is_none() {
            counts.iter_mut().zip(held_out.counts_of_files()).for_each(|(count, more)| *count += more);
        }
        let data = files
            .iter()
            .zip(counts)
            .map(|(file, count)| origins::print_file(Path::new(&file.path), Some(count)));
        let print = |path: &String| origins::print_file(Path::new(path), Some(held_out.len()));
        let eval_data = job.eval_data.as_ref().map(print).transpose()?;
        let prints = [data.collect::<Result<_>>()?, eval_data.into_iter().collect()];
        origins::of_run(job, &text_files, prints, checked.forced)?
    };
    if job.eval_data.is_none() {
        held_out.retain(|place| !config.skip_rows.contains(&place.row));
    }
    files::create_dir_all(Path::new(&job.out_dir))?;
    origins::save(&origins, None, Path::new(&job.out_dir))?;
    let words = Words { text_files: &text_files, origins: &origins };
    run_on(job, &Rows::Stored(rows), &Rows::Stored(held_out), Some(&words), world, emit)
}

fn stopped_before_the_first_step(job: &TrainJob) -> TrainSummary {
    TrainSummary {
        steps: 0,
        completed: false,
        final_loss: None,
        eval_loss: None,
        kept_step: 0,
        seconds: 0.0,
        out_dir: job.out_dir.clone(),
    }
}

/// What a run knows beside its rows.
pub struct Words<'a> {
    pub text_files: &'a TextFiles,
    pub origins: &'a Origins,
}

/// [`run`] on rows already tokenised. Without the model's words there are neither samples nor new styles, and nothing is
/// said of where the weights come from.
pub fn run_on_rows(
    job: &TrainJob,
    rows: &[TokenizedRow],
    eval_rows: &[TokenizedRow],
    words: Option<&Words<'_>>,
    world: &Surroundings<'_>,
    emit: &mut dyn FnMut(EventBody),
) -> Result<TrainSummary> {
    run_on(job, &Rows::Memory(rows), &Rows::Memory(eval_rows), words, world, emit)
}

fn run_on(
    job: &TrainJob,
    rows: &Rows<'_>,
    eval_rows: &Rows<'_>,
    words: Option<&Words<'_>>,
    world: &Surroundings<'_>,
    emit: &mut dyn FnMut(EventBody),
) -> Result<TrainSummary> {
    let started = (world.clock)();
    let config = &job.config;
    let out_dir = Path::new(&job.out_dir);
    let text_files = words.map(|words| words.text_files);
    let samples =
        text_files.map(|text_files| Samples::new(text_files, &config.sample_prompts)).transpose()?;

    // 1. Data
    let data_hash = hash_rows(rows)?;
    let lengths = rows.lengths();
    let shares = rows.shares();
    let tokens_per_epoch =
        Plan::drawn(&shares, config.seed, 0).into_iter().map(|row| lengths[row] as u64).sum();
    let plan = Plan::new(config, lengths.clone(), shares);
    let skipped: Vec<bool> =
        (0..rows.len()).map(|row| config.skip_rows.contains(&rows.place(row).row)).collect();
    if !rows.is_empty() && skipped.iter().all(|skipped| *skipped) {
        let message = "Every row is among skip_rows: none is left to train on";
        return Err(Error::data(message).hint("leave some of them out of skip_rows"));
    }

    // 2. Model
    let compute = Compute::open(&job.device)?;
    emit(EventBody::Progress { what: "Loading the model".into(), done: 0, total: 0 });
    let init_adapter = job.init_adapter.as_deref().map(Path::new);
    let (mut model, peft_config) =
        load::load_model(Path::new(&job.model), &job.model_name, config, init_adapter, text_files, compute)?;
    let trainables = trainables(&model, config.method);
    let mut optimizer = step::optimizer(&trainables, config)?;
    let longest = rows.longest_side().max(eval_rows.longest_side());
    let context = model.config.max_position_embeddings;
    if longest > context {
        let message = format!(
            "The longest row has {longest} tokens, the model was made for {context}: lower max_seq_len"
        );
        emit(EventBody::Log { level: LogLevel::Warn, message });
    }
    let rope = model.rope_table(longest);
    let offload = step::offload(&model, config)?;

    // 3. The reference, while the weights are untouched
    let mut is_trained = vec![false; rows.len()];
    for row in plan.windows(0).flat_map(|(_, window)| window.concat()) {
        is_trained[row] = !skipped[row];
    }
    let references = preference::references(&model, rows, |row| is_trained[row], config, world.stop, emit)?;
    let eval_references = preference::references(&model, eval_rows, |_| true, config, world.stop, emit)?;
    let references = references.zip(eval_references);

    // 4. Where the run stands
    let mut state = checkpoint::State {
        step: 0,
        num_updates: 0,
        data_hash: data_hash.clone(),
        last_loss: None,
        best_eval_loss: None,
        best_step: None,
        evals_without_improvement: 0,
        recent: guard::Recent::new(),
        told: Told::default(),
    };
    if job.resume {
        state = resume(out_dir, &trainables, &mut optimizer, &data_hash, emit)?.unwrap_or(state);
    }
    let styled = text_files.filter(|text_files| !text_files.styles.is_empty());
    let save_weights = |model: &Model, folder: &Path, metrics: Option<WeightsMetrics>| {
        load::save_weights(job, model, &trainables, peft_config.as_ref(), folder)?;
        if let Some(words) = words {
            origins::save(words.origins, metrics, folder)?;
        }
        styled.map_or(Ok(()), |text_files| {
            styles::save(text_files, Path::new(&job.model), model.config.vocab_size, folder)
        })
    };
    let mut talk =
        text_files.and_then(|text_files| Talk::new(text_files, world, config.method, plan.total_steps));
    if let Some(talk) = &talk {
        emit(talk.ready(&model));
    }
    emit(EventBody::TrainingStarted {
        total_steps: plan.total_steps,
        first_step: state.step,
        trainable_parameters: optimizer.num_elements() as u64,
        total_parameters: model.num_parameters() as u64,
        rows: rows.len(),
        tokens_per_epoch,
    });
    if state.step > 0 {
        emit(EventBody::Retold(state.told.clone()));
    }

    // 5. The loop
    let mut stopped = references.is_none();
    let (references, eval_references) = references.unwrap_or_default();
    let steps_to_take = if stopped { 0 } else { plan.total_steps };
    let mut eval_loss = None;
    let mut last_eval: Option<EvalMetrics> = None;
    // A checkpoint whose weights no step has yet shown to be sound.
    let mut unproven: Option<PathBuf> = None;
    for (epoch, window) in plan.windows(state.step).take(steps_to_take) {
        if let Some(talk) = &mut talk {
            talk.answer(&mut model, state.step, emit);
        }
        let step_started = (world.clock)();
        let window = without(window, &skipped);

        // One step: the loss of the whole window over its trained tokens, then one update. Without rows, none.
        if !window.is_empty() {
            let pass = step::Pass {
                model: &model,
                trainables: &trainables,
                rows,
                references: &references,
                rope: &rope,
                config,
                offload: offload.clone(),
                stop: world.stop,
            };
            let Some(step::WindowLoss { loss, loss_tokens, preference }) =
                pass.run(state.step, &window, &mut optimizer)?
            else {
                stopped = true;
                break;
            };
            let grad_norm = optimizer.gradient_norm()?;
            if let Some(alarm) = guard::check(config, &mut state.recent, loss, grad_norm) {
                let mut places: Vec<RowPlace> = window.iter().flatten().map(|row| rows.place(*row)).collect();
                places.sort_by_key(|place| place.row);
                let divergence = Divergence {
                    step: state.step + 1,
                    sign: alarm.sign,
                    loss: Some(loss).filter(|loss| loss.is_finite()),
                    grad_norm: Some(grad_norm).filter(|grad_norm| grad_norm.is_finite()),
                    usual: alarm.usual,
                    resumes_from: 0,
                    rows: places,
                };
                return Err(diverged(out_dir, unproven, divergence, emit)?);
            }
            unproven = None;
            let clip = if config.max_grad_norm > 0.0 {
                // torch.nn.utils.clip_grad_norm_
                (config.max_grad_norm / (grad_norm + 1e-6)).min(1.0)
            } else {
                1.0
            };
            let lr = schedule::learning_rate(config, state.step, plan.total_steps);
            optimizer.step(clip, lr)?;
            state.last_loss = Some(loss);
            let tokens: usize = window.iter().flatten().map(|row| lengths[*row]).sum();
            let seconds = (world.clock)() - step_started;
            let metrics = StepMetrics {
                step: state.step + 1,
                loss,
                grad_norm,
                lr,
                tokens_per_second: tokens as f64 / seconds.max(1e-9),
                tokens,
                loss_tokens,
                epoch,
                memory_bytes: None,
                preference,
            };
            state.add_step(metrics);
            emit(EventBody::Step(metrics));
        }
        state.step += 1;
        state.num_updates = optimizer.num_updates;

        // Evaluate, save.
        let last = state.step == plan.total_steps;
        let mut patience_spent = false;
        let evaluates = !eval_rows.is_empty()
            && (last || (config.eval_steps > 0 && state.step.is_multiple_of(config.eval_steps)));
        if evaluates {
            let evaluation = evaluate_rows(&model, eval_rows, &eval_references, config, state.step)?;
            let Evaluation { metrics, not_finite } = &evaluation;
            if !evaluation.is_sound() {
                // Rows of the data to blame, unless all are: then it is the weights.
                let blamed = job.eval_data.is_none() && not_finite.len() < eval_rows.len();
                let divergence = Divergence {
                    step: state.step,
                    sign: DivergenceSign::EvalNotFinite,
                    loss: state.last_loss,
                    grad_norm: None,
                    usual: None,
                    resumes_from: 0,
                    rows: not_finite.iter().filter(|_| blamed).map(|row| eval_rows.place(*row)).collect(),
                };
                return Err(diverged(out_dir, unproven, divergence, emit)?);
            }
            state.add_eval(*metrics);
            emit(EventBody::Eval(*metrics));
            (eval_loss, last_eval) = (Some(metrics.loss), Some(*metrics));
            let best = state.best_eval_loss;
            let improves_by = |delta: f64| best.is_none_or(|best| metrics.loss < best - delta);
            if improves_by(config.early_stopping_min_delta) {
                state.evals_without_improvement = 0;
            } else {
                state.evals_without_improvement += 1;
            }
            if improves_by(0.0) {
                (state.best_eval_loss, state.best_step) = (Some(metrics.loss), Some(state.step));
            }
            patience_spent = config.early_stopping_patience > 0
                && state.evals_without_improvement >= config.early_stopping_patience;
        }
        let is_best = state.best_step == Some(state.step);
        let saves = last
            || patience_spent
            || (is_best && config.keeps_best())
            || (config.save_steps > 0 && state.step.is_multiple_of(config.save_steps));
        if saves {
            let save = |folder: &Path| save_weights(&model, folder, Some(worth(&state, last_eval)));
            let saved = save_checkpoint(out_dir, &state, &trainables, &optimizer, &save, config, emit)?;
            unproven = Some(saved).filter(|_| !is_best);
        }
        if let Some(samples) = samples.as_ref().filter(|_| evaluates || saves) {
            samples.answer(&model, state.step, world.stop, emit)?;
        }
        if patience_spent {
            let message =
                format!("Stopped early: {} evaluations without improvement", state.evals_without_improvement);
            emit(EventBody::Log { level: LogLevel::Info, message });
            break;
        }
    }

    let mut kept_step = state.step;

    // 6. Leave something to come back to, or the result
    if stopped {
        if state.step > 0 {
            let save = |folder: &Path| save_weights(&model, folder, Some(worth(&state, last_eval)));
            save_checkpoint(out_dir, &state, &trainables, &optimizer, &save, config, emit)?;
        }
    } else {
        let mut metrics = Some(worth(&state, last_eval));
        let best = state.best_step.filter(|best| config.keeps_best() && *best != state.step);
        if let Some(best) = best {
            let path = checkpoint::of_step(out_dir, best);
            let (level, message) = match checkpoint::load(&path, &trainables, &mut optimizer, &data_hash) {
                Ok(_) => {
                    metrics = origins::metrics_of(&path);
                    (kept_step, eval_loss) = (best, state.best_eval_loss);
                    let message = format!(
                        "Kept the weights of step {best}, which had the lowest eval loss, not those of step {}",
                        state.step
                    );
                    (LogLevel::Info, message)
                }
                Err(error) => {
                    let message = format!(
                        "Kept the weights of step {}: those of step {best}, which had the lowest eval loss, cannot \
                         be read: {error}",
                        state.step
                    );
                    (LogLevel::Warn, message)
                }
            };
            emit(EventBody::Log { level, message });
        }
        save_weights(&model, out_dir, metrics)?;
    }
    Ok(TrainSummary {
        steps: state.step,
        completed: !stopped,
        final_loss: state.last_loss,
        eval_loss,
        kept_step,
        seconds: (world.clock)() - started,
        out_dir: job.out_dir.clone(),
    })
}

/// What the weights are worth as the run stands.
fn worth(state: &checkpoint::State, last_eval: Option<EvalMetrics>) -> WeightsMetrics {
    let eval = last_eval.filter(|eval| eval.step == state.step);
    WeightsMetrics {
        step: state.step,
        loss: state.last_loss,
        eval_loss: eval.map(|eval| eval.loss),
        perplexity: eval.map(|eval| eval.perplexity),
        token_accuracy: eval.map(|eval| eval.token_accuracy),
    }
}

/// The newest sound checkpoint; a broken one is named and passed over.
fn resume(
    out_dir: &Path,
    trainables: &[Trainable],
    optimizer: &mut AdamW,
    data_hash: &str,
    emit: &mut dyn FnMut(EventBody),
) -> Result<Option<checkpoint::State>> {
    let mut first_error = None;
    for path in checkpoint::list(out_dir)?.iter().rev() {
        match checkpoint::load(path, trainables, optimizer, data_hash) {
            Ok(state) => return Ok(Some(state)),
            Err(Error::Invalid { code: ErrorCode::Data, message, hint }) => {
                return Err(Error::Invalid { code: ErrorCode::Data, message, hint });
            }
            Err(error) => {
                let message =
                    format!("Checkpoint {} is broken, trying the one before: {error}", path.display());
                emit(EventBody::Log { level: LogLevel::Warn, message });
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

fn save_checkpoint(
    out_dir: &Path,
    state: &checkpoint::State,
    trainables: &[Trainable],
    optimizer: &AdamW,
    save_weights: &dyn Fn(&Path) -> Result<()>,
    config: &RunConfig,
    emit: &mut dyn FnMut(EventBody),
) -> Result<PathBuf> {
    let path =
        checkpoint::save(out_dir, state, trainables, optimizer, save_weights, config.save_total_limit)?;
    emit(EventBody::Checkpoint { step: state.step, path: path.display().to_string() });
    Ok(path)
}

/// A window without the rows that are skipped, and without what that leaves empty.
fn without(window: Window, skipped: &[bool]) -> Window {
    let kept = |rows: Vec<usize>| rows.into_iter().filter(|row| !skipped[*row]).collect::<Vec<_>>();
    window.into_iter().map(kept).filter(|rows| !rows.is_empty()).collect()
}

/// Leaves the last sound checkpoint as the newest, and tells of the divergence. The error to end with.
fn diverged(
    out_dir: &Path,
    unproven: Option<PathBuf>,
    mut divergence: Divergence,
    emit: &mut dyn FnMut(EventBody),
) -> Result<Error> {
    if let Some(path) = unproven {
        std::fs::remove_dir_all(&path).map_err(Error::io("remove a checkpoint that diverges", &path))?;
    }
    divergence.resumes_from =
        checkpoint::list(out_dir)?.last().and_then(|path| checkpoint::step(path)).unwrap_or(0);
    let mut message = format!("Training diverged at step {}: {}", divergence.step, divergence.what());
    if !divergence.rows.is_empty() {
        message = format!("{message}; rows {}", divergence.rows_text());
    }
    emit(EventBody::Diverged(divergence));
    Ok(Error::invalid(ErrorCode::Diverged, message)
        .hint("look at those rows, lower learning_rate, or raise spike_threshold"))
}

fn hash_rows(rows: &Rows<'_>) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut hash = |ids: &[u32], loss_mask: &[bool]| {
        hasher.update((ids.len() as u64).to_le_bytes());
        for (id, learns) in ids.iter().zip(loss_mask) {
            hasher.update(id.to_le_bytes());
            hasher.update([u8::from(*learns)]);
        }
    };
    for row in 0..rows.len() {
        let row = rows.get(row)?;
        hash(&row.ids, &row.loss_mask);
        if let Some(rejected) = &row.rejected {
            hash(&rejected.ids, &rejected.loss_mask);
        }
    }
    Ok(files::hex(&hasher.finalize()))
}
