//! Experts as the families' files have them: fused or one linear an expert, in floats, MXFP4, NF4 or a GGUF's blocks.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lathe_kernels::{Blocks, ExpertMatrices, Experts, FrozenLinear, Mxfp4, Nf4};

use super::{LoadFor, Loader, Source, check_shape, of_shape};
use crate::{
    Error, Result,
    family::ModelFamily,
    gguf::Gguf,
    model::{BaseLinear, ExpertParameter, ExpertsConfig, MixtureOfExperts, ModelConfig, Projection},
    weights::Weights,
};

/// Of one matrix (O, C) an expert.
#[derive(Clone, Copy)]
struct Shape {
    num_experts: usize,
    out_features: usize,
    in_features: usize,
}

/// Matrices and their biases (E, O).
type Biased = (ExpertMatrices, Tensor);

impl Loader<'_, '_> {
    pub(super) fn experts(
        &self,
        layer: usize,
        module: &str,
        config: &ExpertsConfig,
    ) -> Result<MixtureOfExperts> {
        let ModelConfig { hidden_size, intermediate_size, .. } = *self.config;
        let ExpertsConfig { num_experts, experts_per_token, activation, router_softmax, .. } = *config;
        // 1. The router
        let is_qwen = self.config.family == ModelFamily::Qwen3Moe;
        let router = format!("{module}.{}", if is_qwen { "gate" } else { "router" });
        let weight = self.dense(&format!("{router}.weight"), &[num_experts, hidden_size])?;
        let bias = format!("{router}.bias");
        let bias = self.has(&bias).then(|| self.dense(&bias, &[num_experts])).transpose()?;
        let router = Projection {
            name: router,
            base: BaseLinear::Dense(self.compute.linear(FrozenLinear::new(&weight, bias.as_ref())?)?),
            lora: Vec::new(),
            index: layer as u64 * 7 + 7,
        };
        // 2. The experts
        let gate_up = Shape { num_experts, out_features: 2 * intermediate_size, in_features: hidden_size };
        let down = Shape { num_experts, out_features: hidden_size, in_features: intermediate_size };
        let module = format!("{module}.experts");
        let parameter =
            |name: &str, Shape { num_experts, out_features, in_features }: Shape, index| ExpertParameter {
                name: format!("{module}.{name}"),
                num_experts,
                out_features,
                in_features,
                in_halves: is_qwen && name == "gate_up_proj",
                lora: Vec::new(),
                // The places that a dense block's linears have.
                index: layer as u64 * 7 + index,
            };
        let parameters = (parameter("gate_up_proj", gate_up, 5), parameter("down_proj", down, 6));
        let (gate_up, down) = match &self.source {
            Source::Stored(Weights::Gguf(gguf)) => (
                self.in_blocks(gguf, &[format!("{module}.gate_proj"), format!("{module}.up_proj")], gate_up)?,
                self.in_blocks(gguf, &[format!("{module}.down_proj")], down)?,
            ),
            _ if is_qwen => (
                self.linears(gate_up, |e| ["gate", "up"].map(|name| format!("{module}.{e}.{name}_proj")))?,
                self.linears(down, |e| [format!("{module}.{e}.down_proj")])?,
            ),
            _ if self.has(&format!("{module}.gate_up_projs.0.weight")) => (
                self.linears(gate_up, |e| [format!("{module}.gate_up_projs.{e}")])?,
                self.linears(down, |e| [format!("{module}.down_projs.{e}")])?,
            ),
            _ => (
                self.fused(&format!("{module}.gate_up_proj"), gate_up)?,
                self.fused(&format!("{module}.down_proj"), down)?,
            ),
        };
        let experts = Experts::new((gate_up.0, &gate_up.1), (down.0, &down.1), activation)?;
        let experts = self.compute.experts(experts)?;
        Ok(MixtureOfExperts {
            router,
            experts: Arc::new(experts),
            experts_per_token,
            router_softmax,
            gate_up: parameters.0,
            down: parameters.1,
            fixed_updates: None,
        })
    }

    /// Stored in a GGUF, whose parts (E, O/n, C) take turns in the model's outputs; biases are (E, O/n).
    fn in_blocks(&self, gguf: &Gguf, parts: &[String], shape: Shape) -> Result<Biased> {
        let Shape { num_experts, out_features, in_features } = shape;
        let width = out_features / parts.len();
        let matrices: Vec<Blocks> = parts
            .iter()
            .map(|part| {
                let name = format!("{part}.weight");
                let (blocks, dims) = (gguf.tensor(&name, None)?, gguf.dims(&name).unwrap_or_default());
                check_shape(&name, dims, &[num_experts, width, in_features])?;
                Ok(blocks)
            })
            .collect::<Result<_>>()?;
        let biases: Vec<Tensor> =
            parts.iter().map(|part| self.bias(part, &[num_experts, width])).collect::<Result<_>>()?;
        // (E, O/n, n) -> (E, O)
        let biases = Tensor::stack(&biases, 2)?.reshape((num_experts, out_features))?;
        Ok((ExpertMatrices::Blocks(matrices), biases))
    }

