//! The files of a model: on disk, or as far as they were fetched from the Hub.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Cursor, Read, Seek},
    path::Path,
};

use lathe_protocol::{ErrorCode, ErrorInfo};
use serde::de::DeserializeOwned;

use crate::{
    error::{Result, not_found},
    files,
};

pub(crate) enum Contents<'a> {
    Folder(&'a Path),
    /// By name.
    Heads(&'a BTreeMap<String, Head>),
}

/// A file's first bytes: all of a small one, the header of weights.
#[derive(Default)]
pub(crate) struct Head {
    pub size_bytes: u64,
    pub bytes: Vec<u8>,
}

pub(crate) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

impl Contents<'_> {
    /// Sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        match self {
            Self::Folder(folder) => files::names_in(folder),
            Self::Heads(heads) => Ok(heads.keys().cloned().collect()),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).exists(),
            Self::Heads(heads) => heads.contains_key(name),
        }
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        match self {
            Self::Folder(folder) => files::read_maybe_gzip(&folder.join(name)),
            Self::Heads(heads) => {
                let head = heads.get(name).ok_or_else(|| not_found(format!("No such file: {name}")))?;
                files::maybe_gunzip(head.bytes.clone(), name.as_ref())
            }
        }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        if let Self::Folder(folder) = self {
            return files::read_json(&folder.join(name));
        }
        serde_json::from_slice(&self.read(name)?)
            .map_err(|error| ErrorInfo::new(ErrorCode::Model, format!("Not valid JSON: {error}: {name}")))
    }

    /// The file, and how long it is. The error is a sentence about the file.
    pub(crate) fn open(&self, name: &str) -> std::result::Result<(Box<dyn ReadSeek + '_>, u64), String> {
        match self {
            Self::Folder(folder) => {
                let (file, length) = open(&folder.join(name))?;
                Ok((Box::new(file), length))
            }
            Self::Heads(heads) => {
                let head = heads.get(name).ok_or("is missing")?;
                Ok((Box::new(Cursor::new(head.bytes.as_slice())), head.size_bytes))
            }
        }
    }
}

/// A file on disk, and how long it is. The error is a sentence about the file.
pub(super) fn open(path: &Path) -> std::result::Result<(BufReader<File>, u64), String> {
    let file = File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let length = file.metadata().map_err(|error| format!("cannot be read: {error}"))?.len();
    Ok((BufReader::new(file), length))
}
