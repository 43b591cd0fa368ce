use egui::{Align, Layout, Ui, UiBuilder, vec2};
use lathe_protocol::Role;

use super::{
    Wish, message,
    message::Place,
    tree,
    view::{Shown, View},
};
use crate::{
    theme::{self, colors, icons, space},
    widgets::{Button, TOOL_SIDE, clickable_card, tool_button},
};

/// As wide as lines of text may get.
pub(super) const READABLE_WIDTH: f32 = 820.0;

/// Between two models' answers.
const COLUMN_GAP: f32 = 28.0;
/// Of [`branches`].
pub(super) const BRANCHES_WIDTH: f32 = 2.0 * TOOL_SIDE + 24.0;

const EXAMPLES: [(&str, &str); 3] = [
    ("Explain something", "Explain how LoRA fine-tuning works to someone who knows some Python."),
    ("Write code", "Write a Python function that removes duplicate lines from a file and keeps their order."),
    (
        "Make a table",
        "Make a table of three ways to store dates in a database, with what speaks for and against each.",
    ),
];

/// The conversation, its newest message in view.
pub(super) fn ui(ui: &mut Ui, view: &mut View, shown: &Shown) {
    let paths: Vec<Vec<usize>> = shown.record.lanes.iter().map(tree::path).collect();
    let depths = paths.iter().map(Vec::len).max().unwrap_or_default();
    if depths == 0 {
        return welcome(ui, view);
    }
    let mut list = std::mem::take(&mut view.list);
    list.ui(ui, &shown.record.id, depths, |ui, depth| {
        ui.add_space(if depth == 0 { space::L } else { space::M });
        turn(ui, view, shown, &paths, depth);
        if depth + 1 == depths {
            ui.add_space(space::L);
        }
    });
    if list.is_away_from_end() {
        let center = ui.max_rect().center_bottom() - vec2(0.0, 28.0);
        let place = egui::Rect::from_center_size(center, vec2(190.0, theme::CONTROL_HEIGHT));
        let mut above =
            ui.new_child(UiBuilder::new().max_rect(place).layout(Layout::top_down(Align::Center)));
        if Button::secondary("Jump to the newest").icon(icons::ARROW_DOWN).clicked(&mut above) {
            list.jump_to_end();
        }
    }
    view.list = list;
}

/// One message, or two different ones of the same depth side by side.
fn turn(ui: &mut Ui, view: &mut View, shown: &Shown, paths: &[Vec<usize>], depth: usize) {
    let lanes = &shown.record.lanes;
    let place = |lane: usize| {
        let node = *paths[lane].get(depth)?;
        Some(Place { lane, node, depth, is_last: depth + 1 == paths[lane].len() })
    };
    let same = |a: &Place, b: &Place| {
        let (a, b) = (&lanes[0].nodes[a.node], &lanes[1].nodes[b.node]);
        a.message == b.message
            && (a.stats, a.answered_by) == (b.stats, b.answered_by)
            && (a.message.role == Role::User || a.stats.is_some())
    };
    match (place(0), (lanes.len() > 1).then(|| place(1)).flatten()) {
        (Some(left), Some(right)) if !same(&left, &right) => {
            side_by_side(ui, |ui, lane| message::ui(ui, view, shown, [left, right][lane]));
        }
        (Some(one), _) | (None, Some(one)) => {
            let margin = ((ui.available_width() - READABLE_WIDTH) / 2.0).max(0.0);
            let mut rect = ui.available_rect_before_wrap();
            rect.min.x += margin;
            rect.max.x -= margin;
            ui.scope_builder(UiBuilder::new().max_rect(rect), |ui| message::ui(ui, view, shown, one));
        }
        (None, None) => {}
    }
}

/// Two columns of the same width; each is told which it is.
pub(super) fn side_by_side(ui: &mut Ui, mut each: impl FnMut(&mut Ui, usize)) {
    let width = (ui.available_width() - COLUMN_GAP) / 2.0;
    ui.horizontal_top(|ui| {
        let inner = std::mem::replace(&mut ui.spacing_mut().item_spacing.x, COLUMN_GAP);
        for lane in 0..2 {
            ui.vertical(|ui| {
                ui.set_width(width);
                ui.spacing_mut().item_spacing.x = inner;
                each(ui, lane);
            });
        }
    });
}

/// What could be asked, where nothing was yet.
fn welcome(ui: &mut Ui, view: &mut View) {
    let height = ui.available_height();
    ui.vertical_centered(|ui| {
        ui.set_max_width(560.0_f32.min(ui.available_width()));
        ui.add_space((height - 360.0).max(0.0) / 2.0);
        ui.label(theme::icon(icons::CHATS_CIRCLE).size(theme::size::DISPLAY).color(colors(ui).accent));
        ui.label(theme::strong("What would you like to ask?").size(theme::size::HEADING));
        ui.label(theme::weak(ui, "The model runs on this machine. The first message loads it."));
        ui.add_space(space::M);
        for (name, text) in EXAMPLES {
            let card = clickable_card(ui, name, false, |ui| {
                ui.with_layout(Layout::top_down(Align::Min), |ui| {
                    ui.spacing_mut().item_spacing.y = 2.0;
                    ui.label(theme::strong(name));
                    ui.label(theme::weak(ui, text));
                });
            });
            if card.clicked() {
                text.clone_into(&mut view.text);
                view.wants_focus = true;
            }
        }
    });
}

/// Buttons that lead from one branch to another.
pub(super) fn branches(ui: &mut Ui, view: &mut View, shown: &Shown, at: Place) {
    let lane = &shown.record.lanes[at.lane];
    let siblings = tree::siblings(lane, at.node);
    if siblings.len() < 2 {
        return;
    }
    let number = siblings.iter().position(|&node| node == at.node).unwrap_or_default() + 1;
    let free = !shown.is_writing();
    ui.scope(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        let before = tool_button(ui, icons::CARET_LEFT, "Previous branch", free && number > 1);
        if before.clicked() {
            view.wish(Wish::Switch { depth: at.depth, by: -1 });
        }
        ui.label(theme::small(ui, format!("{number}/{}", siblings.len())));
        let last = number == siblings.len();
        if tool_button(ui, icons::CARET_RIGHT, "Next branch", free && !last).clicked() {
            view.wish(Wish::Switch { depth: at.depth, by: 1 });
        }
    });
}
