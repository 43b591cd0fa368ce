//! Routed experts: a few places and many, in every format, with and without low-rank updates.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use lathe_kernels::{
    BlockType, Blocks, ClampedSwiGlu, ExpertLora, ExpertMatrices, Experts, Mxfp4, Nf4, RouterSoftmax,
    Routing, route,
};

use crate::twins::{Twins, check_near, random, target};

/// Limits that nothing comes near, so that no rounding crosses a clamp's edge.
const UNCLAMPED: ClampedSwiGlu = ClampedSwiGlu { alpha: 1.702, limit: 100.0, offset: 1.0 };
const CLAMPED: ClampedSwiGlu = ClampedSwiGlu { limit: 1.5, ..UNCLAMPED };

#[derive(Clone, Copy, Debug)]
enum Format {
    Bf16,
    Mxfp4,
    Nf4,
    NestedNf4,
    /// llama.cpp's blocks.
    Blocks(BlockType),
}

#[derive(Clone, Copy)]
struct Shape {
    experts: usize,
    hidden: usize,
    inner: usize,
}

/// The same experts on the host and on the emulated GPU.
struct Both {
    host: Arc<Experts>,
    gpu: Arc<Experts>,
}

impl Both {
    fn new(format: Format, shape: Shape, activation: ClampedSwiGlu) -> Result<Self> {
        let Shape { experts, hidden, inner } = shape;
        let [gate_up_bias, down_bias] = [random(&[experts, 2 * inner], 11)?, random(&[experts, hidden], 12)?];
        let gate_up = (matrices(format, [experts, 2 * inner, hidden], 2, 13)?, &gate_up_bias);
        let down = (matrices(format, [experts, hidden, inner], 1, 14)?, &down_bias);
        let host = Experts::new(gate_up, down, activation)?;
        let gpu = host.to_device(&target())?;
        Ok(Self { host: Arc::new(host), gpu: Arc::new(gpu) })
    }

    fn of(&self, x: &Tensor) -> &Arc<Experts> {
        if x.dtype() == DType::BF16 { &self.gpu } else { &self.host }
    }
}

/// Matrices (O, C) of deviation 1/8 or so.
fn matrices(
    format: Format,
    [experts, out_features, in_features]: [usize; 3],
    parts: usize,
    seed: u64,
) -> Result<ExpertMatrices> {
    Ok(match format {
        Format::Bf16 => {
            ExpertMatrices::Dense((random(&[experts, in_features, out_features], seed)? * 0.125)?)
        }
        Format::Mxfp4 => {
            let num_blocks = experts * out_features * in_features / 32;
            let bytes = |count: usize, factor: usize| (0..count).map(move |i| i * factor % 1009);
            let blocks = bytes(num_blocks * 16, 7919 + seed as usize).map(|byte| byte as u8).collect();
            let scales = bytes(num_blocks, 104_729).map(|byte| 121 + (byte % 4) as u8).collect();
            ExpertMatrices::Mxfp4(Mxfp4::new(blocks, scales, in_features)?)
        }
        Format::Blocks(block_type) => {
            let num_rows = experts * out_features / parts;
            let num_blocks = num_rows * in_features / 32;
            let part = |i: usize| {
                let block = |block: usize| -> Vec<u8> {
                    let bytes = (0..32).map(|byte| ((7919 * i + 32 * block + byte) * 104_729 % 1009) as u8);
                    // An exponent, or a scale in f16 of about 2^-10, then codes.
                    match block_type {
                        BlockType::Mxfp4 => {
                            [121 + (block % 3) as u8].into_iter().chain(bytes.take(16)).collect()
                        }
                        _ => [block as u8, 0x14].into_iter().chain(bytes).collect(),
                    }
                };
                Blocks::new((0..num_blocks).flat_map(block).collect(), block_type, num_rows, in_features)
            };
            ExpertMatrices::Blocks((0..parts).map(part).collect::<Result<_>>()?)
        }
        Format::Nf4 | Format::NestedNf4 => {
            let part = |i: usize| {
                let values = (random(&[out_features / parts, in_features], seed + 10 * i as u64)? * 0.125)?;
                Nf4::quantize(&values, matches!(format, Format::NestedNf4))
            };
            let expert = |expert| (0..parts).map(|i| part(expert * parts + i)).collect::<Result<_>>();
            ExpertMatrices::Nf4((0..experts).map(expert).collect::<Result<_>>()?)
        }
    })
}

