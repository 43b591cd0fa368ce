//! A `.gguf` file as a whole model: its metadata and its tensors under Hugging Face's names.

mod header;

use std::{
    fs::File,
    io::{BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

pub use header::{Header, TensorInfo, Value};
use lathe_kernels::Blocks;

use crate::{Error, Result};

/// An open GGUF file. Tensors are read when they are asked for.
pub struct Gguf {
    pub path: PathBuf,
    pub header: Header,
}

/// Typed look-ups in a GGUF's metadata, with errors that name the key.
pub struct GgufMetadata<'a>(pub &'a Header);

impl GgufMetadata<'_> {
    pub fn get(&self, key: &str) -> Result<&Value> {
        self.0.metadata.get(key).ok_or_else(|| Error::model(format!("The GGUF has no metadata {key:?}")))
    }

    pub fn string(&self, key: &str) -> Result<&str> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            other => Err(Error::model(format!("GGUF metadata {key:?} is {other:?}, not a string"))),
        }
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        match self.get(key)? {
            Value::Integer(value) => Ok(*value as f64),
            Value::Float(value) => Ok(*value),
            other => Err(Error::model(format!("GGUF metadata {key:?} is {other:?}, not a number"))),
        }
    }
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the GGUF", path))?;
        let header = Header::read(&mut BufReader::new(file)).map_err(|problem| {
            Error::model(format!("Not a readable GGUF: {problem}: {}", path.display()))
                .hint("the download may be incomplete: compare its size or hash with the source")
        })?;
        Ok(Self { path: path.to_path_buf(), header })
    }

    pub fn metadata(&self) -> GgufMetadata<'_> {
        GgufMetadata(&self.header)
    }

    pub fn has(&self, hf_name: &str) -> bool {
        self.info(hf_name).is_some()
    }

    pub fn dims(&self, hf_name: &str) -> Option<&[usize]> {
        self.info(hf_name).map(|info| info.dims.as_slice())
    }

    fn info(&self, hf_name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(&self.name(hf_name))
    }

    /// Hugging Face's name of a tensor -> that of this file.
    fn name(&self, hf_name: &str) -> String {
        let name = gguf_name(hf_name);
        // gpt-oss files name it by its place after attention, the others by the MLP it stands before.
        let after_attention = name.replace("ffn_norm", "post_attention_norm");
        if self.header.tensors.contains_key(&after_attention) { after_attention } else { name }
    }

    /// A tensor as it is stored, its rows those of its last dimension; but for `q_proj` and `k_proj` of Llama files,
    /// whose rows are put back into Hugging Face's order: llama.cpp's converter interleaves the two halves of each
    /// head for its rotary kernel.
    pub fn tensor(&self, hf_name: &str, rotated_heads: Option<usize>) -> Result<Blocks> {
        let name = self.name(hf_name);
        let Some(TensorInfo { block_type, dims, start, num_bytes }) = self.header.tensors.get(&name) else {
            return Err(Error::model(format!("The GGUF has no tensor {name:?}: {}", self.path.display())));
        };
        let mut bytes = vec![0; *num_bytes as usize];
        let mut file = File::open(&self.path).map_err(Error::io("open the GGUF", &self.path))?;
        file.seek(SeekFrom::Start(*start)).map_err(Error::io("read", &self.path))?;
        file.read_exact(&mut bytes).map_err(Error::io("read", &self.path))?;
        let width = if dims.len() == 1 && block_type.is_dense() { 1 } else { dims[dims.len() - 1] };
        let num_rows = dims.iter().product::<usize>() / width;
        let blocks = Blocks::new(bytes, *block_type, num_rows, width)?;
        let Some(num_heads) = rotated_heads else { return Ok(blocks) };
        if !num_rows.is_multiple_of(2 * num_heads) {
            return Err(Error::model(format!("Tensor {name:?} of shape {dims:?} is no {num_heads} heads")));
        }
        Ok(uninterleave_rows(&blocks, num_rows / num_heads))
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
    if rest == "self_attn.sinks" {
        return format!("blk.{layer}.attn_sinks.weight");
    }
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
        "mlp.gate" | "mlp.router" => "ffn_gate_inp",
        "mlp.experts.gate_proj" => "ffn_gate_exps",
        "mlp.experts.up_proj" => "ffn_up_exps",
        "mlp.experts.down_proj" => "ffn_down_exps",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        other => other,
    };
    format!("blk.{layer}.{module}.{suffix}")
}

/// Row h·D + 2j + i of the file is row h·D + i·D/2 + j of the model (i in 0..2).
fn uninterleave_rows(blocks: &Blocks, head_dim: usize) -> Blocks {
    blocks.reordered(|row| {
        let (first, within) = (row / head_dim * head_dim, row % head_dim);
        first + within % (head_dim / 2) * 2 + within / (head_dim / 2)
    })
}
