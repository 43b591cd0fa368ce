//! The cache, or a repository of it, moved to another folder. A link stays where it was, so that Python finds it still.
//!
//! Everything is copied and read back before the link takes the old folder's place; only then is the old folder deleted. Interrupted,
//! the move leaves either place whole, and is done by the same command.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use lathe_protocol::{ErrorCode, ErrorInfo};
use sha2::{Digest as _, Sha256};

use super::{
    layout::{is_link, is_real_dir, lexical},
    locks,
    store::Store,
};
use crate::{
    error::{Result, io_error, usage},
    files, hardware,
};

/// In a folder's place: what is not the folder any more, beside it.
const AWAY: &str = "lathe-moved";
/// The copy while it is being made, beside where it goes.
const COPY: &str = "lathe-copy";

/// How far a move is; whoever hears of it may end it by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes more.
    Copied(u64),
    /// The copy is whole and where it belongs; the old folder is still what is used.
    Placed,
    /// The link is where the old folder was.
    Swapped,
    /// What came in meanwhile is copied too.
    CaughtUp,
}

/// A move that can be made.
pub(super) struct Move {
    /// Where the link will be.
    place: PathBuf,
    /// Where it lies so far.
    source: PathBuf,
    pub to: PathBuf,
    /// Whether it was interrupted when the copy was in place already.
    is_placed: bool,
    entries: Vec<Entry>,
    pub bytes: u64,
    /// The store that stays behind when a repository goes.
    store: Option<Store>,
}

struct Entry {
    /// Below the folder.
    name: PathBuf,
    kind: Kind,
}

enum Kind {
    Folder,
    File { from: PathBuf, size: u64, modified: SystemTime },
    Link { target: PathBuf },
}

pub(super) type OnStep<'a> = &'a mut dyn FnMut(Step) -> Result<()>;

impl Move {
    /// Of the cache, or of a repository by its folder's name, to a [`destination`].
    pub(super) fn plan(cache: &Path, repo: Option<&str>, to: PathBuf) -> Result<Self> {
        let place = repo.map_or_else(|| cache.to_path_buf(), |repo| cache.join(repo));
        let source = place.canonicalize().map_err(io_error("find what is to be moved", &place))?;
        if to == source {
            return Err(usage(format!("It lies there already: {}", to.display())));
        }
        let home = cache.canonicalize().map_err(io_error("read the cache", cache))?;
        if to.starts_with(&source) || source.starts_with(&to) || to.starts_with(&home) {
            let message = format!("Cannot move {} into itself: {}", source.display(), to.display());
            return Err(usage(message).hint("name a folder of another disk"));
        }
        let is_placed = is_placed(&place, &to);
        if !is_placed && to.exists() && !fs::read_dir(&to).is_ok_and(|mut entries| entries.next().is_none()) {
            let message = format!("Something lies there already: {}", to.display());
            return Err(usage(message).hint("name a folder that is empty, or not there yet"));
        }
        let store = repo.and_then(|_| Store::open(&home));
        let mut planned = Self { place, source, to, is_placed, entries: Vec::new(), bytes: 0, store };
        planned.look()?;
        Ok(planned)
    }

