use std::collections::BTreeSet;

use egui::{Align, Checkbox, Label, Layout, RichText, Sense, Ui, WidgetInfo, vec2};
use egui_extras::{Column as Width, TableBuilder, TableRow};
use lathe_protocol::{RunEntry, SweepPlace};

use super::{
    super::run::bar,
    list::{Arrangement, Column, Row, Sweep, fraction},
};
use crate::{
    format,
    theme::{self, colors, icons, size, space},
    widgets::{icon_button, link, run_badge, status_tone},
};

const ROW_HEIGHT: f32 = 54.0;
/// Model and data share a column, below each other.
const COLUMNS: [&[Column]; 8] = [
    &[Column::Status],
    &[Column::Name],
    &[Column::Model, Column::Data],
    &[Column::Progress],
    &[Column::Loss],
    &[Column::EvalLoss],
    &[Column::Speed],
    &[Column::Created],
];

/// What was clicked.
pub enum Click {
    /// A run, by its id.
    Run(String),
    /// A sweep's head, by its name.
    Fold(String),
    /// The ids of a sweep's runs.
    Compare(Vec<String>),
}

/// The runs, a row each, and a row for each sweep.
pub fn ui(
    ui: &mut Ui,
    rows: &[Row<'_>],
    arrangement: &mut Arrangement,
    selected: &mut BTreeSet<String>,
    now_secs: f64,
) -> Option<Click> {
    let mut clicked = None;
    ui.style_mut().interaction.selectable_labels = false;
    // The lines between rows run through.
    ui.spacing_mut().item_spacing = vec2(0.0, 0.0);
    let mut table = TableBuilder::new(ui)
        .id_salt("runs")
        .sense(Sense::click())
        .vscroll(false)
        .cell_layout(Layout::left_to_right(Align::Center))
        .column(Width::exact(36.0));
    for heads in COLUMNS {
        table = table.column(match heads[0] {
            Column::Name | Column::Model => Width::remainder().at_least(120.0).clip(true),
            Column::Progress => Width::exact(136.0),
            Column::Created => Width::exact(116.0),
            Column::Loss | Column::Speed => Width::exact(76.0),
            Column::EvalLoss => Width::exact(84.0),
            _ => Width::exact(104.0),
        });
    }
    table
        .header(32.0, |mut header| {
            header.col(|_| {});
            for heads in COLUMNS {
                header.col(|ui| {
                    ui.spacing_mut().item_spacing.x = space::S;
                    for column in heads {
                        head(ui, *column, arrangement);
                    }
                });
            }
        })
        .body(|body| {
            body.rows(ROW_HEIGHT, rows.len(), |mut row| {
                row.set_overline(true);
                match &rows[row.index()] {
                    Row::Run { run, in_sweep } => {
                        row.set_selected(selected.contains(&run.id));
                        let opens = cells(&mut row, run, *in_sweep, selected, now_secs);
                        if opens || row.response().clicked() {
                            clicked = Some(Click::Run(run.id.clone()));
                        }
                    }
                    Row::Sweep(sweep) => {
                        let click = sweep_cells(&mut row, sweep, now_secs);
                        let folds = row.response().clicked().then(|| Click::Fold(sweep.name.to_owned()));
                        clicked = clicked.take().or(click).or(folds);
                    }
                }
            });
        });
    clicked
}

/// A column's name; a click sorts by it.
fn head(ui: &mut Ui, column: Column, arrangement: &mut Arrangement) {
    let name = column.name();
    let is_sorted = arrangement.column == column;
    let color = if is_sorted { colors(ui).text } else { colors(ui).text_weak };
    let arrow = if arrangement.ascending { icons::CARET_UP } else { icons::CARET_DOWN };
    let text = if is_sorted { format!("{name} {arrow}") } else { name.to_owned() };
    let label = Label::new(theme::strong(text).size(size::SMALL).color(color)).sense(Sense::click()).extend();
    let response = match column {
        Column::Loss | Column::EvalLoss | Column::Speed => {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| ui.add(label)).inner
        }
        Column::Created => {
            ui.add_space(space::XL);
            ui.add(label)
        }
        _ => ui.add(label),
    };
    response.widget_info(|| {
        let name = format!("Sort by {}", name.to_lowercase());
        WidgetInfo::selected(egui::Role::Button, true, is_sorted, name)
    });
    if response.clicked() {
        arrangement.sort_by(column);
    }
}

