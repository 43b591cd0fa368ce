//! Which experts a token goes to, and the places in the experts' order.

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use lathe_kernels::{
    RouterSoftmax, Routing,
    gpu::{
        self,
        routing::{Sorted, sort},
    },
    route, seeded,
};

use crate::twins::{Twins, check_near, random, target};

/// Tokens, experts, experts a token. What bf16 holds has ties, too.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 4, 4), (5, 32, 4), (9, 33, 2), (3, 128, 8), (2, 40, 32)];
const SOFTMAXES: [RouterSoftmax; 2] = [RouterSoftmax::Chosen, RouterSoftmax::All];

pub fn routing_is_its_twin() -> Result<()> {
    for (num_tokens, num_experts, k) in SHAPES {
        for softmax in SOFTMAXES {
            let twins = Twins::new(&[(&[num_tokens, num_experts], 3)])?;
            twins.check(1e-2, |inputs| Ok(route(&inputs[0], k, softmax)?.weights))?;
            let logits = random(&[num_tokens, num_experts], 3)?;
            let chosen = route(&logits, k, softmax)?.experts()?;
            let there = logits.to_dtype(DType::BF16)?.to_device(&target())?;
            assert_eq!(route(&there, k, softmax)?.experts()?, chosen);
        }
    }
    Ok(())
}

pub fn logits_in_f32_are_routed_alike() -> Result<()> {
    for softmax in SOFTMAXES {
        let run = |route: fn(&Tensor, usize, RouterSoftmax) -> Result<Routing>,
                   device: &Device|
         -> Result<[Tensor; 2]> {
            let logits = Var::from_tensor(&random(&[7, 12], 4)?.to_device(device)?)?;
            let weights = route(&logits, 3, softmax)?.weights;
            let gradients = seeded(&weights, &random(&[7, 3], 5)?.to_device(device)?)?.backward()?;
            let Some(gradient) = gradients.get(&logits) else { bail!("logits without a gradient") };
            Ok([weights, gradient.clone()])
        };
        let found = run(gpu::routing::route, &target())?;
        for (actual, expected) in found.iter().zip(&run(route, &Device::Cpu)?) {
            check_near(actual, expected, 1e-5)?;
        }
    }
    Ok(())
}

pub fn places_are_sorted_by_expert() -> Result<()> {
    let check = |experts: &[u32], num_experts: usize, tile_rows: usize| -> Result<()> {
        let Sorted { order, tokens, rows, offsets, tiles } =
            sort(&Tensor::new(experts, &target())?, 2, num_experts, tile_rows)?;
        let mut expected: Vec<u32> = (0..experts.len() as u32).collect();
        expected.sort_by_key(|place| experts[*place as usize]);
        assert_eq!(order.to_vec1::<u32>()?, expected);
        let halves: Vec<u32> = expected.iter().map(|place| place / 2).collect();
        assert_eq!(tokens.to_vec1::<u32>()?, halves);
        for (row, place) in expected.iter().enumerate() {
            assert_eq!(rows.to_vec1::<u32>()?[*place as usize], row as u32);
        }
        let offset = |expert: u32| experts.iter().filter(|chosen| **chosen < expert).count() as u32;
        let bounds: Vec<u32> = (0..=num_experts as u32).map(offset).collect();
        assert_eq!(offsets.to_vec1::<u32>()?, bounds);
        let mut work = Vec::new();
        for expert in 0..num_experts as u32 {
            for first in (offset(expert)..offset(expert + 1)).step_by(tile_rows) {
                let end = (first + tile_rows as u32).min(offset(expert + 1));
                work.push(vec![expert, first, end, 0]);
            }
        }
        let tiles = tiles.to_vec2::<u32>()?;
        assert!(tiles.len() >= work.len());
        work.resize(tiles.len(), vec![0; 4]);
        assert_eq!(tiles, work);
        Ok(())
    };
    check(&[0], 1, 16)?;
    check(&[3, 3, 3, 3, 3], 5, 2)?;
    check(&[2, 0, 2, 6, 1, 2, 0, 6], 7, 2)?;
    let many: Vec<u32> = (0..1100u32).map(|place| place * 7919 % 1009 % 40).collect();
    check(&many, 40, 16)
}
