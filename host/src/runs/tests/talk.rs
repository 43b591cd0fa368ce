//! Talking to a run of another process.

use lathe_protocol::{
    AnsweredBy, ChatStats, Message, ReplyChannel, ReplyDelta, Role, RunVoice, SamplingParams, Thinking,
};

use super::*;
use crate::{Host, testing::until};

/// A worker that trains until it is told to stop, and answers by the words of the question.
const ANSWERS: &str = r#"
    frame() { n=$(head -c 4 | od -An -tu4 | tr -d ' '); [ -n "$n" ] && head -c "$n"; }
    frame >/dev/null
    while text=$(frame) && [ -n "$text" ]; do
        echo "$text" >> $FRAMES/asked
        case "$text" in
            *cancel_reply*) cat $FRAMES/cut;;
            *Wait*) cat $FRAMES/begun;;
            *Finish*) break;;
            *Die*) kill -9 $$;;
            *'"stop"'*) ;;
            *) cat $FRAMES/begun $FRAMES/answered;;
        esac
    done
"#;

fn ready() -> EventBody {
    EventBody::ChatReady {
        load_seconds: 0.0,
        supports_thinking: false,
        supports_effort: false,
        context_length: 64,
        styles: Vec::new(),
    }
}

fn answered(finished: bool) -> EventBody {
    EventBody::ReplyDone(ChatStats {
        load_seconds: 0.0,
        ttft_seconds: 0.1,
        prompt_tokens: 3,
        output_tokens: 4,
        tokens_per_second: 9.0,
        thinking_tokens: 0,
        thinking_seconds: 0.0,
        finished,
    })
}

fn begun() -> [EventBody; 2] {
    let by = AnsweredBy { step: 1, total_steps: 2, voice: RunVoice::Base };
    let delta = ReplyDelta { channel: ReplyChannel::Answer, text: "Ahoy".into() };
    [EventBody::ReplyStarted(by), EventBody::Reply(delta)]
}

/// A host that trains a run in `out`.
fn training_host(bench: &Bench, out: &Path, completes: bool) -> Host {
    let script = format!("{ANSWERS} {}", finishing(bench, out));
    let mut host = bench.host(
        &[ready(), training_started(), step(1)],
        &script,
        &[
            ("begun", &begun()),
            ("answered", &[answered(true)]),
            ("cut", &[answered(false)]),
            ("end", &[step(2), training_done(completes), EventBody::Done]),
        ],
    );
    send(&mut host, 1, train(bench, out));
    until(&mut host, 1, |events| matches!(events.last(), Some(EventBody::Step(_))));
    host
}

fn talk(base: bool) -> CommandBody {
    CommandBody::TalkToRun { run: "model-pirate".into(), base }
}

fn say(host: &mut Host, job: u64, text: &str) {
    let body = CommandBody::Reply {
        messages: vec![Message::new(Role::User, text)],
        sampling: SamplingParams::default(),
        thinking: Thinking::Show,
        effort: None,
    };
    send(host, job, body);
}

fn num_questions(bench: &Bench) -> usize {
    let db = Db::open(&bench.paths.db()).unwrap();
    let run = &listed(bench)[0].id;
    let mut count = 0;
    let mut id = 0;
    while let Some((next, _)) = db.next_question(run, id).unwrap() {
        (id, count) = (next, count + 1);
    }
    count
}

