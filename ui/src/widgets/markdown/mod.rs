mod code;
mod parse;

use egui::{
    Align, FontFamily, FontId, Frame, Hyperlink, Label, Layout, Margin, RichText, ScrollArea, Stroke,
    TextFormat, Ui, pos2, text::LayoutJob, vec2,
};

use self::parse::{Block, Run};
use crate::theme::{self, RADIUS_SMALL, colors, size, space};

/// Height of a line by its font's size.
const LEADING: f32 = 1.5;
const INDENT: f32 = 24.0;

/// A text in Markdown; read anew only when it changed.
#[derive(Debug, Default)]
pub struct Markdown {
    source: String,
    blocks: Vec<Block>,
}

impl Markdown {
    pub fn ui(&mut self, ui: &mut Ui, source: &str) {
        if self.source != source {
            source.clone_into(&mut self.source);
            self.blocks = parse::parse(source);
        }
        ui.scope(|ui| draw(ui, &self.blocks, space::M));
    }
}

fn draw(ui: &mut Ui, blocks: &[Block], gap: f32) {
    ui.spacing_mut().item_spacing.y = 0.0;
    for (index, block) in blocks.iter().enumerate() {
        if index > 0 {
            ui.add_space(if matches!(block, Block::Heading(..)) { gap + space::XS } else { gap });
        }
        ui.push_id(index, |ui| match block {
            Block::Text(runs) => text(ui, runs, size::BODY, false),
            Block::Heading(level, runs) => {
                text(ui, runs, [size::HEADING, size::LARGE, size::BODY][(*level as usize - 1).min(2)], true);
            }
            Block::Code { language, text } => code::code_block(ui, language, text),
            Block::List(start, items) => list(ui, *start, items),
            Block::Quote(blocks) => quote(ui, blocks),
            Block::Table(rows) => table(ui, rows),
            Block::Rule => drop(ui.add(egui::Separator::default().spacing(space::S))),
        });
    }
}

fn text(ui: &mut Ui, runs: &[Run], size: f32, strong: bool) {
    if runs.iter().all(|run| run.link.is_none()) {
        let mut job = LayoutJob::default();
        for run in runs {
            job.append(&run.text, 0.0, format(ui, run, size, strong));
        }
        ui.add(Label::new(job).wrap());
        return;
    }
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.spacing_mut().interact_size.y = 0.0;
        for run in runs {
            if let Some(link) = &run.link {
                let text = RichText::new(&run.text).size(size).line_height(Some(size * LEADING));
                // In a browser the window itself is a tab.
                ui.add(Hyperlink::from_label_and_url(text, link).open_in_new_tab(true));
            } else {
                let format = format(ui, run, size, strong);
                ui.label(LayoutJob::single_section(run.text.clone(), format));
            }
        }
    });
}

fn format(ui: &Ui, run: &Run, size: f32, strong: bool) -> TextFormat {
    let colors = colors(ui);
    let family = match run {
        Run { code: true, .. } => FontFamily::Monospace,
        Run { strong: true, .. } => theme::semibold(),
        _ if strong => theme::semibold(),
        _ => FontFamily::Proportional,
    };
    TextFormat {
        font_id: FontId::new(if run.code { size - 1.0 } else { size }, family),
        color: colors.text,
        background: if run.code { colors.neutral_soft } else { egui::Color32::TRANSPARENT },
        italics: run.emphasis,
        strikethrough: if run.struck { Stroke::new(1.0, colors.text) } else { Stroke::NONE },
        // The ground behind code is as high as its line: a lower line, in the middle of the row.
        line_height: Some(if run.code { size * 1.2 } else { size * LEADING }),
        valign: Align::Center,
        ..TextFormat::default()
    }
}

fn list(ui: &mut Ui, start: Option<u64>, items: &[Vec<Block>]) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            ui.add_space(space::XS);
        }
        ui.push_id(index, |ui| {
            ui.horizontal_top(|ui| {
                ui.spacing_mut().item_spacing.x = 0.0;
                let marker = match start {
                    Some(start) => format!("{}.", start + index as u64),
                    None => "•".to_owned(),
                };
                let look = Run { text: marker, ..Run::default() };
                let place = vec2(INDENT - space::S, size::BODY * LEADING);
                ui.allocate_ui_with_layout(place, Layout::right_to_left(Align::Min), |ui| {
                    ui.set_min_size(place);
                    text(ui, &[look], size::BODY, false);
                });
                ui.add_space(space::S);
                ui.vertical(|ui| draw(ui, item, space::XS));
            });
        });
    }
}

fn quote(ui: &mut Ui, blocks: &[Block]) {
    let margin = Margin { left: 14, ..Margin::ZERO };
    let rect = Frame::new().inner_margin(margin).show(ui, |ui| draw(ui, blocks, space::S)).response.rect;
    let bar = egui::Rect::from_min_max(rect.min, pos2(rect.left() + 3.0, rect.bottom()));
    ui.painter().rect_filled(bar, 1.5, colors(ui).border_strong);
}

fn table(ui: &mut Ui, rows: &[Vec<Vec<Run>>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default().max(1);
    let width = (ui.available_width() - space::XL) / columns as f32 - space::XL;
    let stroke = Stroke::new(1.0, colors(ui).border);
    let frame =
        Frame::new().stroke(stroke).corner_radius(RADIUS_SMALL + 2).inner_margin(Margin::symmetric(12, 8));
    frame.show(ui, |ui| {
        ScrollArea::horizontal().show(ui, |ui| {
            let grid = egui::Grid::new("table").min_row_height(0.0).min_col_width(0.0);
            grid.max_col_width(width.max(110.0)).spacing([space::XL, space::S]).show(ui, |ui| {
                for (index, row) in rows.iter().enumerate() {
                    for cell in row {
                        text(ui, cell, size::BODY, index == 0);
                    }
                    ui.end_row();
                }
            });
        });
    });
}
