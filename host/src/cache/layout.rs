//! How names and paths of the cache are read: `models--owner--name/{blobs,refs,snapshots}`.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use lathe_protocol::RepoKind;

/// The name of a repository's folder.
pub(crate) fn folder_of(kind: RepoKind, id: &str) -> String {
    format!("{}s--{}", kind.word(), id.replace('/', "--"))
}

/// Kind and id of a repository by its folder's name.
pub(crate) fn kind_of(folder: &str) -> Option<(RepoKind, String)> {
    let (prefix, id) = folder.split_once("--")?;
    let kind = RepoKind::ALL.into_iter().find(|kind| prefix.strip_suffix('s') == Some(kind.word()))?;
    (!id.is_empty()).then(|| (kind, id.replace("--", "/")))
}

/// Whether it is a hash of so many digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A folder, and no link to one.
pub(super) fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// A file, and no link to one.
pub(super) fn is_real_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

pub(super) fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

/// Without `.` and `..`, links untouched.
pub(super) fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

/// The blob that a file of a snapshot is: where its link points, one step, or the file itself where links are not to be had.
pub(crate) fn blob_of(file: &Path) -> PathBuf {
    match (fs::read_link(file), file.parent()) {
        (Ok(target), Some(folder)) => lexical(&folder.join(target)),
        _ => file.to_path_buf(),
    }
}

/// What lies below a folder, sorted: files, and links, which are not followed. Links to folders are left out.
pub(crate) fn below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if !entry.path().is_dir() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes below a folder, or of a file; links are not followed.
pub(super) fn own_size(path: &Path) -> u64 {
    let size = |path: &Path| {
        fs::symlink_metadata(path)
            .map_or(0, |metadata| if metadata.is_symlink() { 0 } else { metadata.len() })
    };
    if is_real_dir(path) {
        below(path).map_or(0, |files| files.iter().map(|file| size(file)).sum())
    } else {
        size(path)
    }
}
