//! Files written whole or not at all, read as they occur in the wild, and hashed.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use lathe_protocol::{ErrorCode, ErrorInfo};
use serde::{Serialize, de::DeserializeOwned};
use sysinfo::{Pid, ProcessesToUpdate, System};

use crate::error::{Result, io_error};

const COPY_CHUNK_BYTES: usize = 1 << 20;

/// Seconds since 1970.
pub(crate) fn now_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

pub(crate) fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(io_error("create the folder", path))
}

/// Written aside, flushed to the disk, renamed: a reader sees the old file or the new one.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = aside(path);
    let written = File::create(&aside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&aside, path));
    written.map_err(|error| {
        remove_quietly(&aside);
        io_error("write", path)(error)
    })
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| io_error("write", path)(error.into()))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// A name beside `path` that no other process uses.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}", unique_suffix()))
}

/// Whether it is a name that [`aside`] made.
pub(crate) fn is_aside(name: &str) -> bool {
    name.starts_with('.') && maker_of(name).is_some()
}

/// Whether it is a name that [`aside`] made for a process that has ended.
pub(crate) fn is_abandoned(name: &str) -> bool {
    name.starts_with('.') && maker_of(name).is_some_and(|process| !is_alive(process))
}

fn maker_of(name: &str) -> Option<u32> {
    let (_, suffix) = name.rsplit_once(".tmp-")?;
    suffix.split_once('-')?.0.parse().ok()
}

/// Also if it cannot be told.
fn is_alive(process: u32) -> bool {
    let process = Pid::from_u32(process);
    System::new().map_or(true, |mut system| {
        system.refresh_processes(ProcessesToUpdate::Some(&[process]), true);
        system.process(process).is_some()
    })
}

/// Differs between processes, threads and calls.
pub(crate) fn unique_suffix() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.subsec_nanos());
    format!("tmp-{}-{count}-{nanos:08x}", std::process::id())
}

/// Removes a leftover; that it could not be removed matters to nobody.
pub(crate) fn remove_quietly(path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    drop(removed);
}

/// The bytes of a file, decompressed if it is gzip under a plain name (magic `1f 8b`), as some mirrors serve JSON.
pub(crate) fn read_maybe_gzip(path: &Path) -> Result<Vec<u8>> {
    maybe_gunzip(fs::read(path).map_err(io_error("read", path))?, path)
}

pub(crate) fn maybe_gunzip(bytes: Vec<u8>, path: &Path) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice())
        .read_to_end(&mut plain)
        .map_err(io_error("decompress", path))?;
    Ok(plain)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read_maybe_gzip(path)?).map_err(|error| {
        ErrorInfo::new(ErrorCode::Model, format!("Not valid JSON: {error}: {}", path.display()))
    })
}

/// Copies a file in pieces and flushes it to the disk; `each` sees every piece and may end the copy.
pub(crate) fn copy_file(from: &Path, to: &Path, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut reader = File::open(from).map_err(io_error("read", from))?;
    let mut writer = File::create(to).map_err(io_error("write", to))?;
    read_pieces(&mut reader, from, &mut |piece| {
        writer.write_all(piece).map_err(io_error("write", to))?;
        each(piece)
    })?;
    writer.sync_all().map_err(io_error("write", to))
}

pub(crate) fn read_pieces(
    reader: &mut File,
    path: &Path,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut piece = vec![0; COPY_CHUNK_BYTES];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&piece[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read", path)(error)),
        }
    }
}

/// Whether a process holds the lock.
pub(crate) fn is_locked(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Makes `link` mean `blob`, by the path that leads there from the link's own folder.
#[cfg(unix)]
pub(crate) fn link(_blob: &Path, relative: &Path, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(relative, link).map_err(io_error("link", link))
}

/// Symlinks need a privilege on Windows; `huggingface_hub` copies there too.
#[cfg(not(unix))]
pub(crate) fn link(blob: &Path, _relative: &Path, link: &Path) -> Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop)).map_err(io_error("copy", link))
}

/// The files below `folder`, symlinks followed, each with its size; hidden ones too.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error("read the folder", &folder))? {
            let path = entry.map_err(io_error("read the folder", &folder))?.path();
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                Ok(metadata) => files.push((path, metadata.len())),
                // A dangling symlink: whoever needs the file says so.
                Err(_) => files.push((path, 0)),
            }
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn size_below(folder: &Path) -> u64 {
    files_below(folder).map_or(0, |files| files.iter().map(|(_, size)| size).sum())
}

/// The names in a folder, sorted; none if there is no such folder.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read the folder", folder)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read the folder", folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
