//! What happens to a conversation: questions, answers, branches, and that nothing of it is lost.

use lathe_protocol::{
    ChatEntry, ChatLane, ChatRecord, CommandBody, Event, EventBody, Message, ReplyChannel, ReplyDelta, Role,
    ToolCall,
};

use super::{Chat, Target, engine::Heard, run, tree};
use crate::{Outbox, Store};

/// A new conversation is called by its first question's beginning.
const TITLE_CHARS: usize = 40;

impl Chat {
    pub(super) fn send(&mut self, text: &str, store: &Store, out: &mut Outbox) {
        let text = text.trim();
        let Some(record) = self.record() else { return };
        if record.title.trim().is_empty() {
            record.title = title_of(text);
        }
        let depths = record.lanes.iter().map(|lane| tree::path(lane).len()).collect::<Vec<_>>();
        for (lane, depth) in record.lanes.iter_mut().zip(depths) {
            ask_at(lane, depth, text);
        }
        self.answer(None, store, out);
    }

    pub(super) fn edit(&mut self, depth: usize, text: &str, store: &Store, out: &mut Outbox) {
        let Some(record) = self.record() else { return };
        for lane in &mut record.lanes {
            ask_at(lane, depth, text.trim());
        }
        self.answer(None, store, out);
    }

    pub(super) fn regenerate(&mut self, depth: usize, store: &Store, out: &mut Outbox) {
        let Some(record) = self.record() else { return };
        for lane in &mut record.lanes {
            if let Some(&node) = tree::path(lane).get(depth) {
                let parent = lane.nodes[node].parent;
                tree::append(lane, parent, Message::new(Role::Assistant, ""));
            }
        }
        self.answer(None, store, out);
    }

    /// Writes into the empty answer, or beside one that broke off.
    pub(super) fn retry(&mut self, lane: usize, depth: usize, store: &Store, out: &mut Outbox) {
        let Some(record) = self.record() else { return };
        let tree = &mut record.lanes[lane];
        let Some(&node) = tree::path(tree).get(depth) else { return };
        let node = if tree::is_empty_answer(&tree.nodes[node]) {
            node
        } else {
            let parent = tree.nodes[node].parent;
            tree::append(tree, parent, Message::new(Role::Assistant, ""))
        };
        self.answer(Some((lane, node)), store, out);
    }

    pub(super) fn switch(&mut self, depth: usize, by: isize, store: &Store, out: &mut Outbox) {
        let Some(record) = self.record() else { return };
        for lane in &mut record.lanes {
            let Some(&node) = tree::path(lane).get(depth) else { continue };
            let siblings = tree::siblings(lane, node);
            let place = siblings.iter().position(|&other| other == node).unwrap_or_default();
            if let Some(&other) = place.checked_add_signed(by).and_then(|place| siblings.get(place)) {
                tree::show(lane, other);
            }
        }
        self.save_current(store, out);
    }

    /// Has one lane's node written, or the last of every lane.
    pub(super) fn answer(&mut self, only: Option<(usize, usize)>, store: &Store, out: &mut Outbox) {
        self.load(out);
        let Self { current, records, engines, failures, .. } = self;
        let Some(record) = current.as_ref().and_then(|id| records.get_mut(id)) else { return };
        for (index, lane) in record.lanes.iter_mut().enumerate() {
            let node = match only {
                Some((one, node)) if one == index => node,
                Some(_) => continue,
                None => lane.leaf.unwrap_or_default(),
            };
            failures.remove(&(record.id.clone(), index, node));
            if let Some(answer) = lane.nodes.get_mut(node) {
                answer.answered_by = None;
            }
            if let Some(question) = lane.nodes.get(node).and_then(|answer| answer.parent) {
                lane.nodes[question].message.style.clone_from(&lane.style);
            }
            let mut messages = tree::prompt(&record.system, lane, node);
            // What was asked in a style of another adapter is history without one.
            let styles = run::styles(lane, &engines[index], store);
            let knows = |name: &String| styles.iter().any(|style| style.name == *name);
            for message in &mut messages {
                message.style.take_if(|name| !knows(name));
            }
            let style = styles.iter().find(|style| Some(&style.name) == lane.style.as_ref());
            let request = CommandBody::Reply {
                messages,
                sampling: style
                    .map_or_else(|| record.sampling.clone(), |style| style.sampling(&record.sampling)),
                thinking: record.thinking,
                effort: record.effort.clone(),
            };
            engines[index].reply(lane, Target { chat: record.id.clone(), node }, request, out);
        }
        self.view.list.jump_to_end();
        self.save_current(store, out);
    }

    pub(super) fn stop(&mut self, store: &Store, out: &mut Outbox) {
        for lane in 0..self.engines.len() {
            if let Some(target) = self.engines[lane].cancel(out) {
                self.save(&target.chat, store, out);
            }
        }
    }

