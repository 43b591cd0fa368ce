//! Models on disk: found by name, listed, imported, verified, removed.

pub(crate) mod check;
pub(crate) mod contents;
pub(crate) mod gguf;
pub(crate) mod hub;
mod import;
pub(crate) mod safetensors;
pub(crate) mod starter;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use lathe_protocol::{
    CacheTarget, ErrorCode, ErrorInfo, EventBody, Job as WorkerJob, ModelEntry, ModelFile, ModelShape,
    RepoKind,
};

use check::{Depth, is_gguf};
pub(crate) use check::{file_name, is_gguf as is_gguf_path};
pub(crate) use import::import;
pub(crate) use verify::verify;

use crate::{
    Paths, cache,
    error::{Result, did_you_mean, near, not_found},
    files,
    hub::{Named, pick_gguf, quant_of},
    job::Job,
    paths::absolute,
    s3,
    worker::{self, Beat, Verdict},
};

/// Says that the model that lies there is used, until the result is dropped; nobody removes or moves it meanwhile.
pub(crate) fn hold(paths: &Paths, path: &Path) -> Option<File> {
    let bucket = || Some(s3::Named::of_path(paths, path)?.home(paths));
    cache::use_model(&paths.hf_cache, path).or_else(|| cache::use_model(&bucket()?, path))
}

/// A model that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Means the same model from any folder: `starter`, a Hub id, or a full path.
    pub name: String,
    /// A folder or a `.gguf` file.
    pub path: PathBuf,
    /// The cache's folder of the repo it belongs to.
    pub repo: Option<PathBuf>,
}

impl Resolved {
    pub(crate) fn path_string(&self) -> String {
        self.path.display().to_string()
    }
}

/// Finds a model: `starter`, `s3://…`, a folder or `.gguf` file, a Hub id in the cache, or the short name of exactly one.
pub(crate) fn resolve(paths: &Paths, name: &str) -> Result<Resolved> {
    if name == starter::NAME {
        return Ok(Resolved { name: name.into(), path: starter::folder(paths)?, repo: None });
    }
    if s3::is_name(name) {
        let named = s3::Named::parse(name)?;
        let path = model_in(&s3::snapshot(paths, &named)?, &named.text())?;
        return Ok(Resolved { name: named.text(), path, repo: Some(named.repo(paths)) });
    }
    let path = absolute(name.as_ref());
    if !name.is_empty() && path.exists() {
        let path = model_in(&path, name)?;
        return Ok(Resolved { name: path.display().to_string(), path, repo: None });
    }
    let repos = hub::repos(&paths.hf_cache)?;
    let (id, gguf) = match Named::parse(name) {
        Ok(Named { id, gguf: Some(gguf) }) => (id, Some(gguf)),
        _ => (name.to_owned(), None),
    };
    let matching = |test: &dyn Fn(&str) -> bool| -> Vec<&hub::Repo> {
        repos.iter().filter(|repo| test(&repo.id)).collect()
    };
    let lower = id.to_lowercase();
    let short = |id: &str| id.rsplit('/').next().unwrap_or(id).to_lowercase();
    let mut found = matching(&|known| known == id);
    if found.is_empty() {
        found = matching(&|known| known.to_lowercase() == lower);
    }
    if found.is_empty() {
        found = matching(&|known| short(known) == lower);
    }
    match found.as_slice() {
        [repo] => {
            let snapshot = repo.main()?.ok_or_else(|| {
                ErrorInfo::new(
                    ErrorCode::Model,
                    format!("Nothing of this model is on disk: {}", repo.dir.display()),
                )
                .hint(format!("it was downloaded in part; `lathe models pull {}` gets the rest", repo.id))
            })?;
            let named = Named { id: repo.id.clone(), gguf };
            let path = repo_model_in(&snapshot.path, &named)?;
            Ok(Resolved { name: named.text(), path, repo: Some(repo.dir.clone()) })
        }
        [] => Err(unknown(name, &path, &repos)),
        several => {
            let ids: Vec<&str> = several.iter().map(|repo| repo.id.as_str()).collect();
            Err(ErrorInfo::new(ErrorCode::NotFound, format!("{name:?} could be several models"))
                .hint(format!("write the whole name: {}", ids.join(" or "))))
        }
    }
}

