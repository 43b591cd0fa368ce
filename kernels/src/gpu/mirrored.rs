use std::{ops::Deref, sync::OnceLock};

use candle_core::{Device, Result, Tensor, WithDType, bail};

/// Values of the host with a copy of them on a device, made when somebody there first asks for it.
#[derive(Debug, Default)]
pub struct Mirrored<T> {
    values: Vec<T>,
    copy: OnceLock<Tensor>,
}

impl<T: WithDType> Mirrored<T> {
    /// How many there are, wherever they are known.
    pub(crate) fn count(&self) -> usize {
        self.copy.get().map_or(self.values.len(), Tensor::elem_count)
    }

    /// (n). Errors: a copy on another device than before.
    pub(crate) fn on_device(&self, device: &Device) -> Result<&Tensor> {
        if self.copy.get().is_none() {
            let copy = Tensor::new(self.values.as_slice(), device)?;
            self.copy.get_or_init(|| copy);
        }
        match self.copy.get() {
            Some(copy) if copy.device().same_device(device) => Ok(copy),
            _ => bail!("values that two devices ask for"),
        }
    }
}

/// Values (n) that the device alone knows: to the host there are none.
impl<T> From<Tensor> for Mirrored<T> {
    fn from(copy: Tensor) -> Self {
        Self { values: Vec::new(), copy: copy.into() }
    }
}

impl<T> From<Vec<T>> for Mirrored<T> {
    fn from(values: Vec<T>) -> Self {
        Self { values, copy: OnceLock::new() }
    }
}

impl<T> Deref for Mirrored<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T: PartialEq> PartialEq for Mirrored<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}
