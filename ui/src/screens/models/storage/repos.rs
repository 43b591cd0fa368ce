use std::collections::BTreeSet;

use egui::{Align, Checkbox, Label, Layout, Role, Stroke, Ui, WidgetInfo, vec2};
use lathe_protocol::{CacheFile, CacheRepo, CacheReport, CacheRevision, CacheTarget, RepoKind};

use super::super::verify::Verify;
use crate::{
    Outbox, format,
    theme::{self, Tone, colors, icons, space},
    widgets::{badge, card, icon_button, strip},
};

const REPO_HEIGHT: f32 = 48.0;
const LINE_HEIGHT: f32 = 34.0;
const SIZE_WIDTH: f32 = 96.0;
const USED_WIDTH: f32 = 124.0;
/// With less room beside it, only a repository's name is told.
const NARROW: f32 = 400.0;
/// A revision's lines stand below its repository's name.
const INDENT: f32 = 76.0;
/// With the space beside it.
const BUTTON_WIDTH: f32 = 40.0;
/// Of a commit, so many letters tell it from others.
const SHORT_COMMIT: usize = 8;

pub enum Click {
    /// A repository's head, by its key.
    Fold(String),
    Delete(CacheTarget),
    Move {
        kind: RepoKind,
        id: String,
        bytes: u64,
    },
    /// A folder.
    Open(String),
    /// A revision, as `models verify` names it.
    Verify(String),
}

/// The repositories of the cache, and below those that are open what they are made of.
pub struct Repos<'a> {
    pub report: &'a CacheReport,
    pub filter: &'a str,
    pub verify: &'a Verify,
    pub now_secs: f64,
}

