use candle_core::{DType, Result, Tensor};

use super::{Buffer, Form, Grid, Operand, Product, launch, plain_bf16, traced1, traced2};
use crate::FrozenLinear;

/// [`FrozenLinear::forward`] of x (T,C) in bf16.
pub(crate) fn frozen(linear: &FrozenLinear, x: &Tensor) -> Result<Tensor> {
    let x_plain = plain_bf16(x)?;
    let product = Product::new(Form::Nt, &x_plain, linear.operand()?);
    let y = Product { bias: linear.bias(), ..product }.run(DType::BF16)?;
    let linear = linear.clone();
    traced1(x, y, move |_, dy| {
        let dy = plain_bf16(dy)?;
        Ok(Product::new(Form::Nn, &dy, linear.operand()?).run(DType::BF16)?.into_tensor())
    })
}

/// [`crate::linear`] of x (T,C) in bf16, with W (O,C) in f32; dx is bf16, dW f32.
pub(crate) fn trainable(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (x_plain, weight_plain) = (plain_bf16(x)?, weight.detach());
    // The narrow copy is made twice rather than kept.
    let narrow = plain_bf16(&weight_plain)?;
    let y = Product::new(Form::Nt, &x_plain, Operand::Bf16(&narrow)).run(DType::BF16)?;
    traced2(x, weight, y, move |_, dy| {
        let (dy, narrow) = (plain_bf16(dy)?, plain_bf16(&weight_plain)?);
        let dx = Product::new(Form::Nn, &dy, Operand::Bf16(&narrow)).run(DType::BF16)?;
        let dweight = Product::new(Form::Tn, &dy, Operand::Bf16(&x_plain)).run(DType::F32)?;
        Ok([dx.into_tensor(), dweight.into_tensor()])
    })
}

/// [`FrozenLinear::adapted_row_norms`] where the weight is on a GPU.
pub(crate) fn adapted_row_norms(
    weight: Operand<'_>,
    lora_a: &Tensor,
    lora_b: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    let weight = match weight {
        Operand::Bf16(weight) => plain_bf16(weight)?,
        Operand::Nf4(packed) => packed.dequantize()?,
    };
    let (a, b) = super::lora::narrow(lora_a, lora_b)?;
    let update = Product { scale, ..Product::new(Form::Nn, &b, Operand::Bf16(&a)) }.run(DType::BF16)?;
    let (out_features, in_features) = weight.dims2()?;
    let norms = Buffer::new(weight.device(), out_features, DType::F32)?;
    let grid = Grid::line(out_features, 256);
    launch(weight.device(), "row_norms", grid, &[&weight, &update, &norms, &in_features])?;
    Ok(norms.into_tensor())
}
