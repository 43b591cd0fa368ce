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
    inputs: Vec<Tensor>,
}

impl Twins {
    /// Of these shapes, drawn with these seeds.
    pub fn new(inputs: &[(&[usize], u64)]) -> Result<Self> {
        lathe_emulator::install();
        Ok(Self { inputs: inputs.iter().map(|(dims, seed)| random(dims, *seed)).collect::<Result<_>>()? })
    }

    /// Checks result and gradients of `op`, computed in bf16 by the kernels and in f32 by the twin.
    pub fn check(&self, tolerance: f32, op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
        let run = |dtype: DType| -> Result<Vec<Tensor>> {
            let vars: Vec<Var> = self
                .inputs
                .iter()
                .map(|input| Var::from_tensor(&input.to_dtype(dtype)?))
                .collect::<Result<_>>()?;
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
        for (i, (actual, expected)) in run(DType::BF16)?.iter().zip(&run(DType::F32)?).enumerate() {
            let distance = distance(actual, expected)?;
            assert!(distance < tolerance, "result {i} (0 is y, then gradients) is {distance} away");
        }
        Ok(())
    }
}
