use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::{cpu, gpu};

/// A scalar, 0, whose gradient with respect to `y` is `dy`: what a backward that goes on from there begins with.
///
/// Shapes: y and dy alike -> ().
pub fn seeded(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    if y.dims() != dy.dims() {
        bail!("a gradient {:?} for {:?}", dy.dims(), y.dims());
    }
    let dy = dy.detach();
    if gpu::is_on_gpu(y) {
        // Nobody reads the scalar.
        let scalar = gpu::Buffer::new(y.device(), (), DType::F32)?;
        return gpu::traced1(y, scalar, move |_, _| Ok(dy.clone()));
    }
    y.contiguous()?.apply_op1(Seeded { dy })
}

struct Seeded {
    dy: Tensor,
}

impl CustomOp1 for Seeded {
    fn name(&self) -> &'static str {
        "seeded"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    /// Taken as a whole: candle's gradient of a scalar is 1.
    fn bwd(&self, _y: &Tensor, _scalar: &Tensor, _one: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.dy.clone()))
    }
}

/// Adds a tensor's values to `sum`, where they are. F32.
///
/// Errors: another number of values.
pub(crate) fn add_to(sum: &mut [f32], tensor: &Tensor) -> Result<()> {
    cpu::with_slice(tensor, |values| {
        if values.len() != sum.len() {
            bail!("{} values to add to {}", values.len(), sum.len());
        }
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_backward_goes_on_from_any_gradient() {
        let x = Var::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let dy = Tensor::new(&[0.5f32, -1.0, 4.0], &Device::Cpu).unwrap();
        let store = seeded(&x.sqr().unwrap(), &dy).unwrap().backward().unwrap();
        let mut sum = vec![1.0; 3];
        add_to(&mut sum, store.get(&x).unwrap()).unwrap();
        // 1 + 2 x dy
        assert_eq!(sum, [2.0, -3.0, 25.0]);
        assert!(seeded(&x, &Tensor::new(&[1f32], &Device::Cpu).unwrap()).is_err());
        assert!(add_to(&mut sum[1..], store.get(&x).unwrap()).is_err());
    }
}
