//! Models in S3 buckets: fetched into the data folder, laid out as the cache is, by `crate::download`.
//!
//! What a server calls a version of an object (its ETag) names the blob, so a changed object is another file, and a partial one is
//! only ever continued by the same. An ETag that is an MD5 checks the contents too.

mod client;
mod name;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, ModelEntry};
use md5::Md5;
use object_store::ObjectMeta;
use sha2::{Digest as _, Sha224, Sha256};

pub(crate) use name::{Named, is_name};
pub use settings::S3Options;

use crate::{
    Paths, cache,
    download::{self, Checksum, Meter, RemoteFile, Target},
    error::{Result, io_error, not_found, usage},
    files,
    hub::{self, Heads, Wanted, describe, heads, inspect_heads, wanted},
    job::Job,
    models, net,
};
use client::Bucket;

/// Fetched to see whether the server's ETags are MD5s: not those of encrypted objects.
const MOST_PROBED_BYTES: u64 = 4 << 20;
/// How often a model that changes while it is fetched is begun anew.
const RESTARTS: usize = 3;

/// What lies at a prefix.
struct Listing {
    /// What the files and their versions come to: 40 digits.
    commit: String,
    files: Vec<RemoteFile>,
    metas: Vec<ObjectMeta>,
    wanted: Wanted,
}

impl Listing {
    async fn of(bucket: &Bucket, named: &Named, note: &dyn Fn(Option<String>)) -> Result<Self> {
        let listed = bucket.list(note).await?;
        // A folder's own object, as some programs make them.
        let listed: Vec<(String, ObjectMeta)> =
            listed.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        let has_md5s = has_md5s(bucket, &listed).await?;
        let mut hasher = Sha256::new();
        let (mut files, mut metas) = (Vec::new(), Vec::new());
        for (name, meta) in listed {
            let tag = meta
                .e_tag
                .as_deref()
                .unwrap_or_default()
                .trim_start_matches("W/")
                .trim_matches('"')
                .to_owned();
            let checksum = match md5_of(&tag).filter(|_| has_md5s) {
                Some(md5) => Checksum::Md5(md5),
                None => Checksum::Version(files::hex(&Sha224::digest(format!(
                    "{name}\0{tag}\0{}\0{}",
                    meta.size, meta.last_modified
                )))),
            };
            hasher.update(format!("{name}\0{}\n", checksum.hex()));
            files.push(RemoteFile { name, size_bytes: meta.size, checksum });
            metas.push(meta);
        }
        let wanted = wanted(&hub::Named { id: named.text(), gguf: None }, &files)?;
        let commit = files::hex(&hasher.finalize())[..40].to_owned();
        Ok(Self { commit, files, metas, wanted })
    }

    fn meta(&self, file: &RemoteFile) -> Result<&ObjectMeta> {
        let place = self.files.iter().position(|listed| listed.name == file.name);
        place
            .and_then(|place| self.metas.get(place))
            .ok_or_else(|| not_found(format!("No such object: {}", file.name)))
    }

    async fn heads(&self, bucket: &Bucket) -> Result<Heads> {
        heads(&self.wanted, |file, count| async move { bucket.head(self.meta(file)?, count).await }).await
    }
}

fn md5_of(tag: &str) -> Option<String> {
    let tag = tag.to_lowercase();
    (tag.len() == 32 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(tag)
}

/// By the smallest object whose ETag could be one.
async fn has_md5s(bucket: &Bucket, listed: &[(String, ObjectMeta)]) -> Result<bool> {
    let tag = |meta: &ObjectMeta| md5_of(meta.e_tag.as_deref()?.trim_matches('"'));
    let candidates = listed.iter().map(|(_, meta)| meta).filter(|meta| tag(meta).is_some() && meta.size > 0);
    let Some(smallest) =
        candidates.min_by_key(|meta| meta.size).filter(|meta| meta.size <= MOST_PROBED_BYTES)
    else {
        return Ok(false);
    };
    let bytes = bucket.head(smallest, smallest.size).await?;
    Ok(tag(smallest) == Some(files::hex(&Md5::digest(bytes))))
}

/// Fetches a model, and returns it as it is on disk then. `each` is called several times a second and may end it.
pub(crate) fn pull_model(
    job: &Job,
    model: &str,
    revision: Option<&str>,
    meter: &Meter<'_>,
    each: &dyn Fn() -> Result<()>,
) -> Result<ModelEntry> {
    let named = Named::parse(model)?;
    if let Some(revision) = revision {
        return Err(usage(format!("A bucket has no revisions: {revision:?} of {}", named.text())));
    }
    let bucket = &Bucket::open(&job.host, &named)?;
    let paths = job.host.paths();
    let on_tick = || {
        meter.tick();
        each()
    };
    let target = net::block_on(job, &on_tick, async {
        let note = |note| meter.note(note);
        let mut restarts = 0;
        loop {
            let listing = Listing::of(bucket, &named, &note).await?;
            check(&listing, &named, bucket).await?;
            let target = Target::new(&named.home(paths), &named.folder(), &listing.commit, Some("main"));
            let open = |file, from| -> download::Opening<'_> {
                let meta = listing.meta(file).map_err(net::Trouble::Lasting);
                Box::pin(async move { bucket.open_object(meta?, from).await })
            };
            match download::fetch(&target, &listing.wanted.files, &open, &bucket.options, meter).await {
                Err(error) if error.message.ends_with(client::CHANGED) && restarts < RESTARTS => {
                    restarts += 1;
                    meter.note(Some(format!("{}; beginning anew", error.message)));
                }
                fetched => return fetched.map(|()| target),
            }
        }
    })?;
    forget_old(paths, &named, &target)?;
    let entry = entry(paths, &named)?.ok_or_else(|| missing(&named))?;
    match &entry.problem {
        Some(problem) => Err(ErrorInfo::new(
            ErrorCode::Model,
            format!("{} is here, but cannot be used: {problem}", named.text()),
        )
        .hint("it lies in the bucket so: `lathe models verify` tells more")),
        None => Ok(entry),
    }
}

