use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody};
use sha2::{Digest as _, Sha256};

use super::{
    check::{self, Depth, file_name, is_gguf},
    entry, hub,
};
use crate::{
    error::{Result, io_error, not_found, usage},
    files, hardware,
    job::Job,
    paths::absolute,
};

const DEFAULT_OWNER: &str = "local";

/// Copies a model folder or `.gguf` file into the cache; afterwards it is there whole, or not at all.
pub(crate) fn import(job: &Job, path: &str, name: Option<&str>) -> Result<()> {
    let source = absolute(path.as_ref());
    if !source.exists() {
        return Err(not_found(format!("No such model folder or file: {}", source.display())));
    }
    if source.is_file() && !is_gguf(&source) {
        return Err(ErrorInfo::new(
            ErrorCode::Model,
            format!("Not a model: neither a folder nor a .gguf file: {}", source.display()),
        ));
    }
    if let Some(problem) = check::inspect(&source, Depth::Full).first_problem() {
        let message = format!("Not a usable model: {problem}: {}", source.display());
        return Err(ErrorInfo::new(ErrorCode::Model, message).hint("get the file again from where it came"));
    }
    let id = match name {
        Some(name) => checked_id(name)?,
        None => format!("{DEFAULT_OWNER}/{}", clean_name(&source)),
    };
    let sources = source_files(&source)?;
    let total: u64 = sources.iter().map(|(_, _, size)| size).sum();

    let cache = &job.host.paths().hf_cache;
    files::create_dir_all(cache)?;
    hardware::check_room(cache, total, "The model", hardware::HAVE_CACHE_ELSEWHERE)?;
    let repo = cache.join(hub::repo_folder(&id));
    let aside = files::aside(&repo);
    let imported = lay_out(job, &sources, total, &id, &aside).and_then(|revision| {
        let snapshot = repo.join("snapshots").join(&revision);
        // The same files under the same name are there already: nothing to do.
        if !snapshot.is_dir() {
            if repo.exists() {
                return Err(ErrorInfo::new(
                    ErrorCode::Usage,
                    format!("A different model named {id} is there already: {}", repo.display()),
                )
                .hint(format!("choose another with --name, or `lathe models rm {id}` first")));
            }
            fs::rename(&aside, &repo).map_err(io_error("put the model in place", &repo))?;
        }
        Ok((revision, snapshot))
    });
    if aside.exists() {
        files::remove_quietly(&aside);
    }
    let (revision, snapshot) = imported?;
    job.emit(EventBody::Models { models: vec![entry(id, Some(revision), &snapshot)] });
    Ok(())
}

/// Name, path and size of what belongs to a model; leftovers of trainers and downloaders stay behind.
fn source_files(source: &Path) -> Result<Vec<(String, PathBuf, u64)>> {
    let size =
        |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).map_err(io_error("read", path));
    if source.is_file() {
        return Ok(vec![(file_name(source), source.to_path_buf(), size(source)?)]);
    }
    let mut sources = Vec::new();
    for name in files::names_in(source)? {
        let path = source.join(&name);
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let belongs = matches!(extension, "json" | "safetensors" | "jinja" | "txt" | "model" | "md" | "gguf")
            || ["LICENSE", "LICENCE", "NOTICE"].contains(&name.as_str());
        if belongs && !name.starts_with('.') && path.is_file() {
            sources.push((name, path.clone(), size(&path)?));
        }
    }
    Ok(sources)
}

/// Builds the repo's folder in `repo`. Returns the revision, which follows from the contents.
fn lay_out(
    job: &Job,
    sources: &[(String, PathBuf, u64)],
    total: u64,
    id: &str,
    repo: &Path,
) -> Result<String> {
    let blobs = repo.join("blobs");
    files::create_dir_all(&blobs)?;
    let mut progress = job.progress(format!("Importing {id}"), total);
    let mut blob_of: BTreeMap<&str, String> = BTreeMap::new();
    for (name, path, _) in sources {
        let partial = blobs.join(format!("{name}.incomplete"));
        let mut hasher = Sha256::new();
        files::copy_file(path, &partial, &mut |piece| {
            hasher.update(piece);
            progress.advance(piece.len() as u64)
        })?;
        let blob = files::hex(&hasher.finalize());
        fs::rename(&partial, blobs.join(&blob)).map_err(io_error("write", &partial))?;
        blob_of.insert(name, blob);
    }
    let mut hasher = Sha256::new();
    for (name, blob) in &blob_of {
        hasher.update(format!("{name}\0{blob}\n"));
    }
    let revision = files::hex(&hasher.finalize())[..40].to_owned();
    let snapshot = repo.join("snapshots").join(&revision);
    files::create_dir_all(&snapshot)?;
    for (name, blob) in &blob_of {
        files::link(&blobs.join(blob), &Path::new("../../blobs").join(blob), &snapshot.join(name))?;
    }
    files::create_dir_all(&repo.join("refs"))?;
    files::write_atomic(&repo.join("refs").join("main"), revision.as_bytes())?;
    Ok(revision)
}

/// `owner/name`, or `name` for `local/name`.
fn checked_id(name: &str) -> Result<String> {
    let id = if name.contains('/') { name.to_owned() } else { format!("{DEFAULT_OWNER}/{name}") };
    let sound = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.contains("--")
            && !part.contains("..")
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    match id.split('/').collect::<Vec<_>>().as_slice() {
        [owner, name] if sound(owner) && sound(name) => Ok(id),
        _ => Err(usage(format!("{name:?} cannot be a model's name"))
            .hint("write owner/name with letters, digits, and single -, _ or .")),
    }
}

fn clean_name(path: &Path) -> String {
    let stem = if path.is_file() { path.file_stem() } else { path.file_name() };
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut name = String::new();
    for c in stem.chars() {
        let c = if c.is_ascii_alphanumeric() || "_.".contains(c) { c } else { '-' };
        if !(c != '_' && !c.is_ascii_alphanumeric() && name.ends_with(['-', '.'])) {
            name.push(c);
        }
    }
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "model".into() } else { name.chars().take(90).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_hubs_rules() {
        assert_eq!(checked_id("Qwen3").unwrap(), "local/Qwen3");
        assert_eq!(checked_id("me/My_model-1.5").unwrap(), "me/My_model-1.5");
        for bad in ["", "a/b/c", "/x", "x/", "a--b", "../x", "a b", "-x", "a/.."] {
            assert!(checked_id(bad).is_err(), "{bad:?}");
        }
        for (path, name) in
            [("/a/My model (2)", "My-model-2"), ("/a/x--y", "x-y"), ("/", "model"), ("/a/v1..2", "v1.2")]
        {
            assert_eq!(clean_name(path.as_ref()), name);
        }
    }
}
