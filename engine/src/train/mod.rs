//! A training run, top to bottom.

mod checkpoint;
mod plan;
mod samples;
mod schedule;
mod step;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use candle_core::Tensor;
use lathe_kernels::{AdamW, AdamWParams, CrossEntropyStats, global_norm};
use lathe_protocol::{
    ErrorCode, EvalMetrics, EventBody, LogLevel, Method, Optimizer, Quant, RunConfig, StepMetrics, Style,
    TrainJob, TrainSummary,
};
use sha2::{Digest as _, Sha256};

pub use crate::model::Trainable;
pub use plan::{Plan, Window};
pub use samples::Samples;
pub use step::{PassOptions, accumulate, evaluate, trainables};

use crate::{
    Error, Result,
    adapter::{self, PeftConfig, TokenIndices},
    batch, data, files, lora,
    model::{LoadFor, Model},
    preflight, prepare, rng, styles,
    text_files::TextFiles,
    tokenize::TokenizedRow,
};

/// What a run needs of the world: a clock, and somebody to tell it to stop.
pub struct Surroundings<'a> {
    /// Seconds since any fixed moment.
    pub clock: &'a dyn Fn() -> f64,
    /// Once set, the run checkpoints and returns.
    pub stop: &'a AtomicBool,
}

/// Runs (or resumes) a fine-tune on the rows of `job.data`. Every metric goes through `emit`; the summary is the last
/// word.
///
/// Errors: unusable model, data or adapter (before the first step); a loss or gradient that is not finite; a full disk.
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
    let text_files = open_text_files(job)?;
    let (rows, held_out) = load_rows(&text_files, &job.data, config, "Reading the data", emit)?;
    let eval_rows = match &job.eval_data {
        Some(path) => load_rows(&text_files, path, config, "Reading the held-out data", emit)?.0,
        None => held_out,
    };
    run_on_rows(job, &rows, &eval_rows, Some(&text_files), world, emit)
}

