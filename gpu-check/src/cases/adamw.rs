//! AdamW by kernels against AdamW on the host: the same gradients over several steps.

use candle_core::{Device, Result, Tensor, Var};
use lathe_kernels::{AdamW, AdamWParams, MomentType, Moments};

use crate::twins::{random, target};

/// A part of a block, some blocks, and more than one part.
const LENGTHS: [usize; 4] = [7, 300, 4099, 20_000];

fn vars(device: &Device) -> Result<Vec<(Var, f64)>> {
    let var = |(i, length): (usize, &usize)| {
        Ok((Var::from_tensor(&random(&[*length], i as u64)?.to_device(device)?)?, 0.1 * i as f64))
    };
    LENGTHS.iter().enumerate().map(var).collect()
}

fn assert_near(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let off = (actual - expected).abs();
        assert!(off <= 1e-6 + 1e-5 * expected.abs(), "{what}[{i}] is {actual}, expected {expected}");
    }
}

pub fn updates_norms_and_moments_are_those_of_the_host() -> Result<()> {
    for kind in [MomentType::F32, MomentType::Dynamic8] {
        let (gpu_vars, host_vars) = (vars(&target())?, vars(&Device::Cpu)?);
        let mut gpu = AdamW::on_gpu(AdamWParams::default(), gpu_vars.clone(), kind)?;
        let mut host = AdamW::new(AdamWParams::default(), host_vars.clone(), kind)?;
        for step in 0..4 {
            for (optimizer, device) in [(&mut gpu, target()), (&mut host, Device::Cpu)] {
                optimizer.clear_gradients()?;
                for (index, length) in LENGTHS.iter().enumerate() {
                    for micro_batch in 0..2 {
                        let seed = 100 * step + 10 * micro_batch + index as u64;
                        optimizer.add_gradient(index, &random(&[*length], seed)?.to_device(&device)?)?;
                    }
                }
            }
            let (found, expected) = (gpu.gradient_norm()?, host.gradient_norm()?);
            assert!((found / expected - 1.0).abs() < 1e-6, "{found}, expected {expected}");
            assert_eq!(gpu.gradients()?, host.gradients()?);
            gpu.step(0.5, 1e-2)?;
            host.step(0.5, 1e-2)?;
            for ((gpu, _), (host, _)) in gpu_vars.iter().zip(&host_vars) {
                assert_near(&gpu.to_vec1()?, &host.to_vec1()?, "weights");
            }
        }
        // Moments go there and back.
        let moments = gpu.moments()?.into_owned();
        let is_coded = moments.iter().filter(|moments| matches!(moments, Moments::Dynamic8 { .. })).count();
        assert_eq!(is_coded, if kind == MomentType::Dynamic8 { 2 } else { 0 });
        let mut resumed = AdamW::on_gpu(AdamWParams::default(), gpu_vars.clone(), kind)?;
        resumed.set_moments(moments.clone())?;
        assert_eq!(*resumed.moments()?, *moments);
        assert!(resumed.set_moments(moments[1..].to_vec()).is_err());
        if let (Moments::F32 { m, .. }, Moments::F32 { m: expected, .. }) = (&moments[3], &host.moments()?[3])
        {
            assert_near(m, expected, "moments");
        }
    }
    Ok(())
}

pub fn gradients_that_do_not_fit_are_refused() -> Result<()> {
    let mut optimizer = AdamW::on_gpu(AdamWParams::default(), vars(&target())?, MomentType::F32)?;
    assert!(optimizer.add_gradient(0, &Tensor::new(&[1f32; 8], &target())?).is_err());
    assert!(AdamW::on_gpu(AdamWParams::default(), Vec::new(), MomentType::F32).is_err());
    Ok(())
}
