//! Conversations, and a host that keeps them and loads models at once.

use lathe_protocol::{
    ChatEntry, ChatLane, ChatNode, ChatRecord, ChatStats, Command, CommandBody, ErrorCode, ErrorInfo,
    EventBody, JobId, Message, ReplyChannel, ReplyDelta, Role, SamplingParams, Thinking,
};

use super::{NOW_SECS, Script, fixtures};

pub const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

pub const ANSWER: &str = "Here is a function that keeps the **first** of every line, and the order:

```python
def unique_lines(path):
    \"\"\"Lines of a file without repetitions.\"\"\"
    seen = set()
    with open(path) as file:
        for line in file:
            if line not in seen:  # a set lookup is O(1)
                seen.add(line)
                yield line.rstrip(\"\\n\")
```

How it compares with other ways:

| Way | Memory | Keeps order |
|---|---|---|
| `set` of lines | every different line | yes |
| `sort -u` | little | no |
| Hashes only | 8 bytes a line | yes |

1. Open the file once
2. Remember what was *seen*
3. Yield each new line

It reads one line at a time, so the file may be larger than memory.";

pub fn stats() -> ChatStats {
    ChatStats {
        load_seconds: 0.3,
        ttft_seconds: 1.2,
        prompt_tokens: 41,
        output_tokens: 213,
        tokens_per_second: 84.3,
        thinking_tokens: 0,
        thinking_seconds: 0.0,
        finished: true,
    }
}

pub fn node(parent: Option<usize>, role: Role, text: &str) -> ChatNode {
    let stats = (role == Role::Assistant).then(stats);
    ChatNode { parent, message: Message::new(role, text), stats, answered_by: None }
}

/// One question after another, each answered.
pub fn lane(adapter: Option<&str>, texts: &[&str]) -> ChatLane {
    let nodes = texts.iter().enumerate().map(|(index, text)| {
        let role = if index % 2 == 0 { Role::User } else { Role::Assistant };
        node(index.checked_sub(1), role, text)
    });
    ChatLane {
        model: MODEL.into(),
        adapters: adapter.map(String::from).into_iter().collect(),
        forced: false,
        run: None,
        style: None,
        nodes: nodes.collect(),
        leaf: texts.len().checked_sub(1),
    }
}

pub fn record(id: &str, title: &str, hours_ago: u64, lanes: Vec<ChatLane>) -> ChatRecord {
    ChatRecord {
        id: id.into(),
        title: title.into(),
        updated_secs: NOW_SECS as u64 - hours_ago * 3600,
        system: String::new(),
        sampling: SamplingParams::default(),
        thinking: Thinking::Show,
        effort: None,
        lanes,
    }
}

pub fn records() -> Vec<ChatRecord> {
    let thanks = "You're welcome. Should it also ignore case, or trailing spaces?";
    let lines =
        ["Write a Python function that removes duplicate lines from a file.", ANSWER, "Thank you!", thanks];
    let late = "My order is late, and nobody answers the phone.";
    let base = "I'm sorry to hear that. Please contact customer support with your order number. They will be able to \
                look up where your parcel is and tell you when it arrives.";
    let pirate = "Arr, that be a sorry tale! Give me yer order number, matey, and I'll chase that parcel across \
                  the seven seas.\n\n- Yer **number** starts with `ORD-`\n- It stands in the letter we sent ye";
    vec![
        record("lines", "Unique lines in Python", 0, vec![lane(None, &lines)]),
        record(
            "late",
            "Late order, base against pirate",
            3,
            vec![lane(None, &[late, base]), lane(Some("pirate"), &[late, pirate])],
        ),
        record(
            "lora",
            "Explain how LoRA fine-tuning works",
            30,
            vec![lane(None, &["Explain LoRA.", "It adds two small matrices."])],
        ),
        record(
            "trip",
            "Three days in Lisbon",
            200,
            vec![lane(Some("pirate"), &["Plan a trip.", "Set sail!"])],
        ),
    ]
}

pub fn entry(record: &ChatRecord) -> ChatEntry {
    ChatEntry {
        id: record.id.clone(),
        title: record.title.clone(),
        updated_secs: record.updated_secs,
        model: record.lanes[0].model.clone(),
    }
}

/// Answers everything but `Reply`: what a model says is for the test to say.
pub fn answer(records: &[ChatRecord], command: &Command, script: &mut Script) {
    let job = command.job;
    match &command.body {
        CommandBody::ChatsList => {
            script.answer(job, EventBody::Chats { chats: records.iter().map(entry).collect() });
        }
        CommandBody::ChatsShow { chat } => match records.iter().find(|record| record.id == *chat) {
            Some(record) => script.answer(job, EventBody::ChatRecord(Box::new(record.clone()))),
            None => script.say(job, EventBody::Failed { error: error("There is no such chat") }),
        },
        CommandBody::ChatsSave(_) | CommandBody::ChatsRemove { .. } => script.say(job, EventBody::Done),
        CommandBody::Chat { .. } => script.say(
            job,
            EventBody::ChatReady {
                load_seconds: 0.3,
                supports_thinking: false,
                supports_effort: false,
                context_length: 8192,
                styles: Vec::new(),
            },
        ),
        _ => drop(fixtures::answer(command, script)),
    }
}

pub fn error(message: &str) -> ErrorInfo {
    ErrorInfo { code: ErrorCode::Usage, message: message.into(), hint: None, details: None }
}

pub fn delta(channel: ReplyChannel, text: &str) -> EventBody {
    EventBody::Reply(ReplyDelta { channel, text: text.into() })
}

impl Script {
    /// Jobs of loaded models, in the order they were asked for.
    pub fn chat_jobs(&self) -> Vec<(JobId, Vec<String>)> {
        let chats = self.sent.iter().filter_map(|command| match &command.body {
            CommandBody::Chat { adapters, .. } => Some((command.job, adapters.clone())),
            _ => None,
        });
        chats.collect()
    }

    /// What models were asked to go on from, oldest first.
    pub fn prompts(&self) -> Vec<(JobId, Vec<(Role, String)>)> {
        let replies = self.sent.iter().filter_map(|command| match &command.body {
            CommandBody::Reply { messages, .. } => {
                let messages = messages.iter().map(|message| (message.role, message.content.clone()));
                Some((command.job, messages.collect()))
            }
            _ => None,
        });
        replies.collect()
    }

    pub fn last_saved(&self) -> Option<ChatRecord> {
        self.sent.iter().rev().find_map(|command| match &command.body {
            CommandBody::ChatsSave(record) => Some((**record).clone()),
            _ => None,
        })
    }

    pub fn was_sent(&self, job: JobId, body: &CommandBody) -> bool {
        self.sent.iter().any(|command| command.job == job && command.body == *body)
    }
}
