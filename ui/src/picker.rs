use egui::{Align, Key, Layout, Response, RichText, Role, ScrollArea, Sense, Ui, WidgetInfo, pos2, vec2};
use lathe_protocol::{CommandBody, Event, EventBody, FolderEntry, FolderView};

use crate::{
    Asked, Outbox, format,
    theme::{self, RADIUS_SMALL, colors, icons, space},
    widgets::{Button, dialog, error_box, icon_button, spinner_line},
};

const WIDTH: f32 = 720.0;
const PLACES_WIDTH: f32 = 148.0;
const LIST_HEIGHT: f32 = 340.0;
const ROW_HEIGHT: f32 = 30.0;

/// What may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// Endings of the files' names, e.g. `.gguf`, in small letters.
    pub suffixes: &'static [&'static str],
    pub folders: bool,
}

impl Accept {
    /// What a run learns from.
    pub const DATA: Self = Self {
        suffixes: &[".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".gz"],
        folders: false,
    };
    /// Where something is to be written.
    pub const FOLDER: Self = Self { suffixes: &[], folders: true };
    /// What can be imported as a model.
    pub const MODEL: Self = Self { suffixes: &[".gguf"], folders: true };

    pub fn takes_file(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        self.suffixes.iter().any(|suffix| name.ends_with(suffix))
    }

    fn words(&self) -> String {
        let files = self.suffixes.join(", ");
        match (self.folders, files.as_str()) {
            (true, "") => "A folder".into(),
            (true, files) => format!("A folder, or a file: {files}"),
            (false, files) => format!("Files: {files}"),
        }
    }
}

/// How a picker was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    Path(String),
    Cancelled,
}

/// Chooses a file or folder of the machine the host runs on, which may be another than the window's.
pub struct Picker {
    title: String,
    accept: Accept,
    /// In the system's own dialog, where there is one.
    native: Asked<Pick>,
    folder: Asked<FolderView>,
    /// What stands in the path field.
    path: String,
    selected: Option<String>,
}

impl Picker {
    /// `start` is a folder; none is the home folder.
    pub fn open(title: impl Into<String>, accept: Accept, start: Option<String>, out: &mut Outbox) -> Self {
        let mut picker = Self {
            title: title.into(),
            accept,
            native: Asked::default(),
            folder: Asked::default(),
            path: String::new(),
            selected: None,
        };
        picker.browse(start, out);
        picker
    }

    pub fn apply(&mut self, event: &Event) {
        let Self { native, folder, path, .. } = self;
        native.apply(event, |body| match body {
            EventBody::Picked { path } => Some(path.clone().map_or(Pick::Cancelled, Pick::Path)),
            _ => None,
        });
        folder.apply(event, |body| match body {
            EventBody::Folder(folder) => {
                path.clone_from(&folder.path);
                Some(folder.clone())
            }
            _ => None,
        });
    }

    /// None while it is open.
    pub fn ui(&mut self, ui: &mut Ui, out: &mut Outbox) -> Option<Pick> {
        if let Some(pick) = self.native.value.take() {
            return Some(pick);
        }
        if self.native.is_waiting() {
            return None;
        }
        let mut pick = None;
        let title = self.title.clone();
        let closed = dialog(ui, &title, WIDTH, |ui| {
            self.path_row(ui, out, &mut pick);
            ui.add_space(space::XS);
            // Of a height of its own: a dialog has no end below.
            let left_to_right = Layout::left_to_right(Align::Min);
            ui.allocate_ui_with_layout(vec2(WIDTH, LIST_HEIGHT), left_to_right, |ui| {
                ui.allocate_ui_with_layout(
                    vec2(PLACES_WIDTH, LIST_HEIGHT),
                    Layout::top_down(Align::Min),
                    |ui| {
                        ui.set_width(PLACES_WIDTH);
                        self.places(ui, out);
                    },
                );
                ui.separator();
                let rest = vec2(ui.available_width(), LIST_HEIGHT);
                ui.allocate_ui_with_layout(rest, Layout::top_down(Align::Min), |ui| {
                    self.list(ui, out, &mut pick);
                });
            });
            ui.add_space(space::S);
            self.buttons(ui, out, &mut pick);
        });
        pick.or(closed.then_some(Pick::Cancelled))
    }

    fn browse(&mut self, folder: Option<String>, out: &mut Outbox) {
        self.selected = None;
        self.folder.ask(out, CommandBody::Browse { folder });
    }

