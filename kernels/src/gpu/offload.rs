//! Activations that wait for the backward in the host's memory.
//!
//! On a card they are copied there and back on a stream of their own, beside the computation: while a block computes, the
//! one before is on its way. Two are on the card at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::Shape;
use candle_core::{Device, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda::{Lane, Pinned};

/// Where activations of one pass wait, each at its index; its buffers serve the next pass again.
pub struct Offload {
    state: Mutex<State>,
}

struct State {
    #[cfg(feature = "cuda")]
    lane: Option<Lane>,
    slots: Vec<Slot>,
    /// What is being copied away: it may be freed once the copy is done.
    leaving: Option<Tensor>,
}

#[derive(Default)]
struct Slot {
    #[cfg(feature = "cuda")]
    pinned: Option<(Pinned, Shape)>,
    /// On the emulated GPU, whose memory is the host's.
    copy: Option<Tensor>,
    /// On its way back.
    coming: Option<Tensor>,
}

impl Offload {
    /// For bf16 tensors of this device.
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        let state = State {
            #[cfg(feature = "cuda")]
            lane: Lane::new(device)?,
            slots: Vec::new(),
            leaving: None,
        };
        Ok(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a tensor away.
    pub fn park(&self, index: usize, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.detach().contiguous()?;
        let mut state = self.state();
        let State {
            slots,
            leaving,
            #[cfg(feature = "cuda")]
            lane,
        } = &mut *state;
        slots.resize_with(slots.len().max(index + 1), Slot::default);
        let slot = &mut slots[index];
        #[cfg(feature = "cuda")]
        if let Some(lane) = lane {
            lane.send(&tensor, &mut slot.pinned)?;
            // What left before has arrived by now, as the computation sees it.
            *leaving = Some(tensor);
            return Ok(());
        }
        slot.copy = Some(tensor.copy()?);
        *leaving = None;
        Ok(())
    }

    /// Begins to bring a tensor back.
    pub fn call(&self, index: usize) -> Result<()> {
        let mut state = self.state();
        let State {
            slots,
            leaving,
            #[cfg(feature = "cuda")]
            lane,
        } = &mut *state;
        let nothing = || candle_core::Error::msg(format!("nothing was parked at {index}"));
        let slot = slots.get_mut(index).ok_or_else(nothing)?;
        #[cfg(feature = "cuda")]
        if let Some(lane) = lane {
            lane.wait()?;
            *leaving = None;
            let (pinned, shape) = slot.pinned.as_ref().ok_or_else(nothing)?;
            slot.coming = Some(lane.fetch(pinned, shape)?);
            return Ok(());
        }
        *leaving = None;
        slot.coming = Some(slot.copy.clone().ok_or_else(nothing)?);
        Ok(())
    }

    /// The tensor, which [`Self::call`] has called. Errors: it was not.
    pub fn take(&self, index: usize) -> Result<Tensor> {
        let mut state = self.state();
        #[cfg(feature = "cuda")]
        if let Some(lane) = &state.lane {
            lane.wait()?;
        }
        let coming = state.slots.get_mut(index).and_then(|slot| slot.coming.take());
        coming.ok_or_else(|| candle_core::Error::msg(format!("nothing was called from {index}")))
    }
}
