//! What the page talks to: the Lathe that it shows, and the shell itself.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use lathe_host::{HostOptions, Paths, Viewers};
use lathe_protocol::{
    Command, CommandBody, ErrorCode, ErrorInfo, Event, EventBody, JobId, Opened, Shell as Facts,
};
use tauri::{AppHandle, Manager as _, WebviewUrl, WebviewWindowBuilder, Window, ipc::Channel};
use tauri_plugin_dialog::{DialogExt as _, MessageDialogButtons};
use tauri_plugin_notification::NotificationExt as _;

use crate::{
    elsewhere::Elsewhere,
    line::{Line, Page, lock},
    runs::{self, List},
};

pub const WINDOW: &str = "main";
/// Of the shell's own question about the runs.
const RUNS: JobId = JobId(1);
/// What the shell says by itself.
const BY_ITSELF: JobId = JobId(0);

/// The page's surroundings. The host in here lives as long as the program, whatever is shown.
pub struct Shell {
    app: AppHandle,
    /// None while the program ends.
    viewers: Mutex<Option<Arc<Viewers>>>,
    shown: Mutex<Shown>,
    runs: SyncSender<List>,
}

#[derive(Default)]
struct Shown {
    /// None until the page is there.
    page: Option<(Page, Line)>,
    /// None shows this machine.
    elsewhere: Option<Arc<Elsewhere>>,
    /// Before the page was there.
    opened: Vec<Opened>,
    /// Whether a person knows that the window can be gone while Lathe is not.
    has_told_of_tray: bool,
}

impl Shell {
    /// Starts the host in here.
    pub fn start(app: &AppHandle) -> Result<Self, ErrorInfo> {
        let mut options = HostOptions::new(Paths::detect(None)?, worker_exe()?, vec!["worker".into()]);
        options.runs_queue = true;
        let viewers = Arc::new(Viewers::start(options)?);
        let (runs, lists) = sync_channel(64);
        let app_of_runs = app.clone();
        let thread = thread::Builder::new().name("runs".into());
        thread.spawn(move || runs::follow(&app_of_runs, &lists)).map_err(|error| {
            ErrorInfo::new(ErrorCode::Internal, format!("Cannot start a thread: {error}"))
        })?;
        let to_follow = runs.clone();
        let id = viewers.connect(Box::new(move |batch| {
            for event in batch.events {
                if let EventBody::Runs { runs } = event.body {
                    runs::tell(&to_follow, (None, runs));
                }
            }
            true
        }));
        viewers.command(id, Command { job: RUNS, body: CommandBody::RunsFollow });
        Ok(Self { app: app.clone(), viewers: Mutex::new(Some(viewers)), shown: Mutex::default(), runs })
    }

    /// A page, perhaps in place of an earlier one: it asks everything anew.
    pub fn connect(&self, channel: Channel<String>) {
        let Some(viewers) = lock(&self.viewers).clone() else { return };
        let page = Page::new(channel);
        let mut shown = lock(&self.shown);
        // The old line first: its jobs end.
        shown.page = None;
        let line = match &shown.elsewhere {
            Some(remote) => Line::there(remote, &page),
            None => Line::here(&viewers, &page),
        };
        for opened in shown.opened.drain(..) {
            page.give(vec![Event { job: BY_ITSELF, body: EventBody::Opened(opened) }]);
        }
        shown.page = Some((page, line));
    }

    pub fn command(&self, Command { job, body }: Command) {
        let shown = lock(&self.shown);
        let Some((page, line)) = &shown.page else { return };
        match body {
            CommandBody::ShellShow => {
                let connected_to = shown.elsewhere.as_ref().map(|remote| remote.address.clone());
                let has_dialogs = connected_to.is_none();
                page.answer(job, EventBody::Shell(Facts { has_dialogs, can_connect: true, connected_to }));
            }
            CommandBody::ShellPick { title, folder, extensions } => {
                self.pick(page.clone(), job, &title, folder, &extensions);
            }
            CommandBody::ShellConnect { link: Some(link) } => {
                self.connect_elsewhere(page.clone(), job, link.0);
            }
            CommandBody::ShellConnect { link: None } => {
                page.give(vec![Event { job, body: EventBody::Done }]);
                drop(shown);
                self.show_here();
            }
            body => line.send(Command { job, body }),
        }
    }

    /// In the page, or as soon as it is there. What lies on this machine, the Lathe on this machine opens.
    pub fn open(&self, opened: Option<Opened>) {
        let Some(opened) = opened else { return };
        let mut shown = lock(&self.shown);
        if shown.elsewhere.is_some() {
            shown.opened.push(opened);
            drop(shown);
            return self.show_here();
        }
        match &shown.page {
            Some((page, _)) => {
                page.give(vec![Event { job: BY_ITSELF, body: EventBody::Opened(opened) }]);
            }
            None => shown.opened.push(opened),
        }
    }

