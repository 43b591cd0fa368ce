//! A model as the Hub tells of it, from its file list, its small files and the headers of its weights.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hf_hub::repository::ModelInfo;
use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, Gate, HubDetails, HubFile, MODEL_TYPES};
use serde_json::Value;

use super::{
    client::Hub,
    files::{self, Wanted},
    name::Named,
    search::{gate, license, problem_of_config, unsupported},
};
use crate::{
    download::{RemoteFile, Target},
    error::Result,
    hardware,
    job::Job,
    models::{
        check::{Depth, Findings, inspect_contents, is_gguf, is_pickle},
        contents::{Contents, Head},
        gguf, hub as cache, safetensors,
    },
    net, s3,
};

/// Asked for first of a file of weights: most headers are shorter.
const FIRST_BYTES: u64 = 64 << 10;
/// Of a GGUF, whose header holds its vocabulary; doubled until it is all there.
const GGUF_FIRST_BYTES: u64 = 2 << 20;
const GGUF_MOST_BYTES: u64 = 128 << 20;
const SMALL_FILE_BYTES: u64 = 32 << 20;
const PARALLEL: usize = 8;

/// A repository at a commit.
pub(super) struct Listing {
    pub info: ModelInfo,
    pub commit: String,
    pub files: Vec<RemoteFile>,
    pub wanted: Wanted,
}

pub(super) async fn list(
    hub: &Hub,
    named: &Named,
    revision: Option<&str>,
    note: &dyn Fn(Option<String>),
) -> Result<Listing> {
    let (info, commit) = hub.about(&named.id, revision, note).await?;
    let files = hub.tree(&named.id, &commit, note).await?;
    let wanted = files::wanted(named, &files)?;
    Ok(Listing { info, commit, files, wanted })
}

pub(crate) fn show(job: &Job, model: &str, revision: Option<&str>) -> Result<()> {
    if s3::is_name(model) {
        return s3::show(job, model);
    }
    let named = Named::parse(model)?;
    let hub = Hub::open(&job.host)?;
    let cache = &job.host.paths().hf_cache;
    let details = net::block_on(job, &|| Ok(()), async {
        let listing = list(&hub, &named, revision, &|_| {}).await?;
        let Listing { info, commit, files, wanted } = &listing;
        let target = Target::new(cache, &cache::repo_folder(&named.id), commit, None);
        let asked = heads(wanted, |file, count| hub.head(&named.id, commit, &file.name, count)).await;
        let (findings, problem) = match asked {
            Ok(heads) => (inspect_heads(&heads), problem(&listing, &heads)),
            // What the list tells is worth showing; the files are for who may have them.
            Err(error) if error.code == ErrorCode::Access => (
                Findings::default(),
                Some(error.hint.map_or(error.message.clone(), |hint| format!("{}: {hint}", error.message))),
            ),
            Err(error) => return Err(error),
        };
        let details = describe(&named.text(), files, wanted, &target, findings);
        Ok(HubDetails {
            license: license(info).or(details.license),
            gate: gate(info),
            problem: problem.or(details.problem),
            ..details
        })
    })?;
    job.emit(EventBody::HubDetails(Box::new(details)));
    Ok(())
}

pub(crate) fn inspect_heads(heads: &Heads) -> Findings {
    let names: Vec<String> = heads.keys().cloned().collect();
    inspect_contents(&Contents::Heads(heads), &names, Depth::Headers)
}

/// What files and their headers tell of what would go to `target`.
pub(crate) fn describe(
    name: &str,
    files: &[RemoteFile],
    wanted: &Wanted,
    target: &Target,
    findings: Findings,
) -> HubDetails {
    let size_bytes: u64 = wanted.files.iter().map(|file| file.size_bytes).sum();
    let here: u64 = wanted.files.iter().map(|file| target.here(file)).sum();
    let file = |file: &RemoteFile| HubFile {
        name: file.name.clone(),
        size_bytes: file.size_bytes,
        is_wanted: wanted.has(&file.name),
        is_here: target.has(file),
    };
    HubDetails {
        name: name.into(),
        revision: target.commit.clone(),
        problem: findings.first_problem(),
        license: findings.license,
        gate: Gate::Open,
        architecture: findings.architecture,
        parameters: findings.parameters,
        shape: findings.shape,
        files: files.iter().map(file).collect(),
        size_bytes,
        missing_bytes: size_bytes.saturating_sub(here),
        disk_free_bytes: hardware::disk_of(&target.repo).1,
    }
}