fn check(
    format: Format,
    shape: Shape,
    (num_tokens, k): (usize, usize),
    activation: ClampedSwiGlu,
) -> Result<()> {
    let both = Both::new(format, shape, activation)?;
    Twins::new(&[(&[num_tokens, shape.hidden], 1), (&[num_tokens, shape.experts], 2)])?.check(
        3e-2,
        |inputs| {
            let routing = route(&inputs[1], k, RouterSoftmax::All)?;
            both.of(&inputs[0]).forward(&inputs[0], &routing)
        },
    )
}

fn on_gpu(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::BF16)?.to_device(&target())
}

pub fn clamped_values_are_their_twins() -> Result<()> {
    let shape = Shape { experts: 3, hidden: 64, inner: 32 };
    let both = Both::new(Format::Mxfp4, shape, CLAMPED)?;
    for num_tokens in [7, 40] {
        let (x, logits) = (random(&[num_tokens, 64], 1)?, random(&[num_tokens, 3], 2)?);
        let run =
            |x: &Tensor, logits: &Tensor| both.of(x).forward(x, &route(logits, 2, RouterSoftmax::Chosen)?);
        check_near(&run(&on_gpu(&x)?, &on_gpu(&logits)?)?, &run(&x, &logits)?, 3e-2)?;
    }
    Ok(())
}

pub fn what_is_clamped_has_no_gradient() -> Result<()> {
    // So few values that none lies where rounding takes it over the edge.
    let shape = Shape { experts: 2, hidden: 32, inner: 32 };
    let both = Both::new(Format::Bf16, shape, CLAMPED)?;
    Twins::new(&[(&[1, 32], 1), (&[1, 2], 2)])?.check(3e-2, |inputs| {
        let routing = route(&inputs[1], 1, RouterSoftmax::All)?;
        both.of(&inputs[0]).forward(&inputs[0], &routing)
    })
}

pub fn a_few_places_are_their_twin() -> Result<()> {
    let odd = Shape { experts: 5, hidden: 40, inner: 24 };
    check(Format::Bf16, odd, (1, 1), ClampedSwiGlu::PLAIN)?;
    check(Format::Bf16, odd, (3, 4), UNCLAMPED)?;
    check(Format::Bf16, Shape { experts: 33, hidden: 264, inner: 8 }, (1, 20), UNCLAMPED)?;
    let blocks = Shape { experts: 4, hidden: 96, inner: 160 };
    check(Format::Mxfp4, blocks, (1, 4), UNCLAMPED)?;
    check(Format::Mxfp4, blocks, (8, 2), UNCLAMPED)?;
    let wide = Shape { experts: 3, hidden: 320, inner: 64 };
    check(Format::Nf4, wide, (2, 2), ClampedSwiGlu::PLAIN)?;
    check(Format::NestedNf4, wide, (1, 3), ClampedSwiGlu::PLAIN)?;
    // What kernels do not read is held in bf16.
    let narrow = Shape { experts: 3, hidden: 32, inner: 32 };
    check(Format::Nf4, narrow, (3, 1), ClampedSwiGlu::PLAIN)?;
    check(Format::Blocks(BlockType::Q8_0), narrow, (3, 1), ClampedSwiGlu::PLAIN)?;
    check(Format::Blocks(BlockType::Mxfp4), narrow, (3, 1), UNCLAMPED)
}

pub fn many_places_are_their_twin() -> Result<()> {
    check(Format::Bf16, Shape { experts: 5, hidden: 72, inner: 40 }, (17, 2), UNCLAMPED)?;
    check(Format::Bf16, Shape { experts: 2, hidden: 136, inner: 72 }, (150, 1), ClampedSwiGlu::PLAIN)?;
    check(Format::Mxfp4, Shape { experts: 4, hidden: 96, inner: 32 }, (11, 4), UNCLAMPED)?;
    check(Format::Mxfp4, Shape { experts: 2, hidden: 64, inner: 96 }, (140, 1), UNCLAMPED)?;
    check(Format::Nf4, Shape { experts: 6, hidden: 64, inner: 64 }, (20, 2), ClampedSwiGlu::PLAIN)?;
    check(Format::NestedNf4, Shape { experts: 2, hidden: 64, inner: 64 }, (70, 2), ClampedSwiGlu::PLAIN)
}

