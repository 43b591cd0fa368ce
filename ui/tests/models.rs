//! The Hub, downloads and the cache, through the window.

mod support;

use std::{cell::Cell, rc::Rc};

use egui::{Key, Role, Theme, Vec2};
use egui_kittest::{
    Harness, SnapshotResults,
    kittest::{NodeT as _, Queryable as _},
};
use lathe_protocol::{
    CacheTarget, CommandBody, DownloadAct, DownloadStatus, ErrorCode, ErrorInfo, EventBody, Gate, HubDetails,
    HubFile, HubModel, ModelEntry, ModelProblem, RepoKind,
};
use lathe_ui::Route;
use support::{
    ScriptedLink, Window, fixtures,
    hub::{self, LLAMA, QWEN},
    window_of_size,
};

const FIELD: &str = "Search the Hub, or name a model: owner/name or s3://bucket/prefix";
const QWEN_8B: &str = "Qwen/Qwen3-8B";

fn open_with(link: &ScriptedLink, part: &str) -> Harness<'static, Window> {
    open_at(link, part, Theme::Light, Vec2::new(1280.0, 800.0))
}

fn open_at(link: &ScriptedLink, part: &str, theme: Theme, size: Vec2) -> Harness<'static, Window> {
    let mut harness = window_of_size(link.clone(), theme, size);
    harness.state_mut().0.go(Route::Models);
    harness.run_ok();
    click(&mut harness, part);
    harness
}

fn link() -> ScriptedLink {
    ScriptedLink::new(hub::answer)
}

/// A dialog is in its place some frames after what it says.
fn settle(harness: &mut Harness<'_, Window>) {
    harness.run_ok();
    harness.run_steps(4);
}

fn click(harness: &mut Harness<'_, Window>, label: &str) {
    harness.get_by_label(label).click();
    settle(harness);
}

fn search(harness: &mut Harness<'_, Window>, words: &str) {
    harness.get_by_label(FIELD).focus();
    harness.run_ok();
    harness.get_by_label(FIELD).type_text(words);
    harness.run_ok();
    harness.key_press(Key::Enter);
    settle(harness);
}

fn sent(link: &ScriptedLink) -> Vec<CommandBody> {
    link.script.borrow().sent.iter().map(|command| command.body.clone()).collect()
}

fn is_enabled(harness: &Harness<'_, Window>, label: &str) -> bool {
    !harness.get_by_label(label).accesskit_node().is_disabled()
}

/// What the host says to the newest job of such a command.
fn say(link: &ScriptedLink, is: impl Fn(&CommandBody) -> bool, body: EventBody) {
    let mut script = link.script.borrow_mut();
    let job = script.job(is).expect("it was asked");
    script.say(job, body);
}

fn follow(link: &ScriptedLink, downloads: Vec<lathe_protocol::Download>) {
    say(link, |body| *body == CommandBody::DownloadsFollow, EventBody::Downloads { downloads });
}

#[test]
fn a_search_shows_what_the_hub_found_and_its_licence() {
    let link = link();
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, "qwen3-1.7b");
    let asked = CommandBody::HubSearch { query: "qwen3-1.7b".into(), limit: 30 };
    assert!(sent(&link).contains(&asked));
    harness.get_by_label_contains("1.7B parameters  ·  mit");
    harness.get_by_label("Agree to its terms");
    harness.get_by_label("Private");
    harness.get_by_label("Not supported: MambaForCausalLM");
    // What the catalog has is not listed twice.
    assert_eq!(harness.get_all_by_label(QWEN).count(), 1);
}

#[test]
fn what_is_typed_is_searched_for_after_a_pause() {
    let link = link();
    let mut harness = open_with(&link, "Get a model");
    harness.get_by_label(FIELD).focus();
    harness.run_ok();
    harness.get_by_label(FIELD).type_text("smol");
    harness.step();
    let searches = |link: &ScriptedLink| {
        sent(link).iter().filter(|body| matches!(body, CommandBody::HubSearch { .. })).count()
    };
    assert_eq!(searches(&link), 0);
    for _ in 0..60 {
        harness.step();
    }
    assert_eq!(searches(&link), 1);
}

