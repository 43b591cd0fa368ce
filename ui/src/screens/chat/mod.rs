//! Conversations with a model, or with two side by side.

mod composer;
mod engine;
mod header;
mod list;
mod message;
mod messages;
mod panel;
mod run;
mod tree;
mod turn;
mod view;

use std::collections::HashMap;

use egui::{Key, KeyboardShortcut, Modifiers, Ui};
use lathe_protocol::{
    ChatEntry, ChatLane, ChatRecord, CommandBody, ErrorCode, ErrorInfo, Event, EventBody, JobId, Method,
    RunLane, SamplingParams, Thinking,
};

use self::{
    engine::{Engine, Target},
    view::View,
};
use crate::{
    Asked, Outbox, Route, Store,
    theme::{Tone, icons},
    widgets::{Answer, Confirm, USE_CPU, empty_state},
};

pub const NEW_CHAT: KeyboardShortcut =
    KeyboardShortcut::new(Modifiers::COMMAND.plus(Modifiers::SHIFT), Key::N);
/// A changed setting is kept once nothing changed for so long.
const SETTLED_SECS: f64 = 0.5;

/// What drawing asks for; done once everything is drawn. A depth counts messages from the conversation's beginning.
#[derive(Debug, Clone, PartialEq)]
enum Wish {
    New,
    Open(String),
    Rename {
        chat: String,
        title: String,
    },
    AskToRemove {
        chat: String,
        title: String,
    },
    Send(String),
    Stop,
    /// Another answer, in every lane.
    Regenerate {
        depth: usize,
    },
    /// The answer that did not come.
    Retry {
        lane: usize,
        depth: usize,
    },
    Edit {
        depth: usize,
        text: String,
    },
    /// Another branch, so many places on.
    Switch {
        depth: usize,
        by: isize,
    },
    Load,
    Unload,
    GoToRun(String),
    /// A lane has another model or adapter.
    Lane(usize, ChatLane),
    Compare(bool),
    /// Something else about the conversation.
    Changed,
    SaveAgain,
}

/// A question that is open.
enum Question {
    Remove(String),
    DropLane,
    /// Whether the lane's adapters are wanted though they are of another base.
    Force {
        chat: String,
        lane: usize,
        /// The answer that waits for it.
        node: Option<usize>,
    },
    /// Whether the CPU is to compute what no graphics card can; the rest as above.
    UseCpu {
        chat: String,
        lane: usize,
        node: Option<usize>,
    },
}

#[derive(Default)]
pub struct Chat {
    list: Asked<Vec<ChatEntry>>,
    opening: Asked<ChatRecord>,
    removing: Asked<()>,
    /// Every conversation seen so far, so that a reply goes on while another is looked at.
    records: HashMap<String, ChatRecord>,
    current: Option<String>,
    /// One a lane.
    engines: [Engine; 2],
    /// Why an answer did not come: chat, lane, node.
    failures: HashMap<(String, usize, usize), ErrorInfo>,
    /// Calls of tools as far as they are written, one a lane.
    tool_texts: [String; 2],
    saves: Vec<JobId>,
    save_error: Option<ErrorInfo>,
    /// The time of the last change that is not kept yet.
    changed_at: Option<f64>,
    created: usize,
    question: Option<(Question, Confirm)>,
    view: View,
}

impl Chat {
    /// A new conversation.
    pub fn begin(&mut self, lane: ChatLane, store: &Store, out: &mut Outbox) {
        self.keep_changes(store, out);
        self.created += 1;
        let id = format!("{}-{}", store.now_secs as u64, self.created);
        let record = ChatRecord {
            id: id.clone(),
            title: String::new(),
            updated_secs: store.now_secs as u64,
            system: String::new(),
            sampling: SamplingParams::default(),
            thinking: Thinking::default(),
            effort: None,
            lanes: vec![lane],
        };
        self.records.insert(id.clone(), record);
        self.show(id, store, out);
    }

    pub fn enter(&mut self, out: &mut Outbox) {
        self.list.ask(out, CommandBody::ChatsList);
        self.view.wants_focus = true;
    }

    /// Frees the memory of the models.
    pub fn unload(&mut self, out: &mut Outbox) {
        for engine in &mut self.engines {
            engine.unload(out);
        }
    }

