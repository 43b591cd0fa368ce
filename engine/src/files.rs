//! Reading files as they occur in the wild, writing them whole or not at all.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Read as _, Write as _},
    path::Path,
};

use candle_core::Tensor;
use lathe_protocol::ErrorCode;
use safetensors::{Dtype, tensor::TensorView};

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

pub fn create_dir_all(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io("create the folder", path))
}

/// Writes a file whole or not at all: aside, fsync, rename.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("partial");
    let written = std::fs::File::create(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // The error that matters is the one just met; the half-written file must not stay.
        std::fs::remove_file(&aside).ok();
        return Err(Error::io("write", path)(error));
    }
    std::fs::rename(&aside, path).map_err(Error::io("write", path))
}

pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| {
        Error::invalid(ErrorCode::Internal, format!("Cannot write {}: {error}", path.display()))
    })?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Writes f32 tensors as a safetensors file, whole or not at all.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut buffers = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        buffers.push((name, tensor.dims().to_vec(), bytes));
    }
    let invalid = |error: safetensors::SafeTensorError| {
        Error::invalid(ErrorCode::Internal, format!("Cannot write {}: {error}", path.display()))
    };
    let mut views = Vec::with_capacity(buffers.len());
    for (name, shape, bytes) in &buffers {
        views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(invalid)?));
    }
    // PEFT and transformers ask for this key.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_atomically(path, &safetensors::serialize(views, Some(metadata)).map_err(invalid)?)
}

/// Makes the entries of a folder durable. Only Unix can and needs to.
pub fn sync_dir(path: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync the folder", path))?;
    Ok(())
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