    /// Whether the window's end would be that of a run or a download.
    pub fn has_work(&self) -> bool {
        lock(&self.viewers).as_ref().is_some_and(|viewers| viewers.has_work())
    }

    /// The window goes, Lathe stays in the tray.
    pub fn hide(&self, window: &Window) {
        if window.hide().is_err() || std::mem::replace(&mut lock(&self.shown).has_told_of_tray, true) {
            return;
        }
        let text = "It goes on with what it does. A run's progress is in the tray; or open Lathe again";
        // Where there is no service for notifications, nothing is lost.
        drop(self.app.notification().builder().title("Lathe is still there").body(text).show());
    }

    /// Where no tray is to stay in: what goes on ends, or the window only makes room.
    pub fn ask_to_close(&self, window: &Window) {
        let text = "A run or a download goes on. Close anyway? A run writes a checkpoint first, and either can be resumed.";
        let answers = MessageDialogButtons::OkCancelCustom("Save and close".into(), "Keep running".into());
        let dialog =
            self.app.dialog().message(text).title("Lathe is at work").buttons(answers).parent(window);
        let (app, window) = (self.app.clone(), window.clone());
        dialog.show(move |ends| {
            if ends {
                app.exit(0);
            } else {
                // One that stays where it is does no harm.
                drop(window.minimize());
            }
        });
    }

    /// Shows this machine's Lathe (again).
    pub fn show_here(&self) {
        let remote = lock(&self.shown).elsewhere.take();
        if let Some(remote) = remote {
            remote.end();
            runs::offer_here(&self.app, false);
            self.reload();
        }
    }

    /// Runs checkpoint and stop.
    pub fn end(&self) {
        let shown = std::mem::take(&mut *lock(&self.shown));
        if let Some(remote) = &shown.elsewhere {
            remote.end();
        }
        drop(shown);
        // The last to hold the host: it waits for its runs.
        drop(lock(&self.viewers).take());
    }

    /// The page begins anew, and connects to what is to be shown.
    fn reload(&self) {
        if let Some(window) = self.app.get_webview_window(WINDOW) {
            // A page that cannot be reloaded is gone.
            drop(window.reload());
        }
    }

    fn pick(&self, page: Page, job: JobId, title: &str, folder: bool, extensions: &[String]) {
        let mut dialog = self.app.dialog().file().set_title(title);
        if let Some(window) = self.app.get_webview_window(WINDOW) {
            dialog = dialog.set_parent(&window);
        }
        if !extensions.is_empty() {
            let extensions: Vec<&str> = extensions.iter().map(String::as_str).collect();
            dialog = dialog.add_filter("What fits", &extensions).add_filter("All files", &["*"]);
        }
        let picked = move |path: Option<tauri_plugin_dialog::FilePath>| {
            let path = path.and_then(|path| path.into_path().ok()).map(|path| path.display().to_string());
            page.answer(job, EventBody::Picked { path });
        };
        if folder {
            dialog.pick_folder(picked);
        } else {
            dialog.pick_file(picked);
        }
    }

    fn connect_elsewhere(&self, page: Page, job: JobId, link: String) {
        let (app, runs) = (self.app.clone(), self.runs.clone());
        let connect = move || match Elsewhere::connect(&link, runs) {
            Ok(remote) => {
                page.give(vec![Event { job, body: EventBody::Done }]);
                let shell = app.state::<Self>();
                let before = lock(&shell.shown).elsewhere.replace(remote);
                runs::offer_here(&app, true);
                if let Some(before) = before {
                    before.end();
                }
                shell.reload();
            }
            Err(error) => {
                page.give(vec![Event { job, body: EventBody::Failed { error } }]);
            }
        };
        // Without a thread the question stays open, and can be asked again.
        drop(thread::Builder::new().name("connect".into()).spawn(connect));
    }
}

pub fn window(app: &AppHandle) -> tauri::Result<()> {
    WebviewWindowBuilder::new(app, WINDOW, WebviewUrl::App("index.html".into()))
        .title("Lathe")
        .inner_size(1280.0, 800.0)
        .min_inner_size(960.0, 600.0)
        // A window that keeps an old title is no harm.
        .on_document_title_changed(|window, title| drop(window.set_title(&title)))
        .build()?;
    Ok(())
}

/// `lathe` beside this program.
fn worker_exe() -> Result<PathBuf, ErrorInfo> {
    let name = format!("lathe{}", std::env::consts::EXE_SUFFIX);
    let this = std::env::current_exe().map_err(|error| {
        ErrorInfo::new(ErrorCode::Io, format!("Cannot find Lathe's own program: {error}"))
    })?;
    let lathe = this.with_file_name(name);
    if lathe.is_file() {
        return Ok(lathe);
    }
    Err(ErrorInfo::new(ErrorCode::NotFound, format!("Lathe's program is missing: {}", lathe.display()))
        .hint("install Lathe again; a checkout builds it with `cargo build --release`"))
}