/// [`run`] on rows already tokenised. Without the model's words there are neither samples nor new styles.
pub fn run_on_rows(
    job: &TrainJob,
    rows: &[TokenizedRow],
    eval_rows: &[TokenizedRow],
    text_files: Option<&TextFiles>,
    world: &Surroundings<'_>,
    emit: &mut dyn FnMut(EventBody),
) -> Result<TrainSummary> {
    let started = (world.clock)();
    let config = &job.config;
    let out_dir = Path::new(&job.out_dir);
    let samples =
        text_files.map(|text_files| Samples::new(text_files, &config.sample_prompts)).transpose()?;

    // 1. Data
    let data_hash = hash_rows(rows);
    let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let tokens_per_epoch = lengths.iter().sum::<usize>() as u64;
    let plan = Plan::new(config, lengths);

    // 2. Model
    emit(EventBody::Progress { what: "Loading the model".into(), done: 0, total: 0 });
    let (model, peft_config) = load_model(job, text_files)?;
    let trainables = trainables(&model, config.method);
    let mut gradients: Vec<Vec<f32>> = trainables.iter().map(|t| vec![0.0; t.var.elem_count()]).collect();
    let vars: Vec<_> = trainables
        .iter()
        .map(|t| (t.var.clone(), if t.decays { config.weight_decay } else { 0.0 }))
        .collect();
    let lengths = trainables.iter().map(|t| t.var.elem_count());
    let mut optimizer = match config.optimizer {
        Optimizer::Adamw => AdamW::new(AdamWParams::default(), lengths),
        Optimizer::Adamw8bit => AdamW::new_8bit(AdamWParams::default(), lengths),
    };
    let longest = rows.iter().chain(eval_rows).map(|row| row.ids.len()).max().unwrap_or(0);
    let context = model.config.max_position_embeddings;
    if longest > context {
        let message = format!(
            "The longest row has {longest} tokens, the model was made for {context}: lower max_seq_len"
        );
        emit(EventBody::Log { level: LogLevel::Warn, message });
    }
    let rope = model.rope_table(longest);

    // 3. Where the run stands
    let mut state = checkpoint::State {
        step: 0,
        num_updates: 0,
        data_hash: data_hash.clone(),
        last_loss: None,
        best_eval_loss: None,
        evals_without_improvement: 0,
    };
    if job.resume {
        state = resume(out_dir, &trainables, &mut optimizer, &data_hash, emit)?.unwrap_or(state);
    }
    let styled = text_files.filter(|text_files| !text_files.styles.is_empty());
    let save_weights = |folder: &Path| {
        save_weights(job, &model, &trainables, peft_config.as_ref(), folder)?;
        styled.map_or(Ok(()), |text_files| {
            styles::save(text_files, Path::new(&job.model), model.config.vocab_size, folder)
        })
    };
    emit(EventBody::TrainingStarted {
        total_steps: plan.total_steps,
        first_step: state.step,
        trainable_parameters: gradients.iter().map(|gradient| gradient.len() as u64).sum(),
        total_parameters: model.num_parameters() as u64,
        rows: rows.len(),
        tokens_per_epoch,
    });

    // 4. The loop
    let mut stopped = false;
    let mut eval_loss = None;
    for (epoch, window) in plan.windows(state.step) {
        let step_started = (world.clock)();
        let batches: Vec<_> =
            window.iter().map(|micro_batch| batch::pack(micro_batch.iter().map(|row| &rows[*row]))).collect();
        let loss_tokens: usize = batches.iter().map(batch::Batch::num_loss_tokens).sum();
        let tokens: usize = batches.iter().map(|batch| batch.ids.len()).sum();

        // One step: the loss of the whole window over its trained tokens, then one update.
        let mut stats = CrossEntropyStats::default();
        for gradient in &mut gradients {
            gradient.fill(0.0);
        }
        for (micro_batch, batch) in batches.iter().enumerate() {
            if world.stop.load(Ordering::Relaxed) {
                stopped = true;
                break;
            }
            let index = (state.step as u64) << 20 | micro_batch as u64;
            let options = PassOptions {
                rope: rope.clone(),
                dropout_key: (config.lora.dropout > 0.0).then(|| rng::key(config.seed, "dropout", index)),
                neftune: (config.neftune_alpha > 0.0).then(|| step::Neftune {
                    alpha: config.neftune_alpha,
                    key: rng::key(config.seed, "neftune", index),
                }),
                recomputed_blocks: config.recomputed_blocks(),
            };
            let loss_scale = 1.0 / loss_tokens as f64;
            let part = accumulate(&model, &trainables, batch, &options, loss_scale, &mut gradients)?;
            stats.loss_sum += part.loss_sum;
            stats.num_tokens += part.num_tokens;
        }
        if stopped {
            break;
        }
        let loss = stats.loss_sum / stats.num_tokens as f64;
        let grad_norm = global_norm(&gradients);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(diverged(state.step + 1, loss, grad_norm, &window, rows));
        }
        let clip = if config.max_grad_norm > 0.0 {
            // torch.nn.utils.clip_grad_norm_
            (config.max_grad_norm / (grad_norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        let lr = schedule::learning_rate(config, state.step, plan.total_steps);
        optimizer.step(&vars, &gradients, clip, lr)?;
        state.step += 1;
        state.num_updates = optimizer.num_updates;
        state.last_loss = Some(loss);

        // Tell, evaluate, save.
        let seconds = (world.clock)() - step_started;
        emit(EventBody::Step(StepMetrics {
            step: state.step,
            loss,
            grad_norm,
            lr,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            tokens,
            loss_tokens,
            epoch,
            memory_bytes: None,
        }));
        let last = state.step == plan.total_steps;
        let mut patience_spent = false;
        let evaluates = !eval_rows.is_empty()
            && (last || (config.eval_steps > 0 && state.step.is_multiple_of(config.eval_steps)));
        if evaluates {
            let metrics = evaluate_rows(&model, eval_rows, config, state.step)?;
            emit(EventBody::Eval(metrics));
            eval_loss = Some(metrics.loss);
            if state.best_eval_loss.is_none_or(|best| metrics.loss < best) {
                state.best_eval_loss = Some(metrics.loss);
                state.evals_without_improvement = 0;
            } else {
                state.evals_without_improvement += 1;
            }
            patience_spent = config.early_stopping_patience > 0
                && state.evals_without_improvement >= config.early_stopping_patience;
        }
        let saves =
            last || patience_spent || (config.save_steps > 0 && state.step.is_multiple_of(config.save_steps));
        if saves {
            save_checkpoint(out_dir, &state, &trainables, &optimizer, save_weights, config, emit)?;
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

    // 5. Leave something to come back to, or the result
    if stopped {
        if state.step > 0 {
            save_checkpoint(out_dir, &state, &trainables, &optimizer, save_weights, config, emit)?;
        }
    } else {
        save_weights(out_dir)?;
    }
    Ok(TrainSummary {
        steps: state.step,
        completed: !stopped,
        final_loss: state.last_loss,
        eval_loss,
        seconds: (world.clock)() - started,
        out_dir: job.out_dir.clone(),
    })
}

/// Reads a data file's rows: those trained on, and those held out. The preflight's findings are emitted, and refuse a
/// file that leaves nothing to learn.
fn load_rows(
    text_files: &TextFiles,
    path: &str,
    config: &RunConfig,
    what: &str,
    emit: &mut dyn FnMut(EventBody),
) -> Result<(Vec<TokenizedRow>, Vec<TokenizedRow>)> {
    emit(EventBody::Progress { what: what.into(), done: 0, total: 0 });
    let path = Path::new(path);
    let dataset = data::read_examples(path, &config.columns)?;
    let prepared = prepare::rows(text_files, &dataset, config.max_seq_len)?;
    let report = preflight::report(text_files, &dataset, &prepared, config)?;
    preflight::refuse_nothing(&report, path)?;
    emit(EventBody::DataReport(Box::new(report)));
    let mut held_out = prepare::held_out(prepared.rows.len(), config).into_iter();
    Ok(prepared.rows.into_iter().partition(|_| held_out.next() == Some(false)))
}

/// The model's words, those of the styles included: the run's, or those of the adapter it starts from.
fn open_text_files(job: &TrainJob) -> Result<TextFiles> {
    let styles = &job.config.styles;
    let mut text_files = TextFiles::open_with(Path::new(&job.model), job.init_adapter.as_slice())?;
    if text_files.styles.is_empty() {
        return text_files.with_styles(styles);
    }
    if !styles.is_empty() {
        let tokens = |styles: &[Style]| -> Vec<(String, String)> {
            styles.iter().map(|style| (style.name.clone(), style.token.clone())).collect()
        };
        let (known, wanted) = (tokens(&text_files.styles), tokens(styles));
        if known != wanted {
            let message = format!("The adapter has the styles {known:?}, the run {wanted:?}");
            return Err(Error::invalid(ErrorCode::Adapter, message).hint("leave the run's styles out"));
        }
        text_files.styles.clone_from(styles);
    }
    Ok(text_files)
}

fn load_model(job: &TrainJob, text_files: Option<&TextFiles>) -> Result<(Model, Option<PeftConfig>)> {
    let path = Path::new(&job.model);
    let config = &job.config;
    match config.method {
        Method::Full if path.is_file() => Err(Error::invalid(
            ErrorCode::Usage,
            format!("A GGUF cannot be trained whole: {}", path.display()),
        )
        .hint("use method = \"lora\", or the model's Hugging Face folder")),
        Method::Full => Ok((Model::load(path, LoadFor::Full)?, None)),
        Method::Lora | Method::Qlora => {
            let load_for = match config.base_quant() {
                Quant::None => LoadFor::Lora,
                Quant::Nf4 => LoadFor::Qlora { double_quant: false },
                Quant::Nf4Double => LoadFor::Qlora { double_quant: true },
            };
            let mut model = Model::load(path, load_for)?;
            let mut peft_config = if let Some(folder) = &job.init_adapter {
                adapter::attach(&mut model, Path::new(folder))?
            } else {
                lora::attach_fresh(&mut model, &config.lora, config.seed)?;
                PeftConfig::new(&config.lora, &model, &job.model_name)
            };
            let styled = text_files.filter(|text_files| !text_files.styles.is_empty());
            if let Some(text_files) = styled.filter(|_| model.token_rows.is_none()) {
                styles::attach_fresh(&mut model, text_files)?;
                peft_config.trainable_token_indices =
                    Some(TokenIndices::OfEmbedding(text_files.style_ids()?));
            }
            peft_config.base_model_name_or_path = Some(job.model_name.clone());
            peft_config.inference_mode = true;
            Ok((model, Some(peft_config)))
        }
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
    save_weights: impl Fn(&Path) -> Result<()>,
    config: &RunConfig,
    emit: &mut dyn FnMut(EventBody),
) -> Result<()> {
    let path =
        checkpoint::save(out_dir, state, trainables, optimizer, save_weights, config.save_total_limit)?;
    emit(EventBody::Checkpoint { step: state.step, path: path.display().to_string() });
    Ok(())
}

/// The adapter as a PEFT folder, or (method `full`) the model as a Hugging Face folder.
fn save_weights(
    job: &TrainJob,
    model: &Model,
    trainables: &[Trainable],
    peft_config: Option<&PeftConfig>,
    folder: &Path,
) -> Result<()> {
    if let Some(peft_config) = peft_config {
        return adapter::save(model, peft_config, folder);
    }
    files::create_dir_all(folder)?;
    let tensors: BTreeMap<String, Tensor> =
        trainables.iter().map(|t| (t.name.clone(), t.var.as_tensor().clone())).collect();
    files::write_safetensors(&folder.join("model.safetensors"), &tensors)?;
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ] {
        let source = Path::new(&job.model).join(name);
        if source.exists() {
            files::write_atomically(&folder.join(name), &files::read_maybe_gzip(&source)?)?;
        }
    }
    Ok(())
}

/// Mean loss and accuracy over the trained tokens of `rows`.
pub fn evaluate_rows(
    model: &Model,
    rows: &[TokenizedRow],
    config: &RunConfig,
    step: usize,
) -> Result<EvalMetrics> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let order: Vec<usize> = (0..rows.len()).collect();
    let rope = model.rope_table(lengths.iter().copied().max().unwrap_or(0));
    let mut total = CrossEntropyStats::default();
    for sequence in batch::sequences(&lengths, &order, config.max_seq_len, true) {
        let stats = evaluate(model, &batch::pack(sequence.iter().map(|row| &rows[*row])), &rope)?;
        total.loss_sum += stats.loss_sum;
        total.num_correct += stats.num_correct;
        total.num_tokens += stats.num_tokens;
    }
    let loss = total.loss_sum / total.num_tokens.max(1) as f64;
    Ok(EvalMetrics {
        step,
        loss,
        perplexity: loss.exp(),
        token_accuracy: total.num_correct as f64 / total.num_tokens.max(1) as f64,
        loss_tokens: total.num_tokens,
        rows: rows.len(),
    })
}

fn diverged(step: usize, loss: f64, grad_norm: f64, window: &Window, rows: &[TokenizedRow]) -> Error {
    let lines: Vec<String> = window.iter().flatten().take(8).map(|row| rows[*row].line.to_string()).collect();
    Error::invalid(
        ErrorCode::Diverged,
        format!(
            "Training diverged at step {step}: loss {loss}, gradient norm {grad_norm}; the rows of the batch start on lines {}",
            lines.join(", ")
        ),
    )
    .hint("lower learning_rate, or look at those rows; the last checkpoint is kept and can be resumed")
}

fn hash_rows(rows: &[TokenizedRow]) -> String {
    let mut hasher = Sha256::new();
    for row in rows {
        hasher.update((row.ids.len() as u64).to_le_bytes());
        for (id, learns) in row.ids.iter().zip(&row.loss_mask) {
            hasher.update(id.to_le_bytes());
            hasher.update([u8::from(*learns)]);
        }
    }
    files::hex(&hasher.finalize())
}
