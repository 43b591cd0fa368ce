//! The window's frame and its smaller screens, over a scripted engine.

mod support;

use egui::{Key, Modifiers, Role, Theme, ViewportCommand, ViewportEvent, ViewportId};
use egui_kittest::{Harness, SnapshotResults, kittest::Queryable as _};
use lathe_protocol::{
    AdapterUpdate, CommandBody, Download, DownloadStatus, ErrorCode, ErrorInfo, EventBody, Gpu, ModelProblem,
    Secret, StopThen, TokenStatus,
};
use lathe_ui::{CloseWish, Route};
use support::{Script, ScriptedLink, Window, fixtures, hub, window};

fn link() -> ScriptedLink {
    ScriptedLink::new(|command, script| {
        fixtures::answer(command, script);
    })
}

fn sent(link: &ScriptedLink) -> Vec<CommandBody> {
    link.script.borrow().sent.iter().map(|command| command.body.clone()).collect()
}

fn go(harness: &mut Harness<'_, Window>, route: Route) {
    harness.state_mut().0.go(route);
    harness.run_ok();
}

/// At the end of what is there.
fn type_into(harness: &mut Harness<'_, Window>, role: Role, field: &str, text: &str) {
    harness.get_by_role_and_label(role, field).focus();
    harness.run_ok();
    harness.key_press(Key::End);
    harness.get_by_role_and_label(role, field).type_text(text);
    harness.run_ok();
}

#[test]
fn the_smaller_screens_look_as_they_should() {
    let mut results = SnapshotResults::new();
    for (theme, suffix) in [(Theme::Light, "light"), (Theme::Dark, "dark")] {
        let mut harness = window(link(), theme);
        for (name, route) in [
            ("bench", Route::Bench),
            ("adapters", Route::Adapters),
            ("models", Route::Models),
            ("settings", Route::Settings),
        ] {
            go(&mut harness, route);
            results.add(harness.try_snapshot(format!("{name}_{suffix}")));
        }
    }
    let mut empty = window(
        ScriptedLink::new(|command, script| {
            fixtures::answer_empty(command, script);
        }),
        Theme::Light,
    );
    results.add(empty.try_snapshot("bench_empty_light"));
}

#[test]
fn graphics_cards_have_a_place_on_the_bench() {
    let mut results = SnapshotResults::new();
    for (theme, count, name) in [
        (Theme::Light, 1, "bench_gpu_light"),
        (Theme::Dark, 1, "bench_gpu_dark"),
        (Theme::Light, 2, "bench_gpus_light"),
        (Theme::Dark, 2, "bench_gpus_dark"),
    ] {
        let mut harness = window(link_with(fixtures::seen_gpus(count)), theme);
        harness.get_by_label_contains("93 % busy · 71 °C · 388 of 450 W · 2730 MHz, memory 10501 MHz");
        harness.get_by_label_contains("VRAM: 15.0 GiB of 24.0 GiB used");
        harness.get_by_label("Lathe 13.0 GiB · Xorg 512 MiB · firefox 256 MiB · 1 more");
        harness.get_by_label_contains("worker for graphics cards is missing");
        if count == 2 {
            harness.get_by_label("It does not tell who uses it");
        }
        results.add(harness.try_snapshot(name));
        harness.get_by_label("What this machine can do").click();
        harness.run_ok();
        harness.get_by_label_contains("once Lathe can use it");
        harness.get_by_label_contains("QLoRA: models up to");
    }
}

fn link_with(gpus: Vec<Gpu>) -> ScriptedLink {
    ScriptedLink::new(move |command, script| {
        if command.body == CommandBody::Hardware {
            script.answer(command.job, EventBody::Hardware(fixtures::hardware(gpus.clone())));
        } else {
            fixtures::answer(command, script);
        }
    })
}

#[test]
fn cards_are_followed_where_they_are_shown_and_nowhere_else() {
    let follows = |link: &ScriptedLink| link.script.borrow().job(|body| *body == CommandBody::GpusFollow);
    let without = link();
    window(without.clone(), Theme::Dark);
    assert!(follows(&without).is_none());

    let link = link_with(fixtures::seen_gpus(1));
    let mut harness = window(link.clone(), Theme::Dark);
    let job = follows(&link).unwrap();
    let gpus = vec![Gpu { utilization_percent: Some(7), ..fixtures::seen_gpus(1).remove(0) }];
    link.script.borrow_mut().say(job, EventBody::Gpus { gpus, gpu_note: None });
    harness.run_ok();
    harness.get_by_label_contains("7 % busy · 71 °C");
    assert!(harness.query_by_label_contains("worker for graphics cards is missing").is_none());
    go(&mut harness, Route::Models);
    assert!(link.script.borrow().sent.iter().any(|sent| sent.job == job && sent.body == CommandBody::Stop));
    go(&mut harness, Route::Bench);
    assert_ne!(follows(&link), Some(job));
}

