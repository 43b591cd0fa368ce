//! Conversations, kept in the database.

use lathe_protocol::{ChatRecord, EventBody};

use crate::{
    db::Db,
    error::{Result, not_found, usage},
    job::Job,
};

pub(crate) fn list(job: &Job) -> Result<()> {
    let chats = open(job)?.chats()?;
    job.emit(EventBody::Chats { chats });
    Ok(())
}

pub(crate) fn show(job: &Job, id: &str) -> Result<()> {
    let record = open(job)?.chat(id)?.ok_or_else(|| unknown(id))?;
    job.emit(EventBody::ChatRecord(Box::new(record)));
    Ok(())
}

pub(crate) fn save(job: &Job, record: &ChatRecord) -> Result<()> {
    if record.id.is_empty() {
        return Err(usage("A chat needs an id"));
    }
    open(job)?.save_chat(record)
}

pub(crate) fn remove(job: &Job, id: &str) -> Result<()> {
    let freed_bytes = open(job)?.delete_chat(id)?.ok_or_else(|| unknown(id))?;
    job.emit(EventBody::Removed { what: format!("chat {id}"), freed_bytes });
    Ok(())
}

fn open(job: &Job) -> Result<Db> {
    Db::open(&job.host.paths().db())
}

fn unknown(id: &str) -> lathe_protocol::ErrorInfo {
    not_found(format!("No chat with the id {id:?}"))
}

#[cfg(all(test, unix))]
mod tests {
    use lathe_protocol::{
        ChatEntry, ChatLane, ChatNode, CommandBody, Message, Role, SamplingParams, Thinking,
    };

    use super::*;
    use crate::testing::{Bench, ask, failure};

    fn record(id: &str, updated_secs: u64) -> ChatRecord {
        let node = ChatNode {
            parent: None,
            message: Message::new(Role::User, "Ahoy"),
            stats: None,
            answered_by: None,
        };
        let lane =
            ChatLane { model: "starter".into(), nodes: vec![node], leaf: Some(0), ..ChatLane::default() };
        ChatRecord {
            id: id.into(),
            title: "Über \"pirates\"".into(),
            updated_secs,
            system: "Be brief".into(),
            sampling: SamplingParams::default(),
            thinking: Thinking::Hide,
            effort: Some("low".into()),
            lanes: vec![lane],
        }
    }

    fn listed(host: &mut crate::Host) -> Vec<ChatEntry> {
        match ask(host, 9, CommandBody::ChatsList).remove(0) {
            EventBody::Chats { chats } => chats,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_chat_comes_back_as_it_was_saved() {
        let bench = Bench::new();
        let mut host = bench.shell_host("exit 1");
        for chat in [record("a", 3), record("b", 2), record("c", 1), record("c", 4)] {
            let events = ask(&mut host, 1, CommandBody::ChatsSave(Box::new(chat)));
            assert_eq!(events, [EventBody::Done]);
        }
        let chats = listed(&mut host);
        assert_eq!(chats.iter().map(|chat| chat.id.as_str()).collect::<Vec<_>>(), ["c", "a", "b"]);
        assert_eq!((chats[0].model.as_str(), chats[0].title.as_str()), ("starter", "Über \"pirates\""));
        let events = ask(&mut host, 2, CommandBody::ChatsShow { chat: "c".into() });
        assert_eq!(events[0], EventBody::ChatRecord(Box::new(record("c", 4))));
        ask(&mut host, 3, CommandBody::ChatsRemove { chat: "c".into() });
        assert_eq!(listed(&mut host).len(), 2);
        failure(&ask(&mut host, 4, CommandBody::ChatsRemove { chat: "c".into() }));
        failure(&ask(&mut host, 5, CommandBody::ChatsShow { chat: "c".into() }));
    }
}