    /// Lists what there is to copy, as it is now.
    fn look(&mut self) -> Result<()> {
        self.entries = entries(&self.source, &self.to, self.store.as_ref())?;
        let sizes = self.entries.iter().map(|entry| match entry.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        });
        self.bytes = sizes.sum();
        Ok(())
    }

    /// Moves it. Nobody else may write to it meanwhile.
    pub(super) fn execute(self, each: OnStep<'_>) -> Result<()> {
        let parent = self.to.parent().unwrap_or(&self.to).to_path_buf();
        files::create_dir_all(&parent)?;
        // 1. The link, aside: where links are not permitted, that shows before anything is copied.
        let away = beside(&self.place, AWAY);
        if is_link(&away) {
            fs::remove_file(&away).map_err(io_error("remove", &away))?;
        } else if away.exists() {
            let message = format!("A folder that was moved before lies in the way: {}", away.display());
            return Err(
                ErrorInfo::new(ErrorCode::Io, message).hint("look whether it is still needed, and remove it")
            );
        }
        link_folder(&self.to, &away)?;
        let moved = self.put_in_place(&away, each);
        // With the copy in place, the link says so to whoever tries again.
        if moved.is_err() && is_link(&away) && !self.to.exists() {
            files::remove_quietly(&away);
        }
        // 3. What came in while it was copied; then the old folder goes.
        if !moved? {
            return Ok(());
        }
        each(Step::Swapped)?;
        finish(&self.place, self.store.as_ref(), each)?;
        let shared = self.entries.iter().filter_map(|entry| match &entry.kind {
            Kind::File { from, .. } if !from.starts_with(&self.source) => Some(from),
            _ => None,
        });
        for payload in shared {
            if let Some(store) = &self.store {
                store.sweep(payload)?;
            }
        }
        Ok(())
    }

    /// 2. Renames it, or copies it and swaps in the link. True if an old folder is left to delete.
    fn put_in_place(&self, away: &Path, each: OnStep<'_>) -> Result<bool> {
        let stays_within = !self.entries.iter().any(|entry| match &entry.kind {
            Kind::File { from, .. } => !from.starts_with(&self.source),
            Kind::Link { target } => target.is_absolute(),
            Kind::Folder => false,
        });
        let copy = beside(&self.to, COPY);
        if self.is_placed {
            fs::rename(&self.to, &copy).map_err(io_error("use the folder", &self.to))?;
        } else if self.to.exists() {
            fs::remove_dir(&self.to).map_err(io_error("use the folder", &self.to))?;
        }
        if stays_within && !copy.exists() {
            match fs::rename(&self.source, &self.to) {
                Ok(()) => {
                    fs::rename(away, &self.place).map_err(io_error("link", &self.place))?;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
                Err(error) => return Err(io_error("move", &self.source)(error)),
            }
        }
        self.check_space(&copy)?;
        files::create_dir_all(&copy)?;
        if !self.is_placed {
            forget_others(&copy, &self.entries)?;
        }
        copy_all(&self.entries, &copy, each)?;
        fs::rename(&copy, &self.to).map_err(io_error("put in place", &self.to))?;
        each(Step::Placed)?;
        swap(away, &self.place)?;
        Ok(true)
    }

    fn check_space(&self, copy: &Path) -> Result<()> {
        let missing: u64 = self
            .entries
            .iter()
            .map(|entry| match &entry.kind {
                Kind::File { size, modified, .. } if !is_same(&copy.join(&entry.name), *size, *modified) => {
                    *size
                }
                _ => 0,
            })
            .sum();
        let hint = "free some space there, or move single repositories with --repo";
        hardware::check_room(&self.to, missing, "What is moved", hint)
    }
}

/// Whether a name in the cache, or beside it, is what an interrupted move left behind and nobody works on.
pub(super) fn is_leftover(path: &Path) -> bool {
    let Some(place) = place_of(path) else { return false };
    let (cache, repo) = (place.parent().unwrap_or(&place), place.file_name().unwrap_or_default());
    let is_worked_on = locks::is_held(cache, &repo.to_string_lossy()) || locks::is_held(path, "");
    is_link(&place) && is_real_dir(path) && !is_worked_on
}

/// Whether a name is one that a move gives to what it takes from its place.
pub(super) fn is_away(path: &Path) -> bool {
    place_of(path).is_some()
}

/// The folder whose old self a path is.
fn place_of(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(AWAY)?.strip_suffix('.')?;
    Some(path.with_file_name(name))
}

/// What an interrupted move of the cache itself left beside it.
pub(super) fn leftover_beside(cache: &Path) -> Option<PathBuf> {
    Some(beside(cache, AWAY)).filter(|path| is_leftover(path))
}

/// Puts back what an interrupted move took from its place.
pub(super) fn recover(cache: &Path) -> Result<()> {
    let away = beside(cache, AWAY);
    put_back(cache, &away)?;
    for name in files::names_in(cache)? {
        let away = cache.join(name);
        if let Some(place) = place_of(&away) {
            put_back(&place, &away)?;
        }
    }
    Ok(())
}

