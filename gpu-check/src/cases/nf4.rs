//! NF4 on the device: codes, scales and values equal those of the host to the bit.

use crate::twins::{on_target, random, target};
use candle_core::{DType, Device, Result, Tensor};
use lathe_kernels::{FrozenLinear, Nf4, Nf4Scales, gpu::GpuNf4};

/// Weights with blocks that run through rows' ends, of zeros, and of outliers.
fn weights() -> Result<Vec<Tensor>> {
    let plain = random(&[24, 40], 1)?.affine(0.0, 0.0)?;
    let outliers = (random(&[16, 96], 2)? * random(&[16, 96], 3)?.powf(3.0)?)?;
    let outliers = outliers.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    Ok(vec![plain, random(&[8, 8], 4)?, random(&[136, 96], 5)?, random(&[32, 2880], 6)?, outliers])
}

fn scale_bits(scales: &Nf4Scales) -> (Vec<u8>, Vec<u32>) {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    match scales {
        Nf4Scales::Plain(scales) => (Vec::new(), bits(scales)),
        Nf4Scales::Nested { codes, scales, map, offset } => {
            (codes.clone(), bits(&[scales, map.as_slice(), &[*offset]].concat()))
        }
    }
}

pub fn a_weight_quantised_on_the_device_has_the_hosts_codes_and_scales() -> Result<()> {
    for weight in weights()? {
        for double_quant in [false, true] {
            let expected = Nf4::quantize(&weight, double_quant)?;
            for dtype in [DType::BF16, DType::F32] {
                let found =
                    GpuNf4::quantize(&on_target(&weight.to_dtype(dtype)?)?, double_quant)?.to_host()?;
                assert_eq!(found.codes(), expected.codes(), "{weight:?} in {dtype:?}");
                assert_eq!(scale_bits(found.scales()), scale_bits(expected.scales()), "{weight:?}");
            }
        }
    }
    Ok(())
}

pub fn values_are_the_hosts_rounded_to_bf16() -> Result<()> {
    for weight in weights()? {
        for double_quant in [false, true] {
            let packed = Nf4::quantize(&weight, double_quant)?;
            let found = GpuNf4::new(&packed, &target())?.dequantize()?;
            let identity = Tensor::eye(weight.dim(1)?, DType::F32, &Device::Cpu)?;
            let expected = FrozenLinear::nf4(packed, None)?.forward(&identity)?.t()?;
            let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
                let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                // A product with the identity knows no negative zero.
                Ok(values.iter().map(|value| (value + 0.0).to_bits()).collect())
            };
            assert_eq!(bits(&found)?, bits(&expected.to_dtype(DType::BF16)?)?, "{weight:?}");
        }
    }
    Ok(())
}

pub fn what_is_not_a_number_stays_so() -> Result<()> {
    let mut values = vec![0.5f32; 192];
    values[70] = f32::NAN;
    let weight = Tensor::from_vec(values, (3, 64), &target())?;
    let found = GpuNf4::quantize(&weight, false)?;
    let values = found.dequantize()?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    assert!(values[1].iter().all(|value| value.is_nan()));
    assert_eq!((&values[0], &values[2]), (&vec![0.5; 64], &vec![0.5; 64]));
    Ok(())
}

pub fn a_width_that_no_kernel_takes_is_refused() -> Result<()> {
    let odd = Nf4::quantize(&random(&[32, 12], 1)?, false)?;
    assert!(GpuNf4::new(&odd, &target()).is_err());
    assert!(GpuNf4::quantize(&on_target(&random(&[3, 8], 1)?)?, false).is_err());
    Ok(())
}
