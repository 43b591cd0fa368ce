//! What a run is made of, and whether a model is the one an adapter was trained on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use lathe_protocol::{BaseMatch, BasePrint, ErrorCode, FilePrint, Origins, TrainJob, WeightsMetrics};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result, adapter,
    files::{self, hex},
    gguf::Gguf,
    model::ModelConfig,
    text_files::{TOKENIZER_FILE, TextFiles},
    weights::{TensorPlace, Weights},
};

/// The version of `candle-core` in the workspace's `Cargo.toml`.
pub const CANDLE_VERSION: &str = "0.11.1";
/// Read from the beginning, the middle and the end of every tensor.
const PIECE_BYTES: u64 = 4096;
const NORMS: [&str; 4] =
    ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"];

/// Of a run that is about to begin on files with so many rows each.
pub fn of_run(
    job: &TrainJob,
    text_files: &TextFiles,
    [data, eval_data]: [Vec<FilePrint>; 2],
    forced: Vec<String>,
) -> Result<Origins> {
    let model = Path::new(&job.model);
    let adapter_weights = |folder: &String| print_file(&Path::new(folder).join(adapter::WEIGHTS_FILE), None);
    let config = match serde_json::to_value(&job.config) {
        Ok(Value::Object(config)) => config,
        _ => Map::new(),
    };
    Ok(Origins {
        lathe: env!("CARGO_PKG_VERSION").into(),
        candle: CANDLE_VERSION.into(),
        machine: job.machine.clone(),
        threads: rayon::current_num_threads(),
        device: job.device.clone(),
        base: print_base(model, &job.model_name)?,
        tokenizer_hash: tokenizer_hash(model)?,
        template_hash: hex(&Sha256::digest(text_files.chat_template().source())),
        data,
        eval_data,
        init_adapter: job.init_adapter.as_ref().map(adapter_weights).transpose()?,
        config,
        forced,
        metrics: None,
    })
}

/// Writes a run's origins beside weights that are worth `metrics`.
pub fn save(origins: &Origins, metrics: Option<WeightsMetrics>, folder: &Path) -> Result<()> {
    files::write_json(&folder.join(Origins::NAME), &Origins { metrics, ..origins.clone() })
}

/// What weights in a folder are worth, if it says so.
pub fn metrics_of(folder: &Path) -> Option<WeightsMetrics> {
    files::read_json::<Origins>(&folder.join(Origins::NAME)).ok()?.metrics
}

/// What can be said without reading more of a model than its headers and a little of each tensor.
pub fn print_base(model: &Path, name: &str) -> Result<BasePrint> {
    let weights = Weights::open(model)?;
    let model_config = weights.config(model)?;
    let config = architecture(&model_config);
    let mut config_hash = Sha256::new();
    for (key, value) in &config {
        config_hash.update(format!("{key}={value}\n"));
    }
    let places = weights.index();
    let dtypes: BTreeSet<&str> = places.iter().map(|place| place.dtype.as_str()).collect();
    let (index_hash, weights_hash) = hash_tensors(&places)?;
    Ok(BasePrint {
        name: name.to_owned(),
        config_hash: hex(&config_hash.finalize()),
        storage: dtypes.into_iter().collect::<Vec<_>>().join(", "),
        index_hash,
        weights_hash,
        norms_hash: hash_norms(&weights, &model_config)?,
        config,
    })
}

/// What an adapter's fit depends on. Floats are rounded to f32, as a GGUF keeps them. What the two forms tell in
/// different ways (scaling of positions, tied tables) or what people change (the context) stays out.
fn architecture(config: &ModelConfig) -> BTreeMap<String, String> {
    let sizes = [
        ("num_hidden_layers", config.num_layers),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_attention_heads", config.num_heads),
        ("num_key_value_heads", config.num_kv_heads),
        ("head_dim", config.head_dim),
        ("vocab_size", config.vocab_size),
    ];
    let experts = config.experts.iter().flat_map(|experts| {
        [("num_experts", experts.num_experts), ("num_experts_per_tok", experts.experts_per_token)]
    });
    let mut fields: BTreeMap<String, String> =
        sizes.into_iter().chain(experts).map(|(key, size)| (key.into(), size.to_string())).collect();
    fields.insert("model_type".into(), config.family.name().into());
    fields.insert("rope_theta".into(), (config.rope_theta as f32).to_string());
    fields.insert("rms_norm_eps".into(), (config.rms_norm_eps as f32).to_string());
    fields
}

