//! What goes wrong on the way.

use std::{
    fs,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use lathe_protocol::{CommandBody, DownloadStatus, ErrorCode, ErrorInfo, EventBody};

use super::{
    MODEL, assert_whole, cdn, downloads, host, leave_partial, notes, pull, pull_error, pulled, repo,
    repo_dir, second_shard,
};
use crate::{
    NetOptions,
    testing::{
        Bench, failure,
        fake_hub::{FakeHub, Fault, sha256},
        send, until,
    },
};

#[test]
fn a_lost_connection_is_taken_up_where_it_broke() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    hub.fail(&cdn(), 2, Fault::CutAfter(300_000));
    let events = pull(&mut host(&bench, &hub, |_| {}), MODEL);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_whole(&bench);
    let ranges: Vec<_> =
        hub.requests(&cdn()).into_iter().map(|request| (request.range, request.sent)).collect();
    let whole = second_shard().len() as u64;
    assert_eq!(
        ranges,
        [
            (None, 300_000),
            (Some("bytes=300000-".into()), 300_000),
            (Some("bytes=600000-".into()), whole - 600_000)
        ]
    );
    assert!(notes(&events).contains("trying again in 1 s (1 of 8)"), "{}", notes(&events));
}

#[test]
fn a_stall_ends_after_its_time_and_the_rest_is_fetched() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    hub.fail(&cdn(), 1, Fault::StallAfter(200_000));
    let events = pull(&mut host(&bench, &hub, |net| net.stall = Duration::from_millis(400)), MODEL);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn())[1].range.as_deref(), Some("bytes=200000-"));
}

#[test]
fn a_download_that_is_stopped_ends_at_once_and_goes_on_later() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    hub.fail(&cdn(), 1, Fault::StallAfter(200_000));
    let mut host = host(&bench, &hub, |net| net.stall = Duration::from_mins(5));
    send(&mut host, 7, CommandBody::ModelsPull { model: MODEL.into(), revision: None });
    until(&mut host, 7, |events| {
        downloads(events).last().is_some_and(|download| download.done_bytes > 700_000)
    });
    send(&mut host, 7, CommandBody::Stop);
    // Before the stall has taken its minutes.
    let events = until(&mut host, 7, |events| matches!(events.last(), Some(EventBody::Failed { .. })));
    assert_eq!(downloads(&events).last().unwrap().status, DownloadStatus::Paused);
    assert!(failure(&events).hint.unwrap().contains("lathe models pull maker/tiny"));
    pulled(&mut host, MODEL);
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn())[1].range.as_deref(), Some("bytes=200000-"));
}

#[test]
fn what_an_earlier_process_left_is_gone_on_with() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    leave_partial(&bench, &second_shard()[..500_000]);
    pulled(&mut host(&bench, &hub, |_| {}), MODEL);
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn())[0].range.as_deref(), Some("bytes=500000-"));
}

#[test]
fn what_python_left_is_gone_on_with() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    // As its tools call it since 2.0.
    let partial = leave_partial(&bench, &second_shard()[..500_000]);
    fs::rename(&partial, partial.with_extension("0a1b2c3d.incomplete")).unwrap();
    pulled(&mut host(&bench, &hub, |_| {}), MODEL);
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn())[0].range.as_deref(), Some("bytes=500000-"));
}

#[test]
fn wrong_bytes_are_fetched_again_once_and_never_kept() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    // Of a partial file, too long a one, and of what comes.
    leave_partial(&bench, &[7; 1000]);
    let mut host = host(&bench, &hub, |_| {});
    let events = pull(&mut host, MODEL);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert!(notes(&events).contains("came damaged"), "{}", notes(&events));
    assert_whole(&bench);

    fs::remove_dir_all(repo_dir(&bench)).unwrap();
    leave_partial(&bench, &vec![7; second_shard().len() + 1]);
    pulled(&mut host, MODEL);
    assert_whole(&bench);

    fs::remove_dir_all(repo_dir(&bench)).unwrap();
    hub.fail(&cdn(), 2, Fault::WrongBytes);
    let error = pull_error(&mut host, MODEL);
    assert!(error.code == ErrorCode::Network && error.message.contains(&sha256(&second_shard())), "{error}");
    let blobs = repo_dir(&bench).join("blobs");
    let blob = blobs.join(sha256(&second_shard()));
    assert!(!blob.exists() && !blob.with_extension("incomplete").exists());
    assert!(!repo_dir(&bench).join("refs/main").exists());
    pulled(&mut host, MODEL);
    assert_whole(&bench);
}

