#![cfg(unix)]

use std::{
    fs::{self, File},
    time::Duration,
};

use lathe_protocol::{CommandBody, Download, DownloadAct, DownloadStatus, ErrorCode, EventBody};

use super::WORKED_OFF;
use crate::{
    Host,
    hub::tests::repo,
    testing::{
        Bench, ask, failure,
        fake_hub::{FakeHub, Fault, sha256},
        net_options, send, until,
    },
};

use DownloadStatus::{Done, Failed, Paused, Queued, Running};

fn host(bench: &Bench, hub: &FakeHub) -> Host {
    let mut options = bench.shell_options("exit 1");
    options.net = net_options(&hub.endpoint());
    options.net.stall = Duration::from_mins(5);
    Host::start(options).unwrap()
}

fn lists(events: &[EventBody]) -> Vec<&Vec<Download>> {
    let lists = events.iter().map(|event| match event {
        EventBody::Downloads { downloads } => Some(downloads),
        _ => None,
    });
    lists.flatten().collect()
}

fn statuses(events: &[EventBody]) -> Vec<(&str, DownloadStatus)> {
    let last = lists(events).pop();
    last.map_or_else(Vec::new, |list| {
        list.iter().map(|download| (download.model.as_str(), download.status)).collect()
    })
}

fn add(host: &mut Host, job: u64, model: &str) -> Vec<EventBody> {
    ask(host, job, CommandBody::DownloadsAdd { model: model.into(), revision: None })
}

fn act(host: &mut Host, job: u64, model: &str, act: DownloadAct) -> Vec<EventBody> {
    ask(host, job, CommandBody::DownloadsAct { model: model.into(), act })
}

/// The next download's two shards, each in its midst.
fn stall(hub: &FakeHub) {
    for (_, bytes) in repo().files.iter().filter(|(name, _)| name.starts_with("model-")) {
        hub.fail(&format!("/cdn/{}", sha256(bytes)), 1, Fault::StallAfter(200_000));
    }
}

#[test]
fn the_queue_is_worked_off_one_at_a_time_and_told() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[("a/one", repo()), ("a/two", repo())]));
    let mut host = host(&bench, &hub);
    // As if another process worked them off.
    let lock = File::create(bench.paths.data_dir.join(WORKED_OFF)).unwrap();
    lock.lock().unwrap();
    add(&mut host, 2, "a/one");
    add(&mut host, 3, "https://huggingface.co/a/two");
    add(&mut host, 4, "no/such");
    let events = add(&mut host, 5, "a/one");
    assert_eq!(statuses(&events), [("a/one", Queued), ("a/two", Queued), ("no/such", Queued)]);
    assert!(lists(&events).pop().unwrap().iter().all(|download| !download.held_here) && !host.has_work());
    // It goes, and what it leaves is paused.
    drop(lock);
    for (job, model) in [(6, "a/one"), (7, "a/two"), (8, "no/such")] {
        act(&mut host, job, model, DownloadAct::Resume);
    }
    send(&mut host, 1, CommandBody::DownloadsFollow);
    let events = until(&mut host, 1, |events| {
        statuses(events) == [("a/one", Done), ("a/two", Done), ("no/such", Failed)]
    });
    for list in lists(&events) {
        assert!(list.iter().filter(|download| download.status == Running).count() <= 1, "{list:?}");
    }
    let asked = hub.requests("/resolve/");
    assert!(asked.is_sorted_by_key(|request| request.path.contains("a/two")), "{asked:?}");
    let failed = lists(&events).pop().unwrap()[2].clone();
    assert_eq!(failed.error.unwrap().code, ErrorCode::NotFound);
    assert!(bench.paths.hf_cache.join("models--a--two/refs/main").exists());
    let events = act(&mut host, 9, "no/such", DownloadAct::Forget);
    assert_eq!(statuses(&events), [("a/one", Done), ("a/two", Done)]);
    assert_eq!(failure(&act(&mut host, 10, "no/such", DownloadAct::Pause)).code, ErrorCode::NotFound);
    assert_eq!(failure(&act(&mut host, 11, "a/one", DownloadAct::Pause)).code, ErrorCode::Usage);
}

#[test]
fn a_download_is_paused_put_first_and_discarded() {
    let (bench, hub) =
        (Bench::new(), FakeHub::start(&[("a/one", repo()), ("a/two", repo()), ("a/three", repo())]));
    stall(&hub);
    let mut host = host(&bench, &hub);
    send(&mut host, 1, CommandBody::DownloadsFollow);
    add(&mut host, 2, "a/one");
    until(&mut host, 1, |events| lists(events).last().is_some_and(|list| list[0].done_bytes > 400_000));
    assert!(host.has_work(), "closing would pause it");
    add(&mut host, 3, "a/two");
    add(&mut host, 4, "a/three");
    let events = act(&mut host, 5, "a/three", DownloadAct::First);
    assert_eq!(statuses(&events), [("a/three", Queued), ("a/one", Running), ("a/two", Queued)]);
    assert!(lists(&events).pop().unwrap().iter().all(|download| download.held_here));
    stall(&hub);
    act(&mut host, 6, "a/one", DownloadAct::Pause);
    let events = until(&mut host, 1, |events| statuses(events).contains(&("a/three", Running)));
    assert_eq!(statuses(&events), [("a/three", Running), ("a/one", Paused), ("a/two", Queued)]);
    until(&mut host, 1, |events| lists(events).last().is_some_and(|list| list[0].done_bytes > 400_000));

    let blobs = bench.paths.hf_cache.join("models--a--three/blobs");
    let partials = || {
        fs::read_dir(&blobs)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some())
            .count()
    };
    assert_eq!(partials(), 2);
    let events = act(&mut host, 7, "a/three", DownloadAct::Discard);
    assert!(matches!(&events[0], EventBody::Removed { freed_bytes: 400_000, .. }), "{events:?}");
    assert_eq!(partials(), 0);
    let events = until(&mut host, 1, |events| statuses(events).contains(&("a/two", Done)));
    assert_eq!(statuses(&events), [("a/one", Paused), ("a/two", Done)]);

    act(&mut host, 8, "a/one", DownloadAct::Resume);
    until(&mut host, 1, |events| statuses(events) == [("a/two", Done), ("a/one", Done)]);
    assert!(hub.requests("/cdn/").iter().any(|request| request.range.as_deref() == Some("bytes=200000-")));
}

#[test]
fn what_was_not_done_is_paused_after_a_restart() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[("a/one", repo()), ("a/two", repo())]));
    stall(&hub);
    let mut first = host(&bench, &hub);
    send(&mut first, 1, CommandBody::DownloadsFollow);
    add(&mut first, 2, "a/one");
    add(&mut first, 3, "a/two");
    until(&mut first, 1, |events| lists(events).last().is_some_and(|list| list[0].done_bytes > 400_000));
    // A second Lathe beside it sees the same, and leaves it alone.
    let mut second = host(&bench, &hub);
    send(&mut second, 1, CommandBody::DownloadsFollow);
    let events = until(&mut second, 1, |events| !statuses(events).is_empty());
    assert_eq!(statuses(&events), [("a/one", Running), ("a/two", Queued)]);
    drop(first);
    let events = until(&mut second, 1, |events| statuses(events) == [("a/one", Paused), ("a/two", Paused)]);
    assert!(lists(&events).last().unwrap()[0].done_bytes > 400_000);
    act(&mut second, 2, "a/one", DownloadAct::Resume);
    until(&mut second, 1, |events| statuses(events).contains(&("a/one", Done)));
}
