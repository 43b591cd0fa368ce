//! Files fetched from elsewhere into a repository of the Hugging Face cache: resumed, verified, whole or not at all.
//!
//! Blobs, links, locks and the names of partial files are those of `huggingface_hub`, which may be at work on the same
//! repository. Where the files come from is the caller's: it opens them.

mod blob;
mod meter;

use std::{
    cell::RefCell,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use lathe_protocol::{ErrorCode, ErrorInfo};

pub(crate) use blob::{discard_partial, partial_of};
pub(crate) use meter::Meter;

use crate::{
    error::{Result, usage},
    files, hardware,
    net::{NetOptions, Trouble},
};

/// Files at a time.
const PARALLEL: usize = 4;

/// A file as its server describes it.
#[derive(Debug, Clone)]
pub(crate) struct RemoteFile {
    /// In the repository, with its folders.
    pub name: String,
    pub size_bytes: u64,
    pub checksum: Checksum,
}

/// What a file's contents must hash to, in lower hexadecimals; its blob is called so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256(String),
    /// Git's SHA-1 of a blob.
    Git(String),
    Md5(String),
    /// Of what the server calls this version of the file: it tells nothing of the contents. SHA-224.
    Version(String),
}

impl Checksum {
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Git(hex) | Self::Md5(hex) | Self::Version(hex) => hex,
        }
    }
}

/// Where in the cache files belong.
pub(crate) struct Target {
    /// The repository's folder.
    pub repo: PathBuf,
    /// The folder of its locks.
    pub locks: PathBuf,
    pub commit: String,
    /// The branch or tag that means the commit once all is there.
    pub reference: Option<String>,
}

impl Target {
    pub(crate) fn new(cache: &Path, folder: &str, commit: &str, reference: Option<&str>) -> Self {
        Self {
            repo: cache.join(folder),
            locks: cache.join(".locks").join(folder),
            commit: commit.to_owned(),
            reference: reference.map(str::to_owned),
        }
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.repo.join("snapshots").join(&self.commit)
    }

    pub(crate) fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.repo.join("blobs").join(file.checksum.hex())
    }

    /// Whether it is whole in the cache.
    pub(crate) fn has(&self, file: &RemoteFile) -> bool {
        std::fs::metadata(self.blob(file)).is_ok_and(|found| found.len() == file.size_bytes)
    }

    /// Bytes of the file that are here, whole or in part.
    pub(crate) fn here(&self, file: &RemoteFile) -> u64 {
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
        if self.has(file) {
            file.size_bytes
        } else {
            length(&partial_of(&self.blob(file))).min(file.size_bytes)
        }
    }
}

/// A file's bytes on their way.
pub(crate) struct Opened {
    /// Where in the file they begin: what was asked for, or 0.
    pub from: u64,
    pub pieces: Pin<Box<dyn Stream<Item = std::result::Result<Bytes, Trouble>>>>,
}

pub(crate) type Opening<'a> = Pin<Box<dyn Future<Output = std::result::Result<Opened, Trouble>> + 'a>>;

/// Asks a server for a file's bytes from an offset on, which is less than its size.
pub(crate) type Open<'a> = dyn Fn(&'a RemoteFile, u64) -> Opening<'a> + 'a;

/// Fetches what is not here yet. Told to stop, or dropped, it leaves partial files that the next call goes on with.
pub(crate) async fn fetch<'a>(
    target: &Target,
    remote: &'a [RemoteFile],
    open: &Open<'a>,
    options: &NetOptions,
    meter: &Meter<'_>,
) -> Result<()> {
    for file in remote {
        check_name(file)?;
    }
    check_room(target, remote)?;
    for folder in [target.repo.join("blobs"), target.snapshot(), target.locks.clone()] {
        files::create_dir_all(&folder)?;
    }
    meter.begin(remote.iter().map(|file| file.size_bytes).sum(), remote.len());
    // Two names of the same contents have one blob.
    let by_blob = RefCell::new(std::collections::BTreeSet::new());
    let fetched = stream::iter(remote)
        .map(|file| {
            let is_first = by_blob.borrow_mut().insert(file.checksum.hex());
            blob::fetch(target, file, is_first, open, options, meter)
        })
        .buffer_unordered(PARALLEL);
    fetched.try_collect::<Vec<()>>().await?;
    if let Some(reference) = &target.reference {
        let path = target.repo.join("refs").join(reference);
        files::create_dir_all(path.parent().unwrap_or(&path))?;
        files::write_atomic(&path, target.commit.as_bytes())?;
    }
    Ok(())
}

/// A server's names become paths here, so none may lead elsewhere.
fn check_name(file: &RemoteFile) -> Result<()> {
    let is_sound = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(['\\', ':', '\0'])
            && !part.ends_with('.')
    };
    let hex = file.checksum.hex();
    let digits = match file.checksum {
        Checksum::Sha256(_) => 64,
        Checksum::Git(_) => 40,
        Checksum::Md5(_) => 32,
        Checksum::Version(_) => 56,
    };
    let is_hex = hex.len() == digits && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if file.name.split('/').all(is_sound) && is_hex {
        return Ok(());
    }
    Err(ErrorInfo::new(
        ErrorCode::Network,
        format!("The server tells of a file that cannot be: {:?}, contents {hex:?}", file.name),
    ))
}

fn check_room(target: &Target, remote: &[RemoteFile]) -> Result<()> {
    let missing: u64 = remote.iter().map(|file| file.size_bytes - target.here(file)).sum();
    hardware::check_room(&target.repo, missing, "The model", hardware::HAVE_CACHE_ELSEWHERE)
}

/// A commit as the server tells it becomes a folder.
pub(crate) fn checked_commit(commit: &str) -> Result<&str> {
    if (7..=64).contains(&commit.len()) && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(commit)
    } else {
        Err(usage(format!("The server tells of a commit that cannot be: {commit:?}")))
    }
}
