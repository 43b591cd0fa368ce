//! Jobs that look at a model or measure it, without changing anything.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use lathe_protocol::{
    DataFile, DataJob, DatasetShape, ErrorCode, EvalJob, EvalMetrics, EventBody, ExpertFormat, ExpertsShape,
    LogitsJob, ModelDetails, ModelFile, ModelShape, Objective, Quant,
};

use crate::{
    Error, Result, adapter,
    corpus::{self, Rows},
    family, files,
    model::{Compute, LoadFor, Model, ModelConfig},
    preflight,
    store::Reading,
    text_files::TextFiles,
    train,
    weights::Weights,
};

/// A model as its own files describe it. `name` is the path's last part.
pub fn describe(path: &Path) -> Result<ModelDetails> {
    let weights = Weights::open(path)?;
    let config = weights.config(path)?;
    let text_files = TextFiles::open(path)?;
    let files: Vec<ModelFile> = weights
        .files()
        .into_iter()
        .map(|(file, size_bytes)| ModelFile {
            name: file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            size_bytes,
        })
        .collect();
    Ok(ModelDetails {
        name: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        path: path.display().to_string(),
        architecture: config.family.name().into(),
        parameters: weights.num_parameters(),
        size_bytes: files.iter().map(|file| file.size_bytes).sum(),
        shape: shape(&config, &weights),
        dtypes: weights.dtypes(),
        has_chat_template: text_files.template.is_some(),
        default_targets: config.family.default_targets().iter().copied().map(String::from).collect(),
        consequences: family::explain(&config, &weights, &text_files),
        files,
    })
}

/// What a model's memory is reckoned from.
pub fn shape(config: &ModelConfig, weights: &Weights) -> ModelShape {
    ModelShape {
        num_layers: config.num_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_attention_heads: config.num_heads,
        num_key_value_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        context_length: config.max_position_embeddings,
        tie_word_embeddings: config.tie_word_embeddings,
        is_gguf: matches!(weights, Weights::Gguf(_)),
        linears: weights.nf4(|name| name.contains(".self_attn.")),
        experts: config.experts.as_ref().map(|experts| ExpertsShape {
            num_experts: experts.num_experts,
            experts_per_token: experts.experts_per_token,
            format: expert_format(weights),
        }),
    }
}

fn expert_format(weights: &Weights) -> ExpertFormat {
    match weights {
        Weights::Gguf(gguf) => {
            let experts = gguf.header.tensors.iter().filter(|(name, _)| name.contains("_exps.weight"));
            let (values, bytes) = experts.fold((0, 0), |(values, bytes), (_, info)| {
                (values + info.dims.iter().product::<usize>() as u64, bytes + info.num_bytes)
            });
            ExpertFormat::Blocks((256 * bytes).div_ceil(values.max(1)))
        }
        Weights::Safetensors(folder) if folder.names().any(|name| name.ends_with("_blocks")) => {
            ExpertFormat::Mxfp4
        }
        Weights::Safetensors(_) => match weights.nf4(|name| name.contains(".experts.")) {
            Quant::Nf4 => ExpertFormat::Nf4,
            Quant::Nf4Double => ExpertFormat::Nf4Double,
            Quant::None if weights.dtypes().contains_key("BF16") => ExpertFormat::Bf16,
            Quant::None => ExpertFormat::F32,
        },
    }
}

/// Writes `logits` (T, V) f32 of the given ids. Returns (T, V).
pub fn logits(job: &LogitsJob) -> Result<(usize, usize)> {
    if job.ids.is_empty() {
        return Err(Error::invalid(ErrorCode::Usage, "No token ids were given"));
    }
    let compute = Compute::open(&job.device)?;
    let mut model = Model::load_on(Path::new(&job.model), LoadFor::Inference, compute)?;
    if let Some(folder) = &job.adapter {
        adapter::attach(&mut model, Path::new(folder))?;
    }
    let logits = model.all_logits(&job.ids)?.detach();
    let shape = logits.dims2()?;
    files::write_safetensors(Path::new(&job.out), &BTreeMap::from([("logits".to_owned(), logits)]))?;
    Ok(shape)
}

/// Loss, perplexity and accuracy over the loss-masked tokens of a data file; of pairs, what an adapter makes of them,
/// by DPO's rewards if no other objective is asked for.
pub fn eval(job: &EvalJob, stop: &AtomicBool, emit: &mut dyn FnMut(EventBody)) -> Result<EvalMetrics> {
    let path = Path::new(&job.data.model);
    let DataJob { data, cache, .. } = &job.data;
    let mut config = job.data.config.clone();
    let text_files = TextFiles::open_with(path, job.adapter.as_slice())?;
    let file = DataFile { columns: config.columns.clone(), ..DataFile::new(data) };
    let mut reading = Reading { cache: Path::new(cache), stop, emit };
    let (dataset, rows) = corpus::read_one(&text_files, &file, config.max_seq_len, &mut reading)?;
    if dataset.shape == DatasetShape::Preference && config.objective == Objective::Sft {
        config.objective = Objective::Dpo;
    }
    preflight::refuse_mismatch(dataset.shape, config.objective, &dataset.path)?;
    if config.objective == Objective::Dpo && job.adapter.is_none() {
        let message = "Rewards are what an adapter gains over its base, and there is no adapter";
        return Err(Error::invalid(ErrorCode::Usage, message).hint("give --adapter, or set objective=orpo"));
    }
    if rows.is_empty() {
        let message = format!("No row has a trained token within {} tokens: {data}", config.max_seq_len);
        return Err(Error::data(message).hint(preflight::need_of_rows(config.objective.takes_pairs())));
    }
    let rows = Rows::Stored(rows);
    let mut model = Model::load_on(path, LoadFor::Inference, Compute::open(&job.device)?)?;
    let references = train::preference::references(&model, &rows, |_| true, &config, stop, emit)?;
    let references = references.ok_or(Error::Stopped)?;
    if let Some(folder) = &job.adapter {
        adapter::attach(&mut model, Path::new(folder))?;
    }
    let evaluation = train::evaluate_rows(&model, &rows, &references, &config, 0)?;
    if evaluation.is_sound() {
        return Ok(evaluation.metrics);
    }
    let not_finite = evaluation.not_finite.len();
    let message = format!("The loss is no finite number on {not_finite} of {} rows", rows.len());
    Err(Error::invalid(ErrorCode::Diverged, message).hint("the model's or the adapter's weights are broken"))
}