#[test]
fn without_a_network_the_catalog_is_still_there() {
    let link = ScriptedLink::new(|command, script| match command.body {
        CommandBody::HubSearch { .. } | CommandBody::HubShow { .. } => {
            let error = ErrorInfo::new(ErrorCode::Network, "The Hub cannot be reached: no network")
                .hint("check the connection, or set a proxy");
            script.say(command.job, EventBody::Failed { error });
        }
        _ => hub::answer(command, script),
    });
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, "qwen3-1.7b");
    harness.get_by_label("The Hub cannot be reached: no network");
    let searches = |link: &ScriptedLink| {
        sent(link).iter().filter(|body| matches!(body, CommandBody::HubSearch { .. })).count()
    };
    let before = searches(&link);
    click(&mut harness, "Try again");
    assert_eq!(searches(&link), before + 1);
    click(&mut harness, QWEN);
    harness.get_by_label("4.1 GB");
    let download = harness.get_by_role_and_label(Role::Button, "Download");
    assert!(download.accesskit_node().is_disabled(), "nobody knows what would be fetched");
}

#[test]
fn before_a_download_its_size_licence_and_fit_are_told() {
    let link = link();
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, QWEN);
    harness.get_by_label("4.1 GB, 11.4 MB of it here already");
    harness.get_by_label("apache-2.0");
    harness.get_by_label("Qwen3ForCausalLM");
    harness.get_by_label("3 of 4 files are needed");
    // To train, to talk to, and in the list behind.
    assert_eq!(harness.get_all_by_label_contains("Fits, takes").count(), 3);
    harness.snapshot("models_details_light");
    click(&mut harness, "Download 4.1 GB");
    assert_eq!(sent(&link).last(), Some(&CommandBody::DownloadsAdd { model: QWEN.into(), revision: None }));
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Running, 38)]);
    harness.run_ok();
    harness.get_by_label_contains("48.3 MB/s  ·  52 s left");
    assert!(harness.query_by_label("Download 4.1 GB").is_none());
    // Once it is over, what is here is looked at anew.
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Done, 100)]);
    settle(&mut harness);
    assert_eq!(sent(&link).last(), Some(&CommandBody::HubShow { model: QWEN.into(), revision: None }));
}

#[test]
fn a_gated_model_says_what_to_do() {
    let link = link();
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, LLAMA);
    harness.get_by_label_contains("Open its page, sign in and agree");
    assert_eq!(harness.get_all_by_label("Open its page").count(), 1);
    harness.snapshot("models_gated_light");
    click(&mut harness, "Open Settings");
    assert_eq!(harness.state().0.route(), &Route::Settings);
}

#[test]
fn a_model_that_cannot_be_used_or_has_no_room_is_not_downloaded() {
    let refused = |change: fn(&mut HubDetails), words: &str| {
        let link = ScriptedLink::new(move |command, script| match &command.body {
            CommandBody::HubShow { model, .. } => {
                let mut details = hub::details(model);
                change(&mut details);
                script.answer(command.job, EventBody::HubDetails(Box::new(details)));
            }
            _ => hub::answer(command, script),
        });
        let mut harness = open_with(&link, "Get a model");
        search(&mut harness, QWEN);
        harness.get_by_label(words);
        assert!(!is_enabled(&harness, "Download 4.1 GB"));
    };
    refused(
        |details| details.problem = Some("Only pickled weights, which Lathe does not read".into()),
        "Only pickled weights, which Lathe does not read",
    );
    refused(
        |details| details.disk_free_bytes = 2_000_000_000,
        "The disk is too full: needs 4.1 GB, 2.0 GB free",
    );
}

#[test]
fn a_folder_of_a_bucket_is_a_source_too() {
    let link = link();
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, "s3://acme/models/house");
    let model = "s3://acme/models/house".to_owned();
    assert!(sent(&link).contains(&CommandBody::HubShow { model: model.clone(), revision: None }));
    assert!(!sent(&link).iter().any(|body| matches!(body, CommandBody::HubSearch { .. })));
    click(&mut harness, "Download 3.4 GB");
    assert_eq!(sent(&link).last(), Some(&CommandBody::DownloadsAdd { model, revision: None }));
}