    /// Takes in what an engine said about the answer it is writing.
    pub(super) fn hear(
        &mut self,
        lane: usize,
        target: &Target,
        heard: Heard,
        store: &Store,
        out: &mut Outbox,
    ) {
        let Self { records, tool_texts, failures, .. } = self;
        let node = records
            .get_mut(&target.chat)
            .and_then(|record| record.lanes.get_mut(lane))
            .and_then(|lane| lane.nodes.get_mut(target.node));
        let Some(node) = node else { return };
        match heard {
            Heard::Delta(ReplyDelta { channel, text }) => {
                let message = &mut node.message;
                match channel {
                    ReplyChannel::Answer => message.content.push_str(&text),
                    ReplyChannel::Thinking => {
                        message.thinking.get_or_insert_default().push_str(&text);
                    }
                    ReplyChannel::ToolCall => tool_texts[lane].push_str(&text),
                }
                return;
            }
            Heard::Started(by) => {
                node.answered_by = Some(by);
                return;
            }
            Heard::Done(stats) => node.stats = Some(stats),
            Heard::Failed(error) => {
                failures.insert((target.chat.clone(), lane, target.node), error);
            }
            Heard::Ended => {}
        }
        add_tool_calls(&mut node.message, &std::mem::take(&mut tool_texts[lane]));
        self.save(&target.chat, store, out);
    }

    pub(super) fn save_current(&mut self, store: &Store, out: &mut Outbox) {
        self.changed_at = None;
        if let Some(chat) = self.current.clone() {
            self.save(&chat, store, out);
        }
    }

    pub(super) fn keep_changes(&mut self, store: &Store, out: &mut Outbox) {
        if self.changed_at.is_some() {
            self.save_current(store, out);
        }
    }

    /// Keeps a conversation in which something was said.
    fn save(&mut self, chat: &str, store: &Store, out: &mut Outbox) {
        let Some(record) = self.records.get_mut(chat) else { return };
        if record.lanes[0].nodes.is_empty() {
            return;
        }
        record.updated_secs = store.now_secs as u64;
        let ChatRecord { id, title, updated_secs, lanes, .. } = &*record;
        let entry = ChatEntry {
            id: id.clone(),
            title: title.clone(),
            updated_secs: *updated_secs,
            model: lanes[0].model.clone(),
        };
        self.saves.push(out.ask(CommandBody::ChatsSave(Box::new(record.clone()))));
        let list = self.list.value.get_or_insert_default();
        list.retain(|other| other.id != entry.id);
        list.insert(0, entry);
    }

    pub(super) fn saved(&mut self, event: &Event) {
        match &event.body {
            EventBody::Done => self.save_error = None,
            EventBody::Failed { error } => self.save_error = Some(error.clone()),
            _ => return,
        }
        self.saves.retain(|save| *save != event.job);
    }

    pub(super) fn rename(&mut self, chat: String, title: String, store: &Store, out: &mut Outbox) {
        if let Some(record) = self.records.get_mut(&chat) {
            record.title = title;
            self.save(&chat, store, out);
        } else {
            // It has to be read before it can be written.
            self.view.rename_when_open = Some((chat.clone(), title));
            self.open(chat, store, out);
        }
    }

    pub(super) fn remove(&mut self, chat: &str, store: &Store, out: &mut Outbox) {
        for engine in &mut self.engines {
            if engine.writing.as_ref().is_some_and(|target| target.chat == chat) {
                engine.unload(out);
            }
        }
        self.records.remove(chat);
        self.removing.ask(out, CommandBody::ChatsRemove { chat: chat.to_owned() });
        if let Some(list) = &mut self.list.value {
            list.retain(|entry| entry.id != chat);
        }
        if self.current.as_deref() == Some(chat) {
            self.current = None;
            self.changed_at = None;
            let next = self.list.value.iter().flatten().next().map(|entry| entry.id.clone());
            if let Some(next) = next {
                self.open(next, store, out);
            }
        }
    }
}

/// A question at a depth, beside the one that may be there, and the place for its answer.
fn ask_at(lane: &mut ChatLane, depth: usize, text: &str) {
    let parent = depth.checked_sub(1).and_then(|before| tree::path(lane).get(before).copied());
    let question = tree::append(lane, parent, Message::new(Role::User, text));
    tree::append(lane, Some(question), Message::new(Role::Assistant, ""));
}

/// What cannot be read as calls stays in sight as text.
fn add_tool_calls(message: &mut Message, text: &str) {
    let calls: Result<Vec<_>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    match calls {
        Ok(calls) => message.tool_calls.extend(calls.into_iter().map(|function| ToolCall {
            id: None,
            kind: Some("function".into()),
            function,
        })),
        Err(_) => message.content.push_str(text),
    }
}

fn title_of(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= TITLE_CHARS {
        return line.to_owned();
    }
    let start: String = line.chars().take(TITLE_CHARS).collect();
    let whole_words = start.rsplit_once(' ').map_or(start.as_str(), |(words, _)| words);
    format!("{whole_words}…")
}
