use std::path::Path;
use super::Dataset;
use crate::Result;

pub fn read_examples(path: &Path) -> Result<Dataset> { todo!("{}", path.display()) }
