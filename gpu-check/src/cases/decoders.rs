//! Sequences that are continued side by side against each of them continued alone.

use std::path::Path;

use candle_core::{Result, Tensor};
use lathe_engine::{
    lora,
    model::{Decoder, Decoding, KvCache, LoadFor, Model},
    train::trainables,
};
use lathe_kernels::{Sampling, gpu::decode::Sequences};
use lathe_protocol::{LoraConfig, Method};

use crate::{
    models::{self, Shape},
    twins::{check_near, compute, random},
};

const CAPACITY: usize = 60;
/// Of logits whose sums are made in another order.
const TOLERANCE: f32 = 0.1;
const KEY: u64 = 11;

pub fn qwen3_sequences_side_by_side_are_those_alone() -> Result<()> {
    check(&models::TINY_QWEN3, None)
}

pub fn gpt_oss_sequences_side_by_side_are_those_alone() -> Result<()> {
    let config = LoraConfig {
        r: 8,
        target_parameters: vec!["experts.gate_up_proj".into(), "experts.down_proj".into()],
        ..LoraConfig::default()
    };
    check(&models::TINY_GPT_OSS, Some(&config))
}

fn check(shape: &Shape, config: Option<&LoraConfig>) -> Result<()> {
    let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
    models::write(folder.path(), shape, 5).map_err(candle_core::Error::wrap)?;
    let model = adapted(folder.path(), config).map_err(candle_core::Error::wrap)?;
    let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    alone(&model, greedy).map_err(candle_core::Error::wrap)?;
    side_by_side(&model, Sampling { temperature: 1.2, top_k: 30, top_p: 0.95 })
        .map_err(candle_core::Error::wrap)
}

type EngineResult<T> = lathe_engine::Result<T>;

fn adapted(folder: &Path, config: Option<&LoraConfig>) -> EngineResult<Model> {
    let mut model = Model::load_on(folder, LoadFor::Inference, compute(true))?;
    let Some(config) = config else { return Ok(model) };
    lora::attach_fresh(&mut model, config, 1)?;
    model.set_token_rows(vec![17, 320], &random(&[2, model.config.hidden_size], 9)?)?;
    let trainables = trainables(&model, Method::Lora);
    for (index, trainable) in trainables.iter().enumerate().filter(|(_, t)| t.name.contains("lora_B")) {
        let values = (random(trainable.var.dims(), index as u64)? * 0.05)?;
        trainable.var.set(&values.to_device(trainable.var.device())?)?;
    }
    model.fix_adapters()?;
    Ok(model)
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|t| ((t * t * 7 + 31 * length + t) % 320) as u32).collect()
}

/// A sequence of a decoder and the same fed to a cache of its own.
struct Twin<'a> {
    model: &'a Model,
    sequence: usize,
    cache: KvCache,
    /// What the decoder says comes next.
    next: u32,
}

impl<'a> Twin<'a> {
    /// Reads a prompt in two pieces, the second of one token.
    fn start(
        model: &'a Model,
        decoding: &mut Decoding<'_>,
        sequence: usize,
        length: usize,
    ) -> EngineResult<Self> {
        let prompt = prompt(length);
        let (first, last) = prompt.split_at(length - 1);
        decoding.prefill(sequence, first)?;
        let logits = decoding.prefill(sequence, last)?;
        let next = decoding.start(sequence, &logits, KEY + sequence as u64)?;
        let mut cache = model.new_cache(CAPACITY)?;
        model.decode(&prompt, &mut cache, &model.rope_table(CAPACITY))?;
        Ok(Self { model, sequence, cache, next })
    }

    /// Feeds its next token to its own cache and compares: logits (B,V) of the decoder. Then what is drawn from them.
    fn follow(&mut self, logits: &Tensor, sampling: Sampling, forbidden: &[u32]) -> EngineResult<u32> {
        let rope = self.model.rope_table(CAPACITY);
        let expected = self.model.decode(&[self.next], &mut self.cache, &rope)?;
        let found = logits.get(self.sequence)?;
        check_near(&found, &expected, TOLERANCE)?;
        let draw = Sequences::draw(KEY + self.sequence as u64, self.cache.num_tokens());
        let row = found.unsqueeze(0)?.to_device(&candle_core::Device::Cpu)?.copy()?;
        Ok(sampling.sample(&row, forbidden, &[draw])?[0])
    }
}

/// A step of all, held to the twins.
fn step(
    decoding: &mut Decoding<'_>,
    twins: &mut [Twin<'_>],
    sampling: Sampling,
    forbidden: &[u32],
) -> EngineResult<()> {
    let logits = decoding.logits()?;
    let drawn = decoding.step()?;
    for twin in twins {
        let expected = twin.follow(&logits, sampling, forbidden)?;
        if drawn[twin.sequence] != expected {
            let (sequence, found) = (twin.sequence, drawn[twin.sequence]);
            return Err(lathe_engine::Error::model(format!("sequence {sequence}: {found}, not {expected}")));
        }
        twin.next = expected;
    }
    Ok(())
}

/// One sequence, with a token that is forced and some that are forbidden, to the end of its room.
fn alone(model: &Model, sampling: Sampling) -> EngineResult<()> {
    let mut decoder = Decoder::new(model, 28, 1)?;
    let mut decoding = decoder.with(model, sampling)?;
    let mut twins = [Twin::start(model, &mut decoding, 0, 25)?];
    decoding.put(0, 17)?;
    twins[0].next = 17;
    step(&mut decoding, &mut twins, sampling, &[])?;
    let forbidden = [twins[0].next, 3, 4];
    decoding.forbid(0, &forbidden)?;
    step(&mut decoding, &mut twins, sampling, &forbidden)?;
    decoding.forbid(0, &[])?;
    step(&mut decoding, &mut twins, sampling, &[])?;
    let refused = |result: EngineResult<Vec<u32>>, why: &str| match result {
        Err(error) if error.to_string().contains(why) => Ok(()),
        other => Err(candle_core::Error::msg(format!("{other:?}, not an error of {why}"))),
    };
    refused(decoding.step(), "all the 28 tokens")?;
    refused(decoding.put(0, 999).map(|()| Vec::new()), "beyond")?;
    // Another conversation with the same beginning.
    decoder.truncate(0, 20);
    let mut decoding = decoder.with(model, sampling)?;
    let logits = decoding.prefill(0, &prompt(25)[20..])?;
    let expected = model.decode(&prompt(25), &mut model.new_cache(CAPACITY)?, &model.rope_table(CAPACITY))?;
    Ok(check_near(&logits, &expected, TOLERANCE)?)
}

/// Three of different lengths, one of which ends and is replaced.
fn side_by_side(model: &Model, sampling: Sampling) -> EngineResult<()> {
    let mut decoder = Decoder::new(model, CAPACITY, 3)?;
    let mut decoding = decoder.with(model, sampling)?;
    let mut twins = Vec::new();
    for (sequence, length) in [20, 3, 40].into_iter().enumerate() {
        twins.push(Twin::start(model, &mut decoding, sequence, length)?);
    }
    step(&mut decoding, &mut twins, sampling, &[])?;
    decoding.stop(1)?;
    twins.remove(1);
    step(&mut decoding, &mut twins, sampling, &[])?;
    decoding.clear(1)?;
    twins.push(Twin::start(model, &mut decoding, 1, 18)?);
    step(&mut decoding, &mut twins, sampling, &[])
}
