//! Every widget in every state, in both themes: `cargo run --release -p lathe-ui --example gallery`.

use eframe::egui::{self, Panel, Ui};
use lathe_protocol::{ErrorCode, ErrorInfo, ReplyChannel, Role, RowPlace, RowView, RunStatus, TokenView};
use lathe_ui::{
    Progress, format,
    theme::{self, Tone, icons, space},
    widgets::{
        self, Answer, Button, Confirm, Markdown, Part, StepView, TokenText,
        chart::{Chart, ChartLink, Look, Series},
    },
};

const MARKDOWN: &str = "\
**Bold**, *italic*, `code`, a [link](https://example.org) and a list:

1. One
2. Two

| a | b |
|---|---|
| 1 | 2 |

```python
def answer() -> int:
    return 42
```";

fn main() -> eframe::Result {
    let options = eframe::NativeOptions {
        viewport: egui::ViewportBuilder::default()
            .with_inner_size([1280.0, 900.0])
            .with_title("Lathe's widgets"),
        ..Default::default()
    };
    eframe::run_native(
        "gallery",
        options,
        Box::new(|creation| {
            theme::install(&creation.egui_ctx);
            Ok(Box::new(Gallery::default()))
        }),
    )
}

struct Gallery {
    text: String,
    search: String,
    on: bool,
    segment: u8,
    choice: u8,
    confirm: Option<Confirm>,
    selected_card: usize,
    step: usize,
    markdown: Markdown,
    row: RowView,
    tokens: TokenText,
    chart: Chart,
    link: ChartLink,
}

impl Default for Gallery {
    fn default() -> Self {
        Self {
            text: "support-tone".into(),
            search: String::new(),
            on: true,
            segment: 1,
            choice: 0,
            confirm: None,
            selected_card: 0,
            step: 1,
            markdown: Markdown::default(),
            row: row(),
            tokens: TokenText::default(),
            chart: chart(),
            link: ChartLink::new("Step"),
        }
    }
}

/// A row with a token of every kind.
fn row() -> RowView {
    let token = |text: &str, role, loss, channel| TokenView {
        id: 7,
        text: text.into(),
        loss,
        role: Some(role),
        channel,
    };
    let tokens = vec![
        token("Where is the key?\n", Role::User, false, None),
        token("<think>", Role::Assistant, true, Some(ReplyChannel::Thinking)),
        token(" The pot is blue.", Role::Assistant, true, Some(ReplyChannel::Thinking)),
        token(" Under the blue pot.", Role::Assistant, true, Some(ReplyChannel::Answer)),
        token(" Look", Role::Assistant, true, Some(ReplyChannel::Answer)),
    ];
    let place = RowPlace { row: 0, line: 1, file: None };
    RowView { place, tokens, truncated_tokens: 1, rejected: None }
}

fn chart() -> Chart {
    let mut chart = Chart::single("Loss", 0, format::number);
    chart.series.push(Series::new("Eval loss", 1, Look::Marked));
    for step in 0..500 {
        let x = f64::from(step);
        chart.series[0].push(x, 0.7 + 2.0 / (1.0 + x / 40.0));
        if step % 100 == 0 {
            chart.series[1].push(x, 0.9 + 1.5 / (1.0 + x / 50.0));
        }
    }
    chart
}

impl eframe::App for Gallery {
    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        Panel::top("theme").show(ui, |ui| {
            ui.horizontal(egui::global_theme_preference_buttons);
        });
        egui::CentralPanel::default().show(ui, |ui| {
            widgets::page(
                ui,
                "Widgets",
                |_| {},
                |ui| {
                    self.type_and_buttons(ui);
                    self.fields(ui);
                    self.cards(ui);
                    self.data(ui);
                    messages(ui);
                    numbers(ui);
                    icon_table(ui);
                },
            );
        });
        if let Some(confirm) = &self.confirm
            && let Some(Answer::Yes | Answer::No) = confirm.ui(ui)
        {
            self.confirm = None;
        }
    }
}

impl Gallery {
    fn type_and_buttons(&mut self, ui: &mut Ui) {
        widgets::section(ui, "Type", |ui| {
            ui.label(theme::title("Title"));
            ui.label(theme::heading("Heading"));
            ui.label(theme::strong("Strong"));
            ui.label("Body: the quick brown fox jumps over the lazy dog, 0123456789");
            ui.label(theme::weak(ui, "Weak, for what explains"));
            ui.label(theme::small(ui, "Small, for what accompanies"));
        });
        widgets::section(ui, "Buttons", |ui| {
            for enabled in [true, false] {
                ui.horizontal(|ui| {
                    ui.add(Button::primary("Primary").icon(icons::PLAY).enabled(enabled));
                    ui.add(Button::secondary("Secondary").enabled(enabled));
                    ui.add(Button::ghost("Ghost").icon(icons::COPY).enabled(enabled));
                    if Button::danger("Danger…").icon(icons::TRASH).enabled(enabled).clicked(ui) {
                        self.confirm = Some(Confirm {
                            title: "Delete pirate?".into(),
                            text: "Its folder goes from the library: 9.8 MB".into(),
                            yes: "Delete".into(),
                        });
                    }
                    widgets::icon_button(ui, icons::FOLDER_OPEN, "Open the folder");
                    widgets::link(ui, "A link");
                });
            }
        });
    }

