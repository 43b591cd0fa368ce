//! Sample data that comes with Lathe.

use std::{fs, path::PathBuf};

use crate::{
    Paths,
    error::{Result, io_error},
    files,
};

const FILES: [(&str, &[u8]); 6] = [
    ("pirate.jsonl", include_bytes!("../../resources/samples/pirate.jsonl")),
    ("pirate_eval.jsonl", include_bytes!("../../resources/samples/pirate_eval.jsonl")),
    ("verbosity.jsonl", include_bytes!("../../resources/samples/verbosity.jsonl")),
    ("verbosity_eval.jsonl", include_bytes!("../../resources/samples/verbosity_eval.jsonl")),
    ("concise.jsonl", include_bytes!("../../resources/samples/concise.jsonl")),
    ("concise_eval.jsonl", include_bytes!("../../resources/samples/concise_eval.jsonl")),
];

/// Puts the samples into the data folder, where they are not there already. Returns the pirate's training and held-out
/// file.
pub fn write_samples(paths: &Paths) -> Result<(PathBuf, PathBuf)> {
    let folder = paths.samples();
    for (name, bytes) in FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|known| known == bytes) {
            continue;
        }
        files::create_dir_all(&folder)?;
        fs::write(&path, bytes).map_err(io_error("write the sample data", &path))?;
    }
    let [train, eval, ..] = FILES.map(|(name, _)| folder.join(name));
    Ok((train, eval))
}
