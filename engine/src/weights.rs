//! The tensors of a model folder or a `.gguf` file, under Hugging Face's names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use lathe_kernels::Blocks;
use lathe_protocol::Quant;
use safetensors::{Dtype, tensor::TensorInfo};
use serde_json::Value;

use crate::{Error, Result, files, gguf::Gguf, model::ModelConfig};

/// Where a model's tensors come from. Tensors are read one at a time, when they are asked for.
pub enum Weights {
    Safetensors(SafetensorsFolder),
    Gguf(Gguf),
}

/// The safetensors files of one folder.
pub struct SafetensorsFolder {
    files: Vec<PathBuf>,
    tensors: HashMap<String, StoredTensor>,
}

/// A tensor as its file's header tells of it.
pub struct TensorPlace<'a> {
    /// The file's own.
    pub name: &'a str,
    pub dtype: String,
    pub dims: &'a [usize],
    pub file: &'a Path,
    /// Where its bytes begin in the file.
    pub start: u64,
    pub num_bytes: u64,
}

struct StoredTensor {
    file: usize,
    info: TensorInfo,
    /// Where the file's data begins.
    data_start: u64,
}

impl Weights {
    /// Opens a model folder (`model.safetensors`, or shards with their index) or a `.gguf` file.
    pub fn open(model: &Path) -> Result<Self> {
        if model.is_dir() {
            Ok(Self::Safetensors(SafetensorsFolder::open(model)?))
        } else {
            Ok(Self::Gguf(Gguf::open(model)?))
        }
    }

    pub fn config(&self, model: &Path) -> Result<ModelConfig> {
        match self {
            Self::Safetensors(_) => {
                let json: Value = files::read_json(&model.join("config.json"))?;
                let mut config = ModelConfig::from_json(&json)?;
                // Some tied checkpoints say so only by leaving the projection out.
                config.tie_word_embeddings |= !self.has("lm_head.weight");
                Ok(config)
            }
            Self::Gguf(gguf) => {
                let vocab_size = gguf.dims("model.embed_tokens.weight").map_or(0, |dims| dims[0]);
                ModelConfig::from_gguf(&gguf.metadata(), !gguf.has("lm_head.weight"), vocab_size)
            }
        }
    }

    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Safetensors(folder) => folder.has(name),
            Self::Gguf(gguf) => gguf.has(name),
        }
    }

    /// A tensor in f32.
    pub fn dense(&self, name: &str, config: &ModelConfig) -> Result<Tensor> {
        match self {
            Self::Safetensors(folder) => folder.read(name),
            Self::Gguf(gguf) => {
                let values = gguf.tensor(name, rotated_heads(name, config))?.dequantize()?;
                Ok(values.reshape(gguf.dims(name).unwrap_or_default())?)
            }
        }
    }

    /// A tensor in the blocks a GGUF stores it in; `None` if it is stored dense.
    pub fn quantized(&self, name: &str, config: &ModelConfig) -> Result<Option<Blocks>> {
        match self {
            Self::Safetensors(_) => Ok(None),
            Self::Gguf(gguf) => {
                let tensor = gguf.tensor(name, rotated_heads(name, config))?;
                Ok((!tensor.block_type().is_dense()).then_some(tensor))
            }
        }
    }

    /// The frequency factors that GGUF files carry in place of Llama 3's RoPE scaling.
    pub fn rope_factors(&self) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Gguf(gguf) if gguf.has("rope_freqs.weight") => {
                let factors = gguf.tensor("rope_freqs.weight", None)?.dequantize()?;
                Ok(Some(factors.flatten_all()?.to_vec1()?))
            }
            _ => Ok(None),
        }
    }

    pub fn num_parameters(&self) -> u64 {
        let elements = |dims: &[usize]| dims.iter().product::<usize>() as u64;
        match self {
            Self::Safetensors(folder) => {
                // Of MXFP4 the blocks and of NF4 the weights hold two values a byte, what goes with them none.
                let count = |(name, stored): (&String, &StoredTensor)| match stored.info.dtype {
                    _ if name.contains(".weight.") => 0,
                    Dtype::U8 if name.ends_with("_blocks") || name.ends_with(".weight") => {
                        2 * elements(&stored.info.shape)
                    }
                    Dtype::U8 => 0,
                    _ => elements(&stored.info.shape),
                };
                folder.tensors.iter().map(count).sum()
            }
            Self::Gguf(gguf) => gguf.header.tensors.values().map(|info| elements(&info.dims)).sum(),
        }
    }

    /// How the linears whose names `are_meant` are stored.
    pub fn nf4(&self, are_meant: impl Fn(&str) -> bool) -> Quant {
        let Self::Safetensors(folder) = self else { return Quant::None };
        let has = |part: &str| folder.names().any(|name| name.ends_with(part) && are_meant(name));
        match (has(".quant_state.bitsandbytes__nf4"), has(".nested_absmax")) {
            (false, _) => Quant::None,
            (true, false) => Quant::Nf4,
            (true, true) => Quant::Nf4Double,
        }
    }

    /// Stored types and how many tensors have each.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let mut count = |name: String| *counts.entry(name).or_default() += 1;
        match self {
            Self::Safetensors(folder) => {
                folder.tensors.values().for_each(|stored| count(format!("{:?}", stored.info.dtype)));
            }
            Self::Gguf(gguf) => {
                gguf.header.tensors.values().for_each(|info| count(format!("{:?}", info.block_type)));
            }
        }
        counts
    }

    /// Every tensor, by name.
    pub fn index(&self) -> Vec<TensorPlace<'_>> {
        let mut places: Vec<TensorPlace<'_>> = match self {
            Self::Safetensors(folder) => {
                let places = folder.tensors.iter().map(|(name, stored)| {
                    let (start, end) = stored.info.data_offsets;
                    TensorPlace {
                        name,
                        dtype: format!("{:?}", stored.info.dtype),
                        dims: &stored.info.shape,
                        file: &folder.files[stored.file],
                        start: stored.data_start + start as u64,
                        num_bytes: (end - start) as u64,
                    }
                });
                places.collect()
            }
            Self::Gguf(gguf) => {
                let places = gguf.header.tensors.iter().map(|(name, info)| TensorPlace {
                    name,
                    dtype: format!("{:?}", info.block_type),
                    dims: &info.dims,
                    file: &gguf.path,
                    start: info.start,
                    num_bytes: info.num_bytes,
                });
                places.collect()
            }
        };
        places.sort_unstable_by_key(|place| place.name);
        places
    }

    /// The files the tensors lie in, with their sizes.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let paths = match self {
            Self::Safetensors(folder) => folder.files.as_slice(),
            Self::Gguf(gguf) => std::slice::from_ref(&gguf.path),
        };
        paths
            .iter()
            .map(|path| (path.clone(), std::fs::metadata(path).map_or(0, |meta| meta.len())))
            .collect()
    }
}

