//! Where the starter's words come from. Only what we wrote ourselves is in the repository.

use std::path::Path;

use anyhow::{Result, ensure};
use lathe_protocol::{Message, Role};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{chitchat, intents};
use crate::repo;

/// A row of the corpus: one line of a data file of shape `messages`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    pub messages: Vec<Message>,
}

impl Conversation {
    /// From turns, the user's first.
    pub fn new(turns: impl IntoIterator<Item = String>) -> Self {
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        Self { messages: roles.zip(turns).map(|(role, text)| Message::new(role, text)).collect() }
    }
}

/// [`hash`] of what the reference scripts made of the same sources.
pub const INTENTS_SHA256: &str = "67c4b52aff162087ee8d9f33a6fe6317aa737625251020af5ec75756b15a13bb";
const CHITCHAT_SHA256: &str = "8c4933276f1aa2692e21ed0b32e12c77c53e8d6ebec32211171c4f0c75598c05";

/// Everything the recipe reads.
pub struct Corpus {
    pub intents: Vec<Conversation>,
    pub chitchat: Vec<Conversation>,
    /// The samples: the tokenizer knows their words, the model does not learn them.
    pub pirate: Vec<Conversation>,
}

impl Corpus {
    /// Reads what the repository has, and fetches the rest.
    pub fn gather() -> Result<Self> {
        let resources = repo::root().join("resources");
        let intents = intents::Intents::read(&resources.join("starter/corpus/intents.json"))?
            .expand(intents::SEED, intents::NUM_MIXED);
        let chitchat = chitchat::conversations()?;
        check("intents", &intents, INTENTS_SHA256)?;
        check("chitchat", &chitchat, CHITCHAT_SHA256)?;
        Ok(Self { intents, chitchat, pirate: read(&resources.join("samples/pirate.jsonl"))? })
    }
}

/// Errors: not the rows that the recipe was tried with.
fn check(name: &str, conversations: &[Conversation], expected: &str) -> Result<()> {
    let (found, rows) = (hash(conversations), conversations.len());
    ensure!(
        found == expected,
        "The {name} corpus ({rows} rows) is not the recipe's: its hash is {found}, expected {expected}"
    );
    Ok(())
}

/// Of the turns' bytes: the same for the same conversations, however a file spells them.
pub fn hash(conversations: &[Conversation]) -> String {
    let mut hasher = Sha256::new();
    for Conversation { messages } in conversations {
        hasher.update((messages.len() as u64).to_le_bytes());
        for message in messages {
            hasher.update((message.content.len() as u64).to_le_bytes());
            hasher.update(&message.content);
        }
    }
    repo::hex(&hasher.finalize())
}

pub fn read(path: &Path) -> Result<Vec<Conversation>> {
    repo::read_to_string(path)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

pub fn write<'a>(path: &Path, conversations: impl IntoIterator<Item = &'a Conversation>) -> Result<()> {
    let mut text = String::new();
    for conversation in conversations {
        text.push_str(&serde_json::to_string(conversation)?);
        text.push('\n');
    }
    repo::write(path, text)
}
