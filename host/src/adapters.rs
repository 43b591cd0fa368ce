//! The library: PEFT folders under `adapters/NAME`, each with its provenance in `lathe.json`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lathe_protocol::{AdapterEntry, AdapterUpdate, ErrorCode, ErrorInfo, Origins, RunEntry, StylesFile};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Paths,
    error::{Result, did_you_mean, io_error, near, not_found, usage},
    files,
    models::{file_name, safetensors},
    paths::absolute,
    runs::Provenance,
};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PROVENANCE: &str = "lathe.json";
const PREFIX: &str = "base_model.model.";
/// What else belongs to an adapter: what it was made of, its styles, and the tokenizer that knows their tokens.
const COMPANIONS: [&str; 7] = [
    "README.md",
    Origins::NAME,
    StylesFile::NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// What we read of `adapter_config.json`.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: Option<String>,
    #[serde(default)]
    r: usize,
    #[serde(default)]
    lora_alpha: f64,
    /// A list of names, or one string: a name, a pattern, or `all-linear`.
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    target_parameters: Value,
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    rank_pattern: Value,
}

impl PeftConfig {
    /// Modules, then parameters.
    fn targets(&self) -> Vec<String> {
        [words(&self.target_modules), words(&self.target_parameters)].concat()
    }
}

pub(crate) fn list(paths: &Paths) -> Result<Vec<AdapterEntry>> {
    let library = paths.adapters();
    let mut names = files::names_in(&library)?;
    names.retain(|name| !name.starts_with('.') && library.join(name).is_dir());
    Ok(names.iter().map(|name| entry(name, &library.join(name))).collect())
}

pub(crate) fn show(paths: &Paths, name: &str) -> Result<AdapterEntry> {
    let path = PathBuf::from(resolve(paths, name)?);
    Ok(entry(&file_name(&path), &path))
}

/// The folder of an adapter: its name in the library, or a PEFT folder.
pub(crate) fn resolve(paths: &Paths, name: &str) -> Result<String> {
    let in_library = paths.adapters().join(name);
    if is_name(name) && in_library.join(CONFIG).is_file() {
        return Ok(in_library.display().to_string());
    }
    let path = absolute(name.as_ref());
    if !name.is_empty() && path.join(CONFIG).is_file() {
        return Ok(path.display().to_string());
    }
    if !name.is_empty() && path.is_dir() {
        let message = format!("Not an adapter: it has no {CONFIG}: {}", path.display());
        let error = ErrorInfo::new(ErrorCode::Adapter, message);
        return Err(if path.join("checkpoints").is_dir() {
            error.hint("this run is not finished: `lathe train --resume --out` its folder")
        } else {
            error.hint(format!("a PEFT folder holds {CONFIG} and {WEIGHTS}"))
        });
    }
    let names = files::names_in(&paths.adapters())?;
    let near = near(name, names.iter().map(String::as_str).filter(|name| !name.starts_with('.')));
    let otherwise = "`lathe adapters list` shows the library; a PEFT folder's path works too";
    Err(not_found(format!("No adapter named {name:?}")).hint(did_you_mean(&near, otherwise)))
}

/// Copies a PEFT folder into the library; afterwards it is there whole, or not at all.
///
/// Without a `name` it is the folder's, with a number after it if taken.
pub(crate) fn import(paths: &Paths, source: &Path, name: Option<&str>) -> Result<AdapterEntry> {
    if !source.is_dir() {
        return Err(not_found(format!("No such adapter folder: {}", source.display()))
            .hint(format!("a PEFT folder holds {CONFIG} and {WEIGHTS}")));
    }
    if let Some(problem) = read(source).err() {
        return Err(ErrorInfo::new(ErrorCode::Adapter, format!("{problem}: {}", source.display())));
    }
    let library = paths.adapters();
    let name = match name {
        Some(name) => {
            check_free(&library, name)?;
            name.to_owned()
        }
        None => free_name(&clean_name(&file_name(source)), &|name| library.join(name).exists()),
    };
    put_in_place(&library, &name, None, |folder| copy_files(source, folder, &[PROVENANCE]))
}

/// The name of the adapter that a run has left in the library.
pub(crate) fn of_run(paths: &Paths, run: &RunEntry) -> Option<String> {
    let library = paths.adapters();
    let is_of_run =
        |name: &String| Provenance::read(&library.join(name)).is_some_and(|known| known.run.id == run.id);
    let names = files::names_in(&library).unwrap_or_default();
    [run.name.clone()].into_iter().chain(names).find(|name| is_name(name) && is_of_run(name))
}

/// Takes what a run learned into the library: under the run's name, or where an earlier state of the same run lies.
pub(crate) fn import_of_run(paths: &Paths, source: &Path, provenance: &Provenance) -> Result<AdapterEntry> {
    if let Some(problem) = read(source).err() {
        return Err(ErrorInfo::new(ErrorCode::Adapter, format!("{problem}: {}", source.display())));
    }
    let run = &provenance.run;
    let library = paths.adapters();
    let earlier = of_run(paths, run);
    let label = earlier.as_ref().map(|name| Label::read(&library.join(name)));
    let name = earlier.unwrap_or_else(|| free_name(&run.name, &|name| library.join(name).exists()));
    put_in_place(&library, &name, label.as_ref(), |folder| {
        copy_files(source, folder, &[])?;
        provenance.write(folder)
    })
}

