//! What kernels computed, as part of autograd's graph.

use std::sync::Mutex;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::Buffer;

/// A result that is there already, and what computes its inputs' gradients, from y and dy.
struct Traced<F> {
    result: Mutex<Option<Buffer>>,
    backward: F,
}

impl<F> Traced<F> {
    fn new(result: Buffer, backward: F) -> Self {
        Self { result: Mutex::new(Some(result)), backward }
    }

    fn take(&self) -> Result<(Storage, Shape)> {
        let result = self.result.lock().ok().and_then(|mut result| result.take());
        match result {
            Some(buffer) => Ok(buffer.into_parts()),
            None => bail!("an operation on the GPU was traced twice"),
        }
    }

    fn take_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("a result on another device than its inputs"),
        }
    }

    fn take_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("a result on another device than its inputs"),
        }
    }
}

/// `y`, computed from x; `backward(y, dy)` is dx.
pub(crate) fn traced1(
    x: &Tensor,
    y: Buffer,
    backward: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op1(Traced::new(y, move |y: &Tensor, dy: &Tensor| Ok([backward(y, dy)?])))
}

/// `z`, computed from x and y; `backward(z, dz)` are dx and dy.
pub(crate) fn traced2(
    x: &Tensor,
    y: &Tensor,
    z: Buffer,
    backward: impl Fn(&Tensor, &Tensor) -> Result<[Tensor; 2]> + Send + Sync + 'static,
) -> Result<Tensor> {
    x.apply_op2(y, Traced::new(z, backward))
}

/// Likewise of three inputs.
pub(crate) fn traced3(
    [a, b, c]: [&Tensor; 3],
    y: Buffer,
    backward: impl Fn(&Tensor, &Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    a.apply_op3(b, c, Traced::new(y, backward))
}

impl<F: Fn(&Tensor, &Tensor) -> Result<[Tensor; 1]>> CustomOp1 for Traced<F> {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = (self.backward)(y, &dy.contiguous()?)?;
        Ok(Some(dx))
    }
}

impl<F: Fn(&Tensor, &Tensor) -> Result<[Tensor; 2]>> CustomOp2 for Traced<F> {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = (self.backward)(y, &dy.contiguous()?)?;
        Ok((Some(a), Some(b)))
    }
}

impl<F: Fn(&Tensor, &Tensor) -> Result<[Tensor; 3]>> CustomOp3 for Traced<F> {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.backward)(y, &dy.contiguous()?)?;
        Ok((Some(a), Some(b), Some(c)))
    }
}
