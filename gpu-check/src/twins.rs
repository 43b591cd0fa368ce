//! One operation twice: by kernels in bf16, and by its twin on the CPU in f32.

use std::{cell::Cell, sync::OnceLock};

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use lathe_engine::model::Compute;

static TARGET: OnceLock<Device> = OnceLock::new();

thread_local! {
    static WORST: Cell<f32> = const { Cell::new(0.0) };
}

/// Checks run on this device from here on; without it on the CPU, where the emulator has to be installed.
pub fn set_target(device: Device) {
    TARGET.get_or_init(|| device);
}

/// What is checked.
pub fn target() -> Device {
    TARGET.get().cloned().unwrap_or(Device::Cpu)
}

/// How a model computes there, or on the CPU as the truth.
pub fn compute(on_gpu: bool) -> Compute {
    match (on_gpu, TARGET.get()) {
        (false, _) => Compute::cpu(),
        (true, None) => Compute::emulated_gpu(),
        (true, Some(device)) => Compute::on(device.clone()),
    }
}

/// Remembers how much of what is tolerated was used up.
pub fn note(share: f32) {
    WORST.set(WORST.get().max(share));
}

/// The most of its tolerance that a check on this thread has used since this was last asked.
pub fn take_worst() -> f32 {
    WORST.replace(0.0)
}

/// Normally distributed values (mean 0, deviation 1) that bf16 holds, in f32 on the CPU.
pub fn random(dims: &[usize], seed: u64) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32
    };
    let count = dims.iter().product();
    // The sum of twelve uniform values has deviation 1.
    let values: Vec<f32> = (0..count).map(|_| (0..12).map(|_| next()).sum::<f32>() - 6.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(DType::BF16)?.to_dtype(DType::F32)
}

/// The tensor there.
pub fn on_target(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&target())
}

/// The values of a tensor, wherever it lies.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// How far `actual` is from `expected` at most, as a share of what is expected there and of its root mean square.
///
/// Errors: values that are no numbers.
pub fn distance(actual: &Tensor, expected: &Tensor) -> Result<f32> {
    let (actual, expected) = (values(actual)?, values(expected)?);
    assert_eq!(actual.len(), expected.len(), "shapes differ");
    let squares: f32 = expected.iter().map(|value| value * value).sum();
    let unit = (squares / expected.len() as f32).sqrt().max(1e-12);
    let mut farthest = 0f32;
    for (actual, expected) in actual.iter().zip(&expected) {
        if !actual.is_finite() {
            bail!("{actual} where {expected} is expected");
        }
        farthest = farthest.max((actual - expected).abs() / (unit + expected.abs()));
    }
    Ok(farthest)
}

/// Errors: a [`distance`] of more than `tolerance`.
pub fn check_near(actual: &Tensor, expected: &Tensor, tolerance: f32) -> Result<()> {
    let distance = distance(actual, expected)?;
    note(distance / tolerance);
    if distance > tolerance {
        bail!("{distance} from what is expected, {tolerance} is tolerated");
    }
    Ok(())
}

/// Inputs of an operation.
pub struct Twins {
    /// With whether they are f32 on the GPU, too.
    inputs: Vec<(Tensor, bool)>,
}

impl Twins {
    /// Of these shapes, drawn with these seeds.
    pub fn new(inputs: &[(&[usize], u64)]) -> Result<Self> {
        let drawn = inputs.iter().map(|(dims, seed)| Ok((random(dims, *seed)?, false)));
        Ok(Self { inputs: drawn.collect::<Result<_>>()? })
    }

    /// One more, which is f32 on the GPU, too: something that learns.
    pub fn with_f32(mut self, dims: &[usize], seed: u64) -> Result<Self> {
        self.inputs.push((random(dims, seed)?, true));
        Ok(self)
    }

    /// Checks result and gradients of `op`, computed in bf16 by the kernels and in f32 by the twin.
    pub fn check(&self, tolerance: f32, op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
        let run = |on_gpu: bool| -> Result<Vec<Tensor>> {
            let var = |(input, is_f32): &(Tensor, bool)| {
                let dtype = if on_gpu && !is_f32 { DType::BF16 } else { DType::F32 };
                let device = if on_gpu { target() } else { Device::Cpu };
                Var::from_tensor(&input.to_dtype(dtype)?.to_device(&device)?.copy()?)
            };
            let vars: Vec<Var> = self.inputs.iter().map(var).collect::<Result<_>>()?;
            let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let y = op(&inputs)?;
            let seed = random(y.dims(), 99)?.to_dtype(y.dtype())?.to_device(y.device())?;
            let gradients = lathe_kernels::seeded(&y, &seed)?.backward()?;
            let mut results = vec![y];
            for var in &vars {
                let Some(gradient) = gradients.get(var) else { bail!("an input without a gradient") };
                results.push(gradient.clone());
            }
            Ok(results)
        };
        for (i, (actual, expected)) in run(true)?.iter().zip(&run(false)?).enumerate() {
            let what = if i == 0 { "the result".to_owned() } else { format!("gradient {i}") };
            check_near(actual, expected, tolerance).map_err(|error| error.context(what))?;
        }
        Ok(())
    }
}