/// The heads of a projection that llama.cpp's converter interleaves: q and k of Llama models only.
fn rotated_heads(name: &str, config: &ModelConfig) -> Option<usize> {
    if !config.family.interleaves_heads_in_gguf() {
        return None;
    }
    if name.contains(".q_proj.") {
        Some(config.num_heads)
    } else if name.contains(".k_proj.") {
        Some(config.num_kv_heads)
    } else {
        None
    }
}

impl SafetensorsFolder {
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        let mut shard_of: Vec<(String, String)> = Vec::new();
        let files: Vec<PathBuf> = if index.exists() {
            let json: Value = files::read_json(&index)?;
            let map = json
                .get("weight_map")
                .and_then(Value::as_object)
                .ok_or_else(|| Error::model(format!("The index has no weight_map: {}", index.display())))?;
            let places =
                map.iter().filter_map(|(tensor, shard)| Some((tensor.clone(), shard.as_str()?.to_owned())));
            shard_of.extend(places);
            let names: BTreeSet<&String> = shard_of.iter().map(|(_, shard)| shard).collect();
            let shards: Vec<PathBuf> = names.into_iter().map(|name| folder.join(name)).collect();
            if let Some(missing) = shards.iter().find(|path| !path.exists()) {
                let message = format!("A shard is missing that the index names: {}", missing.display());
                return Err(
                    Error::model(message).hint("the download may be incomplete: fetch the file again")
                );
            }
            shards
        } else if single.exists() {
            vec![single]
        } else {
            return Err(Error::model(format!("No model.safetensors and no index: {}", folder.display()))
                .hint("a model folder holds config.json, tokenizer.json and safetensors weights"));
        };
        let mut tensors = HashMap::new();
        for (file, path) in files.iter().enumerate() {
            read_header(path, file, &mut tensors)?;
        }
        for (tensor, shard) in &shard_of {
            let path = folder.join(shard);
            if tensors.get(tensor).is_none_or(|stored| files[stored.file] != path) {
                let message =
                    format!("The index places {tensor:?} in a shard that lacks it: {}", path.display());
                return Err(Error::model(message)
                    .hint("index and shards are not of one model: fetch them again together"));
            }
        }
        Ok(Self { files, tensors })
    }

    /// A single safetensors file, e.g. an adapter's.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut tensors = HashMap::new();
        read_header(path, 0, &mut tensors)?;
        Ok(Self { files: vec![path.to_path_buf()], tensors })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor in f32.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let stored = self.stored(name)?;
        let values: Vec<f32> = match stored.info.dtype {
            Dtype::F32 => self.values(stored, f32::from_le_bytes)?,
            Dtype::BF16 => self.values(stored, |bytes| half::bf16::from_le_bytes(bytes).to_f32())?,
            Dtype::F16 => self.values(stored, |bytes| half::f16::from_le_bytes(bytes).to_f32())?,
            Dtype::F64 => self.values(stored, |bytes| f64::from_le_bytes(bytes) as f32)?,
            other => {
                return Err(Error::model(format!(
                    "Tensor {name:?} has type {other:?}, not a float: {}",
                    self.files[stored.file].display()
                )));
            }
        };
        Ok(Tensor::from_vec(values, stored.info.shape.as_slice(), &Device::Cpu)?)
    }

    /// A tensor in bf16 where it is stored so, else in f32.
    pub fn read_compact(&self, name: &str) -> Result<Tensor> {
        let stored = self.stored(name)?;
        if stored.info.dtype != Dtype::BF16 {
            return self.read(name);
        }
        let values = self.values(stored, half::bf16::from_le_bytes)?;
        Ok(Tensor::from_vec(values, stored.info.shape.as_slice(), &Device::Cpu)?)
    }

    /// A tensor of bytes, of exactly this shape if one is given.
    pub fn read_bytes(&self, name: &str, shape: Option<&[usize]>) -> Result<Vec<u8>> {
        let stored = self.stored(name)?;
        let StoredTensor { info, file, .. } = stored;
        let shape = shape.unwrap_or(&info.shape);
        if info.dtype != Dtype::U8 || info.shape != shape {
            return Err(Error::model(format!(
                "Tensor {name:?} is {:?} of shape {:?}, not U8 of shape {shape:?}: {}",
                info.dtype,
                info.shape,
                self.files[*file].display()
            )));
        }
        self.values(stored, |[byte]| byte)
    }

    fn stored(&self, name: &str) -> Result<&StoredTensor> {
        self.tensors.get(name).ok_or_else(|| {
            let folder = self.files.first().and_then(|file| file.parent()).unwrap_or(Path::new(""));
            Error::model(format!("The model has no tensor {name:?}: {}", folder.display()))
        })
    }

    /// A tensor's elements of `N` bytes, read and converted a part at a time: of the largest tables no second copy exists.
    fn values<const N: usize, T>(
        &self,
        stored: &StoredTensor,
        convert: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let path = &self.files[stored.file];
        let (start, end) = stored.info.data_offsets;
        let mut reader = File::open(path).map_err(Error::io("open", path))?;
        reader.seek(SeekFrom::Start(stored.data_start + start as u64)).map_err(Error::io("read", path))?;
        let mut values = Vec::with_capacity((end - start) / N);
        let mut part = vec![0; (end - start).min(READ_BYTES)];
        let mut left = end - start;
        while left > 0 {
            let part = &mut part[..left.min(READ_BYTES)];
            reader.read_exact(part).map_err(Error::io("read", path))?;
            values.extend(part.as_chunks().0.iter().map(|bytes| convert(*bytes)));
            left -= part.len();
        }
        Ok(values)
    }
}

