//! The header of a safetensors file: enough to count parameters and to see that nothing is missing.

use std::{io::Read, path::Path};

use lathe_protocol::Quant;
use serde::Deserialize;

use super::contents;

/// A longer header is taken for a broken file.
const MAX_HEADER_BYTES: u64 = 100 << 20;

pub(crate) struct Header {
    pub tensors: Vec<Tensor>,
}

pub(crate) struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    dtype: String,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// How many bytes of a file its header takes, which its first eight tell.
pub(crate) fn header_end(head: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(*head.first_chunk::<8>()?);
    (length <= MAX_HEADER_BYTES).then_some(8 + length)
}

impl Header {
    pub(crate) fn num_parameters(&self) -> u64 {
        self.tensors.iter().map(Tensor::num_parameters).sum()
    }

    /// How the linears whose names `are_meant` are stored.
    pub(crate) fn nf4(&self, are_meant: impl Fn(&str) -> bool) -> Quant {
        let has = |part: &str| {
            self.tensors.iter().any(|Tensor { name, .. }| name.ends_with(part) && are_meant(name))
        };
        match (has(".quant_state.bitsandbytes__nf4"), has(".nested_absmax")) {
            (false, _) => Quant::None,
            (true, false) => Quant::Nf4,
            (true, true) => Quant::Nf4Double,
        }
    }
}

impl Tensor {
    /// Of MXFP4 the blocks and of NF4 the weights hold two values a byte, what goes with them none.
    fn num_parameters(&self) -> u64 {
        let elements = self.shape.iter().product::<u64>();
        match self.dtype.as_str() {
            _ if self.name.contains(".weight.") => 0,
            "U8" if self.name.ends_with("_blocks") || self.name.ends_with(".weight") => 2 * elements,
            "U8" => 0,
            _ => elements,
        }
    }
}

/// Reads the header and compares the file's length with what it promises. The error is a sentence about the file.
pub(crate) fn read_header(path: &Path) -> Result<Header, String> {
    let (file, file_bytes) = contents::open(path)?;
    read(file, file_bytes)
}

/// The same of a file that is open already.
pub(super) fn read(mut file: impl Read, file_bytes: u64) -> Result<Header, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(format!("is {file_bytes} bytes long, too short for a safetensors file"));
    }
    file.read_exact(&mut length).map_err(unreadable)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(format!("is not a safetensors file: its header would be {header_bytes} bytes long"));
    }
    if 8 + header_bytes > file_bytes {
        return Err(format!(
            "is truncated: {file_bytes} bytes long, its header alone needs {}",
            8 + header_bytes
        ));
    }
    let mut json = Vec::new();
    file.take(header_bytes).read_to_end(&mut json).map_err(unreadable)?;
    let entries: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&json).map_err(|error| format!("has a broken header: {error}"))?;
    let mut tensors = Vec::with_capacity(entries.len());
    let mut data_bytes = 0;
    for (name, value) in entries {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry =
            serde_json::from_value(value).map_err(|error| format!("has a broken entry {name}: {error}"))?;
        let (begin, end) = entry.data_offsets;
        if begin > end {
            return Err(format!("has a broken entry {name}: its data ends before it begins"));
        }
        if let Some(bits) = dtype_bits(&entry.dtype) {
            let elements = entry.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
            if elements.and_then(|elements| elements.checked_mul(bits)) != (end - begin).checked_mul(8) {
                return Err(format!(
                    "has a broken entry {name}: {} of shape {:?} does not take {} bytes",
                    entry.dtype,
                    entry.shape,
                    end - begin
                ));
            }
        }
        data_bytes = data_bytes.max(end);
        tensors.push(Tensor { name, shape: entry.shape, dtype: entry.dtype });
    }
    let wanted = 8 + header_bytes + data_bytes;
    match file_bytes {
        _ if file_bytes < wanted => {
            Err(format!("is truncated: {file_bytes} bytes long, its header promises {wanted}"))
        }
        _ if file_bytes > wanted => {
            Err(format!("is {file_bytes} bytes long, its header promises only {wanted}"))
        }
        _ => Ok(Header { tensors }),
    }
}

fn dtype_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 8,
        "F4" => 4,
        _ => return None,
    })
}
