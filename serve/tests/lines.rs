//! A server and its viewers over real sockets.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use lathe_host::ViewerId;
use lathe_protocol::{CommandBody, ErrorCode, Event, EventBody, TrainStart};
use lathe_serve::{Options, Remote, Server};
use support::{Bench, Proxy, ask, exchange, hear, quiet, say, wait_for};

#[test]
fn a_link_lets_one_viewer_in_and_then_there_is_another() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let link = server.link();
    let mut one = Remote::connect(&link.url, quiet()).unwrap();
    assert!(matches!(ask(&mut one, 1, CommandBody::AdaptersList)[0], EventBody::Adapters { .. }));

    let error = Remote::connect(&link.url, quiet()).err().unwrap();
    assert_eq!(error.code, ErrorCode::Access, "{error}");
    let next = bench.links.lock().unwrap().recv_timeout(Duration::from_mins(1)).unwrap();
    assert_eq!(next, server.link());
    let mut two = Remote::connect(&next.url, quiet()).unwrap();

    // Both count from 1, and see each other's runs.
    say(&mut one, 2, bench.train(TrainStart::Detached));
    say(&mut two, 2, CommandBody::RunsFollow);
    hear(&mut two, |event| match &event.body {
        EventBody::Runs { runs } => runs.iter().any(|run| run.step > 0),
        _ => false,
    });
    // It is not the first viewer's any more.
    drop(one);
    wait_for("the first viewer's end", || bench.viewers.count() == 1);
    assert_eq!(bench.viewers.active_runs(), 1);
}

#[test]
fn a_line_that_is_cut_during_a_run_loses_nothing() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let proxy = Proxy::start(server.address());
    let link = server.link().url.replace(&server.address().to_string(), &proxy.address.to_string());
    let mut remote = Remote::connect(&link, quiet()).unwrap();
    say(&mut remote, 1, bench.train(TrainStart::Attached));
    let is_step =
        |number| move |event: &Event| matches!(&event.body, EventBody::Step(step) if step.step >= number);
    let mut events = hear(&mut remote, is_step(10));
    for job in [2, 3] {
        proxy.cut();
        // Said while there is no line.
        say(&mut remote, job, CommandBody::AdaptersList);
        wait_for("the trouble", || lathe_protocol::EngineLink::connection(&remote).trouble.is_some());
        proxy.mend();
        wait_for("the line", || lathe_protocol::EngineLink::connection(&remote).trouble.is_none());
        events.extend(hear(&mut remote, |event| event.job.0 == job && event.body == EventBody::Done));
    }
    let is_over = |event: &Event| event.job.0 == 1 && event.body == EventBody::Done;
    if !events.iter().any(is_over) {
        events.extend(hear(&mut remote, is_over));
    }
    let steps = events.iter().filter_map(|event| match &event.body {
        EventBody::Step(step) => Some(step.step),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), (1..=support::STEPS).collect::<Vec<_>>());
    assert_eq!(lathe_protocol::EngineLink::connection(&remote).lost_sessions, 0);
    assert_eq!(bench.viewers.count(), 1);
}

#[test]
fn who_comes_back_too_late_is_told_and_asks_again() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let proxy = Proxy::start(server.address());
    let link = server.link().url.replace(&server.address().to_string(), &proxy.address.to_string());
    let mut remote = Remote::connect(&link, quiet()).unwrap();
    say(&mut remote, 5, CommandBody::RunsFollow);
    hear(&mut remote, |event| matches!(event.body, EventBody::Runs { .. }));
    proxy.cut();
    bench.viewers.leave(ViewerId(1));
    proxy.mend();
    let events = hear(&mut remote, |event| matches!(event.body, EventBody::Failed { .. }));
    assert_eq!(events.last().unwrap().job.0, 5);
    assert_eq!(lathe_protocol::EngineLink::connection(&remote).lost_sessions, 1);
    assert!(matches!(ask(&mut remote, 6, CommandBody::RunsList)[0], EventBody::Runs { .. }));
}

#[test]
fn a_server_that_was_started_anew_wants_a_new_link() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let address = server.address();
    let remote = Remote::connect(&server.link().url, quiet()).unwrap();
    drop(server);
    let _again = bench.serve(&address.to_string());
    wait_for("the refusal", || {
        let trouble = lathe_protocol::EngineLink::connection(&remote).trouble;
        trouble.is_some_and(|trouble| trouble.contains("started anew"))
    });
}