fn unknown(name: &str, path: &Path, repos: &[hub::Repo]) -> ErrorInfo {
    let looks_like_path = name.starts_with(['.', '/', '~', '\\']) || is_gguf(name.as_ref());
    if looks_like_path {
        return not_found(format!("No such model folder or file: {}", path.display()))
            .hint("check the path; `lathe models list` shows the models on disk");
    }
    let names = repos.iter().map(|repo| repo.id.as_str()).chain([starter::NAME]);
    let otherwise = match Named::parse(name) {
        Ok(named) => format!("`lathe models pull {}` downloads it from the Hub", named.text()),
        Err(_) => "`lathe models list` shows the models on disk, `lathe models search` those of the Hub; `lathe models \
                   import PATH` adds a folder or .gguf file"
            .into(),
    };
    not_found(format!("No model named {name:?} on this machine"))
        .hint(did_you_mean(&near(name, names), &otherwise))
}

/// The model of a repository's snapshot: the GGUF that was named, or what there is.
fn repo_model_in(snapshot: &Path, named: &Named) -> Result<PathBuf> {
    let ggufs = ggufs_below(snapshot)?;
    let names: Vec<&str> = ggufs.iter().map(String::as_str).collect();
    match (&named.gguf, names.as_slice()) {
        (Some(choice), _) => pick_gguf(&names, choice).map(|file| snapshot.join(file)).ok_or_else(|| {
            not_found(format!("No GGUF file {choice} of this model on disk: {}", snapshot.display()))
                .hint(format!("`lathe models pull {}` downloads it", named.text()))
        }),
        (None, [first, _, ..]) if !snapshot.join("config.json").exists() => {
            let message = format!("{} holds {} .gguf files: {}", named.id, names.len(), snapshot.display());
            let one = Named { gguf: quant_of(first).or_else(|| Some((*first).to_owned())), ..named.clone() };
            Err(ErrorInfo::new(ErrorCode::Model, message).hint(format!("name one, e.g. {}", one.text())))
        }
        (None, [one]) if !snapshot.join("config.json").exists() => Ok(snapshot.join(one)),
        _ => model_in(snapshot, &named.id),
    }
}

/// By their names in the folder, sorted.
fn ggufs_below(folder: &Path) -> Result<Vec<String>> {
    let below = files::files_below(folder)?.into_iter().filter(|(path, _)| is_gguf(path));
    let name = |path: PathBuf| Some(path.strip_prefix(folder).ok()?.to_str()?.replace('\\', "/"));
    Ok(below.filter_map(|(path, _)| name(path)).collect())
}

/// The model in a folder: itself, or the one `.gguf` file in it.
fn model_in(path: &Path, name: &str) -> Result<PathBuf> {
    let unusable = |message: String| ErrorInfo::new(ErrorCode::Model, message);
    if path.is_file() {
        return if is_gguf(path) {
            Ok(path.to_path_buf())
        } else {
            Err(unusable(format!("Not a model: neither a folder nor a .gguf file: {}", path.display())))
        };
    }
    if path.join("config.json").exists() {
        return Ok(path.to_path_buf());
    }
    let mut ggufs: Vec<String> = files::names_in(path)?;
    ggufs.retain(|name| is_gguf(name.as_ref()));
    match ggufs.as_slice() {
        [one] => Ok(path.join(one)),
        [] if path.join("adapter_config.json").exists() => {
            Err(unusable(format!("This is an adapter, not a model: {}", path.display()))
                .hint("name its base with --model and this folder with --adapter"))
        }
        [] => Err(unusable(format!("Not a model folder: it has no config.json: {}", path.display()))
            .hint("a model folder holds config.json, tokenizer.json and *.safetensors")),
        several => Err(unusable(format!("{name} holds {} .gguf files: {}", several.len(), path.display()))
            .hint(format!("name one by its path, e.g. {}", path.join(&several[0]).display()))),
    }
}

