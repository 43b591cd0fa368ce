//! The packaged companion: the wasm window in a webview, with what only a desktop app has around it.

#![windows_subsystem = "windows"]

mod elsewhere;
mod line;
mod opened;
mod runs;
mod shell;
#[cfg(target_os = "linux")]
mod webkit;

use tauri::{AppHandle, Manager as _, RunEvent, State, WindowEvent, ipc::Channel};
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
    webkit::prepare();
    let restored = StateFlags::SIZE | StateFlags::POSITION | StateFlags::MAXIMIZED | StateFlags::FULLSCREEN;
    let app = tauri::Builder::default()
        // The first: a second Lathe hands its arguments over and ends before it does anything else.
        .plugin(tauri_plugin_single_instance::init(|app, args, folder| {
            show(app);
            app.state::<Shell>().open(opened::of_args(&args, folder.as_ref()));
        }))
        .plugin(tauri_plugin_window_state::Builder::new().with_state_flags(restored).build())
        .plugin(tauri_plugin_dialog::init())
        .plugin(tauri_plugin_notification::init())
        .invoke_handler(tauri::generate_handler![connect, command])
        .setup(|app| {
            let shell = Shell::start(app.handle())?;
            let args: Vec<String> = std::env::args().collect();
            shell.open(opened::of_args(&args, &std::env::current_dir().unwrap_or_default()));
            app.manage(shell);
            runs::tray(app.handle())?;
            shell::window(app.handle())?;
            Ok(())
        })
        .on_window_event(|window, event| {
            let shell = window.state::<Shell>();
            match event {
                WindowEvent::CloseRequested { api, .. } if shell.has_work() => {
                    api.prevent_close();
                    shell.hide(window);
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
        if let RunEvent::Exit = event {
            app.state::<Shell>().end();
        }
    });
}

fn show(app: &AppHandle) {
    if let Some(window) = app.get_webview_window(shell::WINDOW) {
        // A window that cannot be raised is still there.
        drop(window.show().and_then(|()| window.unminimize()).and_then(|()| window.set_focus()));
    }
}