#[test]
fn a_page_gets_its_cookie_for_the_token_and_who_guesses_has_to_wait() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let host = server.address().to_string();
    let enter = |token: &str| {
        exchange(
            &host,
            &format!(
                "POST /enter HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{token}",
                token.len()
            ),
        )
    };
    let page = exchange(&host, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for header in ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff"] {
        assert!(page.contains(header), "{page}");
    }
    let packed = exchange(
        &host,
        &format!(
            "GET /lathe_bg.wasm HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n"
        ),
    );
    assert!(packed.contains("content-encoding: gzip") && packed.contains("application/wasm"), "{packed}");
    let tag = packed.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = exchange(
        &host,
        &format!(
            "GET /lathe_bg.wasm HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nIf-None-Match: {tag}\r\n\r\n"
        ),
    );
    assert!(again.starts_with("HTTP/1.1 304"), "{again}");
    assert!(
        exchange(&host, &format!("GET /../key.pem HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
            .starts_with("HTTP/1.1 404")
    );

    let answer = enter(&server.link().token);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("HttpOnly; SameSite=Strict") && answer.contains("no-store"), "{answer}");
    for _ in 0..5 {
        assert!(enter("guess").starts_with("HTTP/1.1 401"));
    }
    let answer = enter(&server.link().token);
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("wait a minute"), "{answer}");
}

#[test]
fn other_sites_and_other_names_are_refused() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let host = server.address().to_string();
    let upgrade = |host: &str, more: &str| {
        let headers = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
        exchange(
            &server.address().to_string(),
            &format!("GET /line HTTP/1.1\r\nHost: {host}\r\n{headers}{more}\r\n"),
        )
    };
    assert!(upgrade("evil.example", "").starts_with("HTTP/1.1 403"));
    assert!(upgrade(&host, "Origin: http://evil.example\r\n").starts_with("HTTP/1.1 403"));
    assert!(upgrade(&host, &format!("Origin: https://{host}\r\n")).starts_with("HTTP/1.1 403"));
    // The right page, but without a cookie: it is told in words.
    let answer = upgrade(&host, &format!("Origin: http://{host}\r\nCookie: lathe-1=x\r\n"));
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("does not know this browser"), "{answer}");
    assert_eq!(bench.viewers.count(), 0);
}

#[test]
fn elsewhere_there_is_tls_and_the_certificate_is_the_links() {
    let bench = Bench::new();
    let server = bench.serve("0.0.0.0:0");
    let local = |url: &str| {
        let rest = url.split_once('#').unwrap().1;
        format!("https://127.0.0.1:{}/#{rest}", server.address().port())
    };
    let link = server.link();
    let fingerprint = link.fingerprint.clone().unwrap();
    assert!(link.url.starts_with("https://") && link.url.ends_with(&fingerprint), "{link:?}");
    for wrong in
        [link.url.replace(&fingerprint, &"0".repeat(64)), link.url.split('&').next().unwrap().to_owned()]
    {
        let error = Remote::connect(&local(&wrong), quiet()).err().unwrap();
        assert_eq!(error.code, ErrorCode::Access, "{error}");
        assert!(error.message.contains("Cannot trust"), "{error}");
    }
    let mut remote = Remote::connect(&local(&link.url), quiet()).unwrap();
    ask(&mut remote, 1, CommandBody::RunsList);

    // It stays the same, and its key is nobody else's to read.
    let key = bench.path("data/serve-ui/key.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(bench.serve("0.0.0.0:0").link().fingerprint, Some(fingerprint));
    fs::write(&key, "no key").unwrap();
    let error = bench.try_serve("0.0.0.0:0").err().unwrap();
    assert!(error.message.starts_with("Cannot use the key: ") && error.hint.is_some(), "{error}");
}

#[test]
fn what_cannot_be_served_is_a_clear_error() {
    let bench = Bench::new();
    let server = bench.serve("127.0.0.1:0");
    let error = bench.try_serve(&server.address().to_string()).err().unwrap();
    assert!(error.message.starts_with("Cannot listen: "), "{error}");
    assert!(error.hint.unwrap().contains("--listen"));
    let options = Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        page: bench.path("nowhere"),
        tls: None,
        on_link: Box::new(|_| {}),
    };
    let error = Server::start(Arc::clone(&bench.viewers), options).err().unwrap();
    assert!(error.hint.unwrap().contains("cargo xtask wasm"));
    for link in ["", "http://127.0.0.1:1/", "ftp://127.0.0.1/#token=a", "http://#token=a"] {
        assert_eq!(Remote::connect(link, quiet()).err().unwrap().code, ErrorCode::Usage, "{link}");
    }
    let error = Remote::connect("http://127.0.0.1:1/#token=a", quiet()).err().unwrap();
    assert_eq!(error.code, ErrorCode::Network, "{error}");
}
