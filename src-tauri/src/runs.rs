//! The runs of the Lathe that is shown, told by the tray's icon and by notifications.

use std::{
    collections::HashMap,
    sync::mpsc::{Receiver, SyncSender},
};

use lathe_protocol::{RunEntry, RunStatus};
use tauri::{
    AppHandle, Manager as _, Wry,
    menu::{Menu, MenuItem, PredefinedMenuItem},
    tray::{MouseButton, TrayIconBuilder, TrayIconEvent},
};
use tauri_plugin_notification::NotificationExt as _;

use crate::{shell::Shell, show};

const IDLE: &str = "No run goes on";
const TRAY: &str = "lathe";

/// The runs of a Lathe: of this machine, or at an address.
pub type List = (Option<String>, Vec<RunEntry>);

/// A list that nobody has time for is not missed: the next one says all.
pub fn tell(runs: &SyncSender<List>, list: List) {
    drop(runs.try_send(list));
}

/// The lines of the tray's menu that change.
struct Lines {
    /// How far a run is.
    progress: MenuItem<Wry>,
    /// The way back from another machine.
    here: MenuItem<Wry>,
}

/// Whether the icon is in the tray.
pub fn is_in_tray(app: &AppHandle) -> bool {
    app.tray_by_id(TRAY).is_some()
}

/// What shows the icon, by the names that `libappindicator` looks for; it panics without one.
#[cfg(target_os = "linux")]
fn has_indicator() -> bool {
    const NAMES: [&str; 4] = [
        "libayatana-appindicator3.so.1",
        "libappindicator3.so.1",
        "libayatana-appindicator3.so",
        "libappindicator3.so",
    ];
    #[expect(unsafe_code, reason = "a library is loaded, which GTK's programs are made to do")]
    // SAFETY: what the library does when it is loaded is done again when the icon is made.
    NAMES.iter().any(|name| unsafe { libloading::Library::new(name) }.is_ok())
}

/// Puts the icon into the tray, if the system has one.
pub fn tray(app: &AppHandle) -> tauri::Result<()> {
    #[cfg(target_os = "linux")]
    if !has_indicator() {
        eprintln!("warning: No icon in the tray: libayatana-appindicator3 is not installed");
        return Ok(());
    }
    let progress = MenuItem::with_id(app, "progress", IDLE, false, None::<&str>)?;
    let open = MenuItem::with_id(app, "open", "Open Lathe", true, None::<&str>)?;
    let here = MenuItem::with_id(app, "here", "Show this machine", false, None::<&str>)?;
    let quit = MenuItem::with_id(app, "quit", "Quit, saving what runs", true, None::<&str>)?;
    let line = || PredefinedMenuItem::separator(app);
    let menu = Menu::with_items(app, &[&progress, &line()?, &open, &here, &line()?, &quit])?;
    let mut icon = TrayIconBuilder::with_id(TRAY).menu(&menu).show_menu_on_left_click(false).tooltip("Lathe");
    if let Some(image) = app.default_window_icon() {
        icon = icon.icon(image.clone());
    }
    icon.on_menu_event(|app, event| match event.id().as_ref() {
        "open" => show(app),
        "here" => {
            app.state::<Shell>().show_here();
            show(app);
        }
        "quit" => app.exit(0),
        _ => {}
    })
    .on_tray_icon_event(|icon, event| {
        if let TrayIconEvent::Click { button: MouseButton::Left, .. } = event {
            show(icon.app_handle());
        }
    })
    .build(app)?;
    app.manage(Lines { progress, here });
    Ok(())
}

/// Whether there is a way back from another machine.
pub fn offer_here(app: &AppHandle, is_elsewhere: bool) {
    if let Some(lines) = app.try_state::<Lines>() {
        // A line that stays as it was does nothing.
        drop(lines.here.set_enabled(is_elsewhere));
    }
}

/// Tells of every list of runs that comes, until there will be none.
pub fn follow(app: &AppHandle, lists: &Receiver<List>) {
    let (mut known, mut shown) = (HashMap::new(), HashMap::new());
    while let Ok((place, runs)) = lists.recv() {
        for (title, text) in ended(known.entry(place.clone()).or_default(), &runs) {
            let title = place.as_ref().map_or_else(|| title.into(), |place| format!("{title} on {place}"));
            // Where there is no service for notifications, the window and the tray still tell.
            drop(app.notification().builder().title(title).body(text).show());
        }
        shown.insert(place, runs);
        let text = progress(shown.values().flatten());
        if let Some(lines) = app.try_state::<Lines>() {
            drop(lines.progress.set_text(&text));
        }
        if let Some(icon) = app.tray_by_id(TRAY) {
            drop(icon.set_tooltip(Some(format!("Lathe: {text}"))));
        }
    }
}

fn progress<'a>(runs: impl Iterator<Item = &'a RunEntry>) -> String {
    let mut going = runs.filter(|run| run.status == RunStatus::Running);
    let Some(RunEntry { name, step, total_steps, .. }) = going.next() else { return IDLE.into() };
    let more = match going.count() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    match (step * 100).checked_div(*total_steps) {
        Some(percent) => format!("{name}: step {step} of {total_steps}, {percent} %{more}"),
        None => format!("{name} begins{more}"),
    }
}

/// A title and a sentence for every run that went on before and has ended.
fn ended(known: &mut HashMap<String, RunStatus>, runs: &[RunEntry]) -> Vec<(&'static str, String)> {
    let mut told = Vec::new();
    for run in runs {
        let before = known.insert(run.id.clone(), run.status);
        if before != Some(RunStatus::Running) || run.status == RunStatus::Running {
            continue;
        }
        let name = &run.name;
        let at = format!("at step {} of {}", run.step, run.total_steps);
        told.push(match run.status {
            RunStatus::Completed => {
                ("Run finished", format!("{name} is done, and its adapter in the library"))
            }
            RunStatus::Failed => ("Run failed", format!("{name} failed {at}")),
            RunStatus::Diverged => {
                ("Run stopped", format!("{name} diverged {at}; its last good weights are kept"))
            }
            RunStatus::OutOfMemory => ("Run stopped", format!("{name} ran out of memory {at}")),
            RunStatus::Interrupted => ("Run interrupted", format!("{name} can be resumed {at}")),
            // A person did that.
            RunStatus::Stopped | RunStatus::Kept | RunStatus::Queued | RunStatus::Running => continue,
        });
    }
    told
}
