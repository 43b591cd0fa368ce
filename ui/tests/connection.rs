//! The window over a line that breaks.

mod support;

use egui::Theme;
use egui_kittest::{Harness, kittest::Queryable as _};
use lathe_protocol::{CommandBody, Connection};
use lathe_ui::Route;
use support::{ScriptedLink, Window, fixtures, window};

fn link() -> ScriptedLink {
    ScriptedLink::new(|command, script| {
        fixtures::answer(command, script);
    })
}

fn connection(
    harness: &mut Harness<'_, Window>,
    link: &ScriptedLink,
    lost_sessions: u64,
    trouble: Option<&str>,
) {
    let trouble = trouble.map(str::to_owned);
    link.script.borrow_mut().connection = Connection { is_remote: true, lost_sessions, trouble };
    harness.step();
    harness.run_ok();
}

#[test]
fn a_cut_line_is_told_and_after_a_lost_session_all_is_asked_again_where_one_is() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    harness.state_mut().0.go(Route::Adapters);
    harness.run_ok();
    connection(&mut harness, &link, 0, Some("Connection lost, trying again…"));
    assert!(harness.query_by_label("Connection lost, trying again…").is_some());
    assert_eq!(harness.state().0.title(), "Connection lost · Lathe");

    // Resumed: nothing is asked.
    let before = link.script.borrow().sent.len();
    connection(&mut harness, &link, 0, None);
    assert!(harness.query_by_label_contains("Connection lost").is_none());
    assert_eq!(link.script.borrow().sent.len(), before);

    connection(&mut harness, &link, 1, None);
    let script = link.script.borrow();
    let asked = |is: fn(&CommandBody) -> bool| script.sent[before..].iter().any(|command| is(&command.body));
    assert!(asked(|body| *body == CommandBody::RunsFollow));
    assert!(asked(|body| *body == CommandBody::SettingsShow));
    assert_eq!(*harness.state().0.route(), Route::Adapters);
}

#[test]
fn a_folder_of_another_machine_is_named_not_opened() {
    let link = link();
    let mut harness = window(link.clone(), Theme::Light);
    connection(&mut harness, &link, 0, None);
    harness.state_mut().0.go(Route::Adapters);
    harness.run_ok();
    harness.get_by_label("Open the folder of house-style-draft").click();
    harness.run_ok();
    assert!(harness.query_by_label_contains("On the machine Lathe runs on: ").is_some());
    let script = link.script.borrow();
    assert!(!script.sent.iter().any(|command| matches!(command.body, CommandBody::OpenFolder { .. })));
}
