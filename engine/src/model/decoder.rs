use std::sync::Arc;

use candle_core::Tensor;
use lathe_kernels::{
    RopeTable, Sampling,
    gpu::{
        decode::{Plan, Sequences},
        replay::Replay,
    },
};

use super::{Context, Embedding, KvCache, Model};
use crate::{Error, Result};

/// Most tokens that a sequence may be forbidden to draw.
const MAX_FORBIDDEN: usize = 64;

/// What a model on a GPU has read of several sequences, which it continues side by side: each has its own part of the
/// cache, and may begin, end and be replaced while the others go on.
pub struct Decoder {
    caches: Vec<KvCache>,
    sequences: Sequences,
    rope: Arc<RopeTable>,
    /// Which are continued.
    are_going: Vec<bool>,
    /// What each may not draw.
    forbidden: Vec<Vec<u32>>,
}

/// A [`Decoder`] at work, with the model that continues its sequences and its CUDA graph: both stay as they are for as
/// long as this lives.
pub struct Decoding<'a> {
    model: &'a Model,
    decoder: &'a mut Decoder,
    sampling: Sampling,
    replay: Replay,
}

impl Decoder {
    /// Room for `batch` sequences (at least one) of `capacity` tokens each.
    pub fn new(model: &Model, capacity: usize, batch: usize) -> Result<Self> {
        Ok(Self {
            caches: model.new_caches(capacity, batch)?,
            sequences: Sequences::new(&model.compute.device, batch, capacity, MAX_FORBIDDEN)?,
            rope: model.rope_table(capacity),
            are_going: vec![false; batch],
            forbidden: vec![Vec::new(); batch],
        })
    }

    /// What the model has read of a sequence.
    pub fn cache(&self, sequence: usize) -> &KvCache {
        &self.caches[sequence]
    }

    /// Forgets all but a sequence's first `num_tokens`.
    pub fn truncate(&mut self, sequence: usize, num_tokens: usize) {
        self.caches[sequence].truncate(num_tokens);
    }

    /// Sets to work, with no sequence continued yet.
    pub fn with<'a>(&'a mut self, model: &'a Model, sampling: Sampling) -> Result<Decoding<'a>> {
        for sequence in 0..self.are_going.len() {
            self.stop(sequence)?;
        }
        Ok(Decoding { model, decoder: self, sampling, replay: Replay::default() })
    }

    fn stop(&mut self, sequence: usize) -> Result<()> {
        if std::mem::take(&mut self.are_going[sequence]) {
            self.sequences.stop(sequence)?;
        }
        Ok(())
    }
}

