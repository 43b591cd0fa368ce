use std::{
    collections::VecDeque,
    io::{BufRead as _, IsTerminal as _, stdin},
    process::ExitCode,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use lathe_protocol::{
    AnsweredBy, ChatStats, CommandBody, ErrorCode, ErrorInfo, EventBody, JobId, Message, ReplyChannel, Role,
    SamplingParams, Style, Thinking,
};
use lathe_ui::format::short_secs;
use serde_json::{Value, json};

use super::Outcome;
use crate::{
    cli::Chat,
    note,
    progress::Preparation,
    session::{self, Session},
};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

pub fn run(session: &mut Session, args: &Chat) -> Outcome {
    let Chat { prompt, system, .. } = args;
    let usual = SamplingParams::default();
    // A style has a say, and is known once its model is loaded.
    if args.style.is_none() {
        check_sampling(&sampling(args, &usual))?;
    }
    let partner = partner(session, args);
    let mut chat = Conversation::open(session, partner, args.thinking.into(), args.effort.clone())?;
    let style = args.style.as_ref().map(|name| find_style(name, &chat.styles, args)).transpose()?;
    let usual = style.as_ref().map_or(usual.clone(), |style| style.sampling(&usual));
    chat.sampling = sampling(args, &usual);
    check_sampling(&chat.sampling)?;
    chat.style = style.map(|style| style.name);
    let system: Vec<Message> = system.iter().map(|text| Message::new(Role::System, text)).collect();
    if let Some(prompt) = prompt {
        let mut messages = system;
        messages.push(chat.question(prompt));
        chat.reply(session, messages)??;
    } else {
        talk(session, &mut chat, &system)?;
    }
    chat.close(session);
    Ok(ExitCode::SUCCESS)
}

/// Who is to answer: a run, or a model.
fn partner(session: &Session, args: &Chat) -> CommandBody {
    match &args.run {
        Some(run) => CommandBody::TalkToRun { run: run.clone(), base: args.base },
        None => CommandBody::Chat {
            model: args.model.clone().unwrap_or_default(),
            adapters: args.adapter.clone(),
            device: session.device.clone(),
            force: args.force,
        },
    }
}

/// As the flags say, else as usual.
fn sampling(args: &Chat, usual: &SamplingParams) -> SamplingParams {
    SamplingParams {
        temperature: args.temperature.unwrap_or(usual.temperature),
        top_p: args.top_p.unwrap_or(usual.top_p),
        top_k: args.top_k.unwrap_or(usual.top_k),
        max_tokens: args.max_tokens.unwrap_or(usual.max_tokens),
        min_tokens: args.min_tokens.unwrap_or(usual.min_tokens),
        seed: args.seed,
        thinking_budget: args.thinking_budget,
    }
}

/// The style of this name among those that were learned.
fn find_style(name: &str, styles: &[Style], args: &Chat) -> Result<Style, ErrorInfo> {
    if args.base {
        return Err(ErrorInfo::new(ErrorCode::Usage, "The base knows no styles: they are the adapter's")
            .hint("leave --base or --style out"));
    }
    let names: Vec<_> = styles.iter().map(|style| style.name.as_str()).collect();
    styles.iter().find(|style| style.name == name).cloned().ok_or_else(|| {
        let holder = match (&args.run, args.adapter.as_slice(), names.as_slice()) {
            (Some(run), _, []) => format!("the run learns no styles: {run}"),
            (None, [], []) => "without an adapter there are no styles".to_owned(),
            (None, adapters, []) => format!("the adapter holds no styles: {}", adapters.join(", ")),
            (_, _, names) => format!("known are {}", names.join(", ")),
        };
        let hint = if names.is_empty() { "leave --style out" } else { "choose one of them" };
        ErrorInfo::new(ErrorCode::Adapter, format!("No style {name:?}: {holder}")).hint(hint)
    })
}

fn check_sampling(sampling: &SamplingParams) -> Result<(), ErrorInfo> {
    let wrong = |flag: &str, value: f64, range: &str| {
        Err(ErrorInfo::new(ErrorCode::Usage, format!("{flag} {value} is out of range"))
            .hint(format!("{flag} takes {range}")))
    };
    if !(sampling.temperature >= 0.0 && sampling.temperature <= 10.0) {
        return wrong("--temperature", sampling.temperature, "0 to 10");
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return wrong("--top-p", sampling.top_p, "more than 0, at most 1");
    }
    if sampling.max_tokens == 0 {
        return wrong("--max-tokens", 0.0, "1 and more");
    }
    if sampling.min_tokens > sampling.max_tokens {
        return wrong("--min-tokens", sampling.min_tokens as f64, "as many as --max-tokens at most");
    }
    Ok(())
}

/// Lines of stdin are turns, until its end, `/exit` or Ctrl-C.
fn talk(session: &mut Session, chat: &mut Conversation, system: &[Message]) -> Result<(), ErrorInfo> {
    let at_terminal = stdin().is_terminal() && session.out.is_terminal();
    if at_terminal {
        note!("/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends a reply");
    }
    let lines = read_lines()?;
    let mut messages = system.to_vec();
    loop {
        if at_terminal {
            session.out.text("> ");
        }
        let Some(line) = next_line(&lines) else { break };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            "/reset" => {
                messages = system.to_vec();
                note!("forgotten");
            }
            command if command.starts_with('/') && !command.contains(' ') => {
                note!("unknown command {command}: there are /reset and /exit");
            }
            text => {
                messages.push(chat.question(text));
                match chat.reply(session, messages.clone())? {
                    Ok(answer) => messages.push(Message::new(Role::Assistant, answer)),
                    Err(error) => {
                        messages.pop();
                        session.out.error(&error, session.verbose);
                    }
                }
            }
        }
    }
    if at_terminal {
        session.out.line("");
    }
    Ok(())
}