    fn fields(&mut self, ui: &mut Ui) {
        widgets::section(ui, "Fields", |ui| {
            widgets::labelled(ui, "Name", "Letters, digits, -, _ and .", |ui| {
                widgets::field(ui, &mut self.text, "Name of the run")
            });
            ui.horizontal(|ui| {
                widgets::search(ui, &mut self.search, "Find a run");
                widgets::switch(ui, &mut self.on, "Packing");
                widgets::segmented(ui, &mut self.segment, &[(0, "Quick"), (1, "Balanced"), (2, "Thorough")]);
                let options = [(0, "cosine"), (1, "linear"), (2, "constant")];
                widgets::choice(ui, "Schedule", &mut self.choice, &options);
            });
        });
    }

    fn data(&mut self, ui: &mut Ui) {
        widgets::section(ui, "Chart", |ui| {
            self.link.begin(ui);
            self.link.extent = (0.0, 500.0);
            self.chart.ui(ui, &mut self.link, |_, _| {});
        });
        widgets::section(ui, "Tokens and lengths", |ui| {
            widgets::token_legend(ui, &self.row);
            self.tokens.ui(ui, &self.row);
            widgets::histogram(ui, "Lengths of the rows", &[1, 4, 9, 12, 7, 3, 1, 0, 1], 45, 32);
        });
        widgets::section(ui, "Markdown", |ui| self.markdown.ui(ui, MARKDOWN));
    }

    fn cards(&mut self, ui: &mut Ui) {
        let step = |name, is_done| StepView { name, is_done, locked: None };
        let steps = [step("Model", true), step("Data", false), step("Review", false)];
        self.step = widgets::stepper(ui, &steps, self.step).unwrap_or(self.step);
        widgets::columns(ui, &[0, 1, 2], 260.0, |ui, &index| {
            let name = format!("Card {index}");
            let clicked = widgets::clickable_card(ui, &name, self.selected_card == index, |ui| {
                ui.label(theme::heading(name.as_str()));
                ui.label(theme::weak(ui, "Can be chosen"));
            });
            if clicked.clicked() {
                self.selected_card = index;
            }
        });
    }
}

fn messages(ui: &mut Ui) {
    widgets::section(ui, "Messages", |ui| {
        ui.horizontal(|ui| {
            for (tone, text) in [
                (Tone::Neutral, "Paused"),
                (Tone::Accent, "Running"),
                (Tone::Success, "Completed"),
                (Tone::Warning, "Interrupted"),
                (Tone::Error, "Failed"),
            ] {
                widgets::badge(ui, tone, text);
                widgets::dot(ui, tone);
            }
        });
        ui.horizontal(|ui| {
            for status in [RunStatus::Queued, RunStatus::Running, RunStatus::Kept, RunStatus::Interrupted] {
                widgets::run_badge(ui, status);
            }
            widgets::tool_button(ui, icons::COPY, "Copy", true);
        });
        widgets::offer(ui, Tone::Accent, "Something can be done", Button::secondary("Do it"));
        for tone in [Tone::Neutral, Tone::Success, Tone::Warning, Tone::Error] {
            widgets::notice(ui, tone, "A remark that says what matters, and what to do about it");
        }
        let error =
            ErrorInfo::new(ErrorCode::OutOfMemory, "Batch does not fit: needs 14.2 GiB, 11.0 GiB free")
                .hint("lower the batch size to 2, or the context to 2048");
        widgets::error_box(ui, &error);
        widgets::progress_line(ui, &Progress { what: "Copying".into(), done: 40, total: 100 });
        widgets::spinner_line(ui, "Loading the model");
        widgets::empty_state(
            ui,
            icons::PUZZLE_PIECE,
            "No adapters yet",
            "A run puts them here",
            Some("New fine-tune…"),
        );
    });
}

fn numbers(ui: &mut Ui) {
    widgets::section(ui, "Numbers", |ui| {
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = space::XL;
            widgets::stat(ui, "Loss", "0.727");
            widgets::stat(ui, "Speed", "492 tokens/s");
        });
        for fraction in [0.3, 0.85, 0.97] {
            widgets::meter(ui, "Memory", fraction, &format!("{:.0} %", fraction * 100.0));
        }
        let parts = [("Weights", 6u64 << 30), ("Adapter", 1 << 28), ("Activations", 3 << 30)]
            .map(|(name, bytes)| Part { name, bytes });
        widgets::stacked_bar(ui, "Memory of a run", &parts, 16 << 30);
        widgets::stacked_bar(ui, "Memory of a run that does not fit", &parts, 8 << 30);
        widgets::key_value(ui, "facts", [("Base", "SmolLM2-135M-Instruct".into()), ("Rank", "16".into())]);
    });
}

fn icon_table(ui: &mut Ui) {
    widgets::section(ui, "Icons", |ui| {
        ui.horizontal_wrapped(|ui| {
            for icon in [
                icons::HOUSE,
                icons::SPARKLE,
                icons::CHART_LINE_UP,
                icons::PUZZLE_PIECE,
                icons::CUBE,
                icons::GEAR_SIX,
            ] {
                ui.label(theme::icon(icon));
            }
        });
    });
}
