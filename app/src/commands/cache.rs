//! The Hugging Face cache: what lies in it, deleting, moving.

use std::process::ExitCode;

use lathe_protocol::{
    CacheRepo, CacheReport, CacheRevision, CacheTarget, CommandBody, ErrorCode, ErrorInfo, EventBody,
    RepoKind,
};
use lathe_ui::format::{bytes, plural};

use super::{Outcome, unexpected};
use crate::{
    cli::CacheRm,
    note,
    output::{ago, table},
    session::{Session, ask_yes},
};

pub fn show(session: &mut Session, revisions: bool) -> Outcome {
    let answer = session.ask(CommandBody::CacheShow)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Cache(cache) = answer else { return Err(unexpected()) };
    if !cache.repos.is_empty() {
        session.out.text(&if revisions { by_revision(&cache) } else { by_repo(&cache) });
        session.out.text("\n");
    }
    session.out.text(&totals(&cache));
    for warning in &cache.warnings {
        note!("warning: {warning}");
    }
    Ok(ExitCode::SUCCESS)
}

fn label(repo: &CacheRepo) -> String {
    format!("{}/{}", repo.kind.word(), repo.id)
}

fn by_repo(cache: &CacheReport) -> String {
    let size = |files: &[lathe_protocol::CacheFile]| match files.iter().map(|file| file.size_bytes).sum() {
        0 if files.is_empty() => String::new(),
        size => bytes(size),
    };
    let row = |repo: &CacheRepo| {
        let mut refs: Vec<&str> =
            repo.revisions.iter().flat_map(|revision| &revision.refs).map(String::as_str).collect();
        refs.sort_unstable();
        vec![
            label(repo),
            bytes(repo.size_bytes),
            repo.revisions.len().to_string(),
            size(&repo.unreferenced),
            size(&repo.incomplete),
            ago(repo.accessed_secs),
            refs.join(", "),
            repo.target.as_ref().map_or_else(String::new, |target| format!("in {target}")),
        ]
    };
    let head = ["REPOSITORY", ">SIZE", ">REVISIONS", ">UNREFERENCED", ">INCOMPLETE", "LAST USED", "REFS", ""];
    table(&head, &cache.repos.iter().map(row).collect::<Vec<_>>())
}

fn by_revision(cache: &CacheReport) -> String {
    let row = |repo: &CacheRepo, revision: &CacheRevision| {
        let refs = if revision.refs.is_empty() { "detached".into() } else { revision.refs.join(", ") };
        vec![
            label(repo),
            revision.commit.clone(),
            bytes(revision.size_bytes),
            bytes(revision.own_bytes),
            revision.num_files.to_string(),
            ago(revision.modified_secs),
            refs,
        ]
    };
    let rows: Vec<Vec<String>> = cache
        .repos
        .iter()
        .flat_map(|repo| repo.revisions.iter().map(move |revision| row(repo, revision)))
        .collect();
    let head = ["REPOSITORY", "REVISION", ">SIZE", ">FREES", ">FILES", "CHANGED", "REFS"];
    table(&head, &rows)
}

fn totals(cache: &CacheReport) -> String {
    let revisions = cache.repos.iter().map(|repo| repo.revisions.len()).sum();
    let place = match &cache.target {
        Some(target) => format!("{} (in {target})", cache.path),
        None => cache.path.clone(),
    };
    let mut text = format!(
        "{}, {}, {} on disk, {} free: {place}\n",
        if cache.repos.len() == 1 {
            "1 repository".into()
        } else {
            format!("{} repositories", cache.repos.len())
        },
        plural(revisions, "revision"),
        bytes(cache.size_bytes),
        bytes(cache.disk_free_bytes),
    );
    let detached =
        cache.repos.iter().flat_map(|repo| &repo.revisions).any(|revision| revision.refs.is_empty());
    let doomed = [
        (detached, "Revisions without a branch or tag".to_owned(), "--detached"),
        (
            cache.unreferenced_bytes > 0,
            format!("{} that no revision refers to", bytes(cache.unreferenced_bytes)),
            "--unreferenced",
        ),
        (cache.incomplete_bytes > 0, format!("{} unfinished", bytes(cache.incomplete_bytes)), "--incomplete"),
    ];
    for (_, what, flag) in doomed.iter().filter(|(is_there, ..)| *is_there) {
        crate::append!(text, "{what}: lathe models cache rm {flag}\n");
    }
    text
}

