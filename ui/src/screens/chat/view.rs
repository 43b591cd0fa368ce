use std::collections::HashMap;

use egui::{Frame, Margin, Panel, Rect, Ui, UiBuilder, vec2};
use lathe_protocol::{ChatRecord, ErrorInfo};

use super::{Chat, Wish, composer, engine::Engine, header, list, messages, panel};
use crate::{
    Store,
    theme::space,
    widgets::{Button, Markdown, TallList, error_box, spinner_line},
};

const LIST_WIDTH: f32 = 216.0;
const PANEL_WIDTH: f32 = 272.0;

/// What is only of the screen.
pub(super) struct View {
    pub wishes: Vec<Wish>,
    pub list_open: bool,
    pub panel_open: bool,
    pub search: String,
    /// The question being written.
    pub text: String,
    /// The question being rewritten, by its depth.
    pub editing: Option<(usize, String)>,
    pub renaming: Option<(String, String)>,
    pub rename_when_open: Option<(String, String)>,
    /// The composer takes the keyboard in the next frame.
    pub wants_focus: bool,
    pub list: TallList,
    /// By lane and node.
    pub markdown: HashMap<(usize, usize), Markdown>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            wishes: Vec::new(),
            list_open: true,
            panel_open: true,
            search: String::new(),
            text: String::new(),
            editing: None,
            renaming: None,
            rename_when_open: None,
            wants_focus: true,
            list: TallList::default(),
            markdown: HashMap::new(),
        }
    }
}

impl View {
    /// Another conversation is shown.
    pub fn turn_over(&mut self) {
        self.editing = None;
        self.wants_focus = true;
        self.list = TallList::default();
        self.markdown.clear();
    }

    pub fn wish(&mut self, wish: Wish) {
        self.wishes.push(wish);
    }
}

/// What is shown of the conversation.
pub(super) struct Shown<'a> {
    pub record: &'a ChatRecord,
    pub engines: &'a [Engine; 2],
    pub failures: &'a HashMap<(String, usize, usize), ErrorInfo>,
}

impl Shown<'_> {
    /// Whether an answer of this conversation is being written.
    pub fn is_writing(&self) -> bool {
        self.engines
            .iter()
            .any(|engine| engine.writing.as_ref().is_some_and(|target| target.chat == self.record.id))
    }

    pub fn is_writing_elsewhere(&self) -> bool {
        !self.is_writing() && self.engines.iter().any(|engine| engine.writing.is_some())
    }
}

impl Chat {
    pub(super) fn draw(&mut self, ui: &mut Ui, store: &Store) {
        let Self { list, opening, records, current, engines, failures, save_error, view, .. } = self;
        let (mut middle, height) = (ui.available_rect_before_wrap(), ui.available_height());
        let part = |ui: &mut Ui, rect: Rect, contents: &mut dyn FnMut(&mut Ui)| {
            let mut child = ui.new_child(UiBuilder::new().max_rect(rect));
            // Scroll bars stand beside what they scroll.
            child.set_clip_rect(rect.expand2(vec2(space::M, 0.0)).intersect(ui.clip_rect()));
            contents(&mut child);
        };
        if view.list_open {
            let rect = Rect::from_min_size(middle.min, vec2(LIST_WIDTH, height));
            middle.min.x = rect.right() + space::XL;
            part(ui, rect, &mut |ui| list::ui(ui, view, list, current.as_deref(), store.now_secs));
        }
        let record = current.as_ref().and_then(|id| records.get_mut(id));
        let Some(record) = record.filter(|_| !opening.is_waiting()) else {
            return part(ui, middle, &mut |ui| match &opening.error {
                Some(error) => error_box(ui, error),
                None => spinner_line(ui, "Opening the conversation"),
            });
        };
        if view.panel_open {
            let left_top = middle.right_top() - vec2(PANEL_WIDTH, 0.0);
            let rect = Rect::from_min_size(left_top, vec2(PANEL_WIDTH, height));
            middle.max.x = rect.left() - space::L;
            part(ui, rect, &mut |ui| panel::ui(ui, view, record, engines, store));
        }
        part(ui, middle, &mut |ui| {
            header::ui(ui, view, record, engines, store);
            if let Some(error) = &opening.error {
                error_box(ui, error);
            }
            if let Some(error) = &*save_error {
                error_box(ui, error);
                if Button::secondary("Save again").clicked(ui) {
                    view.wish(Wish::SaveAgain);
                }
            }
            let shown = Shown { record, engines, failures };
            Panel::bottom("composer")
                .resizable(false)
                .show_separator_line(false)
                .frame(Frame::new().inner_margin(Margin { bottom: space::M as i8, ..Margin::ZERO }))
                .show(ui, |ui| composer::ui(ui, view, &shown, store));
            messages::ui(ui, view, &shown);
        });
    }
}
