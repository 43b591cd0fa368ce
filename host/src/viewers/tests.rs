#![cfg(unix)]

use std::{
    collections::HashSet,
    path::Path,
    sync::mpsc::{Receiver, sync_channel},
};

use lathe_protocol::{TrainRequest, TrainStart};

use super::*;
use crate::testing::{Bench, step, training_started};

const ROOMY: Limits = Limits { grace: GRACE, backlog_bytes: MAX_BACKLOG_BYTES };

/// A line that breaks once it holds so many batches.
fn line(batches: usize) -> (Sink, Receiver<Batch>) {
    let (sender, receiver) = sync_channel(batches);
    (Box::new(move |batch| sender.try_send(batch).is_ok()), receiver)
}

fn viewers(bench: &Bench, limits: Limits) -> Viewers {
    let frames: Vec<EventBody> = std::iter::once(training_started()).chain((1..=50).map(step)).collect();
    // Trains on until it is told to stop.
    Viewers::with_limits(bench.options(&frames, "cat >/dev/null", &[]), limits).unwrap()
}

fn say(viewers: &Viewers, id: ViewerId, job: u64, body: CommandBody) {
    viewers.command(id, Command { job: JobId(job), body });
}

fn train(bench: &Bench, start: TrainStart) -> CommandBody {
    let request = bench.train_request(Path::new(""));
    CommandBody::Train(Box::new(TrainRequest { start, out_dir: None, device: "cpu".into(), ..request }))
}

/// What came over a line until `enough`.
fn hear(line: &Receiver<Batch>, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let mut events = Vec::new();
    while !events.last().is_some_and(&mut enough) {
        let batch = line.recv_timeout(Duration::from_mins(1)).expect("nothing came");
        // The last that was asked for ends a batch, or the rest is for later.
        events.extend(batch.events);
        if let Some(end) = events.iter().position(&mut enough) {
            events.truncate(end + 1);
        }
    }
    events
}

fn is_end(event: &Event) -> bool {
    matches!(event.body, EventBody::Done | EventBody::Failed { .. })
}

fn is_step(number: usize) -> impl FnMut(&Event) -> bool {
    move |event| matches!(&event.body, EventBody::Step(step) if step.step == number)
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let due = Instant::now() + Duration::from_mins(1);
    while !done() {
        assert!(Instant::now() < due, "waited for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn two_viewers_use_the_same_ids_and_each_hears_its_own() {
    let bench = Bench::new();
    let viewers = viewers(&bench, ROOMY);
    let (sink, one) = line(64);
    let one_id = viewers.connect(sink);
    let (sink, two) = line(64);
    let two_id = viewers.connect_by_line(sink);
    for _ in 0..3 {
        say(&viewers, one_id, 1, CommandBody::AdaptersList);
        say(&viewers, two_id, 1, CommandBody::ChatsList);
        let events = hear(&one, is_end);
        assert!(matches!(events[..], [Event { job: JobId(1), body: EventBody::Adapters { .. } }, _]));
        let events = hear(&two, is_end);
        assert!(matches!(events[..], [Event { job: JobId(1), body: EventBody::Chats { .. } }, _]));
    }
}

#[test]
fn a_viewer_whose_line_was_cut_goes_on_and_has_lost_nothing() {
    let bench = Bench::new();
    let viewers = viewers(&bench, ROOMY);
    let (sink, first) = line(64);
    let id = viewers.connect_by_line(sink);
    say(&viewers, id, 7, train(&bench, TrainStart::Attached));
    let mut heard = hear(&first, is_step(20));
    // Three of them got lost on the way, and nobody reads any more.
    heard.truncate(heard.len() - 3);
    drop(first);
    say(&viewers, id, 7, CommandBody::Stop);
    wait_for("the run's end", || viewers.active_runs() == 0);

    let (sink, second) = line(64);
    assert_eq!(viewers.resume(id, heard.len() as u64, sink), Some(0));
    heard.extend(hear(&second, is_end));
    let steps = heard.iter().filter_map(|event| match &event.body {
        EventBody::Step(step) => Some(step.step),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert!(heard.iter().all(|event| event.job == JobId(7)));

    // What was seen is not kept, so it cannot be asked for again; nor can what never was.
    viewers.seen(id, heard.len() as u64);
    assert_eq!(viewers.resume(id, 1, line(1).0), None);
    assert_eq!(viewers.resume(id, 1000, line(1).0), None);
}

#[test]
fn a_command_that_comes_twice_counts_once() {
    let bench = Bench::new();
    let viewers = viewers(&bench, ROOMY);
    let (sink, line) = line(64);
    let id = viewers.connect_by_line(sink);
    let ask = |number| {
        viewers.numbered_command(id, number, Command { job: JobId(number), body: CommandBody::AdaptersList });
    };
    for number in [1, 1, 2] {
        ask(number);
    }
    // The host answers in any order.
    let mut open = HashSet::from([JobId(1), JobId(2)]);
    let events = hear(&line, |event| {
        if is_end(event) {
            open.remove(&event.job);
        }
        open.is_empty()
    });
    let answers = events.iter().filter(|event| matches!(event.body, EventBody::Adapters { .. })).count();
    assert_eq!(answers, 2, "{events:?}");
    ask(1);
    ask(2);
    assert_eq!(viewers.board.lock().last_job, 2);
}

#[test]
fn a_viewer_that_leaves_takes_its_jobs_along_but_no_run_that_is_on_its_own() {
    let bench = Bench::new();
    let viewers = viewers(&bench, ROOMY);
    let (sink, line) = line(64);
    let id = viewers.connect(sink);
    say(&viewers, id, 1, train(&bench, TrainStart::Attached));
    hear(&line, is_step(50));
    say(&viewers, id, 2, train(&bench, TrainStart::Detached));
    hear(&line, is_end);
    assert_eq!(viewers.active_runs(), 2);
    viewers.leave(id);
    wait_for("the run of its own", || viewers.active_runs() == 1);
    thread::sleep(Duration::from_millis(200));
    assert_eq!((viewers.active_runs(), viewers.count()), (1, 0));
    // Nothing is done for one that has gone.
    say(&viewers, id, 3, train(&bench, TrainStart::Attached));
    assert_eq!(viewers.active_runs(), 1);
}

#[test]
fn a_viewer_that_comes_back_too_late_or_is_too_far_behind_is_forgotten() {
    let bench = Bench::new();
    let check = |limits: Limits| {
        let viewers = viewers(&bench, limits);
        let (sink, lost) = line(0);
        let id = viewers.connect_by_line(sink);
        say(&viewers, id, 1, train(&bench, TrainStart::Attached));
        // It reads nothing.
        wait_for("the viewer's end", || viewers.count() == 0);
        wait_for("its run's end", || viewers.active_runs() == 0);
        drop(lost);
        assert_eq!(viewers.resume(id, 0, line(1).0), None);
    };
    check(Limits { grace: Duration::from_millis(100), ..ROOMY });
    check(Limits { backlog_bytes: 1000, ..ROOMY });
}