fn read_lines() -> Result<Receiver<String>, ErrorInfo> {
    let (sender, lines) = sync_channel(16);
    let spawned = thread::Builder::new().name("stdin".into()).spawn(move || {
        for line in stdin().lock().lines() {
            if line.is_err() || line.is_ok_and(|line| sender.send(line).is_err()) {
                return;
            }
        }
    });
    match spawned {
        Ok(_) => Ok(lines),
        Err(error) => Err(ErrorInfo::new(ErrorCode::Internal, format!("Cannot start a thread: {error}"))),
    }
}

fn next_line(lines: &Receiver<String>) -> Option<String> {
    let before = session::interrupts();
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => return Some(line),
            Err(RecvTimeoutError::Timeout) if session::interrupts() == before => {}
            Err(_) => return None,
        }
    }
}

/// A loaded model or a run in training, talking.
pub struct Conversation {
    job: JobId,
    thinking: Thinking,
    effort: Option<String>,
    pub sampling: SamplingParams,
    /// What can be asked for.
    styles: Vec<Style>,
    /// The way in which questions are to be answered.
    style: Option<String>,
    /// Whether replies are shown as they come.
    pub silent: bool,
    /// What was not looked at yet.
    events: VecDeque<EventBody>,
}

impl Conversation {
    /// Waits until the model is loaded, or the run's training has begun.
    ///
    /// Errors: the model cannot be loaded, or has no effort to set; the run does not train.
    pub fn open(
        session: &mut Session,
        partner: CommandBody,
        thinking: Thinking,
        effort: Option<String>,
    ) -> Result<Self, ErrorInfo> {
        let job = session.start(partner);
        let (sampling, styles) = (SamplingParams::default(), Vec::new());
        let mut chat = Self {
            job,
            thinking,
            effort,
            sampling,
            styles,
            style: None,
            silent: false,
            events: VecDeque::new(),
        };
        let mut bar = Preparation::new();
        loop {
            while let Some(event) = chat.next_event(session) {
                match event {
                    EventBody::Progress { what, done, total } => bar.show(&what, done, total),
                    EventBody::ChatReady {
                        load_seconds, supports_thinking, supports_effort, styles, ..
                    } => {
                        bar.clear();
                        if let Some(effort) = chat.effort.as_ref().filter(|_| !supports_effort) {
                            let message = format!("This model has no reasoning effort to set to {effort}");
                            session.send(job, CommandBody::Stop);
                            return Err(ErrorInfo::new(ErrorCode::Model, message).hint("leave --effort out"));
                        }
                        if session.verbose {
                            note!("loaded in {}", short_secs(load_seconds));
                        }
                        if thinking == Thinking::Off && !supports_thinking {
                            note!("this model does not think: --thinking off changes nothing");
                        }
                        chat.styles = styles;
                        return Ok(chat);
                    }
                    EventBody::Failed { error } => return Err(error),
                    EventBody::Done => return Err(ended()),
                    _ => {}
                }
            }
            if session::interrupts() > 0 {
                bar.clear();
                session.send(job, CommandBody::Stop);
                session.send(job, CommandBody::Stop);
                return Err(ErrorInfo::new(ErrorCode::Busy, "Interrupted while the model was loading"));
            }
        }
    }

    /// A user's turn, in the chat's style.
    fn question(&self, text: &str) -> Message {
        Message { style: self.style.clone(), ..Message::new(Role::User, text) }
    }

