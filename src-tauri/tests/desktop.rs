//! `lathe-desktop` as a person meets it: its window, a fine-tune of the starter, a chat.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use lathe_tests::{Lathe, driver::Driver, repo};

const DESKTOP: &str = env!("CARGO_BIN_EXE_lathe-desktop");
/// Where the wizard has its way on, in a window of 1280×800: Continue, and at last Start. Each is grey until it can be
/// clicked.
const ON: (u32, u32) = (1192, 768);
/// The first of its models.
const STARTER: (u32, u32) = (580, 190);

/// An X server without a screen. Dropping it ends it.
struct Screen {
    server: Child,
    display: String,
}

impl Screen {
    /// None where there is no Xvfb.
    fn start() -> Option<Self> {
        let mut command = Command::new("Xvfb");
        command.args(["-displayfd", "1", "-screen", "0", "1280x800x24"]);
        let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut number = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut number).unwrap();
        Some(Self { server, display: format!(":{}", number.trim()) })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

#[test]
fn the_companion_trains_the_starter_and_talks_to_it() {
    let lathe = Lathe::new();
    let screen = Screen::start();
    let driver = screen.as_ref().and_then(|screen| Driver::start_for_webviews(&screen.display, &lathe));
    let Some(driver) = driver else {
        println!("skipped: it takes Xvfb, WebKit's and Tauri's drivers; `cargo xtask test` has them");
        return;
    };

    // 1. Opened with a data file, it begins in the wizard.
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let window = driver.webview(DESKTOP.as_ref(), &[&data]);
    window.wait_for_title(|title| title == "New fine-tune · Lathe");
    window.wait_for("its models", || {
        window.click(STARTER.0, STARTER.1);
        window.is_primary(ON.0 - 50, ON.1)
    });
    window.screenshot("desktop-model");

    // 2. On, page after page, as soon as each lets one; the last starts the run.
    window.wait_for("a run", || {
        window.click(ON.0, ON.1);
        window.title().starts_with("starter-pirate")
    });
    let run = || lathe.json(&["runs", "list"])[0]["runs"][0].clone();
    window.wait_for("the run's end", || run()["status"] == "completed");
    window.wait_for_title(|title| title == "starter-pirate · Lathe");
    window.screenshot("desktop-run");
    assert_eq!(run()["step"], run()["total_steps"]);

    // 3. A page that is loaded anew asks for what it showed.
    window.run("document.title = 'before'; location.reload()");
    window.wait_for_title(|title| title == "starter-pirate · Lathe");

    // 4. A chat, typed and answered.
    window.run("location.hash = '/chat'");
    window.wait_for_title(|title| title == "Chat · Lathe");
    window.wait_for_field();
    window.type_text("Who are you?");
    window.wait_for("an answer", || {
        // Does nothing before the models are known, and nothing more once it was sent.
        window.type_text("\u{E007}");
        lathe.has_saved("I am Lathe starter")
    });
    window.screenshot("desktop-chat");
}

#[test]
fn without_a_display_the_companion_says_what_else_there_is() {
    let output = Command::new(DESKTOP).env_remove("DISPLAY").env("GDK_BACKEND", "x11").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("error: There is no display") && said.contains("hint: `lathe serve-ui`"), "{said}");
}