/// The hashes of the index, and of the index with pieces of the bytes.
fn hash_tensors(places: &[TensorPlace<'_>]) -> Result<(String, String)> {
    let (mut index, mut weights) = (Sha256::new(), Sha256::new());
    let mut open: HashMap<&Path, File> = HashMap::new();
    let mut piece = Vec::new();
    for TensorPlace { name, dtype, dims, file, start, num_bytes } in places {
        let entry = format!("{name} {dtype} {dims:?} {num_bytes}\n");
        index.update(&entry);
        weights.update(&entry);
        let reader = match open.entry(file) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(File::open(file).map_err(Error::io("open the weights", file))?)
            }
        };
        let pieces = if *num_bytes <= 3 * PIECE_BYTES {
            vec![(0, *num_bytes)]
        } else {
            [0, num_bytes / 2, num_bytes - PIECE_BYTES].map(|offset| (offset, PIECE_BYTES)).to_vec()
        };
        for (offset, length) in pieces {
            piece.resize(length as usize, 0);
            reader
                .seek(SeekFrom::Start(start + offset))
                .and_then(|_| reader.read_exact(&mut piece))
                .map_err(Error::io("read the weights", file))?;
            weights.update(&piece);
        }
    }
    Ok((hex(&index.finalize()), hex(&weights.finalize())))
}

/// Rounded to bf16: whether a converter kept them so, as f16 or as f32, these are the same.
fn hash_norms(weights: &Weights, config: &ModelConfig) -> Result<String> {
    let of_layers = (0..config.num_layers)
        .flat_map(|layer| NORMS.map(|norm| format!("model.layers.{layer}.{norm}.weight")));
    let mut hasher = Sha256::new();
    for name in of_layers.chain(["model.norm.weight".to_owned()]).filter(|name| weights.has(name)) {
        let values: Vec<f32> = weights.dense(&name, config)?.flatten_all()?.to_vec1()?;
        hasher.update(&name);
        for value in values {
            hasher.update(half::bf16::from_f32(value).to_le_bytes());
        }
    }
    Ok(hex(&hasher.finalize()))
}

fn tokenizer_hash(model: &Path) -> Result<String> {
    if model.is_dir() {
        return Ok(hex(&Sha256::digest(files::read_maybe_gzip(&model.join(TOKENIZER_FILE))?)));
    }
    let gguf = Gguf::open(model)?;
    let keys: BTreeMap<_, _> =
        gguf.header.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.")).collect();
    let mut hasher = Sha256::new();
    for (key, value) in keys {
        hasher.update(format!("{key}={value:?}\n"));
    }
    Ok(hex(&hasher.finalize()))
}

/// A file by all of its bytes.
pub fn print_file(path: &Path, rows: Option<usize>) -> Result<FilePrint> {
    let size_bytes = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    Ok(FilePrint { path: path.display().to_string(), sha256: files::hash_file(path)?, size_bytes, rows })
}

/// What a run would be made of if it began now. Files that are gone are left out.
pub fn now(job: &TrainJob) -> Result<Origins> {
    let data = job.config.files(&job.data).into_iter().map(|file| file.path).collect();
    let [data, eval_data] = [data, Vec::from_iter(job.eval_data.clone())].map(|paths| {
        let there = paths.iter().map(Path::new).filter(|path| path.exists());
        there.map(|path| print_file(path, None)).collect::<Result<Vec<_>>>()
    });
    let has_weights = |folder: &String| Path::new(folder).join(adapter::WEIGHTS_FILE).exists();
    let job = TrainJob { init_adapter: job.init_adapter.clone().filter(has_weights), ..job.clone() };
    let text_files = TextFiles::open_with(Path::new(&job.model), job.init_adapter.as_slice())?;
    of_run(&job, &text_files, [data?, eval_data?], Vec::new())
}