/// A sweep's head: its name, how its runs stand, and the best eval loss.
fn sweep_cells(row: &mut TableRow<'_, '_>, sweep: &Sweep<'_>, now_secs: f64) -> Option<Click> {
    let mut click = None;
    let fold = || Some(Click::Fold(sweep.name.to_owned()));
    row.col(|ui| {
        let (icon, verb) =
            if sweep.is_open { (icons::CARET_DOWN, "Fold") } else { (icons::CARET_RIGHT, "Unfold") };
        if icon_button(ui, icon, &format!("{verb} {}", sweep.name)).clicked() {
            click = fold();
        }
    });
    row.col(|ui| drop(ui.label(theme::weak(ui, "Sweep"))));
    row.col(|ui| {
        ui.set_max_width(ui.available_width() - space::M);
        let response = ui.add(Label::new(theme::strong(sweep.name)).truncate().sense(Sense::click()));
        if response.on_hover_text(sweep.name).clicked() {
            click = fold();
        }
    });
    row.col(|ui| {
        ui.set_max_width(ui.available_width() - space::M);
        let text = sweep.text();
        ui.add(Label::new(theme::weak(ui, &text)).truncate()).on_hover_text(text);
    });
    row.col(|ui| {
        if link(ui, "Compare").clicked() {
            click = Some(Click::Compare(sweep.runs.iter().map(|run| run.id.clone()).collect()));
        }
    });
    row.col(|_| {});
    row.col(|ui| {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if let Some(loss) = sweep.lowest_eval_loss() {
                ui.label(theme::strong(format::number(loss))).on_hover_text("The lowest of the sweep");
            }
        });
    });
    row.col(|_| {});
    row.col(|ui| {
        ui.add_space(space::XL);
        let created = sweep.runs.iter().map(|run| run.created_secs).min().unwrap_or_default();
        ui.add(Label::new(theme::weak(ui, format::ago(created, now_secs))).truncate());
    });
    click
}

/// True if the name was clicked, which the keyboard can do too.
fn cells(
    row: &mut TableRow<'_, '_>,
    run: &RunEntry,
    in_sweep: bool,
    selected: &mut BTreeSet<String>,
    now_secs: f64,
) -> bool {
    let mut opens = false;
    row.col(|ui| {
        let mut is_selected = selected.contains(&run.id);
        let response = ui.add(Checkbox::without_text(&mut is_selected));
        response.widget_info(|| {
            WidgetInfo::selected(egui::Role::CheckBox, true, is_selected, format!("Select {}", run.name))
        });
        if response.clicked() && !selected.remove(&run.id) {
            selected.insert(run.id.clone());
        }
    });
    row.col(|ui| {
        let badge = run_badge(ui, run.status);
        if let Some(error) = &run.error {
            badge.on_hover_text(error);
        }
    });
    row.col(|ui| {
        ui.set_max_width(ui.available_width() - space::M);
        // In its sweep it is known by its values.
        let place = run.sweep.as_ref().filter(|_| in_sweep);
        let text = place.map_or_else(|| run.name.clone(), SweepPlace::text);
        // A line each, as they differ at their ends.
        let shown = match place {
            Some(_) => Label::new(theme::strong(text.replace(" · ", "\n")).size(size::SMALL)).extend(),
            None => Label::new(theme::strong(&text)).truncate(),
        };
        let name = shown.sense(Sense::click());
        let response = ui.add(name).on_hover_cursor(egui::CursorIcon::PointingHand);
        response.widget_info(|| WidgetInfo::labeled(egui::Role::Link, true, &text));
        opens = response.on_hover_text(&run.name).clicked();
    });
    row.col(|ui| {
        ui.vertical(|ui| {
            ui.spacing_mut().item_spacing.y = 1.0;
            ui.add_space(9.0);
            ui.set_max_width(ui.available_width() - space::M);
            ui.add(Label::new(format::file_name(&run.model)).truncate()).on_hover_text(&run.model);
            let data = theme::small(ui, format::file_name(&run.data));
            ui.add(Label::new(data).truncate()).on_hover_text(&run.data);
        });
    });
    row.col(|ui| progress(ui, run));
    for value in [
        run.last_loss.map(format::number),
        run.eval_loss.map(format::number),
        run.tokens_per_second.map(|speed| format::count(speed.round() as u64)),
    ] {
        row.col(|ui| {
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| match value {
                Some(value) => ui.label(value),
                None => ui.label(RichText::new("–").color(colors(ui).text_faint)),
            });
        });
    }
    row.col(|ui| {
        ui.add_space(space::XL);
        let created = format::ago(run.created_secs, now_secs);
        ui.add(Label::new(theme::weak(ui, created)).truncate());
    });
    opens
}

fn progress(ui: &mut Ui, run: &RunEntry) {
    if let Some(doing) = &run.doing {
        ui.add(Label::new(theme::weak(ui, doing)).truncate());
        return;
    }
    ui.vertical(|ui| {
        ui.spacing_mut().item_spacing = vec2(0.0, 3.0);
        ui.add_space(12.0);
        let steps =
            format!("{} of {}", format::count(run.step as u64), format::count(run.total_steps as u64));
        ui.label(theme::small(ui, steps));
        let width = ui.available_width() - space::M;
        bar(ui, fraction(run) as f32, status_tone(run.status), &run.name, width);
    });
}
