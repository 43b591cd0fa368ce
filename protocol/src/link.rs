use crate::{Command, Connection, Event};

/// The way to an engine: a host in this process, one behind a channel or a socket, or a scripted fake.
pub trait EngineLink {
    /// Never blocks. What comes of it arrives as events of the command's job.
    fn send(&mut self, command: Command);

    /// What happened since the last call, oldest first. Never blocks.
    fn drain(&mut self) -> Vec<Event>;

    /// How the way stands; one inside a process always does.
    fn connection(&self) -> Connection {
        Connection::default()
    }
}