fn wait_until(is_so: impl Fn() -> bool) {
    let due = Instant::now() + Duration::from_mins(1);
    while !is_so() {
        assert!(Instant::now() < due);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_run_of_another_process_answers_questions_in_turn_and_says_at_which_step() {
    let bench = Bench::new();
    let training = training_host(&bench, &bench.path("out"), true);
    let mut host = bench.shell_host("exit 1");
    send(&mut host, 1, talk(true));
    until(&mut host, 1, |events| events == [ready()]);
    let whole = [begun().as_slice(), &[answered(true)]].concat();
    say(&mut host, 1, "Hello");
    say(&mut host, 1, "Again");
    until(&mut host, 1, |events| events == [whole.clone(), whole.clone()].concat());

    // A cancel ends the answer, and the next question is answered.
    say(&mut host, 1, "Wait");
    until(&mut host, 1, |events| events == begun());
    send(&mut host, 1, CommandBody::CancelReply);
    until(&mut host, 1, |events| events == [answered(false)]);
    assert_eq!(num_questions(&bench), 0);

    // Who leaves takes the question along.
    say(&mut host, 1, "Wait");
    until(&mut host, 1, |events| events == begun());
    assert_eq!(num_questions(&bench), 1);
    send(&mut host, 1, CommandBody::Stop);
    assert_eq!(to_the_end(&mut host, 1), [EventBody::Done]);
    assert_eq!(num_questions(&bench), 0);
    let asked = || fs::read_to_string(bench.path("asked")).unwrap();
    wait_until(|| asked().lines().count() == 6);
    let kind = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let lines: Vec<_> = asked().lines().map(kind).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["request"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reply", "reply", "reply", "cancel_reply", "reply", "cancel_reply"]);
    assert_eq!((&lines[0]["base"], &lines[1]["messages"][0]["content"]), (&true.into(), &"Again".into()));
    drop(training);
}

#[test]
fn a_question_to_a_run_that_ends_is_refused_with_who_answers_now() {
    let check = |question: &str, completes: bool, message: &str, hint: &str| {
        let bench = Bench::new();
        let mut training = training_host(&bench, &bench.path("out"), completes);
        let mut host = bench.shell_host("exit 1");
        send(&mut host, 1, talk(false));
        until(&mut host, 1, |events| events == [ready()]);
        say(&mut host, 1, question);
        let error = failure(&to_the_end(&mut host, 1));
        let hint = hint.replace("ID", &listed(&bench)[0].id).replace("MODEL", &listed(&bench)[0].model);
        assert_eq!((error.message.as_str(), error.hint.as_deref()), (message, Some(hint.as_str())));
        assert_eq!(num_questions(&bench), 0);
        // Also who comes later.
        assert_eq!(failure(&ask(&mut host, 1, talk(false))), error);
        to_the_end(&mut training, 1);
    };
    check(
        "Finish",
        true,
        "Run model-pirate has ended after step 2 of 2",
        "go on with what it learned: lathe chat --model MODEL --adapter model-pirate",
    );
    check(
        "Finish",
        false,
        "Run model-pirate does not train: it is stopped",
        "resume it: lathe runs resume ID",
    );
    check(
        "Die",
        true,
        "Run model-pirate does not train: it is interrupted",
        "resume it: lathe runs resume ID",
    );
}

#[test]
fn a_stop_reaches_a_run_that_is_asked_something() {
    let bench = Bench::new();
    let mut training = training_host(&bench, &bench.path("out"), false);
    let mut host = bench.shell_host("exit 1");
    send(&mut host, 1, talk(false));
    say(&mut host, 1, "Wait");
    until(&mut host, 1, |events| events.ends_with(&begun()));
    ask(&mut training, 2, CommandBody::RunsStop { run: "model-pirate".into(), then: StopThen::Pause });
    let error = failure(&to_the_end(&mut host, 1));
    assert_eq!(error.message, "Run model-pirate does not train: it is stopped");
}

#[test]
fn a_queued_run_and_an_unknown_one_do_not_answer() {
    let bench = Bench::new();
    let mut host = bench.shell_host("exit 1");
    let error = failure(&ask(&mut host, 1, talk(false)));
    assert!(error.message.contains("No run named"), "{error}");
    let mut request = bench.train_request(&bench.path("out"));
    request.start = TrainStart::Queued;
    ask(&mut host, 1, CommandBody::Train(Box::new(request)));
    let error = failure(&ask(&mut host, 1, talk(false)));
    assert_eq!(error.message, "Run model-pirate is queued: it answers once it trains");
}