/// Of a run that is resumed, as they were when it began. None if it never did.
///
/// Errors: the model has changed since.
pub fn of_begun(job: &TrainJob) -> Result<Option<Origins>> {
    // Lost or damaged ones are made anew.
    let path = Path::new(&job.out_dir).join(Origins::NAME);
    let Ok(begun) = files::read_json::<Origins>(&path) else { return Ok(None) };
    let here = print_base(Path::new(&job.model), &job.model_name)?;
    let what = match begun.base.matches(&here) {
        BaseMatch::Same => return Ok(Some(begun)),
        BaseMatch::OtherForm(warning) => warning,
        BaseMatch::Other(differences) => differences.join("; "),
    };
    let message = format!("The model has changed since this run began: {what}: {}", job.model);
    Err(Error::model(message).hint("put the model back as it was, or start a new run"))
}

/// What of an adapter's origins tells its base.
#[derive(Deserialize)]
struct Base {
    base: BasePrint,
}

/// The base an adapter says it was trained on; none if it says nothing, as adapters made elsewhere do.
///
/// Errors: a file of ours that cannot be read.
fn base_of(folder: &Path) -> Result<Option<BasePrint>> {
    let path = folder.join(Origins::NAME);
    if !path.exists() {
        return Ok(None);
    }
    let damaged = |problem: String| {
        Error::invalid(ErrorCode::OtherBase, format!("{problem}: {}", path.display()))
            .hint("the adapter's base cannot be told: --force loads it all the same")
    };
    let json: Value =
        files::read_json(&path).map_err(|_| damaged("The adapter's origins are damaged".into()))?;
    if json.get("lathe").is_none() {
        // A file of this name that is not ours.
        return Ok(None);
    }
    let Base { base } = serde_json::from_value(json)
        .map_err(|error| damaged(format!("The adapter's origins cannot be understood: {error}")))?;
    Ok(Some(base))
}

/// Compares a model with what each adapter was trained on. Returns what is to be said of it.
///
/// Errors: an adapter of another base, unless `force` is set: then that is said too.
pub fn check_bases(model: &Path, adapters: &[impl AsRef<Path>], force: bool) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut here = None;
    for folder in adapters {
        let folder = folder.as_ref();
        let other = match base_of(folder) {
            Ok(None) => {
                checked.notes.push(format!(
                    "Base not verified: the adapter does not say which weights it was trained on: {}",
                    folder.display()
                ));
                continue;
            }
            Ok(Some(base)) => {
                let here = match &here {
                    Some(here) => here,
                    None => here.insert(print_base(model, &model.display().to_string())?),
                };
                match base.matches(here) {
                    BaseMatch::Same => continue,
                    BaseMatch::OtherForm(warning) => {
                        checked.warnings.push(warning);
                        continue;
                    }
                    BaseMatch::Other(differences) => Error::invalid(
                        ErrorCode::OtherBase,
                        format!(
                            "The adapter was trained on another base: {}: {}",
                            differences.join("; "),
                            folder.display()
                        ),
                    )
                    .hint("choose the model it was trained on; --force loads it all the same, where shapes permit"),
                }
            }
            Err(error @ Error::Invalid { code: ErrorCode::OtherBase, .. }) => error,
            Err(error) => return Err(error),
        };
        if !force {
            return Err(other);
        }
        checked.forced.push(other.to_string());
    }
    Ok(checked)
}

/// What was found of adapters and their bases.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// For who wants to know more.
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
    /// Refusals that were overruled.
    pub forced: Vec<String>,
}
