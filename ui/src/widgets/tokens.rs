use std::sync::Arc;

use egui::{
    Color32, FontId, Galley, Response, Role as AccessRole, Sense, Ui, WidgetInfo,
    text::{LayoutJob, TextFormat},
    vec2,
};
use lathe_protocol::{ReplyChannel, Role, RowView, TokenView};

use super::meter::legend_item;
use crate::{
    format,
    theme::{self, colors, size, space},
};

/// What training makes of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    Trained,
    Thinking,
    Tool,
    Context,
    Cut,
}

impl TokenKind {
    const ALL: [Self; 5] = [Self::Trained, Self::Thinking, Self::Tool, Self::Context, Self::Cut];

    fn of(row: &RowView, index: usize) -> Self {
        let token = &row.tokens[index];
        if index >= row.tokens.len().saturating_sub(row.truncated_tokens) {
            return Self::Cut;
        }
        match token.channel {
            _ if !token.loss => Self::Context,
            Some(ReplyChannel::Thinking) => Self::Thinking,
            Some(ReplyChannel::ToolCall) => Self::Tool,
            Some(ReplyChannel::Answer) | None => Self::Trained,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Trained => "Learned",
            Self::Thinking => "Learned, thinking",
            Self::Tool => "Learned, tool call",
            Self::Context => "Only read",
            Self::Cut => "Cut off",
        }
    }

    fn color(self, ui: &Ui) -> Color32 {
        let colors = colors(ui);
        match self {
            Self::Trained => colors.token_trained,
            Self::Thinking => colors.token_thinking,
            Self::Tool => colors.token_tool,
            Self::Context => colors.token_context,
            Self::Cut => colors.token_cut,
        }
    }
}

/// A row as its tokens, each on the colour of its kind; laid out once. Another file's rows need another of it.
#[derive(Default)]
pub struct TokenText {
    laid_out: Option<LaidOut>,
}

struct LaidOut {
    /// Of the row, the width, and dark or not.
    of: (usize, u32, bool),
    galley: Arc<Galley>,
    /// First character of each token.
    starts: Vec<usize>,
    /// What a screen reader reads.
    spoken: String,
}

impl TokenText {
    pub fn ui(&mut self, ui: &mut Ui, row: &RowView) -> Response {
        let width = ui.available_width().floor();
        let of = (row.place.row, width.to_bits(), ui.visuals().dark_mode);
        if self.laid_out.as_ref().is_none_or(|laid_out| laid_out.of != of) {
            self.laid_out = None;
        }
        let LaidOut { galley, starts, spoken, .. } =
            self.laid_out.get_or_insert_with(|| LaidOut::new(ui, row, width, of));
        let (rect, response) = ui.allocate_exact_size(vec2(width, galley.size().y), Sense::hover());
        ui.painter().galley(rect.min, Arc::clone(galley), colors(ui).text);
        response.widget_info(|| WidgetInfo::labeled(AccessRole::Label, true, &*spoken));
        let under_pointer = response.hover_pos().and_then(|pos| {
            let pos = pos - rect.min;
            // Beyond a line's end is nothing.
            galley.rows.iter().find(|row| row.rect().contains(pos.to_pos2()))?;
            let cursor = galley.cursor_from_pos(pos);
            let index = starts.partition_point(|&start| start <= cursor.index.0).checked_sub(1)?;
            Some((index, row.tokens.get(index)?))
        });
        match under_pointer {
            Some((index, token)) => response.on_hover_ui_at_pointer(|ui| {
                about_token(ui, token, TokenKind::of(row, index));
            }),
            None => response,
        }
    }
}

