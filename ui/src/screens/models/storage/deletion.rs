use egui::{Align, Checkbox, Label, Layout, ScrollArea, Ui};
use lathe_protocol::{CachePlan, CacheReport, CacheTarget, CommandBody, Event, EventBody};

use super::repos;
use crate::{
    Asked, Outbox, format,
    theme::{self, Tone, icons, space},
    widgets::{Button, dialog, error_box, progress_line, spinner_line},
};

const WIDTH: f32 = 560.0;
const LINE_HEIGHT: f32 = 22.0;
const LINES_HEIGHT: f32 = 220.0;

/// Something of the cache is to be deleted: what goes is shown, then asked about.
pub struct Deletion {
    title: &'static str,
    targets: Vec<CacheTarget>,
    /// What can be left out or taken in, in words.
    boxes: Vec<(CacheTarget, String)>,
    plan: Asked<CachePlan>,
    deed: Asked<()>,
}

impl Deletion {
    pub fn of(targets: Vec<CacheTarget>, out: &mut Outbox) -> Self {
        Self::new("Delete from the cache?", targets, Vec::new(), out)
    }

    /// What is left over, as far as there is any.
    pub fn clean_up(report: &CacheReport, out: &mut Outbox) -> Self {
        let CacheReport { unreferenced_bytes, incomplete_bytes, .. } = report;
        let (detached, detached_bytes) = (repos::num_detached(report), repos::detached_bytes(report));
        let left_over = [
            (
                CacheTarget::Incomplete,
                *incomplete_bytes,
                format!("Unfinished downloads, {}; those under way stay", format::bytes(*incomplete_bytes)),
            ),
            (
                CacheTarget::Unreferenced,
                *unreferenced_bytes,
                format!("Files that no revision refers to, {}", format::bytes(*unreferenced_bytes)),
            ),
            (
                CacheTarget::Detached,
                detached_bytes,
                format!(
                    "{} without a branch or tag, {}",
                    format::plural(detached, "revision"),
                    format::bytes(detached_bytes)
                ),
            ),
        ];
        let left_over = left_over.into_iter().filter(|(_, bytes, _)| *bytes > 0);
        let boxes: Vec<_> = left_over.map(|(target, _, text)| (target, text)).collect();
        // A revision is somebody's choice: not without being asked for.
        let is_rubbish = |target: &&CacheTarget| **target != CacheTarget::Detached;
        let targets = boxes.iter().map(|(target, _)| target).filter(is_rubbish).cloned().collect();
        Self::new("Clean up the cache", targets, boxes, out)
    }

    fn new(
        title: &'static str,
        targets: Vec<CacheTarget>,
        boxes: Vec<(CacheTarget, String)>,
        out: &mut Outbox,
    ) -> Self {
        let mut deletion = Self { title, targets, boxes, plan: Asked::default(), deed: Asked::default() };
        deletion.ask(out);
        deletion
    }

    fn ask(&mut self, out: &mut Outbox) {
        self.plan.clear(out);
        if !self.targets.is_empty() {
            self.plan.ask(out, CommandBody::CachePlan { targets: self.targets.clone() });
        }
    }

    /// True if it is done.
    pub fn apply(&mut self, event: &Event, out: &mut Outbox) -> bool {
        self.plan.apply(event, |body| match body {
            EventBody::CachePlan(plan) => Some(plan.clone()),
            _ => None,
        });
        if let (EventBody::Removed { freed_bytes, .. }, true) =
            (&event.body, self.deed.job() == Some(event.job))
        {
            let text = format!("Deleted: {} are free again", format::bytes(*freed_bytes));
            out.toast(Tone::Success, text);
        }
        self.deed.apply(event, |_| None) && self.deed.error.is_none()
    }

    /// True if it is given up.
    pub fn ui(&mut self, ui: &mut Ui, out: &mut Outbox) -> bool {
        let mut is_closed = false;
        let dismissed = dialog(ui, self.title, WIDTH, |ui| {
            self.boxes(ui, out);
            for error in [&self.plan.error, &self.deed.error].into_iter().flatten() {
                error_box(ui, error);
            }
            if self.plan.is_waiting() {
                spinner_line(ui, "Reckoning what would go");
            }
            if let Some(plan) = &self.plan.value {
                preview(ui, plan);
            }
            if let Some(progress) = &self.deed.progress {
                progress_line(ui, progress);
            } else if self.deed.is_waiting() {
                spinner_line(ui, "Deleting");
            }
            ui.add_space(space::L);
            is_closed = self.buttons(ui, out);
        });
        let is_given_up = (is_closed || dismissed) && !self.deed.is_waiting();
        if is_given_up {
            self.plan.stop(out);
        }
        is_given_up
    }

    fn boxes(&mut self, ui: &mut Ui, out: &mut Outbox) {
        let mut is_changed = false;
        for (target, text) in &self.boxes {
            let mut is_on = self.targets.contains(target);
            if ui.add_enabled(!self.deed.is_waiting(), Checkbox::new(&mut is_on, text)).changed() {
                is_changed = true;
                if is_on {
                    self.targets.push(target.clone());
                } else {
                    self.targets.retain(|other| other != target);
                }
            }
        }
        if !self.boxes.is_empty() {
            ui.add_space(space::S);
        }
        if is_changed {
            self.ask(out);
        }
    }

    fn buttons(&mut self, ui: &mut Ui, out: &mut Outbox) -> bool {
        let mut is_closed = false;
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let goes = self.plan.value.as_ref().filter(|plan| plan.num_files > 0);
            let text = goes.map_or_else(
                || "Delete".into(),
                |plan| format!("Delete, free {}", format::bytes(freed(plan))),
            );
            let delete = Button::danger(&text).icon(icons::TRASH);
            if delete.enabled(goes.is_some() && !self.deed.is_waiting()).clicked(ui) {
                self.deed.ask(out, CommandBody::CacheDelete { targets: self.targets.clone() });
            }
            is_closed = Button::secondary("Cancel").enabled(!self.deed.is_waiting()).clicked(ui);
        });
        is_closed
    }
}

/// With what is left over in repositories that go as a whole.
fn freed(plan: &CachePlan) -> u64 {
    plan.freed_bytes + plan.besides_bytes
}

/// What goes, and what comes of it.
fn preview(ui: &mut Ui, plan: &CachePlan) {
    if plan.num_files == 0 {
        ui.label(theme::weak(ui, "There is nothing of it to delete"));
        return;
    }
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = space::XS;
        ui.label("Frees");
        ui.label(theme::strong(format::bytes(freed(plan))));
        ui.label(format!("in {}:", format::plural(plan.num_files, "file")));
    });
    let area = ScrollArea::vertical().id_salt("plan").max_height(LINES_HEIGHT).auto_shrink([false, true]);
    ui.spacing_mut().item_spacing.y = space::XS;
    area.show_rows(ui, LINE_HEIGHT, plan.lines.len(), |ui, range| {
        for line in plan.lines.get(range).unwrap_or_default() {
            ui.spacing_mut().interact_size.y = LINE_HEIGHT;
            ui.horizontal(|ui| {
                ui.label(
                    theme::icon(icons::TRASH).color(theme::colors(ui).text_faint).size(theme::size::BODY),
                );
                ui.add(Label::new(line).truncate()).on_hover_text(line);
            });
        }
    });
    ui.add_space(space::S);
    ui.label(theme::small(
        ui,
        "What other revisions need stays. Python tools that use what goes fetch it again; adapters stay, but need their \
         model to run. It cannot be undone.",
    ));
}
