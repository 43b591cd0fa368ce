use lathe_protocol::ErrorCode;

use super::{LoraWeights, Mlp, Model};
use crate::{Error, Result};

impl Model {
    /// Lets `act` use a model in training without its adapters: they are taken off and put on again, nothing is copied.
    ///
    /// Errors: weights of the model itself learn, so that it is no longer what it was.
    pub fn without_adapters<T>(&mut self, act: impl FnOnce(&Self) -> T) -> Result<T> {
        if !self.whole_weights().is_empty() {
            let message = "The run trains weights of the model itself: its base is no longer in memory";
            return Err(Error::invalid(ErrorCode::Usage, message)
                .hint("ask the model as it is now, or chat with the base model apart from the run"));
        }
        let loras: Vec<_> = self.loras_mut().map(std::mem::take).collect();
        let token_rows = self.token_rows.take();
        let answer = act(self);
        self.token_rows = token_rows;
        for (place, lora) in self.loras_mut().zip(loras) {
            *place = lora;
        }
        Ok(answer)
    }

    /// The adapters of every linear and every expert parameter.
    fn loras_mut(&mut self) -> impl Iterator<Item = &mut Vec<LoraWeights>> {
        self.blocks.iter_mut().flat_map(|block| {
            let mut loras: Vec<_> = [&mut block.q, &mut block.k, &mut block.v, &mut block.o]
                .into_iter()
                .map(|projection| &mut projection.lora)
                .collect();
            match &mut block.mlp {
                Mlp::Dense { gate, up, down } => {
                    loras.extend([gate, up, down].map(|projection| &mut projection.lora));
                }
                Mlp::Experts(experts) => {
                    loras.extend([
                        &mut experts.router.lora,
                        &mut experts.gate_up.lora,
                        &mut experts.down.lora,
                    ]);
                }
            }
            loras
        })
    }
}
