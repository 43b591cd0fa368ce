//! A `.gguf` file as a whole model: its metadata and its tensors under Hugging Face's names.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QStorage, QTensor,
        gguf_file::{Content, Value},
    },
};

use lathe_kernels::{AffineBlock, CodeBits, FrozenLinear, QuantizedLinear};

use crate::{Error, Result, error::without_backtrace};

/// An open GGUF file. Tensors are read when they are asked for.
pub struct Gguf {
    pub path: PathBuf,
    pub content: Content,
    reader: Mutex<BufReader<File>>,
}

/// Typed look-ups in a GGUF's metadata, with errors that name the key.
pub struct GgufMetadata<'a>(pub &'a Content);

impl GgufMetadata<'_> {
    fn get(&self, key: &str) -> Result<&Value> {
        self.0.metadata.get(key).ok_or_else(|| Error::model(format!("The GGUF has no metadata {key:?}")))
    }

    pub fn string(&self, key: &str) -> Result<String> {
        match self.get(key)? {
            Value::String(text) => Ok(text.clone()),
            other => {
                Err(Error::model(format!("GGUF metadata {key:?} is {:?}, not a string", other.value_type())))
            }
        }
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        match self.get(key)? {
            Value::U8(v) => Ok(f64::from(*v)),
            Value::I8(v) => Ok(f64::from(*v)),
            Value::U16(v) => Ok(f64::from(*v)),
            Value::I16(v) => Ok(f64::from(*v)),
            Value::U32(v) => Ok(f64::from(*v)),
            Value::I32(v) => Ok(f64::from(*v)),
            Value::U64(v) => Ok(*v as f64),
            Value::I64(v) => Ok(*v as f64),
            Value::F32(v) => Ok(f64::from(*v)),
            Value::F64(v) => Ok(*v),
            other => {
                Err(Error::model(format!("GGUF metadata {key:?} is {:?}, not a number", other.value_type())))
            }
        }
    }
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the GGUF", path))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader).map_err(|error| {
            let error = without_backtrace(&error);
            Error::model(format!("Not a readable GGUF: {error}: {}", path.display()))
                .hint("the download may be incomplete: compare its size or hash with the source")
        })?;
        Ok(Self { path: path.to_path_buf(), content, reader: Mutex::new(reader) })
    }

    pub fn metadata(&self) -> GgufMetadata<'_> {
        GgufMetadata(&self.content)
    }

    fn reader(&self) -> MutexGuard<'_, BufReader<File>> {
        self.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn has(&self, hf_name: &str) -> bool {
        self.content.tensor_infos.contains_key(&gguf_name(hf_name))
    }

    /// Number of rows of a 2-D tensor.
    pub fn num_rows(&self, hf_name: &str) -> Option<usize> {
        self.content.tensor_infos.get(&gguf_name(hf_name)).and_then(|info| info.shape.dims().first().copied())
    }

    /// A tensor as it is stored, but for `q_proj` and `k_proj` of Llama files, whose rows are put back into Hugging
    /// Face's order: llama.cpp's converter interleaves the two halves of each head for its rotary kernel.
    pub fn tensor(&self, hf_name: &str, rotated_heads: Option<usize>) -> Result<QTensor> {
        let name = gguf_name(hf_name);
        if !self.content.tensor_infos.contains_key(&name) {
            return Err(Error::model(format!("The GGUF has no tensor {name:?}: {}", self.path.display())));
        }
        let tensor = self.content.tensor(&mut *self.reader(), &name, &Device::Cpu).map_err(|error| {
            let error = without_backtrace(&error);
            Error::model(format!("Cannot read tensor {name:?}: {error}: {}", self.path.display()))
                .hint("the file may be cut short: compare its size or hash with the source")
        })?;
        match rotated_heads {
            Some(num_heads) => uninterleave_rows(&tensor, num_heads),
            None => Ok(tensor),
        }
    }
}

/// Hugging Face's name of a tensor -> llama.cpp's.
fn gguf_name(hf_name: &str) -> String {
    match hf_name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let Some((layer, rest)) = hf_name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
    else {
        return hf_name.into();
    };
    let (module, suffix) = rest.rsplit_once('.').unwrap_or((rest, "weight"));
    let module = match module {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        other => other,
    };
    format!("blk.{layer}.{module}.{suffix}")
}