    /// Asks, shows the reply as it comes, and returns its answer, or why there is none: the chat goes on either way.
    ///
    /// Errors: the chat is over.
    pub fn reply(
        &mut self,
        session: &mut Session,
        messages: Vec<Message>,
    ) -> Result<Result<String, ErrorInfo>, ErrorInfo> {
        let body = CommandBody::Reply {
            messages,
            sampling: self.sampling.clone(),
            thinking: self.thinking,
            effort: self.effort.clone(),
        };
        session.send(self.job, body);
        let before = session::interrupts();
        let mut cancelled = false;
        let mut answer = String::new();
        let mut shown = None;
        let mut by = None;
        loop {
            while let Some(event) = self.next_event(session) {
                match event {
                    EventBody::ReplyStarted(answering) => {
                        by = Some(answering);
                        if !session.out.json {
                            note!("{answering}");
                        }
                    }
                    EventBody::Reply(delta) => {
                        if delta.channel == ReplyChannel::Answer {
                            answer.push_str(&delta.text);
                        }
                        if !self.silent {
                            let is_hidden =
                                self.thinking == Thinking::Hide && delta.channel == ReplyChannel::Thinking;
                            let text = if is_hidden { "" } else { &delta.text };
                            show_delta(session, delta.channel, text, &mut shown);
                        }
                    }
                    EventBody::ReplyDone(stats) => {
                        if !self.silent {
                            end_reply(session, &stats, by, shown);
                        }
                        return Ok(Ok(answer));
                    }
                    EventBody::ReplyFailed { error } => return Ok(Err(error)),
                    EventBody::Failed { error } => return Err(error),
                    EventBody::Done => return Err(ended()),
                    _ => {}
                }
            }
            if session::interrupts() > before && !cancelled {
                cancelled = true;
                session.send(self.job, CommandBody::CancelReply);
            }
        }
    }

    /// Waits a moment if there is none.
    fn next_event(&mut self, session: &mut Session) -> Option<EventBody> {
        if self.events.is_empty() {
            self.events.extend(session.events(self.job));
        }
        self.events.pop_front()
    }

    /// All was answered: that a run ended just now, say, changes nothing.
    pub fn close(mut self, session: &mut Session) {
        session.send(self.job, CommandBody::Stop);
        loop {
            while let Some(event) = self.next_event(session) {
                if matches!(event, EventBody::Done | EventBody::Failed { .. }) {
                    return;
                }
            }
        }
    }
}

fn ended() -> ErrorInfo {
    ErrorInfo::new(ErrorCode::WorkerDied, "The chat ended before it answered")
}

/// A hidden thought comes with empty text.
fn show_delta(session: &Session, channel: ReplyChannel, text: &str, shown: &mut Option<ReplyChannel>) {
    let out = &session.out;
    if out.json {
        return out.object(&json!({"kind": "delta", "channel": channel, "text": text}));
    }
    if text.is_empty() && !out.is_terminal() {
        return;
    }
    // Thinking is dimmed, and apart from the answer.
    let style = |channel| if channel == ReplyChannel::Answer { PLAIN } else { DIM };
    if *shown != Some(channel) {
        if shown.is_some() {
            out.text("\n\n");
        }
        if out.is_terminal() {
            out.text(style(channel));
        }
        *shown = Some(channel);
        if text.is_empty() {
            out.text("Thinking…");
        }
    }
    out.text(text);
}

fn end_reply(session: &Session, stats: &ChatStats, by: Option<AnsweredBy>, shown: Option<ReplyChannel>) {
    let out = &session.out;
    if out.json {
        let mut object = json!({"kind": "stats"});
        for part in [serde_json::to_value(stats), serde_json::to_value(by)] {
            if let (Value::Object(object), Ok(Value::Object(fields))) = (&mut object, part) {
                object.extend(fields);
            }
        }
        return out.object(&object);
    }
    if out.is_terminal() && shown.is_some() {
        out.text(PLAIN);
    }
    out.line("");
    if session.verbose {
        note!(
            "{} tokens ({} of thought, {}), {:.1} tokens/s, first after {}; prompt {} tokens; loaded in {}",
            stats.output_tokens,
            stats.thinking_tokens,
            short_secs(stats.thinking_seconds),
            stats.tokens_per_second,
            short_secs(stats.ttft_seconds),
            stats.prompt_tokens,
            short_secs(stats.load_seconds)
        );
    }
    if !stats.finished {
        note!("(cut off after {} tokens: raise --max-tokens for more)", stats.output_tokens);
    }
}
