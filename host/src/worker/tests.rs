#![cfg(unix)]

use lathe_protocol::{ChatStats, ErrorCode, Message, Role, SamplingParams, Thinking};

use super::*;
use crate::testing::{Bench, ask, failure, send, to_the_end};

fn chat(bench: &Bench) -> lathe_protocol::CommandBody {
    lathe_protocol::CommandBody::Chat {
        model: bench.path("model").display().to_string(),
        adapters: Vec::new(),
        device: "auto".into(),
        force: false,
    }
}

fn ready() -> EventBody {
    EventBody::ChatReady {
        styles: Vec::new(),
        load_seconds: 0.1,
        supports_thinking: false,
        supports_effort: false,
        context_length: 64,
    }
}

fn delta(channel: lathe_protocol::ReplyChannel, text: &str) -> EventBody {
    EventBody::Reply(ReplyDelta { channel, text: text.into() })
}

#[test]
fn a_worker_that_dies_leaves_its_last_words() {
    let bench = Bench::new();
    let mut host = bench.host(&[ready()], "echo first >&2; echo 'CUDA went up in smoke' >&2; exit 3", &[]);
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert_eq!(error.code, ErrorCode::WorkerDied);
    assert!(error.message.contains("exit code 3"), "{error}");
    assert_eq!(error.details.as_deref(), Some("first\nCUDA went up in smoke"));

    let mut host = bench.host(&[], "kill -9 $$", &[]);
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.contains("signal 9"), "{error}");
}

#[test]
fn only_the_last_8_kib_of_stderr_are_kept() {
    let bench = Bench::new();
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1";
    let mut host = bench.host(&[], script, &[]);
    let details = failure(&ask(&mut host, 1, chat(&bench))).details.unwrap();
    assert!(details.ends_with("line 1999"), "{details}");
    assert!(details.len() <= STDERR_TAIL_BYTES);
}

#[test]
fn another_version_a_stranger_and_nobody_are_told_apart() {
    let bench = Bench::new();
    let mut host = bench.shell_host("echo lathe-worker 999; cat");
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.contains("another version"), "{error}");
    let mut host = bench.shell_host("echo oops >&2");
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.contains("before it was ready"), "{error}");
    let mut options = HostOptions::new(bench.paths.clone(), bench.path("nobody"), Vec::new());
    options.handshake_timeout = Duration::from_millis(200);
    let mut host = crate::Host::start(options.clone()).unwrap();
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.starts_with("Cannot start the worker"), "{error}");
    options.worker_exe = "/bin/sleep".into();
    options.worker_args = vec!["60".into()];
    let mut host = crate::Host::start(options).unwrap();
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.contains("in time"), "{error}");
}

#[test]
fn a_reply_comes_in_gathered_pieces() {
    use lathe_protocol::ReplyChannel::{Answer, Thinking as Think};
    let bench = Bench::new();
    let stats = ChatStats {
        load_seconds: 0.1,
        ttft_seconds: 0.1,
        prompt_tokens: 3,
        output_tokens: 4,
        tokens_per_second: 9.0,
        thinking_tokens: 2,
        thinking_seconds: 0.1,
        finished: true,
    };
    let mut reply = vec![delta(Think, "hm "), delta(Think, "hm")];
    reply.extend((0..100).map(|_| delta(Answer, "a")));
    reply.push(EventBody::ReplyDone(stats));
    // The reply goes out at the first byte after the job: the request. Then stdin's end, then the last word.
    let wait = "head -c 4 >/dev/null; sleep 0.1; cat $FRAMES/reply; cat >/dev/null; cat $FRAMES/done";
    let mut host = bench.host(&[ready()], wait, &[("reply", &reply), ("done", &[EventBody::Done])]);
    send(&mut host, 1, chat(&bench));
    let body = lathe_protocol::CommandBody::Reply {
        messages: vec![Message::new(Role::User, "hi")],
        sampling: SamplingParams::default(),
        thinking: Thinking::Show,
        effort: None,
    };
    send(&mut host, 1, body);
    let due = Instant::now() + Duration::from_mins(1);
    let mut seen = Vec::new();
    while !seen.iter().any(|event| matches!(event, EventBody::ReplyDone(_))) {
        seen.extend(host.wait(Duration::from_millis(50)).into_iter().map(|event| event.body));
        assert!(Instant::now() < due);
    }
    let pieces: Vec<&ReplyDelta> = seen
        .iter()
        .filter_map(|event| match event {
            EventBody::Reply(delta) => Some(delta),
            _ => None,
        })
        .collect();
    assert!(pieces.len() < 20, "{} pieces", pieces.len());
    assert_eq!((pieces[0].channel, pieces[0].text.as_str()), (Think, "hm hm"));
    let answer: String = pieces[1..].iter().map(|delta| delta.text.as_str()).collect();
    assert_eq!(answer, "a".repeat(100));
    send(&mut host, 1, lathe_protocol::CommandBody::Stop);
    assert_eq!(to_the_end(&mut host, 1).last(), Some(&EventBody::Done));
}

#[test]
fn a_worker_that_will_not_stop_is_ended() {
    let bench = Bench::new();
    // Deaf to stdin's end, but not to SIGTERM.
    let mut options = bench.options(&[ready()], "sleep 60", &[]);
    options.stop_grace = Duration::from_millis(300);
    let mut host = crate::Host::start(options).unwrap();
    send(&mut host, 1, chat(&bench));
    while host.wait(Duration::from_millis(50)).is_empty() {}
    send(&mut host, 1, lathe_protocol::CommandBody::Stop);
    let error = failure(&to_the_end(&mut host, 1));
    assert!(error.message.contains("signal 15"), "{error}");

    // A second stop does not wait.
    let mut host = bench.host(&[ready()], "trap '' TERM; while true; do sleep 0.1; done", &[]);
    send(&mut host, 1, chat(&bench));
    thread::sleep(Duration::from_millis(200));
    send(&mut host, 1, lathe_protocol::CommandBody::Stop);
    send(&mut host, 1, lathe_protocol::CommandBody::Stop);
    let error = failure(&to_the_end(&mut host, 1));
    assert!(error.message.contains("at once"), "{error}");
}

#[test]
fn a_broken_frame_is_a_failure_not_a_panic() {
    let bench = Bench::new();
    let mut host = bench.host(&[ready()], "printf '\\005\\000\\000\\000hello'; sleep 5", &[]);
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.contains("broken frame"), "{error}");
    let mut host = bench.host(&[], "printf '\\377\\377\\377\\377'; sleep 5", &[]);
    let error = failure(&ask(&mut host, 1, chat(&bench)));
    assert!(error.message.contains("broken frame"), "{error}");
}

#[test]
fn dropping_the_host_ends_its_workers() {
    let bench = Bench::new();
    let mut host = bench.host(&[ready()], "cat >/dev/null; touch $FRAMES/ended", &[]);
    send(&mut host, 1, chat(&bench));
    while host.wait(Duration::from_millis(50)).is_empty() {}
    drop(host);
    assert!(bench.path("ended").exists());
}

use crate::HostOptions;