fn put_back(place: &Path, away: &Path) -> Result<()> {
    // Either the folder itself, or the link to where it is by now.
    if !place.exists() && away.is_dir() {
        fs::rename(away, place).map_err(io_error("put back", place))?;
    }
    Ok(())
}

/// Completes a move whose link is in place: copies what came in late, deletes the old folder.
fn finish(place: &Path, store: Option<&Store>, each: OnStep<'_>) -> Result<()> {
    let away = beside(place, AWAY);
    let Ok(old) = away.canonicalize() else { return Ok(()) };
    let to = place.canonicalize().map_err(io_error("read", place))?;
    if old == to {
        files::remove_quietly(&away);
        return Ok(());
    }
    let late =
        entries(&old, &to, store)?.into_iter().filter(|entry| !exists(&to.join(&entry.name))).collect();
    copy_all(&late, &to, each)?;
    each(Step::CaughtUp)?;
    fs::remove_dir_all(&old).map_err(io_error("remove the old folder", &old))?;
    if is_link(&away) {
        fs::remove_file(&away).map_err(io_error("remove", &away))?;
    }
    Ok(())
}

/// Completes an interrupted move of this place, if there was one that got as far as the link; false if not.
pub(super) fn complete(cache: &Path, repo: Option<&str>, to: &Path, each: OnStep<'_>) -> Result<bool> {
    let place = repo.map_or_else(|| cache.to_path_buf(), |repo| cache.join(repo));
    let away = beside(&place, AWAY);
    if !is_link(&place) || !away.is_dir() || is_placed(&place, to) {
        return Ok(false);
    }
    let store = repo.and_then(|_| Store::open(cache));
    finish(&place, store.as_ref(), each)?;
    Ok(true)
}

/// Where the cache goes, or a repository, which keeps its folder's name. Links to folders that are there are resolved.
pub(super) fn destination(repo: Option<&str>, to: &Path) -> PathBuf {
    real(&repo.map_or_else(|| to.to_path_buf(), |repo| to.join(repo)))
}

/// Whether a copy of the place lies there whole, but is not used yet.
fn is_placed(place: &Path, to: &Path) -> bool {
    let away = beside(place, AWAY);
    is_link(&away)
        && away.canonicalize().is_ok_and(|copy| copy == to)
        && place.canonicalize().is_ok_and(|used| used != to)
}

/// What lies below a folder, folders before what is in them. Locks stay behind: they mean nothing elsewhere.
fn entries(folder: &Path, to: &Path, store: Option<&Store>) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        for name in files::names_in(&folder.join(&inner))? {
            let name = inner.join(name);
            let path = folder.join(&name);
            if name == Path::new(".locks") {
                continue;
            }
            let metadata = fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
            let kind = if metadata.is_dir() {
                folders.push(name.clone());
                Kind::Folder
            } else if metadata.is_symlink() {
                link_kind(folder, to, &path, store)?
            } else {
                let modified = metadata.modified().map_err(io_error("read", &path))?;
                Kind::File { from: path, size: metadata.len(), modified }
            };
            found.push(Entry { name, kind });
        }
    }
    Ok(found)
}

/// What a link becomes: within the folder it stays, into the store that stays behind it becomes what it leads to.
fn link_kind(folder: &Path, to: &Path, link: &Path, store: Option<&Store>) -> Result<Kind> {
    let target = fs::read_link(link).map_err(io_error("read", link))?;
    let full = lexical(&link.parent().unwrap_or(folder).join(&target));
    if let Some(payload) = store.and_then(|store| store.target_of(link)) {
        let metadata = fs::metadata(&payload).map_err(io_error("read", &payload))?;
        let modified = metadata.modified().map_err(io_error("read", &payload))?;
        return Ok(Kind::File { from: payload, size: metadata.len(), modified });
    }
    Ok(match full.strip_prefix(folder) {
        Ok(_) if target.is_relative() => Kind::Link { target },
        Ok(inside) => Kind::Link { target: to.join(inside) },
        Err(_) => Kind::Link { target: full },
    })
}