impl Repos<'_> {
    pub fn ui(
        &self,
        ui: &mut Ui,
        open: &BTreeSet<String>,
        selected: &mut Vec<CacheTarget>,
        out: &mut Outbox,
    ) -> Option<Click> {
        let mut click = None;
        let wanted = self.filter.to_lowercase();
        card(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 0.0;
            let mut shown = 0;
            for repo in &self.report.repos {
                if !repo.id.to_lowercase().contains(&wanted) {
                    continue;
                }
                if shown > 0 {
                    line_between(ui);
                }
                shown += 1;
                let is_open = open.contains(&key(repo));
                let clicked = strip(ui, REPO_HEIGHT, |ui| self.repo(ui, repo, is_open, selected)).flatten();
                click = clicked.or(click.take());
                for revision in &repo.revisions {
                    let name = name_of(repo, revision);
                    if self.verify.is_of(&name) {
                        ui.scope(|ui| {
                            ui.spacing_mut().item_spacing.y = space::XS;
                            self.verify.ui(ui, &name, out);
                            ui.add_space(space::S);
                        });
                    }
                }
                if is_open {
                    click = self.contents(ui, repo, selected).or(click.take());
                }
            }
            if shown == 0 {
                ui.label(theme::weak(ui, "No repository has that in its name"));
            }
        });
        click
    }

    fn repo(
        &self,
        ui: &mut Ui,
        repo: &CacheRepo,
        is_open: bool,
        selected: &mut Vec<CacheTarget>,
    ) -> Option<Click> {
        let CacheRepo { kind, id, path, size_bytes, accessed_secs, target, .. } = repo;
        let mut click = None;
        let (icon, verb) = if is_open { (icons::CARET_DOWN, "Fold") } else { (icons::CARET_RIGHT, "Unfold") };
        check_box(ui, &CacheTarget::Repo { kind: *kind, id: id.clone() }, id, selected);
        if icon_button(ui, icon, &format!("{verb} {id}")).clicked() {
            click = Some(Click::Fold(key(repo)));
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if icon_button(ui, icons::TRASH, &format!("Delete {id}…")).clicked() {
                click = Some(Click::Delete(CacheTarget::Repo { kind: *kind, id: id.clone() }));
            }
            if icon_button(ui, icons::HARD_DRIVES, &format!("Move {id} to another disk…")).clicked() {
                click = Some(Click::Move { kind: *kind, id: id.clone(), bytes: *size_bytes });
            }
            if icon_button(ui, icons::FOLDER_OPEN, &format!("Open the folder of {id}")).clicked() {
                click = Some(Click::Open(path.clone()));
            }
            if let Some(newest) = repo.revisions.first() {
                if icon_button(ui, icons::SHIELD_CHECK, &format!("Verify {id}")).clicked() {
                    click = Some(Click::Verify(name_of(repo, newest)));
                }
            } else {
                ui.add_space(BUTTON_WIDTH);
            }
            ui.add_space(space::S);
            column(ui, SIZE_WIDTH, theme::strong(format::bytes(*size_bytes)));
            column(
                ui,
                USED_WIDTH,
                theme::weak(ui, format!("used {}", format::ago(*accessed_secs, self.now_secs))),
            );
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                ui.set_max_width(ui.available_width() - space::M);
                // Facts first: a long name is cut, they are not.
                ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
                    if ui.available_width() > NARROW {
                        ui.label(theme::small(ui, contents_of(repo)));
                        if let Some(target) = target {
                            badge(ui, Tone::Accent, "elsewhere").on_hover_text(target);
                        }
                    }
                    if *kind != RepoKind::Model {
                        badge(ui, Tone::Neutral, kind.word());
                    }
                    ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                        ui.add(Label::new(theme::strong(id)).truncate()).on_hover_text(path);
                    });
                });
            });
        });
        click
    }

    /// Revisions, then what belongs to none.
    fn contents(&self, ui: &mut Ui, repo: &CacheRepo, selected: &mut Vec<CacheTarget>) -> Option<Click> {
        let mut click = None;
        for revision in &repo.revisions {
            let clicked = strip(ui, LINE_HEIGHT, |ui| self.revision(ui, repo, revision, selected)).flatten();
            click = clicked.or(click.take());
        }
        for (files, what) in [(&repo.incomplete, "unfinished"), (&repo.unreferenced, "unreferenced")] {
            for file in files {
                strip(ui, LINE_HEIGHT, |ui| stray_file(ui, file, what));
            }
        }
        ui.add_space(space::S);
        click
    }

    fn revision(
        &self,
        ui: &mut Ui,
        repo: &CacheRepo,
        revision: &CacheRevision,
        selected: &mut Vec<CacheTarget>,
    ) -> Option<Click> {
        let CacheRevision { commit, refs, size_bytes, own_bytes, num_files, modified_secs } = revision;
        let whole = CacheTarget::Repo { kind: repo.kind, id: repo.id.clone() };
        let target = CacheTarget::Revision { kind: repo.kind, id: repo.id.clone(), commit: commit.clone() };
        let short = commit.get(..SHORT_COMMIT).unwrap_or(commit);
        let name = format!("{} at {short}", repo.id);
        let mut click = None;
        ui.add_space(INDENT - 32.0);
        let is_whole = selected.contains(&whole);
        ui.add_enabled_ui(!is_whole, |ui| check_box(ui, &target, &name, selected));
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            if icon_button(ui, icons::TRASH, &format!("Delete {name}…")).clicked() {
                click = Some(Click::Delete(target.clone()));
            }
            ui.add_space(2.0 * BUTTON_WIDTH);
            if icon_button(ui, icons::SHIELD_CHECK, &format!("Verify {name}")).clicked() {
                click = Some(Click::Verify(name_of(repo, revision)));
            }
            ui.add_space(space::S);
            column(ui, SIZE_WIDTH, theme::weak(ui, format::bytes(*size_bytes)));
            column(ui, USED_WIDTH, theme::weak(ui, format::ago(*modified_secs, self.now_secs)));
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                ui.label(egui::RichText::new(short).monospace()).on_hover_text(commit);
                if refs.is_empty() {
                    badge(ui, Tone::Warning, "detached").on_hover_text("No branch or tag means it any more");
                }
                for name in refs {
                    badge(ui, Tone::Neutral, name);
                }
                let facts = format!(
                    "{}, deleting it frees {}",
                    format::plural(*num_files, "file"),
                    format::bytes(*own_bytes)
                );
                ui.add(Label::new(theme::small(ui, facts)).truncate());
            });
        });
        click
    }
}

