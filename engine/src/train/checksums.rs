//! What a checkpoint's files were when they were written: a disk or a copy that spoils one is not trained on.
//!
//! CRC-32 finds what happens by itself; it does not guard against somebody who means harm.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path};

use crate::{Error, Result, files};

const CHECKSUMS_FILE: &str = "checksums.json";
const PART_BYTES: usize = 1 << 20;

/// Writes down the checksum of every file in `folder`.
pub fn write(folder: &Path) -> Result<()> {
    let mut checksums = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            checksums.insert(name.to_owned(), checksum(&path)?);
        }
    }
    files::write_json(&folder.join(CHECKSUMS_FILE), &checksums)
}

/// Errors: a file is missing, or is not what was written.
pub fn verify(folder: &Path) -> Result<()> {
    let checksums: BTreeMap<String, u32> = files::read_json(&folder.join(CHECKSUMS_FILE))?;
    for (name, written) in checksums {
        let path = folder.join(name);
        if checksum(&path)? != written {
            return Err(Error::model(format!("Not as it was written: {}", path.display())));
        }
    }
    Ok(())
}

fn checksum(path: &Path) -> Result<u32> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut part = vec![0; PART_BYTES];
    loop {
        match file.read(&mut part).map_err(Error::io("read", path))? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(&part[..count]),
        }
    }
}