/// An error if what would be fetched is no model that can be used.
async fn check(listing: &Listing, named: &Named, bucket: &Bucket) -> Result<()> {
    let heads = listing.heads(bucket).await?;
    let problem = if listing.wanted.has_weights() {
        inspect_heads(&heads).first_problem()
    } else {
        Some("it has neither safetensors nor GGUF weights".into())
    };
    match problem {
        Some(problem) => {
            Err(ErrorInfo::new(ErrorCode::Model, format!("{} cannot be used: {problem}", named.text()))
                .hint("nothing was downloaded; check what lies in the bucket"))
        }
        None => Ok(()),
    }
}

pub(crate) fn show(job: &Job, model: &str) -> Result<()> {
    let named = Named::parse(model)?;
    let bucket = Bucket::open(&job.host, &named)?;
    let paths = job.host.paths();
    let details = net::block_on(job, &|| Ok(()), async {
        let listing = Listing::of(&bucket, &named, &|_| {}).await?;
        let heads = listing.heads(&bucket).await?;
        let findings = inspect_heads(&heads);
        let target = Target::new(&named.home(paths), &named.folder(), &listing.commit, None);
        Ok(describe(&named.text(), &listing.files, &listing.wanted, &target, findings))
    })?;
    job.emit(EventBody::HubDetails(Box::new(details)));
    Ok(())
}

/// The folder of a model that is here whole.
pub(crate) fn snapshot(paths: &Paths, named: &Named) -> Result<PathBuf> {
    let repo = named.repo(paths);
    let commit = fs::read_to_string(repo.join("refs").join("main")).map_err(|_| missing(named))?;
    Ok(repo.join("snapshots").join(commit.trim()))
}

fn missing(named: &Named) -> ErrorInfo {
    let name = named.text();
    not_found(format!("Not on this machine, or not whole: {name}"))
        .hint(format!("`lathe models pull {name}` fetches it"))
}

fn entry(paths: &Paths, named: &Named) -> Result<Option<ModelEntry>> {
    let snapshot = snapshot(paths, named)?;
    let commit = snapshot.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(snapshot.is_dir().then(|| models::entry(named.text(), commit, &snapshot)))
}

/// Those that are here whole.
pub(crate) fn list(paths: &Paths) -> Result<Vec<ModelEntry>> {
    let mut found = Vec::new();
    for bucket in files::names_in(&paths.s3_models())? {
        for folder in files::names_in(&paths.s3_models().join(&bucket))? {
            let is_ours = !folder.starts_with('.');
            let named = Named::of_folder(&bucket, &folder).filter(|_| is_ours);
            found.extend(named.and_then(|named| entry(paths, &named).ok().flatten()));
        }
    }
    Ok(found)
}

/// Removes a model, whole or not.
pub(crate) fn remove(job: &Job, name: &str) -> Result<()> {
    let named = Named::parse(name)?;
    let paths = job.host.paths();
    let (home, repo) = (named.home(paths), named.repo(paths));
    if !repo.exists() {
        return Err(missing(&named));
    }
    let freed_bytes = cache::remove_folder(&home, &named.folder())?;
    // The bucket's, if that was the last one.
    files::remove_quietly(&home.join(".locks").join(named.folder()));
    for folder in [home.join(".locks"), home] {
        drop(fs::remove_dir(folder));
    }
    job.emit(EventBody::Removed { what: format!("model {}", named.text()), freed_bytes });
    Ok(())
}

/// Removes what was fetched of earlier versions, unless somebody uses the model.
fn forget_old(paths: &Paths, named: &Named, target: &Target) -> Result<()> {
    let Ok(_held) = cache::hold(&named.home(paths), &named.folder()) else { return Ok(()) };
    let used: BTreeSet<PathBuf> = cache::below(&target.snapshot())
        .map_err(io_error("read the folder", target.snapshot()))?
        .iter()
        .map(|file| cache::blob_of(file))
        .collect();
    for folder in ["snapshots", "blobs"].map(|name| target.repo.join(name)) {
        for name in files::names_in(&folder)? {
            let path: &Path = &folder.join(&name);
            if path != target.snapshot() && !used.contains(path) {
                files::remove_quietly(path);
            }
        }
    }
    Ok(())
}