    pub fn apply(&mut self, event: &Event, store: &Store, out: &mut Outbox) {
        self.list.apply(event, |body| match body {
            EventBody::Chats { chats } => Some(chats.clone()),
            _ => None,
        });
        let opened = self.opening.apply(event, |body| match body {
            EventBody::ChatRecord(record) if !record.lanes.is_empty() => Some((**record).clone()),
            _ => None,
        });
        if opened && let Some(record) = self.opening.value.take() {
            let id = record.id.clone();
            self.records.insert(id.clone(), record);
            self.show(id.clone(), store, out);
            if let Some((_, title)) = self.view.rename_when_open.take_if(|(chat, _)| *chat == id) {
                self.rename(id, title, store, out);
            }
        }
        if self.removing.apply(event, |_| None)
            && let Some(error) = self.removing.error.take()
        {
            out.toast(Tone::Error, error.message);
            self.list.ask(out, CommandBody::ChatsList);
        }
        if self.saves.contains(&event.job) {
            self.saved(event);
        }
        for lane in 0..self.engines.len() {
            let is_own = self.engines[lane].is_job(event.job);
            let heard = self.engines[lane].apply(event, out);
            if let (true, EventBody::Failed { error }) = (is_own, &event.body) {
                let waiting = heard.as_ref().map(|(target, _)| target);
                self.ask_to_force(lane, waiting, error);
                self.ask_for_cpu(lane, waiting, error);
            }
            if let Some((target, heard)) = heard {
                self.hear(lane, &target, heard, store, out);
            }
        }
    }

    pub fn ui(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        if ui.input_mut(|input| input.consume_shortcut(&NEW_CHAT)) {
            self.view.wishes.push(Wish::New);
        }
        let Some(model) = self.usual_model(store) else {
            if store.models.value.is_some()
                && empty_state(
                    ui,
                    icons::CHAT_CIRCLE,
                    "No model to chat with",
                    "Chat needs a model on this machine. Bring one in on the Models page, then come back.",
                    Some("Go to Models"),
                )
            {
                out.go(Route::Models);
            }
            return;
        };
        let list_is_known = self.list.value.is_some() || !self.list.is_waiting();
        if self.current.is_none() && list_is_known && !self.opening.is_waiting() {
            self.begin(ChatLane { model, ..ChatLane::default() }, store, out);
        }
        self.draw(ui, store);
        self.ask_question(ui, store, out);
        for wish in std::mem::take(&mut self.view.wishes) {
            self.grant(wish, ui, store, out);
        }
        self.settle(ui, store, out);
    }

    /// Of a new conversation: the newest conversation's, else the first that can be used.
    fn usual_model(&self, store: &Store) -> Option<String> {
        let usable = || store.models().iter().filter(|model| model.problem.is_none());
        let newest = self.list.value.iter().flatten().max_by_key(|chat| chat.updated_secs);
        let named = newest.and_then(|chat| usable().find(|model| model.name == chat.model));
        named.or_else(|| usable().next()).map(|model| model.name.clone())
    }

    fn show(&mut self, id: String, store: &Store, out: &mut Outbox) {
        // A conversation nothing was said in is not kept.
        if let Some(left) = self.current.replace(id)
            && self.current.as_ref() != Some(&left)
            && self.records.get(&left).is_some_and(|record| record.lanes[0].nodes.is_empty())
        {
            self.records.remove(&left);
        }
        self.view.turn_over();
        // A run in training is loaded already, and tells what it can be asked.
        if self.record().is_some_and(|record| {
            record.lanes.iter().all(|lane| lane.run.is_some() && run::answers(lane, store))
        }) {
            self.load(out);
        }
    }

    fn record(&mut self) -> Option<&mut ChatRecord> {
        self.records.get_mut(self.current.as_ref()?)
    }

    fn ask_question(&mut self, ui: &mut Ui, store: &Store, out: &mut Outbox) {
        let Some((_, confirm)) = &self.question else { return };
        let Some(answer) = confirm.ui(ui) else { return };
        match self.question.take() {
            Some((Question::Remove(chat), _)) if answer == Answer::Yes => self.remove(&chat, store, out),
            Some((Question::DropLane, _)) if answer == Answer::Yes => self.drop_lane(store, out),
            Some((Question::Force { chat, lane, node }, _)) if answer == Answer::Yes => {
                self.force(&chat, (lane, node), store, out);
            }
            Some((Question::UseCpu { chat, lane, node }, _)) if answer == Answer::Yes => {
                self.use_cpu(&chat, (lane, node), store, out);
            }
            _ => {}
        }
    }

