//! What surrounds the window: the desktop app has more to offer than a browser's tab.

use serde::{Deserialize, Serialize};

/// What the window's surroundings can do. A host by itself offers none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// Whether files can be chosen in the system's own dialogs (`ShellPick`): only those of the window's machine, so not
    /// while the host is elsewhere.
    pub has_dialogs: bool,
    /// Whether it can show a Lathe on another machine (`ShellConnect`).
    pub can_connect: bool,
    /// The address of the other machine it shows; none means this one.
    pub connected_to: Option<String>,
}

/// Something given to Lathe from outside its window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Opened {
    /// Files and folders that were dropped on the window.
    Dropped { paths: Vec<String> },
    /// A `.gguf` file or model folder, to talk to.
    Model { path: String },
    /// An adapter's folder, for the library.
    Adapter { path: String },
}
