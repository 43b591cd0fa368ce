use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
};

use lathe_protocol::{EventBody, ModelProblem};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::{
    check::{self, Depth, file_name},
    model_files, resolve, starter,
};
use crate::{
    error::{Result, io_error},
    files,
    job::{Job, Progress},
};

/// Hashes every file whose right hash is known, and checks the structure of the rest.
pub(crate) fn verify(job: &Job, name: &str) -> Result<()> {
    let model = resolve(job.host.paths(), name)?;
    let listed = model_files(&model.path);
    let folder =
        if model.path.is_dir() { model.path.as_path() } else { model.path.parent().unwrap_or(&model.path) };
    let total: u64 = listed.iter().map(|file| file.size_bytes).sum();
    let mut progress = job.progress(format!("Verifying {}", model.name), total);
    let mut problems = check::inspect(&model.path, Depth::Full).problems;
    let mut blamed: BTreeSet<String> = problems.iter().map(|problem| problem.file.clone()).collect();
    for file in &listed {
        let path = folder.join(&file.name);
        let sound = if model.name == starter::NAME {
            matches_starter(&path, &file.name, &mut progress)?
        } else if model.repo.is_some() {
            matches_blob(&path, &mut progress)?
        } else {
            progress.advance(file.size_bytes)?;
            true
        };
        if !sound && blamed.insert(file.name.clone()) {
            let problem = "has other contents than its checksum says: it is damaged".to_owned();
            problems.push(ModelProblem { file: file.name.clone(), problem });
        }
    }
    // Links to blobs that are gone; inspect sees only those it needs.
    if model.path.is_dir() {
        for name in files::names_in(&model.path)? {
            if !model.path.join(&name).exists() && blamed.insert(name.clone()) {
                problems.push(ModelProblem { file: name, problem: "points to a blob that is gone".into() });
            }
        }
    }
    job.emit(EventBody::ModelProblems { problems, files_checked: listed.len(), bytes_checked: total });
    Ok(())
}

/// Whether a blob of the cache holds what its name says: SHA-256 (64 digits), or git's SHA-1 (40).
fn matches_blob(path: &Path, progress: &mut Progress<'_>) -> Result<bool> {
    let blob = path.canonicalize().map_err(io_error("read", path))?;
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