    fn grant(&mut self, wish: Wish, ui: &Ui, store: &Store, out: &mut Outbox) {
        match wish {
            Wish::New => {
                let lane = self.record().map(|record| record.lanes[0].clone());
                let usable =
                    |lane: &ChatLane| store.model(&lane.model).is_some_and(|model| model.problem.is_none());
                let lane = lane.filter(usable).unwrap_or_else(|| ChatLane {
                    model: self.usual_model(store).unwrap_or_default(),
                    ..ChatLane::default()
                });
                let ChatLane { model, adapters, .. } = lane;
                self.begin(ChatLane { model, adapters, ..ChatLane::default() }, store, out);
            }
            Wish::Open(chat) => self.open(chat, store, out),
            Wish::Rename { chat, title } => self.rename(chat, title, store, out),
            Wish::AskToRemove { chat, title } => {
                let confirm = Confirm {
                    title: "Delete this conversation?".into(),
                    text: format!("“{title}” and every answer in it are deleted. This cannot be undone."),
                    yes: "Delete".into(),
                };
                self.question = Some((Question::Remove(chat), confirm));
            }
            Wish::Send(text) => self.send(&text, store, out),
            Wish::Stop => self.stop(store, out),
            Wish::Regenerate { depth } => self.regenerate(depth, store, out),
            Wish::Retry { lane, depth } => self.retry(lane, depth, store, out),
            Wish::Edit { depth, text } => self.edit(depth, &text, store, out),
            Wish::Switch { depth, by } => self.switch(depth, by, store, out),
            Wish::Load => self.load(out),
            Wish::Unload => {
                for engine in &mut self.engines {
                    engine.unload(out);
                }
            }
            Wish::GoToRun(run) => out.go(Route::Run(run)),
            Wish::Lane(index, lane) => self.change_lane(index, &lane, ui, out),
            Wish::Compare(on) => self.compare(on, store, ui, out),
            Wish::Changed => self.changed_at = Some(ui.input(|input| input.time)),
            Wish::SaveAgain => self.save_current(store, out),
        }
    }

    fn open(&mut self, chat: String, store: &Store, out: &mut Outbox) {
        self.keep_changes(store, out);
        if self.records.contains_key(&chat) {
            self.opening.clear(out);
            self.show(chat, store, out);
        } else {
            self.opening.ask(out, CommandBody::ChatsShow { chat });
        }
    }

    /// Loads every lane's model, and lets go of one that no lane wants.
    fn load(&mut self, out: &mut Outbox) {
        let Some(record) = self.current.as_ref().and_then(|id| self.records.get(id)) else { return };
        if self.engines[1].serves(&record.lanes[0]) && !self.engines[0].serves(&record.lanes[0]) {
            self.engines.swap(0, 1);
        }
        for (index, engine) in self.engines.iter_mut().enumerate() {
            match record.lanes.get(index) {
                Some(lane) => engine.load(lane, out),
                None => drop(engine.unload(out)),
            }
        }
    }

    fn change_lane(&mut self, index: usize, lane: &ChatLane, ui: &Ui, out: &mut Outbox) {
        let Some(record) = self.record() else { return };
        if record.lanes[index].model != lane.model {
            // The new one may not know efforts, and says so once it is loaded.
            record.effort = None;
        }
        let is_same =
            (&record.lanes[index].model, &record.lanes[index].adapters) == (&lane.model, &lane.adapters);
        record.lanes[index] = ChatLane { forced: lane.forced && is_same, ..lane.clone() };
        self.changed_at = Some(ui.input(|input| input.time));
        // A style is nothing that is loaded.
        if !self.engines[index].serves(lane) {
            self.engines[index].unload(out);
            if lane.run.is_some() {
                self.engines[index].load(lane, out);
            }
        }
    }