#[test]
fn of_several_gguf_files_one_is_chosen() {
    let link = ScriptedLink::new(|command, script| match &command.body {
        CommandBody::HubShow { model, .. } => {
            let file = |name: &str, size_bytes, is_wanted| HubFile {
                name: name.into(),
                size_bytes,
                is_wanted,
                is_here: false,
            };
            let is_small = !model.contains("Q8_0");
            let details = HubDetails {
                files: vec![
                    file("m-Q4_K_M.gguf", 1_100_000_000, is_small),
                    file("m-Q8_0.gguf", 1_830_000_000, !is_small),
                    file("mmproj-F16.gguf", 400_000_000, false),
                ],
                missing_bytes: if is_small { 1_100_000_000 } else { 1_830_000_000 },
                ..hub::details(model)
            };
            script.answer(command.job, EventBody::HubDetails(Box::new(details)));
        }
        _ => hub::answer(command, script),
    });
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, "acme/m-GGUF");
    harness.get_by_label("Download 1.1 GB");
    harness.get_by_role_and_label(Role::ComboBox, "Which file").click();
    settle(&mut harness);
    click(&mut harness, "m-Q8_0.gguf, 1.8 GB");
    settle(&mut harness);
    assert!(harness.query_by_label("mmproj-F16.gguf, 400 MB").is_none());
    click(&mut harness, "Download 1.8 GB");
    let model = "acme/m-GGUF/m-Q8_0.gguf".to_owned();
    assert_eq!(sent(&link).last(), Some(&CommandBody::DownloadsAdd { model, revision: None }));
}

#[test]
fn a_model_that_is_not_whole_is_completed_from_the_hub() {
    let link = link();
    let mut harness = open_with(&link, "On this machine");
    click(&mut harness, "Get what is missing…");
    let show = CommandBody::HubShow { model: "Qwen/Qwen3-0.6B".into(), revision: None };
    assert!(sent(&link).contains(&show));
    click(&mut harness, "Download 1.5 GB");
    let add = CommandBody::DownloadsAdd { model: "Qwen/Qwen3-0.6B".into(), revision: None };
    assert_eq!(sent(&link).last(), Some(&add));
}

#[test]
fn a_download_can_be_paused_and_goes_on() {
    let link = link();
    let mut harness = open_with(&link, "Downloads");
    harness.get_by_label("No downloads");
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Running, 38)]);
    harness.run_ok();
    harness.get_by_label("↓ 38 %");
    click(&mut harness, "Pause");
    let act = |act| CommandBody::DownloadsAct { model: QWEN.into(), act };
    assert_eq!(sent(&link).last(), Some(&act(DownloadAct::Pause)));
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Paused, 39)]);
    harness.run_ok();
    assert!(harness.query_by_label_contains("↓").is_none());
    click(&mut harness, "Resume");
    assert_eq!(sent(&link).last(), Some(&act(DownloadAct::Resume)));
}

#[test]
fn a_removed_download_keeps_or_loses_what_was_fetched_as_one_says() {
    let link = link();
    let mut harness = open_with(&link, "Downloads");
    follow(&link, hub::downloads());
    harness.run_ok();
    let remove = format!("Remove {QWEN_8B} from the downloads");
    let acts = |link: &ScriptedLink| {
        let acts = sent(link).into_iter().filter_map(|body| match body {
            CommandBody::DownloadsAct { act, .. } => Some(act),
            _ => None,
        });
        acts.collect::<Vec<_>>()
    };
    click(&mut harness, &remove);
    harness.get_by_label_contains("10.0 GB of it are here");
    click(&mut harness, "Cancel");
    assert_eq!(acts(&link), []);
    click(&mut harness, &remove);
    click(&mut harness, "Remove, keep the files");
    click(&mut harness, &remove);
    click(&mut harness, "Remove and delete");
    assert_eq!(acts(&link), [DownloadAct::Forget, DownloadAct::Discard]);
}

