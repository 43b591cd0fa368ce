use egui::{
    Align, CollapsingHeader, Frame, Key, Label, Layout, Margin, TextEdit, TextWrapMode, Ui, WidgetText,
};
use lathe_protocol::{ChatNode, ChatStats, Role, Thinking};

use super::{
    Wish,
    engine::Standing,
    messages::{BRANCHES_WIDTH, branches},
    tree,
    view::{Shown, View},
};
use crate::{
    format,
    theme::{self, RADIUS, colors, icons, size, space},
    widgets::{Button, TOOL_SIDE, error_box, progress_line, spinner_line, tool_button},
};

/// The buttons and the speed line in one row need so much width.
const ROOM_FOR_SPEED: f32 = 480.0;

/// Where a message stands in its conversation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub lane: usize,
    pub node: usize,
    pub depth: usize,
    pub is_last: bool,
}

pub(super) fn ui(ui: &mut Ui, view: &mut View, shown: &Shown, at: Place) {
    let node = &shown.record.lanes[at.lane].nodes[at.node];
    ui.push_id(("message", at.lane, at.node), |ui| {
        ui.spacing_mut().item_spacing.y = space::XS;
        match node.message.role {
            Role::Assistant => answer(ui, view, shown, node, at),
            _ if view.editing.as_ref().is_some_and(|(depth, _)| *depth == at.depth) => edit(ui, view),
            _ => question(ui, view, shown, node, at),
        }
    });
}

fn question(ui: &mut Ui, view: &mut View, shown: &Shown, node: &ChatNode, at: Place) {
    let text = &node.message.content;
    let margin = Margin::symmetric(14, 9);
    let width = ui.available_width() * 0.85 - margin.sum().x;
    let text_widget = WidgetText::from(text.as_str());
    let galley = text_widget.into_galley(ui, Some(TextWrapMode::Wrap), width, egui::TextStyle::Body);
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.add_space(ui.available_width() - galley.size().x - margin.sum().x);
        Frame::new()
            .fill(colors(ui).accent_soft)
            .corner_radius(RADIUS + 4)
            .inner_margin(margin)
            .show(ui, |ui| ui.add(Label::new(galley)));
    });
    let branching = tree::siblings(&shown.record.lanes[at.lane], at.node).len() > 1;
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        let width = 2.0 * TOOL_SIDE + if branching { BRANCHES_WIDTH } else { 0.0 };
        ui.add_space((ui.available_width() - width).max(0.0));
        branches(ui, view, shown, at);
        copy_button(ui, text);
        if tool_button(ui, icons::PENCIL_SIMPLE, "Edit the message", !shown.is_writing()).clicked() {
            view.editing = Some((at.depth, text.clone()));
        }
    });
}

/// A question being rewritten, in its place.
fn edit(ui: &mut Ui, view: &mut View) {
    let Some((depth, text)) = &mut view.editing else { return };
    let response = ui.add(
        TextEdit::multiline(text)
            .hint_text("The message")
            .desired_rows(2)
            .desired_width(f32::INFINITY)
            .margin(Margin::symmetric(14, 9)),
    );
    let mut wish = None;
    let mut done = response.has_focus() && ui.input(|input| input.key_pressed(Key::Escape));
    ui.horizontal(|ui| {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if Button::primary("Send anew").enabled(!text.trim().is_empty()).clicked(ui) {
                wish = Some(Wish::Edit { depth: *depth, text: text.clone() });
                done = true;
            }
            done |= Button::secondary("Cancel").clicked(ui);
        });
    });
    if done {
        view.editing = None;
    }
    view.wishes.extend(wish);
}

