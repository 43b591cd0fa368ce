//! Home: this machine, what is running, what was done of late.

use egui::{Align, Layout, Ui};
use lathe_protocol::{AdapterEntry, Gpu, GpuProcess, Hardware, RunEntry, RunStatus};

use crate::{
    Action, Outbox, Route, Store, format,
    theme::{self, icons, space},
    widgets::{
        Button, card, clickable_card, columns, empty_state, error_box, key_value, meter, page, run_badge,
        section, spinner_line, stat,
    },
};

/// So many recent runs and adapters are listed.
const NUM_RECENT: usize = 5;
/// So many programs on a card are named.
const NUM_PROCESSES: usize = 3;

pub fn ui(ui: &mut Ui, store: &Store, out: &mut Outbox) {
    page(
        ui,
        "Bench",
        |_| {},
        |ui| {
            actions(ui, store, out);
            let running: Vec<&RunEntry> =
                store.runs().iter().filter(|run| run.status == RunStatus::Running).collect();
            for run in running {
                running_run(ui, run, store, out);
            }
            machine(ui, store);
            columns(ui, &[true, false], 380.0, |ui, &is_runs| {
                if is_runs {
                    section(ui, "Recent runs", |ui| recent_runs(ui, store, out));
                } else {
                    section(ui, "Recent adapters", |ui| recent_adapters(ui, store, out));
                }
            });
        },
    );
}

fn actions(ui: &mut Ui, store: &Store, out: &mut Outbox) {
    let actions = [
        (icons::SPARKLE, "New fine-tune…", "Choose a model, drop in data, see exactly what is trained"),
        (icons::CHAT_CIRCLE, "Chat…", "Talk to a model, alone or beside its adapter"),
    ];
    columns(ui, &actions, 320.0, |ui, (icon, name, text)| {
        let clicked = clickable_card(ui, name, false, |ui| {
            ui.horizontal(|ui| {
                ui.label(theme::icon(icon).size(28.0).color(theme::colors(ui).accent));
                ui.add_space(space::XS);
                ui.vertical(|ui| {
                    ui.spacing_mut().item_spacing.y = 2.0;
                    ui.label(theme::strong(*name).size(theme::size::HEADING));
                    ui.label(theme::weak(ui, *text));
                });
            });
        });
        if clicked.clicked() {
            if *icon == icons::SPARKLE {
                out.act(Action::NewRun { model: None });
            } else {
                out.go(Route::Chat);
            }
        }
    });
    if let Some(error) = &store.runs.error {
        error_box(ui, error);
    }
}

fn running_run(ui: &mut Ui, run: &RunEntry, store: &Store, out: &mut Outbox) {
    card(ui, |ui| {
        ui.horizontal(|ui| {
            run_badge(ui, run.status);
            ui.label(theme::heading(&run.name));
            ui.label(theme::weak(ui, format!("{} on {}", format::file_name(&run.data), run.model)));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                if Button::secondary("Watch").icon(icons::CHART_LINE_UP).clicked(ui) {
                    out.go(Route::Run(run.id.clone()));
                }
            });
        });
        if let Some(doing) = &run.doing {
            spinner_line(ui, doing);
            return;
        }
        let fraction = if run.total_steps == 0 { 0.0 } else { run.step as f32 / run.total_steps as f32 };
        ui.add(egui::ProgressBar::new(fraction).desired_height(6.0).fill(theme::colors(ui).accent));
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = space::XL;
            stat(ui, "Step", &format!("{} of {}", run.step, run.total_steps));
            if let Some(loss) = run.last_loss {
                stat(ui, "Loss", &format::number(loss));
            }
            if let Some(speed) = run.tokens_per_second {
                stat(ui, "Speed", &format!("{speed:.0} tokens/s"));
            }
            stat(ui, "Started", &format::ago(run.created_secs, store.now_secs));
        });
    });
    ui.add_space(space::XS);
}

fn machine(ui: &mut Ui, store: &Store) {
    section(ui, "This machine", |ui| {
        let Some(hardware) = &store.hardware.value else {
            match &store.hardware.error {
                Some(error) => error_box(ui, error),
                None => spinner_line(ui, "Looking at the machine"),
            }
            return;
        };
        columns(ui, &[0, 1, 2], 230.0, |ui, part| match part {
            0 => {
                ui.label(theme::strong(&hardware.cpu));
                let (physical, logical) = (hardware.physical_cores, hardware.logical_cores);
                ui.label(theme::small(ui, format!("{physical} cores, {logical} threads, {}", hardware.os)));
            }
            1 => {
                let used =
                    hardware.ram_total_bytes - hardware.ram_available_bytes.min(hardware.ram_total_bytes);
                usage(ui, "Memory", used, hardware.ram_total_bytes, format::gib);
            }
            _ => {
                let used =
                    hardware.disk_total_bytes - hardware.disk_free_bytes.min(hardware.disk_total_bytes);
                usage(ui, "Disk", used, hardware.disk_total_bytes, format::bytes);
            }
        });
        for gpu in &hardware.gpus {
            ui.separator();
            graphics_card(ui, gpu);
        }
        if let Some(note) = &hardware.gpu_note {
            ui.label(theme::small(ui, note));
        }
        ui.collapsing("What this machine can do", |ui| what_fits(ui, hardware));
    });
    ui.add_space(space::XS);
}