#[test]
fn a_failed_download_says_why_and_what_to_do() {
    let link = link();
    let mut harness = open_with(&link, "Downloads");
    follow(&link, hub::downloads());
    harness.run_ok();
    harness.get_by_label_contains("is gated, and there is no token");
    harness.get_by_label("Open Settings");
    click(&mut harness, "Try again");
    let again = CommandBody::DownloadsAct { model: LLAMA.into(), act: DownloadAct::Resume };
    assert_eq!(sent(&link).last(), Some(&again));
    // A refusal of the host's is told at the download it is about.
    let error = ErrorInfo::new(ErrorCode::Busy, "Another Lathe downloads it");
    say(&link, |body| *body == again, EventBody::Failed { error });
    harness.run_ok();
    assert!(harness.query_by_label("Another Lathe downloads it").is_none(), "its job had ended");
}

#[test]
fn a_model_that_has_arrived_is_told_and_listed() {
    let link = link();
    let mut harness = open_with(&link, "Downloads");
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Running, 99)]);
    harness.run_ok();
    let before = sent(&link).len();
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Done, 100)]);
    harness.run_ok();
    harness.get_by_label("Qwen/Qwen3-1.7B is on this machine now");
    assert_eq!(sent(&link)[before..], [CommandBody::ModelsList]);
}

#[test]
fn deleting_shows_what_is_freed_first() {
    let link = link();
    let mut harness = open_with(&link, "Storage");
    click(&mut harness, "Unfold Qwen/Qwen3-8B");
    click(&mut harness, "Select Qwen/Qwen3-8B at 9c925d64");
    click(&mut harness, "Select HuggingFaceH4/ultrachat_200k");
    click(&mut harness, "Delete 2 selected…");
    harness.get_by_label_contains("model Qwen/Qwen3-8B, revision 9c925d64");
    let targets = vec![
        CacheTarget::Revision { kind: RepoKind::Model, id: QWEN_8B.into(), commit: "9c925d64".repeat(5) },
        CacheTarget::Repo { kind: RepoKind::Dataset, id: "HuggingFaceH4/ultrachat_200k".into() },
    ];
    let delete = CommandBody::CacheDelete { targets: targets.clone() };
    assert!(sent(&link).contains(&CommandBody::CachePlan { targets }));
    assert!(!sent(&link).contains(&delete));
    click(&mut harness, "Delete, free 8.2 GB");
    assert_eq!(sent(&link).last(), Some(&delete));
    let removed = EventBody::Removed { what: "8 files".into(), freed_bytes: 8_180_000_000 };
    say(&link, |body| *body == delete, removed);
    say(&link, |body| *body == delete, EventBody::Done);
    harness.run_ok();
    harness.get_by_label("Deleted: 8.2 GB are free again");
    assert!(sent(&link).ends_with(&[CommandBody::ModelsList, CommandBody::CacheShow]));
    assert!(!is_enabled(&harness, "Delete selected…"));
}

#[test]
fn a_model_is_deleted_once_it_is_shown_what_goes_with_it() {
    let link = link();
    let mut harness = open_with(&link, "On this machine");
    click(&mut harness, "Delete HuggingFaceTB/SmolLM2-1.7B-Instruct…");
    harness.get_by_label("model HuggingFaceTB/SmolLM2-1.7B-Instruct, all 2 revisions");
    click(&mut harness, "Delete, free 4.1 GB");
    let id = "HuggingFaceTB/SmolLM2-1.7B-Instruct".to_owned();
    let delete = CommandBody::CacheDelete { targets: vec![CacheTarget::Repo { kind: RepoKind::Model, id }] };
    assert_eq!(sent(&link).last(), Some(&delete));
    let error = ErrorInfo::new(ErrorCode::Busy, "A run uses it");
    say(&link, |body| *body == delete, EventBody::Failed { error });
    settle(&mut harness);
    harness.get_by_label("A run uses it");
    click(&mut harness, "Cancel");
    assert!(harness.query_by_label("A run uses it").is_none());
}