fn answer(ui: &mut Ui, view: &mut View, shown: &Shown, node: &ChatNode, at: Place) {
    let message = &node.message;
    let engine = &shown.engines[at.lane];
    let writing = engine
        .writing
        .as_ref()
        .is_some_and(|target| target.chat == shown.record.id && target.node == at.node);
    if let Some(by) = node.answered_by {
        ui.label(theme::small(ui, by.to_string())).on_hover_text("Whose answer it is: the run's as of then");
    }
    if let Some(thinking) = &message.thinking
        && shown.record.thinking == Thinking::Show
    {
        thinking_block(ui, thinking, writing && message.content.is_empty());
        ui.add_space(space::S);
    }
    view.markdown.entry((at.lane, at.node)).or_default().ui(ui, &message.content);
    for call in &message.tool_calls {
        let text = serde_json::to_string_pretty(&call.function).unwrap_or_default();
        ui.label(theme::small(ui, "Call of a tool"));
        ui.monospace(text);
    }
    if writing {
        ui.add_space(space::XS);
        match &engine.standing {
            Standing::Loading(Some(progress)) => progress_line(ui, progress),
            Standing::Loading(None) => spinner_line(ui, "Loading the model"),
            _ if shown.record.lanes[at.lane].run.is_some() && node.answered_by.is_none() => {
                spinner_line(ui, "Answers after this step");
            }
            _ if tree::is_empty_answer(node) => spinner_line(ui, "Reading the conversation"),
            _ => spinner_line(ui, ""),
        }
        return;
    }
    let failure = shown.failures.get(&(shown.record.id.clone(), at.lane, at.node));
    if let Some(error) = failure {
        ui.add_space(space::S);
        error_box(ui, error);
    } else if tree::is_empty_answer(node) && node.stats.is_none() {
        ui.label(theme::weak(ui, "No answer came"));
    }
    let narrow = ui.available_width() < ROOM_FOR_SPEED;
    let speed = |ui: &mut Ui| {
        if let Some(stats) = node.stats.filter(|_| at.is_last) {
            let prompt = format!("{} tokens in the prompt", format::count(stats.prompt_tokens as u64));
            let line = speed_line(&stats, shown.record.sampling.max_tokens);
            ui.add(Label::new(theme::small(ui, line)).wrap()).on_hover_text(prompt);
        }
    };
    if narrow {
        ui.add_space(space::XS);
        speed(ui);
    }
    let free = !shown.is_writing() && !shown.is_writing_elsewhere();
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 0.0;
        if failure.is_some() || (tree::is_empty_answer(node) && node.stats.is_none()) {
            let retry = Button::secondary("Try again").icon(icons::ARROW_CLOCKWISE).enabled(free);
            if retry.clicked(ui) {
                view.wish(Wish::Retry { lane: at.lane, depth: at.depth });
            }
            return branches(ui, view, shown, at);
        }
        // The icon, not its button, stands under the text.
        ui.add_space(-space::XS - 1.0);
        copy_button(ui, &message.content);
        if tool_button(ui, icons::ARROW_CLOCKWISE, "Answer again", free).clicked() {
            view.wish(Wish::Regenerate { depth: at.depth });
        }
        branches(ui, view, shown, at);
        if !narrow {
            ui.add_space(space::S);
            speed(ui);
        }
    });
}

/// Shown while nothing else is there, folded once the answer begins.
fn thinking_block(ui: &mut Ui, thinking: &str, open: bool) {
    let colors = colors(ui);
    Frame::new()
        .fill(colors.card)
        .stroke(egui::Stroke::new(1.0, colors.border))
        .corner_radius(RADIUS)
        .inner_margin(Margin::symmetric(10, 6))
        .show(ui, |ui| {
            ui.set_min_width(ui.available_width());
            let title = if open { "Thinking…" } else { "Thinking" };
            CollapsingHeader::new(theme::small(ui, title))
                // Open while it goes on; afterwards it is another thing, and folded.
                .id_salt(("thinking", open))
                .default_open(open)
                .show(ui, |ui| ui.add(Label::new(theme::weak(ui, thinking).size(size::SMALL + 1.0)).wrap()));
        });
}

fn copy_button(ui: &mut Ui, text: &str) {
    if tool_button(ui, icons::COPY, "Copy the message", true).clicked() {
        ui.ctx().copy_text(text.to_owned());
    }
}

/// `1.2 s to first token · 84.3 tokens/s · 213 tokens`; the load stands apart, and is in none of the others.
fn speed_line(stats: &ChatStats, max_tokens: usize) -> String {
    let ChatStats { load_seconds, ttft_seconds, output_tokens, tokens_per_second, finished, .. } = *stats;
    let tokens = format::plural(output_tokens, "token");
    let first = format::short_secs(ttft_seconds);
    let speed = if tokens_per_second < 100.0 {
        format!("{tokens_per_second:.1}")
    } else {
        format::count(tokens_per_second.round() as u64)
    };
    let thought = if stats.thinking_tokens > 0 {
        let tokens = format::plural(stats.thinking_tokens, "token");
        format!("thought {tokens} in {} · ", format::short_secs(stats.thinking_seconds))
    } else {
        String::new()
    };
    let mut line = format!("{thought}{first} to first token · {speed} tokens/s · {tokens}");
    if !finished {
        line.push_str(if output_tokens >= max_tokens { " · cut at the token limit" } else { " · stopped" });
    }
    // A run in training is loaded already.
    if load_seconds == 0.0 {
        return line;
    }
    line + &format!(" · loaded in {} (not counted)", format::short_secs(load_seconds))
}