#[test]
fn every_place_has_a_shortcut() {
    let mut harness = window(link(), Theme::Light);
    for (key, route) in [
        (Key::Num2, Route::Runs),
        (Key::Num3, Route::Adapters),
        (Key::Num4, Route::Models),
        (Key::Num5, Route::Chat),
        (Key::Num6, Route::Settings),
        (Key::Num1, Route::Bench),
        (Key::N, Route::NewRun),
    ] {
        harness.key_press_modifiers(Modifiers::COMMAND, key);
        harness.run_ok();
        assert_eq!(harness.state().0.route(), &route);
    }
}

#[test]
fn an_adapter_tells_what_it_was_made_of() {
    let mut harness = window(link(), Theme::Light);
    go(&mut harness, Route::Adapters);
    harness.get_by_label("What it was made of").click();
    harness.run_ok();
    harness.get_by_label_contains("120 rows");
    harness.get_by_label_contains("perplexity 2.25");
    // The other one was not made by Lathe.
    harness.get_by_label_contains("not verified");
}

#[test]
fn an_adapter_is_renamed_noted_on_and_deleted_after_a_question() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    go(&mut harness, Route::Adapters);

    harness.get_by_label("Edit pirate…").click();
    harness.run_ok();
    type_into(&mut harness, Role::TextInput, "Tags", ", v2");
    harness.get_by_label("Save").click();
    harness.run_ok();
    let update = AdapterUpdate {
        name: None,
        notes: Some("Talks like a pirate; answers stay right".into()),
        tags: Some(vec!["demo".into(), "v2".into()]),
    };
    assert_eq!(sent(&link).last(), Some(&CommandBody::AdaptersUpdate { adapter: "pirate".into(), update }));

    // A refusal shows where it was asked for, and what was typed stays.
    let job = link.script.borrow().sent.last().unwrap().job;
    let error = ErrorInfo::new(ErrorCode::Usage, "The library is read-only").hint("check its permissions");
    link.script.borrow_mut().say(job, EventBody::Failed { error });
    harness.run_ok();
    harness.get_by_label("The library is read-only");
    harness.get_by_label("Cancel").click();
    harness.run_ok();

    let removal = CommandBody::AdaptersRemove { adapter: "pirate".into() };
    harness.get_by_label("Delete pirate…").click();
    harness.run_ok();
    harness.get_by_label("Cancel").click();
    harness.run_ok();
    assert!(!sent(&link).contains(&removal));
    harness.get_by_label("Delete pirate…").click();
    harness.run_ok();
    harness.get_by_label("Delete").click();
    harness.run_ok();
    assert!(sent(&link).contains(&removal));
    let job = link.script.borrow().job(|body| *body == removal).unwrap();
    link.script
        .borrow_mut()
        .answer(job, EventBody::Removed { what: "adapter pirate".into(), freed_bytes: 9_800_000 });
    harness.run_ok();
    harness.get_by_label("Deleted adapter pirate: 9.8 MB are free again");
    assert_eq!(sent(&link).last(), Some(&CommandBody::AdaptersList), "the list is read again");
}

#[test]
fn a_model_is_verified_and_what_is_wrong_is_named() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    go(&mut harness, Route::Models);
    harness.get_by_label("Verify HuggingFaceTB/SmolLM2-135M-Instruct").click();
    harness.run_ok();
    let job = link.script.borrow().job(|body| matches!(body, CommandBody::ModelsVerify { .. })).unwrap();
    let say = |body: EventBody| link.script.borrow_mut().say(job, body);
    say(EventBody::Progress { what: "Checking model.safetensors".into(), done: 50, total: 200 });
    harness.run_ok();
    harness.get_by_label("25 %");
    let problem = ModelProblem { file: "model.safetensors".into(), problem: "the checksum differs".into() };
    say(EventBody::ModelProblems { problems: vec![problem], files_checked: 8, bytes_checked: 269_060_552 });
    say(EventBody::Done);
    harness.run_ok();
    harness.get_by_label("model.safetensors: the checksum differs");
    // A model that cannot be used offers nothing to do with it.
    harness.get_by_label("model.safetensors is missing");
}

#[test]
fn the_token_goes_to_the_keyring_and_nowhere_else() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    go(&mut harness, Route::Settings);
    type_into(&mut harness, Role::PasswordInput, "Hugging Face access token", "hf_secret");
    harness.get_by_label("Keep in the keyring").click();
    harness.run_ok();
    let saved = CommandBody::TokenSave { token: Secret("hf_secret".into()) };
    let commands = sent(&link);
    assert!(commands.contains(&saved));
    assert!(!format!("{commands:?}").contains("hf_secret"), "it is in no log");
    assert!(harness.query_by_value("hf_secret").is_none(), "the field is empty again");

    let without = ScriptedLink::new(|command, script| {
        if command.body == CommandBody::SettingsShow {
            let mut settings = fixtures::settings();
            settings.token = TokenStatus::NoKeyring("The secret service does not run".into());
            script.answer(command.job, EventBody::Settings(Box::new(settings)));
        } else {
            fixtures::answer(command, script);
        }
    });
    let mut harness = window(without, Theme::Light);
    go(&mut harness, Route::Settings);
    harness.get_by_label_contains("Set HF_TOKEN in the environment");
}

