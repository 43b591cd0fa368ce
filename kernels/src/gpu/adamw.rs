//! AdamW's gradients, moments and updates on the device: a launch for all tensors together.

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::{Buffer, Grid, ToArg, launch, memory};
use crate::{
    Dynamic8, MomentType, Moments,
    adamw::Rates,
    dynamic8::{BLOCK, DynamicMap},
};

const THREADS: u32 = 256;
/// Elements of a tensor that one block of threads takes; whole blocks of 8-bit moments.
const PART: usize = 32 * BLOCK;
/// Of a part as the kernels read it: six addresses, a length and a weight decay.
const WORDS: usize = 14;
/// Values and bounds of both maps.
const MAP_BYTES: usize = 4 * 256 * size_of::<f32>();

pub(crate) struct Held {
    device: Device,
    gradients: Vec<Tensor>,
    moments: Vec<OnDevice>,
    /// (parts, 14): where the parts of all tensors lie, which never changes.
    parts: Tensor,
    num_parts: usize,
    /// (1024): values and bounds of the signed and of the unsigned map.
    maps: Tensor,
}

/// [`Moments`] as tensors.
enum OnDevice {
    F32 { m: Tensor, v: Tensor },
    Dynamic8 { m: Coded, v: Coded },
}

struct Coded {
    codes: Tensor,
    scales: Tensor,
}

impl Coded {
    fn new(values: &Dynamic8, device: &Device) -> Result<Self> {
        Ok(Self {
            codes: Tensor::new(values.codes.as_slice(), device)?,
            scales: Tensor::new(values.scales.as_slice(), device)?,
        })
    }

    fn to_host(&self) -> Result<Dynamic8> {
        Ok(Dynamic8 { codes: self.codes.to_vec1()?, scales: self.scales.to_vec1()? })
    }
}

impl OnDevice {
    fn new(moments: &Moments, device: &Device) -> Result<Self> {
        Ok(match moments {
            Moments::F32 { m, v } => {
                Self::F32 { m: Tensor::new(m.as_slice(), device)?, v: Tensor::new(v.as_slice(), device)? }
            }
            Moments::Dynamic8 { m, v } => {
                Self::Dynamic8 { m: Coded::new(m, device)?, v: Coded::new(v, device)? }
            }
        })
    }

    fn to_host(&self) -> Result<Moments> {
        Ok(match self {
            Self::F32 { m, v } => Moments::F32 { m: m.to_vec1()?, v: v.to_vec1()? },
            Self::Dynamic8 { m, v } => Moments::Dynamic8 { m: m.to_host()?, v: v.to_host()? },
        })
    }

    /// Addresses of m, v and their scales for what begins with element `start`.
    fn addresses(&self, start: usize) -> Result<[u64; 4]> {
        let at = |tensor: &Tensor, bytes: usize| {
            Ok::<u64, candle_core::Error>(memory::address(tensor)? + bytes as u64)
        };
        Ok(match self {
            Self::F32 { m, v } => [at(m, 4 * start)?, at(v, 4 * start)?, 0, 0],
            Self::Dynamic8 { m, v } => {
                let scales = 4 * start / BLOCK;
                [at(&m.codes, start)?, at(&v.codes, start)?, at(&m.scales, scales)?, at(&v.scales, scales)?]
            }
        })
    }
}

impl Held {
    /// Errors: tensors that are not f32 on one device.
    pub(crate) fn new(vars: &[(Var, f64)], moments: MomentType) -> Result<Self> {
        let Some((first, _)) = vars.first() else { bail!("AdamW over no tensor") };
        let device = first.device().clone();
        let fits = |var: &Var| var.dtype() == DType::F32 && var.device().same_device(&device);
        if !vars.iter().all(|(var, _)| fits(var)) {
            bail!("AdamW updates f32 tensors of one device only");
        }
        let gradients = vars
            .iter()
            .map(|(var, _)| Tensor::zeros(var.elem_count(), DType::F32, &device))
            .collect::<Result<Vec<_>>>()?;
        let zeros = vars.iter().map(|(var, _)| moments.zeros(var.elem_count()));
        let moments = zeros.map(|zeros| OnDevice::new(&zeros, &device)).collect::<Result<Vec<_>>>()?;
        let maps = [DynamicMap::signed(), DynamicMap::unsigned()].map(DynamicMap::table);
        let maps: Vec<f32> = maps.into_iter().flatten().flatten().copied().collect();
        let maps = Tensor::new(maps, &device)?;
        let table = table(vars, &gradients, &moments)?;
        let num_parts = table.len() / WORDS;
        let parts = Tensor::from_vec(table, (num_parts, WORDS), &device)?;
        Ok(Self { device, gradients, moments, parts, num_parts, maps })
    }