    fn compare(&mut self, on: bool, store: &Store, ui: &Ui, out: &mut Outbox) {
        let Some(record) = self.record() else { return };
        let first = record.lanes[0].clone();
        if on && record.lanes.len() == 1 {
            // A run that trains every weight is compared with the model it began as.
            let has_base = |run: &RunLane| store.run(&run.id).is_none_or(|run| run.method != Method::Full);
            let run = first.run.clone().filter(has_base).map(|run| RunLane { base: !run.base, ..run });
            let adapters = if first.adapters.is_empty() && first.run.is_none() {
                let fits = |base: &Option<String>| base.as_deref() == Some(&*first.model);
                let adapter =
                    store.adapters().iter().find(|one| one.problem.is_none() && fits(&one.base_model));
                adapter.map(|adapter| adapter.name.clone()).into_iter().collect()
            } else {
                Vec::new()
            };
            record.lanes.push(ChatLane { adapters, forced: false, run, style: None, ..first });
            self.changed_at = Some(ui.input(|input| input.time));
        } else if !on && record.lanes.len() == 2 {
            if record.lanes[1].nodes == first.nodes {
                return self.drop_lane(store, out);
            }
            let confirm = Confirm {
                title: "End the comparison?".into(),
                text: "The conversation goes on with the left model; the answers on the right are deleted."
                    .into(),
                yes: "Delete the right side".into(),
            };
            self.question = Some((Question::DropLane, confirm));
        }
    }

    /// Asks before adapters of another base are used all the same.
    fn ask_to_force(&mut self, lane: usize, waiting: Option<&Target>, error: &ErrorInfo) {
        let (Some(chat), ErrorCode::OtherBase) = (self.current.clone(), error.code) else { return };
        let confirm = Confirm {
            title: "Use the adapter all the same?".into(),
            text: format!(
                "{}. Its answers may make no sense. That it was wanted is kept with the conversation.",
                error.message
            ),
            yes: "Use it".into(),
        };
        let node = waiting.filter(|target| target.chat == chat).map(|target| target.node);
        self.question = Some((Question::Force { chat, lane, node }, confirm));
    }

    fn force(&mut self, chat: &str, (lane, node): (usize, Option<usize>), store: &Store, out: &mut Outbox) {
        let Some(record) = self.record().filter(|record| record.id == chat) else { return };
        let Some(forced) = record.lanes.get_mut(lane) else { return };
        forced.forced = true;
        if let Some(node) = node {
            self.answer(Some((lane, node)), store, out);
        } else {
            self.load(out);
            self.save_current(store, out);
        }
    }

    /// Asks before the CPU takes over from a graphics card that cannot be used.
    fn ask_for_cpu(&mut self, lane: usize, waiting: Option<&Target>, error: &ErrorInfo) {
        let (Some(chat), ErrorCode::NeedsCpu) = (self.current.clone(), error.code) else { return };
        let confirm = Confirm {
            title: "Use the CPU instead?".into(),
            text: format!("{}. On the CPU, answers come slower.", error.message),
            yes: USE_CPU.into(),
        };
        let node = waiting.filter(|target| target.chat == chat).map(|target| target.node);
        self.question = Some((Question::UseCpu { chat, lane, node }, confirm));
    }

    fn use_cpu(&mut self, chat: &str, (lane, node): (usize, Option<usize>), store: &Store, out: &mut Outbox) {
        if self.record().is_none_or(|record| record.id != chat) {
            return;
        }
        // Whatever this window talks to from now on.
        for engine in &mut self.engines {
            engine.on_cpu = true;
        }
        match node {
            Some(node) => self.answer(Some((lane, node)), store, out),
            None => self.load(out),
        }
    }

    fn drop_lane(&mut self, store: &Store, out: &mut Outbox) {
        if let Some(record) = self.record() {
            record.lanes.truncate(1);
            self.engines[1].unload(out);
            self.save_current(store, out);
        }
    }

    /// Keeps changed settings once the hand is still.
    fn settle(&mut self, ui: &Ui, store: &Store, out: &mut Outbox) {
        let Some(changed_at) = self.changed_at else { return };
        let (now, pointer_down) = ui.input(|input| (input.time, input.pointer.any_down()));
        if now - changed_at >= SETTLED_SECS && !pointer_down {
            self.keep_changes(store, out);
        } else {
            ui.ctx().request_repaint_after_secs(SETTLED_SECS as f32);
        }
    }
}
