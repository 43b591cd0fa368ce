//! What a run is made of, read before its first step and written after its last.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use candle_core::Tensor;
use lathe_protocol::{ErrorCode, EventBody, Method, Quant, RunConfig, Style, TrainJob};

use crate::{
    Error, Result,
    adapter::{self, PeftConfig, TokenIndices},
    corpus::{self, StoredRows},
    data::Dataset,
    files, lora,
    model::{Compute, LoadFor, Model, Trainable},
    preflight,
    store::Reading,
    styles,
    text_files::TextFiles,
};

/// Reads the rows trained on, and those held out. The preflight's findings are emitted, and refuse files that leave
/// nothing to learn, or nothing to measure on.
pub(super) fn load_rows(
    text_files: &TextFiles,
    job: &TrainJob,
    stop: &AtomicBool,
    emit: &mut dyn FnMut(EventBody),
) -> Result<(StoredRows, StoredRows)> {
    let TrainJob { config, eval_data, cache, .. } = job;
    let files = config.files(&job.data);
    let eval_file = eval_data.as_deref().map(|path| config.eval_file(path));
    for file in files.iter().chain(&eval_file) {
        preflight::refuse_mismatch(Dataset::open(file)?.shape, config.objective, Path::new(&file.path))?;
    }
    let mut reading = Reading { cache: Path::new(cache), stop, emit };
    let corpus = corpus::read(text_files, &files, eval_data.as_deref(), config, &mut reading)?;
    let report = preflight::report(text_files, &files, &corpus, eval_data.is_some(), config)?;
    preflight::refuse_nothing(&report, Path::new(&files[0].path))?;
    if let Some(path) = eval_data.as_ref().filter(|_| corpus.held_out.is_empty()) {
        let message = format!("No row of the held-out data has anything to measure on: {path}");
        return Err(Error::data(message).hint(preflight::need_of_rows(config.objective.takes_pairs())));
    }
    emit(EventBody::DataReport(Box::new(report)));
    Ok((corpus.rows, corpus.held_out))
}

/// The model's words, those of the styles included: the run's, or those of the adapter it starts from.
pub(super) fn open_text_files(job: &TrainJob) -> Result<TextFiles> {
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

/// The model with what learns, and the config of its adapter if that is one. `name` is what the user calls the model.
pub(super) fn load_model(
    path: &Path,
    name: &str,
    config: &RunConfig,
    init_adapter: Option<&Path>,
    text_files: Option<&TextFiles>,
    compute: Compute,
) -> Result<(Model, Option<PeftConfig>)> {
    match config.method {
        Method::Full if path.is_file() => Err(Error::invalid(
            ErrorCode::Usage,
            format!("A GGUF cannot be trained whole: {}", path.display()),
        )
        .hint("use method = \"lora\", or the model's Hugging Face folder")),
        Method::Full => Ok((Model::load_on(path, LoadFor::Full, compute)?, None)),
        Method::Lora | Method::Qlora => {
            let load_for = match config.base_quant() {
                Quant::None => LoadFor::Lora,
                Quant::Nf4 => LoadFor::Qlora { double_quant: false },
                Quant::Nf4Double => LoadFor::Qlora { double_quant: true },
            };
            let mut model = Model::load_on(path, load_for, compute)?;
            let mut peft_config = if let Some(folder) = init_adapter {
                adapter::attach(&mut model, folder)?
            } else {
                lora::attach_fresh(&mut model, &config.lora, config.seed)?;
                PeftConfig::new(&config.lora, &model, name)
            };
            let styled = text_files.filter(|text_files| !text_files.styles.is_empty());
            if let Some(text_files) = styled.filter(|_| model.token_rows.is_none()) {
                styles::attach_fresh(&mut model, text_files)?;
                peft_config.trainable_token_indices =
                    Some(TokenIndices::OfEmbedding(text_files.style_ids()?));
            }
            peft_config.base_model_name_or_path = Some(name.to_owned());
            peft_config.inference_mode = true;
            Ok((model, Some(peft_config)))
        }
    }
}

/// The adapter as a PEFT folder, or (method `full`) the model as a Hugging Face folder.
pub(super) fn save_weights(
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