#[test]
fn a_blob_cut_short_is_mended() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    let mut host = host(&bench, &hub, |_| {});
    pulled(&mut host, MODEL);
    let blob = repo_dir(&bench).join("blobs").join(sha256(&second_shard()));
    fs::write(&blob, &second_shard()[..400_000]).unwrap();
    pulled(&mut host, MODEL);
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn())[1].range.as_deref(), Some("bytes=400000-"));
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    leave_partial(&bench, &vec![9; 500_000]);
    hub.fail(&cdn(), 9, Fault::NoRanges);
    let mut host = host(&bench, &hub, |_| {});
    pulled(&mut host, MODEL);
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn()).len(), 1);
}

#[test]
fn a_server_that_asks_to_wait_is_waited_for_and_trouble_that_passes_is_overcome() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    hub.fail("/api/models/", 1, Fault::Answer(503, vec![]));
    hub.fail("/tree/", 1, Fault::Answer(429, vec![]));
    hub.fail(&cdn(), 1, Fault::Answer(429, vec![("Retry-After".into(), "1".into())]));
    let started = Instant::now();
    let events = pull(&mut host(&bench, &hub, |_| {}), MODEL);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(
        notes(&events).contains("asks to wait: too many requests; trying again in 1 s (1 of 8)"),
        "{}",
        notes(&events)
    );
    assert_whole(&bench);

    hub.fail("/api/models/", 99, Fault::Answer(500, vec![]));
    let error = pull_error(&mut host(&bench, &hub, |_| {}), "maker/tiny");
    assert!(error.code == ErrorCode::Network && error.message.contains("500"), "{error}");
    hub.heal();
    hub.fail("/api/models/", 1, Fault::Answer(429, vec![("Retry-After".into(), "7200".into())]));
    let error = pull_error(&mut host(&bench, &hub, |_| {}), MODEL);
    assert!(error.message.contains("too many requests"), "{error}");
}

#[test]
fn a_full_disk_is_told_of_before_the_first_byte() {
    let mut huge = repo();
    huge.claimed_sizes.insert("model-00002-of-00002.safetensors".into(), 1 << 60);
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, huge)]));
    let error = pull_error(&mut host(&bench, &hub, |_| {}), MODEL);
    assert!(
        error.code == ErrorCode::Io
            && error.message.contains("1152921504.")
            && error.message.contains(" free: "),
        "{error}"
    );
    assert!(hub.requests("/cdn/").is_empty() && !repo_dir(&bench).exists());
}

#[test]
fn a_server_cannot_write_elsewhere() {
    let mut evil = repo();
    evil.files.insert("a\\..\\x.json".into(), b"{}".to_vec());
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, evil)]));
    let error = pull_error(&mut host(&bench, &hub, |_| {}), MODEL);
    assert!(error.message.contains("a file that cannot be"), "{error}");
    assert!(!repo_dir(&bench).exists());
}

#[test]
fn without_a_network_the_words_are_clear() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[]));
    hub.close();
    let check = |error: ErrorInfo, message: &str| {
        assert!(
            error.code == ErrorCode::Network && error.message.contains(message) && error.hint.is_some(),
            "{error:?}"
        );
    };
    check(pull_error(&mut host(&bench, &hub, |_| {}), MODEL), "cannot be reached");
    check(pull_error(&mut host(&bench, &hub, |net| net.is_offline = true), MODEL), "HF_HUB_OFFLINE is set");
    let nowhere = |net: &mut NetOptions| net.endpoint = Some("http://hub.invalid".into());
    check(pull_error(&mut host(&bench, &hub, nowhere), MODEL), "hub.invalid is not found");
    let page = FakeHub::start(&[]);
    page.fail("/api", 9, Fault::Answer(200, vec![("Content-Type".into(), "text/html".into())]));
    check(pull_error(&mut host(&bench, &page, |_| {}), MODEL), "answers otherwise than the Hub does");
}

#[test]
fn two_that_pull_the_same_do_not_harm_each_other() {
    let (bench, hub) = (Bench::new(), FakeHub::start(&[(MODEL, repo())]));
    let waiting = Arc::new(Barrier::new(2));
    hub.fail(&cdn(), 1, Fault::Meet(waiting.clone()));
    let start = || {
        let mut host = host(&bench, &hub, |net| net.stall = Duration::from_mins(5));
        send(&mut host, 1, CommandBody::ModelsPull { model: MODEL.into(), revision: None });
        host
    };
    let mut first = start();
    while hub.requests(&cdn()).is_empty() {
        thread::sleep(Duration::from_millis(5));
    }
    let mut second = start();
    until(&mut second, 1, |events| notes(events).contains("Another program is fetching"));
    waiting.wait();
    until(&mut second, 1, |events| events.last() == Some(&EventBody::Done));
    until(&mut first, 1, |events| events.last() == Some(&EventBody::Done));
    assert_whole(&bench);
    assert_eq!(hub.requests(&cdn()).len(), 1);
}