impl LaidOut {
    fn new(ui: &Ui, row: &RowView, width: f32, of: (usize, u32, bool)) -> Self {
        let colors = colors(ui);
        let mut job = LayoutJob::default();
        job.wrap.max_width = width;
        let mut starts = Vec::with_capacity(row.tokens.len());
        let mut num_chars = 0;
        for (index, token) in row.tokens.iter().enumerate() {
            starts.push(num_chars);
            let kind = TokenKind::of(row, index);
            let ground = kind.color(ui);
            let format = TextFormat {
                font_id: FontId::proportional(size::BODY),
                color: if kind == TokenKind::Context { colors.text_weak } else { colors.text },
                // Neighbours of a kind are told apart by a shade.
                background: if index % 2 == 0 { ground } else { ground.gamma_multiply(0.72) },
                line_height: Some(23.0),
                ..TextFormat::default()
            };
            for (text, is_mark) in visible(&token.text) {
                num_chars += text.chars().count();
                let color = if is_mark { colors.text_faint } else { format.color };
                job.append(&text, 0.0, TextFormat { color, ..format.clone() });
            }
        }
        let trained = row.tokens.iter().filter(|token| token.loss).count();
        let all_text: String = row.tokens.iter().map(|token| token.text.as_str()).collect();
        let tokens = format::plural(row.tokens.len(), "token");
        let spoken = format!("Row {} of {tokens}, {trained} of them learned: {all_text}", row.place.row + 1);
        Self { of, galley: ui.fonts_mut(|fonts| fonts.layout_job(job)), starts, spoken }
    }
}

/// The text in pieces, with marks (true) for whitespace that could not be seen: line ends, tabs, spaces in a row.
fn visible(text: &str) -> Vec<(String, bool)> {
    if text.is_empty() {
        return vec![("·".into(), true)];
    }
    let mut pieces: Vec<(String, bool)> = Vec::new();
    let mut after_space = false;
    for char in text.chars() {
        let (shown, is_mark) = match char {
            '\n' => ("¶\n", true),
            '\r' => continue,
            '\t' => ("→", true),
            ' ' if after_space => ("·", true),
            _ => ("", false),
        };
        if pieces.last().is_none_or(|(_, was_mark)| *was_mark != is_mark) {
            pieces.push((String::new(), is_mark));
        }
        if let Some((piece, _)) = pieces.last_mut() {
            if is_mark { piece.push_str(shown) } else { piece.push(char) }
        }
        after_space = char == ' ';
    }
    pieces
}

fn about_token(ui: &mut Ui, token: &TokenView, kind: TokenKind) {
    ui.label(theme::strong(format!("{:?}", token.text)));
    let role = token.role.map(|role| match role {
        Role::System => "the system's turn",
        Role::Developer => "the developer's turn",
        Role::User => "the user's turn",
        Role::Assistant => "the assistant's turn",
        Role::Tool => "a tool's answer",
    });
    let learned = match kind {
        TokenKind::Cut => "Past the cut: the model never sees it",
        _ if token.loss => "The model learns to write it",
        _ => "The model only reads it",
    };
    ui.label(learned);
    let place = role.map_or_else(|| "between turns".to_owned(), |role| format!("in {role}"));
    let channel = match token.channel {
        Some(ReplyChannel::Thinking) => ", thinking",
        Some(ReplyChannel::ToolCall) => ", a tool call",
        Some(ReplyChannel::Answer) | None => "",
    };
    ui.label(theme::small(ui, format!("Token {}, {place}{channel}", token.id)));
}

/// What the colours mean, of the kinds that `row` has.
pub fn token_legend(ui: &mut Ui, row: &RowView) {
    let mut present = [false; TokenKind::ALL.len()];
    for index in 0..row.tokens.len() {
        present[TokenKind::of(row, index) as usize] = true;
    }
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = vec2(space::L, 0.0);
        for kind in TokenKind::ALL.into_iter().filter(|kind| present[*kind as usize]) {
            legend_item(ui, kind.color(ui), kind.name());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn whitespace_can_be_seen() {
        let marked = |text: &str| {
            let pieces = visible(text).into_iter();
            pieces
                .map(|(piece, is_mark)| if is_mark { format!("[{piece}]") } else { piece })
                .collect::<String>()
        };
        assert_eq!(marked(" word"), " word");
        assert_eq!(marked("a\r\n\n"), "a[¶\n¶\n]");
        assert_eq!(marked("    x"), " [···]x");
        assert_eq!(marked(""), "[·]");
    }
}