#[test]
fn any_revision_of_anything_can_be_verified() {
    let link = link();
    let mut harness = open_with(&link, "Storage");
    click(&mut harness, "Verify HuggingFaceH4/ultrachat_200k");
    let name = format!("dataset/HuggingFaceH4/ultrachat_200k@{}", "8049631c".repeat(5));
    let verify = CommandBody::ModelsVerify { model: name };
    assert_eq!(sent(&link).last(), Some(&verify));
    let problem = ModelProblem { file: "data/train.parquet".into(), problem: "it is damaged".into() };
    let found = EventBody::ModelProblems { problems: vec![problem], files_checked: 9, bytes_checked: 9 };
    say(&link, |body| *body == verify, found);
    say(&link, |body| *body == verify, EventBody::Done);
    settle(&mut harness);
    harness.get_by_label("data/train.parquet: it is damaged");
    click(&mut harness, "Unfold Qwen/Qwen3-8B");
    click(&mut harness, "Verify Qwen/Qwen3-8B at 9c925d64");
    let name = format!("Qwen/Qwen3-8B@{}", "9c925d64".repeat(5));
    assert!(sent(&link).contains(&CommandBody::ModelsVerify { model: name }));
}

#[test]
fn a_whole_repository_takes_its_selected_revisions_in() {
    let link = link();
    let mut harness = open_with(&link, "Storage");
    click(&mut harness, "Unfold Qwen/Qwen3-8B");
    click(&mut harness, "Select Qwen/Qwen3-8B at 9c925d64");
    click(&mut harness, "Select Qwen/Qwen3-8B");
    harness.get_by_label("Delete 1 selected…");
    assert!(!is_enabled(&harness, "Select Qwen/Qwen3-8B at 9c925d64"));
}

#[test]
fn cleaning_up_leaves_older_revisions_unless_they_are_asked_for() {
    let link = link();
    let mut harness = open_with(&link, "Storage");
    click(&mut harness, "Clean up…");
    let plans = |link: &ScriptedLink| {
        let plans = sent(link).into_iter().filter_map(|body| match body {
            CommandBody::CachePlan { targets } => Some(targets),
            _ => None,
        });
        plans.collect::<Vec<_>>()
    };
    assert_eq!(plans(&link), [[CacheTarget::Incomplete, CacheTarget::Unreferenced]]);
    harness.get_by_label_contains("1 revision without a branch or tag").click();
    harness.run_ok();
    let all = [CacheTarget::Incomplete, CacheTarget::Unreferenced, CacheTarget::Detached];
    assert_eq!(plans(&link)[1], all);
    click(&mut harness, "Cancel");
    assert!(!sent(&link).iter().any(|body| matches!(body, CommandBody::CacheDelete { .. })));
}

#[test]
fn the_cache_moves_to_another_disk_once_it_is_said_what_happens() {
    let link = link();
    let mut harness = open_with(&link, "Storage");
    click(&mut harness, "Move to another disk…");
    click(&mut harness, "Choose this folder");
    harness.get_by_label_contains("A link stays at /home/ada/.cache/huggingface/hub");
    harness.snapshot("models_move_light");
    let moves = CommandBody::CacheMove { repo: None, to: "/mnt/big/huggingface-hub".into() };
    assert!(!sent(&link).contains(&moves));
    click(&mut harness, "Move");
    assert_eq!(sent(&link).last(), Some(&moves));
    let progress = EventBody::Progress { what: "Copying".into(), done: 1, total: 4 };
    say(&link, |body| *body == moves, progress);
    harness.run_ok();
    harness.get_by_label("25 %");
    let moved = EventBody::Moved { what: "the cache".into(), to: "/mnt/big".into(), bytes: 24_390_000_000 };
    say(&link, |body| *body == moves, moved);
    say(&link, |body| *body == moves, EventBody::Done);
    harness.run_ok();
    harness.get_by_label("Moved the cache to /mnt/big: 24.4 GB");
}