/// The starter, then everything in the cache.
pub(crate) fn list(paths: &Paths) -> Result<Vec<ModelEntry>> {
    let mut models = Vec::new();
    if starter::is_built_in() {
        let folder = starter::folder(paths)?;
        models.push(entry(starter::NAME.into(), None, &folder));
    }
    for repo in hub::repos(&paths.hf_cache)? {
        for snapshot in repo.snapshots()? {
            let ggufs = ggufs_below(&snapshot.path)?;
            let has_config = snapshot.path.join("config.json").exists();
            if has_config || ggufs.len() < 2 {
                let name =
                    if snapshot.is_main { repo.id.clone() } else { snapshot.path.display().to_string() };
                models.push(entry(name, Some(snapshot.revision.clone()), &snapshot.path));
            }
            if has_config || ggufs.len() > 1 {
                models.extend(ggufs.into_iter().map(|file| {
                    let path = snapshot.path.join(&file);
                    let named = Named { gguf: Some(quant_of(&file).unwrap_or(file)), id: repo.id.clone() };
                    let name = if snapshot.is_main { named.text() } else { path.display().to_string() };
                    entry(name, Some(snapshot.revision.clone()), &path)
                }));
            }
        }
    }
    models.extend(s3::list(paths)?);
    Ok(models)
}

pub(crate) fn entry(name: String, revision: Option<String>, path: &Path) -> ModelEntry {
    let findings = check::inspect(path, Depth::Headers);
    ModelEntry {
        name,
        problem: findings.first_problem(),
        license: findings.license,
        shape: findings.shape,
        architecture: findings.architecture,
        parameters: findings.parameters,
        size_bytes: if path.is_file() { file_size(path) } else { hub::distinct_size(path) },
        revision,
        path: path.display().to_string(),
    }
}

/// Of a model on disk; none if its files do not tell.
pub(crate) fn shape(path: &Path) -> Option<ModelShape> {
    check::inspect(path, Depth::Headers).shape
}

/// A worker reads the model's own description; names and files are filled in here.
pub(crate) fn show(job: &mut Job, name: &str) -> Result<()> {
    let model = resolve(job.host.paths(), name)?;
    let work = WorkerJob::DescribeModel { model: model.path_string() };
    let grace = job.host.options.stop_grace;
    worker::run(job, work, grace, &mut |_, beat| {
        if let Beat::Event(EventBody::ModelDetails(details)) = beat {
            details.name.clone_from(&model.name);
            details.path = model.path_string();
            details.files = model_files(&model.path);
            details.size_bytes = details.files.iter().map(|file| file.size_bytes).sum();
        }
        Verdict::Continue
    })
}

fn file_size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn model_files(path: &Path) -> Vec<ModelFile> {
    if path.is_file() {
        return vec![ModelFile { name: file_name(path), size_bytes: file_size(path) }];
    }
    let names = files::names_in(path).unwrap_or_default();
    names
        .into_iter()
        .filter(|name| path.join(name).is_file())
        .map(|name| ModelFile { size_bytes: file_size(&path.join(&name)), name })
        .collect()
}

/// Removes a repo from the cache, blobs and all. Folders of the user's own are never touched.
pub(crate) fn remove(job: &Job, name: &str) -> Result<()> {
    let paths = job.host.paths();
    if name == starter::NAME {
        return Err(ErrorInfo::new(
            ErrorCode::Usage,
            "The starter model is part of Lathe and cannot be removed",
        ));
    }
    if s3::is_name(name) {
        return s3::remove(job, name);
    }
    let repos = hub::repos(&paths.hf_cache)?;
    // A repo that holds nothing usable can be removed by its whole name.
    let id = if repos.iter().any(|repo| repo.id == name) {
        name.to_owned()
    } else {
        let dir = resolve(paths, name)?.repo;
        let repo = repos.iter().find(|repo| Some(&repo.dir) == dir.as_ref());
        repo.map(|repo| repo.id.clone()).ok_or_else(|| {
            let path = absolute(name.as_ref());
            ErrorInfo::new(
                ErrorCode::Usage,
                format!("Only models in the Hugging Face cache are removed: {}", path.display()),
            )
            .hint("remove a folder of your own with your file manager")
        })?
    };
    cache::delete(job, &[CacheTarget::Repo { kind: RepoKind::Model, id }])
}
