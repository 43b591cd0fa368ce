//! The library: PEFT folders under `adapters/NAME`, each with its provenance in `lathe.json`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lathe_protocol::{AdapterEntry, ErrorCode, ErrorInfo};
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
const PREFIX: &str = "base_model.model.";

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
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    rank_pattern: Value,
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
    files::create_dir_all(&library)?;
    let name = match name {
        Some(name) => {
            check_name(name)?;
            if library.join(name).exists() {
                return Err(usage(format!("The library has an adapter named {name:?} already"))
                    .hint("choose another with --name"));
            }
            name.to_owned()
        }
        None => free_name(&clean_name(&file_name(source)), &|name| library.join(name).exists()),
    };
    let folder = library.join(&name);
    let aside = files::aside(&folder);
    let copied = copy_adapter(source, &aside).and_then(|()| {
        // Fails if somebody else took the name meanwhile.
        fs::rename(&aside, &folder).map_err(io_error("put the adapter in place", &folder))
    });
    if let Err(error) = copied {
        files::remove_quietly(&aside);
        return Err(error);
    }
    Ok(entry(&name, &folder))
}

fn copy_adapter(source: &Path, target: &Path) -> Result<()> {
    files::create_dir_all(target)?;
    for name in [CONFIG, WEIGHTS, "lathe.json", "README.md"] {
        let from = source.join(name);
        if from.is_file() {
            files::copy_file(&from, &target.join(name), &mut |_| Ok(()))?;
        }
    }
    Ok(())
}

/// Returns the bytes that came free.
pub(crate) fn remove(paths: &Paths, name: &str) -> Result<u64> {
    let folder = paths.adapters().join(name);
    if !is_name(name) || !folder.is_dir() {
        let path = PathBuf::from(resolve(paths, name)?);
        return Err(usage(format!("Only adapters of the library are removed: {}", path.display()))
            .hint("remove a folder of your own with your file manager"));
    }
    let freed = files::size_below(&folder);
    let aside = files::aside(&folder);
    fs::rename(&folder, &aside).map_err(io_error("remove", &folder))?;
    fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
    Ok(freed)
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
    let (config, problem) = match read(path) {
        Ok(config) => (Some(config), None),
        Err(problem) => (None, Some(problem)),
    };
    let run = provenance.as_ref().map(|provenance| &provenance.run);
    AdapterEntry {
        name: name.to_owned(),
        path: path.display().to_string(),
        base_model: config.as_ref().and_then(|config| config.base_model_name_or_path.clone()),
        r: config.as_ref().map_or(0, |config| config.r),
        alpha: config.as_ref().map_or(0.0, |config| config.lora_alpha),
        targets: config.as_ref().map(|config| words(&config.target_modules)).unwrap_or_default(),
        size_bytes: [CONFIG, WEIGHTS, "lathe.json"]
            .iter()
            .filter_map(|name| fs::metadata(path.join(name)).ok())
            .map(|metadata| metadata.len())
            .sum(),
        created_secs: run.map(|run| run.created_secs),
        run: run.map(|run| run.name.clone()),
        data: run.map(|run| run.data.clone()),
        last_loss: run.and_then(|run| run.last_loss),
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
        if one_rank && rank != Some(&(config.r as u64)) {
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
pub(crate) mod tests {
    use super::*;

    /// A minimal sound adapter of rank 2.
    pub(crate) fn write_adapter(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(
            folder.join(CONFIG),
            r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "q_proj"],
                "base_model_name_or_path": "starter"}"#,
        )
        .unwrap();
        let name = "base_model.model.model.layers.0.self_attn.q_proj";
        write_safetensors(
            &folder.join(WEIGHTS),
            &[(&format!("{name}.lora_A.weight"), &[2, 3]), (&format!("{name}.lora_B.weight"), &[3, 2])],
        );
    }

    pub(crate) fn write_safetensors(path: &Path, tensors: &[(&str, &[u64])]) {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in tensors {
            let begin = end;
            end += shape.iter().product::<u64>() * 4;
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
            header.insert((*name).to_owned(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.resize(bytes.len() + end as usize, 0);
        fs::write(path, bytes).unwrap();
    }

    fn paths(dir: &Path) -> Paths {
        Paths { data_dir: dir.join("data"), hf_cache: dir.join("hub") }
    }

    #[test]
    fn an_adapter_is_imported_found_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(list(&paths).unwrap().is_empty());
        let source = dir.path().join("my adapter!");
        write_adapter(&source);
        fs::write(source.join("optimizer.pt"), "junk").unwrap();

        let first = import(&paths, &source, None).unwrap();
        let second = import(&paths, &source, None).unwrap();
        import(&paths, &source, Some("pirate")).unwrap();
        assert_eq!((first.name.as_str(), second.name.as_str()), ("my-adapter", "my-adapter-2"));
        assert_eq!((first.r, first.targets.as_slice()), (2, &["q_proj".to_owned(), "v_proj".to_owned()][..]));
        assert!(!Path::new(&first.path).join("optimizer.pt").exists());
        assert!(import(&paths, &source, Some("pirate")).unwrap_err().message.contains("already"));
        assert!(import(&paths, &source, Some("../x")).is_err());

        let listed = list(&paths).unwrap();
        assert_eq!(listed.len(), 3);
        assert!(listed.iter().all(|entry| entry.problem.is_none()));
        assert_eq!(resolve(&paths, "pirate").unwrap(), listed[2].path);
        assert_eq!(resolve(&paths, source.to_str().unwrap()).unwrap(), source.to_str().unwrap());
        let error = resolve(&paths, "pirat").unwrap_err();
        assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::NotFound, Some("did you mean pirate?")));

        assert!(remove(&paths, "pirate").unwrap() > 100);
        assert_eq!(list(&paths).unwrap().len(), 2);
        assert!(remove(&paths, source.to_str().unwrap()).is_err());
        assert!(source.exists());
    }

    #[test]
    fn a_broken_adapter_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        let check = |spoil: &dyn Fn(&Path), reason: &str| {
            let source = dir.path().join("a");
            files::remove_quietly(&source);
            write_adapter(&source);
            spoil(&source);
            let error = import(&paths, &source, None).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
            assert!(error.message.ends_with(source.to_str().unwrap()), "{error}");
        };
        check(&|dir| fs::remove_file(dir.join(CONFIG)).unwrap(), "is missing");
        check(&|dir| fs::remove_file(dir.join(WEIGHTS)).unwrap(), "adapter_model.safetensors is missing");
        check(&|dir| fs::write(dir.join(CONFIG), "{").unwrap(), "Not valid JSON");
        check(&|dir| fs::write(dir.join(CONFIG), r#"{"peft_type": "LOHA"}"#).unwrap(), "type LOHA");
        let weights = |tensors: &'static [(&str, &[u64])]| {
            move |dir: &Path| write_safetensors(&dir.join(WEIGHTS), tensors)
        };
        check(&weights(&[("base_model.model.q.lora_A.weight", &[2, 3])]), "only one of");
        check(&weights(&[("base_model.model.q.lora_A.weight", &[4, 3])]), "does not fit r = 2");
        check(&weights(&[("q.lora_A.weight", &[2, 3])]), "does not begin with");
        check(&weights(&[]), "no LoRA tensors");
        check(
            &|dir| {
                let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
                fs::write(dir.join(WEIGHTS), &bytes[..bytes.len() - 1]).unwrap();
            },
            "is truncated",
        );
        assert!(list(&paths).unwrap().is_empty(), "nothing half-imported");
    }
}
