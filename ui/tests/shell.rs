//! What the desktop app adds to the window: the system's dialogs, other machines, and files opened from outside.

mod support;

use egui::{Role, Theme};
use egui_kittest::{Harness, kittest::Queryable as _};
use lathe_protocol::{CommandBody, ErrorCode, ErrorInfo, EventBody, JobId, Opened, Secret, Shell};
use lathe_ui::Route;
use support::{Script, ScriptedLink, Window, fixtures, window};

/// In a shell with everything, whose dialog gives `pick`.
fn link(shell: Shell, pick: Result<Option<&'static str>, &'static str>) -> ScriptedLink {
    ScriptedLink::new(move |command, script| match &command.body {
        CommandBody::ShellShow => script.answer(command.job, EventBody::Shell(shell.clone())),
        CommandBody::ShellPick { .. } => match pick {
            Ok(path) => script.answer(command.job, EventBody::Picked { path: path.map(str::to_owned) }),
            Err(message) => fail(script, command.job, message),
        },
        CommandBody::ShellConnect { .. } => fail(script, command.job, "The link was used before"),
        _ => {
            fixtures::answer(command, script);
        }
    })
}

fn fail(script: &mut Script, job: JobId, message: &str) {
    let error = ErrorInfo::new(ErrorCode::Access, message).hint("ask for another");
    script.say(job, EventBody::Failed { error });
}

fn desktop() -> Shell {
    Shell { has_dialogs: true, can_connect: true, connected_to: None }
}

fn sent(link: &ScriptedLink, is: impl Fn(&CommandBody) -> bool) -> Vec<CommandBody> {
    link.script.borrow().sent.iter().map(|command| command.body.clone()).filter(is).collect()
}

fn import_adapter(harness: &mut Harness<'_, Window>) {
    harness.state_mut().0.go(Route::Adapters);
    harness.run_ok();
    harness.get_by_label("Import…").click();
    harness.run_ok();
}

fn ask_system(harness: &mut Harness<'_, Window>) {
    import_adapter(harness);
    harness.get_by_label("System dialog…").click();
    harness.run_ok();
}

fn imported(link: &ScriptedLink) -> Vec<CommandBody> {
    sent(link, |body| matches!(body, CommandBody::AdaptersImport { .. }))
}

#[test]
fn a_folder_is_chosen_in_the_systems_dialog_where_there_is_one() {
    let link = link(desktop(), Ok(Some("/home/ada/pirate")));
    let mut harness = window(link.clone(), Theme::Light);
    ask_system(&mut harness);
    let asked = sent(&link, |body| matches!(body, CommandBody::ShellPick { .. }));
    let title = "Import an adapter".to_owned();
    assert_eq!(asked, [CommandBody::ShellPick { title, folder: true, extensions: Vec::new() }]);
    let path = "/home/ada/pirate".to_owned();
    assert_eq!(imported(&link), [CommandBody::AdaptersImport { path, name: None }]);
}

#[test]
fn a_dialog_that_is_closed_changes_nothing() {
    let link = link(desktop(), Ok(None));
    let mut harness = window(link.clone(), Theme::Light);
    ask_system(&mut harness);
    assert_eq!(imported(&link), []);
    assert!(harness.query_by_label("Path").is_none());
}

#[test]
fn where_the_systems_dialog_fails_the_windows_own_is_still_there() {
    let mut harness = window(link(desktop(), Err("No dialog here")), Theme::Light);
    ask_system(&mut harness);
    harness.get_by_label("No dialog here");
    harness.get_by_role_and_label(Role::TextInput, "Path");
    let mut harness = window(link(Shell::default(), Ok(None)), Theme::Light);
    import_adapter(&mut harness);
    assert!(harness.query_by_label("System dialog…").is_none());
}

#[test]
fn a_link_shows_another_machine_and_is_a_secret() {
    let link = link(desktop(), Ok(None));
    let mut harness = window(link.clone(), Theme::Light);
    harness.state_mut().0.go(Route::Settings);
    harness.run_ok();
    let field = || "Another machine";
    harness.get_by_role_and_label(Role::TextInput, field()).focus();
    harness.run_ok();
    harness.get_by_role_and_label(Role::TextInput, field()).type_text(" https://box:8474/#token=abc ");
    harness.run_ok();
    harness.get_by_label("Connect").click();
    harness.run_ok();
    let asked = sent(&link, |body| matches!(body, CommandBody::ShellConnect { .. }));
    let link = Some(Secret("https://box:8474/#token=abc".into()));
    assert_eq!(asked, [CommandBody::ShellConnect { link }]);
    assert!(!format!("{asked:?}").contains("abc"));
    harness.get_by_label("The link was used before");
}

#[test]
fn from_another_machine_there_is_a_way_back() {
    let link = link(Shell { connected_to: Some("box:8474".into()), ..desktop() }, Ok(None));
    let mut harness = window(link.clone(), Theme::Light);
    harness.state_mut().0.go(Route::Settings);
    harness.run_ok();
    harness.get_by_label("box:8474");
    harness.get_by_label("Back to this machine").click();
    harness.run_ok();
    let asked = sent(&link, |body| matches!(body, CommandBody::ShellConnect { .. }));
    assert_eq!(asked, [CommandBody::ShellConnect { link: None }]);
}

#[test]
fn what_is_opened_with_lathe_leads_to_its_place() {
    let link = link(desktop(), Ok(None));
    let mut harness = window(link.clone(), Theme::Light);
    let mut open = |opened: Opened| {
        link.script.borrow_mut().say(JobId(0), EventBody::Opened(opened));
        harness.run_ok();
        harness.state().0.route().clone()
    };
    let path = "/models/a.gguf".to_owned();
    assert_eq!(open(Opened::Model { path: path.clone() }), Route::Chat);
    assert_eq!(open(Opened::Adapter { path: "/a/pirate".into() }), Route::Adapters);
    let adapter = CommandBody::AdaptersImport { path: "/a/pirate".into(), name: None };
    assert_eq!(imported(&link), [adapter]);
    assert_eq!(open(Opened::Dropped { paths: vec![path.clone()] }), Route::NewRun);
    let model = sent(&link, |body| matches!(body, CommandBody::ModelsImport { .. }));
    assert_eq!(model, [CommandBody::ModelsImport { path, name: None }]);
}
