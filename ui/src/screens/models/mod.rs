mod details;
mod downloads;
mod get;
mod here;
mod storage;
mod verify;

use egui::Ui;
use lathe_protocol::{DownloadStatus, Event, EventBody};

use self::{get::Get, here::Here, storage::Storage, verify::Verify};
use super::fetching::Fetching;
use crate::{
    Outbox, Store, theme,
    theme::space,
    widgets::{page_with, segmented},
};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Here,
    Get,
    Downloads,
    Storage,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Here => "On this machine",
            Self::Get => "Get a model",
            Self::Downloads => "Downloads",
            Self::Storage => "Storage",
        }
    }
}

/// Models on this machine, elsewhere, on their way here, and what they take.
#[derive(Default)]
pub struct Models {
    part: Part,
    here: Here,
    get: Get,
    storage: Storage,
    fetching: Fetching,
    verify: Verify,
}

impl Models {
    /// Shows what the Hub tells of a model.
    pub fn get(&mut self, model: String, out: &mut Outbox) {
        self.part = Part::Get;
        self.get.show(model, out);
    }

    pub fn search(&mut self, query: String, out: &mut Outbox) {
        self.part = Part::Get;
        self.get.search(query, out);
    }

    /// What lies on disk may have changed meanwhile.
    pub fn enter(&mut self, out: &mut Outbox) {
        if self.part == Part::Storage {
            self.storage.look(out);
        }
    }

    pub fn apply(&mut self, event: &Event, out: &mut Outbox) {
        self.here.apply(event, out);
        self.get.apply(event);
        self.storage.apply(event, out);
        self.fetching.apply(event);
        self.verify.apply(event);
        // A model has come or gone.
        if matches!(event.body, EventBody::Models { .. }) && self.part == Part::Storage {
            self.storage.look_again(out);
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let mut part = self.part;
        let unfinished =
            store.downloads().iter().filter(|download| download.status != DownloadStatus::Done).count();
        let downloads = match unfinished {
            0 => Part::Downloads.name().to_owned(),
            count => format!("{} ({count})", Part::Downloads.name()),
        };
        let head = |ui: &mut Ui| {
            ui.label(theme::title("Models"));
            ui.add_space(space::L);
            let parts = [
                (Part::Here, Part::Here.name()),
                (Part::Get, Part::Get.name()),
                (Part::Downloads, downloads.as_str()),
                (Part::Storage, Part::Storage.name()),
            ];
            segmented(ui, &mut part, &parts);
        };
        let looks_for_one = page_with(ui, self.part.name(), head, |ui| {
            match self.part {
                Part::Here => self.here.ui(ui, &mut self.verify, store, out),
                Part::Get => self.get.ui(ui, &mut self.fetching, store, out),
                Part::Downloads => return downloads::ui(ui, &mut self.fetching, store, out),
                Part::Storage => self.storage.ui(ui, &mut self.verify, store, out),
            }
            false
        });
        if looks_for_one {
            part = Part::Get;
        }
        self.fetching.dialog(ui, out);
        if part != self.part {
            self.part = part;
            self.enter(out);
        }
    }
}
