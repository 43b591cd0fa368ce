use std::collections::{BTreeMap, BTreeSet};

use egui::{Role, ScrollArea, Ui, WidgetInfo};
use lathe_protocol::{CommandBody, DataFile, DataReport, Event, EventBody, RejectedView, RowView, RunConfig};

use super::preflight::Question;
use crate::{
    Asked, Outbox, format,
    theme::{self, icons, space},
    widgets::{TokenText, error_box, icon_button, spinner_line, token_legend},
};

/// Rows asked for at a time.
const BLOCK: usize = 16;
/// Of the window.
const PREVIEW_SHARE: f32 = 0.28;

/// Weights do not change what a row is.
fn paths(files: &[DataFile]) -> impl Iterator<Item = &str> {
    files.iter().map(|file| file.path.as_str())
}

/// The rows as the model sees them: those around the one in sight, fetched as they are looked at.
#[derive(Default)]
pub(super) struct Rows {
    of: Option<Question>,
    seen: BTreeMap<usize, RowView>,
    /// Blocks that were asked for.
    tried: BTreeSet<usize>,
    asked: Asked<()>,
    current: usize,
    text: TokenText,
    /// Of pairs.
    rejected: TokenText,
}

impl Rows {
    pub(super) fn follow(
        &mut self,
        question: Option<&Question>,
        report: Option<&DataReport>,
        out: &mut Outbox,
    ) {
        // A report on the file comes first: it tells whether it has rows to show.
        let Some((question, report)) = question.zip(report) else { return };
        let is_of = |of: &Question| {
            let RunConfig { data, columns, styles, max_seq_len, .. } = &question.config;
            of.is_of_same_file(question)
                && paths(&of.config.data).eq(paths(data))
                && (&of.config.columns, &of.config.styles) == (columns, styles)
                && of.config.max_seq_len == *max_seq_len
        };
        if !self.of.as_ref().is_some_and(is_of) {
            let is_same_file = self.of.as_ref().is_some_and(|of| of.is_of_same_file(question));
            self.asked.clear(out);
            let current = if is_same_file { self.current } else { 0 };
            *self = Self { of: Some(question.clone()), current, ..Self::default() };
        }
        self.current = self.current.min(report.rows.saturating_sub(1));
        if self.asked.is_waiting() {
            return;
        }
        // The row in sight, then those it leads to.
        let wanted = [self.current, self.current + BLOCK / 2, self.current.saturating_sub(BLOCK / 2)];
        let block = wanted.into_iter().filter(|row| *row < report.rows).map(|row| row / BLOCK);
        if let Some(block) = block.into_iter().find(|block| !self.tried.contains(block)) {
            self.tried.insert(block);
            let Question { model, data, config, .. } = question.clone();
            let row = block * BLOCK;
            self.asked.ask(out, CommandBody::DataShow { model, data, row, count: BLOCK, config });
        }
    }

    /// The file has changed.
    pub(super) fn forget(&mut self, out: &mut Outbox) {
        self.asked.clear(out);
        *self = Self { current: self.current, ..Self::default() };
    }

    pub(super) fn apply(&mut self, event: &Event) {
        let Self { asked, seen, .. } = self;
        asked.apply(event, |body| {
            if let EventBody::Row(row) = body {
                seen.insert(row.place.row, row.clone());
            }
            None
        });
    }

    pub(super) fn ui(&mut self, ui: &mut Ui, num_rows: usize) {
        self.slider(ui, num_rows);
        let height = ui.ctx().content_rect().height() * PREVIEW_SHARE;
        let Self { seen, asked, current, text, rejected, .. } = self;
        match seen.get(current) {
            Some(row) => {
                token_legend(ui, row);
                ScrollArea::vertical()
                    .id_salt(("tokens", *current))
                    .max_height(height)
                    .min_scrolled_height(height)
                    .auto_shrink([false, true])
                    .show(ui, |ui| {
                        ui.set_width(ui.available_width() - space::M);
                        let Some(other) = row.rejected.clone() else {
                            text.ui(ui, row);
                            return;
                        };
                        let RejectedView { tokens, truncated_tokens } = other;
                        let other = RowView { tokens, truncated_tokens, ..row.clone() };
                        ui.columns(2, |sides| {
                            sides[0].label(theme::strong("Chosen"));
                            text.ui(&mut sides[0], row);
                            sides[1].label(theme::strong("Rejected"));
                            rejected.ui(&mut sides[1], &other);
                        });
                    });
            }
            None if asked.is_waiting() => spinner_line(ui, "Reading the rows"),
            None => match &asked.error {
                Some(error) => error_box(ui, error),
                None => drop(ui.label(theme::weak(ui, "This row cannot be shown"))),
            },
        }
    }

    fn slider(&mut self, ui: &mut Ui, num_rows: usize) {
        let last = num_rows.saturating_sub(1);
        ui.horizontal(|ui| {
            if icon_button(ui, icons::CARET_LEFT, "Row before").clicked() {
                self.current = self.current.saturating_sub(1);
            }
            ui.spacing_mut().slider_width = (ui.available_width() - 220.0).max(80.0);
            let slider = ui.add(egui::Slider::new(&mut self.current, 0..=last).show_value(false));
            slider.widget_info(|| WidgetInfo::labeled(Role::Slider, true, "Row"));
            if icon_button(ui, icons::CARET_RIGHT, "Row after").clicked() {
                self.current = (self.current + 1).min(last);
            }
            let tokens = self.seen.get(&self.current).map(|row| row.tokens.len());
            let (row, of) = (format::count(self.current as u64 + 1), format::count(num_rows as u64));
            let place = format!("Row {row} of {of}");
            ui.label(match tokens {
                Some(tokens) => format!("{place}, {}", format::plural(tokens, "token")),
                None => place,
            });
        });
    }
}