/// Removes from a copy that was begun before what is not part of it any more.
fn forget_others(copy: &Path, entries: &[Entry]) -> Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        for name in files::names_in(&copy.join(&inner))? {
            let name = inner.join(name);
            let path = copy.join(&name);
            match entries.iter().find(|entry| entry.name == name).map(|entry| &entry.kind) {
                Some(Kind::Folder) if is_real_dir(&path) => folders.push(name),
                Some(Kind::File { .. }) if path.is_file() && !is_link(&path) => {}
                _ => files::remove_quietly(&path),
            }
        }
    }
    Ok(())
}

fn copy_all(entries: &Vec<Entry>, to: &Path, each: OnStep<'_>) -> Result<()> {
    for Entry { name, kind } in entries {
        let path = to.join(name);
        match kind {
            Kind::Folder => files::create_dir_all(&path)?,
            Kind::Link { target } => link_to(target, &path)?,
            Kind::File { size, modified, .. } if is_same(&path, *size, *modified) => {
                each(Step::Copied(*size))?;
            }
            Kind::File { from, modified, .. } => copy_verified(from, &path, *modified, each)?,
        }
    }
    Ok(())
}

/// Copies a file, flushes it to the disk, and reads it back. Under its name it is whole.
fn copy_verified(from: &Path, to: &Path, modified: SystemTime, each: OnStep<'_>) -> Result<()> {
    let part = beside(to, COPY);
    let mut hasher = Sha256::new();
    files::copy_file(from, &part, &mut |piece| {
        hasher.update(piece);
        each(Step::Copied(piece.len() as u64))
    })?;
    let mut again = Sha256::new();
    let mut file = File::open(&part).map_err(io_error("read", &part))?;
    files::read_pieces(&mut file, &part, &mut |piece| {
        again.update(piece);
        each(Step::Copied(0))
    })?;
    if hasher.finalize() != again.finalize() {
        let message = format!("The copy differs from the file: {}", part.display());
        return Err(
            ErrorInfo::new(ErrorCode::Io, message).hint("that disk may be failing; nothing was deleted")
        );
    }
    let permissions = fs::metadata(from).map_err(io_error("read", from))?.permissions();
    // Before the permissions: they may forbid it.
    let times = File::options().write(true).open(&part).and_then(|file| file.set_modified(modified));
    times
        .and_then(|()| fs::set_permissions(&part, permissions))
        .and_then(|()| fs::rename(&part, to))
        .map_err(io_error("write", to))
}

fn is_same(path: &Path, size: u64, modified: SystemTime) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| {
        metadata.is_file() && metadata.len() == size && metadata.modified().is_ok_and(|time| time == modified)
    })
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// `.NAME.ENDING` in the same folder.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{ending}"))
}

/// With the links of those folders resolved that are there.
fn real(path: &Path) -> PathBuf {
    let path = lexical(path);
    let there = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match there {
        Some((ancestor, real)) => match path.strip_prefix(ancestor) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) => real.join(rest),
            Err(_) => path,
        },
        None => path,
    }
}

/// The two change places; where they cannot in one step, the folder is away for a moment, and [`recover`] puts it back.
fn swap(away: &Path, place: &Path) -> Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, away, CWD, place, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    let target = fs::read_link(away).map_err(io_error("read", away))?;
    fs::remove_file(away).map_err(io_error("remove", away))?;
    fs::rename(place, away).map_err(io_error("move aside", place))?;
    link_folder(&target, place).inspect_err(|_| drop(fs::rename(away, place)))
}

/// A link as it was, which mostly leads to a file.
fn link_to(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    let made = std::os::windows::fs::symlink_file(target, link);
    made.map_err(io_error("link", link))
}

fn link_folder(target: &Path, link: &Path) -> Result<()> {
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(target, link);
    #[cfg(windows)]
    let made = std::os::windows::fs::symlink_dir(target, link);
    made.map_err(|error| {
        let cannot = io_error("leave a link", link)(error);
        if cfg!(windows) {
            cannot.hint("turn on Windows' developer mode, which permits links")
        } else {
            cannot
        }
    })
}