pub fn one_expert_may_have_all_tokens() -> Result<()> {
    let shape = Shape { experts: 4, hidden: 32, inner: 32 };
    let both = Both::new(Format::Mxfp4, shape, UNCLAMPED)?;
    for num_tokens in [3, 70] {
        let favoured = Tensor::new(&[[0f32, 0.5, 8.0, 0.25]], &Device::Cpu)?.repeat((num_tokens, 1))?;
        Twins::new(&[(&[num_tokens, shape.hidden], 1)])?.check(3e-2, |inputs| {
            let routing = route(
                &favoured.to_dtype(inputs[0].dtype())?.to_device(inputs[0].device())?,
                1,
                RouterSoftmax::Chosen,
            )?;
            assert_eq!(routing.experts()?, vec![2; num_tokens]);
            both.of(&inputs[0]).forward(&inputs[0], &routing)
        })?;
    }
    Ok(())
}

/// An update of matrices (O, C): its shape, the number of its A among the inputs, its scale.
fn update(inputs: &[Tensor], a: usize, scale: f64) -> ExpertLora {
    ExpertLora { a: inputs[a].clone(), b: inputs[a + 1].clone(), scale }
}

pub fn updates_are_their_twin() -> Result<()> {
    // Few places, many in small tiles, many in large ones; an expert nobody chose has gradient zero.
    let shapes = [
        (Format::Bf16, Shape { experts: 6, hidden: 40, inner: 24 }, (2, 2)),
        (Format::Mxfp4, Shape { experts: 5, hidden: 64, inner: 96 }, (36, 1)),
        (Format::Nf4, Shape { experts: 2, hidden: 64, inner: 64 }, (140, 1)),
    ];
    for (format, shape, (num_tokens, k)) in shapes {
        let Shape { experts, hidden, inner } = shape;
        let both = Both::new(format, shape, UNCLAMPED)?;
        // Rank 3 on gate and up, 20 and another 1 on down.
        let twins = Twins::new(&[(&[num_tokens, hidden], 1), (&[num_tokens, experts], 2)])?
            .with_f32(&[experts, 3, hidden], 3)?
            .with_f32(&[experts, 2 * inner, 3], 4)?
            .with_f32(&[experts, 20, inner], 5)?
            .with_f32(&[experts, hidden, 20], 6)?
            .with_f32(&[experts, 1, inner], 7)?
            .with_f32(&[experts, hidden, 1], 8)?;
        twins.check(4e-2, |inputs| {
            let own = both.of(&inputs[0]);
            let routing = route(&inputs[1], k, RouterSoftmax::Chosen)?;
            let (gate_up, down) =
                ([update(inputs, 2, 0.05)], [update(inputs, 4, 0.01), update(inputs, 6, 0.1)]);
            own.forward_adapted(&inputs[0], &routing, &own.updates(&gate_up, &down)?)
        })?;
    }
    Ok(())
}

pub fn updates_may_be_of_one_product_alone() -> Result<()> {
    let shape = Shape { experts: 3, hidden: 32, inner: 32 };
    let both = Both::new(Format::Bf16, shape, UNCLAMPED)?;
    for num_tokens in [2, 40] {
        let twins = Twins::new(&[(&[num_tokens, shape.hidden], 1), (&[num_tokens, shape.experts], 2)])?
            .with_f32(&[shape.experts, 70, shape.hidden], 3)?
            .with_f32(&[shape.experts, 2 * shape.inner, 70], 4)?;
        twins.check(4e-2, |inputs| {
            let own = both.of(&inputs[0]);
            let routing = route(&inputs[1], 2, RouterSoftmax::Chosen)?;
            own.forward_adapted(&inputs[0], &routing, &own.updates(&[update(inputs, 2, 0.01)], &[])?)
        })?;
    }
    Ok(())
}

pub fn what_does_not_fit_is_refused() -> Result<()> {
    let shape = Shape { experts: 3, hidden: 32, inner: 32 };
    let both = Both::new(Format::Bf16, shape, UNCLAMPED)?;
    let routing = |num_tokens: usize| -> Result<Routing> {
        route(&on_gpu(&random(&[num_tokens, 3], 1)?)?, 2, RouterSoftmax::Chosen)
    };
    let x = on_gpu(&random(&[4, 32], 2)?)?;
    assert!(both.gpu.forward(&x, &routing(4)?).is_ok());
    assert!(both.gpu.forward(&x, &routing(5)?).is_err());
    assert!(both.gpu.forward(&x.narrow(1, 0, 24)?, &routing(4)?).is_err());
    assert!(both.host.forward(&x, &routing(4)?).is_err());
    assert!(both.gpu.to_device(&target()).is_err());
    Ok(())
}
