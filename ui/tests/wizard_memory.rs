//! The wizard's memory: measured, and made to fit.

mod support;

use egui::{Theme, Vec2};
use egui_kittest::kittest::Queryable;
use lathe_protocol::{
    Command, CommandBody, ErrorCode, ErrorInfo, EventBody, Hardware, MeasuredMemory, Placement, ProbeReport,
    training_memory,
};
use support::{
    Script, ScriptedLink, fixtures,
    wizard::{self, MODEL, click, fill_in, is_enabled, open_with, sent_requests, settle, train_started},
};

/// A machine of so little memory.
fn with_ram(command: &Command, script: &mut Script, ram_total_bytes: u64) -> bool {
    let is_hardware = matches!(command.body, CommandBody::Hardware);
    if is_hardware {
        let machine = Hardware { ram_total_bytes, ..fixtures::hardware(Vec::new()) };
        script.answer(command.job, EventBody::Hardware(machine));
    }
    is_hardware
}

#[test]
fn nothing_is_planned_for_a_card_that_is_only_seen() {
    let (mut harness, _) = open_with(Theme::Light, Vec2::new(1280.0, 1200.0), |command, script| {
        let is_hardware = matches!(command.body, CommandBody::Hardware);
        if is_hardware {
            let machine = fixtures::hardware(fixtures::seen_gpus(2));
            script.answer(command.job, EventBody::Hardware(machine));
        }
        is_hardware
    });
    fill_in(&mut harness);
    harness.get_by_label_contains("of 64.0 GiB memory");
    assert!(harness.query_by_label_contains("GPU 0").is_none());
}

fn report_of(command: &Command) -> Option<ProbeReport> {
    let CommandBody::Probe { model, config, longest_row, .. } = &command.body else { return None };
    let entry = fixtures::models().into_iter().find(|entry| entry.name == *model)?;
    let predicted = training_memory(&entry.shape?, config, (*longest_row)?, Placement::Cpu);
    let peak = predicted.total() / 100 * 98;
    let measured = MeasuredMemory { program: 45 << 20, loaded: 606 << 20, ready: 700 << 20, peak };
    Some(ProbeReport { predicted, measured, row_tokens: (*longest_row)?, seconds: 1.9 })
}

#[test]
fn the_review_measures_a_step_beside_its_prediction() {
    let (mut harness, link) = open_with(Theme::Light, Vec2::new(1280.0, 1200.0), |_, _| false);
    fill_in(&mut harness);
    click(&mut harness, "Measure it");
    let probe = |link: &ScriptedLink| {
        let script = link.script.borrow();
        script.sent.iter().rev().find(|command| matches!(command.body, CommandBody::Probe { .. })).cloned()
    };
    let asked = probe(&link).unwrap();
    let CommandBody::Probe { model, longest_row, .. } = &asked.body else { unreachable!() };
    assert_eq!((model.as_str(), *longest_row), (MODEL, Some(wizard::report().lengths.max)));
    let what = "Measuring a step".to_owned();
    link.script.borrow_mut().say(asked.job, EventBody::Progress { what, done: 0, total: 0 });
    settle(&mut harness);
    harness.get_by_label("Measuring a step");
    assert!(!is_enabled(&harness, "Start"), "it would take the memory that is measured");

    click(&mut harness, "Cancel measuring");
    let stopped = |job| {
        let script = link.script.borrow();
        script.sent.iter().any(|command| command.job == job && command.body == CommandBody::Stop)
    };
    assert!(stopped(asked.job) && is_enabled(&harness, "Start"));

    click(&mut harness, "Measure it");
    let again = probe(&link).unwrap();
    assert_ne!(again.job, asked.job);
    link.script.borrow_mut().answer(again.job, EventBody::Probe(report_of(&again).unwrap()));
    settle(&mut harness);
    harness.get_by_label_contains("% less than predicted");
    harness.get_by_label("Forward and backward");
    harness.get_by_label("Measure it").scroll_to_me();
    harness.remove_cursor();
    settle(&mut harness);
    harness.snapshot("wizard_measured_light");

    // Of a run that is configured otherwise it says nothing.
    click(&mut harness, "Edit Method");
    click(&mut harness, "Quick");
    click(&mut harness, "Continue");
    assert!(harness.query_by_label_contains("than predicted").is_none());
}

#[test]
fn a_measurement_that_is_refused_says_why_and_what_would_fit() {
    let answer = |command: &Command, script: &mut Script| {
        let is_probe = matches!(command.body, CommandBody::Probe { .. });
        if is_probe {
            let message = "The step does not fit: needs 14.2 GiB, 11.0 GiB free";
            let error = ErrorInfo::new(ErrorCode::OutOfMemory, message).hint("It fits with batch_size=2");
            script.say(command.job, EventBody::Failed { error });
        }
        is_probe
    };
    let (mut harness, _) = open_with(Theme::Light, Vec2::new(1280.0, 1200.0), answer);
    fill_in(&mut harness);
    click(&mut harness, "Measure it");
    harness.get_by_label("The step does not fit: needs 14.2 GiB, 11.0 GiB free");
    harness.get_by_label_contains("It fits with batch_size=2");
    assert!(is_enabled(&harness, "Measure it"));
}

#[test]
fn a_run_that_does_not_fit_is_made_to_with_one_click() {
    let (mut harness, link) = open_with(Theme::Dark, Vec2::new(1280.0, 1200.0), |command, script| {
        with_ram(command, script, 1600 << 20) || train_started(command, script)
    });
    fill_in(&mut harness);
    harness.get_by_label_contains("It fits with gradient_checkpointing=true: it learns the same, slower");
    harness.get_by_label("Set gradient_checkpointing=true").scroll_to_me();
    harness.remove_cursor();
    settle(&mut harness);
    harness.snapshot("wizard_remedy_dark");
    click(&mut harness, "Set gradient_checkpointing=true");
    assert!(harness.query_by_label_contains("It fits with").is_none());
    click(&mut harness, "Start");
    assert!(sent_requests(&link)[0].config.gradient_checkpointing);
}