pub fn remove(session: &mut Session, args: &CacheRm) -> Outcome {
    let mut targets = Vec::new();
    if !args.targets.is_empty() {
        let EventBody::Cache(cache) = session.ask(CommandBody::CacheShow)? else { return Err(unexpected()) };
        for name in &args.targets {
            targets.push(target(&cache, name)?);
        }
    }
    let kinds = [
        (args.detached, CacheTarget::Detached),
        (args.unreferenced, CacheTarget::Unreferenced),
        (args.incomplete, CacheTarget::Incomplete),
    ];
    targets.extend(kinds.into_iter().filter(|(is_meant, _)| *is_meant).map(|(_, target)| target));
    let answer = session.ask(CommandBody::CachePlan { targets: targets.clone() })?;
    let EventBody::CachePlan(plan) = &answer else { return Err(unexpected()) };
    if plan.lines.is_empty() {
        if session.out.json {
            session.out.object(&answer);
        } else {
            session.out.line("There is nothing of that kind: nothing was deleted");
        }
        return Ok(ExitCode::SUCCESS);
    }
    for line in &plan.lines {
        note!("{line}");
    }
    let mut frees = bytes(plan.freed_bytes);
    if plan.besides_bytes > 0 {
        frees = format!("{frees}, and {} of unfinished and unreferenced files", bytes(plan.besides_bytes));
    }
    note!("Frees {frees} ({})", plural(plan.num_files, "file"));
    if !args.yes {
        if !session.can_ask() {
            if session.out.json {
                session.out.object(&answer);
            }
            return Err(ErrorInfo::new(ErrorCode::Usage, "Nothing was deleted: nobody is here to agree")
                .hint("add --yes to delete this"));
        }
        if !ask_yes("Delete this?") {
            note!("Nothing was deleted");
            return Ok(ExitCode::SUCCESS);
        }
    }
    super::library::remove(session, CommandBody::CacheDelete { targets })
}

/// `[KIND/]ID[@REVISION]`, or a whole commit.
fn target(cache: &CacheReport, name: &str) -> Result<CacheTarget, ErrorInfo> {
    let (id, revision) = name.split_once('@').map_or((name, None), |(id, revision)| (id, Some(revision)));
    let found = repo(cache, id)?;
    let Some(revision) = revision else {
        let by_commit = || {
            let mut all =
                cache.repos.iter().flat_map(|repo| repo.revisions.iter().map(move |found| (repo, found)));
            all.find(|(_, found)| name.len() == 40 && found.commit == name)
        };
        return Ok(match (found, by_commit()) {
            (Some(repo), _) => CacheTarget::Repo { kind: repo.kind, id: repo.id.clone() },
            (None, Some((repo, found))) => {
                CacheTarget::Revision { kind: repo.kind, id: repo.id.clone(), commit: found.commit.clone() }
            }
            // Perhaps a broken one: the host knows.
            (None, None) => {
                let (kind, id) = split_kind(id).unwrap_or((RepoKind::Model, id));
                CacheTarget::Repo { kind, id: id.to_owned() }
            }
        });
    };
    let unknown = |what: &str| {
        ErrorInfo::new(ErrorCode::NotFound, format!("{what}: {name}"))
            .hint("`lathe models cache --revisions` lists what is there")
    };
    let repo = found.ok_or_else(|| unknown("No such repository in the cache"))?;
    let mut revisions = repo.revisions.iter().filter(|found| {
        found.refs.iter().any(|name| name == revision)
            || revision.len() >= 4 && found.commit.starts_with(revision)
    });
    match (revisions.next(), revisions.next()) {
        (Some(found), None) => {
            Ok(CacheTarget::Revision { kind: repo.kind, id: repo.id.clone(), commit: found.commit.clone() })
        }
        (Some(_), Some(_)) => Err(unknown("More than one revision begins so")),
        (None, _) => Err(unknown("No such revision in the cache")),
    }
}

fn split_kind(id: &str) -> Option<(RepoKind, &str)> {
    let (word, id) = id.split_once('/')?;
    Some((RepoKind::ALL.into_iter().find(|kind| kind.word() == word)?, id))
}

fn repo<'a>(cache: &'a CacheReport, id: &str) -> Result<Option<&'a CacheRepo>, ErrorInfo> {
    let named = split_kind(id);
    let is_meant = |repo: &&CacheRepo| {
        let same = |other: &str| repo.id.eq_ignore_ascii_case(other);
        same(id) || named.is_some_and(|(kind, id)| repo.kind == kind && same(id))
    };
    let found: Vec<&CacheRepo> = cache.repos.iter().filter(is_meant).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => {
            let names: Vec<String> = several.iter().map(|repo| label(repo)).collect();
            Err(ErrorInfo::new(ErrorCode::Usage, format!("{id:?} could be several repositories"))
                .hint(format!("write {}", names.join(" or "))))
        }
    }
}

pub fn move_to(session: &mut Session, to: String, name: Option<&str>) -> Outcome {
    let repo = match name {
        None => None,
        Some(name) => {
            let EventBody::Cache(cache) = session.ask(CommandBody::CacheShow)? else {
                return Err(unexpected());
            };
            let named = split_kind(name).unwrap_or((RepoKind::Model, name));
            Some(
                repo(&cache, name)?
                    .map_or_else(|| (named.0, named.1.to_owned()), |repo| (repo.kind, repo.id.clone())),
            )
        }
    };
    let answer = session.ask(CommandBody::CacheMove { repo, to })?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::Moved { what, to, bytes: moved } = answer {
        session.out.line(&format!("Moved {what}, {}, to {to}; a link stays at its old place", bytes(moved)));
    }
    Ok(ExitCode::SUCCESS)
}
