use super::{Conversation, RawExample};
use crate::Result;
use lathe_protocol::DatasetShape;
use std::path::Path;

/// Reads one row as its shape says. `path` is for the error.
pub fn parse_conversation(_example: &RawExample, _shape: DatasetShape, _path: &Path) -> Result<Conversation> {
    todo!()
}