    pub(crate) fn clear_gradients(&self) -> Result<()> {
        launch(&self.device, "clear_gradients", Grid::line(self.num_parts, THREADS), &[&self.parts])
    }

    pub(crate) fn add_gradient(&self, index: usize, gradient: &Tensor) -> Result<()> {
        let sum = &self.gradients[index];
        let length = sum.elem_count();
        if gradient.elem_count() != length || gradient.dtype() != DType::F32 {
            bail!("{gradient:?} as the gradient of {length} values");
        }
        let gradient = gradient.contiguous()?;
        let grid = Grid::line(length.div_ceil(THREADS as usize), THREADS);
        launch(&self.device, "add_gradient", grid, &[sum, &gradient, &(length as u64)])
    }

    pub(crate) fn gradient_norm(&self) -> Result<f64> {
        let sums = Buffer::new(&self.device, self.num_parts, DType::F32)?;
        launch(&self.device, "gradient_squares", Grid::line(self.num_parts, THREADS), &[&self.parts, &sums])?;
        let sums: Vec<f32> = sums.into_tensor().to_vec1()?;
        Ok(sums.into_iter().map(f64::from).sum::<f64>().sqrt())
    }

    pub(crate) fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        self.gradients.iter().map(Tensor::to_vec1).collect()
    }

    pub(crate) fn moments(&self) -> Result<Vec<Moments>> {
        self.moments.iter().map(OnDevice::to_host).collect()
    }

    /// Of the types and lengths that are there. They are copied to where the old ones are, which the kernels know.
    pub(crate) fn set_moments(&self, new: &[Moments]) -> Result<()> {
        for (old, new) in self.moments.iter().zip(new) {
            let new = OnDevice::new(new, &self.device)?;
            let pairs = match (old, &new) {
                (OnDevice::F32 { m, v }, OnDevice::F32 { m: new_m, v: new_v }) => {
                    vec![(m, new_m), (v, new_v)]
                }
                (OnDevice::Dynamic8 { m, v }, OnDevice::Dynamic8 { m: new_m, v: new_v }) => vec![
                    (&m.codes, &new_m.codes),
                    (&m.scales, &new_m.scales),
                    (&v.codes, &new_v.codes),
                    (&v.scales, &new_v.scales),
                ],
                _ => bail!("moments of another type"),
            };
            for (old, new) in pairs {
                old.slice_set(new, 0, 0)?;
            }
        }
        Ok(())
    }

    pub(crate) fn step(&self, rates: &Rates) -> Result<()> {
        let Rates {
            gradient_scale,
            step_size,
            inverse_root_correction2,
            beta1,
            beta2,
            share1,
            share2,
            eps,
            ..
        } = rates;
        let learning_rate = rates.learning_rate as f32;
        let args: [&dyn ToArg; 11] = [
            &self.parts,
            &self.maps,
            gradient_scale,
            &learning_rate,
            step_size,
            inverse_root_correction2,
            beta1,
            beta2,
            share1,
            share2,
            eps,
        ];
        launch(&self.device, "adamw", Grid::line(self.num_parts, THREADS).with_shared(MAP_BYTES), &args)
    }
}

/// The parts of all tensors, as the kernels read them.
fn table(vars: &[(Var, f64)], gradients: &[Tensor], moments: &[OnDevice]) -> Result<Vec<u32>> {
    let mut table = Vec::new();
    for (((var, weight_decay), gradient), moments) in vars.iter().zip(gradients).zip(moments) {
        let length = var.elem_count();
        for start in (0..length).step_by(PART) {
            let bytes = (4 * start) as u64;
            let [m, v, m_scales, v_scales] = moments.addresses(start)?;
            let addresses =
                [memory::address(var)? + bytes, memory::address(gradient)? + bytes, m, v, m_scales, v_scales];
            table.extend(addresses.iter().flat_map(|address| [*address as u32, (*address >> 32) as u32]));
            table.extend([PART.min(length - start) as u32, (*weight_decay as f32).to_bits()]);
        }
    }
    Ok(table)
}