    /// One linear an expert, or several that take turns in the outputs; in NF4 if stored so or to be.
    fn linears<const N: usize>(&self, shape: Shape, names: impl Fn(usize) -> [String; N]) -> Result<Biased> {
        let Shape { num_experts, out_features, in_features } = shape;
        let part = [out_features / N, in_features];
        let (mut packed, mut dense, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for expert in 0..num_experts {
            let names = names(expert);
            let in_nf4: Vec<Option<Nf4>> = names
                .iter()
                .map(|name| self.nf4(&format!("{name}.weight"), (part[0], part[1])))
                .collect::<Result<_>>()?;
            match in_nf4.into_iter().collect::<Option<Vec<Nf4>>>() {
                Some(parts) => packed.push(parts),
                None => dense.push(self.dense_parts(&names, part)?),
            }
            let of_parts: Vec<Tensor> =
                names.iter().map(|name| self.bias(name, &part[..1])).collect::<Result<_>>()?;
            // (O/n, n) -> (O)
            biases.push(Tensor::stack(&of_parts, 1)?.flatten_all()?);
        }
        let matrices = if dense.is_empty() {
            ExpertMatrices::Nf4(packed)
        } else if packed.is_empty() {
            ExpertMatrices::Dense(Tensor::stack(&dense, 0)?)
        } else {
            let name = &names(0)[0];
            return Err(Error::model(format!("Of the experts like {name:?} only some are stored in NF4")));
        };
        Ok((matrices, Tensor::stack(&biases, 0)?))
    }

    /// Parts (O/n, C) in turns, transposed: (C, O).
    fn dense_parts(&self, names: &[String], part: [usize; 2]) -> Result<Tensor> {
        let parts: Vec<Tensor> =
            names.iter().map(|name| self.compact(&format!("{name}.weight"), &part)).collect::<Result<_>>()?;
        // (O/n, n, C) -> (O, C) -> (C, O)
        let stacked = Tensor::stack(&parts, 1)?.reshape((names.len() * part[0], part[1]))?;
        Ok(stacked.t()?.contiguous()?)
    }

    /// All experts in one tensor: (E, C, O) in floats, NF4 if they are to be, or MXFP4.
    fn fused(&self, name: &str, shape: Shape) -> Result<Biased> {
        let Shape { num_experts, out_features, in_features } = shape;
        let bias = self.dense(&format!("{name}_bias"), &[num_experts, out_features])?;
        if let Some(packed) = self.mxfp4(name, shape)? {
            return Ok((ExpertMatrices::Mxfp4(packed), bias));
        }
        let dense = self.compact(name, &[num_experts, in_features, out_features])?;
        let matrices = match self.load_for {
            LoadFor::Qlora { double_quant } => {
                let quantize = |expert| -> Result<Vec<Nf4>> {
                    let weight = dense.get(expert)?.to_dtype(DType::F32)?.t()?.contiguous()?;
                    Ok(vec![Nf4::quantize(&weight, double_quant)?])
                };
                ExpertMatrices::Nf4((0..num_experts).map(quantize).collect::<Result<_>>()?)
            }
            LoadFor::Inference | LoadFor::Lora | LoadFor::Full => ExpertMatrices::Dense(dense),
        };
        Ok((matrices, bias))
    }

    /// Zeros where the model has none.
    fn bias(&self, module: &str, shape: &[usize]) -> Result<Tensor> {
        let name = format!("{module}.bias");
        if self.has(&name) {
            self.dense(&name, shape)
        } else {
            Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
        }
    }

    /// A tensor of exactly this shape, in bf16 where it is stored so.
    pub(super) fn compact(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.source {
            Source::Stored(Weights::Safetensors(folder)) => of_shape(folder.read_compact(name)?, name, shape),
            _ => self.dense(name, shape),
        }
    }

    /// Stored in MXFP4: `_blocks` (E, O, C/32, 16) and `_scales` (E, O, C/32); `None` if not.
    fn mxfp4(&self, name: &str, shape: Shape) -> Result<Option<Mxfp4>> {
        let Shape { num_experts, out_features, in_features } = shape;
        let (blocks_name, scales_name) = (format!("{name}_blocks"), format!("{name}_scales"));
        let Source::Stored(Weights::Safetensors(folder)) = &self.source else { return Ok(None) };
        if !folder.has(&blocks_name) {
            return Ok(None);
        }
        if !in_features.is_multiple_of(32) {
            return Err(Error::model(format!(
                "MXFP4 takes widths that 32 divides, {name:?} has {in_features}"
            )));
        }
        let shape = [num_experts, out_features, in_features / 32, 16];
        let blocks = folder.read_bytes(&blocks_name, Some(&shape))?;
        let scales = folder.read_bytes(&scales_name, Some(&shape[..3]))?;
        Ok(Some(Mxfp4::new(blocks, scales, in_features)?))
    }
}
