//! A data file's store, found in the cache or made.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use lathe_protocol::{ErrorCode, EventBody, LogLevel};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Store, Writer};
use crate::{
    Error, Result,
    data::{Dataset, RawRow, RowReader},
    files,
    prepare::Encoder,
    text_files::TextFiles,
};

/// Raised whenever the same file and template come to other tokens, or a store's files to another form.
const FORMAT: u32 = 1;
/// Read, encoded and written at a time.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 4 << 20;
/// Its time is when the store was last used; whoever prunes the cache looks at it.
const USED: &str = "used";

/// What reading data needs of the world.
pub struct Reading<'a> {
    /// Folder of the stores.
    pub cache: &'a Path,
    /// Once set, reading ends with [`Error::Stopped`].
    pub stop: &'a AtomicBool,
    pub emit: &'a mut dyn FnMut(EventBody),
}

impl Reading<'_> {
    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// The store of a file as `text_files` writes it: the cache's, if that is sound, or a new one, made on all of rayon's
/// threads. `first_row` is the number of its first row, for errors.
///
/// Errors: the first row, in order, that cannot be read or rendered; stopped.
pub fn open_or_build(
    text_files: &TextFiles,
    dataset: &Dataset,
    first_row: usize,
    reading: &mut Reading<'_>,
) -> Result<Store> {
    let name = dataset.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (reading.emit)(EventBody::Progress { what: format!("Reading {name}"), done: 0, total: 0 });
    reading.check_stop()?;
    let changed = || std::fs::metadata(&dataset.path).and_then(|file| Ok((file.len(), file.modified()?)));
    let before = changed().map_err(Error::io("read", &dataset.path))?;
    let key = key(text_files, dataset)?;
    let folder = reading.cache.join(&key);
    if folder.exists() {
        match Store::open(&folder) {
            Ok(store) => {
                files::write_atomically(&folder.join(USED), b"1")?;
                return Ok(store);
            }
            Err(error) => {
                let message = format!("The tokens kept of {name} are made anew: {error}");
                (reading.emit)(EventBody::Log { level: LogLevel::Warn, message });
                std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
            }
        }
    }
    let aside = create_aside(reading.cache, &key)?;
    let built = build(text_files, dataset, first_row, &name, &aside, reading).and_then(|()| {
        let after = changed().map_err(Error::io("read", &dataset.path))?;
        if after == before {
            return files::write_atomically(&aside.join(USED), b"1");
        }
        let message = format!("The data file changed while it was read: {}", dataset.path.display());
        Err(Error::data(message).hint("try again once it is written"))
    });
    if let Err(error) = built {
        // The error that matters is the one just met.
        std::fs::remove_dir_all(&aside).ok();
        return Err(error);
    }
    if std::fs::rename(&aside, &folder).is_err() {
        // Another process was quicker, or holds the folder: its store is as good.
        std::fs::remove_dir_all(&aside).ok();
    }
    Store::open(&folder)
}

/// A folder that no other process writes to.
fn create_aside(cache: &Path, key: &str) -> Result<PathBuf> {
    files::create_dir_all(cache)?;
    let mut number = 0;
    loop {
        let folder = cache.join(format!("{key}.{number}.partial"));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(Error::io("create the folder", folder)(error)),
        }
    }
}

/// What decides a file's tokens: its bytes, the tokenizer, the template and all else that is written around a text.
fn key(text_files: &TextFiles, dataset: &Dataset) -> Result<String> {
    let tokenizer = text_files.tokenizer.to_string(false).map_err(|error| {
        Error::invalid(ErrorCode::Internal, format!("The tokenizer cannot be written: {error}"))
    })?;
    let parts = json!({
        "format": FORMAT,
        "lathe": env!("CARGO_PKG_VERSION"),
        "data": files::hash_file(&dataset.path)?,
        "kind": dataset.path.extension().map(|extension| extension.to_string_lossy()),
        "shape": dataset.shape,
        "columns": dataset.mapping(),
        "tokenizer": files::hex(&Sha256::digest(tokenizer)),
        "template": text_files.chat_template().fingerprint,
        "end": text_files.eos.as_ref().map(|eos| &eos.text),
        "frame": [&text_files.prefix_ids, &text_files.suffix_ids],
        "styles": text_files.styles.iter().map(|style| (&style.name, &style.token)).collect::<Vec<_>>(),
    });
    Ok(files::hex(&Sha256::digest(parts.to_string())))
}

fn build(
    text_files: &TextFiles,
    dataset: &Dataset,
    first_row: usize,
    name: &str,
    folder: &Path,
    reading: &mut Reading<'_>,
) -> Result<()> {
    let encoder = Encoder::new(text_files, dataset);
    let encode = |row: RawRow| encoder.encode(&dataset.parse(row)?);
    let mut writer = Writer::create(folder)?;
    let mut reader = RowReader::open(&dataset.path, first_row)?;
    let mut chunk = reader.chunk(CHUNK_ROWS, CHUNK_BYTES);
    loop {
        let rows = match chunk {
            Ok(rows) if rows.is_empty() => break,
            Ok(rows) => rows,
            Err(error) => return Err(error),
        };
        reading.check_stop()?;
        // The next rows are read while these are encoded.
        let (encoded, next) = rayon::join(
            || rows.into_par_iter().map(encode).collect::<Vec<_>>(),
            || reader.chunk(CHUNK_ROWS, CHUNK_BYTES),
        );
        for row in encoded {
            writer.push(row?)?;
        }
        chunk = next;
        let (done, total) = reader.progress();
        let what = format!("Tokenising {name}: {} rows", writer.num_rows);
        (reading.emit)(EventBody::Progress { what, done, total });
    }
    writer.finish()
}
