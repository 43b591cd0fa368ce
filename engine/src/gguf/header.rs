//! The header of a GGUF file: metadata, and where each tensor lies.
//!
//! Read here and not by candle, which knows no MXFP4 and refuses a file that has it.

use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom},
};

use lathe_kernels::BlockType;

/// Every integer of a file becomes an i64, every float an f64.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

#[derive(Debug)]
pub struct TensorInfo {
    pub block_type: BlockType,
    /// Outermost first, the reverse of the file's order.
    pub dims: Vec<usize>,
    /// Where its data lies in the file.
    pub start: u64,
    pub num_bytes: u64,
}

#[derive(Debug)]
pub struct Header {
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, TensorInfo>,
}

const DEFAULT_ALIGNMENT: u64 = 32;
/// Deeper arrays of arrays are taken for a broken file.
const MAX_DEPTH: usize = 4;

/// What is wrong, in the middle of a sentence.
type Result<T> = std::result::Result<T, String>;

impl Header {
    /// Errors: anything but a whole GGUF of version 2 or 3, a tensor of a type that is not supported.
    pub fn read(file: &mut (impl Read + Seek)) -> Result<Self> {
        let broken = |error: std::io::Error| error.to_string();
        let file_bytes = file.seek(SeekFrom::End(0)).map_err(broken)?;
        file.rewind().map_err(broken)?;
        let mut reader = Reader { inner: file, file_bytes, position: 0 };
        if &reader.bytes::<4>()? != b"GGUF" {
            return Err("it does not begin with GGUF".into());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version} is unknown"));
        }
        let (num_tensors, num_keys) = (reader.u64()?, reader.u64()?);
        let mut metadata = HashMap::new();
        for _ in 0..num_keys {
            let (key, kind) = (reader.string()?, reader.u32()?);
            metadata.insert(key, reader.value(kind, 0)?);
        }
        let mut tensors = HashMap::new();
        for _ in 0..num_tensors {
            let (name, info) = reader.tensor()?;
            tensors.insert(name, info);
        }
        let alignment = match metadata.get("general.alignment") {
            Some(Value::Integer(alignment)) => u64::try_from(*alignment).unwrap_or(0).max(1),
            _ => DEFAULT_ALIGNMENT,
        };
        let data_start = reader.position.next_multiple_of(alignment);
        for (name, TensorInfo { start, num_bytes, .. }) in &mut tensors {
            *start = start.saturating_add(data_start);
            let end = start.saturating_add(*num_bytes);
            if end > file_bytes {
                return Err(format!("tensor {name:?} ends at byte {end} of {file_bytes}"));
            }
        }
        Ok(Self { metadata, tensors })
    }
}

struct Reader<'a, R> {
    inner: &'a mut R,
    file_bytes: u64,
    position: u64,
}

impl<R: Read> Reader<'_, R> {
    /// So many bytes, if the file still has them: a broken length allocates nothing.
    fn take(&mut self, count: u64) -> Result<Vec<u8>> {
        let end = self.position.checked_add(count).filter(|end| *end <= self.file_bytes);
        let end = end.ok_or_else(|| format!("its header goes on past its {} bytes", self.file_bytes))?;
        let mut bytes = vec![0; count as usize];
        self.inner.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        self.position = end;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner
            .read_exact(&mut bytes)
            .map_err(|_| format!("it is only {} bytes long", self.file_bytes))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        Ok(String::from_utf8_lossy(&self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(i64::from(u8::from_le_bytes(self.bytes()?))),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.bytes()?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.bytes()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.bytes()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.bytes()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.bytes()?))),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::String(self.string()?),
            9 if depth < MAX_DEPTH => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Every element takes bytes of the file, so a broken count ends in an error.
                let values: Result<_> = (0..count).map(|_| self.value(kind, depth + 1)).collect();
                Value::Array(values?)
            }
            10 => {
                let value = self.u64()?;
                Value::Integer(i64::try_from(value).map_err(|_| format!("the number {value} is too large"))?)
            }
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(format!("a value of type {kind}")),
        })
    }

    /// A tensor's name and entry, `start` counted from where data begins.
    fn tensor(&mut self) -> Result<(String, TensorInfo)> {
        let name = self.string()?;
        let num_dims = self.u32()?;
        if !(1..=4).contains(&num_dims) {
            return Err(format!("tensor {name:?} has {num_dims} dimensions"));
        }
        let mut dims =
            (0..num_dims).map(|_| self.u64().map(|dim| dim as usize)).collect::<Result<Vec<usize>>>()?;
        dims.reverse();
        let number = self.u32()?;
        let start = self.u64()?;
        let block_type = BlockType::from_ggml(number).ok_or_else(|| {
            format!(
                "tensor {name:?} has type number {number}, which is not supported (F32, F16, BF16, Q4_0 to Q8_0, \
                 Q2_K to Q6_K and MXFP4 are)"
            )
        })?;
        let values = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64));
        let num_bytes = values
            .filter(|values| *values > 0 && dims[dims.len() - 1].is_multiple_of(block_type.num_values()))
            .and_then(|values| {
                (values / block_type.num_values() as u64).checked_mul(block_type.num_bytes() as u64)
            })
            .ok_or_else(|| format!("tensor {name:?} of type {block_type:?} has shape {dims:?}"))?;
        Ok((name, TensorInfo { block_type, dims, start, num_bytes }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn header(keys: u64, tensors: u64, rest: &[&[u8]]) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes.extend(rest.concat());
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<Header> {
        Header::read(&mut Cursor::new(bytes))
    }

    #[test]
    fn broken_headers_are_refused_with_what_is_wrong() {
        let check = |bytes: Vec<u8>, expected: &str| {
            let problem = read(bytes).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        };
        check(b"GGML".to_vec(), "does not begin with GGUF");
        check(b"GGUF\x01\0\0\0".to_vec(), "version 1");
        check(header(1, 0, &[&u64::MAX.to_le_bytes()]), "past its 32 bytes");
        check(header(1, 0, &[&[1, 0, 0, 0, 0, 0, 0, 0], b"k", &[99, 0, 0, 0]]), "a value of type 99");
        let nested = [9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(8);
        check(header(1, 0, &[&[1, 0, 0, 0, 0, 0, 0, 0], b"k", &[9, 0, 0, 0], &nested]), "a value of type 9");
        let tensor = |dims: &[u64], number: u32| {
            let mut bytes = [1, 0, 0, 0, 0, 0, 0, 0, b't'].to_vec();
            bytes.extend((dims.len() as u32).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(number.to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
            header(0, 1, &[&bytes])
        };
        check(tensor(&[32], 16), "type number 16");
        check(tensor(&[33], 2), "has shape [33]");
        check(tensor(&[0], 0), "has shape [0]");
        check(tensor(&[u64::MAX, 4], 0), "has shape");
        check(tensor(&[], 0), "0 dimensions");
        check(tensor(&[32, 2], 2), "ends at byte");
    }
}