fn usage(ui: &mut Ui, name: &str, used: u64, total: u64, text: fn(u64) -> String) {
    let fraction = used as f32 / total.max(1) as f32;
    meter(ui, name, fraction, &format!("{} of {} used", text(used), text(total)));
}

fn graphics_card(ui: &mut Ui, gpu: &Gpu) {
    columns(ui, &[true, false], 300.0, |ui, &is_name| {
        if !is_name {
            if gpu.vram_total_bytes == 0 {
                ui.label(theme::weak(ui, "It does not tell its memory"));
            } else {
                usage(ui, "VRAM", gpu.vram_used_bytes(), gpu.vram_total_bytes, format::gib);
            }
            ui.label(theme::small(ui, who_holds(gpu)));
            return;
        }
        ui.horizontal(|ui| {
            ui.label(theme::icon(icons::GRAPHICS_CARD));
            ui.label(theme::strong(format!("{}: {}", gpu.index, gpu.name)));
        });
        for facts in [gpu.load(), gpu.build()] {
            ui.label(theme::small(ui, facts.join(" · ")));
        }
    });
}

/// The programs with memory on the card, as far as it tells.
fn who_holds(gpu: &Gpu) -> String {
    let Some(programs) = &gpu.processes else { return "It does not tell who uses it".into() };
    let words = |program: &GpuProcess| match program.bytes {
        Some(bytes) => format!("{} {}", program.words(), format::gib(bytes)),
        None => program.words(),
    };
    let more = programs.len().saturating_sub(NUM_PROCESSES);
    let named = programs.iter().take(NUM_PROCESSES).map(words);
    let all: Vec<String> = named.chain((more > 0).then(|| format!("{more} more"))).collect();
    if all.is_empty() { "Nobody uses it".into() } else { all.join(" · ") }
}

fn what_fits(ui: &mut Ui, hardware: &Hardware) {
    for advice in &hardware.advice {
        ui.label(advice);
    }
    for gpu in hardware.gpus.iter().filter(|gpu| !gpu.advice.is_empty()) {
        ui.add_space(space::S);
        ui.label(theme::strong(format!("{}: {}", gpu.index, gpu.name)));
        ui.label(theme::small(ui, gpu.advice_title()));
        for advice in &gpu.advice {
            ui.label(advice);
        }
    }
    ui.add_space(space::S);
    key_value(
        ui,
        "machine facts",
        [("Instruction sets", hardware.cpu_features.join(", ")), ("Data folder", hardware.data_dir.clone())],
    );
}

fn recent_runs(ui: &mut Ui, store: &Store, out: &mut Outbox) {
    let runs: Vec<&RunEntry> =
        store.runs().iter().filter(|run| run.status != RunStatus::Running).take(NUM_RECENT).collect();
    if runs.is_empty() {
        let text = "A fine-tune shows up here with its charts, and can be compared with the next";
        if empty_state(ui, icons::CHART_LINE_UP, "No runs yet", text, Some("Start your first fine-tune…")) {
            out.act(Action::NewRun { model: None });
        }
        return;
    }
    for run in runs {
        let clicked = row(ui, &run.name, |ui| {
            run_badge(ui, run.status);
            ui.label(theme::small(ui, format::ago(run.created_secs, store.now_secs)));
            if let Some(loss) = run.eval_loss.or(run.last_loss) {
                ui.label(theme::small(ui, format!("loss {}", format::number(loss))));
            }
        });
        if clicked {
            out.go(Route::Run(run.id.clone()));
        }
    }
}

fn recent_adapters(ui: &mut Ui, store: &Store, out: &mut Outbox) {
    let mut adapters: Vec<&AdapterEntry> = store.adapters().iter().collect();
    adapters.sort_by_key(|adapter| std::cmp::Reverse(adapter.created_secs));
    if adapters.is_empty() {
        let text = "What a run has learned is kept as a small adapter beside its model";
        empty_state(ui, icons::PUZZLE_PIECE, "No adapters yet", text, None);
    }
    for adapter in adapters.into_iter().take(NUM_RECENT) {
        let clicked = row(ui, &adapter.name, |ui| {
            if let Some(base) = &adapter.base_model {
                ui.label(theme::small(ui, format::file_name(base)));
            }
            if let Some(created) = adapter.created_secs {
                ui.label(theme::small(ui, format::ago(created, store.now_secs)));
            }
        });
        if clicked {
            out.go(Route::Adapters);
        }
    }
}

/// A name that leads on, with facts on its right. True if it was clicked.
fn row(ui: &mut Ui, name: &str, facts: impl FnOnce(&mut Ui)) -> bool {
    ui.horizontal(|ui| {
        ui.set_min_height(theme::CONTROL_HEIGHT);
        let clicked = crate::widgets::link(ui, name).clicked();
        ui.with_layout(Layout::right_to_left(Align::Center), facts);
        clicked
    })
    .inner
}