    fn path_row(&mut self, ui: &mut Ui, out: &mut Outbox, pick: &mut Option<Pick>) {
        ui.horizontal(|ui| {
            let parent = self.folder.value.as_ref().and_then(|folder| folder.parent.clone());
            let up =
                ui.add_enabled_ui(parent.is_some(), |ui| icon_button(ui, icons::ARROW_UP, "Folder above"));
            if up.inner.clicked() {
                self.browse(parent, out);
            }
            let field = ui.add(
                egui::TextEdit::singleline(&mut self.path)
                    .desired_width(f32::INFINITY)
                    .margin(vec2(space::S + 2.0, 7.0)),
            );
            field.widget_info(|| WidgetInfo::labeled(Role::TextInput, true, "Path"));
            if field.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter)) {
                let path = self.path.trim().to_owned();
                if self.accept.takes_file(&path) {
                    *pick = Some(Pick::Path(path));
                } else {
                    self.browse(Some(path), out);
                }
            }
        });
    }

    fn places(&mut self, ui: &mut Ui, out: &mut Outbox) {
        ui.spacing_mut().item_spacing.y = 2.0;
        let Some(folder) = &self.folder.value else { return };
        let mut chosen = None;
        for place in &folder.places {
            let icon = if place.name == "Home" { icons::HOUSE } else { icons::FOLDER };
            if row(ui, icon, &place.name, "", place.path == folder.path).clicked() {
                chosen = Some(place.path.clone());
            }
        }
        if chosen.is_some() {
            self.browse(chosen, out);
        }
    }

    fn list(&mut self, ui: &mut Ui, out: &mut Outbox, pick: &mut Option<Pick>) {
        for error in [&self.folder.error, &self.native.error].into_iter().flatten() {
            error_box(ui, error);
        }
        let Some(folder) = &self.folder.value else {
            if self.folder.is_waiting() {
                spinner_line(ui, "Reading the folder");
            }
            return;
        };
        let shown: Vec<&FolderEntry> = folder
            .entries
            .iter()
            .filter(|entry| entry.is_folder || self.accept.takes_file(&entry.name))
            .collect();
        let mut opened = None;
        ui.spacing_mut().item_spacing.y = 2.0;
        ScrollArea::vertical().id_salt(&folder.path).auto_shrink(false).show_rows(
            ui,
            ROW_HEIGHT,
            shown.len().max(1),
            |ui, range| {
                if shown.is_empty() {
                    ui.label(theme::weak(ui, "Nothing to choose in this folder"));
                }
                for entry in shown.get(range).unwrap_or_default() {
                    let is_selected = self.selected.as_deref() == Some(entry.path.as_str());
                    let (icon, size) = if entry.is_folder {
                        (icons::FOLDER, String::new())
                    } else {
                        (icons::FILE_TEXT, format::bytes(entry.size_bytes))
                    };
                    let response = row(ui, icon, &entry.name, &size, is_selected);
                    if response.double_clicked() && !entry.is_folder {
                        *pick = Some(Pick::Path(entry.path.clone()));
                    } else if response.clicked() {
                        if entry.is_folder {
                            opened = Some(entry.path.clone());
                        } else {
                            self.selected = Some(entry.path.clone());
                        }
                    }
                }
            },
        );
        if opened.is_some() {
            self.browse(opened, out);
        }
    }

    fn buttons(&mut self, ui: &mut Ui, out: &mut Outbox, pick: &mut Option<Pick>) {
        ui.horizontal(|ui| {
            ui.label(theme::small(ui, self.accept.words()));
            ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                let here = self.folder.value.as_ref().map(|folder| folder.path.clone());
                let (text, path) = match (&self.selected, self.accept.folders) {
                    (None, true) => ("Choose this folder", here),
                    (selected, _) => ("Choose", selected.clone()),
                };
                let mut choose = Button::primary(text);
                if path.is_none() {
                    choose = choose.enabled(false).tooltip("Select a file first");
                }
                if choose.clicked(ui) {
                    *pick = path.map(Pick::Path);
                }
                if Button::secondary("Cancel").clicked(ui) {
                    *pick = Some(Pick::Cancelled);
                }
                if out.has_dialogs && Button::ghost("System dialog…").clicked(ui) {
                    self.ask_system(out);
                }
            });
        });
    }

    /// Which shows files or folders, never both.
    fn ask_system(&mut self, out: &mut Outbox) {
        let extensions = self.accept.suffixes.iter().map(|suffix| suffix.trim_start_matches('.').to_owned());
        let (title, folder) = (self.title.clone(), self.accept.suffixes.is_empty());
        self.native.ask(out, CommandBody::ShellPick { title, folder, extensions: extensions.collect() });
    }
}

/// A line of the places or of the list.
fn row(ui: &mut Ui, icon: &str, name: &str, note: &str, selected: bool) -> Response {
    let colors = colors(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), ROW_HEIGHT), Sense::click());
    response.widget_info(|| WidgetInfo::selected(Role::ListBoxOption, true, selected, name));
    if !ui.is_rect_visible(rect) {
        return response;
    }
    if selected {
        ui.painter().rect_filled(rect, RADIUS_SMALL, colors.accent_soft);
    } else if response.hovered() || response.has_focus() {
        ui.painter().rect_filled(rect, RADIUS_SMALL, colors.neutral_soft);
    }
    let line = rect.shrink2(vec2(space::S, 0.0));
    // Painted, not added: the line is one thing to a screen reader.
    let paint = |ui: &Ui, text: RichText, width: f32, left: f32, align_right: bool| {
        let text = egui::WidgetText::from(text);
        let galley =
            text.into_galley(ui, Some(egui::TextWrapMode::Truncate), width, egui::FontSelection::Default);
        let x = if align_right { line.right() - galley.size().x } else { left };
        let width = galley.size().x;
        ui.painter().galley(pos2(x, line.center().y - galley.size().y / 2.0), galley, colors.text);
        width
    };
    let icon_color = if selected { colors.accent } else { colors.text_weak };
    paint(ui, theme::icon(icon).color(icon_color), f32::INFINITY, line.left(), false);
    let note_width = paint(ui, theme::small(ui, note), f32::INFINITY, line.right(), true);
    let left = line.left() + 26.0;
    paint(ui, RichText::new(name), line.right() - left - note_width - space::S, left, false);
    response
}