#[test]
fn the_wizard_downloads_a_model_and_goes_on_with_it() {
    let has_arrived = Rc::new(Cell::new(false));
    let arrived = has_arrived.clone();
    let link = ScriptedLink::new(move |command, script| match command.body {
        CommandBody::ModelsList if arrived.get() => {
            let mut models = fixtures::models();
            models.push(ModelEntry { name: QWEN.into(), ..models[1].clone() });
            script.answer(command.job, EventBody::Models { models });
        }
        _ => hub::answer(command, script),
    });
    let mut harness = window_of_size(link.clone(), Theme::Light, Vec2::new(1280.0, 1600.0));
    harness.state_mut().0.go(Route::NewRun);
    harness.run_ok();
    click(&mut harness, QWEN);
    assert!(!is_enabled(&harness, "Continue"));
    click(&mut harness, "Download 4.1 GB");
    let add = CommandBody::DownloadsAdd { model: QWEN.into(), revision: None };
    assert_eq!(sent(&link).last(), Some(&add));
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Running, 38)]);
    harness.run_ok();
    harness.get_by_label_contains("48.3 MB/s");
    harness.snapshot("wizard_download_light");
    has_arrived.set(true);
    follow(&link, vec![hub::download(QWEN, DownloadStatus::Done, 100)]);
    settle(&mut harness);
    assert!(is_enabled(&harness, "Continue"));
}

#[test]
fn hundreds_of_repositories_are_drawn_only_where_they_are_in_sight() {
    let link = ScriptedLink::new(|command, script| match command.body {
        CommandBody::CacheShow => {
            let mut report = hub::cache();
            let one = report.repos[1].clone();
            report.repos = (0..600)
                .map(|number| lathe_protocol::CacheRepo { id: format!("many/model-{number}"), ..one.clone() })
                .collect();
            script.answer(command.job, EventBody::Cache(Box::new(report)));
        }
        _ => hub::answer(command, script),
    });
    let harness = open_with(&link, "Storage");
    harness.get_by_label("600 repositories, 600 revisions");
    harness.get_by_label("Verify many/model-3");
    assert!(harness.query_by_label("Verify many/model-300").is_none());
}

#[test]
fn the_parts_look_as_they_should() {
    let mut results = SnapshotResults::new();
    let sizes = [
        (Theme::Light, Vec2::new(1280.0, 800.0), "light"),
        (Theme::Dark, Vec2::new(1280.0, 800.0), "dark"),
        (Theme::Dark, Vec2::new(1920.0, 1080.0), "large"),
        (Theme::Light, Vec2::new(960.0, 600.0), "small"),
    ];
    for (theme, size, suffix) in sizes {
        let link = link();
        let mut harness = open_at(&link, "Get a model", theme, size);
        follow(&link, hub::downloads());
        harness.run_ok();
        results.add(harness.try_snapshot(format!("models_get_{suffix}")));
        search(&mut harness, "qwen3-1.7b");
        results.add(harness.try_snapshot(format!("models_search_{suffix}")));
        harness.get_by_label_contains("Downloads (").click();
        harness.run_ok();
        results.add(harness.try_snapshot(format!("models_downloads_{suffix}")));
        click(&mut harness, "Storage");
        click(&mut harness, "Select HuggingFaceH4/ultrachat_200k");
        click(&mut harness, "Unfold Qwen/Qwen3-8B");
        results.add(harness.try_snapshot(format!("models_storage_{suffix}")));
        click(&mut harness, "Clean up…");
        results.add(harness.try_snapshot(format!("models_clean_up_{suffix}")));
    }
}

#[test]
fn a_result_that_nobody_may_have_is_said_to_be_so() {
    let link = ScriptedLink::new(|command, script| match command.body {
        CommandBody::HubSearch { .. } => {
            let mut models = hub::found();
            models.truncate(2);
            models[1] = HubModel { gate: Gate::Ask, ..models[1].clone() };
            script.answer(command.job, EventBody::HubModels { models });
        }
        _ => hub::answer(command, script),
    });
    let mut harness = open_with(&link, "Get a model");
    search(&mut harness, "qwen3-1.7b");
    harness.get_by_label("Ask for access");
}