fn stray_file(ui: &mut Ui, file: &CacheFile, what: &str) {
    ui.add_space(INDENT + space::S);
    ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
        ui.add_space(4.0 * BUTTON_WIDTH + space::S);
        column(ui, SIZE_WIDTH, theme::weak(ui, format::bytes(file.size_bytes)));
        ui.add_space(USED_WIDTH + space::S);
        ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
            badge(ui, Tone::Warning, what);
            let name = theme::weak(ui, format::file_name(&file.path));
            ui.add(Label::new(name).truncate()).on_hover_text(&file.path);
        });
    });
}

/// Text at the right edge of a column of its own.
fn column(ui: &mut Ui, width: f32, text: egui::RichText) {
    let size = vec2(width, ui.available_height());
    ui.allocate_ui_with_layout(size, Layout::right_to_left(Align::Center), |ui| {
        ui.set_min_width(width);
        ui.add(Label::new(text).truncate());
    });
}

fn line_between(ui: &mut Ui) {
    let (_, rect) = ui.allocate_space(vec2(ui.available_width(), 1.0));
    ui.painter().hline(rect.x_range(), rect.center().y, Stroke::new(1.0, colors(ui).border));
}

fn check_box(ui: &mut Ui, target: &CacheTarget, name: &str, selected: &mut Vec<CacheTarget>) {
    let mut is_on = selected.contains(target);
    let response = ui.add(Checkbox::without_text(&mut is_on));
    response.widget_info(|| {
        WidgetInfo::selected(Role::CheckBox, ui.is_enabled(), is_on, format!("Select {name}"))
    });
    if !response.changed() {
        return;
    }
    // A whole repository goes with all its revisions.
    selected.retain(|other| other != target && !is_part(other, target));
    if is_on {
        selected.push(target.clone());
    }
}

fn is_part(part: &CacheTarget, whole: &CacheTarget) -> bool {
    match (part, whole) {
        (CacheTarget::Revision { kind, id, .. }, CacheTarget::Repo { kind: whole_kind, id: whole_id }) => {
            (kind, id) == (whole_kind, whole_id)
        }
        _ => false,
    }
}

/// A revision as `models verify` names it.
fn name_of(repo: &CacheRepo, revision: &CacheRevision) -> String {
    let CacheRepo { kind, id, .. } = repo;
    match kind {
        RepoKind::Model => format!("{id}@{}", revision.commit),
        kind => format!("{}/{id}@{}", kind.word(), revision.commit),
    }
}

/// What a repository is known by in the list.
fn key(repo: &CacheRepo) -> String {
    format!("{} {}", repo.kind.word(), repo.id)
}

fn contents_of(repo: &CacheRepo) -> String {
    let left_over: u64 = repo.incomplete.iter().chain(&repo.unreferenced).map(|file| file.size_bytes).sum();
    let facts = [
        Some(format::plural(repo.revisions.len(), "revision")),
        Some(format::plural(repo.num_files, "file")),
        (left_over > 0).then(|| format!("{} left over", format::bytes(left_over))),
    ];
    facts.into_iter().flatten().collect::<Vec<_>>().join("  ·  ")
}

fn detached(report: &CacheReport) -> impl Iterator<Item = &CacheRevision> {
    report.repos.iter().flat_map(|repo| &repo.revisions).filter(|revision| revision.refs.is_empty())
}

pub fn num_detached(report: &CacheReport) -> usize {
    detached(report).count()
}

/// What deleting each of the detached revisions alone frees; together they may free more.
pub fn detached_bytes(report: &CacheReport) -> u64 {
    detached(report).map(|revision| revision.own_bytes).sum()
}
