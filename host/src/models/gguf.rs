//! The header of a GGUF file: architecture, parameters, and whether all of its data is there.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek},
};

use lathe_protocol::{ExpertFormat, ExpertsShape, ModelShape, Quant};

const MAX_KEYS: u64 = 1 << 20;
const MAX_TENSORS: u64 = 1 << 20;
const MAX_KEPT_STRING_BYTES: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: u64 = 32;

pub(crate) struct Header {
    pub architecture: Option<String>,
    pub license: Option<String>,
    /// None if a size is missing.
    pub shape: Option<ModelShape>,
    pub num_parameters: u64,
}

/// Reads the header and compares the file's length with what it promises. The error is a sentence about the file.
pub(crate) fn read_header(reader: impl Read + Seek, file_bytes: u64) -> Result<Header, String> {
    let mut reader = Reader { inner: reader, position: 0, file_bytes };
    let (header, wanted) = reader.header().map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            format!("is truncated: its header goes on past its {file_bytes} bytes")
        }
        io::ErrorKind::InvalidData => format!("is not a sound GGUF file: {error}"),
        _ => format!("cannot be read: {error}"),
    })?;
    if file_bytes < wanted {
        return Err(format!("is truncated: {file_bytes} bytes long, its header promises {wanted}"));
    }
    Ok(header)
}

/// Whether the header ends within a file's first bytes.
pub(crate) fn is_header_whole(head: &[u8], file_bytes: u64) -> bool {
    let mut reader = Reader { inner: io::Cursor::new(head), position: 0, file_bytes };
    !matches!(reader.header(), Err(error) if error.kind() == io::ErrorKind::UnexpectedEof)
}

struct Reader<R> {
    inner: R,
    position: u64,
    file_bytes: u64,
}

impl<R: Read + Seek> Reader<R> {
    /// The header, and how long the file must be.
    fn header(&mut self) -> io::Result<(Header, u64)> {
        if &self.bytes::<4>()? != b"GGUF" {
            return Err(broken("it does not begin with GGUF"));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(broken(format!("version {version} is unknown")));
        }
        let (num_tensors, num_keys) = (self.u64()?, self.u64()?);
        if num_tensors > MAX_TENSORS || num_keys > MAX_KEYS {
            return Err(broken(format!("{num_tensors} tensors and {num_keys} keys")));
        }

        let (mut architecture, mut license) = (None, None);
        let mut sizes = BTreeMap::new();
        let mut alignment = DEFAULT_ALIGNMENT;
        for _ in 0..num_keys {
            let key = self.string()?;
            let kind = self.u32()?;
            match (key.as_str(), kind) {
                ("general.architecture", 8) => architecture = Some(self.string()?),
                ("general.license", 8) => license = Some(self.string()?),
                ("general.alignment", 4) => alignment = u64::from(self.u32()?).max(1),
                (_, 4) => drop(sizes.insert(key, self.u32()? as usize)),
                _ => self.skip_value(kind)?,
            }
        }

        let (mut vocab_size, mut is_tied) = (None, true);
        let mut num_parameters = 0u64;
        let (mut expert_values, mut expert_bytes) = (0u64, 0u64);
        let mut data_bytes = 0u64;
        for _ in 0..num_tensors {
            let name = self.string()?;
            let num_dims = self.u32()?;
            if num_dims > 8 {
                return Err(broken(format!("tensor {name} has {num_dims} dimensions")));
            }
            let mut elements = 1u64;
            let mut last_dim = 0;
            for _ in 0..num_dims {
                let dim = self.u64()?;
                last_dim = dim as usize;
                elements =
                    elements.checked_mul(dim).ok_or_else(|| broken(format!("tensor {name} is huge")))?;
            }
            match name.as_str() {
                "token_embd.weight" => vocab_size = Some(last_dim),
                "output.weight" => is_tied = false,
                _ => {}
            }
            let kind = self.u32()?;
            let offset = self.u64()?;
            num_parameters = num_parameters.saturating_add(elements);
            let size = block(kind).map_or(0, |(block, bytes)| elements.div_ceil(block).saturating_mul(bytes));
            if name.contains("_exps.weight") {
                expert_values = expert_values.saturating_add(elements);
                expert_bytes = expert_bytes.saturating_add(size);
            }
            data_bytes = data_bytes.max(offset.saturating_add(size));
        }
        let data_start = self.position.div_ceil(alignment).saturating_mul(alignment);
        let shape = architecture.as_ref().zip(vocab_size).and_then(|(architecture, vocab_size)| {
            let size = |key: &str| sizes.get(&format!("{architecture}.{key}")).copied();
            let (hidden_size, num_attention_heads) =
                (size("embedding_length")?, size("attention.head_count")?);
            Some(ModelShape {
                num_layers: size("block_count")?,
                hidden_size,
                intermediate_size: size("expert_feed_forward_length").or(size("feed_forward_length"))?,
                num_attention_heads,
                num_key_value_heads: size("attention.head_count_kv").unwrap_or(num_attention_heads),
                head_dim: size("attention.key_length").or(hidden_size.checked_div(num_attention_heads))?,
                vocab_size,
                context_length: size("context_length")?,
                tie_word_embeddings: is_tied,
                is_gguf: true,
                linears: Quant::None,
                experts: size("expert_count").filter(|count| *count > 0).zip(size("expert_used_count")).map(
                    |(num_experts, experts_per_token)| ExpertsShape {
                        num_experts,
                        experts_per_token,
                        format: ExpertFormat::Blocks(
                            expert_bytes.saturating_mul(256).div_ceil(expert_values.max(1)),
                        ),
                    },
                ),
            })
        });
        let header = Header { architecture, license, shape, num_parameters };
        Ok((header, data_start.saturating_add(data_bytes)))
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.u64()?;
        if length > MAX_KEPT_STRING_BYTES {
            return Err(broken(format!("a name is {length} bytes long")));
        }
        let mut bytes = vec![0; length as usize];
        self.inner.read_exact(&mut bytes)?;
        self.position += length;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let end = self.position.checked_add(bytes).filter(|end| *end <= self.file_bytes);
        self.position = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.inner.seek_relative(bytes.cast_signed())
    }

    fn skip_value(&mut self, kind: u32) -> io::Result<()> {
        match kind {
            8 => {
                let length = self.u64()?;
                self.skip(length)
            }
            9 => {
                let kind = self.u32()?;
                let count = self.u64()?;
                match scalar_bytes(kind) {
                    Some(bytes) => self.skip(count.saturating_mul(bytes)),
                    // Every element takes bytes of the file, so this ends.
                    None if kind == 8 => (0..count).try_for_each(|_| self.skip_value(kind)),
                    None => Err(broken(format!("an array of type {kind}"))),
                }
            }
            _ => match scalar_bytes(kind) {
                Some(bytes) => self.skip(bytes),
                None => Err(broken(format!("a value of type {kind}"))),
            },
        }
    }
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Elements a block and bytes a block of a ggml type; none for one we do not know.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        24 => (1, 1),
        27 | 28 => (1, 8),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        23 => (256, 136),
        39 => (32, 17),
        _ => return None,
    })
}