/// Why what a download would fetch cannot be used, if its small files tell.
fn problem(listing: &Listing, heads: &Heads) -> Option<String> {
    let contents = Contents::Heads(heads);
    unusable(listing, contents.json("config.json").ok().as_ref()).or_else(|| {
        let gguf = listing.wanted.gguf.as_ref()?;
        let (reader, length) = contents.open(gguf).ok()?;
        let architecture = gguf::read_header(reader, length).ok()?.architecture?;
        (!MODEL_TYPES.contains(&architecture.as_str())).then(|| unsupported(&architecture))
    })
}

/// The same, before any of its weights were looked at.
pub(super) fn unusable(listing: &Listing, config: Option<&Value>) -> Option<String> {
    let Listing { files, wanted, .. } = listing;
    let has = |test: &dyn Fn(&str) -> bool| files.iter().any(|file| test(&file.name));
    if !wanted.has_weights() {
        let kind = if has(&|name| is_gguf(name.as_ref())) {
            "Its GGUF is in pieces, which Lathe does not read"
        } else if has(&|name| is_pickle(name.as_ref())) {
            "Its weights are pickles: only safetensors and GGUF are read"
        } else {
            "It has neither safetensors nor GGUF weights"
        };
        return Some(kind.into());
    }
    if wanted.gguf.is_none() && !wanted.has("config.json") {
        let is_adapter = has(&|name| name == "adapter_config.json");
        let what = if is_adapter { "It is an adapter, not a model" } else { "It has no config.json" };
        return Some(what.into());
    }
    if wanted.gguf.is_none() && !wanted.has("tokenizer.json") {
        return Some("It has no tokenizer.json".into());
    }
    problem_of_config(config?)
}

/// The error that a download of such a model ends with at once.
pub(super) fn refuse(named: &Named, problem: &str) -> ErrorInfo {
    ErrorInfo::new(ErrorCode::Model, format!("{} cannot be used: {problem}", named.text()))
        .hint("nothing was downloaded; `lathe models search` shows models that can be used first")
}

/// The first bytes of a model's files, by name.
pub(crate) type Heads = BTreeMap<String, Head>;

/// Whole small files that describe the model, and the headers of its weights. `head` asks for a file's first bytes.
pub(crate) async fn heads<'a, F: Future<Output = Result<Vec<u8>>>>(
    wanted: &'a Wanted,
    head: impl Fn(&'a RemoteFile, u64) -> F,
) -> Result<Heads> {
    // Only that they are there matters.
    let is_read = |name: &str| ["config.json", "model.safetensors.index.json"].contains(&name);
    let head = &head;
    stream::iter(&wanted.files)
        .map(|file| async move {
            let RemoteFile { name, size_bytes, .. } = file;
            let bytes = if *size_bytes == 0 {
                Vec::new()
            } else if is_gguf(name.as_ref()) {
                gguf_head(file, head).await?
            } else if name.ends_with(".safetensors") {
                safetensors_head(file, head).await?
            } else if is_read(name) && *size_bytes <= SMALL_FILE_BYTES {
                head(file, *size_bytes).await?
            } else {
                Vec::new()
            };
            Ok((name.clone(), Head { size_bytes: *size_bytes, bytes }))
        })
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

async fn safetensors_head<'a, F: Future<Output = Result<Vec<u8>>>>(
    file: &'a RemoteFile,
    head: impl Fn(&'a RemoteFile, u64) -> F,
) -> Result<Vec<u8>> {
    let first = head(file, FIRST_BYTES.min(file.size_bytes)).await?;
    match safetensors::header_end(&first) {
        Some(end) if end > first.len() as u64 && end <= file.size_bytes => head(file, end).await,
        _ => Ok(first),
    }
}

async fn gguf_head<'a, F: Future<Output = Result<Vec<u8>>>>(
    file: &'a RemoteFile,
    head: impl Fn(&'a RemoteFile, u64) -> F,
) -> Result<Vec<u8>> {
    let mut count = GGUF_FIRST_BYTES;
    loop {
        let first = head(file, count.min(file.size_bytes)).await?;
        if count >= file.size_bytes.min(GGUF_MOST_BYTES) || gguf::is_header_whole(&first, file.size_bytes) {
            return Ok(first);
        }
        count *= 2;
    }
}
