//! An engine that answers as the test says.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use lathe_protocol::{Command, CommandBody, Connection, EngineLink, Event, EventBody, JobId};

type Answer = dyn FnMut(&Command, &mut Script);

/// What a scripted engine was sent, and what it will say.
#[derive(Default)]
pub struct Script {
    pub sent: Vec<Command>,
    pub connection: Connection,
    events: VecDeque<Event>,
}

impl Script {
    pub fn say(&mut self, job: JobId, body: EventBody) {
        self.events.push_back(Event { job, body });
    }

    /// An answer that ends its job.
    pub fn answer(&mut self, job: JobId, body: EventBody) {
        self.say(job, body);
        self.say(job, EventBody::Done);
    }

    /// The newest job whose command `is`.
    pub fn job(&self, is: impl Fn(&CommandBody) -> bool) -> Option<JobId> {
        self.sent.iter().rev().find(|command| is(&command.body)).map(|command| command.job)
    }
}

/// A fake engine; clones share their script.
#[derive(Clone)]
pub struct ScriptedLink {
    pub script: Rc<RefCell<Script>>,
    answer: Rc<RefCell<Box<Answer>>>,
}

impl ScriptedLink {
    /// `answer` is called with every command; what it makes the script say arrives at the next drain.
    pub fn new(answer: impl FnMut(&Command, &mut Script) + 'static) -> Self {
        Self { script: Rc::default(), answer: Rc::new(RefCell::new(Box::new(answer))) }
    }
}

impl EngineLink for ScriptedLink {
    fn send(&mut self, command: Command) {
        let mut script = self.script.borrow_mut();
        script.sent.push(command.clone());
        (self.answer.borrow_mut())(&command, &mut script);
    }

    fn drain(&mut self) -> Vec<Event> {
        self.script.borrow_mut().events.drain(..).collect()
    }

    fn connection(&self) -> Connection {
        self.script.borrow().connection.clone()
    }
}
