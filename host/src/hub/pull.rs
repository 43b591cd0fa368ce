use lathe_protocol::{DownloadStatus, ErrorCode, ErrorInfo, EventBody, LogLevel, ModelEntry};
use serde_json::Value;

use super::{
    client::Hub,
    name::Named,
    show::{Listing, list, refuse, unusable},
};
use crate::{
    download::{self, Meter, Target},
    error::Result,
    job::{Job, StopLevel},
    models::{self, hub as cache},
    net, s3,
    units::gb,
};

/// Downloads a model for whoever waits for it.
pub(crate) fn pull(job: &Job, model: &str, revision: Option<&str>) -> Result<()> {
    let tell =
        |download: &lathe_protocol::Download| job.emit(EventBody::Download(Box::new(download.clone())));
    let meter = Meter::new(model, revision, &tell);
    let outcome = pull_model(job, model, revision, &meter, &|| Ok(()));
    let is_stopped = job.stop_level() != StopLevel::Run;
    match outcome {
        Ok(entry) => {
            tell(&meter.end(DownloadStatus::Done));
            job.emit(EventBody::Models { models: vec![entry] });
            Ok(())
        }
        Err(_) if is_stopped => {
            let download = meter.end(DownloadStatus::Paused);
            tell(&download);
            let (done, total) = (gb(download.done_bytes), gb(download.total_bytes));
            let of = revision.map(|revision| format!(" --revision {revision}")).unwrap_or_default();
            Err(ErrorInfo::new(ErrorCode::Busy, format!("Paused: {done} of {total} are here: {model}"))
                .hint(format!("`lathe models pull {model}{of}` goes on where it was")))
        }
        Err(error) => {
            let mut download = meter.end(DownloadStatus::Failed);
            download.error = Some(error.clone());
            tell(&download);
            Err(error)
        }
    }
}

/// Downloads a model, and returns it as it is on disk then. `each` is called several times a second and may end it.
pub(crate) fn pull_model(
    job: &Job,
    model: &str,
    revision: Option<&str>,
    meter: &Meter<'_>,
    each: &dyn Fn() -> Result<()>,
) -> Result<ModelEntry> {
    if s3::is_name(model) {
        return s3::pull_model(job, model, revision, meter, each);
    }
    let named = Named::parse(model)?;
    let hub = Hub::open(&job.host)?;
    let cache_dir = &job.host.paths().hf_cache;
    let (target, gguf) = net::block_on(
        job,
        &|| {
            meter.tick();
            each()
        },
        async {
            let note = |note| meter.note(note);
            let listing = list(&hub, &named, revision, &note).await?;
            let config = config(&hub, &named, &listing).await?;
            if let Some(problem) = unusable(&listing, config.as_ref()) {
                return Err(refuse(&named, &problem));
            }
            let Listing { commit, wanted, .. } = listing;
            if let (Some(gguf), None, false) = (&wanted.gguf, &named.gguf, wanted.others.is_empty()) {
                let message = format!(
                    "Of {} GGUF files {gguf} is fetched; others by {}:QUANT",
                    wanted.others.len() + 1,
                    named.id
                );
                job.log(LogLevel::Info, message);
            }
            let reference = revision.unwrap_or("main");
            // A commit needs no name.
            let is_commit = reference.len() >= 7 && commit.starts_with(reference);
            let reference = (!is_commit).then_some(reference);
            let target = Target::new(cache_dir, &cache::repo_folder(&named.id), &commit, reference);
            let open = |file, from| -> download::Opening<'_> {
                Box::pin(hub.open_file(&named.id, &commit, file, from))
            };
            download::fetch(&target, &wanted.files, &open, &hub.options, meter).await?;
            Ok((target, wanted.gguf))
        },
    )?;
    let snapshot = target.snapshot();
    let (name, path) = match gguf {
        Some(gguf) => (named.text(), snapshot.join(gguf)),
        None => (named.id.clone(), snapshot.clone()),
    };
    let name = if target.reference.as_deref() == Some("main") { name } else { path.display().to_string() };
    Ok(models::entry(name, Some(target.commit), &path))
}

async fn config(hub: &Hub, named: &Named, listing: &Listing) -> Result<Option<Value>> {
    let file = listing.wanted.files.iter().find(|file| file.name == "config.json" && file.size_bytes > 0);
    let Some(file) = file else { return Ok(None) };
    let bytes = hub.head(&named.id, &listing.commit, &file.name, file.size_bytes).await?;
    // One that cannot be read is told of once it is here.
    Ok(serde_json::from_slice(&bytes).ok())
}
