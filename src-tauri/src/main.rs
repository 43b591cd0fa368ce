//! The packaged companion: the wasm window in a webview, with what only a desktop app has around it.

#![windows_subsystem = "windows"]

mod elsewhere;
mod line;
mod opened;
mod runs;
mod shell;
#[cfg(target_os = "linux")]
mod webkit;

use lathe_protocol::{ErrorCode, ErrorInfo};
use tauri::{AppHandle, Manager as _, RunEvent, State, WindowEvent, ipc::Channel};
use tauri_plugin_dialog::{DialogExt as _, MessageDialogKind};
use tauri_plugin_window_state::StateFlags;

use shell::Shell;

/// The page is there, perhaps anew: whatever it was before is forgotten.
#[tauri::command]
#[expect(clippy::needless_pass_by_value, reason = "Tauri hands it over so")]
fn connect(shell: State<'_, Shell>, channel: Channel<String>) {
    shell.connect(channel);
}

#[tauri::command]
#[expect(clippy::needless_pass_by_value, reason = "Tauri hands it over so")]
fn command(shell: State<'_, Shell>, command: String) -> Result<(), String> {
    let command = serde_json::from_str(&command).map_err(|error| error.to_string())?;
    shell.command(command);
    Ok(())
}

fn main() {
    #[cfg(target_os = "linux")]
    {
        webkit::prepare();
        if gtk::init().is_err() {
            eprintln!("error: There is no display to open a window on");
            eprintln!("hint: `lathe serve-ui` shows the window in a browser, here or on another machine");
            std::process::exit(1);
        }
    }
    let restored = StateFlags::SIZE | StateFlags::POSITION | StateFlags::MAXIMIZED | StateFlags::FULLSCREEN;
    let app = tauri::Builder::default()
        // The first: a second Lathe hands its arguments over and ends before it does anything else.
        .plugin(tauri_plugin_single_instance::init(|app, args, folder| {
            show(app);
            if let Some(shell) = app.try_state::<Shell>() {
                shell.open(opened::of_args(&args, folder.as_ref()));
            }
        }))
        .plugin(tauri_plugin_window_state::Builder::new().with_state_flags(restored).build())
        .plugin(tauri_plugin_dialog::init())
        .plugin(tauri_plugin_notification::init())
        .invoke_handler(tauri::generate_handler![connect, command])
        .setup(|app| {
            if let Err(error) = start(app.handle()) {
                give_up(app.handle(), &error);
            }
            Ok(())
        })
        .on_window_event(|window, event| {
            let shell = window.state::<Shell>();
            match event {
                WindowEvent::CloseRequested { api, .. } if shell.has_work() => {
                    api.prevent_close();
                    if runs::is_in_tray(window.app_handle()) {
                        shell.hide(window);
                    } else {
                        shell.ask_to_close(window);
                    }
                }
                WindowEvent::DragDrop(tauri::DragDropEvent::Drop { paths, .. }) => {
                    shell.open(opened::dropped(paths));
                }
                _ => {}
            }
        })
        .build(tauri::generate_context!());
    let app = app.unwrap_or_else(|error| {
        eprintln!("error: Cannot open the window: {error}");
        std::process::exit(1);
    });
    app.run(|app, event| {
        if let RunEvent::Exit = event
            && let Some(shell) = app.try_state::<Shell>()
        {
            shell.end();
        }
    });
}

fn start(app: &AppHandle) -> Result<(), ErrorInfo> {
    let cannot_open =
        |error: tauri::Error| ErrorInfo::new(ErrorCode::Internal, format!("Cannot open the window: {error}"));
    let shell = Shell::start(app)?;
    let args: Vec<String> = std::env::args().collect();
    shell.open(opened::of_args(&args, &std::env::current_dir().unwrap_or_default()));
    app.manage(shell);
    // All is there without an icon, too.
    if let Err(error) = runs::tray(app) {
        eprintln!("warning: No icon in the tray: {error}");
    }
    shell::window(app).map_err(cannot_open)
}

/// Says why there will be no window, where it was started from and in a dialog, and ends.
fn give_up(app: &AppHandle, error: &ErrorInfo) {
    eprintln!("error: {error}");
    let mut text = error.to_string();
    if let Some(hint) = &error.hint {
        eprintln!("hint: {hint}");
        text = format!("{text}\n\n{hint}");
    }
    let ended = app.clone();
    let dialog = app.dialog().message(text).title("Lathe cannot start").kind(MessageDialogKind::Error);
    dialog.show(move |_| ended.exit(1));
}

fn show(app: &AppHandle) {
    if let Some(window) = app.get_webview_window(shell::WINDOW) {
        // A window that cannot be raised is still there.
        drop(window.show().and_then(|()| window.unminimize()).and_then(|()| window.set_focus()));
    }
}