/// A folder of the library, there whole or not at all. With the `label` of an earlier one it replaces that one.
fn put_in_place(
    library: &Path,
    name: &str,
    label: Option<&Label>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<AdapterEntry> {
    let folder = library.join(name);
    let (aside, earlier) = (files::aside(&folder), files::aside(&folder));
    let put = || {
        files::create_dir_all(&aside)?;
        fill(&aside)?;
        if let Some(label) = label {
            label.write(&aside)?;
            fs::rename(&folder, &earlier).map_err(io_error("replace the adapter", &folder))?;
        }
        // Fails if somebody else took the name meanwhile.
        fs::rename(&aside, &folder).map_err(io_error("put the adapter in place", &folder))?;
        files::remove_quietly(&earlier);
        Ok(())
    };
    if let Err(error) = put() {
        files::remove_quietly(&aside);
        return Err(error);
    }
    Ok(entry(name, &folder))
}

fn copy_files(source: &Path, target: &Path, more: &[&str]) -> Result<()> {
    for name in [CONFIG, WEIGHTS].iter().chain(&COMPANIONS).chain(more) {
        let from = source.join(name);
        if from.is_file() {
            files::copy_file(&from, &target.join(name), &mut |_| Ok(()))?;
        }
    }
    Ok(())
}

/// Changes an adapter's name, notes or tags.
pub(crate) fn update(paths: &Paths, name: &str, update: &AdapterUpdate) -> Result<AdapterEntry> {
    let folder = folder_in_library(paths, name, "changed")?;
    let new_name = update.name.as_deref().filter(|new_name| *new_name != name);
    if let Some(new_name) = new_name {
        check_free(&paths.adapters(), new_name)?;
    }
    let mut label = Label::read(&folder);
    let AdapterUpdate { notes, tags, .. } = update;
    if notes.is_some() || tags.is_some() {
        label.notes = notes.clone().unwrap_or(label.notes);
        label.tags = tags.clone().unwrap_or(label.tags);
        label.write(&folder)?;
    }
    let Some(new_name) = new_name else { return Ok(entry(name, &folder)) };
    let new_folder = paths.adapters().join(new_name);
    fs::rename(&folder, &new_folder).map_err(io_error("rename the adapter", &folder))?;
    Ok(entry(new_name, &new_folder))
}

/// Returns the bytes that came free.
pub(crate) fn remove(paths: &Paths, name: &str) -> Result<u64> {
    let folder = folder_in_library(paths, name, "removed")?;
    let freed = files::size_below(&folder);
    let aside = files::aside(&folder);
    fs::rename(&folder, &aside).map_err(io_error("remove", &folder))?;
    fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
    Ok(freed)
}

fn folder_in_library(paths: &Paths, name: &str, what: &str) -> Result<PathBuf> {
    let folder = paths.adapters().join(name);
    if is_name(name) && folder.is_dir() {
        return Ok(folder);
    }
    let path = PathBuf::from(resolve(paths, name)?);
    Err(usage(format!("Only adapters of the library are {what}: {}", path.display()))
        .hint("a folder of your own is changed with your file manager"))
}

/// An error if it cannot be a name, or is one of another adapter.
fn check_free(library: &Path, name: &str) -> Result<()> {
    check_name(name)?;
    if library.join(name).exists() {
        return Err(
            usage(format!("The library has an adapter named {name:?} already")).hint("choose another name")
        );
    }
    Ok(())
}

/// What a person wrote on an adapter. It lies in its `lathe.json`, with the provenance if there is one.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Label {
    notes: String,
    tags: Vec<String>,
}

impl Label {
    fn read(folder: &Path) -> Self {
        files::read_json(&folder.join(PROVENANCE)).unwrap_or_default()
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(PROVENANCE);
        let mut fields: serde_json::Map<String, Value> =
            if path.exists() { files::read_json(&path)? } else { serde_json::Map::new() };
        fields.insert("notes".into(), self.notes.clone().into());
        fields.insert("tags".into(), self.tags.clone().into());
        files::write_json(&path, &fields)
    }
}

/// Letters, digits, `-`, `_`, `.` and spaces, so that it is a folder's name on every system.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(usage(format!("{name:?} cannot be a name"))
        .hint("use letters, digits, -, _ and ., at most 80, and begin with a letter or digit"))
}

fn is_name(name: &str) -> bool {
    (1..=80).contains(&name.chars().count())
        && name.starts_with(char::is_alphanumeric)
        && !name.ends_with(['.', ' '])
        && name.chars().all(|c| c.is_alphanumeric() || "-_. ".contains(c))
}

