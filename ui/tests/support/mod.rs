//! What the window's tests share: a scripted engine, and a renderer that needs no GPU.
#![allow(dead_code, unused_imports, reason = "each test file uses its part of this")]

pub mod chat;
pub mod fixtures;
pub mod hub;
mod renderer;
pub mod runs;
mod scripted;
pub mod wizard;

use std::time::Duration;

use egui::{Theme, Vec2};
use egui_kittest::Harness;
use lathe_protocol::EngineLink;
use lathe_ui::{Lathe, Options};

pub use renderer::SoftwareRenderer;
pub use scripted::{Script, ScriptedLink};

/// 2026-11-21 12:00:00 UTC.
pub const NOW_SECS: f64 = 1_795_262_400.0;

/// The window as eframe runs it.
pub struct Window(pub Lathe);

impl eframe::App for Window {
    fn logic(&mut self, ctx: &egui::Context, _frame: &mut eframe::Frame) {
        self.0.logic(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.0.ui(ui);
    }
}

/// The whole window over `link`, 1280×800, drawn by the CPU.
pub fn window(link: impl EngineLink + 'static, theme: Theme) -> Harness<'static, Window> {
    window_of_size(link, theme, Vec2::new(1280.0, 800.0))
}

pub fn window_of_size(link: impl EngineLink + 'static, theme: Theme, size: Vec2) -> Harness<'static, Window> {
    let mut harness = Harness::builder()
        .with_size(size)
        .with_theme(theme)
        .with_max_steps(64)
        .renderer(SoftwareRenderer::default())
        .build_eframe(|creation| {
            // What `Theme::System` comes to, as no system says.
            creation.egui_ctx.options_mut(|options| options.fallback_theme = theme);
            let options = Options { clock: || NOW_SECS };
            Window(Lathe::new(&creation.egui_ctx, Box::new(link), options))
        });
    harness.input_mut().system_theme = Some(theme);
    harness.run_ok();
    harness
}

/// Steps the window until `done`, or fails with what it waited for.
pub fn wait_until(
    harness: &mut Harness<'_, Window>,
    what: &str,
    mut done: impl FnMut(&Harness<'_, Window>) -> bool,
) {
    for _ in 0..1200 {
        harness.step();
        if done(harness) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited a minute for: {what}");
}