/// Read at a time; elements of every size end with it.
const READ_BYTES: usize = 4 << 20;

/// Longest header that is believed, in bytes (the safetensors crate's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;

fn read_header(path: &Path, file: usize, tensors: &mut HashMap<String, StoredTensor>) -> Result<()> {
    let broken = |what: String| {
        Error::model(format!("{what}: {}", path.display())).hint("the file may be cut short: fetch it again")
    };
    let mut reader = File::open(path).map_err(Error::io("open the weights", path))?;
    let file_bytes = reader.metadata().map_err(Error::io("read", path))?.len();
    let mut length = [0; 8];
    reader
        .read_exact(&mut length)
        .map_err(|_| broken(format!("Not a safetensors file, only {file_bytes} bytes long")))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > file_bytes {
        return Err(broken(format!(
            "Not a safetensors file: header of {header_bytes} bytes in {file_bytes}"
        )));
    }
    let mut header = vec![0; header_bytes as usize];
    reader.read_exact(&mut header).map_err(Error::io("read", path))?;
    let entries: BTreeMap<String, Value> = serde_json::from_slice(&header)
        .map_err(|error| broken(format!("Broken safetensors header: {error}")))?;
    let data_start = 8 + header_bytes;
    let mut data_bytes = 0;
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let info: TensorInfo = serde_json::from_value(entry)
            .map_err(|error| broken(format!("Broken entry of tensor {name:?}: {error}")))?;
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, dim| bits.checked_mul(*dim));
        if end < start || bits.map(|bits| bits.div_ceil(8)) != Some(end - start) {
            return Err(broken(format!("Tensor {name:?} of shape {:?} has data {start}..{end}", info.shape)));
        }
        data_bytes = data_bytes.max(end as u64);
        tensors.insert(name, StoredTensor { file, info, data_start });
    }
    if file_bytes != data_start + data_bytes {
        let expected = data_start + data_bytes;
        return Err(broken(format!("Safetensors file has {file_bytes} bytes, its header says {expected}")));
    }
    Ok(())
}