/// Row h·D + 2j + i of the file is row h·D + i·D/2 + j of the model (i in 0..2). Works on whole blocks: a block never
/// spans two rows.
fn uninterleave_rows(tensor: &QTensor, num_heads: usize) -> Result<QTensor> {
    let num_rows = tensor.shape().dims()[0];
    let head_dim = num_rows / num_heads;
    let data = tensor.data()?;
    let row_bytes = data.len() / num_rows;
    let mut rows = Vec::with_capacity(data.len());
    for head in 0..num_heads {
        for i in 0..2 {
            for j in 0..head_dim / 2 {
                let source = head * head_dim + 2 * j + i;
                rows.extend_from_slice(&data[source * row_bytes..(source + 1) * row_bytes]);
            }
        }
    }
    let storage = QStorage::from_data(rows.into(), &Device::Cpu, tensor.dtype())?;
    Ok(QTensor::new(storage, tensor.shape().clone())?)
}

/// A quantised weight for inference on the CPU: `y = x Wᵀ`, no gradient.
pub enum QuantizedWeight {
    /// 32-value blocks, in our tiles.
    Tiled(QuantizedLinear),
    /// k-quants, in candle's kernels.
    Candle(QTensor),
}

impl QuantizedWeight {
    /// Takes the blocks of 32 values (`Q4_0`, `Q4_1`, `Q8_0`) as they are, repacked once; candle's products of them
    /// are slow, or need widths divisible by 256. `Q5_0` and `Q5_1` become `Q8_0`, which is finer. The k-quants stay.
    pub fn new(tensor: QTensor) -> Result<Self> {
        let tensor = match tensor.dtype() {
            GgmlDType::Q4_0 | GgmlDType::Q4_1 | GgmlDType::Q8_0 => tensor,
            GgmlDType::Q5_0 | GgmlDType::Q5_1 | GgmlDType::Q8_1 => {
                QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, GgmlDType::Q8_0)?
            }
            _ => return Ok(Self::Candle(tensor)),
        };
        let (out_features, in_features) = tensor.shape().dims2()?;
        let data = tensor.data()?;
        let dtype = tensor.dtype();
        let bits = if dtype == GgmlDType::Q8_0 { CodeBits::Eight } else { CodeBits::Four };
        let blocks = data.chunks_exact(dtype.type_size()).map(|block| affine_block(dtype, block));
        Ok(Self::Tiled(QuantizedLinear::new(out_features, in_features, bits, blocks)?))
    }

    /// (T,C) -> (T,O).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        match self {
            Self::Tiled(weight) => Ok(weight.forward(&x)?),
            Self::Candle(_) if x.dim(0)? >= DEQUANTIZE_FROM_TOKENS => {
                Ok(FrozenLinear::new(&self.dequantize()?, None)?.forward(&x)?)
            }
            Self::Candle(weight) => Ok(x.apply_op1_no_bwd(weight)?),
        }
    }

    /// Rows of the weight in f32, (N, C), as an embedding table gives them.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        Ok(match self {
            Self::Tiled(weight) => weight.rows(rows)?,
            Self::Candle(weight) => weight.embedding(&Tensor::new(rows, &Device::Cpu)?)?,
        })
    }

    /// The whole weight in f32, (O, C).
    pub fn dequantize(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Tiled(weight) => weight.dequantize()?,
            Self::Candle(weight) => weight.dequantize(&Device::Cpu)?,
        })
    }

    /// (O, C).
    pub fn shape(&self) -> Result<(usize, usize)> {
        Ok(match self {
            Self::Tiled(weight) => weight.shape(),
            Self::Candle(weight) => weight.shape().dims2()?,
        })
    }
}

/// Tokens from which a k-quant is cheaper dequantised once than multiplied block by block.
const DEQUANTIZE_FROM_TOKENS: usize = 24;

/// One block of llama.cpp's layout as `value = d · code + m`, codes unsigned.
///
/// `Q4_0`: f16 d, 16 bytes (low nibbles are values 0..16), offset 8. `Q4_1`: f16 d, f16 m, 16 bytes. `Q8_0`: f16 d,
/// 32 signed bytes.
fn affine_block(dtype: GgmlDType, block: &[u8]) -> AffineBlock {
    let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let d = half(0);
    let nibbles = |bytes: &[u8]| -> [u8; 32] {
        std::array::from_fn(|k| if k < 16 { bytes[k] & 15 } else { bytes[k - 16] >> 4 })
    };
    match dtype {
        GgmlDType::Q4_0 => AffineBlock { d, m: -8.0 * d, codes: nibbles(&block[2..]) },
        GgmlDType::Q4_1 => AffineBlock { d, m: half(2), codes: nibbles(&block[4..]) },
        _ => AffineBlock { d, m: -128.0 * d, codes: std::array::from_fn(|k| block[2 + k] ^ 0x80) },
    }
}
