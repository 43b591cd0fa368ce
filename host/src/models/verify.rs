use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use lathe_protocol::{EventBody, ModelFile, ModelProblem, RepoKind};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::{
    Resolved,
    check::{self, Depth, file_name},
    model_files, resolve, starter,
};
use crate::{
    Paths, cache,
    error::{Result, io_error},
    files,
    job::{Job, Progress},
};

/// Hashes every file whose right hash is known, and checks the structure of the rest.
///
/// Also a revision (`owner/name@COMMIT`, or a branch), and what is no model (`dataset/owner/name`).
pub(crate) fn verify(job: &Job, name: &str) -> Result<()> {
    let paths = job.host.paths();
    let Named { label, path, is_cached, is_model } = Named::find(paths, name)?;
    let listed = if is_cached && path.is_dir() { cached_files(&path)? } else { model_files(&path) };
    let folder = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
    let total: u64 = listed.iter().map(|file| file.size_bytes).sum();
    let mut progress = job.progress(format!("Verifying {label}"), total);
    let mut problems = if is_model { check::inspect(&path, Depth::Full).problems } else { Vec::new() };
    let mut blamed: BTreeSet<String> = problems.iter().map(|problem| problem.file.clone()).collect();
    for file in &listed {
        let path = folder.join(&file.name);
        let problem = if !path.exists() {
            Some("points to a blob that is gone")
        } else if label == starter::NAME {
            damage(matches_starter(&path, &file.name, &mut progress)?)
        } else if is_cached {
            damage(matches_blob(&path, &mut progress)?)
        } else {
            progress.advance(file.size_bytes)?;
            None
        };
        if let Some(problem) = problem
            && blamed.insert(file.name.clone())
        {
            problems.push(ModelProblem { file: file.name.clone(), problem: problem.into() });
        }
    }
    job.emit(EventBody::ModelProblems { problems, files_checked: listed.len(), bytes_checked: total });
    Ok(())
}

fn damage(is_sound: bool) -> Option<&'static str> {
    (!is_sound).then_some("has other contents than its checksum says: it is damaged")
}

/// What is to be verified.
struct Named {
    label: String,
    path: PathBuf,
    /// Whether its files are blobs of the cache, which have their hashes for names.
    is_cached: bool,
    is_model: bool,
}

impl Named {
    fn find(paths: &Paths, name: &str) -> Result<Self> {
        let found = resolve(paths, name);
        let (id, revision) = name.split_once('@').map_or((name, None), |(id, revision)| (id, Some(revision)));
        let prefixed = id
            .split_once('/')
            .and_then(|(word, id)| Some((RepoKind::ALL.into_iter().find(|kind| kind.word() == word)?, id)));
        let (kind, id) = prefixed.unwrap_or((RepoKind::Model, id));
        let is_of_cache = found.is_err()
            && (revision.is_some() || prefixed.is_some())
            && paths.hf_cache.join(cache::folder_of(kind, id)).exists();
        if is_of_cache {
            let path = cache::snapshot(&paths.hf_cache, kind, id, revision)?;
            return Ok(Self { label: name.into(), path, is_cached: true, is_model: kind == RepoKind::Model });
        }
        let Resolved { name, path, repo } = found?;
        let is_cached = repo.is_some() || path.starts_with(&paths.hf_cache);
        Ok(Self { label: name, path, is_cached, is_model: true })
    }
}

/// With those in folders, and links to what is gone.
fn cached_files(snapshot: &Path) -> Result<Vec<ModelFile>> {
    let files = cache::below(snapshot).map_err(io_error("read the folder", snapshot))?;
    Ok(files
        .into_iter()
        .map(|path| ModelFile {
            name: path.strip_prefix(snapshot).unwrap_or(&path).display().to_string(),
            size_bytes: fs::metadata(&path).map_or(0, |metadata| metadata.len()),
        })
        .collect())
}

/// Whether a blob of the cache holds what its name says: SHA-256 (64 digits), git's SHA-1 (40), or MD5 (32).
fn matches_blob(path: &Path, progress: &mut Progress<'_>) -> Result<bool> {
    // Its own blob: that may be a link to what other repositories share, whose name is a hash of another kind.
    let blob = cache::blob_of(path);
    let name = file_name(&blob);
    let is_hex = name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let mut file = File::open(&blob).map_err(io_error("read", &blob))?;
    let length = file.metadata().map_err(io_error("read", &blob))?.len();
    match name.len() {
        64 if is_hex => {
            let mut hasher = Sha256::new();
            files::read_pieces(&mut file, &blob, &mut |piece| {
                hasher.update(piece);
                progress.advance(piece.len() as u64)
            })?;
            Ok(files::hex(&hasher.finalize()) == name)
        }
        // Of an S3 bucket.
        32 if is_hex => {
            let mut hasher = Md5::new();
            files::read_pieces(&mut file, &blob, &mut |piece| {
                hasher.update(piece);
                progress.advance(piece.len() as u64)
            })?;
            Ok(files::hex(&hasher.finalize()) == name)
        }
        40 if is_hex => {
            let mut hasher = Sha1::new();
            hasher.update(format!("blob {length}\0"));
            files::read_pieces(&mut file, &blob, &mut |piece| {
                hasher.update(piece);
                progress.advance(piece.len() as u64)
            })?;
            Ok(files::hex(&hasher.finalize()) == name)
        }
        _ => progress.advance(length).map(|()| true),
    }
}

fn matches_starter(path: &Path, name: &str, progress: &mut Progress<'_>) -> Result<bool> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    progress.advance(bytes.len() as u64)?;
    Ok(starter::FILES.iter().find(|(known, _)| *known == name).is_none_or(|(_, known)| bytes == *known))
}
