//! One operation on two devices: the emulated GPU in bf16, and the twin in f32.

use candle_core::{DType, Device, Result, Tensor, Var};

/// Normally distributed values (mean 0, deviation 1) that bf16 holds, in f32.
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

/// How far `actual` is from `expected` at most, as a share of what is expected there and of its root mean square.
pub fn distance(actual: &Tensor, expected: &Tensor) -> Result<f32> {
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (actual, expected) = (values(actual)?, values(expected)?);
    assert_eq!(actual.len(), expected.len(), "shapes differ");
    let squares: f32 = expected.iter().map(|value| value * value).sum();
    let unit = (squares / expected.len() as f32).sqrt().max(1e-12);
    let differences = actual.iter().zip(&expected).map(|(actual, expected)| {
        assert!(actual.is_finite(), "{actual} where {expected} is expected");
        (actual - expected).abs() / (unit + expected.abs())
    });
    Ok(differences.fold(0.0, f32::max))
}

/// Inputs of an operation.
pub struct Twins {
    /// With whether they are f32 on the GPU, too.
    inputs: Vec<(Tensor, bool)>,
}

impl Twins {
    /// Of these shapes, drawn with these seeds.
    pub fn new(inputs: &[(&[usize], u64)]) -> Result<Self> {
        lathe_emulator::install();
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
                Var::from_tensor(&input.to_dtype(dtype)?.copy()?)
            };
            let vars: Vec<Var> = self.inputs.iter().map(var).collect::<Result<_>>()?;
            let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let y = op(&inputs)?;
            let seed = random(y.dims(), 99)?.to_dtype(y.dtype())?;
            let gradients = lathe_kernels::seeded(&y, &seed)?.backward()?;
            let mut results = vec![y];
            for var in &vars {
                results.push(gradients.get(var).expect("a gradient for every input").clone());
            }
            Ok(results)
        };
        for (i, (actual, expected)) in run(true)?.iter().zip(&run(false)?).enumerate() {
            let distance = distance(actual, expected)?;
            assert!(distance < tolerance, "result {i} (0 is y, then gradients) is {distance} away");
        }
        Ok(())
    }
}
