use egui::{Align, Layout, Ui};
use lathe_protocol::{RunEntry, RunStatus};

use super::{super::wizard::device_options, list};
use crate::{
    Store, format,
    theme::{self, CONTROL_HEIGHT, colors, icons, space},
    widgets::{Button, card, choice, icon_button, link},
};

const DEVICE_WIDTH: f32 = 200.0;

/// What is wanted of a run.
pub enum Wish {
    Open,
    /// To this place in the whole queue.
    Move(usize),
    /// To this device.
    Assign(String),
    Start,
    Remove,
}

/// A device, what runs there, and what waits for it with its place in the whole queue.
struct Lane<'a> {
    title: String,
    /// None: whichever is free.
    running: Option<Vec<&'a RunEntry>>,
    waiting: Vec<(usize, &'a RunEntry)>,
}

/// What runs and what waits, by device where there are several. Which of them something is wanted of, and what.
pub fn ui(ui: &mut Ui, store: &Store, is_busy: impl Fn(&RunEntry) -> bool) -> Option<(RunEntry, Wish)> {
    let devices = device_options(store);
    let queue = list::queue(store.runs());
    // `auto`, the CPU, and nothing else.
    let is_single = devices.len() <= 2;
    let is_idle = !store.runs().iter().any(|run| run.status == RunStatus::Running);
    if queue.is_empty() && (is_single || is_idle) {
        return None;
    }
    let mut wanted = None;
    card(ui, |ui| {
        ui.horizontal(|ui| {
            ui.label(theme::heading("Queue"));
            let text = if is_single {
                "The next one starts when no run is under way"
            } else {
                "Each device trains one run at a time"
            };
            ui.label(theme::small(ui, text));
        });
        for lane in lanes(store.runs(), &queue, &devices, is_single) {
            if !is_single {
                lane_head(ui, &lane, &mut wanted);
            }
            for (place, (_, run)) in lane.waiting.iter().enumerate() {
                let choices = if is_single { &[][..] } else { &devices };
                let wish =
                    ui.add_enabled_ui(!is_busy(run), |ui| row(ui, place, &lane.waiting, choices)).inner;
                wanted = wanted.take().or(wish.map(|wish| ((*run).clone(), wish)));
            }
        }
    });
    wanted
}

fn lanes<'a>(
    runs: &'a [RunEntry],
    queue: &[&'a RunEntry],
    devices: &[(String, String)],
    is_single: bool,
) -> Vec<Lane<'a>> {
    let places = || queue.iter().copied().enumerate();
    if is_single {
        return vec![Lane { title: String::new(), running: None, waiting: places().collect() }];
    }
    let running_on = |device: &str| {
        let running = runs.iter().filter(|run| run.status == RunStatus::Running);
        running.filter(|run| run.runs_on.as_deref().unwrap_or("cpu") == device).collect()
    };
    let lane = |(device, title): &(String, String)| Lane {
        title: title.clone(),
        running: (device != "auto").then(|| running_on(device)),
        waiting: places().filter(|(_, run)| run.device == *device).collect(),
    };
    let mut lanes: Vec<Lane<'a>> = devices.iter().map(lane).collect();
    // What waits for any comes last, and only if something does.
    lanes.rotate_left(1);
    lanes.retain(|lane| lane.running.is_some() || !lane.waiting.is_empty());
    lanes
}

fn lane_head(ui: &mut Ui, lane: &Lane<'_>, wanted: &mut Option<(RunEntry, Wish)>) {
    ui.add_space(space::S);
    ui.horizontal(|ui| {
        ui.label(theme::strong(&lane.title));
        match lane.running.as_deref() {
            None => {}
            Some([]) => drop(ui.label(theme::weak(ui, "free"))),
            Some(running) => {
                for run in running {
                    if link(ui, &run.name).clicked() {
                        *wanted = Some(((*run).clone(), Wish::Open));
                    }
                    let (step, total) =
                        (format::count(run.step as u64), format::count(run.total_steps as u64));
                    ui.label(theme::weak(ui, format!("step {step} of {total}")));
                }
            }
        }
    });
}

fn row(ui: &mut Ui, place: usize, lane: &[(usize, &RunEntry)], devices: &[(String, String)]) -> Option<Wish> {
    let run = lane[place].1;
    let mut wish = None;
    ui.horizontal(|ui| {
        let number = theme::strong((place + 1).to_string()).color(colors(ui).text_faint);
        ui.add_sized([space::L, CONTROL_HEIGHT], egui::Label::new(number));
        if link(ui, &run.name).clicked() {
            wish = Some(Wish::Open);
        }
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let name = &run.name;
            if icon_button(ui, icons::X, &format!("Remove {name} from the queue")).clicked() {
                wish = Some(Wish::Remove);
            }
            if Button::ghost("Start now").icon(icons::PLAY).clicked(ui) {
                wish = Some(Wish::Start);
            }
            if lane.len() > 1 {
                let mut arrow = |ui: &mut Ui, icon, text: String, to: Option<usize>| {
                    let clicked =
                        ui.add_enabled_ui(to.is_some(), |ui| icon_button(ui, icon, &text).clicked()).inner;
                    if let Some(to) = to.filter(|_| clicked) {
                        wish = Some(Wish::Move(to));
                    }
                };
                let beside = |place: Option<usize>| Some(lane.get(place?)?.0);
                arrow(ui, icons::ARROW_DOWN, format!("Move {name} down"), beside(Some(place + 1)));
                arrow(ui, icons::ARROW_UP, format!("Move {name} up"), beside(place.checked_sub(1)));
            }
            if !devices.is_empty() {
                let mut device = run.device.clone();
                ui.scope(|ui| {
                    ui.set_max_width(DEVICE_WIDTH);
                    if choice(ui, &format!("Device of {name}"), &mut device, devices).changed() {
                        wish = Some(Wish::Assign(device));
                    }
                });
            }
            ui.with_layout(Layout::left_to_right(Align::Center), |ui| {
                let what = format!("{} · {}", format::file_name(&run.model), format::file_name(&run.data));
                ui.add(egui::Label::new(theme::weak(ui, what)).truncate());
            });
        });
    });
    wish
}
