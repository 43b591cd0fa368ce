//! One file: locked, continued, verified, put in place.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt as _;
use lathe_protocol::{ErrorCode, ErrorInfo};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio::{task, time};

use super::{Checksum, Meter, Open, RemoteFile, Target};
use crate::{
    error::{Result, io_error},
    files,
    net::{NetOptions, Retries, Trouble},
};

/// Repetitions in a row that brought nothing.
const RETRIES: u32 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const PIECE_BYTES: usize = 1 << 20;

/// As `huggingface_hub` calls what is not whole yet.
pub(crate) fn partial_of(blob: &Path) -> PathBuf {
    blob.with_extension("incomplete")
}

/// Has a file in the snapshot. `is_first`: whether no other name of the same contents is fetched just now.
pub(super) async fn fetch<'a>(
    target: &Target,
    file: &'a RemoteFile,
    is_first: bool,
    open: &Open<'a>,
    options: &NetOptions,
    meter: &Meter<'_>,
) -> Result<()> {
    let blob = target.blob(file);
    let lock_path = target.locks.join(format!("{}.lock", file.checksum.hex()));
    let note = |text: &str| meter.note(Some(text.to_owned()));
    let lock = lock(&lock_path, &|| {
        // One of our own names of these contents is no news.
        if is_first {
            note("Another program is fetching the same file; waiting for it");
        }
    })
    .await?;
    if is_first {
        meter.note(None);
    }
    match fs::metadata(&blob) {
        Ok(found) if found.len() == file.size_bytes => meter.found(file.size_bytes),
        found => {
            let partial = partial_of(&blob);
            if found.is_ok() {
                // Cut short by something: what is there may still be right.
                fs::rename(&blob, &partial).map_err(io_error("rename", &blob))?;
            }
            adopt(&partial)?;
            whole(file, &partial, open, options, meter).await?;
            fs::rename(&partial, &blob).map_err(io_error("put in place", &blob))?;
        }
    }
    let depth = file.name.split('/').count() - 1;
    let up = "../".repeat(depth + 2);
    let link = target.snapshot().join(&file.name);
    if let Some(folder) = link.parent() {
        files::create_dir_all(folder)?;
    }
    let relative = PathBuf::from(format!("{up}blobs/{}", file.checksum.hex()));
    if fs::read_link(&link).ok().as_deref() != Some(relative.as_path()) {
        let aside = files::aside(&link);
        files::link(&blob, &relative, &aside)?;
        fs::rename(&aside, &link).map_err(io_error("link", &link))?;
    }
    drop(lock);
    meter.file_done();
    Ok(())
}

/// Takes over the longest of what Python's tools left of the blob under names of their own: we hold its lock, so nobody
/// is at work on them.
fn adopt(partial: &Path) -> Result<()> {
    let (Some(folder), Some(stem)) = (partial.parent(), partial.file_stem()) else { return Ok(()) };
    if partial.exists() {
        return Ok(());
    }
    let start = format!("{}.", stem.to_string_lossy());
    let left = files::names_in(folder)?
        .into_iter()
        .filter(|name| name.starts_with(&start) && name.ends_with(".incomplete"))
        .map(|name| folder.join(name));
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |found| found.len());
    match left.max_by_key(length) {
        Some(left) => fs::rename(&left, partial).map_err(io_error("rename", &left)),
        None => Ok(()),
    }
}

/// Makes the partial file whole: what is there is kept if the hash of all is right in the end.
async fn whole<'a>(
    file: &'a RemoteFile,
    path: &Path,
    open: &Open<'a>,
    options: &NetOptions,
    meter: &Meter<'_>,
) -> Result<()> {
    let wanted = file.checksum.hex();
    for is_last in [false, true] {
        let mut partial = Partial::open(file, path, meter).await?;
        let mut retries = Retries::new(RETRIES, options.first_pause);
        while partial.length < file.size_bytes {
            let before = partial.length;
            if let Err(trouble) = partial.receive(open, options, meter).await? {
                if partial.length > before {
                    retries.progressed();
                }
                retries.wait(trouble, &|note| meter.note(note)).await?;
            }
        }
        let found = partial.finish().await?;
        if found == wanted {
            return Ok(());
        }
        fs::remove_file(path).map_err(io_error("remove", path))?;
        meter.lost(file.size_bytes);
        if is_last {
            return Err(ErrorInfo::new(
                ErrorCode::Network,
                format!("What came is not what the server promised: checksum {found}, not {wanted}: {}", file.name),
            )
            .hint("something on the way changes the file, a proxy or the disk: try again, or over another network"));
        }
        meter.note(Some(format!("{} came damaged; fetching it again", file.name)));
    }
    Ok(())
}

/// A file as far as it is here.
struct Partial<'a, 'p> {
    file: &'a RemoteFile,
    path: &'p Path,
    out: File,
    hasher: Hasher,
    length: u64,
}

