use candle_core::{DType, Result, Tensor};

use super::{Form, Operand, Product, dropout, plain_bf16, traced3};
use crate::{Dropout, FrozenLinear};

/// What a row of a matrix of bf16 is a multiple of.
const ROW: usize = 8;

/// A (R,C) and B (O,R) in bf16, with zeros up to a rank that is a multiple of 8.
pub(super) fn narrow(lora_a: &Tensor, lora_b: &Tensor) -> Result<(Tensor, Tensor)> {
    let rank = lora_a.dim(0)?;
    let zeros = rank.next_multiple_of(ROW) - rank;
    let (a, b) = (plain_bf16(lora_a)?, plain_bf16(lora_b)?);
    if zeros == 0 {
        return Ok((a, b));
    }
    Ok((a.pad_with_zeros(0, 0, zeros)?.contiguous()?, b.pad_with_zeros(1, 0, zeros)?.contiguous()?))
}

/// `scale · x Aᵀ` (T,R) in bf16.
fn low_rank(x: &Tensor, a: &Tensor, scale: f32) -> Result<Tensor> {
    let product = Product::new(Form::Nt, x, Operand::Bf16(a));
    Ok(Product { scale, ..product }.run(DType::BF16)?.into_tensor())
}

/// [`crate::LoraLinear::forward`] of x (T,C) in bf16, with A and B in f32; dx is bf16, dA and dB f32.
///
/// The update is added within the base's product, whose K goes on over the rank.
pub(crate) fn lora(
    base: &FrozenLinear,
    x: &Tensor,
    [lora_a, lora_b]: [&Tensor; 2],
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let x_plain = plain_bf16(x)?;
    let [a_plain, b_plain] = [lora_a.detach(), lora_b.detach()];
    let (a, b) = narrow(&a_plain, &b_plain)?;
    let low = low_rank(&dropped(dropout, &x_plain)?, &a, scale)?;
    let product = Product::new(Form::Nt, &x_plain, base.operand()?);
    let y = Product { more: Some([&low, &b]), bias: base.bias(), ..product }.run(DType::BF16)?;
    let base = base.clone();
    traced3([x, lora_a, lora_b], y, move |_, dy| {
        let dy = plain_bf16(dy)?;
        let rank = a_plain.dim(0)?;
        let (a, b) = narrow(&a_plain, &b_plain)?;
        // 1. dlow = scale · dy B: (T,R)
        let product = Product::new(Form::Nn, &dy, Operand::Bf16(&b));
        let dlow = Product { scale, ..product }.run(DType::BF16)?.into_tensor();
        // 2. dB = scale · dyᵀ low, which holds the scale: (O,R)
        let db = Product::new(Form::Tn, &dy, Operand::Bf16(&low)).run(DType::F32)?.into_tensor();
        // 3. dA = dlowᵀ dropout(x): (R,C)
        let x = dropped(dropout, &x_plain)?;
        let da = Product::new(Form::Tn, &dlow, Operand::Bf16(&x)).run(DType::F32)?.into_tensor();
        // 4. dx = dy W + dropout(dlow A): (T,C)
        let product = Product::new(Form::Nn, &dy, base.operand()?);
        let dx = match dropout {
            None => Product { more: Some([&dlow, &a]), ..product }.run(DType::BF16)?,
            Some(dropout) => {
                let dx = product.run(DType::BF16)?.into_tensor();
                let low = Product::new(Form::Nn, &dlow, Operand::Bf16(&a)).run(DType::BF16)?.into_tensor();
                dropout::apply(dropout, &low, Some(&dx))?
            }
        };
        let (da, db) = (da.narrow(0, 0, rank)?.contiguous()?, db.narrow(1, 0, rank)?.contiguous()?);
        Ok([dx.into_tensor(), da, db])
    })
}

fn dropped(dropout: Option<Dropout>, x: &Tensor) -> Result<Tensor> {
    match dropout {
        None => Ok(x.clone()),
        Some(dropout) => Ok(dropout::apply(dropout, x, None)?.into_tensor()),
    }
}

/// [`crate::add_low_rank`] to y (T,O) of x (T,C), both in bf16.
pub(crate) fn add_low_rank(
    y: &Tensor,
    x: &Tensor,
    lora_a: &Tensor,
    lora_b: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    let (a, b) = narrow(lora_a, lora_b)?;
    let low = low_rank(&plain_bf16(x)?, &a, scale)?;
    let sum = plain_bf16(y)?.copy()?;
    Product::new(Form::Nt, &low, Operand::Bf16(&b)).add_to(&sum)?;
    Ok(sum)
}