#[test]
fn settings_are_saved_only_when_they_can_be() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    go(&mut harness, Route::Settings);
    type_into(&mut harness, Role::TextInput, "Threads", "many");
    harness.get_by_label("Threads must be a number from 1 to 4096, or empty");
    harness.get_by_label("Save").click();
    harness.run_ok();
    assert!(!sent(&link).iter().any(|body| matches!(body, CommandBody::SettingsSave(_))));

    harness.get_by_label("Dark").click();
    harness.run_ok();
    let saved = sent(&link).into_iter().find_map(|body| match body {
        CommandBody::SettingsSave(settings) => Some(settings),
        _ => None,
    });
    assert_eq!(saved.unwrap().theme, lathe_protocol::Theme::Dark);
}

/// The person clicks the window's cross.
fn ask_to_close(harness: &mut Harness<'_, Window>) {
    let viewport = harness.input_mut().viewports.entry(ViewportId::ROOT).or_default();
    viewport.events.push(ViewportEvent::Close);
    harness.step();
    if let Some(viewport) = harness.input_mut().viewports.get_mut(&ViewportId::ROOT) {
        viewport.events.clear();
    }
}

fn viewport_commands(harness: &Harness<'_, Window>) -> Vec<ViewportCommand> {
    harness.output().viewport_output[&ViewportId::ROOT].commands.clone()
}

#[test]
fn closing_while_a_run_goes_on_asks_what_shall_become_of_it() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    ask_to_close(&mut harness);
    assert!(viewport_commands(&harness).contains(&ViewportCommand::CancelClose));
    harness.run_ok();
    harness.get_by_label("A run is going on");
    harness.snapshot("closing_light");

    // Stopping waits for the checkpoint, then closes.
    harness.get_by_label("Checkpoint and stop").click();
    harness.run_ok();
    let stop = CommandBody::RunsStop { run: fixtures::runs()[0].id.clone(), then: StopThen::Pause };
    assert!(sent(&link).contains(&stop));
    harness.get_by_label("Saving before closing");
    let follow = link.script.borrow().job(|body| *body == CommandBody::RunsFollow).unwrap();
    let mut runs = fixtures::runs();
    runs[0].status = lathe_protocol::RunStatus::Stopped;
    link.script.borrow_mut().say(follow, EventBody::Runs { runs });
    harness.step();
    assert!(viewport_commands(&harness).contains(&ViewportCommand::Close));
    assert_eq!(harness.state().0.close_wish(), CloseWish::Stop);
}

#[test]
fn a_window_closed_for_the_background_keeps_its_run() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    ask_to_close(&mut harness);
    harness.run_ok();
    harness.get_by_label("Keep running in the background").click();
    harness.step();
    harness.step();
    assert_eq!(harness.state().0.close_wish(), CloseWish::KeepRunning);
    assert!(!sent(&link).iter().any(|body| matches!(body, CommandBody::RunsStop { .. })));
}

#[test]
fn closing_while_something_is_downloaded_asks_too() {
    let download =
        |model, held_here| Download { held_here, ..hub::download(model, DownloadStatus::Running, 25) };
    let link = ScriptedLink::new(move |command, script: &mut Script| {
        if command.body == CommandBody::DownloadsFollow {
            let downloads = vec![download("a/one", true), download("a/elsewhere", false)];
            script.say(command.job, EventBody::Downloads { downloads });
        } else {
            fixtures::answer_empty(command, script);
        }
    });
    let mut harness = window(link, Theme::Light);
    ask_to_close(&mut harness);
    assert!(viewport_commands(&harness).contains(&ViewportCommand::CancelClose));
    harness.run_ok();
    harness.get_by_label("A download is going on");
    harness.get_by_label("a/one, 860 MB of 3.4 GB");
    assert!(harness.query_by_label_contains("a/elsewhere").is_none());
    // Nothing waits for a checkpoint.
    harness.get_by_label("Pause and close").click();
    harness.step();
    harness.step();
    assert!(viewport_commands(&harness).contains(&ViewportCommand::Close));
    assert_eq!(harness.state().0.close_wish(), CloseWish::Stop);
}

#[test]
fn without_a_run_the_window_just_closes() {
    let empty = ScriptedLink::new(|command, script: &mut Script| {
        fixtures::answer_empty(command, script);
    });
    let mut harness = window(empty, Theme::Light);
    ask_to_close(&mut harness);
    assert!(!viewport_commands(&harness).contains(&ViewportCommand::CancelClose));
}