/// Something like `text` that [`check_name`] accepts.
pub(crate) fn clean_name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_alphanumeric() || "_.".contains(c) {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name: String = name.chars().skip_while(|c| !c.is_alphanumeric()).take(60).collect();
    let name = name.trim_end_matches(['-', '.']);
    if name.is_empty() { "adapter".into() } else { name.into() }
}

fn free_name(wanted: &str, taken: &dyn Fn(&str) -> bool) -> String {
    let mut name = wanted.to_owned();
    let mut count = 1;
    while taken(&name) {
        count += 1;
        name = format!("{wanted}-{count}");
    }
    name
}

fn entry(name: &str, path: &Path) -> AdapterEntry {
    let provenance = Provenance::read(path);
    let Label { notes, tags } = Label::read(path);
    let (config, problem) = match read(path) {
        Ok(config) => (Some(config), None),
        Err(problem) => (None, Some(problem)),
    };
    let run = provenance.as_ref().map(|provenance| &provenance.run);
    // Styles that cannot be read are told when they are used.
    let StylesFile { styles, .. } = files::read_json(&path.join(StylesFile::NAME)).unwrap_or_default();
    AdapterEntry {
        name: name.to_owned(),
        path: path.display().to_string(),
        base_model: config.as_ref().and_then(|config| config.base_model_name_or_path.clone()),
        r: config.as_ref().map_or(0, |config| config.r),
        alpha: config.as_ref().map_or(0.0, |config| config.lora_alpha),
        targets: config.as_ref().map(PeftConfig::targets).unwrap_or_default(),
        size_bytes: [CONFIG, WEIGHTS, PROVENANCE]
            .iter()
            .chain(&COMPANIONS)
            .filter_map(|name| fs::metadata(path.join(name)).ok())
            .map(|metadata| metadata.len())
            .sum(),
        created_secs: run.map(|run| run.created_secs),
        run: run.map(|run| run.name.clone()),
        data: run.map(|run| run.data.clone()),
        last_loss: run.and_then(|run| run.last_loss),
        notes,
        tags,
        styles,
        // Those that cannot be read are told of when the adapter is loaded.
        origins: files::read_json(&path.join(Origins::NAME)).ok(),
        problem,
    }
}

fn words(value: &Value) -> Vec<String> {
    let mut words: Vec<String> = match value {
        Value::String(word) => vec![word.clone()],
        Value::Array(words) => words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    words.sort();
    words
}

/// The config of a sound adapter, or what is wrong with it in a sentence.
fn read(folder: &Path) -> std::result::Result<PeftConfig, String> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Err(format!("{CONFIG} is missing"));
    }
    let config: PeftConfig = files::read_json(&path).map_err(|error| format!("{CONFIG}: {error}"))?;
    match config.peft_type.as_deref() {
        Some("LORA") => {}
        Some(other) => return Err(format!("{CONFIG} is of type {other}; only LORA is understood")),
        None => return Err(format!("{CONFIG} names no peft_type")),
    }
    let weights = folder.join(WEIGHTS);
    if !weights.is_file() {
        return Err(if folder.join("adapter_model.bin").is_file() {
            format!("the weights are a pickle (adapter_model.bin); only {WEIGHTS} is read")
        } else {
            format!("{WEIGHTS} is missing")
        });
    }
    let header = safetensors::read_header(&weights).map_err(|problem| format!("{WEIGHTS} {problem}"))?;
    let mut halves = [BTreeSet::new(), BTreeSet::new()];
    let one_rank = config.rank_pattern.as_object().is_none_or(serde_json::Map::is_empty);
    let (r, stacks) = (config.r as u64, !words(&config.target_parameters).is_empty());
    for tensor in &header.tensors {
        let Some(module) = tensor.name.strip_prefix(PREFIX) else {
            return Err(format!("{WEIGHTS} holds {}, which does not begin with {PREFIX}", tensor.name));
        };
        let (half, module, rank) = if let Some(module) = module.strip_suffix(".lora_A.weight") {
            (0, module, tensor.shape.first())
        } else if let Some(module) = module.strip_suffix(".lora_B.weight") {
            (1, module, tensor.shape.get(1))
        } else {
            continue;
        };
        halves[half].insert(module);
        // Experts' updates are stacked: their rank is one a matrix.
        let fits = |rank: u64| rank == r || (stacks && rank.is_multiple_of(r));
        if one_rank && !rank.is_some_and(|rank| fits(*rank)) {
            return Err(format!(
                "{WEIGHTS}: {} has shape {:?}, which does not fit r = {}",
                tensor.name, tensor.shape, config.r
            ));
        }
    }
    let [a, b] = halves;
    if let Some(module) = a.symmetric_difference(&b).next() {
        return Err(format!("{WEIGHTS} holds only one of lora_A and lora_B for {module}"));
    }
    if a.is_empty() {
        return Err(format!("{WEIGHTS} holds no LoRA tensors"));
    }
    Ok(config)
}

#[cfg(test)]
pub(crate) mod tests;
