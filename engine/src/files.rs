//! Reading files as they occur in the wild, writing them whole or not at all.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Read as _, Write as _},
    path::Path,
};

use candle_core::Tensor;
use lathe_protocol::ErrorCode;
use serde_json::{Map, Value, json};

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
    write_atomically_with(path, |file| file.write_all(bytes))
}

fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let aside = path.with_extension("partial");
    let written = File::create(&aside).and_then(|file| {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        file.into_inner()?.sync_all()
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

/// What is written as a tensor of f32 or bytes.
pub enum Values<'a> {
    Tensor(&'a Tensor),
    /// Of these dimensions.
    Slice(&'a [f32], Vec<usize>),
    Bytes(&'a [u8], Vec<usize>),
}

/// Writes f32 tensors as a safetensors file, whole or not at all.
pub fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), Values::Tensor(tensor)));
    write_values(path, &tensors.collect())
}

/// [`write_safetensors`] of values that need not be tensors. They are copied one at a time: the file of a model that
/// barely fits into memory can still be written.
pub fn write_values(path: &Path, values: &BTreeMap<String, Values<'_>>) -> Result<()> {
    // PEFT and transformers ask for the format.
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, values) in values {
        let (dtype, width, dims) = match values {
            Values::Tensor(tensor) => ("F32", 4, tensor.dims()),
            Values::Slice(_, dims) => ("F32", 4, dims.as_slice()),
            Values::Bytes(_, dims) => ("U8", 1, dims.as_slice()),
        };
        let start = end;
        end += width * dims.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": dims, "data_offsets": [start, end]}));
    }
    let mut header = Value::from(header).to_string();
    // The data begins at a multiple of 8.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    write_atomically_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        values.values().try_for_each(|values| match values {
            Values::Slice(values, _) => write_floats(file, values),
            Values::Bytes(values, _) => file.write_all(values),
            Values::Tensor(tensor) => {
                let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1());
                write_floats(file, &values.map_err(std::io::Error::other)?)
            }
        })
    })
}

fn write_floats(file: &mut impl std::io::Write, values: &[f32]) -> std::io::Result<()> {
    values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
}

/// Makes the entries of a folder durable. Only Unix can and needs to.
pub fn sync_dir(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io("sync the folder", path))?;
    Ok(())
}

/// SHA-256 of a file's bytes, in hexadecimal: what a data file is known by.
pub fn hash_file(path: &Path) -> Result<String> {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            num_bytes => hasher.update(&buffer[..num_bytes]),
        }
    }
}

/// Fills `buffer` with what stands at `offset`, wherever the file's cursor is.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            match std::os::windows::fs::FileExt::seek_read(file, &mut buffer[done..], at)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                num_bytes => done += num_bytes,
            }
        }
        Ok(())
    }
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