impl Decoding<'_> {
    /// What the model has read of a sequence.
    pub fn cache(&self, sequence: usize) -> &KvCache {
        self.decoder.cache(sequence)
    }

    /// Feeds `ids` behind what a sequence holds, which stops; logits of the last of them, (V).
    ///
    /// Errors: more tokens than its part of the cache takes.
    pub fn prefill(&mut self, sequence: usize, ids: &[u32]) -> Result<Tensor> {
        let Self { model, decoder, .. } = self;
        decoder.stop(sequence)?;
        model.decode(ids, &mut decoder.caches[sequence], &decoder.rope)
    }

    /// Goes on with a sequence, from the logits (V) of its last token: the token that is drawn, which the next step
    /// feeds. `key` is what its draws are made of.
    pub fn start(&mut self, sequence: usize, logits: &Tensor, key: u64) -> Result<u32> {
        let Self { decoder, sampling, .. } = self;
        let num_tokens = decoder.caches[sequence].num_tokens;
        decoder.sequences.start(sequence, num_tokens, key, *sampling, logits)?;
        decoder.are_going[sequence] = true;
        let drawn: Vec<u32> = decoder.sequences.tokens().narrow(0, sequence, 1)?.to_vec1()?;
        Ok(drawn[0])
    }

    /// Stops a sequence, which stays as it is until something is fed.
    pub fn stop(&mut self, sequence: usize) -> Result<()> {
        self.decoder.stop(sequence)
    }

    /// Empties a sequence, for another in its place.
    pub fn clear(&mut self, sequence: usize) -> Result<()> {
        self.decoder.stop(sequence)?;
        self.decoder.truncate(sequence, 0);
        Ok(())
    }

    /// Has the next step feed this token in place of the one that was drawn.
    ///
    /// Errors: an id beyond the vocabulary.
    pub fn put(&mut self, sequence: usize, id: u32) -> Result<()> {
        self.model.check_ids(&[id])?;
        Ok(self.decoder.sequences.put(sequence, id)?)
    }

    /// Lets a sequence draw none of these from here on.
    ///
    /// Errors: more than 64.
    pub fn forbid(&mut self, sequence: usize, ids: &[u32]) -> Result<()> {
        let Decoder { sequences, forbidden, .. } = &mut *self.decoder;
        if forbidden[sequence] != ids {
            sequences.forbid(sequence, ids)?;
            forbidden[sequence] = ids.to_vec();
        }
        Ok(())
    }

    /// Feeds each sequence its token and draws the next, (B); of one that is not continued it means nothing.
    ///
    /// Errors: a sequence whose part of the cache is full.
    pub fn step(&mut self) -> Result<Vec<u32>> {
        let Self { model, decoder, sampling, replay } = self;
        let Decoder { caches, sequences, rope, are_going, .. } = &mut **decoder;
        let going = || caches.iter().zip(are_going.iter()).filter(|(_, is_going)| **is_going);
        if let Some((cache, _)) = going().find(|(cache, _)| cache.num_tokens == cache.capacity) {
            return Err(Error::model(format!("A sequence has all the {} tokens it takes", cache.capacity)));
        }
        let layers = caches[0].layers.clone();
        replay.run(&model.compute.device, || {
            let logits = model.next_logits(sequences, &layers, rope)?;
            Ok::<_, Error>(sequences.advance(*sampling, &logits)?)
        })?;
        for (cache, is_going) in caches.iter_mut().zip(are_going) {
            cache.num_tokens += usize::from(*is_going);
        }
        Ok(sequences.tokens().to_vec1()?)
    }

    /// The logits (B,V) of what the next step feeds, which it feeds all the same.
    pub fn logits(&self) -> Result<Tensor> {
        let Decoder { caches, sequences, rope, .. } = &*self.decoder;
        self.model.next_logits(sequences, &caches[0].layers, rope)
    }
}

impl Model {
    /// Feeds one token a sequence, wherever on the device it says: logits (B,V). Every launch is the same in every step.
    fn next_logits(
        &self,
        sequences: &Sequences,
        layers: &[(Tensor, Tensor)],
        rope: &Arc<RopeTable>,
    ) -> Result<Tensor> {
        let context = Context {
            positions: Arc::new(sequences.lengths().clone().into()),
            segments: Arc::default(),
            rope: rope.clone(),
            dropout_key: None,
        };
        let table = match &self.embedding {
            Embedding::Frozen(table) => table,
            Embedding::Trainable(table) => table.as_tensor(),
            Embedding::Quantized(_) => return Err(Error::model("A quantised table of tokens on a GPU")),
        };
        let own = self.token_rows.as_ref().map(|own| own.on_device(table.dim(0)?)).transpose()?;
        let mut plans: Vec<(Option<usize>, Plan)> = Vec::new();
        let mut h = sequences.embed(table, own)?;
        for (layer, (keys, values)) in layers.iter().enumerate() {
            let attention = &self.blocks[layer].attention;
            let known = plans.iter().position(|(window, _)| *window == attention.window);
            if known.is_none() {
                plans.push((attention.window, sequences.plan(attention)?));
            }
            let (_, plan) = &plans[known.unwrap_or(plans.len() - 1)];
            let output = self.block_with(layer, &h, &context, |q, k, v| {
                Ok(sequences.attend(attention, plan, [&q, &k, &v], [keys, values])?)
            })?;
            h = output.detach();
        }
        Ok(self.logits(&self.norm(&h)?)?.detach())
    }
}
