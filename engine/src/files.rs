//! Reading small files as they occur in the wild.

use std::{io::Read as _, path::Path};

use crate::{Error, Result};

/// The bytes of a file, decompressed if it is gzip under a plain name (magic `1f 8b`), as some mirrors serve JSON.
pub fn read_maybe_gzip(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice())
        .read_to_end(&mut plain)
        .map_err(Error::io("decompress", path))?;
    Ok(plain)
}

/// Parses a JSON file, gzip'd or not.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_maybe_gzip(path)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::model(format!("Not valid JSON: {error}: {}", path.display())))
}
