//! Going on with one conversation, a token at a time: on the CPU by a cache, on a GPU by a decoder.

use std::sync::Arc;

use candle_core::Tensor;
use lathe_kernels::RopeTable;
use lathe_protocol::SamplingParams;

use crate::{
    Result,
    model::{Decoder, Decoding, KvCache, Model},
    rng,
    sample::{self, Sampler},
};

/// What a model has read of a conversation.
pub(crate) enum Memory {
    Cpu {
        cache: KvCache,
        rope: Arc<RopeTable>,
    },
    /// Of one sequence.
    Gpu(Decoder),
}

/// A model that reads on and writes; sampling draws what it writes.
pub(crate) enum Writer<'a> {
    Cpu {
        model: &'a Model,
        cache: &'a mut KvCache,
        rope: &'a Arc<RopeTable>,
        sampler: Box<Sampler>,
        /// Of what was fed last.
        logits: Option<Tensor>,
    },
    Gpu {
        decoding: Decoding<'a>,
        /// Of the draws.
        key: u64,
        state: State,
    },
}

pub(crate) enum State {
    /// With the logits of what was fed last.
    Reading(Option<Tensor>),
    /// With the token that was drawn.
    Writing(u32),
}

impl Memory {
    /// Room for `capacity` tokens.
    pub fn new(model: &Model, capacity: usize) -> Result<Self> {
        Ok(if model.compute.is_gpu() {
            Self::Gpu(Decoder::new(model, capacity, 1)?)
        } else {
            Self::Cpu { cache: model.new_cache(capacity)?, rope: model.rope_table(capacity) }
        })
    }

    pub fn capacity(&self) -> usize {
        match self {
            Self::Cpu { cache, .. } => cache.capacity(),
            Self::Gpu(decoder) => decoder.cache(0).capacity(),
        }
    }

    /// Forgets all but the first `num_tokens`.
    pub fn truncate(&mut self, num_tokens: usize) {
        match self {
            Self::Cpu { cache, .. } => cache.truncate(num_tokens),
            Self::Gpu(decoder) => decoder.truncate(0, num_tokens),
        }
    }

    /// The writer of the conversation's reply of this number.
    pub fn writer<'a>(
        &'a mut self,
        model: &'a Model,
        params: &SamplingParams,
        reply: u64,
    ) -> Result<Writer<'a>> {
        Ok(match self {
            Self::Cpu { cache, rope } => {
                let sampler = Box::new(Sampler::new(params.clone(), reply));
                Writer::Cpu { model, cache, rope, sampler, logits: None }
            }
            Self::Gpu(decoder) => Writer::Gpu {
                decoding: decoder.with(model, sample::sampling(params))?,
                key: rng::key(params.seed, "sample", reply),
                state: State::Reading(None),
            },
        })
    }
}

impl Writer<'_> {
    pub fn is_full(&self) -> bool {
        let cache = match self {
            Self::Cpu { cache, .. } => cache,
            Self::Gpu { decoding, .. } => decoding.cache(0),
        };
        cache.num_tokens() == cache.capacity()
    }

    /// Feeds tokens of a prompt.
    pub fn read(&mut self, ids: &[u32]) -> Result<()> {
        match self {
            Self::Cpu { model, cache, rope, logits, .. } => *logits = Some(model.decode(ids, cache, rope)?),
            Self::Gpu { decoding, state, .. } => *state = State::Reading(Some(decoding.prefill(0, ids)?)),
        }
        Ok(())
    }

    /// Draws the token that follows, none of `forbidden`; `None` before anything was fed.
    pub fn draw(&mut self, forbidden: &[u32]) -> Result<Option<u32>> {
        match self {
            Self::Cpu { sampler, logits, .. } => {
                logits.as_ref().map(|logits| sampler.next_token(logits, forbidden)).transpose()
            }
            Self::Gpu { decoding, key, state } => {
                if let State::Reading(Some(logits)) = state {
                    decoding.forbid(0, forbidden)?;
                    *state = State::Writing(decoding.start(0, logits, *key)?);
                }
                Ok(match state {
                    State::Writing(drawn) => Some(*drawn),
                    State::Reading(_) => None,
                })
            }
        }
    }

    /// Feeds a token that was drawn, or another in its place. `forbidden` is what will not be drawn next.
    pub fn write(&mut self, id: u32, forbidden: &[u32]) -> Result<()> {
        match self {
            Self::Cpu { .. } => self.read(&[id]),
            Self::Gpu { .. } => {
                let drawn = self.draw(forbidden)?;
                let Self::Gpu { decoding, state, .. } = self else { return Ok(()) };
                if drawn != Some(id) {
                    decoding.put(0, id)?;
                }
                decoding.forbid(0, forbidden)?;
                *state = State::Writing(decoding.step()?[0]);
                Ok(())
            }
        }
    }
}