impl<'a, 'p> Partial<'a, 'p> {
    async fn open(file: &'a RemoteFile, path: &'p Path, meter: &Meter<'_>) -> Result<Self> {
        let out = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(io_error("write", path))?;
        let length = out.metadata().map_err(io_error("read", path))?.len();
        let mut partial = Self { file, path, out, hasher: Hasher::new(file), length };
        if length > file.size_bytes {
            partial.restart()?;
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = partial.out.read(&mut piece).map_err(io_error("read", path))?;
            if count == 0 {
                meter.found(partial.length);
                return Ok(partial);
            }
            partial.hasher.update(&piece[..count]);
            // The other files go on meanwhile.
            task::yield_now().await;
        }
    }

    fn restart(&mut self) -> Result<()> {
        self.out.set_len(0).map_err(io_error("write", self.path))?;
        self.hasher = Hasher::new(self.file);
        self.length = 0;
        Ok(())
    }

    /// Appends what the server sends, until the file is whole or there is trouble.
    async fn receive(
        &mut self,
        open: &Open<'a>,
        options: &NetOptions,
        meter: &Meter<'_>,
    ) -> Result<std::result::Result<(), Trouble>> {
        let opened = match within(options.stall, open(self.file, self.length)).await {
            Ok(opened) => opened,
            Err(trouble) => return Ok(Err(trouble)),
        };
        if opened.from != self.length {
            // The server knows no ranges.
            meter.lost(self.length);
            self.restart()?;
        }
        let mut pieces = opened.pieces;
        while self.length < self.file.size_bytes {
            let piece = match within(options.stall, async { pieces.next().await.transpose() }).await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(Err(self.ended_early())),
                Err(trouble) => return Ok(Err(trouble)),
            };
            let room = usize::try_from(self.file.size_bytes - self.length).unwrap_or(usize::MAX);
            let piece = &piece[..piece.len().min(room)];
            self.out.write_all(piece).map_err(io_error("write", self.path))?;
            self.hasher.update(piece);
            self.length += piece.len() as u64;
            meter.came(piece.len() as u64);
        }
        Ok(Ok(()))
    }

    fn ended_early(&self) -> Trouble {
        let missing = self.file.size_bytes - self.length;
        Trouble::passing(ErrorInfo::new(
            ErrorCode::Network,
            format!("The connection ended {missing} bytes early: {}", self.file.name),
        ))
    }

    /// Flushes it to the disk, and returns the hash of all.
    async fn finish(self) -> Result<String> {
        let Self { out, hasher, path, .. } = self;
        let synced = task::spawn_blocking(move || out.sync_all()).await;
        synced.unwrap_or_else(|error| Err(error.into())).map_err(io_error("write", path))?;
        Ok(hasher.finish())
    }
}

/// What does not come within the time is trouble.
async fn within<T>(
    stall: Duration,
    wait: impl Future<Output = std::result::Result<T, Trouble>>,
) -> std::result::Result<T, Trouble> {
    time::timeout(stall, wait).await.unwrap_or_else(|_| {
        let message = format!("Nothing came for {:.0} s", stall.as_secs_f64());
        Err(Trouble::passing(ErrorInfo::new(ErrorCode::Network, message)))
    })
}

/// Waits for a lock, and calls `waits` if somebody holds it.
async fn lock(path: &Path, waits: &dyn Fn()) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error("lock", path))?;
        match file.try_lock() {
            // Whoever held it may have removed it meanwhile.
            Ok(()) if is_at(&file, path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waits();
                time::sleep(LOOK_EVERY).await;
            }
            // Where there are no locks there is nobody to wait for: the checksum decides.
            Err(TryLockError::Error(_)) => return Ok(file),
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let known = file.metadata().and_then(|held| Ok((held, fs::metadata(path)?)));
    known.is_ok_and(|(held, there)| (held.dev(), held.ino()) == (there.dev(), there.ino()))
}

/// A file that is open cannot be removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// Deletes what is there of a blob that is not whole, unless somebody is at work on it: then none, else the bytes freed.
pub(crate) fn discard_partial(partial: &Path, locks: &Path) -> Result<Option<u64>> {
    let name = partial.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lock_path = locks.join(format!("{}.lock", name.split('.').next().unwrap_or_default()));
    let lock = OpenOptions::new().write(true).open(&lock_path);
    if let Ok(lock) = &lock
        && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Ok(None);
    }
    let bytes = fs::metadata(partial).map_or(0, |found| found.len());
    fs::remove_file(partial).map_err(io_error("remove", partial))?;
    Ok(Some(bytes))
}

enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
    Md5(Md5),
    /// There is nothing to compare with.
    None(String),
}

impl Hasher {
    fn new(file: &RemoteFile) -> Self {
        match &file.checksum {
            Checksum::Sha256(_) => Self::Sha256(Sha256::new()),
            Checksum::Md5(_) => Self::Md5(Md5::new()),
            Checksum::Version(version) => Self::None(version.clone()),
            Checksum::Git(_) => Self::Git(Sha1::new().chain_update(format!("blob {}\0", file.size_bytes))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
            Self::Md5(hasher) => hasher.update(bytes),
            Self::None(_) => {}
        }
    }

    fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => files::hex(&hasher.finalize()),
            Self::Git(hasher) => files::hex(&hasher.finalize()),
            Self::Md5(hasher) => files::hex(&hasher.finalize()),
            Self::None(version) => version,
        }
    }
}
